from __future__ import annotations

import codecs

import pytest

from longspan.documents.decoding import decode, html_encoding, is_binary, python_encoding
from longspan.documents.document import UnreadableError

TEXT = "naïve café — 日本語 \U0001f600\r\nsecond line"


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (TEXT.encode(), "utf-8"),
        (codecs.BOM_UTF8 + TEXT.encode(), "utf-8"),
        (codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"), "utf-16-le"),
        (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), "utf-16-be"),
        (codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"), "utf-32-le"),
        (codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"), "utf-32-be"),
    ],
)
def test_marks_and_utf8(data: bytes, encoding: str):
    decoded = decode(data)
    assert (decoded.text, decoded.encoding, decoded.fallback) == (TEXT, encoding, False)


def test_latin_1_is_the_fallback_and_said_so():
    decoded = decode("café".encode("latin-1"))
    assert (decoded.text, decoded.encoding, decoded.fallback) == ("café", "latin-1", True)


def test_declared_encodings():
    assert decode("кот".encode("koi8-r"), declared="koi8-r").text == "кот"
    assert decode("кот".encode(), declared="no-such-encoding").text == "кот"
    assert decode(b"\x81", declared="cp1252").fallback
    assert python_encoding(b"# -*- coding: koi8-r -*-\n") == "koi8-r"
    assert python_encoding(b"x = 1\n") == "utf-8"
    assert python_encoding(b"# coding: nonsense\n") is None
    assert html_encoding(b'<meta charset="ISO-8859-1">') == "cp1252"
    assert html_encoding(b'<meta http-equiv=x content="text/html; charset=koi8-r">') == "koi8-r"
    assert html_encoding(b"<p>charset=koi8-r</p>") is None


def test_binary_data():
    assert is_binary(b"text\0text")
    assert is_binary(bytes(range(1, 32)) * 5)
    assert not is_binary(b"plain \x1b[1mcolours\x1b[0m\ttext\r\n\f")
    assert not is_binary(b"")
    with pytest.raises(UnreadableError, match="binary file, not text"):
        decode(b"\x00\x01\x02")


def test_text_that_breaks_its_mark():
    data = codecs.BOM_UTF16_LE + "ab".encode("utf-16-le") + b"\x00"
    with pytest.raises(UnreadableError, match="byte order mark says utf-16-le, but byte 4 of the text does not fit"):
        decode(data)
