"""Embedding by two Ray actors beside two plain processes, each with half of the files and half of the cores.

`python -m benchmarks.ray_embedding` writes `benchmarks/results/ray_embedding.json`; it takes about five minutes on two
cores. Times are of the work, without starting Python, Ray and models, which are given beside them. Run it on a quiet
machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.corpus import docstrings
from benchmarks.machine import Setting, machine

RESULTS = Path(__file__).parent / "results" / "ray_embedding.json"
PROMISE = 0.9


def embed(words: list[str], threads: int) -> subprocess.Popen[str]:
    """A run of `longspan embed` that says in JSON what it did."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "longspan", "embed", *words, "--json"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def results(runs: list[subprocess.Popen[str]]) -> dict[str, Any]:
    """Tokens a second of runs side by side, and the seconds that they took to begin."""
    reports = [json.loads(run.communicate()[0].splitlines()[-1]) for run in runs]
    if any(run.returncode for run in runs):
        raise RuntimeError("a run failed")
    tokens = sum(report["num_new_tokens"] for report in reports)
    seconds = max(report["seconds"]["total"] for report in reports)
    load = max(report["seconds"]["load"] for report in reports)
    return {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds, "load_seconds": load}


def compare(folder: Path, number: int, cores: int) -> dict[str, Any]:
    """One round."""
    threads = max(1, cores // 2)
    docs, name = str(folder / "docs"), f"{number}.parquet"
    plain = results(
        [embed([docs, "-o", str(folder / f"part-{i}-{name}"), "--shard", f"{i}/2"], threads) for i in (1, 2)]
    )
    ray = results([embed([docs, "-o", str(folder / f"ray-{name}"), "--ray", "--ray-actors", "2"], threads)])
    if plain["tokens"] != ray["tokens"]:
        raise RuntimeError("both must embed the same")
    return {"plain": plain, "ray": ray, "ratio": ray["tokens_per_second"] / plain["tokens_per_second"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=8000, help="documentation strings to embed")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with TemporaryDirectory(prefix="longspan-") as scratch:
        folder = Path(scratch)
        (folder / "docs").mkdir()
        texts = docstrings(asked.texts)
        for start in range(0, len(texts), 100):
            lines = (json.dumps({"text": text}) + "\n" for text in texts[start : start + 100])
            (folder / "docs" / f"{start:06}.jsonl").write_text("".join(lines))
        rounds = [compare(folder, number, os.cpu_count() or 1) for number in range(asked.rounds)]
    ratio = statistics.median(one["ratio"] for one in rounds)
    found = {"machine": machine(Setting()), "texts": asked.texts, "ratio": ratio, "promise": PROMISE, "rounds": rounds}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(f"two actors embed at {ratio:.2f} of two plain processes (promise {PROMISE}); {RESULTS}")
    return int(ratio < PROMISE)


if __name__ == "__main__":
    sys.exit(main())
