"""What a model looks at in a document: attention that tokens receive, and gradient times input. PyTorch.

Axes: L layers, A heads, S tokens of a row, G global tokens, W window, T tokens of the document, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from longspan.documents.windows import owned_ranges
from longspan.errors import InputError
from longspan.pipelines.base import Job, Pipeline
from longspan.pipelines.frames import Row

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Explanation:
    """What was seen, for each token of the document.

    Attributes:
        text: The document.
        starts: (T,) first character of each token.
        ends: (T,) one past its last character.
        received: (L, A, T) mean attention that each token receives from all tokens of its window.
        from_first: (L, A, T) attention of the window's first token to each.
        gradient: (T,) sum over H of gradient times input embedding, of the score that the model is surest of.
        model: Name of the model's class.
        task: The task.
        num_windows: Windows that the document was read in.
    """

    text: str
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    received: Floats
    from_first: Floats
    gradient: Floats
    model: str
    task: str
    num_windows: int


def explain(pipeline: Pipeline, item: Any, **settings: Any) -> Explanation:
    """Look at a document through a model.

    Args:
        pipeline: The task with its model, in PyTorch.
        item: An input of the pipeline; of a pair, the document is explained.
        **settings: Options of the pipeline for this call.

    Returns:
        The explanation. Of a document longer than the model each token is seen in the window that shows it with the
        most context.

    Raises:
        InputError: the pipeline runs in another framework, gives no attention, or the input breaks a rule.
    """
    if pipeline.framework != "torch":
        raise InputError(f"explain needs framework='torch'. Received: framework={pipeline.framework!r}")
    options = pipeline.options.updated(settings, pipeline.task)
    job = pipeline.prepare(item, options)
    maps = [_look(pipeline, row) for row in job.rows]
    parts = []
    for index, ((start, _), (first, last)) in enumerate(zip(job.windows, owned_ranges(job.windows), strict=True)):
        own = slice(job.lead + first - start, job.lead + last - start)
        parts.append([values[..., own] for values in maps[index]])
    received, from_first, gradient = (np.concatenate(of_kind, axis=-1) for of_kind in zip(*parts, strict=True))
    starts, ends = _characters(job)
    name = type(pipeline.model.model).__name__  # type: ignore[attr-defined]
    return Explanation(job.text, starts, ends, received, from_first, gradient, name, pipeline.task, len(job.rows))


def _characters(job: Job) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    shown = job.windows[-1][1]
    return job.tokens.starts[:shown], job.tokens.ends[:shown]


def _look(pipeline: Pipeline, row: Row) -> tuple[Floats, Floats, Floats]:
    """Received attention (L, A, S), attention of the first token (L, A, S), gradient times input (S,)."""
    model = pipeline.model.model  # type: ignore[attr-defined]
    device = next(model.parameters()).device
    inputs = {name: torch.from_numpy(array).to(device) for name, array in pipeline.stack_row(row).items()}
    ids = inputs.pop("input_ids")
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_(True)
    with torch.enable_grad():
        output = model(inputs_embeds=embeds, **inputs, output_attentions=True)
        if output.get("attentions") is None:
            raise InputError(f"explain needs a model that returns attention. Received: {type(model).__name__}")
        (gradient,) = torch.autograd.grad(_surest(output), embeds)
    length = ids.shape[1]
    is_global = inputs.get("global_attention_mask")
    maps = [
        _layer(output, layer, length, is_global, model.config.model_type) for layer in range(len(output["attentions"]))
    ]
    received, first = (torch.stack(of_kind).float().cpu().numpy() for of_kind in zip(*maps, strict=True))
    return received, first, (gradient * embeds).sum(dim=-1)[0].detach().float().cpu().numpy()


def _surest(output: Any) -> Tensor:
    """The score to explain: the sum of what the model is surest of at each place, or the size of its states."""
    if "start_logits" in output:
        best: Tensor = output["start_logits"].amax() + output["end_logits"].amax()
        return best
    logits: Tensor = output["logits"] if "logits" in output else output[0].pow(2)
    total: Tensor = logits.amax(dim=-1).sum()
    return total


def _layer(output: Any, layer: int, length: int, is_global: Tensor | None, model_type: str) -> tuple[Tensor, Tensor]:
    """Attention of one layer that tokens receive, and that of the first token, both (A, S)."""
    weights: Tensor = output["attentions"][layer].detach()[0]
    if model_type == "longformer":
        every_global = output.get("global_attentions")
        of_layer = None if every_global is None else every_global[layer].detach()[0]
        return _banded(weights, of_layer, length, is_global)
    if weights.shape[-2:] == (length, length):
        return weights.mean(dim=1), weights[:, 0]
    received = weights.mean(dim=1).flatten()[None, :length]  # MEGA's chunks: (chunks, tokens, tokens), the last padded
    first = torch.zeros_like(received)
    first[0, : weights.shape[-1]] = weights[0, 0]
    return received, first


def _banded(
    weights: Tensor, global_weights: Tensor | None, length: int, is_global: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same for Longformer: weights (A, S, G + W + 1) of the window, (A, S, G) of the global tokens."""
    num_global = 0 if global_weights is None else global_weights.shape[-1]
    band = weights[:, :length, num_global:]
    radius = band.shape[-1] // 2
    keys = torch.arange(length)[:, None] + torch.arange(-radius, radius + 1)
    inside = (keys >= 0) & (keys < length)
    received = torch.zeros(weights.shape[0], length)
    received.index_add_(1, keys[inside], band[:, inside].cpu())
    first = torch.zeros_like(received)
    first[:, keys[0][inside[0]]] = band[:, 0, inside[0]].cpu()
    if global_weights is not None and is_global is not None:
        places = is_global[0].nonzero()[:, 0].cpu()
        received.index_add_(1, places, weights[:, :length, :num_global].sum(dim=1).cpu())
        received += global_weights[:, :length].sum(dim=-1).cpu()
        if places[0] == 0:
            first = global_weights[:, :length, 0].cpu()
    return received / length, first
