"""Write the table of docs/reliability.md from the figures that `make hardening` left."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "benchmarks" / "results" / "hardening.json"
_TABLE = re.compile(r"(<!-- figures -->\n).*?(<!-- end -->)", re.DOTALL)


def table(results: dict[str, dict[str, object]]) -> str:
    """The rows of the page: battery, cases, how many held, and the other figures of the battery."""
    lines = ["| Battery | Cases | Held | Seconds | |", "|---|---|---|---|---|"]
    for name, figures in results.items():
        others = {key: value for key, value in figures.items() if key not in ("cases", "held", "seconds", "pieces")}
        notes = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in others.items())
        counts = [f"{figures[key]:,}" for key in ("cases", "held", "seconds")]
        lines.append(f"| `{name}` | {' | '.join(counts)} | {notes} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Rewrite what stands between the marks of the page."""
    page = PAGE.read_text(encoding="utf-8")
    rows = table(json.loads(RESULTS.read_text(encoding="utf-8")))
    PAGE.write_text(_TABLE.sub(lambda found: found[1] + rows + found[2], page), encoding="utf-8")


if __name__ == "__main__":
    main()
