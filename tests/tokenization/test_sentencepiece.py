"""The reader of SentencePiece models, against the `sentencepiece` library."""

from __future__ import annotations

import contextlib
import functools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.tokenization.conftest import load_reference, spiece_model
from tests.tokenization.corpus import ENGLISH, TEXTS

from longspan import AutoTokenizer, T5Tokenizer
from longspan.errors import CheckpointError, LongspanError
from longspan.tokenization.sentencepiece import MODEL_TYPES, read_sentencepiece


def as_file(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "spiece.model"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char", "word"])
@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
def test_reads_what_sentencepiece_writes(tmp_path: Path, model_type: str, rule: str) -> None:
    from sentencepiece import sentencepiece_model_pb2

    options = {"normalization_rule_name": rule, "byte_fallback": model_type == "bpe", "user_defined_symbols": "<user>"}
    data = spiece_model(model_type, **options)
    proto = sentencepiece_model_pb2.ModelProto.FromString(data)
    model = read_sentencepiece(as_file(tmp_path, data))
    assert [(piece.text, piece.score, piece.kind) for piece in model.pieces] == [
        (piece.piece, piece.score, piece.type) for piece in proto.pieces
    ]
    assert model.unk_id == proto.trainer_spec.unk_id == 2
    assert MODEL_TYPES[proto.trainer_spec.model_type] == model.model_type
    assert model.byte_fallback == proto.trainer_spec.byte_fallback == (model_type == "bpe")
    assert model.charsmap == proto.normalizer_spec.precompiled_charsmap
    assert bool(model.charsmap) == (rule == "nmt_nfkc")
    assert len({piece.kind for piece in model.pieces}) >= 3


def test_defaults_of_absent_fields(tmp_path: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.pieces.add(piece="<unk>", type=2)
    proto.pieces.add(piece="▁a", score=-1.5)
    model = read_sentencepiece(as_file(tmp_path, proto.SerializeToString()))
    assert [(piece.text, piece.score, piece.kind) for piece in model.pieces] == [("<unk>", 0.0, 2), ("▁a", -1.5, 1)]
    assert (model.model_type, model.unk_id, model.byte_fallback, model.charsmap) == ("unigram", 0, False, b"")


def test_ids_equal_sentencepieces(tmp_path: Path) -> None:
    """On plain text the tokenizer gives what SentencePiece itself gives, and `</s>`.

    Left out: special tokens inside the text; long runs of one letter, where splits tie; stacked accents (`nfd`), which
    the tokenizers library, and so the reference, normalizes apart.
    """
    import sentencepiece

    data = spiece_model()
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    tokenizer = T5Tokenizer(vocab_file=as_file(tmp_path, data))
    known = 0
    for name in TEXTS.keys() - {"nfd", "long_word", "special_roberta", "special_t5"}:
        ids = tokenizer.encode(TEXTS[name])
        assert ids == [*processor.encode(TEXTS[name]), 1], name
        if tokenizer.unk_token_id not in ids:
            known += 1
            assert tokenizer.decode(ids, skip_special_tokens=True) == processor.decode(ids)
    assert known > 10


def test_sentinels(tmp_path: Path) -> None:
    tokenizer = T5Tokenizer(vocab_file=as_file(tmp_path, spiece_model()), extra_ids=3)
    size = len(read_sentencepiece(tmp_path / "spiece.model").pieces)
    assert tokenizer.get_sentinel_tokens() == ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]
    assert tokenizer.get_sentinel_token_ids() == [size + 2, size + 1, size]
    assert len(tokenizer) == size + 3
    ids = tokenizer("The <extra_id_0> walks in<extra_id_1> park").input_ids
    assert [index for index in ids if index >= size] == [size + 2, size + 1]
    assert "<extra_id_0>" not in tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("model_type", ["bpe", "char", "word"])
def test_other_models_are_refused(tmp_path: Path, model_type: str) -> None:
    data = spiece_model(model_type, normalization_rule_name="identity", byte_fallback=False)
    with pytest.raises(
        CheckpointError, match=f"spiece.model must be a unigram model. Received: a (?i:{model_type}) model"
    ):
        T5Tokenizer(vocab_file=as_file(tmp_path, data).rename(tmp_path / "other"))


def test_no_end_token(tmp_path: Path) -> None:
    path = as_file(tmp_path, spiece_model())
    with pytest.raises(CheckpointError, match=r"\(spiece.model\) must hold the token '</end>'. It has 7\d\d others"):
        T5Tokenizer(vocab_file=path, eos_token="</end>")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x0a\x05abc", "a field of 5 bytes at byte 2 of 5"),
        (b"\x0a", "the file is cut short"),
        (b"\xff" * 12, "an integer of more than 10 bytes at byte 10"),
        (b"\x03", "field number 0 at byte 1"),
        (b"\x0b", "wire type 3 at byte 1"),
        (b"\x08\x01", "a number in place of text"),
        (b"\x0a\x02\x18\x01", "a piece without text"),
        (b"\x0a\x03\x0a\x01\xff", "'utf-8' codec can't decode"),
        (b"\x0a\x03\x0a\x01a\x12\x03\xc0\x02\x05", "unknown piece 5 of 1 pieces"),
        (b"\x0a\x03\x0a\x01a\x12\x02\x18\x09", "model type 9"),
        (b"\x12\x00", "no pieces"),
    ],
)
def test_damage_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"spiece.model must be a SentencePiece model. Received: .*{message}"):
        read_sentencepiece(as_file(tmp_path, data))


@functools.cache
def valid_model() -> bytes:
    return spiece_model()


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damage_is_an_error_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    """A cut or flipped file never escapes as another exception than ours, nor as the library's abort."""
    content = bytearray(valid_model())
    head = len(content) - 4_000 if data.draw(st.booleans(), "near the end") else 0
    position = data.draw(st.integers(head, len(content) - 1), "position")
    if data.draw(st.booleans(), "cut"):
        del content[position:]
    else:
        content[position] ^= 1 << data.draw(st.integers(0, 7), "bit")
    path = as_file(tmp_path, bytes(content))
    with contextlib.suppress(LongspanError):
        T5Tokenizer(vocab_file=path)([ENGLISH, TEXTS["cjk"], TEXTS["compatibility"], TEXTS["emoji"]])


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("options", [{}, {"legacy": False}, {"legacy": False, "add_eos_token": True}])
def test_llama_models_equal_the_reference(tmp_path: Path, model_type: str, options: dict[str, Any]) -> None:
    """`tokenizer.model` alone, as Llama's checkpoints have it, with bytes for unknown characters."""
    ids = {"pad_id": -1, "unk_id": 0, "bos_id": 1, "eos_id": 2}
    data = spiece_model(model_type, byte_fallback=True, normalization_rule_name="identity", **ids)
    (tmp_path / "tokenizer.model").write_bytes(data)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **options}))
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path), load_reference(tmp_path, use_fast=True)
    assert len(ours) == len(theirs)
    for text in (*TEXTS.values(), "a </s> b<s>c", "  two  blanks ", ""):
        assert ours(text).input_ids == theirs(text).input_ids, text
        assert ours(text, "pair").input_ids == theirs(text, "pair").input_ids
        assert ours.decode(ours(text).input_ids) == theirs.decode(theirs(text).input_ids)
    ours.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again(TEXTS[next(iter(TEXTS))]).input_ids == ours(TEXTS[next(iter(TEXTS))]).input_ids
