"""The longest documents: one forward pass each, in a process of its own, with its peak memory.

    python -m benchmarks.limits

writes `benchmarks/results/limits.json` and the table beside it. Memory counts all of the process: libraries, weights
and activations.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.harness import RESULTS, status
from benchmarks.machine import Setting, machine

GIB = 2**30
MOST_BYTES = 16 * GIB


def longformer() -> tuple[Any, int]:
    """Longformer of base size."""
    import longspan

    config = longspan.LongformerConfig(vocab_size=1000, attention_window=512, max_position_embeddings=65538)
    return longspan.LongformerModel(config, add_pooling_layer=False), 65536


def longt5() -> tuple[Any, int]:
    """The encoder of LongT5 of base size, local."""
    import longspan

    config = longspan.LongT5Config(
        vocab_size=1000,
        d_model=768,
        d_ff=2048,
        num_layers=12,
        num_heads=12,
        feed_forward_proj="gated-gelu",
        encoder_attention_type="local",
    )
    return longspan.LongT5EncoderModel(config), 65536


def mega() -> tuple[Any, int]:
    """MEGA with its default settings, in chunks of 128."""
    import longspan

    config = longspan.MegaConfig(vocab_size=1000, use_chunking=True, chunk_size=128)
    return longspan.MegaModel(config, add_pooling_layer=False), 262144


CASES: dict[str, Callable[[], tuple[Any, int]]] = {"longformer": longformer, "longt5": longt5, "mega": mega}


def measure(name: str) -> dict[str, Any]:
    """One forward pass of a case in this process."""
    import torch

    torch.manual_seed(0)
    model, length = CASES[name]()
    ids = torch.randint(2, 1000, (1, length))
    start = time.perf_counter()
    with torch.no_grad():
        states = model.eval()(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    seconds = time.perf_counter() - start
    assert states.shape[:2] == (1, length)
    assert bool(states.isfinite().all())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    about = (CASES[name].__doc__ or "").rstrip(".")
    return {
        "about": about,
        "tokens": length,
        "parameters": parameters,
        "seconds": round(seconds, 1),
        "peak_bytes": status("VmHWM"),
    }


def main() -> int:
    """Measure every case; 1 if one takes more than 16 GiB."""
    import subprocess

    if len(sys.argv) == 2:
        print(json.dumps(measure(sys.argv[1])))
        return 0
    results = {}
    for name in CASES:
        command = [sys.executable, "-m", "benchmarks.limits", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, results[name], flush=True)
    path = RESULTS / "limits.json"
    path.write_text(
        json.dumps({"machine": machine(Setting(keeps_memory=False)), "cases": results}, indent=2, sort_keys=True) + "\n"
    )
    lines = ["| model | tokens | parameters | s | peak GiB of the process |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['about']} | {row['tokens']:,} | {row['parameters']:,} | {row['seconds']} "
        f"| {row['peak_bytes'] / GIB:.1f} |"
        for row in results.values()
    ]
    text = "One forward pass in float32. Remade by `python -m benchmarks.limits`.\n\n" + "\n".join(lines) + "\n"
    path.with_suffix(".md").write_text(text)
    return int(any(row["peak_bytes"] > MOST_BYTES for row in results.values()))


if __name__ == "__main__":
    sys.exit(main())
