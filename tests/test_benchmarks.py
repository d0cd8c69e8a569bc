"""The benchmark harness: what a run was made on, and that figures of different machines stay apart."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager

import pytest
import torch
from benchmarks import compare, floor, frameworks, harness, memory, table
from benchmarks.cases import bert, diffllama, longformer, longt5
from benchmarks.machine import INSTRUCTIONS, MachineError, Setting, describe, machine

from longspan.machine import KEPT, allocator, label, probe


def test_fewer_instructions_are_asked_for_and_obeyed():
    environment = {**os.environ, **INSTRUCTIONS["avx2"]}
    found = probe(environment)
    assert found["aten"] == "AVX2"
    assert found["onednn"] == "Intel AVX2"
    assert found["openblas"] == "Haswell"  # NumPy's products set floors
    assert not found["bf16"]
    assert label(found) == "avx2"


def test_a_run_that_got_other_instructions_than_asked_for_is_refused(monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    with pytest.raises(MachineError, match="asked for avx2, but the libraries use default"):
        machine(Setting("avx2"))


@pytest.mark.parametrize(
    ("libraries", "name"),
    [
        ({"aten": "AVX2", "bf16": False, "onednn": "Intel AVX2"}, "avx2"),
        ({"aten": "AVX2", "bf16": False, "onednn": "Intel AVX2 with Intel DL Boost"}, "avx2-vnni"),
        ({"aten": "AVX512", "bf16": True, "onednn": "Intel AVX-512 with bfloat16 support"}, "avx512-bf16"),
        ({"aten": "AVX512", "bf16": True, "onednn": "Intel AVX-512 with Intel AMX"}, "avx512-bf16-amx"),
    ],
)
def test_instruction_sets_have_short_names(libraries, name):
    assert label(libraries) == name


def test_both_sides_keep_freed_memory_unless_asked_otherwise(monkeypatch):
    for name in (*KEPT, "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    assert allocator(Setting().environment()) == "glibc, memory kept"
    assert allocator(Setting(keeps_memory=False).environment()) == "glibc"
    assert allocator({"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"}) == "libjemalloc.so.2"
    found = {"instructions": "avx2", "allocator": "glibc, memory kept"}
    assert Setting().file(found) == "cpu-avx2"
    assert Setting().file(found | {"allocator": "glibc"}) == "cpu-avx2-fresh"


def test_figures_of_two_machines_are_neither_stored_together_nor_compared(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    found = machine(Setting())
    assert describe(found).count("\n") >= 3
    row = {"about": "a", "peer_seconds": 2.0, "ours_seconds": 1.0, "ratio": 2.0, "difference": 0.0}
    harness.save("cpu", found, {"one": row})
    harness.save("cpu", found, {"two": row | {"ratio": 3.0}})
    stored = json.loads((tmp_path / "cpu.json").read_text())
    assert list(stored["cases"]) == ["one", "two"]
    other = found | {"instructions": "another"}
    with pytest.raises(MachineError, match="instructions"):
        harness.save("cpu", other, {"two": row})
    with pytest.raises(MachineError, match="instructions"):
        compare.compare(stored, {"machine": other, "cases": {}})
    after = {"machine": found, "cases": {"one": row | {"ratio": 1.0}, "two": row | {"ratio": 3.0}}}
    assert compare.compare(stored, after) == [("one", 2.0, 1.0), ("two", 3.0, 3.0)]


def test_lost_rows_come_first_and_then_those_that_miss_what_is_wanted():
    rows = {
        "a": {"ratio": 1.5, "at_least": None},
        "b": {"ratio": 1.5, "at_least": 2.0},
        "c": {"ratio": 0.9, "at_least": None},
        "d": {"ratio": 0.5, "at_least": 1.2},
        "e": {"ratio": 0.8, "at_least": 0.7},  # less than the peer is wanted
        "f": {"ratio": 3.0, "at_least": None, "ours_to_floor": 1.5, "floor_at_most": 1.1},
    }
    assert list(table.ordered(rows)) == ["d", "c", "f", "b", "a", "e"]
    assert [name for name, row in rows.items() if table.is_missed(row)] == ["b", "c", "d", "f"]


def test_what_is_wanted_depends_on_the_instructions():
    wanted = {"avx2": 2.2, "avx512": 2.5, "avx512-bf16": 3.0}
    labels = ("avx2-vnni", "avx512", "avx512-bf16-amx", "neon")
    assert [harness.bar(wanted, name) for name in labels] == [2.2, 2.5, 3.0, None]
    assert harness.bar(1.5, "neon") == 1.5
    assert harness.bar(None, "avx2") is None


@pytest.mark.parametrize(("pair", "rounds"), [(0.1, 7), (10, 3), (20, 3), (40, 1), (200, 1)])
def test_slow_cases_run_in_fewer_rounds(pair, rounds):
    assert harness.count_rounds(7, pair, 30.0) == rounds


def test_a_run_tells_how_far_it_is_stores_each_row_and_stops_in_time(monkeypatch, tmp_path, capsys):
    cases = {name: harness.Case(name, "a case", lambda: None, at_least=1.0) for name in ("a/one", "a/two", "b/three")}
    row = {"about": "a case", "peer_seconds": 2.0, "ours_seconds": 1.0, "ratio": 2.0, "ratio_range": [1.9, 2.1],
           "rounds": 3, "difference": None}  # fmt: skip

    def run(setting, chosen, *arguments):
        if chosen.name == "a/two":
            raise RuntimeError("a/two failed: out of luck")
        return dict(row) if "--side" not in arguments else {f"{arguments[-1]}_peak_bytes": 2**20}

    found = {"cpu": "a cpu", "cores": 2, "memory_gib": 8, "instructions": "avx2", "allocator": "glibc", "python": "3"}
    for name, value in {
        "CASES": cases, "RESULTS": tmp_path, "run_in_process": run, "load_cases": lambda: None,
        "machine": lambda setting: found | {"packages": {}},
    }.items():  # fmt: skip
        monkeypatch.setattr(harness, name, value)
    monkeypatch.setattr("sys.argv", ["harness", "--file", "try", "--only", "b/*", "a/*", "--minutes", "2"])
    assert harness.main() == 1
    said = capsys.readouterr().out
    assert "3 cases, about 4 minutes" in said
    assert said.index("[1/3] b/three") < said.index("[2/3] a/one") < said.index("out of luck")
    assert "failed: a/two" in said
    stored = json.loads((tmp_path / "try.json").read_text())
    assert list(stored["cases"]) == ["a/one", "b/three"]
    assert "2.00 (1.90–2.10)" in (tmp_path / "try.md").read_text()
    stored["cases"]["b/three"]["case_seconds"] = 130.0
    (tmp_path / "try.json").write_text(json.dumps(stored))
    monkeypatch.setattr("sys.argv", ["harness", "--file", "try", "--only", "b/*", "--minutes", "2"])
    assert harness.main() == 0
    assert "b/three: left out, 130 s do not fit" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["harness", "--file", "try", "--only-memory"])  # a/two has no row to add it to
    row["ratio"] = 9.0
    monkeypatch.setattr(harness, "run_in_process", lambda *args: run(*args) | {f"{args[-1]}_peak_bytes": 2**21})
    assert harness.main() == 0
    assert "2 cases, about" in capsys.readouterr().out
    rows = json.loads((tmp_path / "try.json").read_text())["cases"]
    assert [(one["ratio"], one["ours_peak_bytes"], one["case_seconds"]) for one in rows.values()] == [
        (2.0, 2**21, stored["cases"]["a/one"]["case_seconds"]), (2.0, 2**21, 130.0)
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_kernels_of_the_floor_compute_the_product(dtype):
    x, weight = torch.randn(8, 16, dtype=dtype), torch.randn(12, 16, dtype=dtype)
    exact = x.double() @ weight.double().T
    kernels = floor.product_kernels(x, weight)
    assert len(kernels) >= 2
    for run in kernels.values():
        result = torch.as_tensor(run()).double()
        assert float((result - exact).abs().max()) < 8 * torch.finfo(dtype).eps * float(exact.abs().max())


def test_kernels_of_batches_compute_the_product():
    x, y = torch.randn(3, 8, 16), torch.randn(3, 12, 16)
    for run in floor.batched_kernels(x, y).values():
        assert torch.allclose(torch.as_tensor(run()), x @ y.transpose(1, 2), atol=1e-5)


def test_the_floor_adds_up_the_shapes(monkeypatch):
    """Each at its own rate; all operations count, however they are split."""
    rates = {(1, 4, 8, 8): 10.0, floor.READ: 5.0, floor.LARGE: 2.0}
    monkeypatch.setattr(floor, "rate", lambda shape, dtype, rounds: rates[shape])
    layer = floor.linear(4, 8, 8) + floor.Operations({floor.READ: 20.0})
    assert floor.floor_seconds(3 * layer, "float32") == pytest.approx(3 * (512 / 10 + 20 / 5))
    assert floor.floor_seconds(8.0, "float32") == 4.0


def test_rates_are_measured(monkeypatch):
    monkeypatch.setattr(floor, "_READ_BYTES", 1 << 20)
    floor.fastest_kernel.cache_clear()
    operations = floor.attention(2, 4, 6, 8, pairs=10) + floor.Operations({floor.READ: 1e3})
    for dtype in ("float32", "bfloat16"):
        assert 0 < floor.floor_seconds(operations, dtype, rounds=1) < float("inf")
        assert floor.kernels_used(operations, dtype)
    floor.fastest_kernel.cache_clear()


def test_operations_of_the_cases():
    """Sums that were counted by hand: products of an (M, K) by a (K, N) are 2·M·K·N operations."""
    assert sum(bert.encoder_flops((4, 2), layers=1).values()) == 2 * 6 * (4 * 768**2 + 2 * 768 * 3072) + 4 * 20 * 768
    pairs = longformer.band_pairs(1024, 256)
    expected = 2 * 1024 * (4 * 768**2 + 2 * 768 * 3072) + 4 * pairs * 768
    assert sum(longformer.encoder_flops(1, 1024, 1).values()) == pytest.approx(expected)
    expected = 2 * 256 * (4 * 768**2 + 3 * 768 * 2048) + 4 * 768 * longformer.band_pairs(256, 127)
    assert sum(longt5.encoder_flops("local", 256, 1).values()) == pytest.approx(expected)
    assert sum(diffllama.attention_flops(8).values()) == 8 * 9 * 2 * 1024


def test_every_case_has_a_name_of_its_own_and_a_line():
    harness.load_cases()
    assert len(harness.CASES) > 50
    assert all(chosen.about and name.count("/") >= 1 for name, chosen in harness.CASES.items())


def test_a_peer_that_is_not_installed_is_named(monkeypatch, capsys):
    def build():
        raise ModuleNotFoundError("No module named 'openvino'", name="openvino")

    monkeypatch.setattr(harness, "CASES", {"a/peer": harness.Case("a/peer", "a peer", build)})
    monkeypatch.setattr(harness, "load_cases", lambda: None)
    monkeypatch.setattr("sys.argv", ["harness", "--case", "a/peer"])
    assert harness.main() == 0
    assert json.loads(capsys.readouterr().out) == {"missing": "openvino"}


def test_frameworks_are_told_what_they_miss(monkeypatch, tmp_path):
    monkeypatch.setattr(frameworks, "RESULTS", tmp_path)
    short = {"seconds": 1.0, "ratio": 1.0, "peak_bytes": 100, "compile_seconds": 2.0, "difference": 0.0}
    long = {**short, "seconds": 9.0, "ratio": 1.5, "peak_bytes": 890}
    row = frameworks.summary(short, long, (4096, 32768))
    assert row["time_growth"] == 9 / 8
    assert row["memory_growth"] == 8.9 / 8
    assert frameworks.missed("longformer/flax", row) == ["ratio", "time"]
    assert frameworks.missed("diffllama/torch", {**row, "memory_growth": 1.13}) == ["memory"]
    found = machine(Setting())
    frameworks.save(found, {"mega/torch": row})
    frameworks.save(found, {"longformer/flax": row})
    text = (tmp_path / f"frameworks-{found['instructions']}.md").read_text()
    assert text.startswith(describe(found))
    lines = [line for line in text.splitlines() if line.startswith(("| longformer/", "| mega/"))]
    assert [line.split(" | ")[-1] for line in lines] == ["ratio, time |", "time |"]
    with pytest.raises(MachineError, match="cores"):
        frameworks.save(found | {"cores": -1}, {})


@pytest.mark.parametrize("path", sorted(harness.RESULTS.glob("cpu-*.json")), ids=lambda path: path.stem)
def test_tables_are_those_of_their_figures(path):
    assert path.with_suffix(".md").read_text() == harness.render(json.loads(path.read_text()))


@pytest.mark.parametrize("path", sorted(memory.RESULTS.glob("memory.json")), ids=lambda path: path.stem)
def test_the_table_of_memory_is_that_of_its_figures(path):
    assert path.with_suffix(".md").read_text() == memory.render(json.loads(path.read_text()))


def test_memory_of_two_revisions_is_measured_in_turn(monkeypatch, tmp_path):
    asked = []

    @contextmanager
    def checked_out(revision):
        yield tmp_path / revision

    def answer(tree, *name):
        asked.append((tree.name, *name))
        if not name:
            return ["a/one", "b/two"] if tree == memory.ROOT else ["a/one", "c/three"]
        return [len(asked) << 20, 5 << 20]

    monkeypatch.setattr(memory, "checked_out", checked_out)
    monkeypatch.setattr(memory, "asked", answer)
    rows = dict(memory.compare("old", ["a/*", "b/*", "c/*"], rounds=3))
    assert asked[2:] == [("old", "a/one"), (memory.ROOT.name, "a/one")] * 3
    figures = {"before": {"resident": 5 << 20, "tensors": 5 << 20}, "now": {"resident": 6 << 20, "tensors": 5 << 20}}
    assert rows == {"a/one": {"rounds": 3, **figures}}
    monkeypatch.setattr(memory, "RESULTS", tmp_path)
    found = machine(Setting())
    for revision, name in [("older", "a/two"), ("old", "b/two"), ("old", "a/one")]:
        memory.save(revision, found, name, rows["a/one"])
    lines = (tmp_path / "memory.md").read_text().splitlines()
    assert lines[-2:] == [f"| {name} | 3 | 5 | 6 | 5 | 5 |" for name in ("a/one", "b/two")]
    assert not any(line.startswith("| a/two") for line in lines)


def test_tensors_are_counted_while_they_are_alive():
    def run():
        first = torch.ones(1 << 20)
        second = first + 1
        del first
        return second + second

    assert 8 << 20 <= memory.tensor_memory(run) < (8 << 20) + 256  # numbers are tensors too


def test_cases_of_a_tree_are_asked_for_in_a_process_of_its_own():
    assert "longformer/4096/float32" in memory.asked(memory.ROOT)
    with pytest.raises(RuntimeError, match="none failed in"):
        memory.asked(memory.ROOT, "none")
