"""What a call returns: columns, alignment with text, tensors of four frameworks."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import numpy as np
import pytest
from tests.tokenization.conftest import Pair
from tests.tokenization.corpus import ENGLISH, TEXTS

from longspan import BatchEncoding
from longspan.errors import InputError, MissingFrameworkError

WINDOWS = {"truncation": "only_second", "max_length": 24, "stride": 5, "return_overflowing_tokens": True}


def test_is_a_mapping(bert: Pair) -> None:
    batch = bert.ours([ENGLISH, "a"])
    assert isinstance(batch, BatchEncoding)
    assert list(batch) == ["input_ids", "token_type_ids", "attention_mask"] == list(batch.keys())
    assert dict(**batch) == dict(batch.items()) == batch.data
    assert batch.input_ids is batch["input_ids"]
    assert len(batch) == 3
    assert "labels" not in batch
    batch["labels"] = [0, 1]
    assert batch.labels == [0, 1]
    assert batch[:1] == {key: value[:1] for key, value in batch.items()}
    assert batch[1].tokens == ["[CLS]", "a", "[SEP]"]
    assert batch.n_sequences == 1
    assert batch.is_fast
    assert copy.copy(batch).input_ids == batch.input_ids
    with pytest.raises(AttributeError, match="no attribute or column 'logits'. Columns: 'input_ids', 'token_type_ids'"):
        _ = batch.logits
    with pytest.raises(KeyError):
        _ = batch["logits"]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("with_offsets", [False, True])
def test_alignment(pair: Pair, side: str, with_offsets: bool) -> None:
    """Every method, at every token, word and character, equals the reference's; also where rows are made late."""
    kwargs = {**WINDOWS, "padding": True, "padding_side": side, "return_offsets_mapping": with_offsets}
    questions, contexts = ["What is linear?", "日本語"], [ENGLISH, "kurz: naïve 👍🏽 " * 6]
    ours, theirs = pair.ours(questions, contexts, **kwargs), pair.theirs(questions, contexts, **kwargs)
    assert ours.n_sequences == theirs.n_sequences == 2
    assert len(ours.input_ids) > 2
    for row, row_ids in enumerate(ours.input_ids):
        assert ours[row].ids == row_ids
        assert ours[row].attention_mask == ours.attention_mask[row]
        assert ours.tokens(row) == theirs.tokens(row)
        assert ours.word_ids(row) == ours.words(row) == theirs.word_ids(row)
        assert ours.sequence_ids(row) == theirs.sequence_ids(row)
        for token in range(len(row_ids)):
            assert ours.token_to_chars(row, token) == theirs.token_to_chars(row, token)
            assert ours.token_to_word(row, token) == theirs.token_to_word(row, token)
            assert ours.token_to_sequence(row, token) == theirs.token_to_sequence(row, token)
            assert ours.token_to_word(row, token - len(row_ids)) == ours.token_to_word(row, token)
        for sequence in (0, 1):
            for index in range(12):
                for method in ("word_to_tokens", "char_to_token", "char_to_word"):
                    got = getattr(ours, method)(row, index, sequence)
                    assert got == getattr(theirs, method)(row, index, sequence), method
                if ours.word_to_tokens(row, index, sequence) is not None:
                    expected = theirs.word_to_chars(row, index, sequence)
                    assert ours.word_to_chars(row, index, sequence_index=sequence) == expected


def test_alignment_of_one_row(bert: Pair) -> None:
    batch = bert.ours("tokenization aligns")
    assert batch.tokens() == ["[CLS]", "token", "##ization", "align", "##s", "[SEP]"]
    assert batch.word_to_tokens(0) == (1, 3)
    assert batch.word_to_tokens(0).end == 3
    assert batch.token_to_chars(2) == (5, 12)
    assert batch.token_to_chars(2).start == 5
    assert batch.token_to_chars(0) is None
    assert batch.char_to_token(13) == 3
    assert batch.char_to_token(12) is None, "a blank"
    assert batch.char_to_word(14) == 1
    assert batch.word_to_chars(1) == (13, 19)
    assert batch.token_to_word(0, 4) == batch.token_to_word(4) == 1
    assert batch.token_to_sequence(4) == 0
    assert batch.word_to_tokens(9) is None
    with pytest.raises(InputError, match="The token index must be less than the row's 6 tokens. Received: 6"):
        batch.token_to_chars(6)


def test_without_text_there_is_no_alignment(bert: Pair) -> None:
    batch = BatchEncoding({"input_ids": [[1]]})
    assert not batch.is_fast
    assert batch.encodings is None
    assert batch.n_sequences is None
    with pytest.raises(
        InputError, match="only in what a tokenizer made from text. Received: .* of the columns input_ids"
    ):
        batch.word_ids()
    with pytest.raises(InputError, match="only in what a tokenizer made from text"):
        bert.ours.pad([bert.ours("a")]).tokens()


def test_pickles_with_its_alignment(main_pair: Pair) -> None:
    batch = main_pair.ours(["a", "b"], [ENGLISH, ENGLISH], padding=True, return_tensors="np", **WINDOWS)
    again = pickle.loads(pickle.dumps(batch))
    assert list(again) == list(batch)
    for key in batch:
        np.testing.assert_array_equal(again[key], batch[key])
    assert [again.word_ids(row) for row in range(3)] == [batch.word_ids(row) for row in range(3)]
    assert again.n_sequences == 2


def test_rows_made_late_are_those_of_the_call(fresh_bert: Any) -> None:
    """Later changes of the tokenizer do not reach what a call returned."""
    batch = fresh_bert(["a newtoken", "b"], padding=True)
    fresh_bert.add_tokens("newtoken")
    fresh_bert.padding_side = "left"
    fresh_bert.pad_token = "[MASK]"
    assert [encoding.ids for encoding in batch.encodings] == batch.input_ids


DTYPES = {"np": "int64", "pt": "torch.int64", "tf": "<dtype: 'int32'>", "jax": "int32"}


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the frameworks, when they are imported
def test_tensors(bert: Pair, kind: str) -> None:
    texts = [ENGLISH, "short"]
    columns = {"return_offsets_mapping": True, "return_special_tokens_mask": True, "return_length": True}
    lists = bert.ours(texts, padding=True, pad_to_multiple_of=8, **columns)
    batch = bert.ours(texts, padding=True, pad_to_multiple_of=8, return_tensors=kind, **columns)
    assert list(batch) == list(lists)
    for key, value in batch.items():
        assert type(value).__module__.partition(".")[0] in {"np": "numpy", "pt": "torch", "tf": "tensorflow"}.get(
            kind, "jaxlib"
        )
        assert str(value.dtype) == DTYPES[kind]
        np.testing.assert_array_equal(np.asarray(value), np.asarray(lists[key]))
    single = bert.ours("short", return_tensors=kind)
    assert tuple(single.input_ids.shape) == (1, 3)
    assert bert.ours.decode(single.input_ids[0]) == "[CLS] short [SEP]"
    assert bert.ours.batch_decode(batch.input_ids, skip_special_tokens=True)[1] == "short"
    assert bert.ours.convert_ids_to_tokens(single.input_ids[0]) == ["[CLS]", "short", "[SEP]"]
    padded = bert.ours.pad({"input_ids": single.input_ids}, pad_to_multiple_of=4)
    assert type(padded.input_ids) is type(single.input_ids)
    np.testing.assert_array_equal(np.asarray(padded.attention_mask), [[1, 1, 1, 0]])
    converted = BatchEncoding({"a": [1.5, 2], "b": [[True], [False]]}, tensor_type=kind)
    assert str(converted.a.dtype).endswith(("float32", "float32'>") if kind != "np" else "float64")
    assert "bool" in str(converted.b.dtype)
    assert tuple(BatchEncoding({"a": [1, 2]}, tensor_type=kind, prepend_batch_axis=True).a.shape) == (1, 2)


def test_torch_to(bert: Pair) -> None:
    import torch

    batch = bert.ours("short", return_tensors="pt")
    moved = batch.to(torch.device("meta"))
    assert moved is batch
    assert all(value.device.type == "meta" for value in batch.values())
    assert bert.ours("short", return_tensors="pt").to("cpu", non_blocking=True).input_ids.shape == (1, 3)
    with pytest.raises(InputError, match=r"to\(device\) moves PyTorch tensors.* Received: input_ids of type list"):
        bert.ours("short").to("cpu")


def test_rows_of_different_lengths_make_no_tensor(bert: Pair) -> None:
    rule = (
        "All rows of 'input_ids' must have one length to make a tensor; padding=True and truncation=True make them so"
    )
    with pytest.raises(InputError, match=f"{rule}. Received: 2 rows of lengths 3, 4"):
        bert.ours(["a", "a b"], return_tensors="np")
    with pytest.raises(InputError, match=f"{rule}. Received: 2 rows of lengths 3, 14"):
        bert.ours(["a", "a " * 12], padding="max_length", max_length=8, return_tensors="pt")
    with pytest.raises(InputError, match=f"{rule}. Received: 2 rows of lengths 1, 2"):
        bert.ours("a").__class__({"input_ids": [[1], [1, 2]]}, tensor_type="np")
    with pytest.raises(InputError, match="A tensor holds numbers. Received: texts=\\['a'\\]"):
        BatchEncoding({"texts": ["a"]}, tensor_type="np")
    rows = [{"input_ids": [1], "labels": [1]}, {"input_ids": [1, 2], "labels": [1, 2]}]
    with pytest.raises(InputError, match="All rows of 'labels' must have one length"):
        bert.ours.pad(rows, return_tensors="np")


@pytest.mark.parametrize(("kind", "module", "extra"), [("pt", "torch", "torch"), ("tf", "tensorflow", "keras"),
                                                       ("jax", "jax", "flax")])  # fmt: skip
def test_missing_framework(bert: Pair, monkeypatch: pytest.MonkeyPatch, kind: str, module: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "jax.numpy", raising=False)
    with pytest.raises(MissingFrameworkError, match=rf"return_tensors='{kind}' needs .*'longspan\[{extra}\]'"):
        bert.ours("a", return_tensors=kind)


def test_unknown_tensors(bert: Pair) -> None:
    for kind in ("torch", "mlx", 1):
        with pytest.raises(InputError, match=f"return_tensors must be one of 'np', 'pt', 'tf', 'jax' .*: {kind!r}"):
            bert.ours("a", return_tensors=kind)


@pytest.mark.parametrize("name", ["bert_json", "longformer"])
def test_no_rows(checkpoints: dict[str, Any], name: str) -> None:
    tokenizer = pytest.importorskip("longspan").AutoTokenizer.from_pretrained(checkpoints[name])
    assert tokenizer([]).input_ids == []
    assert tokenizer([], padding=True, return_tensors="np").input_ids.shape == (0, 0)
    assert tokenizer([], [], padding="max_length", max_length=4, return_tensors="np").input_ids.shape == (0, 4)
    assert tokenizer.batch_decode([]) == []
    assert tokenizer(list(TEXTS.values())[:0], return_offsets_mapping=True).offset_mapping == []
