from __future__ import annotations

import codecs

import pytest

from longspan.documents.decoding import decode, is_binary
from longspan.documents.document import UnreadableError
from longspan.documents.encodings import known_encoding, markup_encoding, python_encoding

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
    assert (decoded.text, decoded.encoding, decoded.note) == (TEXT, encoding, "")


def test_windows_1252_is_the_fallback_and_said_so():
    decoded = decode("open—file “now” for 5 €".encode("cp1252"))
    assert decoded.text == "open—file “now” for 5 €"
    assert (decoded.encoding, decoded.note) == ("cp1252", "not UTF-8, read as cp1252")
    assert decode(b"caf\xe9 \x81").text == "café \x81"  # of the five bytes that Windows-1252 lacks


JAPANESE = "これは日本語の文章です。長い文書を読む。東京は晴れです。"
CHINESE = "这是一个中文文档，长文本的阅读。今天天气很好。"


@pytest.mark.parametrize(
    ("text", "encoding", "seen_as"),
    [
        (JAPANESE, "shift_jis", "cp932"),
        (JAPANESE * 4, "euc_jp", "euc_jp"),
        (CHINESE, "gbk", "gb18030"),
        (CHINESE + "𠀀", "gb18030", "gb18030"),
        ("這是一個中文文件，長文本的閱讀。今天天氣很好。", "big5", "big5"),
        ("이것은 한국어 문서입니다. 오늘 날씨가 좋습니다.", "euc_kr", "cp949"),
        ("Это русский текст, длинный документ. Сегодня хорошая погода.", "cp1251", "cp1251"),
        ("Это русский текст, длинный документ. Сегодня хорошая погода.", "koi8_r", "koi8_r"),
        ("Αυτό είναι ένα ελληνικό κείμενο για δοκιμή.", "cp1253", "cp1253"),
        ("Zażółć gęślą jaźń, to jest dłuższy tekst po polsku.", "cp1250", "cp1250"),
        ("Le café était fermé — “à côté” de l’hôtel. Cela coûte 5 €.", "cp1252", "cp1252"),
        ("Die Größe der Fußgängerbrücke über den Fluß beträgt 12 m.", "latin-1", "cp1252"),
        ("ÜBERGRÖSSE ÄÖÜ ÀÉÈ. ", "latin-1", "cp1252"),
        ("def f(x):\n    # 日本語のコメント\n    return x + 1\n", "shift_jis", "cp932"),
    ],
)
def test_encodings_are_seen_by_their_bytes_and_said(text: str, encoding: str, seen_as: str):
    for times in (1, 30):
        decoded = decode((text * times).encode(encoding))
        assert (decoded.text, decoded.note) == (text * times, f"not UTF-8, read as {seen_as}")
    late = "plain words\n" * 20_000 + text
    assert decode(late.encode(encoding)).text == late


def test_stateful_japanese_is_no_ascii():
    assert decode(JAPANESE.encode("iso2022_jp")).text == JAPANESE


def test_mixed_encodings_keep_what_fits():
    decoded = decode("naïve 日本語 ".encode() * 3 + "open—file".encode("cp1252"))
    assert decoded.text == "naïve 日本語 " * 3 + "open—file"
    assert decoded.note == "1 characters are no UTF-8, read as cp1252"
    decoded = decode((JAPANESE * 10).encode("shift_jis") + b"\x81", declared="shift_jis")
    assert decoded.text == JAPANESE * 10 + "\ufffd"
    assert decoded.note == "1 characters are no cp932, read as U+FFFD"


def test_declared_encodings():
    assert decode("кот".encode("koi8-r"), declared="koi8-r").text == "кот"
    assert decode("кот".encode(), declared="no-such-encoding").text == "кот"
    assert decode(b"\x81", declared="cp1252").note
    assert python_encoding(b"# -*- coding: koi8-r -*-\n") == "koi8-r"
    assert python_encoding(b"x = 1\n") == "utf-8"
    assert python_encoding(b"# coding: nonsense\n") is None
    assert markup_encoding(b'<meta charset="ISO-8859-1">') == "iso-8859-1"
    assert markup_encoding(b'<meta http-equiv=x content="text/html; charset=koi8-r">') == "koi8-r"
    assert markup_encoding(b"<p>charset=koi8-r</p>") is None
    assert markup_encoding(b"<?xml version='1.0' encoding='Shift_JIS'?>", is_html=False) == "shift_jis"
    assert markup_encoding(b'<meta charset="koi8-r">', is_html=False) is None


@pytest.mark.parametrize(
    ("name", "used"),
    [("ISO-8859-1", "cp1252"), ("us-ascii", "cp1252"), ("Shift_JIS", "cp932"), ("x-sjis", "cp932"),
     ("GB2312", "gb18030"),
     ("UTF8", "utf-8"), ("koi8-r", "koi8-r"), ("utf-16", None), ("utf_32_be", None), ("utf-7", None),
     ("undefined", None),
     ("idna", None), ("punycode", None), ("unicode_escape", None), ("hex", None), ("rot13", None), ("cp037", None),
     ("zlib", None), ("nonsense", None), ("x" * 5000, None), ("a\0b", None), (None, None)],
)  # fmt: skip
def test_only_encodings_of_text_can_be_declared(name: str | None, used: str | None):
    assert known_encoding(name) == used
    assert decode(b"plain", declared=name).text == "plain"


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
