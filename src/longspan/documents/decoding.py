"""From the bytes of a file to text, saying which encoding was used."""

from __future__ import annotations

import codecs
import io
import re
import tokenize
from dataclasses import dataclass

from longspan.documents.document import UnreadableError

#: Bytes looked at to tell text from binary data.
_PROBE_BYTES = 8192
#: Share of control characters above which bytes are binary data.
_MAX_CONTROL_SHARE = 0.1
_CONTROL_BYTES = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b")) + b"\x7f"

# UTF-32-LE starts with the mark of UTF-16-LE, so the longer marks come first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

_META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)


@dataclass(frozen=True)
class Decoded:
    """Text of a file, and how it was decoded.

    Attributes:
        text: The text, without a byte order mark.
        encoding: Encoding that was used.
        fallback: True if nothing named this encoding and UTF-8 did not fit.
    """

    text: str
    encoding: str
    fallback: bool = False


def decode(data: bytes, *, declared: str | None = None) -> Decoded:
    """Decode `data` by its byte order mark, else the declared encoding, else UTF-8, else Latin-1.

    Args:
        data: Content of a file.
        declared: Encoding that the file itself names, if it does.

    Returns:
        The text and its encoding. Latin-1 accepts any bytes, so only marked or binary data can fail.

    Raises:
        UnreadableError: `data` is binary, or breaks the encoding that its byte order mark names.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return Decoded(_decode_marked(data[len(mark) :], encoding), encoding)
    if is_binary(data):
        raise UnreadableError("binary file, not text")
    for candidate in filter(None, (declared, "utf-8")):
        try:
            return Decoded(data.decode(candidate), candidate)
        except (UnicodeDecodeError, LookupError):
            continue
    return Decoded(data.decode("latin-1"), "latin-1", fallback=True)


def is_binary(data: bytes) -> bool:
    """True if the first bytes hold a NUL or many control characters, which text never does."""
    probe = data[:_PROBE_BYTES]
    if b"\0" in probe:
        return True
    num_controls = len(probe) - len(probe.translate(None, _CONTROL_BYTES))
    return num_controls > _MAX_CONTROL_SHARE * len(probe)


def python_encoding(data: bytes) -> str | None:
    """Encoding that a Python source declares in its first two lines, or None if that declaration is wrong."""
    try:
        return tokenize.detect_encoding(io.BytesIO(data).readline)[0]
    except SyntaxError:
        return None


def html_encoding(data: bytes) -> str | None:
    """Encoding that an HTML page declares in a `<meta>` element near its start, or None."""
    match = _META_CHARSET.search(data[:4096])
    if match is None:
        return None
    name = match.group(1).decode("ascii").lower()
    # The HTML standard reads these labels as Windows-1252, which has printable characters where Latin-1 has controls.
    return "cp1252" if name in {"iso-8859-1", "latin-1", "latin1", "ascii", "us-ascii"} else name


def _decode_marked(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UnreadableError(
            f"its byte order mark says {encoding}, but byte {error.start} of the text does not fit"
        ) from error
