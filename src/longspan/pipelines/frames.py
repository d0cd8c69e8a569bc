"""How the sequences of a row are put together: special tokens, segments, and where each sequence begins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from longspan.errors import InputError

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Row:
    """One sequence for the model.

    Attributes:
        ids: (S,) token ids, special tokens included.
        segments: (S,) segment of each token, 0 or 1.
        is_global: (S,) tokens with global attention, for models that have it; None for the model's default.
        wanted: (P,) tokens whose outputs are wanted; None for all.
    """

    ids: Ids
    segments: Ids
    is_global: npt.NDArray[np.bool_] | None = None
    wanted: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)


class Frame:
    """What a tokenizer puts before, between and after the one or two sequences of a row.

    Args:
        tokenizer: Tokenizer with truncation and padding switched off.
        is_pair: Whether rows have two sequences.

    Attributes:
        num_special: Special tokens of a row.

    Raises:
        InputError: the tokenizer gives no probe any token, so that its frame cannot be seen.
    """

    def __init__(self, tokenizer: Tokenizer, *, is_pair: bool = False) -> None:
        probe = _some_text(tokenizer)
        row = tokenizer.encode(probe, probe if is_pair else None)
        self._parts: list[tuple[int | None, int, int]] = []
        for part in zip(row.sequence_ids, row.ids, row.type_ids, strict=True):
            if part[0] is None or all(part[0] != known for known, _, _ in self._parts):
                self._parts.append(part)
        self.num_special = sum(sequence is None for sequence, _, _ in self._parts)

    def wrap(self, *sequences: Ids) -> tuple[Row, tuple[int, ...]]:
        """Put a row together.

        Args:
            *sequences: Token ids of each sequence.

        Returns:
            The row, and the position of the first token of each sequence.
        """
        ids = [np.asarray([token], np.int32) if part is None else sequences[part] for part, token, _ in self._parts]
        lengths = [len(piece) for piece in ids]
        segments = np.repeat(np.asarray([segment for _, _, segment in self._parts], np.int32), lengths)
        begins = np.cumsum([0, *lengths])
        starts = {part: int(begins[index]) for index, (part, _, _) in enumerate(self._parts) if part is not None}
        return Row(np.concatenate(ids), segments), tuple(starts[index] for index in range(len(sequences)))


def _some_text(tokenizer: Tokenizer) -> str:
    """A text that has tokens, whatever the vocabulary."""
    vocabulary: list[str] = list(tokenizer.get_vocab())[:1000]
    for text in ("a", "the", "1", ".", *vocabulary):
        if tokenizer.encode(text, add_special_tokens=False).ids:
            return text
    raise InputError("The tokenizer must give some text tokens. This one gives none to any entry of its vocabulary")
