"""From texts to the sequences that a model reads: special tokens, prompt, window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from longspan.documents.tokens import Tokens, tokenize
from longspan.documents.windows import check_windows, plan_windows
from longspan.errors import InputError
from longspan.pipelines.long.rows import tokenize_beginnings

OnLong = Literal["window", "truncate", "error"]
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Piece:
    """One sequence for the model.

    Attributes:
        ids: Its token ids, special tokens and prompt included.
        num_tokens: Tokens that are the text's own.
        num_leading: Tokens before these: special ones and the prompt.
        char_start: First character of the text in it; 0 if characters were not asked for.
        char_end: One past its last character; 0 likewise.
    """

    ids: Ids
    num_tokens: int
    num_leading: int
    char_start: int = 0
    char_end: int = 0


class TextSplitter:
    """Cuts texts into pieces of at most `max_length` tokens.

    A piece is what the tokenizer puts before a text, the prompt, tokens of the text, and what it puts after one.

    Args:
        tokenizer: Tokenizer with truncation and padding switched off.
        max_length: Most tokens of a piece, special tokens and prompt included.
        on_long: What to do with longer texts: `"window"` cuts them into overlapping pieces, `"truncate"` keeps the
            first piece, `"error"` raises.
        overlap: Tokens that a piece shares with the one before it; default an eighth of those that fit.
        prompt: Text put before each text, and before each further piece of it.

    Raises:
        InputError: a setting breaks a rule.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        on_long: OnLong = "window",
        overlap: int | None = None,
        prompt: str = "",
    ) -> None:
        if on_long not in get_args(OnLong):
            raise InputError(f"on_long must be one of {', '.join(get_args(OnLong))}. Received: on_long={on_long!r}")
        self.max_length = max_length
        self.on_long = on_long
        self.prompt = prompt
        self._tokenizer = tokenizer
        self._before, self._after = _special_tokens(tokenizer)
        num_prompt = len(tokenizer.encode(prompt, add_special_tokens=False).ids) if prompt else 0
        capacity = self._capacity(num_prompt)
        self.overlap = max(0, capacity) // 8 if overlap is None else overlap
        check_windows(capacity, self.overlap)

    def split(self, texts: Sequence[str], *, with_characters: bool = False) -> list[list[Piece]]:
        """Cut texts into pieces; all of them are tokenized in one go.

        Args:
            texts: The texts.
            with_characters: Whether the pieces' characters are wanted. A text without any token has no pieces then,
                else it has one of special tokens alone.

        Returns:
            The pieces of each text, in order.

        Raises:
            InputError: a text is too long and `on_long` is `"error"`.
        """
        prompted = [self.prompt + text for text in texts] if self.prompt else texts
        tokens = self._tokenize(prompted, with_offsets=with_characters or bool(self.prompt))
        pieces = []
        for index, of_text in enumerate(tokens):
            num_prompt = int((of_text.ends <= len(self.prompt)).sum()) if self.prompt else 0
            num_tokens = len(of_text.ids) - num_prompt
            where = f" in text {index}" if len(texts) > 1 else ""
            if self.on_long == "error" and num_tokens > self._capacity(num_prompt):
                raise InputError(
                    f"A text must fit max_length={self.max_length} tokens with on_long='error'. Received: "
                    f"{num_tokens + self.max_length - self._capacity(num_prompt)} tokens{where} (use "
                    "on_long='window' or on_long='truncate')"
                )
            pieces.append(list(self._pieces(of_text, num_prompt, with_characters)))
        return pieces

    def _tokenize(self, texts: Sequence[str], *, with_offsets: bool) -> list[Tokens]:
        if self.on_long == "truncate":
            return tokenize_beginnings(self._tokenizer, texts, self.max_length, with_offsets=with_offsets)
        return tokenize(self._tokenizer, texts, with_offsets=with_offsets)

    def _capacity(self, num_prompt: int) -> int:
        return self.max_length - len(self._before) - len(self._after) - num_prompt

    def _pieces(self, tokens: Tokens, num_prompt: int, with_characters: bool) -> Iterator[Piece]:
        leading = np.concatenate([self._before, tokens.ids[:num_prompt]])
        capacity = max(1, self._capacity(num_prompt))
        windows = plan_windows(len(tokens.ids) - num_prompt, capacity, min(self.overlap, capacity - 1))
        if self.on_long == "truncate":
            windows = [(0, min(capacity, len(tokens.ids) - num_prompt))] if windows else []
        if not windows and not with_characters:
            windows = [(0, 0)]
        for start, stop in windows:
            own = tokens.ids[num_prompt + start : num_prompt + stop]
            ids = np.concatenate([leading, own, self._after])
            span = tokens.span(num_prompt + start, num_prompt + stop) if with_characters else (0, 0)
            first, last = (max(0, position - len(self.prompt)) for position in span)
            yield Piece(ids, stop - start, len(leading), first, last)


def _special_tokens(tokenizer: Tokenizer) -> tuple[Ids, Ids]:
    """Ids that the tokenizer puts before and after a text."""
    for probe in ("a", "the", "1", "."):
        bare = tokenizer.encode(probe, add_special_tokens=False).ids
        full = tokenizer.encode(probe).ids
        num_added = len(full) - len(bare)
        for start in range(num_added + 1):
            if bare and full[start : start + len(bare)] == bare:
                return np.asarray(full[:start], np.int32), np.asarray(full[start + len(bare) :], np.int32)
    raise InputError("The tokenizer must keep the tokens of a text together. This one gives 'a' no tokens of its own")
