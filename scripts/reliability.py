"""Write the tables of docs/reliability.md and its Chinese page from the figures that `make hardening` left."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results" / "hardening.json"
#: page -> what its words are where they are not those of the file
WORDS: dict[str, dict[str, str]] = {
    "reliability.md": {},
    "reliability.zh.md": {"battery": "组", "cases": "用例", "held": "成立", "seconds": "秒", "slowest": "最慢",
                          "grown": "增长", "equal": "相等", "refused": "拒绝", "reported": "报告",
                          "interrupted": "中断"},
}  # fmt: skip
_TABLE = re.compile(r"(<!-- figures -->\n).*?(<!-- end -->)", re.DOTALL)


def table(results: dict[str, dict[str, object]], words: dict[str, str]) -> str:
    """The rows of a page: battery, cases, how many held, and the other figures of the battery."""

    def said(key: str) -> str:
        return words.get(key) or " ".join(words.get(word, word) for word in key.split("_"))

    heads = [said(key) for key in ("battery", "cases", "held", "seconds")]
    lines = [f"| {' | '.join(head.capitalize() for head in heads)} | |", "|---|---|---|---|---|"]
    for name, figures in results.items():
        others = {key: value for key, value in figures.items() if key not in ("cases", "held", "seconds", "pieces")}
        notes = ("，" if words else ", ").join(f"{said(key)} {value}" for key, value in others.items())
        counts = [f"{figures[key]:,}" for key in ("cases", "held", "seconds")]
        lines.append(f"| `{name}` | {' | '.join(counts)} | {notes} |")
    return "\n".join(lines) + "\n"


def filled(name: str) -> str:
    """A page with its table as it should be."""
    rows = table(json.loads(RESULTS.read_text(encoding="utf-8")), WORDS[name])
    page = (DOCS / name).read_text(encoding="utf-8")
    return _TABLE.sub(lambda found: found[1] + rows + found[2], page)


def main() -> None:
    """Rewrite what stands between the marks of the pages."""
    for name in WORDS:
        (DOCS / name).write_text(filled(name), encoding="utf-8")


if __name__ == "__main__":
    main()
