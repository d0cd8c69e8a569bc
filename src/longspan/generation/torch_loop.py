"""Greedy search and sampling, and what ends a row, in PyTorch.

Axes: R rows, L tokens so far, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan.errors import InputError
from longspan.generation.config import GenerationConfig
from longspan.generation.streamers import BaseStreamer
from longspan.generation.torch_outputs import Record
from longspan.generation.torch_processors import LogitsProcessorList
from longspan.generation.torch_stepper import Stepper

#: steps between two looks at whether all rows have ended, where looking means waiting for an accelerator
_PATIENCE = 16


class StoppingCriteria:
    """Says which rows have ended; the base class of all such rules, a caller's own included."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor | bool:
        """Return True for each row that has ended, (R,), or one bool for all.

        Args:
            input_ids: Ids so far, (R, L), the newest last.
            scores: Processed scores of the steps so far, a tuple of (R, V), if they are kept; else None.
            **kwargs: Nothing at present.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement __call__")


class StoppingCriteriaList(list[StoppingCriteria]):
    """A row ends when one of the criteria says so."""

    def __call__(self, input_ids: Tensor, scores: Any = None, **kwargs: Any) -> Tensor:
        """Return True for each row that has ended, (R,)."""
        ended = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for criterion in self:
            ended = ended | criterion(input_ids, scores, **kwargs)
        return ended


class MaxLengthCriteria(StoppingCriteria):
    """Ends rows of the greatest length.

    Args:
        max_length: Tokens, prompt included.
    """

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length

    def __call__(self, input_ids: Tensor, scores: Any = None, **kwargs: Any) -> bool:
        return input_ids.shape[1] >= self.max_length


class MaxTimeCriteria(StoppingCriteria):
    """Ends all rows after some time.

    Args:
        max_time: Seconds.
        initial_timestamp: Start, on the clock of `time.time()`; default now.
    """

    def __init__(self, max_time: float, initial_timestamp: float | None = None) -> None:
        self.max_time = max_time
        self.start = time.time() if initial_timestamp is None else initial_timestamp

    def __call__(self, input_ids: Tensor, scores: Any = None, **kwargs: Any) -> bool:
        return time.time() - self.start > self.max_time


class EosTokenCriteria(StoppingCriteria):
    """Ends rows whose newest token is an end token.

    Args:
        eos_token_id: The id, or ids.
    """

    def __init__(self, eos_token_id: int | Sequence[int]) -> None:
        self.ids = torch.tensor([eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id))

    def __call__(self, input_ids: Tensor, scores: Any = None, **kwargs: Any) -> Tensor:
        if self.ids.device != input_ids.device:
            self.ids = self.ids.to(input_ids.device)
        return (input_ids[:, -1:] == self.ids).any(dim=1)


class StopStringCriteria(StoppingCriteria):
    """Ends rows whose text has come to hold one of some strings within the newest token.

    The newest tokens are decoded, as many as the longest string can span, so a string is found however it falls into
    tokens, and may end inside one.

    Args:
        tokenizer: Has `decode`.
        stop_strings: One string or several.

    Raises:
        InputError: there is no string, or an empty one.
    """

    def __init__(self, tokenizer: Any, stop_strings: str | Sequence[str]) -> None:
        self.strings = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
        if not self.strings or not all(self.strings):
            raise InputError(f"stop_strings must be texts that are not empty. Received: {stop_strings!r}")
        self.tokenizer = tokenizer
        # every token but those inside a character stands for at least one byte
        self.window = max(len(text.encode("utf-8")) for text in self.strings) + 4

    def __call__(self, input_ids: Tensor, scores: Any = None, **kwargs: Any) -> Tensor:
        start = max(input_ids.shape[1] - self.window, 0)
        rows = input_ids[:, start:].tolist()
        return torch.tensor([self._ends(row) for row in rows], device=input_ids.device)

    def _ends(self, ids: list[int]) -> bool:
        """True if a string ends in the part of the text that the last id adds."""
        text, before = self.tokenizer.decode(ids), self.tokenizer.decode(ids[:-1])
        return any(text.count(string) > before.count(string) for string in self.strings)


def make_criteria(
    config: GenerationConfig, *, tokenizer: Any, custom: Sequence[StoppingCriteria]
) -> StoppingCriteriaList:
    """The rules that end rows, besides the greatest length and the end token.

    Raises:
        InputError: stop strings need a tokenizer.
    """
    criteria = StoppingCriteriaList()
    if config.max_time is not None:
        criteria.append(MaxTimeCriteria(config.max_time))
    if config.stop_strings is not None:
        if tokenizer is None:
            raise InputError(
                f"stop_strings needs tokenizer=. Received: stop_strings={config.stop_strings!r}, no tokenizer"
            )
        criteria.append(StopStringCriteria(tokenizer, config.stop_strings))
    criteria.extend(custom)
    return criteria


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
