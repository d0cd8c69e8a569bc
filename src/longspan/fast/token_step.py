"""What the token steps of all decoders share, and which decoder has one.

A token step replaces `forward` for one more token of each row: calling the modules of a model for one token costs more
than the work (hooks, checks, masks, outputs).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from longspan.fast.few_rows import FewRowsLinear, can_pack
from longspan.generation.torch_lean import StepRequest, TokenStep
from longspan.nn.torch.plain import is_plain
from longspan.nn.torch.prepacking import MOST_BYTES

#: new tokens from which on laying out the weights repays; one row of float32 gains less
_WORTH_PACKING, _WORTH_PACKING_ONE_ROW = 16, 64
#: bytes of weights below which one row of float32 gains as much
_FEW_BYTES = 2**26


def make_token_step(model: Any, request: StepRequest) -> TokenStep | None:
    """The token step of a model for a run, or None if only the model itself can serve."""
    from longspan.fast.diffllama_step import DiffLlamaForCausalLM, DiffLlamaStep
    from longspan.fast.longt5_step import LongT5ForConditionalGeneration, LongT5Step

    if type(model) is DiffLlamaForCausalLM:
        return DiffLlamaStep.make(model, request)
    return LongT5Step.make(model, request) if type(model) is LongT5ForConditionalGeneration else None


def packs(request: StepRequest, weights: Iterable[Tensor]) -> bool:
    """True if laying out these weights anew is possible and repays."""
    weights = list(weights)
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
    if not is_plain(model, deep=False) or not all(is_plain(part, kinds=kinds) for part in parts):
        return False
    parameters = [parameter for part in parts for parameter in part.parameters()]
    kind, device = parameters[0].dtype, parameters[0].device
    if kind not in (torch.float32, torch.bfloat16) or torch.is_autocast_enabled(device.type):
        return False
    return all(parameter.dtype == kind and parameter.device == device for parameter in parameters)


def joined(projections: Iterable[Any], *, packed: bool, rows: int) -> FewRowsLinear:
    """The projections that read one input, as one product."""
    layers = list(projections)
    return FewRowsLinear([layer.weight for layer in layers], [layer.bias for layer in layers], packed=packed, rows=rows)
