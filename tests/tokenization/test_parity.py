"""Ids, masks, offsets and windows equal those of `transformers` 4.57.6."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.tokenization.conftest import Pair, make_pair
from tests.tokenization.corpus import ENGLISH, TEXTS

ALL_COLUMNS = {
    "return_token_type_ids": True,
    "return_attention_mask": True,
    "return_special_tokens_mask": True,
    "return_offsets_mapping": True,
    "return_length": True,
}


def as_lists(encoded: Any) -> dict[str, Any]:
    return {
        key: [tuple(item) if isinstance(item, tuple) else item for item in value] if isinstance(value, list) else value
        for key, value in encoded.items()
    }


def assert_equal(pair: Pair, *args: Any, **kwargs: Any) -> Any:
    ours = pair.ours(*args, **kwargs, verbose=False)
    theirs = pair.theirs(*args, **kwargs, verbose=False)
    assert list(ours) == list(theirs)
    assert as_lists(ours) == as_lists(theirs)
    return ours


@pytest.mark.parametrize("name", TEXTS)
def test_one_text(pair: Pair, name: str) -> None:
    ours = assert_equal(pair, TEXTS[name], **ALL_COLUMNS)
    theirs = pair.theirs(TEXTS[name], verbose=False)
    assert ours.tokens() == theirs.tokens()
    assert ours.word_ids() == theirs.word_ids()
    assert ours.sequence_ids() == theirs.sequence_ids()
    assert pair.ours(TEXTS[name], verbose=False).input_ids == theirs.input_ids  # the path without offsets
    assert pair.ours.tokenize(TEXTS[name], verbose=False) == pair.theirs.tokenize(TEXTS[name])


def test_pairs_of_all_texts(pair: Pair) -> None:
    texts = list(TEXTS.values())
    assert_equal(pair, texts, texts[::-1], **ALL_COLUMNS)
    assert_equal(pair, list(zip(texts, texts[::-1], strict=True)), padding=True, **ALL_COLUMNS)
    assert_equal(pair, ENGLISH, "second")
    assert_equal(pair, ENGLISH, "")
    assert_equal(pair, "", "second")


def test_default_columns(pair: Pair) -> None:
    ours = assert_equal(pair, [ENGLISH, "short"])
    assert ("token_type_ids" in ours) == (pair.name.startswith("bert") or pair.name == "generic")


@pytest.mark.parametrize("strategy", [True, "longest_first", "only_first", "only_second"])
@pytest.mark.parametrize("overflowing", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
def test_truncated_pairs(main_pair: Pair, strategy: bool | str, overflowing: bool, side: str) -> None:
    question, context = "What keeps it linear?", " ".join([ENGLISH] * 3)
    first, second = (context, question) if strategy == "only_first" else (question, context)
    pair = main_pair
    before = pair.ours.truncation_side, pair.theirs.truncation_side
    pair.ours.truncation_side = pair.theirs.truncation_side = side
    try:
        ours = assert_equal(
            pair,
            [first, "short"],
            [second, "pair"],
            truncation=strategy,
            max_length=48,
            stride=9,
            padding="max_length",
            return_overflowing_tokens=overflowing,
            **ALL_COLUMNS,
        )
    finally:
        pair.ours.truncation_side, pair.theirs.truncation_side = before
    assert {len(row) for row in ours["input_ids"]} == {48}
    assert (len(ours["input_ids"]) > 2) == overflowing


@pytest.mark.parametrize("name", ["bert_json", "longformer_prefix", "longt5", "generic"])
def test_words(checkpoints: dict[str, Path], name: str) -> None:
    pair = make_pair(checkpoints, name)
    words = [["Long", "documents,", "naïve", "", "日本語"], [], ["[MASK]", "<extra_id_0>"]]
    assert_equal(pair, words, is_split_into_words=True, **ALL_COLUMNS)
    assert_equal(pair, words[0], words[2], is_split_into_words=True, **ALL_COLUMNS)
    assert_equal(pair, words, words[::-1], is_split_into_words=True, padding=True, **ALL_COLUMNS)


texts_strategy = st.lists(
    st.one_of(
        st.sampled_from(list(TEXTS.values())),
        st.text(max_size=40).filter(lambda text: text.isascii() or text.encode("utf-8", "ignore").decode() == text),
    ),
    min_size=1,
    max_size=4,
)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), texts=texts_strategy)
def test_any_arguments(main_pair: Pair, data: st.DataObject, texts: list[str]) -> None:
    """Every combination of arguments that is valid gives the reference's columns."""
    pair = main_pair
    has_pairs = data.draw(st.booleans(), "has_pairs")
    num_special = pair.theirs.num_special_tokens_to_add(has_pairs)
    padding = data.draw(st.sampled_from([False, True, "longest", "max_length", "do_not_pad"]), "padding")
    strategies = [None, False, True, "longest_first", "do_not_truncate"]
    truncation = data.draw(st.sampled_from(strategies), "truncation")
    max_length = data.draw(st.one_of(st.none(), st.integers(num_special + 2, 40)), "max_length")
    stride = data.draw(st.integers(0, 3), "stride")
    if max_length is None or stride >= (max_length - num_special) // (2 if has_pairs else 1):
        stride = 0
    multiple = data.draw(st.sampled_from([None, 1, 8]), "pad_to_multiple_of")
    if multiple == 8 and max_length is not None:
        max_length += -max_length % 8
    second = (
        data.draw(st.lists(st.sampled_from(texts), min_size=len(texts), max_size=len(texts))) if has_pairs else None
    )
    flags = {name: data.draw(st.booleans(), name) for name in ALL_COLUMNS}
    assert_equal(
        pair,
        texts,
        second,
        add_special_tokens=data.draw(st.booleans(), "add_special_tokens"),
        padding=padding,
        truncation=truncation,
        max_length=max_length,
        stride=stride,
        pad_to_multiple_of=multiple,
        padding_side=data.draw(st.sampled_from([None, "left", "right"]), "padding_side"),
        return_overflowing_tokens=data.draw(st.booleans(), "overflowing"),
        **flags,
    )


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text(main_pair: Pair, text: str) -> None:
    assert_equal(main_pair, text, return_offsets_mapping=True)
    assert main_pair.ours.tokenize(text, verbose=False) == main_pair.theirs.tokenize(text)


def test_huge_line(main_pair: Pair) -> None:
    text = (ENGLISH + " 日本語 👩‍👩‍👧 ") * 10_000
    assert len(text) > 900_000
    ours = main_pair.ours(text, truncation=True, max_length=512, return_overflowing_tokens=True, stride=64)
    theirs = main_pair.theirs(text, truncation=True, max_length=512, return_overflowing_tokens=True, stride=64)
    assert ours["input_ids"] == theirs["input_ids"]
    whole = main_pair.ours.encode(text, add_special_tokens=False, verbose=False)
    assert whole == main_pair.theirs.encode(text, add_special_tokens=False, verbose=False)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_numpy(pair: Pair, padding_side: str) -> None:
    kwargs = {**ALL_COLUMNS, "padding": True, "return_tensors": "np", "padding_side": padding_side}
    texts = [ENGLISH, "short", ""]
    ours = pair.ours(texts, truncation=True, max_length=16, stride=2, return_overflowing_tokens=True, **kwargs)
    theirs = pair.theirs(texts, truncation=True, max_length=16, stride=2, return_overflowing_tokens=True, **kwargs)
    assert list(ours) == list(theirs)
    for key in theirs:
        np.testing.assert_array_equal(ours[key], theirs[key])
        assert ours[key].dtype == theirs[key].dtype


def test_targets(main_pair: Pair) -> None:
    texts, summaries = [ENGLISH, "two"], ["one", "short summary"]
    assert_equal(main_pair, text=texts, text_target=summaries)
    assert_equal(main_pair, text_target=summaries, padding=True)
    assert_equal(main_pair, texts[0], text_target=summaries[0])
