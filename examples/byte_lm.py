"""Train a byte-level MEGA and a byte-level DiffLlama on the Python library's own sources, against a 5-gram model.

Each model learns for a few minutes on two cores; the figure is bits per byte on files that it has not seen. The 5-gram
model (interpolated, Witten-Bell smoothing) counts the same training files in full.

    python examples/byte_lm.py [--families mega diffllama] [--steps 1800] [--output results.json]
"""

from __future__ import annotations

import argparse
import json
import math
import sysconfig
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import longspan

FAMILIES = ("mega", "diffllama")
ORDER = 5
EVALUATED = 256  # windows of the held-out text
PROMPT, WRITTEN = 160, 240  # bytes of held-out text that a sample goes on from, and bytes that it adds
SAMPLES = 4


def library_bytes(limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Sources of the Python library, a tenth of the files held out: two arrays of uint8.

    Args:
        limit: Most bytes of the training part.
    """
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in folder.rglob("*.py") if "site-packages" not in path.parts)
    for path in sorted(files, key=lambda path: zlib.crc32(path.name.encode())):
        parts[zlib.crc32(str(path.relative_to(folder)).encode()) % 10 == 0].append(path.read_bytes())
    train, held_out = (np.frombuffer(b"\n".join(part), np.uint8) for part in parts)
    return train[:limit], held_out


class NGramModel:
    """Interpolated n-grams of bytes: P(c|h) = (count(hc) + T(h) P(c|h')) / (count(h) + T(h)).

    T(h) is the number of different bytes seen after h, and h' is h without its first byte (Witten and Bell, 1991). The
    empty history falls back on 1/256.

    Args:
        text: Bytes to count, uint8.
    """

    def __init__(self, text: np.ndarray) -> None:
        self.tables = []
        for order in range(1, ORDER + 1):
            grams, counts = np.unique(_codes(text, order), return_counts=True)
            first = np.flatnonzero(np.diff(grams >> 8, prepend=-1))  # grams of one history lie side by side
            histories = (grams[first] >> 8, np.add.reduceat(counts, first), np.diff(first, append=len(grams)))
            self.tables.append((grams, counts, histories))

    def bits_per_byte(self, text: np.ndarray) -> float:
        """Mean of −log2 P over the bytes of a text that have a full history."""
        probability = np.full(len(text) - ORDER + 1, 1 / 256)
        for order, (grams, counts, (histories, totals, kinds)) in enumerate(self.tables, start=1):
            codes = _codes(text, order)[ORDER - order :]
            seen = _look_up(grams, counts, codes)
            total, different = (_look_up(histories, values, codes >> 8) for values in (totals, kinds))
            known = total > 0
            mixed = (seen + different * probability) / np.maximum(total + different, 1)
            probability = np.where(known, mixed, probability)
        return float(-np.log2(probability).mean())


def _codes(text: np.ndarray, order: int) -> np.ndarray:
    """Every run of `order` bytes as one integer."""
    codes = np.zeros(len(text) - order + 1, np.int64)
    for place in range(order):
        codes = codes << 8 | text[place : place + len(codes)]
    return codes


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def make_model(family: str, length: int) -> torch.nn.Module:
    """A decoder over the 256 bytes, of about 1.3 million parameters."""
    if family == "mega":
        return longspan.MegaForCausalLM(
            longspan.MegaConfig(
                vocab_size=256,
                hidden_size=152,
                num_hidden_layers=4,
                intermediate_size=304,
                shared_representation_size=64,
                nffn_hidden_size=304,
                ema_projection_size=8,
                is_decoder=True,
                bidirectional=False,
                use_chunking=True,
                chunk_size=128,
                normalization_type="layernorm",
                relative_positional_bias="rotary",
                dropout_prob=0.0,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                nffn_activation_dropout_prob=0.0,
                initializer_range=0.05,
                pad_token_id=0,
            )
        )
    return longspan.DiffLlamaForCausalLM(
        longspan.DiffLlamaConfig(
            vocab_size=256,
            hidden_size=192,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=length,
            initializer_range=0.05,
            pad_token_id=None,
            tie_word_embeddings=True,
        )
    )


def loss_of(model: torch.nn.Module, windows: Tensor) -> Tensor:
    """Mean cross-entropy in nats of the next byte, (B, S + 1) windows; products in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(windows[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


def train(model: torch.nn.Module, text: np.ndarray, *, steps: int, batch: int, length: int, rate: float) -> None:
    """AdamW with a linear warm-up and a linear decay to zero, on random windows."""
    data, generator = torch.from_numpy(text.astype(np.int64)), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    warm_up = max(steps // 20, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / (steps - warm_up + 1))
    )
    model.train()
    for step in range(steps):
        starts = torch.randint(len(data) - length - 1, (batch, 1), generator=generator)
        loss = loss_of(model, data[starts + torch.arange(length + 1)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % max(steps // 10, 1) == 0:
            print(f"  step {step + 1:5}: {loss.item() / math.log(2):.3f} bits per byte of the last batch", flush=True)


@torch.no_grad()
def evaluate(model: torch.nn.Module, text: np.ndarray, *, length: int) -> float:
    """Bits per byte on evenly spread windows; every byte of a window counts, those with little context too."""
    model.eval()
    starts = np.linspace(0, len(text) - length - 1, EVALUATED).astype(int)
    windows = torch.from_numpy(np.stack([text[start : start + length + 1] for start in starts]).astype(np.int64))
    losses = [loss_of(model, part) for part in windows.split(16)]
    return float(torch.stack(losses).mean()) / math.log(2)


@torch.no_grad()
def write_samples(model: Any, text: np.ndarray, *, length: int) -> list[dict[str, str]]:
    """What a model writes behind some beginnings of functions in held-out text."""
    model.eval()
    torch.manual_seed(0)
    samples = []
    for part in range(1, SAMPLES + 1):
        start = text.tobytes().index(b"\ndef ", len(text) * part // (SAMPLES + 1)) + 1
        prompt = text[start : start + min(PROMPT, length // 2)]
        rows = model.generate(
            torch.from_numpy(prompt.astype(np.int64))[None],
            max_new_tokens=min(WRITTEN, length - len(prompt)),
            do_sample=True,
            temperature=0.7,
            eos_token_id=None,
        )
        written = bytes(rows[0, len(prompt) :].tolist())
        samples.append(
            {"prompt": prompt.tobytes().decode("utf-8", "replace"), "written": written.decode("utf-8", "replace")}
        )
    return samples


def earlier_results(path: Path | None, settings: dict[str, Any]) -> dict[str, Any]:
    """What a file of results says of the families, if they learnt with these settings."""
    if path is None or not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    same = all(found.get(name) == value for name, value in settings.items())
    return {family: found[family] for family in FAMILIES if same and family in found}


def main() -> None:
    """Count, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--steps", type=int, default=1800, help="steps of the optimiser")
    parser.add_argument("--batch", type=int, default=4, help="windows of a step")
    parser.add_argument("--length", type=int, default=512, help="bytes of a window")
    parser.add_argument("--rate", type=float, default=4e-3, help="highest learning rate")
    parser.add_argument("--bytes", type=int, default=4_000_000, help="most bytes of training text")
    parser.add_argument("--output", type=Path, help="file for the results, JSON; other families stay in it")
    options = parser.parse_args()
    text, held_out = library_bytes(options.bytes)
    baseline = NGramModel(text).bits_per_byte(held_out)
    print(f"{len(text):,} bytes to learn, {len(held_out):,} held out; {ORDER}-grams: {baseline:.3f} bits per byte")
    results: dict[str, Any] = {
        "train_bytes": len(text),
        "held_out_bytes": len(held_out),
        "five_gram_bits_per_byte": round(baseline, 3),
    }
    results |= {"steps": options.steps, "batch": options.batch, "length": options.length}
    results |= earlier_results(options.output, results)
    for family in options.families:
        torch.manual_seed(0)
        model = make_model(family, options.length)
        size = sum(parameter.numel() for parameter in model.parameters())
        print(f"{family}: {size:,} parameters")
        start = time.perf_counter()
        train(model, text, steps=options.steps, batch=options.batch, length=options.length, rate=options.rate)
        seconds = time.perf_counter() - start
        bits = evaluate(model, held_out, length=options.length)
        print(f"{family}: {bits:.3f} bits per byte on held-out files after {seconds:.0f} s")
        samples = write_samples(model, held_out, length=options.length)
        for sample in samples:
            print(f"--- {sample['prompt']}|{sample['written']}")
        results[family] = {
            "parameters": size,
            "seconds": round(seconds),
            "bits_per_byte": round(bits, 3),
            "samples": samples,
        }
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
