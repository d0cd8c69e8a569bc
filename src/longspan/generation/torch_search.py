"""Greedy search and sampling, in PyTorch.

Axes: R rows, L tokens so far, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from longspan.generation.streamers import BaseStreamer
from longspan.generation.torch_outputs import Record
from longspan.generation.torch_processors import LogitsProcessorList
from longspan.generation.torch_stepper import Stepper
from longspan.generation.torch_stopping import StoppingCriteriaList

#: steps between two looks at whether all rows have ended, where looking means waiting for an accelerator
_PATIENCE = 16


@dataclass
class Run:
    """What a search needs, whatever its strategy.

    Attributes:
        stepper: The model at work.
        ids: Room for all ids, (R, greatest length); the prompts are there.
        length: Tokens of `ids` that are there.
        processors: Rules for the scores.
        criteria: Rules that end rows, besides the greatest length and the end token.
        eos: Ids that end a row, (number,), or None.
        pad: Id that fills rows that have ended.
        do_sample: Draw the next token rather than take the likeliest.
        generator: Source of random numbers; None for PyTorch's own.
        record: Keeps what was asked for.
        streamer: Takes every token as soon as it is there.
    """

    stepper: Stepper
    ids: Tensor
    length: int
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    eos: Tensor | None
    pad: int
    do_sample: bool
    generator: torch.Generator | None
    record: Record
    streamer: BaseStreamer | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def max_length(self) -> int:
        """Greatest length of a row."""
        return self.ids.shape[1]

    def first_outputs(self) -> Any:
        """Read the prompts once and then tell their rows apart, unless outputs of all rows are asked for."""
        if self.record.by_field or self.stepper.has_fixed_size:
            self.stepper.expand()
            return self.stepper.begin()
        outputs = self.stepper.begin()
        self.stepper.expand()
        return outputs

    def last_logits(self, outputs: Any) -> Tensor:
        """Scores of the next token, (R, V) in float32; rows of a prompt that were read together are repeated."""
        logits: Tensor = outputs.logits[:, -1].float()
        times = self.ids.shape[0] // logits.shape[0]
        return logits.repeat_interleave(times, dim=0) if times > 1 else logits

    def is_end(self, tokens: Tensor) -> Tensor:
        """True where a token ends its row; same shape."""
        if self.eos is None:
            return torch.zeros_like(tokens, dtype=torch.bool)
        return tokens == self.eos if self.eos.shape[0] == 1 else torch.isin(tokens, self.eos)


def search(run: Run) -> tuple[Tensor, int]:
    """Generate until all rows have ended.

    Returns:
        Ids (R, L), and the number of steps.
    """
    start, may_end = run.length, run.eos is not None or bool(run.criteria)
    ended = torch.zeros(run.ids.shape[0], dtype=torch.bool, device=run.ids.device)
    ends = torch.full_like(ended, run.max_length, dtype=torch.long)  # length at which each row ended
    patience = _PATIENCE if run.ids.is_cuda and run.streamer is None and not run.criteria else 1
    outputs = run.first_outputs()
    while True:
        logits = run.last_logits(outputs)
        scores = run.processors(run.ids[:, : run.length], logits)
        run.record.add(outputs, logits, scores)
        del outputs
        tokens = _choose(run, scores)
        if may_end:
            tokens = tokens.masked_fill(ended, run.pad)
        run.ids[:, run.length] = tokens
        run.length += 1
        if run.streamer is not None:
            run.streamer.put(tokens.cpu())
        if may_end:
            now = ~ended & (run.is_end(tokens) | _criteria_met(run))
            ends = ends.masked_fill(now, run.length)
            ended = ended | now
        if run.length == run.max_length:
            break
        if may_end and (run.length - start) % patience == 0 and bool(ended.all()):
            break
        outputs = run.stepper.step(tokens)
    length = min(run.length, int(ends.max())) if may_end else run.length
    return run.ids[:, :length], length - start


def _choose(run: Run, scores: Tensor) -> Tensor:
    """The next token of each row, (R,)."""
    if not run.do_sample:
        return scores.argmax(dim=-1)
    return torch.multinomial(scores.softmax(dim=-1), 1, generator=run.generator).squeeze(1)


def _criteria_met(run: Run) -> Tensor | bool:
    if not run.criteria:
        return False
    scores = None if run.record.scores is None else tuple(run.record.scores)
    return run.criteria(run.ids[:, : run.length], scores)
