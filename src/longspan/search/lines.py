"""Files of JSON lines that a crash can only cut at their end, with a checksum in each line."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

#: Last key of a line: CRC-32 of the line without it.
_SUM = "crc32"


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Add one JSON object to `path`, and force it to disk."""
    with path.open("ab") as file:
        file.write(json.dumps({**values, _SUM: _checksum(values)}, ensure_ascii=True).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def parse_line(line: bytes, *, needs_sum: bool = True) -> dict[str, Any] | None:
    """The JSON object of a whole line; None if the line was torn by a crash, damaged or edited.

    Args:
        line: The line with its end.
        needs_sum: Whether a line without a checksum, such as one of another program, counts as damaged.
    """
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or (_SUM not in values and needs_sum):
        return None
    has_sum, checksum = _SUM in values, values.pop(_SUM, None)
    return None if has_sum and checksum != _checksum(values) else values


def _checksum(values: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, ensure_ascii=True).encode())
