"""Tokens and windows: everything covered, spans exact, bounded work."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from longspan import AutoTokenizer
from longspan.documents.tokens import tokenize
from longspan.documents.windows import plan_windows
from longspan.errors import InputError
from longspan.pipelines.long.splitter import TextSplitter


@pytest.fixture(scope="module")
def tokenizer(minilm_dir: Path) -> Tokenizer:
    return AutoTokenizer.from_pretrained(minilm_dir).backend_tokenizer


@given(st.integers(0, 3000), st.integers(1, 300), st.data())
def test_windows_cover_every_token(num_tokens: int, capacity: int, data: st.DataObject):
    overlap = data.draw(st.integers(0, capacity - 1))
    windows = plan_windows(num_tokens, capacity, overlap)
    if num_tokens == 0:
        assert windows == []
        return
    assert windows[0][0] == 0
    assert windows[-1][1] == num_tokens
    sizes = {stop - start for start, stop in windows}
    assert max(sizes) <= capacity
    assert max(sizes) - min(sizes) <= 1
    for (_, stop), (start, _) in pairwise(windows):
        assert stop - start == overlap
    if len(windows) > 1:
        fewer = len(windows) - 1
        assert fewer * capacity - (fewer - 1) * overlap < num_tokens


@pytest.mark.parametrize(
    ("capacity", "overlap", "message"),
    [
        (0, 0, "A window must hold at least one token .* Received: room for 0"),
        (5, 5, "overlap must be at least 0 and below the 5 tokens of a window. Received: overlap=5"),
        (5, -1, "Received: overlap=-1"),
    ],
)
def test_bad_windows(capacity: int, overlap: int, message: str):
    with pytest.raises(InputError, match=message):
        plan_windows(10, capacity, overlap)


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
texts = st.lists(words | st.sampled_from([" ", "\n", "\t\r\n", "the file", "日本", "\U0001f600"]), max_size=60).map(
    "".join
)


@settings(max_examples=60, deadline=None)
@given(st.lists(texts, max_size=4), st.integers(2, 40))
def test_segments_change_no_token_where_there_is_white_space(tokenizer: Tokenizer, texts: list[str], size: int):
    spaced = [" ".join(text[i : i + 1] for i in range(len(text))) for text in texts]
    whole = tokenize(tokenizer, spaced)
    cut = tokenize(tokenizer, spaced, segment_characters=size)
    for left, right in zip(whole, cut, strict=True):
        assert left.ids.tolist() == right.ids.tolist()
        assert left.starts.tolist() == right.starts.tolist()
        assert left.ends.tolist() == right.ends.tolist()


@settings(max_examples=60, deadline=None)
@given(texts, st.integers(3, 20), st.data())
def test_pieces_hold_every_token_and_their_own_characters(tokenizer: Tokenizer, text: str, length: int, data):
    overlap = data.draw(st.integers(0, length - 3))
    splitter = TextSplitter(tokenizer, max_length=length, overlap=overlap)
    (pieces,) = splitter.split([text], with_characters=True)
    whole = tokenizer.encode(text, add_special_tokens=False)
    done = 0
    for piece in pieces:
        first = max(0, done - overlap)
        last = first + piece.num_tokens
        assert piece.ids.tolist() == [101, *whole.ids[first:last], 102]
        spans = whole.offsets[first:last]
        assert (piece.char_start, piece.char_end) == (min(s for s, _ in spans), max(e for _, e in spans))
        done = last
    assert done == len(whole.ids)
    assert bool(pieces) == bool(whole.ids)


def test_offsets_may_be_left_out(tokenizer: Tokenizer):
    with_offsets, without = (tokenize(tokenizer, ["open the file", ""], with_offsets=flag) for flag in (True, False))
    assert [t.ids.tolist() for t in with_offsets] == [t.ids.tolist() for t in without]
    assert without[0].starts.size == 0
    assert tokenize(tokenizer, []) == []


@pytest.mark.parametrize("unit", ["x", "open the file, ", "é"])
def test_three_megabytes_in_one_line_take_bounded_time(tokenizer: Tokenizer, unit: str):
    text = unit * (3_000_000 // len(unit))
    start = time.process_time()
    (tokens,) = tokenize(tokenizer, [text])
    assert time.process_time() - start < 18
    if len(tokens.ids):
        assert tokens.ends[-1] == len(text.rstrip())
        assert np.all(tokens.starts[1:] >= tokens.ends[:-1])


def test_special_tokens_of_other_templates():
    from tokenizers import models, pre_tokenizers, processors

    plain = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<s>": 2, "</s>": 3, "[UNK]": 4}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    for template, expected in [(None, [0, 1]), ("$A </s>", [0, 1, 3]), ("<s> <s> $A </s>", [2, 2, 0, 1, 3])]:
        if template:
            plain.post_processor = processors.TemplateProcessing(
                single=template, special_tokens=[("<s>", 2), ("</s>", 3)]
            )
        (pieces,) = TextSplitter(plain, max_length=8).split(["a b"])
        assert pieces[0].ids.tolist() == expected
