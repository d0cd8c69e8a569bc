"""Files of JSON lines that a crash can only cut at their end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Add one JSON object to `path`, and force it to disk."""
    with path.open("ab") as file:
        file.write(json.dumps(values, ensure_ascii=True).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a whole line, or None if the line was torn by a crash."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return values if isinstance(values, dict) else None
