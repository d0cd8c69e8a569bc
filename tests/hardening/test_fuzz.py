"""Every fuzz target runs without atheris, on seeded mutants."""

from __future__ import annotations

import pytest
from tests.hardening.conftest import IS_LONG
from tests.hardening.fuzz import READERS, make_step, run_seeded

COUNT = 1000 if IS_LONG else 60


@pytest.mark.parametrize("name", READERS)
def test_readers_take_or_refuse(tmp_path, figures, name):
    figures["cases"] = figures.get("cases", 0) + COUNT
    taken = run_seeded(name, tmp_path, COUNT)
    assert taken < COUNT or name in ("txt", "html", "csv")  # in which nothing is an error
    figures["held"] = figures.get("held", 0) + COUNT


def test_a_fault_is_not_taken_for_a_refusal(tmp_path):
    def read(path):
        raise ValueError(path.read_bytes())

    with pytest.raises(ValueError, match="mutant"):
        make_step(tmp_path / "file", read)(b"a mutant")
