"""Peaks of the resident memory of real steps of training, and what the model of memory says: prints JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

if "MALLOC_MMAP_THRESHOLD_" not in os.environ:  # or the C library keeps what is freed, and counts it on
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    os.environ["MALLOC_TRIM_THRESHOLD_"] = "65536"
    os.execv(sys.executable, [sys.executable, *sys.argv])

import torch

import longspan
from longspan.training.capacity import fit_activations, memory_model, sequence

WIDTHS = {"hidden_size": 128, "intermediate_size": 256}
LONGFORMER = {"max_position_embeddings": 4098, "attention_window": 128}
LONGT5 = {"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 256, "local_radius": 63}
CASES = {
    "longformer": ("LongformerForTokenClassification", 4, 3072, {**WIDTHS, **LONGFORMER, "num_attention_heads": 2}),
    "longt5": (
        "LongT5ForConditionalGeneration", 3, 2048, {**LONGT5, "encoder_attention_type": "transient-global"}
    ),
    "mega": (
        "MegaForTokenClassification", 4, 2048,
        {**WIDTHS, "nffn_hidden_size": 256, "use_chunking": True, "chunk_size": 128},
    ),
    "diffllama": (
        "DiffLlamaForCausalLM", 3, 2048, {**WIDTHS, "num_attention_heads": 4, "num_key_value_heads": 2}
    ),
    "weights": (
        "LongformerForTokenClassification", 6, 512,
        {**LONGFORMER, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 1024},
    ),
}  # fmt: skip


def make(name, settings):
    cls = getattr(longspan, name)

    def build(layers):
        depth = {"num_layers": layers} if name.startswith("LongT5") else {"num_hidden_layers": layers}
        return cls(cls.config_class(vocab_size=2000, **depth, **settings))

    return build


def status(field):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def resident_peak(build, layers, tokens, recompute):
    """Bytes by which two steps raise the resident memory at its highest."""
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    model = build(layers).train()
    if recompute:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    inputs = sequence(model, tokens)
    for _ in range(2):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return status("VmHWM") - before


if __name__ == "__main__":
    for key in sys.argv[1:]:
        kind, _, recompute = key.partition(":")
        name, layers, tokens, settings = CASES[kind]
        build = make(name, settings)
        tiny = build(1).train()
        tiny(**sequence(tiny, 256)).loss.backward()  # what libraries need once
        found = fit_activations(build, recompute=bool(recompute))
        predicted = memory_model(build, layers, found).peak(tokens)
        print(
            json.dumps(
                [key, {"predicted": predicted, "measured": resident_peak(build, layers, tokens, bool(recompute))}]
            ),
            flush=True,
        )
