"""The `tokenizers` object behind a tokenizer, used so that no call can change another.

The library keeps truncation inside its `Tokenizer`, where every thread that shares the object sees it. Here an object
is never changed once texts go through it: each truncation gets its own small `Tokenizer`, which shares the vocabulary
(model) and the other components with the first one, and added tokens make a new `Backend`.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer
from tokenizers.processors import TemplateProcessing

from longspan.errors import CheckpointError, InputError
from longspan.tokenization.files import is_panic
from longspan.tokenization.inputs import Batch, find_surrogate
from longspan.tokenization.settings import Truncation

_COMPONENTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_MAX_VARIANTS = 32

_Key = tuple[Truncation | None, bool]


class Backend:
    """A `tokenizers.Tokenizer` and its variants for each truncation asked for.

    Args:
        tokenizer: The object. Its own truncation and padding are switched off.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        #: True once a caller holds `tokenizer` and may change it: variants are then made anew for every call.
        self.is_exposed = False
        self._variants: dict[_Key, Tokenizer] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer, "is_exposed": self.is_exposed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.tokenizer = state["tokenizer"]
        self.is_exposed = state["is_exposed"]
        self._variants = {}
        self._lock = threading.Lock()

    def with_tokens(self, tokens: Sequence[str | AddedToken], *, special: bool) -> tuple[Backend, int]:
        """A backend that has `tokens` besides its own, and how many of them are new to the vocabulary."""
        changed = _clone(self.tokenizer)
        add = changed.add_special_tokens if special else changed.add_tokens
        num_added = add(list(tokens))
        backend = Backend(changed)
        backend.is_exposed = self.is_exposed
        return backend, num_added

    def with_post_processor(self, processor: Any) -> Backend:
        """A backend that adds other special tokens to rows."""
        changed = _clone(self.tokenizer)
        changed.post_processor = processor
        backend = Backend(changed)
        backend.is_exposed = self.is_exposed
        return backend

    @property
    def has_template(self) -> bool:
        """True if the post-processor sets the segments of a row itself."""
        return isinstance(self.tokenizer.post_processor, TemplateProcessing)

    def num_special_tokens(self, *, is_pair: bool) -> int:
        """Number of special tokens added to a row of one or two sequences."""
        return int(self.tokenizer.num_special_tokens_to_add(is_pair))

    def layout(self, *, is_pair: bool) -> list[tuple[int | None, int, int]]:
        """How a row of one or two sequences is put together.

        Returns:
            Parts in order: sequence (0 or 1; None for a special token), id of the special token, segment.
        """
        text = self._some_text()
        row = self.tokenizer.encode(text, text if is_pair else None)
        parts: list[tuple[int | None, int, int]] = []
        for part in zip(row.sequence_ids, row.ids, row.type_ids, strict=True):
            if part[0] is None or not any(part[0] == sequence for sequence, _, _ in parts):
                parts.append(part)
        return parts

    def _some_text(self) -> str:
        """A text that has tokens, whatever the vocabulary."""
        vocabulary: dict[str, int] = self.tokenizer.get_vocab(with_added_tokens=True)
        for text in ("a", *itertools.islice(vocabulary, 1000)):
            if len(self.tokenizer.encode(text, add_special_tokens=False)):
                return text
        raise CheckpointError("The tokenizer's vocabulary must hold a token that some text is made of. It has none.")

    def encode(
        self,
        batch: Batch,
        *,
        truncation: Truncation | None,
        add_special_tokens: bool,
        is_split_into_words: bool,
        split_special_tokens: bool,
        with_offsets: bool,
    ) -> list[Encoding]:
        """Tokenize a batch.

        Args:
            batch: Texts, checked.
            truncation: How to cut rows, checked; None for not at all.
            add_special_tokens: Add the special tokens of the model.
            is_split_into_words: Texts are lists of words.
            split_special_tokens: Read special tokens inside texts as plain text.
            with_offsets: Keep what aligns tokens with text. Without it tokens, offsets and words of the result are
                empty, and tokenization is faster.

        Returns:
            One `Encoding` per row, its further windows in `overflowing`.

        Raises:
            InputError: a text cannot be encoded, or not be cut as asked.
        """
        if truncation is not None and truncation.stride and batch.has_pairs:
            self._check_pair_stride(batch, truncation, add_special_tokens, (is_split_into_words, split_special_tokens))
        tokenizer = self._variant(truncation, split_special_tokens)
        encode = tokenizer.encode_batch if with_offsets else tokenizer.encode_batch_fast
        try:
            rows: list[Encoding] = encode(
                batch.items, is_pretokenized=is_split_into_words, add_special_tokens=add_special_tokens
            )
            return rows
        except BaseException as error:
            if isinstance(error, Exception) or is_panic(error):
                raise self._explained(error, batch, truncation) from error
            raise

    def _variant(self, truncation: Truncation | None, split_special_tokens: bool) -> Tokenizer:
        key = (truncation, split_special_tokens)
        if key == (None, False) and not self.is_exposed:
            return self.tokenizer
        with self._lock:
            variant = None if self.is_exposed else self._variants.get(key)
            if variant is None:
                variant = _clone(self.tokenizer)
                variant.encode_special_tokens = split_special_tokens
                if truncation is not None:
                    variant.enable_truncation(
                        max_length=truncation.max_length,
                        stride=truncation.stride,
                        strategy=truncation.strategy,
                        direction=truncation.direction,
                    )
                while len(self._variants) >= _MAX_VARIANTS:
                    del self._variants[next(iter(self._variants))]
                self._variants[key] = variant
            return variant

    def _check_pair_stride(
        self, batch: Batch, truncation: Truncation, add_special_tokens: bool, reading: tuple[bool, bool]
    ) -> None:
        """Raise `InputError` if a window of a pair would not be longer than its overlap with the one before.

        The library aborts with a panic in this case. Only the sequence that is not cut is tokenized here (for
        `"longest_first"` both, and only if the overlap reaches half a row).
        """
        room = truncation.max_length - (self.num_special_tokens(is_pair=True) if add_special_tokens else 0)
        firsts, seconds = ([item[side] for item in batch.items] for side in (0, 1))
        if truncation.strategy == "only_second":
            windows = [room - size for size in self._lengths(firsts, reading)]
        elif truncation.strategy == "only_first":
            windows = [room - size for size in self._lengths(seconds, reading)]
        elif truncation.stride < room // 2:
            return
        else:
            lengths = zip(self._lengths(firsts, reading), self._lengths(seconds, reading), strict=True)
            windows = [room // 2 if min(pair) > room // 2 else room - min(pair) for pair in lengths]
        for index, window in enumerate(windows):
            if window <= truncation.stride and sum(self._lengths(list(batch.items[index]), reading)) > room:
                raise InputError(
                    f"stride must be less than the {max(window, 0)} tokens that max_length={truncation.max_length} "
                    f"leaves for the sequence that is cut. Received: stride={truncation.stride} (row {index})"
                )

    def _lengths(self, texts: list[Any], reading: tuple[bool, bool]) -> list[int]:
        is_split_into_words, split_special_tokens = reading
        tokenizer = self._variant(None, split_special_tokens)
        rows = tokenizer.encode_batch_fast(texts, is_pretokenized=is_split_into_words, add_special_tokens=False)
        return [len(row) for row in rows]

    def _explained(self, error: BaseException, batch: Batch, truncation: Truncation | None) -> Exception:
        message = str(error)
        if truncation is not None and "Second sequence not provided" in message:
            return InputError("truncation='only_second' needs pairs of texts. Received: single texts that are too long")
        if truncation is not None and "too short to respect" in message:
            return InputError(
                f"truncation={truncation.strategy!r} cuts one sequence of a pair, and the other one alone does not fit "
                f"max_length={truncation.max_length}: raise max_length or use truncation='longest_first'."
            )
        unreadable = find_surrogate(batch)
        return unreadable or CheckpointError(
            f"The tokenizer's files must be able to encode any text. Received: {message}"
        )


def _clone(tokenizer: Tokenizer) -> Tokenizer:
    """A `Tokenizer` with the same model (shared, not copied), components and added tokens."""
    clone = Tokenizer(tokenizer.model)
    for name in _COMPONENTS:
        component = getattr(tokenizer, name)
        if component is not None:
            setattr(clone, name, component)
    added = tokenizer.get_added_tokens_decoder()
    clone.add_tokens([added[index] for index in sorted(added)])
    if clone.get_added_tokens_decoder().keys() != added.keys():  # ids with gaps, which re-adding would close
        clone = copy.deepcopy(tokenizer)
        clone.no_truncation()
        clone.no_padding()
    return clone
