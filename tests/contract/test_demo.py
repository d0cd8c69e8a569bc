"""The demonstration takes as much as the machine reads in time, and names the log of an installation that fails."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("demo_of_test", ROOT / "scripts" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo_of_test", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    return module


@pytest.mark.parametrize(("rate", "num_whole"), [(100, 1), (1_000, 1), (1_600, 2), (100_000, 3)])
def test_slower_machines_read_less(
    demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float, num_whole: int
) -> None:
    (tmp_path / "speed.json").write_text(json.dumps({"tokens_per_second": rate}))
    steps: list[tuple[str, ...]] = []
    demo.run_all = lambda found: steps.extend(found) or 1
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    assert demo.main() == 1
    assert [step[0] for step in steps] == ["embed", "search", "embed", "search", "classify", "explain"]
    files = [Path(word) for word in steps[0][1:-4]]
    assert {"shelve.py", "handlers.py"} <= {path.name for path in files}, "what the queries ask for is always read"
    sizes = sum(sum(one.stat().st_size for one in path.rglob("*.py")) if path.is_dir() else path.stat().st_size
                for path in files)  # fmt: skip
    assert sizes / demo.CHARACTERS_PER_TOKEN <= max(demo.LEAST_TOKENS, rate * demo.SECONDS)
    assert len(steps[2][1:-6]) == num_whole


def test_what_pip_says_is_in_a_log_that_an_error_names() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "the installation failed: see $(LOG)" in makefile
    rules = makefile[makefile.index("$(VENV)/torch.stamp:") : makefile.index("$(VENV)/test.stamp:")]
    installs = [line for line in rules.splitlines() if "$(INSTALL)" in line]
    assert len(installs) == 3
    assert all(line.startswith("\t@") and line.endswith("$(LOGGED)") for line in installs)
