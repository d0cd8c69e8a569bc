"""Compare two result files of one machine and setting, e.g. before and after a change.

    python -m benchmarks.compare BEFORE.json AFTER.json

Prints, for each case of both, the ratio to the peer before and after. Files of different processors, instruction sets
or allocators are refused.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.machine import check_comparable


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, float, float]]:
    """(case, ratio before, ratio after) of the cases that both results have, the largest loss first.

    Raises:
        MachineError: the results are of different machines or settings.
    """
    check_comparable(before["machine"], after["machine"])
    shared = before["cases"].keys() & after["cases"].keys()
    rows = [(name, before["cases"][name]["ratio"], after["cases"][name]["ratio"]) for name in sorted(shared)]
    return sorted(rows, key=lambda row: row[2] / row[1])


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compare two result files.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    for name, old, new in compare(*(json.loads(path.read_text()) for path in (options.before, options.after))):
        print(f"{name:45} {old:.2f} -> {new:.2f} ({new / old - 1:+.0%})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
