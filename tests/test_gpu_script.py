"""The run on a GPU, `make gpu`, on the CPU at toy sizes: every kind of step works and can fail."""

from __future__ import annotations

import json

import pytest
import torch
from benchmarks import gpu


@pytest.fixture(autouse=True)
def _no_programs_kept():
    yield
    torch._dynamo.reset()


def test_steps_run_and_write_their_rows(tmp_path):
    path = tmp_path / "results" / "gpu.json"
    run = gpu.Run("cpu", small=True, backend="eager")
    only = ("parity/*", "attention/*/eager", "attention/*/flex", "attention/*/blocked", "speed/*", "compile/bert")
    rows = gpu.run_all(run, path, (*only, "generation/diffllama/*"))
    assert len(rows) >= 20
    assert [name for name, row in rows.items() if not row["passed"]] == []
    assert all(row["error"] < 2e-6 for name, row in rows.items() if name.startswith("parity/"))
    assert rows["speed/bert/ragged"]["sdpa_ratio"] > 0
    assert json.loads(path.read_text())["rows"] == rows
    table = path.with_suffix(".md").read_text()
    assert all(f"| {name} | ok" in table for name in rows)


def test_all_kinds_of_attention_are_among_the_steps():
    """An implementation that a family has learned since must be checked too."""
    from longspan.models.bert.torch_attention import ATTENTION
    from longspan.ops.torch.differential import IMPLEMENTATIONS
    from longspan.ops.torch.gated_attention import GATED_ATTENTION
    from longspan.ops.torch.sliding_window import DISPATCHER

    known = {"bert": ATTENTION, "longformer": DISPATCHER, "longt5": DISPATCHER, "diffllama": IMPLEMENTATIONS,
             "mega": GATED_ATTENTION}  # fmt: skip
    for family, dispatcher in known.items():
        assert set(gpu.FAMILIES[family].implementations) == set(dispatcher.implementations)


@pytest.fixture
def quick_header(monkeypatch):
    """The header without asking the libraries, which takes seconds."""
    monkeypatch.setattr(gpu, "machine", lambda setting: {"cpu": "any", "packages": {"torch": torch.__version__}})


@pytest.mark.usefixtures("quick_header")
def test_wrong_numbers_fail_a_step_and_the_others_go_on(tmp_path, monkeypatch):
    real = gpu.states_and_gradients

    def disturbed(model, inputs):
        found = real(model, inputs)
        return found | {"states": found["states"] * 1.001} if type(model).__module__.startswith("longspan") else found

    monkeypatch.setattr(gpu, "states_and_gradients", disturbed)
    rows = gpu.run_all(gpu.Run("cpu", small=True), tmp_path / "gpu.json", ("parity/bert", "speed/flash"))
    assert [row["passed"] for row in rows.values()] == [False, True]


@pytest.mark.usefixtures("quick_header")
def test_what_the_time_does_not_reach_is_listed(tmp_path):
    rows = gpu.run_all(gpu.Run("cpu", small=True, minutes=-1), tmp_path / "gpu.json", ("parity/*",))
    assert {row["note"] for row in rows.values()} == {"not reached in time"}
