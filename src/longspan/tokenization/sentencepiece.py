"""Reader of SentencePiece models (`spiece.model`) in the protobuf wire format: the few fields a tokenizer needs.

Fields and their numbers are those of `sentencepiece_model.proto`; the wire format is
https://protobuf.dev/programming-guides/encoding. Fields that are not named here are skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longspan.errors import CheckpointError

#: Kinds of pieces (`SentencePiece.Type`).
CONTROL, USER_DEFINED = 3, 4
#: Kinds of models (`TrainerSpec.ModelType`).
MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "char"}

#: longest piece, in bytes
_LONGEST = 4096

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}

# field numbers: ModelProto, SentencePiece, TrainerSpec, NormalizerSpec
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _KIND = 1, 2, 3
_MODEL_TYPE, _BYTE_FALLBACK, _UNK_ID = 3, 35, 40
_CHARSMAP = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary; its index is its id.

    Attributes:
        text: The piece, blanks written as `▁`.
        score: Logarithm of its probability.
        kind: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    """

    text: str
    score: float = 0.0
    kind: int = 1


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What a tokenizer needs of a SentencePiece model.

    Attributes:
        pieces: The vocabulary.
        model_type: `"unigram"`, `"BPE"`, `"word"` or `"char"`.
        unk_id: Id of the unknown piece.
        byte_fallback: True if unknown characters are read as bytes.
        charsmap: Compiled rules of the text's normalization; empty for none.
    """

    pieces: list[Piece]
    model_type: str
    unk_id: int
    byte_fallback: bool
    charsmap: bytes


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """The model that a `spiece.model` holds.

    Args:
        path: The file.

    Returns:
        The model.

    Raises:
        CheckpointError: the file is cut short or is not a SentencePiece model.
    """
    try:
        return _parse_model(path.read_bytes())
    except (ValueError, struct.error) as error:
        raise CheckpointError(f"{path} must be a SentencePiece model. Received: {error}") from None


def _parse_model(data: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == _PIECES:
            pieces.append(_parse_piece(_bytes(value)))
        elif number == _TRAINER:
            trainer.update(_fields(_bytes(value)))
        elif number == _NORMALIZER:
            normalizer.update(_fields(_bytes(value)))
    if not pieces:
        raise ValueError("no pieces")
    unk_id = trainer.get(_UNK_ID, 0)
    if not 0 <= unk_id < len(pieces):
        raise ValueError(f"unknown piece {unk_id} of {len(pieces)} pieces")
    model_type = MODEL_TYPES.get(trainer.get(_MODEL_TYPE, 1))
    if model_type is None:
        raise ValueError(f"model type {trainer[_MODEL_TYPE]}")
    charsmap = _bytes(normalizer.get(_CHARSMAP, b""))
    return SentencePieceModel(pieces, model_type, unk_id, bool(trainer.get(_BYTE_FALLBACK, 0)), charsmap)


def _parse_piece(data: bytes) -> Piece:
    fields: dict[int, Any] = dict(_fields(data))
    if _TEXT not in fields:
        raise ValueError("a piece without text")
    if len(fields[_TEXT]) > _LONGEST:
        raise ValueError(f"a piece of {len(fields[_TEXT])} bytes")
    score = struct.unpack("<f", _bytes(fields[_SCORE]))[0] if _SCORE in fields else 0.0
    return Piece(_bytes(fields[_TEXT]).decode(), score, fields.get(_KIND, 1))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and raw value of each field of a message: integers for varints, bytes for the rest."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise ValueError(f"field number 0 at byte {position}")
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == _BYTES:
            width, position = _varint(data, position)
        elif wire in _WIDTHS:
            width = _WIDTHS[wire]
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if position + width > end:
            raise ValueError(f"a field of {width} bytes at byte {position} of {end}")
        yield number, data[position : position + width]
        position += width


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Integer of base-128 digits, least first, and the position after it."""
    value = shift = 0
    while position < len(data):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift >= 70:
            raise ValueError(f"an integer of more than 10 bytes at byte {position}")
    raise ValueError("the file is cut short")


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number in place of text")
    return value
