"""The benchmark harness.

A case builds a peer and longspan on the same weights and inputs. For each case the harness

1. compares the outputs, and refuses to time what disagrees;
2. runs both in turn for several rounds and takes the median of the ratios of neighbouring runs, because machines are
   noisy and drift; the smallest and largest ratio stand beside it;
3. measures the rates of matrix products in the same process, for each shape of the case by the fastest kernel that
   there is, which gives the *floor*: the time that its floating-point operations must take (`benchmarks/floor.py`);
4. measures the peak memory of one run of each in a fresh process.

Results go to `benchmarks/results/<file>.json` and, as a table, to the `.md` beside it after every case: one file for
each instruction set and allocator (`cpu-avx2`, `cpu-avx512-bf16-fresh`, …). A run of some cases keeps the other rows,
but only those of the same machine.

Both sides run with a C library that keeps freed memory: otherwise much of the peer's time is the system's, handing out
fresh pages. `--fresh-memory` leaves the C library as it is.

    python -m benchmarks.harness [--only PATTERN …] [--minutes N] [--seconds N] [--rounds N] [--isa avx2]
                                 [--fresh-memory] [--file NAME] [--list] [--no-memory | --only-memory]

Cases run in the order of the patterns. With `--minutes` none is begun that would, going by its last run, end later.
"""

from __future__ import annotations

import argparse
import ctypes
import fnmatch
import gc
import importlib
import json
import os
import pkgutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.floor import Operations, floor_seconds, kernels_used
from benchmarks.machine import INSTRUCTIONS, MachineError, Setting, check_comparable, describe, machine
from benchmarks.table import is_missed, line, ordered, render

RESULTS = Path(__file__).parent / "results"
#: where another release of a peer lies, which goes before the other packages on the path of its cases
NEWEST = Path(sys.prefix) / "newest"
#: seconds that the rounds of a case may take, and those for which a case is expected to run that never ran
ROUNDS_SECONDS, CASE_SECONDS = 30.0, 75.0
#: a promise: one number, or one for each instruction set
Bar = float | Mapping[str, float] | None


@dataclass
class Work:
    """What one case runs.

    Attributes:
        peer: One run of the peer; returns what `difference` compares.
        ours: One run of longspan.
        difference: Error between the two results, None where two different models have nothing to compare, and
        tolerance: how large it may be.
        flops: Floating-point operations that the case must do, for the floor, by shape or in all; None for no floor.
        floor_dtype: Dtype of the matrix products that give the rates, e.g. `"float32"`.
        extra: Further figures for the report, such as compile times.
        after: Called with the median seconds of peer and longspan; returns further figures.
    """

    peer: Callable[[], Any]
    ours: Callable[[], Any]
    difference: Callable[[Any, Any], float] | None
    tolerance: float = 0.0
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
        at_least: Ratio to the peer that the project wants, or None.
        floor_at_most: Ratio to the floor that it wants, or None.
        rounds: Interleaved rounds at most; fewer where they would take long.
        memory: Measure peak memory.
        newest: The peer is the newest transformers, `.venv/newest`.
    """

    name: str
    about: str
    build: Callable[[], Work]
    at_least: Bar = None
    floor_at_most: Bar = None
    rounds: int = 7
    memory: bool = True
    newest: bool = False


CASES: dict[str, Case] = {}


def case(name: str, about: str, **options: Any) -> Callable[[Callable[[], Work]], Callable[[], Work]]:
    """Register the decorated function as the builder of a case; options as in `Case`."""

    def register(build: Callable[[], Work]) -> Callable[[], Work]:
        if name in CASES:
            raise ValueError(f"case names must be unique. Received twice: {name}")
        CASES[name] = Case(name, about, build, **options)
        return build

    return register


def halved(work: Callable[[str], Work]) -> Work:
    """Float32 beside bfloat16, both longspan, from works on equal weights; their rounding keeps them apart."""
    exact, half = work("float32"), work("bfloat16")
    return Work(
        peer=exact.ours,
        ours=half.ours,
        difference=lambda a, b: float(abs(_exact(a) - _exact(b)).max() / abs(_exact(a)).max()),
        tolerance=0.15,
    )


def _exact(array: Any) -> Any:
    """A tensor of any framework in float32."""
    import numpy as np

    return array.float().numpy() if hasattr(array, "float") else np.asarray(array, np.float32)


def load_cases() -> None:
    """Import every module of `benchmarks.cases`; they must import no framework at the top."""
    package = importlib.import_module("benchmarks.cases")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"benchmarks.cases.{module.name}")


# -- one case, in a process of its own ----------------------------------------------------------------------------


def say(text: str) -> None:
    """Tell the process that began this one how far it is."""
    print(f"# {text}", flush=True)


def measured(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one run, and its result."""
    gc.collect()
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def compare_outputs(chosen: Case, work: Work) -> tuple[float | None, float]:
    """The difference of the first outputs, and seconds of a run of both; exits if they disagree."""
    peer_seconds, peer = measured(work.peer)
    ours_seconds, ours = measured(work.ours)
    difference = None if work.difference is None else float(work.difference(peer, ours))
    if difference is not None and not difference <= work.tolerance:
        raise SystemExit(f"{chosen.name}: outputs differ by {difference:.3g}, allowed {work.tolerance:.3g}; not timed")
    agree = "other models" if difference is None else f"outputs differ by {difference:.1e}"
    say(f"{agree}; first runs: peer {peer_seconds:.2f} s, longspan {ours_seconds:.2f} s")
    return difference, peer_seconds + ours_seconds


def count_rounds(most: int, pair: float, seconds: float) -> int:
    """Rounds of so many seconds each: as many as fit into `seconds`, but three unless that takes twice as long."""
    least = 3 if 3 * pair <= 2 * seconds else 1
    return max(min(most, int(seconds / pair)), min(most, least))


def time_case(chosen: Case, rounds: int | None, seconds: float) -> dict[str, Any]:
    """Compare outputs, then time peer and longspan in turn."""
    work = chosen.build()
    difference, pair = compare_outputs(chosen, work)
    if pair < seconds / 3:  # quick ones are warmed up once more: the first run of each finds cold caches
        pair = measured(work.peer)[0] + measured(work.ours)[0]
    count = rounds or count_rounds(chosen.rounds, pair, seconds)
    say(f"{count} rounds of {pair:.2f} s")
    peer, ours, floors = [], [], []
    for _ in range(count):
        peer.append(measured(work.peer)[0])
        ours.append(measured(work.ours)[0])
        if work.flops is not None:
            floors.append(floor_seconds(work.flops, work.floor_dtype))
    ratios = [p / o for p, o in zip(peer, ours, strict=True)]
    result: dict[str, Any] = {
        "about": chosen.about,
        "difference": difference,
        "peer_seconds": statistics.median(peer),
        "ours_seconds": statistics.median(ours),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "rounds": count,
        **work.extra,
    }
    if chosen.newest:
        result["peer_release"] = f"transformers {importlib.import_module('transformers').__version__}"
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
    for entry in Path("/proc/self/status").read_text().splitlines():
        if entry.startswith(name + ":"):
            return int(entry.split()[1]) * 1024
    raise KeyError(name)


def memory_case(chosen: Case, side: str) -> dict[str, Any]:
    """Peak memory of the first run of one side."""
    work = chosen.build()
    return {f"{side}_peak_bytes": peak_memory(getattr(work, side))}


# -- all cases ------------------------------------------------------------------------------------------------------


def run_in_process(setting: Setting, chosen: Case, *arguments: str) -> dict[str, Any]:
    """Run one step of one case in a fresh process, and print how far it is; returns its figures.

    Raises:
        RuntimeError: the process failed.
    """
    command = [sys.executable, "-m", "benchmarks.harness", "--case", chosen.name, *arguments]
    environment = {
        "USE_TF": "0",
        "USE_FLAX": "0",
        "HF_HUB_OFFLINE": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **setting.environment(),
    }
    if chosen.newest:
        path = [str(NEWEST), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    said = ""
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process:
            assert process.stdout is not None
            for said in process.stdout:
                if said.startswith("# "):
                    print(f"    {said[2:]}", end="", flush=True)
        if process.returncode != 0:
            errors.seek(0)
            raise RuntimeError(f"{chosen.name} failed:\n{errors.read()[-3000:]}{said}")
    return json.loads(said)


def measure(
    setting: Setting, chosen: Case, options: argparse.Namespace, stored: Mapping[str, Any] | None
) -> dict[str, Any]:
    """All figures of a case: time, or the stored row where only its memory is asked for, then memory."""
    start = time.monotonic()
    if options.only_memory:
        assert stored is not None
        return {**stored, **peaks(setting, chosen)}
    rounds = ["--rounds", str(options.rounds)] if options.rounds else []
    result = run_in_process(setting, chosen, "--seconds", str(options.seconds), *rounds)
    if "missing" not in result and chosen.memory and not options.no_memory:
        result |= peaks(setting, chosen)
    return result | {"case_seconds": time.monotonic() - start}


def peaks(setting: Setting, chosen: Case) -> dict[str, Any]:
    """Peak memory of one run of each side."""
    return run_in_process(setting, chosen, "--side", "peer") | run_in_process(setting, chosen, "--side", "ours")


def bar(wanted: Bar, instructions: str) -> float | None:
    """The promise for an instruction set such as `avx2-vnni`: that of the longest name which its own begins with."""
    if not isinstance(wanted, Mapping):
        return wanted
    fitting = [name for name in wanted if instructions.startswith(name)]
    return wanted[max(fitting, key=len)] if fitting else None


def stored_results(file: str, found: dict[str, Any]) -> dict[str, Any]:
    """What a result file holds; nothing yet if it is not there.

    Raises:
        MachineError: its rows are of another machine or setting.
    """
    path = RESULTS / f"{file}.json"
    stored = json.loads(path.read_text()) if path.exists() else {"cases": {}, "machine": found}
    check_comparable(stored["machine"], found)
    return stored


def save(file: str, found: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
    """Merge results into the JSON file and write the table anew, lost rows first.

    Raises:
        MachineError: the file's other rows are of another machine or setting.
    """
    RESULTS.mkdir(exist_ok=True)
    stored = stored_results(file, found)
    stored["machine"] = found
    cases = ordered({**stored["cases"], **results})
    stored["cases"] = {name: dict(sorted(row.items())) for name, row in cases.items()}
    path = RESULTS / f"{file}.json"
    path.write_text(json.dumps(stored, indent=2) + "\n")
    path.with_suffix(".md").write_text(render(stored))


def chosen_names(patterns: list[str]) -> list[str]:
    """Cases whose name matches a pattern, in the order of the patterns."""
    return list(dict.fromkeys(n for pattern in patterns for n in sorted(CASES) if fnmatch.fnmatch(n, pattern)))


def parse(arguments: list[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description="Run the benchmarks.")
    parser.add_argument("--only", nargs="+", default=["*"], help="run the cases whose name matches a pattern")
    parser.add_argument("--minutes", type=float, help="begin no case that would end later")
    parser.add_argument("--seconds", type=float, default=ROUNDS_SECONDS, help="how long a case's rounds may take")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default: what fits, at most as the case says)")
    parser.add_argument("--file", help="name of the result file (default: by instructions and allocator)")
    parser.add_argument("--isa", choices=tuple(INSTRUCTIONS), help="use these instructions only, on both sides")
    parser.add_argument("--fresh-memory", action="store_true", help="leave the C library's allocator as it is")
    parser.add_argument("--list", action="store_true", help="list the cases")
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument("--no-memory", action="store_true", help="do not measure memory")
    memory.add_argument("--only-memory", action="store_true", help="measure the memory of rows that the file has")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=("peer", "ours"), help=argparse.SUPPRESS)
    return parser, parser.parse_args(arguments)


def main() -> int:
    """Command line of the harness."""
    parser, options = parse()
    load_cases()
    if options.case:
        return run_one(CASES[options.case], options)
    names = chosen_names(options.only)
    if options.list or not names:
        print("\n".join(f"{name:45} {CASES[name].about}" for name in (names or sorted(CASES))))
        return 0 if names else 1
    setting = Setting(options.isa, keeps_memory=not options.fresh_memory)
    try:
        found = machine(setting)
        file = options.file or setting.file(found)
        before = stored_results(file, found)["cases"]
    except MachineError as error:
        parser.error(str(error))
    if options.only_memory:
        names = [name for name in names if name in before and CASES[name].memory]
    expected = {name: before.get(name, {}).get("case_seconds", CASE_SECONDS) for name in names}
    print(describe(found))
    print(f"{len(names)} cases, about {sum(expected.values()) / 60:.0f} minutes", flush=True)
    return run_all(setting, found, file, expected, before, options)


def run_one(chosen: Case, options: argparse.Namespace) -> int:
    """One step of a case; its last line of output holds the figures."""
    try:
        if options.side:
            figures = memory_case(chosen, options.side)
        else:
            figures = time_case(chosen, options.rounds, options.seconds)
    except ModuleNotFoundError as error:  # a peer that is not installed
        figures = {"missing": error.name}
    print(json.dumps(figures))
    return 0


def run_all(
    setting: Setting,
    found: dict[str, Any],
    file: str,
    expected: dict[str, float],
    before: Mapping[str, Any],
    options: argparse.Namespace,
) -> int:
    """Run the cases, store each at once, and say what was missed; returns 1 if one failed."""
    start, missed, failed = time.monotonic(), [], []
    for number, (name, seconds) in enumerate(expected.items(), 1):
        left = None if options.minutes is None else options.minutes * 60 - (time.monotonic() - start)
        if left is not None and seconds > left:
            print(f"{name}: left out, {seconds:.0f} s do not fit into the {max(left, 0):.0f} s that are left")
            continue
        print(f"[{number}/{len(expected)}] {name}: {CASES[name].about}; about {seconds:.0f} s", flush=True)
        try:
            result = measure(setting, CASES[name], options, before.get(name))
        except RuntimeError as error:
            print(error, flush=True)
            failed.append(name)
            continue
        if "missing" in result:
            print(f"    not run: the package {result['missing']} is not installed", flush=True)
            continue
        for kind in ("at_least", "floor_at_most"):
            result[kind] = bar(getattr(CASES[name], kind), found["instructions"])
        save(file, found, {name: result})
        print(f"    {line(result)}", flush=True)
        missed += [name] if is_missed(result) else []
    print(f"{(time.monotonic() - start) / 60:.1f} minutes; missed: {', '.join(missed) or 'none'}")
    print(f"failed: {', '.join(failed)}" if failed else "", end="\n" if failed else "")
    return 1 if failed else 0


if __name__ == "__main__":
    # the registry must be the one that the case modules import
    from benchmarks import harness

    raise SystemExit(harness.main())
