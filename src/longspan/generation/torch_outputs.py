"""What `generate` returns on request, in PyTorch.

Axes: R returned rows, L tokens, V vocabulary, N steps. `sequences` holds ids (R, L), prompts included unless they were
embeddings. Of each step, `scores` holds the processed and `logits` the unprocessed scores, N × (rows, V), `attentions`
and `hidden_states` what the model returned; each is present only if it was asked for. Beam search adds
`sequences_scores` (R,), the final scores, and `beam_indices` (R, N), the row of each step that a token came from, -1
behind the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longspan.errors import InputError
from longspan.nn.torch.cache import Cache, LegacyCache
from longspan.nn.torch.outputs import DictOutput, Tensors, model_output


@model_output
class GenerateDecoderOnlyOutput(DictOutput):
    """Rows of a causal model."""

    sequences: Tensor | None = None
    scores: Tensors | None = None
    logits: Tensors | None = None
    attentions: tuple[Tensors, ...] | None = None
    hidden_states: tuple[Tensors, ...] | None = None
    past_key_values: Cache | LegacyCache | None = None


@model_output
class GenerateEncoderDecoderOutput(DictOutput):
    """Rows of a model with an encoder."""

    sequences: Tensor | None = None
    scores: Tensors | None = None
    logits: Tensors | None = None
    encoder_attentions: Tensors | None = None
    encoder_hidden_states: Tensors | None = None
    decoder_attentions: tuple[Tensors, ...] | None = None
    cross_attentions: tuple[Tensors, ...] | None = None
    decoder_hidden_states: tuple[Tensors, ...] | None = None
    past_key_values: Cache | LegacyCache | None = None


@model_output
class GenerateBeamDecoderOnlyOutput(DictOutput):
    """Rows of a causal model, from beam search."""

    sequences: Tensor | None = None
    sequences_scores: Tensor | None = None
    scores: Tensors | None = None
    logits: Tensors | None = None
    beam_indices: Tensor | None = None
    attentions: tuple[Tensors, ...] | None = None
    hidden_states: tuple[Tensors, ...] | None = None
    past_key_values: Cache | LegacyCache | None = None


@model_output
class GenerateBeamEncoderDecoderOutput(DictOutput):
    """Rows of a model with an encoder, from beam search."""

    sequences: Tensor | None = None
    sequences_scores: Tensor | None = None
    scores: Tensors | None = None
    logits: Tensors | None = None
    beam_indices: Tensor | None = None
    encoder_attentions: Tensors | None = None
    encoder_hidden_states: Tensors | None = None
    decoder_attentions: tuple[Tensors, ...] | None = None
    cross_attentions: tuple[Tensors, ...] | None = None
    decoder_hidden_states: tuple[Tensors, ...] | None = None
    past_key_values: Cache | LegacyCache | None = None


class Record:
    """Collects what was asked for, step by step.

    Args:
        scores: Keep processed scores.
        logits: Keep unprocessed scores.
        attentions: Keep attention weights.
        hidden_states: Keep hidden states.
        has_encoder: The model has an encoder.
    """

    def __init__(self, *, scores: bool, logits: bool, attentions: bool, hidden_states: bool, has_encoder: bool) -> None:
        prefix = "decoder_" if has_encoder else ""
        self.scores: list[Tensor] | None = [] if scores else None
        self.logits: list[Tensor] | None = [] if logits else None
        wanted = {f"{prefix}attentions": attentions, "cross_attentions": attentions and has_encoder}
        wanted[f"{prefix}hidden_states"] = hidden_states
        self.by_field: dict[str, list[Any]] = {field: [] for field, is_wanted in wanted.items() if is_wanted}

    def add(self, outputs: Any, logits: Tensor, scores: Tensor) -> None:
        """Keep the outputs of one step."""
        if self.scores is not None:
            self.scores.append(scores)
        if self.logits is not None:
            self.logits.append(logits)
        for field, values in self.by_field.items():
            values.append(getattr(outputs, field))

    def fields(self, num_steps: int) -> dict[str, Any]:
        """The first steps as fields of an output."""
        every: dict[str, Any] = {"scores": self.scores, "logits": self.logits, **self.by_field}
        return {name: tuple(values[:num_steps]) for name, values in every.items() if values is not None}


def transition_scores(
    sequences: Tensor, scores: Sequence[Tensor] | None, beam_indices: Tensor | None, *, normalize: bool
) -> Tensor:
    """Scores of the tokens that were generated; see `GenerationMixin.compute_transition_scores`."""
    if not scores:
        raise InputError(
            "transition scores need the scores of the steps: generate with output_scores=True and "
            f"return_dict_in_generate=True. Received: scores={scores}"
        )
    steps = torch.stack(list(scores))  # (N, rows, V)
    if normalize:
        steps = steps.log_softmax(dim=-1)
    if beam_indices is None:
        rows = torch.arange(len(sequences), device=sequences.device)[:, None].expand(-1, len(steps))
    else:
        rows = beam_indices[:, : int((beam_indices >= 0).sum(dim=1).max())]
    count = rows.shape[1]
    tokens = sequences[:, sequences.shape[1] - count :]
    chosen = steps[torch.arange(count, device=sequences.device), rows.clamp(min=0).long(), tokens]
    return chosen.masked_fill(rows < 0, 0.0)
