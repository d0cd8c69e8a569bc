"""Rows of ids that are made without text: cut, laid out with special tokens, padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from longspan.errors import InputError
from longspan.tokenization.encoding import BatchEncoding
from longspan.tokenization.settings import Truncation, Warn, check_max_length, resolve_truncation
from longspan.tokenization.vocabulary import Vocabulary


class Rows(Vocabulary):
    """What a tokenizer does with ids that it has already."""

    model_max_length: int
    truncation_side: str
    model_input_names: list[str]
    pad: Callable[..., BatchEncoding]
    _warn_once: Warn

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Ids of one or two sequences with the special tokens of the model.

        Args:
            token_ids_0: Ids of the first sequence, without special tokens.
            token_ids_1: Ids of the second sequence.

        Returns:
            Ids of the row.
        """
        return [index for index, _ in self._template(token_ids_0, token_ids_1)]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Segments of the row that `build_inputs_with_special_tokens` makes."""
        return [segment for _, segment in self._template(token_ids_0, token_ids_1)]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for special tokens, 0 for others.

        Args:
            token_ids_0: Ids of a row, or of the first sequence.
            token_ids_1: Ids of the second sequence.
            already_has_special_tokens: `token_ids_0` is a whole row: each special token in it counts. Otherwise only
                those that `build_inputs_with_special_tokens` adds do.

        Returns:
            The mask of the row.
        """
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise InputError("A row that has its special tokens is given alone. Received: token_ids_1, too")
            special = set(self.all_special_ids)
            return [int(index in special) for index in token_ids_0]
        text = [-1] * len(token_ids_0)
        others = None if token_ids_1 is None else [-1] * len(token_ids_1)
        return [int(index >= 0) for index, _ in self._template(text, others)]

    def _template(self, first: Sequence[int], second: Sequence[int] | None) -> list[tuple[int, int]]:
        """Ids and segments of a row, laid out like one that is made from text."""
        sequences = [first] if second is None else [first, second]
        row: list[tuple[int, int]] = []
        for part, index, segment in self._backend.layout(is_pair=second is not None):
            row += [(index, segment)] if part is None else [(token, segment) for token in sequences[part]]
        return row

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Number of special tokens added to a text, or to a pair of texts."""
        return self._backend.num_special_tokens(is_pair=pair)

    @property
    def max_len_single_sentence(self) -> int:
        """Most tokens of a text, special ones not counted."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=False)

    @property
    def max_len_sentences_pair(self) -> int:
        """Most tokens of a pair of texts, special ones not counted."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    def truncate_sequences(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: Any = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], list[int] | None, list[int]]:
        """Take tokens from one or two sequences, at the side `truncation_side`.

        Args:
            ids: The first sequence, without special tokens.
            pair_ids: The second sequence.
            num_tokens_to_remove: Number of tokens to take away.
            truncation_strategy: `"longest_first"`, `"only_first"`, `"only_second"` or `"do_not_truncate"`.
            stride: Number of kept tokens to repeat among the removed ones.

        Returns:
            The two sequences, and the tokens that were removed from one of them (none if both lost some).

        Raises:
            InputError: a sequence is shorter than what it should lose, or the strategy is unknown.
        """
        cut = resolve_truncation(
            truncation_strategy,
            max_length=0,
            model_max_length=0,
            stride=stride,
            side=self.truncation_side,
            warn=self._warn_once,
        )
        if num_tokens_to_remove <= 0 or cut is None:
            return ids, pair_ids, []
        if cut.strategy == "longest_first" and pair_ids is not None:
            from_first, from_second = _shares(len(ids), len(pair_ids), num_tokens_to_remove)
            return self._cut(ids, from_first, 0)[0], self._cut(pair_ids, from_second, 0)[0], []
        if cut.strategy == "only_second":
            if pair_ids is None:
                raise InputError("truncation_strategy='only_second' needs pair_ids. Received: pair_ids=None")
            pair_ids, removed = self._cut(pair_ids, num_tokens_to_remove, stride)
        else:
            ids, removed = self._cut(ids, num_tokens_to_remove, stride)
        return ids, pair_ids, removed

    def _cut(self, ids: list[int], count: int, stride: int) -> tuple[list[int], list[int]]:
        """What is left of a sequence, and what was removed with `stride` tokens of what is left."""
        if count > len(ids):
            raise InputError(f"A sequence of {len(ids)} tokens cannot lose {count}: take another truncation_strategy")
        window = min(len(ids), stride + count)
        if self.truncation_side == "left":
            return ids[count:], ids[:window]
        return ids[: len(ids) - count], ids[len(ids) - window :]

    def prepare_for_model(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        prepend_batch_axis: bool = False,
    ) -> BatchEncoding:
        """Make a row of one or two sequences of ids: cut them, add special tokens, pad.

        Args:
            ids: The first sequence, without special tokens.
            pair_ids: The second sequence.
            add_special_tokens: Add the special tokens of the model.
            padding: As in a call.
            truncation: As in a call.
            max_length: As in a call.
            stride: As in `truncate_sequences`.
            pad_to_multiple_of: As in a call.
            padding_side: As in a call.
            return_tensors: As in a call.
            return_token_type_ids: As in a call.
            return_attention_mask: As in a call.
            return_overflowing_tokens: Return the tokens that were cut as `overflowing_tokens`, and by how many tokens
                the row was too long (negative for too short) as `num_truncated_tokens`.
            return_special_tokens_mask: As in a call.
            return_length: Return the length of the row, padding included, as `length`.
            verbose: False gives no warnings.
            prepend_batch_axis: Return a batch of one row.

        Returns:
            The columns of the row.

        Raises:
            InputError: an argument breaks a rule.
        """
        warn = self._warn_once if verbose else be_silent
        limit = check_max_length(max_length)
        cut = resolve_truncation(
            (limit is not None and padding is False) if truncation is None else truncation,
            max_length=limit,
            model_max_length=self.model_max_length,
            stride=stride,
            side=self.truncation_side,
            warn=warn,
        )
        special = self.num_special_tokens_to_add(pair_ids is not None) if add_special_tokens else 0
        total = len(ids) + len(pair_ids or ()) + special
        columns: dict[str, Any] = {}
        excess = 0 if cut is None else total - cut.max_length
        ids, pair_ids, removed = self._cut_to(cut, ids, pair_ids, excess)
        if return_overflowing_tokens:
            columns |= {"overflowing_tokens": removed, "num_truncated_tokens": excess}
        row = (
            self._template(ids, pair_ids) if add_special_tokens else [(index, 0) for index in [*ids, *(pair_ids or ())]]
        )
        columns["input_ids"] = [index for index, _ in row]
        names = self.model_input_names
        if "token_type_ids" in names if return_token_type_ids is None else return_token_type_ids:
            columns["token_type_ids"] = [segment for _, segment in row]
        if return_special_tokens_mask:
            mask = self.get_special_tokens_mask(ids, pair_ids) if add_special_tokens else [0] * len(row)
            columns["special_tokens_mask"] = mask
        padded = self.pad(
            columns,
            padding=padding,
            max_length=limit,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_attention_mask=return_attention_mask,
            verbose=verbose,
        )
        data: dict[str, Any] = dict(padded)
        if return_length:
            data["length"] = len(data["input_ids"])
        return BatchEncoding(data, tensor_type=return_tensors, prepend_batch_axis=prepend_batch_axis)

    def _cut_to(
        self, cut: Truncation | None, ids: list[int], pair_ids: list[int] | None, excess: int
    ) -> tuple[list[int], list[int] | None, list[int]]:
        if cut is None:
            return ids, pair_ids, []
        return self.truncate_sequences(ids, pair_ids, excess, cut.strategy, cut.stride)


def _shares(first: int, second: int, count: int) -> tuple[int, int]:
    """How many of `count` tokens two sequences of these lengths lose, so that the longer one loses first."""
    ahead = min(abs(second - first), count)
    rest = count - ahead
    if first > second:
        return ahead + rest // 2, rest - rest // 2
    return rest // 2, ahead + rest - rest // 2


def be_silent(key: str, message: str) -> None:
    """The `warn` of a call with `verbose=False`."""
