"""Peak memory of this code beside that of an earlier revision, on one machine: `python -m benchmarks.memory REVISION`.

The resident memory of a run depends on the machine, on the allocator and on the holes that building a case leaves in
the heap: the same code differs from one machine and one run to another. So both revisions are measured in turn, in
fresh processes, with the cases of their own harness; and beside the resident memory stands what tensors take, which is
the same in every run. The table goes to `benchmarks/results/memory.{json,md}`.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Row = dict[str, Any]
#: the cases in PyTorch whose memory is compared
PATTERNS = (
    "bert/full/*", "bert/ragged/float32", "bert/ragged/bfloat16", "bert/train/*", "longformer/4096/*",
    "longformer/train/*", "longt5/local/*", "longt5/global/*", "diffllama/forward/*", "diffllama/train/*",
    "mega/4096/*", "mega/chunked/4096/*", "mega/train/*", "mega/chunked/train/*",
)  # fmt: skip


def tensor_memory(run: Callable[[], Any]) -> int:
    """Bytes of the CPU tensors that one run makes, at most at a time."""
    from torch.profiler import ProfilerActivity, profile

    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    found: Any = profiler.profiler
    events = [event for event in found.kineto_results.events() if event.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most


def probe(name: str | None) -> Any:
    """In the tree of either revision: the names of its cases, or of one the bytes of resident memory and of tensors."""
    harness = importlib.import_module("benchmarks.harness")
    harness.load_cases()
    if name is None:
        return sorted(harness.CASES)
    run = harness.CASES[name].build().ours
    return [harness.peak_memory(run), tensor_memory(run)]


def of_machine() -> Any:
    """`benchmarks.machine`, which a probe of another tree does not import."""
    return importlib.import_module("benchmarks.machine")


def asked(tree: Path, *name: str) -> Any:
    """What `probe` says in a process of its own that imports the package and the cases of a tree."""
    path = os.pathsep.join([str(tree / "src"), str(tree)])
    environment = {**os.environ, "PYTHONPATH": path, "USE_TF": "0", "USE_FLAX": "0", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-W", "ignore", __file__, "--probe", *name]
    with tempfile.TemporaryFile("w+") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=tree)
        if done.returncode != 0:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(name)} failed in {tree}:\n{errors.read()[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A folder with the files of a revision, for a while."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def compare(revision: str, patterns: Sequence[str], rounds: int) -> Iterator[tuple[str, Row]]:
    """Rows of the cases that both have: medians of resident memory, and the tensors' memory, in bytes."""
    with checked_out(revision) as tree:
        both = set(asked(ROOT)) & set(asked(tree))
        names = [name for pattern in patterns for name in sorted(both) if fnmatch(name, pattern)]
        for name in dict.fromkeys(names):
            found: dict[str, list[list[int]]] = {"before": [], "now": []}
            for _ in range(rounds):
                for key, place in (("before", tree), ("now", ROOT)):
                    found[key].append(asked(place, name))
            row: Row = {"rounds": rounds}
            for key, each in found.items():
                row[key] = {"resident": int(statistics.median(one[0] for one in each)), "tensors": each[0][1]}
            yield name, row


def save(revision: str, found: dict[str, Any], name: str, row: Row) -> None:
    """Write a row beside those of the same machine and the same earlier revision."""
    path = RESULTS / "memory.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    cases = stored["cases"] if (stored.get("machine"), stored.get("revision")) == (found, revision) else {}
    stored = {"machine": found, "revision": revision, "cases": dict(sorted({**cases, name: row}.items()))}
    path.write_text(json.dumps(stored, indent=2) + "\n")
    path.with_suffix(".md").write_text(render(stored))


def render(stored: dict[str, Any]) -> str:
    """The Markdown table of a result file."""
    lines = [
        of_machine().describe(stored["machine"]),
        "",
        f"Peak memory in MiB of one run of longspan, before (`{stored['revision']}`) and now, both of this machine: "
        "rise of the resident memory in a first run, median of so many processes in turn, and what CPU tensors take. "
        "Resident memory holds kernels and libraries that a first run loads, and gaps in the heap, which "
        "differ from run to run. Remade by `python -m benchmarks.memory REVISION`.",
        "",
        "| case | processes | resident before | now | tensors before | now |",
        "|---|---|---|---|---|---|",
        *(_line(name, row) for name, row in stored["cases"].items()),
    ]
    return "\n".join(lines) + "\n"


def _line(name: str, row: Row) -> str:
    figures = [row[key][kind] / 2**20 for kind in ("resident", "tensors") for key in ("before", "now")]
    return f"| {name} | {row['rounds']} | {' | '.join(f'{figure:.0f}' for figure in figures)} |"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision", nargs="?", help="the earlier revision, as git knows it")
    parser.add_argument("--only", nargs="+", default=PATTERNS, help="compare the cases whose name matches a pattern")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each")
    parser.add_argument("--probe", nargs="?", const="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe is not None:
        print(json.dumps(probe(options.probe or None)))
        return 0
    if options.revision is None:
        parser.error("which revision?")
    setting = of_machine().Setting()
    os.environ.update(setting.environment())
    found = of_machine().machine(setting)
    for name, row in compare(options.revision, options.only, options.rounds):
        save(options.revision, found, name, row)
        print(_line(name, row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
