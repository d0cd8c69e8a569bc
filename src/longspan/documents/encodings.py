"""Which encoding a text has: what files and pages declare, what may be declared, and what bytes look like."""

from __future__ import annotations

import codecs
import io
import re
import tokenize

#: What takes the place of an encoding that was declared: the larger set that browsers read under its name.
_SUPERSETS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
}
#: Names that browsers know and Python does not.
_OTHER_NAMES = {"x-sjis": "cp932", "windows-31j": "cp932", "x-gbk": "gb18030", "x-euc-jp": "euc_jp"}
#: Codecs that are no encoding of a file: not ASCII at heart, or made for something else.
_REFUSED = re.compile(r"utf-?(7|16|32)|punycode|idna|undefined|unicode.escape|charmap|mbcs|oem|palmos|hz$|cp037|ebcdic")

#: What bytes without any declaration are compared with; Windows-1252 stands for all of western Europe.
_CANDIDATES = [
    "cp1252",
    "cp932",
    "euc_jp",
    "gb18030",
    "big5",
    "big5hkscs",
    "cp949",
    "cp1250",
    "cp1251",
    "cp1253",
    "cp1255",
    "cp1256",
    "koi8_r",
    "iso8859_2",
    "iso8859_5",
    "cp874",
]
_MULTIBYTE = frozenset({"cp932", "euc_jp", "gb18030", "big5", "big5hkscs", "cp949"})
_PROBE_BYTES = 1 << 16
_HIGH = re.compile(rb"[\x80-\xff]+")
#: Letters of other scripts stand together, accented ones and dashes alone: bytes in a row, on average.
_MIN_RUN = 2.0
_KANA = re.compile("[\u3041-\u30ff]")
_MIN_KANA = 0.3

_META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_XML_DECLARATION = re.compile(rb"\s*<\?xml\b[^>]{0,200}?\bencoding\s*=\s*[\"']([A-Za-z0-9_.:-]{1,40})[\"']")


def known_encoding(name: str | None) -> str | None:
    """The codec to use for an encoding that a file declares, or None if there is none or it is not one of text."""
    if name is None:
        return None
    name = name.lower()
    try:
        found = codecs.lookup(_OTHER_NAMES.get(name, name))
    except (LookupError, ValueError):
        return None
    if not getattr(found, "_is_text_encoding", True) or _REFUSED.match(found.name):
        return None
    return _SUPERSETS.get(found.name, found.name)


def python_encoding(data: bytes) -> str | None:
    """Encoding that a Python source declares in its first two lines, or None if that declaration is wrong."""
    try:
        return tokenize.detect_encoding(io.BytesIO(data[:4096]).readline)[0]
    except SyntaxError:
        return None


def markup_encoding(data: bytes, *, is_html: bool = True) -> str | None:
    """Encoding that an XML declaration, or a `<meta>` element near the start of an HTML page, names; None if none."""
    match = _XML_DECLARATION.match(data[:1024]) or (_META_CHARSET.search(data[:4096]) if is_html else None)
    return None if match is None else match.group(1).decode("ascii").lower()


def guess_encoding(data: bytes) -> str:
    """The encoding that bytes which are not UTF-8 look like, by `charset-normalizer`; Windows-1252 in doubt.

    Bytes above 127 that mostly stand alone are accented letters, quotes and dashes of a Latin script, whatever else
    they could be; only where they come in rows the encodings of other scripts are believed.
    """
    from charset_normalizer import from_bytes

    probe = _probe(data)
    rows = _HIGH.findall(probe)
    if not rows:
        return "cp1252"
    is_dense = sum(map(len, rows)) > _MIN_RUN * len(rows)
    if is_dense and (japanese := _as_japanese(probe)):
        return japanese
    found = list(from_bytes(probe, cp_isolation=_CANDIDATES, preemptive_behaviour=False))
    if not is_dense and any("cp1252" in match.could_be_from_charset for match in found):
        return "cp1252"
    likely = [one for one in found if is_dense or (one.encoding not in _MULTIBYTE and one.coherence > 0)]
    likely.sort(key=lambda match: _is_shouted(str(match)))
    return likely[0].encoding if likely else "cp1252"


def _as_japanese(data: bytes) -> str | None:
    """The encoding in which much of the text is kana, which no text in another language looks like; None if none."""
    for encoding in ("cp932", "euc_jp"):
        text = data.decode(encoding, "replace")
        num_wide = len(text) - len(text.encode("ascii", "ignore"))
        fits = text.count("\ufffd") * 100 <= len(text)
        if fits and len(_KANA.findall(text)) > _MIN_KANA * num_wide:
            return encoding
    return None


def _is_shouted(text: str) -> bool:
    """True if most letters with a case are capitals: letters of a script without cases, taken for another."""
    return sum(map(str.isupper, text)) > sum(map(str.islower, text))


def _probe(data: bytes) -> bytes:
    """The first bytes above 127 and what is around them, cut at line ends, which no character of two bytes holds."""
    first = _HIGH.search(data)
    start = 0 if first is None else data.rfind(b"\n", 0, first.start()) + 1
    probe = data[max(start, first.start() - _PROBE_BYTES if first else 0) :][:_PROBE_BYTES]
    end = probe.rfind(b"\n")
    return probe[: end + 1] if len(probe) == _PROBE_BYTES and end > 0 else probe
