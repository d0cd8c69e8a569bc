"""MEGA's time and memory beside a plain Transformer's of equal size, as in Table 2 of its paper.

The table (Ma et al., 2022, https://arxiv.org/abs/2209.10655) gives speed and memory of training on texts of 4,096
bytes, relative to a Transformer: 2.9 times as fast in 0.31 of the memory, and 5.5 times in 0.13 with chunks of 128.
Here one step of training (forward, backward, AdamW) of the sizes of the paper's task Text runs on this machine: MEGA,
MEGA in chunks, and a BERT of as many layers and parameters, whose attention is computed step by step, as in the paper's
time, and by PyTorch's fused kernel. Rounds are interleaved, so that what else the machine does meets all alike; time is
the processor's, and that of the clock is told as well. Memory is the growth of the peak of a process of its own.

    python -m examples.mega_speed --output benchmarks/results/mega_speed.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from examples.evidence import Record

import longspan

VOCABULARY, CLASSES, LAYERS, WIDTH, CHUNK = 256, 2, 4, 128, 128
MODELS = ("transformer", "transformer_fused", "mega", "mega_chunked")
PAPER = {"mega": {"speed": 2.9, "memory": 0.31}, "mega_chunked": {"speed": 5.5, "memory": 0.13}}
NO_DROPOUT = {
    "dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    "nffn_activation_dropout_prob": 0.0,
}  # fmt: skip


def make_mega(length: int, *, chunked: bool) -> Any:
    """The paper's model of the task Text; without dropout, which the other model does not have either."""
    return longspan.MegaForSequenceClassification(
        longspan.MegaConfig(
            vocab_size=VOCABULARY, num_labels=CLASSES, hidden_size=WIDTH, num_hidden_layers=LAYERS,
            intermediate_size=256, nffn_hidden_size=256, shared_representation_size=64, ema_projection_size=16,
            normalization_type="scalenorm", normalize_before_mega=False, normalize_before_ffn=False,
            use_chunking=chunked, chunk_size=CHUNK if chunked else -1, max_positions=length, **NO_DROPOUT,
        )
    )  # fmt: skip


def make_transformer(length: int, intermediate: int, attention: str) -> Any:
    """A BERT with four heads."""
    return longspan.BertForSequenceClassification(
        longspan.BertConfig(
            vocab_size=VOCABULARY, num_labels=CLASSES, hidden_size=WIDTH, num_hidden_layers=LAYERS,
            num_attention_heads=4, intermediate_size=intermediate, max_position_embeddings=length,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation=attention,
        )
    )  # fmt: skip


def size_of(model: Any) -> int:
    """Parameters, position tables left out, which MEGA does not have and no product reads."""
    return sum(each.numel() for name, each in model.named_parameters() if "position_embeddings" not in name)


def make_model(name: str, length: int) -> Any:
    """A model by name; a Transformer's feed-forward layers are as wide as makes it as large as MEGA."""
    torch.manual_seed(0)
    if name.startswith("mega"):
        return make_mega(length, chunked=name == "mega_chunked")
    attention = "sdpa" if name == "transformer_fused" else "eager"
    wanted = size_of(make_mega(length, chunked=False))
    narrow, wider = (size_of(make_transformer(length, width, attention)) for width in (8, 16))
    return make_transformer(length, 8 + 8 * round((wanted - narrow) / (wider - narrow)), attention)


def make_step(name: str, length: int, batch: int) -> Any:
    """A function that makes one step of training."""
    model = make_model(name, length).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids, labels = torch.randint(1, VOCABULARY, (batch, length)), torch.arange(batch) % CLASSES

    def step() -> float:
        loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def peak_growth(name: str, length: int, batch: int) -> int:
    """Bytes that a step adds to the peak of this process."""
    make_step(name, 256, 1)()  # what libraries set up in the first call
    step = make_step(name, length, batch)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # what was the peak so far counts no more
    before = _peak()
    step()
    return _peak() - before


def _peak() -> int:
    """Highest resident memory of this process; the one of `getrusage` is that of the parent, if that was higher."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found.group(1)) * 1024 if found else 0


def in_a_process(name: str, options: Any) -> int:
    """`peak_growth` in a process of its own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(peak_growth, (name, options.length, options.batch))


def timed(options: Any) -> dict[str, dict[str, list[float]]]:
    """Seconds of the processor and of the clock of each model in each round."""
    steps = {name: make_step(name, options.length, options.batch) for name in MODELS}
    seconds: dict[str, dict[str, list[float]]] = {name: {"processor": [], "clock": []} for name in MODELS}
    for number in range(options.rounds):
        for name in MODELS:
            clock, processor = time.perf_counter(), time.process_time()
            steps[name]()
            seconds[name]["processor"].append(round(time.process_time() - processor, 4))
            seconds[name]["clock"].append(round(time.perf_counter() - clock, 4))
        print(
            f"round {number + 1}: " + ", ".join(f"{name} {seconds[name]['processor'][-1]} s" for name in MODELS),
            flush=True,
        )
    return seconds


def read_options(words: Sequence[str] | None = None) -> Any:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=4096, help="tokens of a sequence")
    parser.add_argument("--batch", type=int, default=1, help="sequences of a step")
    parser.add_argument("--rounds", type=int, default=2, help="steps of each model")
    parser.add_argument("--quick", action="store_true", help="short sequences: shows that it runs, says nothing")
    parser.add_argument("--output", type=Path, help="file for the results, JSON")
    options = parser.parse_args(words)
    if options.quick:
        options.length, options.rounds = 256, 1
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Time, weigh, divide."""
    options = read_options(words)
    settings = {"length": options.length, "batch": options.batch, "rounds": options.rounds}
    with Record(options.output).part("step", settings) as values:
        memory = {name: in_a_process(name, options) for name in MODELS}
        print("memory:", memory, flush=True)
        seconds = timed(options)
        base = MODELS[0]
        for name in MODELS:
            ratios = [a / b for a, b in zip(seconds[base]["processor"], seconds[name]["processor"], strict=True)]
            values[name] = {
                "parameters": size_of(make_model(name, options.length)),
                "processor_seconds": seconds[name]["processor"],
                "clock_seconds": seconds[name]["clock"],
                "memory_mib": round(memory[name] / 2**20, 1),
                "speed": round(float(np.median(ratios)), 2),
                "speed_range": [round(min(ratios), 2), round(max(ratios), 2)],
                "memory": round(memory[name] / memory[base], 3),
                "paper": PAPER.get(name),
            }
    return 0


if __name__ == "__main__":
    sys.exit(main())
