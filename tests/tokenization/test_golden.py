"""Ids that must never change, written down; none of them comes from the reference at test time."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from types import ModuleType

import pytest
from tests.tokenization.conftest import write_json

import longspan.tokenization.auto
import longspan.tokenization.encoding
import longspan.tokenization.families
import longspan.tokenization.tokenizer
from longspan import AutoTokenizer, LongformerTokenizer, T5Tokenizer

BERT = {
    "Hello, world!": [101, 7592, 1010, 2088, 999, 102],
    "Long documents, not truncated": [101, 2146, 5491, 1010, 2025, 25449, 102],
    "résumé Ünïcode": [101, 13746, 27260, 102],
    "長い文章": [101, 1967, 1647, 1861, 1932, 102],
    "👩‍👩‍👧 ok": [101, 100, 7929, 102],
    "[MASK] of [unused1]": [101, 103, 1997, 1031, 15171, 2487, 1033, 102],
    "": [101, 102],
    "\x00\ufffd \t\n": [101, 102],
}


@pytest.mark.parametrize("kind", ["bert_json", "bert_vocab"])
@pytest.mark.parametrize("text", BERT)
def test_bert(checkpoints: dict[str, Path], kind: str, text: str) -> None:
    assert AutoTokenizer.from_pretrained(checkpoints[kind])(text).input_ids == BERT[text]


def test_bert_pair(checkpoints: dict[str, Path]) -> None:
    batch = AutoTokenizer.from_pretrained(checkpoints["bert_vocab"])(
        "Who?", "Hello world", padding="max_length", max_length=9
    )
    assert batch.input_ids == [101, 2040, 1029, 102, 7592, 2088, 102, 0, 0]
    assert batch.token_type_ids == [0, 0, 0, 0, 1, 1, 1, 0, 0]
    assert batch.attention_mask == [1, 1, 1, 1, 1, 1, 1, 0, 0]


def test_longformer_by_hand(tmp_path: Path) -> None:
    """Merges `l o` and `Ġ lo`: `lo lo` is `lo`, `Ġlo`; bytes of `é` are `Ã` and `©`."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "l", "o", "Ġ", "Ã", "©", "lo", "Ġlo", "<mask>"]
    write_json(tmp_path / "vocab.json", {token: index for index, token in enumerate(tokens)})
    (tmp_path / "merges.txt").write_text("#version: 0.2\nl o\nĠ lo\n", encoding="utf-8")
    write_json(tmp_path / "config.json", {"model_type": "longformer"})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is LongformerTokenizer
    batch = tokenizer("lo lo él <mask>", "ol", return_offsets_mapping=True)
    assert batch.input_ids == [0, 9, 10, 6, 7, 8, 4, 11, 2, 2, 5, 4, 2]
    assert batch.offset_mapping[1:8] == [(0, 2), (3, 5), (6, 6), (6, 7), (6, 7), (7, 8), (9, 15)]
    assert tokenizer.decode(batch.input_ids) == "<s>lo lo él<mask></s></s>ol</s>"
    prefixed = AutoTokenizer.from_pretrained(tmp_path, add_prefix_space=True)
    assert prefixed("lo lo").input_ids == [0, 10, 10, 2]


def test_longt5_by_hand(tmp_path: Path) -> None:
    """The most probable pieces: `▁ab` (-2) against `▁a` `b` (-1.5 - 1.5)."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    pieces = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), ("▁", -3.0, 1), ("▁a", -1.5, 1), ("b", -1.5, 1),
              ("▁ab", -2.0, 1)]  # fmt: skip
    for text, score, kind in pieces:
        proto.pieces.add(piece=text, score=score, type=kind)
    proto.trainer_spec.unk_id = 2
    (tmp_path / "spiece.model").write_bytes(proto.SerializeToString())
    tokenizer = T5Tokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 107
    assert tokenizer("ab a b z").input_ids == [6, 4, 3, 5, 3, 2, 1]
    assert tokenizer("a<extra_id_0> b<extra_id_99>").input_ids == [4, 106, 3, 5, 7, 1]
    assert tokenizer.decode([6, 4, 3, 5, 1], skip_special_tokens=True) == "ab a b"


def test_saved_config(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(checkpoints["longt5_new"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config.pop("added_tokens_decoder")["0"] == {
        "content": "<pad>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    assert config == {
        "add_prefix_space": None,
        "additional_special_tokens": [f"<extra_id_{index}>" for index in range(10)],
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "extra_ids": 10,
        "legacy": False,
        "model_max_length": 10**30 + 19884624838656,
        "pad_token": "<pad>",
        "padding_side": "right",
        "tokenizer_class": "T5Tokenizer",
        "truncation_side": "right",
        "unk_token": "<unk>",
    }


@pytest.mark.parametrize(
    "module",
    [
        longspan.tokenization.auto,
        longspan.tokenization.encoding,
        longspan.tokenization.families,
        longspan.tokenization.tokenizer,
    ],
)
def test_examples(module: ModuleType) -> None:
    results = doctest.testmod(module)
    assert results.failed == 0
    assert results.attempted > 0
