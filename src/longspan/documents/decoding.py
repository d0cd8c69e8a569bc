"""From the bytes of a file to text, saying which encoding was used."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from longspan.documents.document import UnreadableError
from longspan.documents.encodings import guess_encoding, known_encoding

#: Bytes looked at to tell text from binary data.
_PROBE_BYTES = 8192
#: Share of control characters above which bytes are binary data.
_MAX_CONTROL_SHARE = 0.1
_CONTROL_BYTES = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b")) + b"\x7f"
#: Of so many characters one may be broken before an encoding is held to be wrong.
_CHARACTERS_PER_BREAK = 100

# UTF-32-LE starts with the mark of UTF-16-LE, so the longer marks come first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SHIFTS = (b"\x1b$B", b"\x1b$@")


@dataclass(frozen=True)
class Decoded:
    """Text of a file, and how it was decoded.

    Attributes:
        text: The text, without a byte order mark.
        encoding: Encoding that was used.
        note: What the user should know, if the encoding was assumed or did not fit everywhere; else empty.
    """

    text: str
    encoding: str
    note: str = ""


def decode(data: bytes, *, declared: str | None = None) -> Decoded:
    """Decode `data` by its byte order mark, else the declared encoding, else UTF-8, else what it looks like.

    An encoding that fits but for a few bytes is kept. In UTF-8 such bytes are read as Windows-1252, in other encodings
    they become U+FFFD; a note says how many there are.

    Args:
        data: Content of a file.
        declared: Encoding that the file itself names, if it does.

    Returns:
        The text and its encoding. Windows-1252 accepts any bytes, so only marked or binary data can fail.

    Raises:
        UnreadableError: `data` is binary, or breaks the encoding that its byte order mark names.
    """
    mark, encoding = marked_encoding(data)
    if encoding is not None:
        return Decoded(_decode_marked(data[len(mark) :], encoding), encoding)
    if is_binary(data):
        raise UnreadableError("binary file, not text")
    declared = known_encoding(declared)
    shifts = "iso2022_jp" if any(shift in data for shift in _SHIFTS) else None
    for candidate in filter(None, (declared, shifts, "utf-8")):
        try:
            return Decoded(data.decode(candidate), candidate)
        except UnicodeError:
            continue
    return _decode_mostly(data, "utf-8") or _decode_mostly(data, declared) or _decode_as_guessed(data)


def marked_encoding(data: bytes) -> tuple[bytes, str | None]:
    """The byte order mark that `data` begins with, and the encoding that it names; empty and None if there is none."""
    return next(((mark, encoding) for mark, encoding in _MARKS if data.startswith(mark)), (b"", None))


def is_binary(data: bytes) -> bool:
    """True if the first bytes hold a NUL or many control characters, which text never does."""
    probe = data[:_PROBE_BYTES]
    if b"\0" in probe:
        return True
    num_controls = len(probe) - len(probe.translate(None, _CONTROL_BYTES))
    return num_controls > _MAX_CONTROL_SHARE * len(probe)


def _decode_mostly(data: bytes, encoding: str | None) -> Decoded | None:
    """`data` in an encoding that does not fit everywhere, or None if that happens too often."""
    if encoding is None:
        return None
    text = data.decode(encoding, "replace")
    broken = text.count("\ufffd")
    if encoding != "utf-8":
        note = f"{broken:,} characters are no {encoding}, read as U+FFFD"
        return Decoded(text, encoding, note) if broken * _CHARACTERS_PER_BREAK <= len(text) else None
    wide = len(text) - len(text.encode("ascii", "ignore")) - broken
    if wide <= 2 * broken:
        return None
    return Decoded(data.decode("utf-8", AS_WINDOWS), "utf-8", f"{broken:,} characters are no UTF-8, read as cp1252")


def _decode_as_guessed(data: bytes) -> Decoded:
    encoding = guess_encoding(data)
    note = f"not UTF-8, read as {encoding}"
    if encoding == "cp1252":
        return Decoded(data.decode(encoding, AS_WINDOWS), encoding, note)
    try:
        return Decoded(data.decode(encoding), encoding, note)
    except UnicodeError:
        return _decode_mostly(data, encoding) or Decoded(data.decode("cp1252", AS_WINDOWS), "cp1252", note)


def _as_windows(error: UnicodeError) -> tuple[str, int]:
    """Error handler: bytes that do not fit are read as Windows-1252, the five that it lacks as controls."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    broken = error.object[error.start : error.end]
    return "".join(_WINDOWS[byte] for byte in broken), error.end


_WINDOWS = [bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(256)]
#: Name of the error handler that reads bytes which do not fit as Windows-1252.
AS_WINDOWS = "longspan-windows-1252"
codecs.register_error(AS_WINDOWS, _as_windows)


def _decode_marked(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UnreadableError(
            f"its byte order mark says {encoding}, but byte {error.start} of the text does not fit"
        ) from error
