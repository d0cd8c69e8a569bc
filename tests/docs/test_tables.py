"""Measured tables in README and guides are those of the files under benchmarks/results."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import docs_tables


@pytest.mark.parametrize("name", docs_tables.PAGES)
def test_tables_are_up_to_date(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert len(docs_tables.MARKED.findall(text)) == 1
    assert docs_tables.filled(ROOT / name) == text, "run python scripts/docs_tables.py"


def test_the_short_table_shows_wins_losses_and_the_kind_of_processor():
    table = docs_tables.table("short", "en")
    assert "AVX2" in table.splitlines()[0]
    assert "ModernBERT" in table
    ratios = [float(one) for one in re.findall(r"(?<=\| )\**(\d+\.\d\d)", table)]
    stored = json.loads((ROOT / "benchmarks/results/cpu-avx2.json").read_text())["cases"]
    assert f"{stored['longformer/4096/float32']['ratio']:.2f}" in table
    assert max(ratios) > 2
    slower = [case for file in docs_tables.FILES for case, found in
              json.loads((ROOT / f"benchmarks/results/{file}.json").read_text())["cases"].items()
              if found.get("ratio", 2) < 1 and case in docs_tables.README]  # fmt: skip
    assert table.count("**") == 2 * len(slower) > 0


def test_a_missed_target_has_a_star():
    found = {"ratio": 1.184, "at_least": 1.6, "peer_seconds": 3.36, "ours_seconds": 2.84}
    assert docs_tables.cell(found, with_seconds=True) == "1.18\\* (3.36 s → 2.84 s)"
    assert docs_tables.cell({**found, "ratio": 0.75, "at_least": None}, with_seconds=False) == "**0.75**"
    floor = {**found, "ratio": 1.4, "at_least": None, "ours_to_floor": 1.14, "floor_at_most": 1.12}
    assert docs_tables.cell(floor, with_seconds=False) == "1.40\\*"
    assert docs_tables.cell({**floor, "ours_to_floor": 1.1}, with_seconds=False) == "1.40"
    assert docs_tables.cell(None, with_seconds=True) == "–"


def test_rows_are_cases_of_the_harness():
    from benchmarks import harness

    harness.load_cases()
    assert set(docs_tables.CASES) <= set(harness.CASES)
    assert {case for cases in docs_tables.TABLES.values() for case in cases} <= set(docs_tables.CASES)
