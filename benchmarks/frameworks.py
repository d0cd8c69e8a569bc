"""One model in PyTorch, Flax and Keras: seconds of a forward pass, peak memory, and how both grow with the length.

    python -m benchmarks.frameworks [--only FAMILY ...] [--isa avx2] [--rounds N] [--quick]

writes `benchmarks/results/frameworks-<instructions>.json` and the table beside it. `--quick` tries everything on short
inputs and writes nothing. Small models on equal weights, batch 1, float32, no padding: PyTorch as it is called, Flax
and Keras on JAX as programs of `jax.jit`, Keras on TensorFlow as a `tf.function` of any length.

Every figure is of a process of its own. For each family and length the processes of all frameworks are made ready one
after the other: the program is compiled, which is timed, and runs once, of which the peak rise of the resident memory
is taken. Then they run in turn, round after round; medians count. What disagrees with PyTorch is not timed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.floor import timed
from benchmarks.harness import RESULTS, peak_memory
from benchmarks.machine import MachineError, Setting, check_comparable, describe, machine

LENGTHS = (4096, 32768)
QUICK_LENGTHS = (1024, 2048)
#: what time and memory may grow by beyond the length, and how much slower than PyTorch a forward pass may be
GROWTH_AT_MOST, RATIO_AT_MOST = 1.12, 1.4
TOLERANCE = 1e-4
#: framework -> backend of Keras
FRAMEWORKS = {"torch": None, "flax": None, "keras-tensorflow": "tensorflow", "keras-jax": "jax"}


@dataclass(frozen=True)
class Family:
    """What is measured of a family.

    Attributes:
        about: One line for the table.
        name: The PyTorch class; `Flax` and `TF` come before it.
        config: Name of its configuration.
        settings: Settings.
        arguments: Of the constructor.
        quadratic: Time grows with the square of the length, by what the model is; memory does not.
    """

    about: str
    name: str
    config: str
    settings: dict[str, Any]
    arguments: dict[str, Any]
    quadratic: bool = False


FAMILIES = {
    "longformer": Family(
        "Longformer, 2 layers, 256 wide, window 256, one global token",
        "LongformerModel",
        "LongformerConfig",
        {
            "hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 1024,
            "attention_window": 256, "max_position_embeddings": LENGTHS[-1] + 2, "num_global_slots": 1,
        },
        {"add_pooling_layer": False},
    ),
    "longt5": Family(
        "LongT5 encoder, local, 2 layers, 256 wide, radius 127",
        "LongT5EncoderModel",
        "LongT5Config",
        {
            "d_model": 256, "d_kv": 64, "num_heads": 4, "num_layers": 2, "d_ff": 1024, "local_radius": 127,
            "feed_forward_proj": "gated-gelu", "encoder_attention_type": "local",
        },
        {},
    ),
    "mega": Family(
        "MEGA, 2 layers, 256 wide, chunks of 128",
        "MegaModel",
        "MegaConfig",
        {
            "hidden_size": 256, "num_hidden_layers": 2, "intermediate_size": 512, "nffn_hidden_size": 512,
            "use_chunking": True, "chunk_size": 128,
        },
        {"add_pooling_layer": False},
    ),
    "diffllama": Family(
        "DiffLlama, 1 layer, 256 wide, 4 heads: time is quadratic by what the model is, memory linear",
        "DiffLlamaModel",
        "DiffLlamaConfig",
        {
            "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1,
            "intermediate_size": 1024, "max_position_embeddings": LENGTHS[-1],
        },
        {},
        quadratic=True,
    ),
}  # fmt: skip


# -- in the process of one framework --------------------------------------------------------------------------------


def write_weights(directory: Path, families: Sequence[str]) -> None:
    """Random weights of each family, for all frameworks."""
    import torch

    import longspan

    for name in families:
        torch.manual_seed(0)
        family = FAMILIES[name]
        config = getattr(longspan, family.config)(vocab_size=1000, **family.settings)
        getattr(longspan, family.name)(config, **family.arguments).save_pretrained(directory / name)


def inputs_of(name: str, length: int) -> dict[str, Any]:
    """Ids (1, length), and Longformer's first token global."""
    import numpy as np

    inputs = {"input_ids": np.random.default_rng(0).integers(3, 1000, (1, length)).astype("int32")}
    if name == "longformer":
        inputs["global_attention_mask"] = (np.arange(length)[None] == 0).astype("int32")
    return inputs


def torch_program(family: Family, directory: Path, inputs: dict[str, Any]) -> Callable[[], Callable[[], Any]]:
    """PyTorch as it is called."""
    import torch

    import longspan

    model = getattr(longspan, family.name).from_pretrained(directory, **family.arguments).eval()
    tensors = {name: torch.from_numpy(array).long() for name, array in inputs.items()}

    def run() -> Any:
        with torch.no_grad():
            return model(**tensors).last_hidden_state.numpy()

    return lambda: run


def jax_program(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """A compiled program of XLA and the arguments that it is run with."""
    import jax

    program = jax.jit(function).lower(*arguments).compile()
    return lambda: program(*arguments).block_until_ready()


def flax_program(family: Family, directory: Path, inputs: dict[str, Any]) -> Callable[[], Callable[[], Any]]:
    """Flax under `jax.jit`."""
    import jax.numpy as jnp

    import longspan

    model = getattr(longspan, f"Flax{family.name}").from_pretrained(directory, **family.arguments)
    arrays = {name: jnp.asarray(array) for name, array in inputs.items()}

    def states(params: Any, arrays: Any) -> Any:
        return model(**arrays, params=params).last_hidden_state

    return functools.partial(jax_program, states, model.params, arrays)


def keras_program(family: Family, directory: Path, inputs: dict[str, Any]) -> Callable[[], Callable[[], Any]]:
    """Keras under `tf.function` for any length, or under `jax.jit`."""
    import keras

    import longspan

    model = getattr(longspan, f"TF{family.name}").from_pretrained(directory, **family.arguments)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tensors = {name: tf.constant(array) for name, array in inputs.items()}

        def compiled() -> Callable[[], Any]:
            spec = {name: tf.TensorSpec([None, None], tf.int32) for name in inputs}
            traced = tf.function(lambda given: model(**given).last_hidden_state, input_signature=[spec])
            traced.get_concrete_function()
            return lambda: traced(tensors).numpy()

        return compiled
    import jax.numpy as jnp

    arrays = {name: jnp.asarray(array) for name, array in inputs.items()}
    variables = [[each.value for each in part] for part in (model.trainable_variables, model.non_trainable_variables)]

    def states(trainable: Any, others: Any, arrays: Any) -> Any:
        return model.stateless_call(trainable, others, **arrays, training=False)[0].last_hidden_state

    return functools.partial(jax_program, states, *variables, arrays)


def work(family: str, framework: str, length: int, directory: Path) -> None:
    """Make a program ready and print its figures; then print the seconds of a run for every line that comes in."""
    import numpy as np

    makers = {"torch": torch_program, "flax": flax_program}
    make = makers.get(framework, keras_program)(FAMILIES[family], directory / family, inputs_of(family, length))
    start = time.perf_counter()
    run = make()
    compile_seconds = time.perf_counter() - start
    states: list[Any] = []
    peak_bytes = peak_memory(lambda: states.append(run()))
    sample = np.asarray(states.pop())[0, :: max(1, length // 64), :8]
    figures = {"compile_seconds": compile_seconds, "peak_bytes": peak_bytes, "sample": sample.tolist()}
    print(json.dumps(figures), flush=True)
    for _ in sys.stdin:
        gc.collect()
        print(json.dumps({"seconds": timed(run)}), flush=True)


# -- all of them ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def worker(setting: Setting, *arguments: str, backend: str | None) -> Iterator[subprocess.Popen[str]]:
    """A process of `work`, ended when it is left."""
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", "HF_HUB_OFFLINE": "1", **setting.environment()}
    if backend is not None:
        environment["KERAS_BACKEND"] = backend
    command = [sys.executable, "-m", "benchmarks.frameworks", "--work", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=sys.stderr, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a worker prints next."""
    output: IO[str] | None = process.stdout
    assert output is not None
    for line in output:
        if line.startswith("{"):
            return json.loads(line)
    raise RuntimeError(f"the process {process.args} ended with {process.wait()}")


def measure(setting: Setting, family: str, length: int, directory: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Figures of every framework at one length."""
    import numpy as np

    with contextlib.ExitStack() as stack:
        workers, found = {}, {}
        for framework, backend in FRAMEWORKS.items():
            arguments = (family, framework, str(length), str(directory))
            workers[framework] = stack.enter_context(worker(setting, *arguments, backend=backend))
            found[framework] = answer(workers[framework])
        expected = np.asarray(found["torch"]["sample"])
        for framework, figures in found.items():
            difference = float(np.abs(np.asarray(figures.pop("sample")) - expected).max() / np.abs(expected).max())
            if not difference <= TOLERANCE:
                raise SystemExit(f"{family} in {framework} at {length}: differs by {difference:.3g}; not timed")
            figures["difference"] = difference
        seconds: dict[str, list[float]] = {framework: [] for framework in workers}
        for _ in range(rounds):
            for framework, process in workers.items():
                assert process.stdin is not None
                process.stdin.write("run\n")
                process.stdin.flush()
                seconds[framework].append(answer(process)["seconds"])
    for framework, each in seconds.items():
        found[framework]["seconds"] = statistics.median(each)
        pairs = zip(each, seconds["torch"], strict=True)
        found[framework]["ratio"] = statistics.median(mine / theirs for mine, theirs in pairs)
    return found


def summary(short: dict[str, Any], long: dict[str, Any], lengths: Sequence[int]) -> dict[str, Any]:
    """The figures of one framework at both lengths, and by how much they grow beyond the length."""
    times = lengths[1] / lengths[0]
    return {
        "lengths": list(lengths),
        "seconds": [short["seconds"], long["seconds"]],
        "ratio": [short["ratio"], long["ratio"]],
        "peak_bytes": [short["peak_bytes"], long["peak_bytes"]],
        "compile_seconds": [short["compile_seconds"], long["compile_seconds"]],
        "difference": max(short["difference"], long["difference"]),
        "time_growth": long["seconds"] / short["seconds"] / times,
        "memory_growth": long["peak_bytes"] / max(short["peak_bytes"], 1) / times,
    }


def missed(name: str, row: dict[str, Any]) -> list[str]:
    """The promises that a row breaks."""
    family, framework = name.split("/")
    broken = [] if framework == "torch" or max(row["ratio"]) <= RATIO_AT_MOST else ["ratio"]
    broken += [] if FAMILIES[family].quadratic or row["time_growth"] <= GROWTH_AT_MOST else ["time"]
    return broken + ([] if row["memory_growth"] <= GROWTH_AT_MOST else ["memory"])


def render(stored: dict[str, Any]) -> str:
    """The Markdown table of a result file."""
    lines = [
        describe(stored["machine"]),
        "",
        "One forward pass, batch 1, float32, on equal weights; two figures are those of the two lengths. Ratio: "
        f"seconds ÷ those of PyTorch, median over interleaved rounds, at most {RATIO_AT_MOST} wanted. Growth: from the "
        "first length to the second, divided by the lengths' ratio, so that 1 is linear; at most "
        f"{GROWTH_AT_MOST} wanted. Memory: peak rise of the first run after compiling. Compiling: `jax.jit` for that "
        "length, or the trace of a `tf.function`. "
        "Remade by `python -m benchmarks.frameworks`.",
        "",
        "| case | tokens | seconds | ratio | growth of time | peak MiB | growth of memory | compiling s | missed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [table_row(name, row) for name, row in stored["cases"].items()]
    lines += ["", *(f"- {name}: {family.about}." for name, family in FAMILIES.items())]
    return "\n".join(lines) + "\n"


def table_row(name: str, row: dict[str, Any]) -> str:
    """One line of the table."""
    cells = [
        name,
        _pair(row["lengths"], "d"),
        _pair(row["seconds"], ".3f"),
        _pair(row["ratio"], ".2f"),
        f"{row['time_growth']:.2f}",
        _pair([size / 2**20 for size in row["peak_bytes"]], ".0f"),
        f"{row['memory_growth']:.2f}",
        "–" if name.endswith("/torch") else _pair(row["compile_seconds"], ".1f"),
        ", ".join(missed(name, row)) or "–",
    ]
    return f"| {' | '.join(cells)} |"


def _pair(values: Sequence[float], form: str) -> str:
    return " / ".join(format(value, form) for value in values)


def save(found: dict[str, Any], results: dict[str, Any]) -> None:
    """Merge results into the JSON file and write the table anew.

    Raises:
        MachineError: the file's other rows are of another machine or setting.
    """
    path = RESULTS / f"frameworks-{found['instructions']}.json"
    stored = json.loads(path.read_text()) if path.exists() else {"cases": {}, "machine": found}
    check_comparable(stored["machine"], found)
    cases = {**stored["cases"], **results}
    order = [f"{family}/{framework}" for family in FAMILIES for framework in FRAMEWORKS]
    stored = {"machine": found, "cases": {name: cases[name] for name in order if name in cases}}
    path.write_text(json.dumps(stored, indent=2) + "\n")
    path.with_suffix(".md").write_text(render(stored))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compare the frameworks.")
    parser.add_argument("--only", nargs="+", choices=tuple(FAMILIES), default=list(FAMILIES), help="families")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (of the longer input about half)")
    parser.add_argument("--quick", action="store_true", help="one round of short inputs; writes nothing")
    parser.add_argument("--isa", choices=("avx2", "avx512"), help="use these instructions only")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        family, framework, length, directory = options.work
        work(family, framework, int(length), Path(directory))
        return 0
    setting = Setting(options.isa)
    try:
        found = machine(setting)
        if not options.quick:
            save(found, {})
    except MachineError as error:
        parser.error(str(error))
    print(describe(found), flush=True)
    lengths = QUICK_LENGTHS if options.quick else LENGTHS
    with tempfile.TemporaryDirectory() as directory:
        write_weights(Path(directory), options.only)
        for family in options.only:
            # a long input of a model of quadratic time takes as long as all else: once, after the one for memory
            long_rounds = 1 if FAMILIES[family].quadratic else (options.rounds + 1) // 2
            rounds = (1, 1) if options.quick else (options.rounds, long_rounds)
            both = [
                measure(setting, family, length, Path(directory), number)
                for length, number in zip(lengths, rounds, strict=True)
            ]
            rows = {f"{family}/{each}": summary(both[0][each], both[1][each], lengths) for each in FRAMEWORKS}
            if not options.quick:
                save(found, rows)
            print("\n".join(table_row(name, row) for name, row in rows.items()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
