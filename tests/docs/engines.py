"""The code for engines that the guide on scale shows: tests/ecosystem runs each where its engine already runs."""

from __future__ import annotations

import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "11-scale.md"
#: engine -> its code; the guide marks it as `py`, not `python`, which is run where the guide is tested
ENGINES = dict(re.findall(r"^```py\n# ([^\n]+)\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), flags=re.M | re.S))


def engine_code(name: str) -> str:
    """The code of an engine, which names `models/encoder` in the working directory."""
    return ENGINES[name]


def remark(name: str) -> str:
    """The line that the code prints, by its own account."""
    (said,) = re.findall(r"^print\(.*\)  # (.*)$", ENGINES[name], flags=re.M)
    return said
