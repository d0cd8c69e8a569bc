"""The benchmark harness.

A case builds a peer and longspan on the same weights and inputs. For each case the harness

1. compares the outputs, and refuses to time what disagrees;
2. runs both in turn for several rounds and takes the median of the ratios of neighbouring runs, because machines are
   noisy and drift;
3. measures the rates of matrix products in the same process, for each shape of the case by the fastest kernel that
   there is, which gives the *floor*: the time that its floating-point operations must take (`benchmarks/floor.py`);
4. measures the peak memory of one run of each in a fresh process.

Results go to `benchmarks/results/<file>.json` and, as a table, to the `.md` beside it: one file for each instruction
set and allocator (`cpu-avx2`, `cpu-avx512-bf16-fresh`, …). A run of some cases keeps the other rows, but only those of
the same machine.

Both sides run with a C library that keeps freed memory: otherwise much of the peer's time is the system's, handing out
fresh pages. `--fresh-memory` leaves the C library as it is.

    python -m benchmarks.harness [--only PATTERN] [--rounds N] [--isa avx2] [--fresh-memory] [--file NAME] [--list]
                                 [--no-memory]
"""

from __future__ import annotations

import argparse
import ctypes
import fnmatch
import gc
import importlib
import json
import pkgutil
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.floor import Operations, floor_seconds, kernels_used, timed
from benchmarks.machine import INSTRUCTIONS, MachineError, Setting, check_comparable, describe, machine

RESULTS = Path(__file__).parent / "results"


@dataclass
class Work:
    """What one case runs.

    Attributes:
        peer: One run of the peer; returns what `difference` compares.
        ours: One run of longspan.
        difference: Error between the two results, and
        tolerance: how large it may be.
        flops: Floating-point operations that the case must do, for the floor, by shape or in all; None for no floor.
        floor_dtype: Dtype of the matrix products that give the rates, e.g. `"float32"`.
        extra: Further figures for the report, such as compile times.
        after: Called with the median seconds of peer and longspan; returns further figures.
    """

    peer: Callable[[], Any]
    ours: Callable[[], Any]
    difference: Callable[[Any, Any], float]
    tolerance: float
    flops: float | Operations | None = None
    floor_dtype: str = "float32"
    extra: dict[str, Any] = field(default_factory=dict)
    after: Callable[[float, float], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Case:
    """A registered case.

    Attributes:
        name: Unique name, `family/what/dtype`.
        about: One line for the table.
        build: Makes the work; runs in a process of its own.
        at_least: Ratio to the peer that the project promises, or None.
        floor_at_most: Ratio to the floor that it promises, or None.
        rounds: Interleaved rounds.
        memory: Measure peak memory.
    """

    name: str
    about: str
    build: Callable[[], Work]
    at_least: float | None = None
    floor_at_most: float | None = None
    rounds: int = 7
    memory: bool = True


CASES: dict[str, Case] = {}


def case(name: str, about: str, **options: Any) -> Callable[[Callable[[], Work]], Callable[[], Work]]:
    """Register the decorated function as the builder of a case; options as in `Case`."""

    def register(build: Callable[[], Work]) -> Callable[[], Work]:
        if name in CASES:
            raise ValueError(f"case names must be unique. Received twice: {name}")
        CASES[name] = Case(name, about, build, **options)
        return build

    return register


def load_cases() -> None:
    """Import every module of `benchmarks.cases`; they must import no framework at the top."""
    package = importlib.import_module("benchmarks.cases")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"benchmarks.cases.{module.name}")


# -- one case, in a process of its own ----------------------------------------------------------------------------


def time_case(chosen: Case, rounds: int | None) -> dict[str, Any]:
    """Compare outputs, then time peer and longspan in turn."""
    work = chosen.build()
    difference = float(work.difference(work.peer(), work.ours()))
    if not difference <= work.tolerance:
        raise SystemExit(f"{chosen.name}: outputs differ by {difference:.3g}, allowed {work.tolerance:.3g}; not timed")
    work.peer()
    work.ours()
    peer, ours, floors = [], [], []
    for _ in range(rounds or chosen.rounds):
        for run, seconds in ((work.peer, peer), (work.ours, ours)):
            gc.collect()
            seconds.append(timed(run))
        if work.flops is not None:
            floors.append(floor_seconds(work.flops, work.floor_dtype))
    result: dict[str, Any] = {
        "about": chosen.about,
        "difference": difference,
        "peer_seconds": statistics.median(peer),
        "ours_seconds": statistics.median(ours),
        "ratio": statistics.median(p / o for p, o in zip(peer, ours, strict=True)),
        "at_least": chosen.at_least,
        "floor_at_most": chosen.floor_at_most,
        "rounds": len(peer),
        **work.extra,
    }
    if work.flops is not None:
        result["floor_kernel"] = kernels_used(work.flops, work.floor_dtype)
        result["floor_seconds"] = statistics.median(floors)
        result["ours_to_floor"] = statistics.median(o / f for o, f in zip(ours, floors, strict=True))
        result["peer_to_floor"] = statistics.median(p / f for p, f in zip(peer, floors, strict=True))
    if work.after is not None:
        result.update(work.after(result["peer_seconds"], result["ours_seconds"]))
    return result


def peak_memory(run: Callable[[], Any]) -> int:
    """Bytes by which the resident memory of this process rises at most during one run."""
    gc.collect()
    c_library = ctypes.CDLL(None)
    if hasattr(c_library, "malloc_trim"):  # what building the case freed would hide what the run takes
        c_library.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark
    before = status("VmRSS")
    result = run()
    peak = status("VmHWM")
    del result
    return max(0, peak - before)


def status(name: str) -> int:
    """A line of this process's status in bytes: VmRSS, resident memory; VmHWM, the most that it was."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def memory_case(chosen: Case, side: str) -> dict[str, Any]:
    """Peak memory of the first run of one side."""
    work = chosen.build()
    return {f"{side}_peak_bytes": peak_memory(getattr(work, side))}


# -- all cases ------------------------------------------------------------------------------------------------------


def run_in_process(setting: Setting, name: str, *arguments: str) -> dict[str, Any]:
    """Run one step of one case in a fresh process; returns its figures."""
    command = [sys.executable, "-m", "benchmarks.harness", "--case", name, *arguments]
    environment = {
        "USE_TF": "0",
        "USE_FLAX": "0",
        "HF_HUB_OFFLINE": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **setting.environment(),
    }
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}{done.stdout[-1000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def save(file: str, found: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
    """Merge results into the JSON file and write the table anew.

    Raises:
        MachineError: the file's other rows are of another machine or setting.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{file}.json"
    stored = json.loads(path.read_text()) if path.exists() else {"cases": {}, "machine": found}
    check_comparable(stored["machine"], found)
    stored["machine"] = found
    stored["cases"] = dict(sorted({**stored["cases"], **results}.items()))
    path.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")
    path.with_suffix(".md").write_text(render(stored))


def render(stored: dict[str, Any]) -> str:
    """The Markdown table of a result file."""
    lines = [
        describe(stored["machine"]),
        "",
        "Ratio: time of the peer ÷ time of longspan, median over interleaved rounds. Floor: time ÷ time that the "
        "case's matrix products take, each shape by its fastest kernel of PyTorch and NumPy in the same run, or, for "
        "tokens that are generated, reading the weights. Memory: peak rise of one run. Times are of this machine and "
        "this run; read the ratios. Remade by `make bench`.",
        "",
        "| case | what | peer s | longspan s | ratio | wanted | ÷ floor (peer) | wanted | peak MiB (peer) | differs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in stored["cases"].items():
        floor = f"{row['ours_to_floor']:.2f} ({row['peer_to_floor']:.2f})" if "ours_to_floor" in row else "–"
        wanted = f"≥ {row['at_least']}" if row.get("at_least") else "–"
        wanted_floor = f"≤ {row['floor_at_most']}" if row.get("floor_at_most") else "–"
        memory = "–"
        if "ours_peak_bytes" in row:
            memory = f"{row['ours_peak_bytes'] / 2**20:.0f} ({row['peer_peak_bytes'] / 2**20:.0f})"
        lines.append(
            f"| {name} | {row['about']} | {row['peer_seconds']:.3f} | {row['ours_seconds']:.3f} | {row['ratio']:.2f} | "
            f"{wanted} | {floor} | {wanted_floor} | {memory} | {row['difference']:.1e} |"
        )
    known = {
        "about", "difference", "peer_seconds", "ours_seconds", "ratio", "at_least", "floor_at_most", "rounds",
        "floor_seconds", "ours_to_floor", "peer_to_floor", "ours_peak_bytes", "peer_peak_bytes",
    }  # fmt: skip
    notes = []
    for name, row in stored["cases"].items():
        figures = [f"{key} {_number(value)}" for key, value in row.items() if key not in known]
        notes += [f"- {name}: {'; '.join(figures)}"] if figures else []
    return "\n".join([*lines, *(["", "Further figures:", "", *notes] if notes else [])]) + "\n"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> int:
    """Command line of the harness."""
    parser = argparse.ArgumentParser(description="Run the benchmarks.")
    parser.add_argument("--only", nargs="+", default=["*"], help="run the cases whose name matches a pattern")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default: as the case says)")
    parser.add_argument("--file", help="name of the result file (default: by instructions and allocator)")
    parser.add_argument("--isa", choices=tuple(INSTRUCTIONS), help="use these instructions only, on both sides")
    parser.add_argument("--fresh-memory", action="store_true", help="leave the C library's allocator as it is")
    parser.add_argument("--list", action="store_true", help="list the cases")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=("peer", "ours"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    load_cases()
    if options.case:
        chosen = CASES[options.case]
        try:
            figures = memory_case(chosen, options.side) if options.side else time_case(chosen, options.rounds)
        except ModuleNotFoundError as error:  # a peer that is not installed
            figures = {"missing": error.name}
        print(json.dumps(figures))
        return 0
    names = [name for name in sorted(CASES) if any(fnmatch.fnmatch(name, pattern) for pattern in options.only)]
    if options.list or not names:
        print("\n".join(f"{name:45} {CASES[name].about}" for name in (names or sorted(CASES))))
        return 0 if names else 1
    setting = Setting(options.isa, keeps_memory=not options.fresh_memory)
    missed = 0
    try:
        found = machine(setting)
        file = options.file or setting.file(found)
        save(file, found, {})
    except MachineError as error:
        parser.error(str(error))
    print(describe(found), flush=True)
    for name in names:
        rounds = ["--rounds", str(options.rounds)] if options.rounds else []
        result = run_in_process(setting, name, *rounds)
        if "missing" in result:
            print(f"{name:45} not run: the package {result['missing']} is not installed", flush=True)
            continue
        if CASES[name].memory and not options.no_memory:
            for side in ("peer", "ours"):
                result |= run_in_process(setting, name, "--side", side)
        save(file, found, {name: result})
        missed += report(name, result)
    print(f"peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB; missed: {missed}")
    return 0


def report(name: str, result: dict[str, Any]) -> bool:
    """Print one line; returns True if a promise was missed."""
    floor, limit = result.get("ours_to_floor"), result["floor_at_most"]
    slow = result["at_least"] is not None and result["ratio"] < result["at_least"]
    slow |= limit is not None and floor is not None and floor > limit
    parts = [f"ratio {result['ratio']:.2f}" + (f" (wanted {result['at_least']})" if result["at_least"] else "")]
    if floor is not None:
        parts.append(f"÷ floor {floor:.2f}" + (f" (wanted {limit})" if limit else ""))
    if "ours_peak_bytes" in result:
        parts.append(f"peak {result['ours_peak_bytes'] / 2**20:.0f} MiB, peer {result['peer_peak_bytes'] / 2**20:.0f}")
    print(f"{name:45} {', '.join(parts)}{'  MISSED' if slow else ''}", flush=True)
    return bool(slow)


if __name__ == "__main__":
    # the registry must be the one that the case modules import
    from benchmarks import harness

    raise SystemExit(harness.main())
