"""docs/evidence.md says what the results say: its tables, its plots, and its sentences."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import docs_evidence


@pytest.mark.parametrize("language", docs_evidence.PAGES)
def test_tables_are_up_to_date(language):
    text = docs_evidence.PAGES[language].read_text(encoding="utf-8")
    shown = [name for _, name, _ in docs_evidence.MARKED.findall(text)]
    assert [name for name in shown if name in docs_evidence.DRAWN] == docs_evidence.drawn()
    assert docs_evidence.filled(language) == text, "run python scripts/docs_evidence.py"


@pytest.mark.parametrize("name", docs_evidence.drawn())
def test_plots_are_drawn_from_the_results(name):
    svg = (docs_evidence.PLOTS / f"{name}.svg").read_text(encoding="utf-8")
    assert f"results {docs_evidence.digest(name)}" in svg, "run python scripts/docs_evidence.py"
    assert "#ffffff" not in svg  # nothing white, which would be a box on a dark page
    for page in docs_evidence.PAGES.values():
        assert f"](evidence/{name}.svg)" in page.read_text(encoding="utf-8")


def test_prose_holds_no_figure_of_a_result():
    """Results stand in the tables only."""
    prose = docs_evidence.MARKED.sub("", docs_evidence.PAGES["en"].read_text(encoding="utf-8"))
    assert not re.findall(r"\d+\.\d+ ?%|\d+ ?%", prose)
