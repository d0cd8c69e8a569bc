"""One call of a tokenizer: its resolved arguments, and the way from texts to columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding

from longspan.tokenization.backend import Backend
from longspan.tokenization.columns import Fill, Wanted, pad_lists, to_tensors
from longspan.tokenization.encoding import BatchEncoding
from longspan.tokenization.inputs import Batch
from longspan.tokenization.settings import Padding, Truncation, Warn, check_fits
from longspan.tokenization.tensors import Converter


@dataclass(frozen=True, slots=True)
class Request:
    """Arguments of a call, checked.

    Attributes:
        truncation: How rows are cut; None for not at all.
        padding: How rows are filled up; None for not at all.
        fill: What stands at padding positions.
        wanted: Columns to return.
        convert: Makes tensors; None returns lists.
        add_special_tokens: Add the special tokens of the model.
        is_split_into_words: Texts are lists of words.
        split_special_tokens: Read special tokens inside texts as plain text.
        overflowing: Return every window of a text that is cut.
        warn_longer: Warn of rows longer than this; None never warns.
        warn: Called with a key and a message.
    """

    truncation: Truncation | None
    padding: Padding | None
    fill: Fill
    wanted: Wanted
    convert: Converter | None
    add_special_tokens: bool
    is_split_into_words: bool
    split_special_tokens: bool
    overflowing: bool
    warn_longer: int | None
    warn: Warn

    def run(self, backend: Backend, batch: Batch) -> BatchEncoding:
        """Tokenize `batch` and return the columns asked for."""
        if self.truncation is not None:
            num_special = backend.num_special_tokens(is_pair=batch.has_pairs) if self.add_special_tokens else 0
            check_fits(self.truncation, num_special=num_special)
        with_offsets = self.wanted.offset_mapping or (
            self.wanted.token_type_ids
            and batch.has_pairs
            and (self.overflowing or not backend.has_template)  # without offsets, the library loses the segments here
        )
        samples = self._samples(backend, batch, with_offsets=with_offsets)
        rows = [row for windows in samples for row in windows]
        longest = max(map(len, rows), default=0)
        self._warn_of_length(longest)
        padded = 0 if self.padding is None else self.padding.target(longest)
        columns = self.wanted.of(rows, padded_length=padded)
        if self.overflowing:
            columns["overflow_to_sample_mapping"] = [
                index for index, windows in enumerate(samples) for _ in range(len(windows))
            ]
        if self.convert is None:
            data = self._as_lists(columns, padded, is_batched=batch.is_batched)
        else:
            shortest = min(map(len, rows), default=0)  # without padding, longer rows are refused
            length = shortest if self.padding is None else padded
            data = to_tensors(columns, length=length, side=self._side, fill=self.fill, convert=self.convert)
        kept = rows if with_offsets else None
        return BatchEncoding(
            data, self._row_maker(backend, batch, kept, padded), n_sequences=2 if batch.has_pairs else 1
        )

    @property
    def _side(self) -> str:
        return "right" if self.padding is None else self.padding.side

    def _samples(self, backend: Backend, batch: Batch, *, with_offsets: bool) -> list[list[Encoding]]:
        """Rows of each text: one, or every window of it."""
        rows = backend.encode(
            batch,
            truncation=self.truncation,
            add_special_tokens=self.add_special_tokens,
            is_split_into_words=self.is_split_into_words,
            split_special_tokens=self.split_special_tokens,
            with_offsets=with_offsets,
        )
        return [[row, *row.overflowing] for row in rows] if self.overflowing else [[row] for row in rows]

    def _as_lists(self, columns: dict[str, list[Any]], padded: int, *, is_batched: bool) -> dict[str, Any]:
        if self.padding is not None:
            columns = pad_lists(columns, length=padded, side=self._side, fill=self.fill)
        if is_batched or self.overflowing:
            return columns
        return {name: rows if name == "length" else rows[0] for name, rows in columns.items()}

    def _row_maker(
        self, backend: Backend, batch: Batch, rows: list[Encoding] | None, padded: int
    ) -> Callable[[], list[Encoding]]:
        """Function that gives the rows with their alignment, padded; tokenizes again if they were made without."""

        def make() -> list[Encoding]:
            made = rows
            if made is None:
                made = [row for windows in self._samples(backend, batch, with_offsets=True) for row in windows]
            if self.padding is not None:
                for row in made:
                    row.pad(
                        padded,
                        direction=self._side,
                        pad_id=self.fill.token_id,
                        pad_type_id=self.fill.type_id,
                        pad_token=self.fill.token,
                    )
            return made

        return make

    def _warn_of_length(self, longest: int) -> None:
        if self.warn_longer is not None and longest > self.warn_longer:
            self.warn(
                "longer-than-model",
                f"A text has {longest} tokens, more than the {self.warn_longer} that the model reads "
                "(model_max_length): pass truncation=True, or split it by return_overflowing_tokens=True.",
            )
