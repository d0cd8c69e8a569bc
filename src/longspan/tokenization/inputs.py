"""What one call is given: a text, a pair, lists of them, pre-split words. Checked before any text is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from longspan.errors import InputError

Words: TypeAlias = Sequence[str]
Text: TypeAlias = str | Words
TextInput: TypeAlias = Text | Sequence[Text] | Sequence[Sequence[str]]

_RULE = {
    False: "text must be a string, a list of strings, or a list of pairs of strings",
    True: "text must be a list of words, or a list of lists of words, with is_split_into_words=True",
}


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts in the form the `tokenizers` library takes.

    Attributes:
        items: One text, pair of texts, list of words or pair of lists of words for each row.
        is_batched: False if the caller gave a single row.
        has_pairs: True if rows hold two sequences.
    """

    items: list[Any]
    is_batched: bool
    has_pairs: bool


def read_batch(text: Any, text_pair: Any, *, is_split_into_words: bool) -> Batch:
    """Sort out which of the accepted forms `text` and `text_pair` have.

    Args:
        text: A string or a list of strings; with `is_split_into_words` a list of words or a list of such lists.
        text_pair: None, or the second sequence of each row in the same form as `text`.
        is_split_into_words: True if texts are lists of words.

    Returns:
        The batch.

    Raises:
        InputError: something is not text, or the two arguments do not go together.
    """
    if not isinstance(text, list | tuple | str):
        raise _wrong("text", text, is_split_into_words)
    is_batched = isinstance(text, list | tuple) and (
        not is_split_into_words or (len(text) > 0 and isinstance(text[0], list | tuple))
    )
    if is_batched:
        return _read_rows(text, text_pair, is_split_into_words)
    _check_item("text", text, is_split_into_words)
    # An empty second text alone is no second text: so does the reference for one row (not for a batch).
    if text_pair is None or (isinstance(text_pair, str | list | tuple) and not text_pair):
        return Batch([text], is_batched=False, has_pairs=False)
    _check_item("text_pair", text_pair, is_split_into_words)
    return Batch([(text, text_pair)], is_batched=False, has_pairs=True)


def _read_rows(text: Sequence[Any], text_pair: Any, is_split: bool) -> Batch:
    if text_pair is None:
        if not is_split and text and not isinstance(text[0], str):
            return Batch([_pair(item, index) for index, item in enumerate(text)], is_batched=True, has_pairs=True)
        _check_items("text", text, is_split)
        return Batch(list(text), is_batched=True, has_pairs=False)
    if not isinstance(text_pair, list | tuple):
        raise InputError(
            "With a list of texts, text_pair must be a list of the same length. "
            f"Received: text_pair of type {type(text_pair).__name__}"
        )
    if len(text) != len(text_pair):
        raise InputError(
            f"text and text_pair must have the same number of rows. Received: {len(text)} and {len(text_pair)}"
        )
    _check_items("text", text, is_split)
    _check_items("text_pair", text_pair, is_split)
    return Batch(list(zip(text, text_pair, strict=True)), is_batched=True, has_pairs=True)


def _pair(item: Any, index: int) -> tuple[str, str]:
    if isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(part, str) for part in item):
        first, second = item
        return first, second
    if isinstance(item, list | tuple) and all(isinstance(part, str) for part in item):
        raise InputError(
            "A row of a batch is a string or a pair of strings; lists of words need is_split_into_words=True. "
            f"Received: text[{index}] with {len(item)} strings"
        )
    raise _wrong(f"text[{index}]", item, is_split=False)


def _check_items(name: str, items: Sequence[Any], is_split: bool) -> None:
    if not is_split and all(isinstance(item, str) for item in items):
        return
    for index, item in enumerate(items):
        _check_item(f"{name}[{index}]", item, is_split)


def _check_item(name: str, item: Any, is_split: bool) -> None:
    if not is_split:
        if not isinstance(item, str):
            raise _wrong(name, item, is_split)
        return
    if not isinstance(item, list | tuple):
        raise _wrong(name, item, is_split)
    for index, word in enumerate(item):
        if not isinstance(word, str):
            raise _wrong(f"{name}[{index}]", word, is_split)


def _wrong(name: str, item: object, is_split: bool) -> InputError:
    return InputError(f"{_RULE[is_split]}. Received: {name} of type {type(item).__name__}")


def find_surrogate(batch: Batch) -> InputError | None:
    """Error about the first text that holds half of a character (a lone surrogate), or None if there is none."""
    for index, item in enumerate(batch.items):
        for text in _strings(item):
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as bad:
                return InputError(
                    "text must be valid Unicode without lone surrogates (text.encode('utf-8', 'replace').decode() "
                    f"replaces them). Received: {text[bad.start]!r} at character {bad.start} of text {index}"
                )
    return None


def _strings(item: Any) -> list[str]:
    if isinstance(item, str):
        return [item]
    return [text for part in item for text in _strings(part)]
