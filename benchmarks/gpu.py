"""One run on a GPU, in at most eight minutes: is everything right there, and how fast is it?

    make gpu                                        # python -m benchmarks.gpu
    python -m benchmarks.gpu --device cpu --small   # the same steps at toy sizes, where there is no GPU

1. *parity*: each family's backbone beside the reference's, outputs and gradients of every parameter, in float32.
2. *attention*: each implementation, forward and backward, beside the reference; those that do not serve there say why.
3. *compile*: `torch.compile` of each backbone beside the model as it is.
4. *generation*: greedy tokens equal to the CPU's, with a growing cache, and with a static one whose steps are compiled
   (CUDA graphs, mode "reduce-overhead").
5. *speed* in bfloat16 beside the reference with each attention that it has, and beside the rate of flash attention.

Each step writes its row to `benchmarks/results/gpu.json` and the table `gpu.md` at once; one that fails says so in its
row and the others go on. What the time does not reach is listed as such.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import longspan
from benchmarks.cases.bert import RAGGED
from benchmarks.harness import RESULTS
from benchmarks.machine import Setting, machine
from longspan.errors import InputError

#: largest relative error of outputs and gradients in float32, TF32 off
TOLERANCE = 1e-4
ROUNDS = 5


@dataclass(frozen=True)
class Family:
    """A family's backbone, in both libraries.

    Attributes:
        model: Name of the class.
        config: Name of its settings.
        tiny: Settings for the checks.
        implementations: Names of its attention.
        peers: The reference's attention.
    """

    model: str
    config: str
    tiny: dict[str, Any]
    implementations: tuple[str, ...]
    peers: tuple[str, ...] = ("sdpa", "eager")

    def pair(self, settings: dict[str, Any], *, attention: str = "auto", peer: str = "eager") -> tuple[Any, Any]:
        """The reference's model and ours on equal random weights, in evaluation mode, on the CPU."""
        import transformers

        torch.manual_seed(0)
        their_config = getattr(transformers, self.config)(**settings, attn_implementation=peer)
        theirs = getattr(transformers, self.model)(their_config).eval()
        our_config = getattr(longspan, self.config)(**settings, attn_implementation=attention)
        ours = getattr(longspan, self.model)(our_config).eval()
        # MEGA's reference keeps an empty buffer beside the weights
        weights = {name: tensor for name, tensor in theirs.state_dict().items() if not name.endswith("_float_tensor")}
        ours.load_state_dict(weights)
        return theirs, ours


SMALL = {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96}
HEADS = {"num_attention_heads": 4}
FAMILIES = {
    "bert": Family("BertModel", "BertConfig", {**SMALL, **HEADS}, ("packed", "sdpa", "eager")),
    "longformer": Family(
        "LongformerModel",
        "LongformerConfig",
        {**SMALL, **HEADS, "attention_window": 16, "max_position_embeddings": 514},
        ("flex", "chunked", "blocked"),
        ("eager",),
    ),
    "longt5": Family(
        "LongT5EncoderModel",
        "LongT5Config",
        {
            "vocab_size": 99, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4,
            "local_radius": 15, "global_block_size": 8, "encoder_attention_type": "transient-global",
        },
        ("flex", "chunked", "blocked"),
        ("eager",),
    ),
    "diffllama": Family(
        "DiffLlamaModel",
        "DiffLlamaConfig",
        {**SMALL, **HEADS, "num_key_value_heads": 2, "use_cache": False},
        ("chunked", "eager", "sdpa"),
    ),
    "mega": Family(
        "MegaModel",
        "MegaConfig",
        {**SMALL, "shared_representation_size": 16, "nffn_hidden_size": 96, "use_chunking": False},
        ("tiled", "eager"),
        ("eager",),
    ),
}  # fmt: skip
BASE: dict[str, dict[str, Any]] = {
    "bert": {"vocab_size": 1000, "num_hidden_layers": 12},
    "longformer": {"vocab_size": 1000, "attention_window": 512, "max_position_embeddings": 65538},
    "longt5": {
        "vocab_size": 1000, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12,
        "encoder_attention_type": "local",
    },
    "mega": {"vocab_size": 1000, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 12,
             "shared_representation_size": 128, "nffn_hidden_size": 1024, "use_chunking": True, "chunk_size": 1024},
    "diffllama": {"vocab_size": 1000, "hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 16,
                  "num_key_value_heads": 8, "intermediate_size": 2816, "max_position_embeddings": 8320},
}  # fmt: skip
#: what is timed: name -> family, lengths of the rows
SPEED = {
    "longformer/16k": ("longformer", (16384,)),
    "longformer/64k": ("longformer", (65536,)),
    "longt5/16k": ("longt5", (16384,)),
    "bert/ragged": ("bert", RAGGED * 4),
    "mega/64k": ("mega", (65536,)),
}


@dataclass
class Run:
    """Where and how the steps run.

    Attributes:
        device: `cuda` or `cpu`.
        small: Toy sizes and few rounds.
        backend: Backend of `torch.compile`.
        minutes: Steps that begin later are not run.
    """

    device: str
    small: bool = False
    backend: str = "inductor"
    minutes: float = 8.0
    started: float = field(default_factory=time.monotonic)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], Any]) -> float:
        """Time of one run."""
        self.wait()
        start = time.perf_counter()
        with torch.no_grad():
            run()
        self.wait()
        return time.perf_counter() - start

    def is_over(self) -> bool:
        """Whether the time is spent."""
        return time.monotonic() - self.started > 60 * self.minutes


Row = dict[str, Any]
Step = Callable[[Run], Row]


def batch(family: str, lengths: tuple[int, ...], vocabulary: int) -> dict[str, torch.Tensor]:
    """Ids of rows of these lengths, padded on the right; Longformer's first token is global."""
    ids = torch.randint(3, vocabulary, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    inputs = {"input_ids": ids, "attention_mask": mask.long()}
    if family == "longformer":
        inputs["global_attention_mask"] = F.one_hot(torch.zeros(len(lengths), dtype=torch.long), max(lengths))
    if family == "mega" and bool(mask.all()):
        del inputs["attention_mask"]
    return inputs


def to(inputs: dict[str, torch.Tensor], device: str) -> dict[str, torch.Tensor]:
    """The inputs on a device."""
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def states_and_gradients(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The last states at real tokens, and the gradient of every parameter of a loss on them."""
    model.zero_grad(set_to_none=True)
    states = model(**inputs).last_hidden_state
    if "attention_mask" in inputs:
        states = states * inputs["attention_mask"][..., None]
    weight = torch.linspace(-1, 1, states.shape[-1], device=states.device)
    (states @ weight).square().mean().backward()
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    return {"states": states.detach().cpu(), **gradients}


def error(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> float:
    """The largest difference, relative to each tensor's largest value (gradients: to the largest of all)."""
    shared = expected.keys() & found.keys()
    gradients = max(float(expected[name].abs().max()) for name in shared if name != "states")
    errors = []
    for name in shared:
        size = float(expected["states"].abs().max()) if name == "states" else gradients
        errors.append(float((expected[name] - found[name]).abs().max()) / size)
    return max(errors)


def judged(difference: float) -> Row:
    """A row about an error."""
    return {"error": difference, "passed": difference <= TOLERANCE}


LENGTHS = (61, 40)


def check_attention(family: str, implementation: str) -> Step:
    """Outputs and gradients of one implementation on the device beside the reference's on the CPU."""

    def step(run: Run) -> Row:
        chosen = FAMILIES[family]
        theirs, ours = chosen.pair(chosen.tiny, attention=implementation)
        inputs = batch(family, LENGTHS, chosen.tiny["vocab_size"])
        expected = states_and_gradients(theirs, inputs)
        try:
            found = states_and_gradients(ours.to(run.device), to(inputs, run.device))
        except InputError as reason:
            if "cannot serve" not in str(reason):
                raise
            return {"passed": True, "note": str(reason).rsplit(": ", 1)[-1]}
        return judged(error(expected, found))

    return step


def check_compile(family: str) -> Step:
    """The compiled backbone beside itself."""

    def step(run: Run) -> Row:
        chosen = FAMILIES[family]
        ours = chosen.pair(chosen.tiny)[1].to(run.device)
        inputs = to(batch(family, LENGTHS, chosen.tiny["vocab_size"]), run.device)
        expected = states_and_gradients(ours, inputs)
        torch._dynamo.reset()
        compiled = torch.compile(ours, backend=run.backend)
        start = time.perf_counter()
        found = {name.removeprefix("_orig_mod."): t for name, t in states_and_gradients(compiled, inputs).items()}
        return {**judged(error(expected, found)), "compile_seconds": round(time.perf_counter() - start, 1)}

    return step


def check_generation(model: str, config: str, settings: dict[str, Any], *, is_static: bool) -> Step:
    """Greedy tokens on the device beside those of the CPU; a static cache's steps are compiled to CUDA graphs."""

    def step(run: Run) -> Row:
        torch.manual_seed(0)
        ours = getattr(longspan, model)(getattr(longspan, config)(**settings)).eval()
        ids = batch("", (16, 16), settings["vocab_size"])["input_ids"]
        options: dict[str, Any] = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
        expected = ours.generate(ids, **options)
        ours = ours.to(run.device)
        ids = ids.to(run.device)
        if is_static:
            options["cache_implementation"] = "static"
            graphs: dict[str, Any] = {"mode": "reduce-overhead"} if run.backend == "inductor" else {}
            torch._dynamo.reset()
            ours.forward = torch.compile(ours.forward, backend=run.backend, **graphs)
            ours.generate(ids, **options)
        start = time.perf_counter()
        found = ours.generate(ids, **options)
        run.wait()
        return {
            "passed": torch.equal(found.cpu(), expected),
            "tokens_per_second": round(48 / (time.perf_counter() - start)),
        }

    return step


def time_forward(family: str, lengths: tuple[int, ...]) -> Step:
    """A forward pass in bfloat16 beside the reference with each attention that it has."""

    def step(run: Run) -> Row:
        chosen = FAMILIES[family]
        settings = chosen.tiny if run.small else BASE[family]
        rows = tuple(max(16, length // 512) for length in lengths) if run.small else lengths
        inputs = to(batch(family, rows, settings["vocab_size"]), run.device)
        row: Row = {"passed": True}
        # the reference's flex attention needs a GPU
        for peer in (*chosen.peers, *(("flex_attention",) if run.device == "cuda" else ())):
            try:
                theirs, ours = (model.to(run.device, torch.bfloat16) for model in chosen.pair(settings, peer=peer))
            except (ValueError, ImportError) as reason:  # it has no such attention for this family
                row[f"{peer}_note"] = type(reason).__name__
                continue
            seconds: dict[str, list[float]] = {"ours": [], "peer": []}
            try:
                for index in range(2 if run.small else ROUNDS + 1):
                    for name, model in (("ours", ours), ("peer", theirs)):
                        taken = run.seconds(lambda model=model: model(**inputs))
                        seconds[name] += [taken] if index else []
            except torch.OutOfMemoryError:
                row[f"{peer}_seconds"] = "out of memory"
            if seconds["ours"]:
                row["ours_seconds"] = statistics.median(seconds["ours"])
            if seconds["peer"]:
                row[f"{peer}_seconds"] = statistics.median(seconds["peer"])
                row[f"{peer}_ratio"] = row[f"{peer}_seconds"] / row["ours_seconds"]
            if run.device == "cuda":
                torch.cuda.empty_cache()
        return row

    return step


def time_decoding(run: Run) -> Row:
    """DiffLlama in bfloat16: 64 tokens after a prompt of 8,192, beside the reference's sdpa."""
    import transformers

    settings = FAMILIES["diffllama"].tiny if run.small else BASE["diffllama"]
    settings = {**settings, "use_cache": True}
    length, new = (64, 8) if run.small else (8192, 64)
    torch.manual_seed(0)
    theirs = transformers.DiffLlamaForCausalLM(transformers.DiffLlamaConfig(**settings, attn_implementation="sdpa"))
    ours = longspan.DiffLlamaForCausalLM(longspan.DiffLlamaConfig(**settings))
    ours.load_state_dict(theirs.state_dict())
    ids = batch("", (length,), settings["vocab_size"])["input_ids"].to(run.device)
    options: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    seconds = {}
    for name, model in (("ours", ours), ("sdpa", theirs)):
        model.to(run.device, torch.bfloat16).eval()
        long, short = (
            run.seconds(lambda model=model, n=n: model.generate(ids, max_new_tokens=n, min_new_tokens=n, **options))
            for n in (new + 1, 1)
        )
        seconds[name] = (long - short) / new
    return {
        "passed": True,
        "ours_seconds": seconds["ours"],
        "sdpa_seconds": seconds["sdpa"],
        "sdpa_ratio": seconds["sdpa"] / seconds["ours"],
    }


def time_flash(run: Run) -> Row:
    """Rate of full attention by PyTorch's fused kernel, forward, in bfloat16: what attention can reach there."""
    length = 128 if run.small else 16384
    query, key, value = (torch.randn(1, 12, length, 64, device=run.device, dtype=torch.bfloat16) for _ in range(3))
    times = [run.seconds(lambda: F.scaled_dot_product_attention(query, key, value)) for _ in range(6)]
    flops = 4 * 12 * length * length * 64
    return {"passed": True, "teraflops": flops / statistics.median(times[1:]) / 1e12}


def steps() -> Iterator[tuple[str, Step]]:
    """All steps by name, the checks first."""
    for family in FAMILIES:
        yield f"parity/{family}", check_attention(family, "auto")
    for family, chosen in FAMILIES.items():
        for implementation in chosen.implementations:
            yield f"attention/{family}/{implementation}", check_attention(family, implementation)
    generators = {
        "diffllama": ("DiffLlamaForCausalLM", "DiffLlamaConfig", {**FAMILIES["diffllama"].tiny, "use_cache": True}),
        "longt5": ("LongT5ForConditionalGeneration", "LongT5Config",
                   {**FAMILIES["longt5"].tiny, "decoder_start_token_id": 0}),
    }  # fmt: skip
    for family, (model, config, settings) in generators.items():
        for is_static in (False, True):
            name = f"generation/{family}/{'static, compiled' if is_static else 'growing'}"
            yield name, check_generation(model, config, settings, is_static=is_static)
    yield "speed/flash", time_flash
    for name, (family, lengths) in SPEED.items():
        yield f"speed/{name}", time_forward(family, lengths)
    yield "speed/diffllama/8k decode", time_decoding
    for family in FAMILIES:
        yield f"compile/{family}", check_compile(family)


def run_all(run: Run, path: Path, only: tuple[str, ...] = ("*",)) -> dict[str, Row]:
    """Run the steps whose name matches a pattern, writing the rows found so far after each."""
    found = machine(Setting(keeps_memory=False))
    if run.device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    rows: dict[str, Row] = {}
    torch.set_float32_matmul_precision("highest")
    for name, step in steps():
        if not any(fnmatch.fnmatch(name, pattern) for pattern in only):
            continue
        if run.is_over():
            rows[name] = {"passed": False, "note": "not reached in time"}
        else:
            try:
                rows[name] = step(run)
            except Exception as problem:  # a row that fails says so, the others go on
                text = str(problem).strip().splitlines()
                rows[name] = {"passed": False, "note": f"{type(problem).__name__}: {text[0] if text else ''}"}
        print(f"{name:40} {render_row(rows[name])}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": found, "small": run.small, "rows": rows}, indent=2) + "\n")
        path.with_suffix(".md").write_text(render(found, rows))
    return rows


def render_row(row: Row) -> str:
    """One line about a row."""
    figures = [
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
        if name != "passed"
    ]
    return ("ok" if row["passed"] else "FAILED") + (": " + ", ".join(figures) if figures else "")


def render(found: dict[str, Any], rows: dict[str, Row]) -> str:
    """The table."""
    where = f"{found.get('gpu', found['cpu'])}; torch {found['packages']['torch']}. Remade by `make gpu`."
    lines = [f"| {name} | {render_row(row)} |" for name, row in rows.items()]
    return "\n".join([where, "", "| step | found |", "|---|---|", *lines]) + "\n"


def main() -> int:
    """Command line; 1 if a step failed."""
    parser = argparse.ArgumentParser(description="Check and time longspan on a GPU.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="toy sizes")
    parser.add_argument("--backend", default="inductor", help="backend of torch.compile")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", nargs="+", default=("*",), help="run the steps whose name matches a pattern")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is there; --device cpu --small runs the same steps at toy sizes")
    run = Run(options.device, options.small, options.backend, options.minutes)
    rows = run_all(run, options.output, tuple(options.only))
    return int(any(not row["passed"] for row in rows.values()))


if __name__ == "__main__":
    raise SystemExit(main())
