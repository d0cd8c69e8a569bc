"""What ends a row, in PyTorch. Axes: B rows, L tokens so far."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longspan.errors import InputError


class StoppingCriteria:
    """Says which rows have ended; the base class of all such rules, a caller's own included."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor | bool:
        """Return True for each row that has ended, (B,), or one bool for all.

        Args:
            input_ids: Ids so far, (B, L), the newest last.
            scores: Processed scores of the steps so far, a tuple of (B, V), if they are kept; else None.
            **kwargs: Nothing at present.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement __call__")


class StoppingCriteriaList(list[StoppingCriteria]):
    """A row ends when one of the criteria says so."""

    def __call__(self, input_ids: Tensor, scores: Any = None, **kwargs: Any) -> Tensor:
        """Return True for each row that has ended, (B,)."""
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
        """True for all rows, or for none."""
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
        """True for all rows, or for none."""
        return time.time() - self.start > self.max_time


class EosTokenCriteria(StoppingCriteria):
    """Ends rows whose newest token is an end token.

    Args:
        eos_token_id: The id, or ids.
    """

    def __init__(self, eos_token_id: int | Sequence[int]) -> None:
        self.ids = torch.tensor([eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id))

    def __call__(self, input_ids: Tensor, scores: Any = None, **kwargs: Any) -> Tensor:
        """(B, L) -> (B,)."""
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
        """(B, L) -> (B,)."""
        start = max(input_ids.shape[1] - self.window, 0)
        rows = input_ids[:, start:].tolist()
        return torch.tensor([self._ends(row) for row in rows], device=input_ids.device)

    def _ends(self, ids: list[int]) -> bool:
        """True if a string ends in the part of the text that the last id adds."""
        text, before = self.tokenizer.decode(ids), self.tokenizer.decode(ids[:-1])
        return any(text.count(string) > before.count(string) for string in self.strings)
