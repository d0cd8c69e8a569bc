"""What the token steps of all decoders share, and which decoder has one.

A token step replaces `forward` for one more token of each row: calling the modules of a model for one token costs more
than the work (hooks, checks, masks, outputs).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from longspan.fast.few_rows import (
    FewRows,
    FewRowsLinear,
    Int8FewRowsLinear,
    can_pack,
    one_query_scores,
    one_query_values,
)
from longspan.generation.torch_lean import StepRequest, TokenStep
from longspan.nn.torch.growing_cache import GrowingCache
from longspan.nn.torch.int8_weights import Int8WeightLinear
from longspan.nn.torch.plain import is_plain
from longspan.nn.torch.prepacking import MOST_BYTES

#: new tokens from which on laying out the weights repays; one row of float32 gains less
_WORTH_PACKING, _WORTH_PACKING_ONE_ROW = 16, 64
#: bytes of weights below which one row of float32 gains as much
_FEW_BYTES = 2**26


def make_token_step(model: Any, request: StepRequest) -> TokenStep | None:
    """The token step of a model for a run, or None if only the model itself can serve."""
    from longspan.fast.bert_step import BertLMHeadModel, BertStep, RobertaForCausalLM, XLMRobertaForCausalLM
    from longspan.fast.diffllama_step import DiffLlamaForCausalLM, DiffLlamaStep
    from longspan.fast.longt5_step import LongT5ForConditionalGeneration, LongT5Step
    from longspan.fast.mega_step import MegaForCausalLM, MegaStep

    steps: dict[type[nn.Module], Any] = {
        BertLMHeadModel: BertStep,
        RobertaForCausalLM: BertStep,
        XLMRobertaForCausalLM: BertStep,
        DiffLlamaForCausalLM: DiffLlamaStep,
        LongT5ForConditionalGeneration: LongT5Step,
        MegaForCausalLM: MegaStep,
    }
    kind = steps.get(type(model))
    return None if kind is None else kind.make(model, request)


def packs(request: StepRequest, weights: Iterable[Tensor]) -> bool:
    """True if laying out these weights anew is possible and repays."""
    weights = list(weights)
    if not weights or not all(weight.is_floating_point() for weight in weights):
        return False
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    gains_less = request.rows == 1 and weights[0].dtype == torch.float32 and size > _FEW_BYTES
    least = _WORTH_PACKING_ONE_ROW if gains_less else _WORTH_PACKING
    return request.num_tokens >= least and size <= MOST_BYTES and can_pack(weights[0])


def is_plain_step(model: nn.Module, parts: Collection[nn.Module], kinds: Collection[type[nn.Module]]) -> bool:
    """True if a token step may stand for calling a model: all is plain, in one dtype that steps compute in.

    Args:
        model: The model.
        parts: Those of its modules that a token meets.
        kinds: The only classes that these and the modules inside them may have.
    """
    kinds = (*kinds, Int8WeightLinear)
    if not is_plain(model, deep=False) or not all(is_plain(part, kinds=kinds) for part in parts):
        return False
    parameters = [parameter for part in parts for parameter in part.parameters()]
    kind, device = parameters[0].dtype, parameters[0].device
    if kind not in (torch.float32, torch.bfloat16) or torch.is_autocast_enabled(device.type):
        return False
    return all(parameter.dtype == kind and parameter.device == device for parameter in parameters)


def joined(projections: Iterable[Any], *, packed: bool, rows: int) -> FewRows:
    """The projections that read one input, as one product."""
    layers = list(projections)
    if any(isinstance(layer, Int8WeightLinear) for layer in layers):
        return Int8FewRowsLinear(layers)
    return FewRowsLinear([layer.weight for layer in layers], [layer.bias for layer in layers], packed=packed, rows=rows)


def additive_mask(mask: Tensor) -> Tensor:
    """Boolean, True = attend -> 0 or the least float32."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)


def attend_to_cache(
    heads: Tensor, cache: GrowingCache, layer_index: int, *, bias: Tensor | None, scale: float = 1.0
) -> Tensor:
    """Self-attention of one new token of each row, whose keys and values go to the cache.

    Args:
        heads: Queries, keys and values, (R, 3, A, D).
        cache: Holds the tokens before.
        layer_index: Index of the layer in the cache.
        bias: Added to the scores, (A, T), (R, 1, T) or (R, A, T).
        scale: Factor of the scores.

    Returns:
        (R, A·D).
    """
    rows, _, num_heads, size = heads.shape
    keys, values = cache.extend(layer_index)
    keys[:, :, -1] = heads[:, 1]
    values[:, :, -1] = heads[:, 2]
    query = heads[:, 0].reshape(-1, 1, size)  # (R·A, 1, D)
    scores = one_query_scores(query, keys.flatten(0, 1)).view(rows, num_heads, -1)
    scores = scores if scale == 1.0 else scores * scale
    scores = scores if bias is None else scores + bias
    weights = scores.softmax(dim=-1).view(rows * num_heads, 1, -1)
    return one_query_values(weights, values.flatten(0, 1)).view(rows, -1)
