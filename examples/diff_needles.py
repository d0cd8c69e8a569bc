"""DiffLlama beside a plain Llama of equal size: bits per byte of Python sources, and needles found among them.

Both learn the same windows of the Python library's sources, in the same order. In each window some needles are put
between the lines, such as `#K=7`, and questions behind the text, such as `?K=7`. Two figures on files that the models
have not seen: bits per byte of plain text, and how often the digit behind a question is the most likely byte, by the
number of needles in the window (ten digits: one in ten by chance). The Llama is that of transformers.

    python -m examples.diff_needles --output benchmarks/results/diff_needles.json
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from examples.byte_lm import library_bytes
from examples.evidence import Record, fit, interval, share
from torch import Tensor
from torch.nn import functional as F

import longspan

FAMILIES = ("diffllama", "llama")
NEEDLES = (1, 2, 4, 8, 12)
KEYS = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", np.uint8)
LINE = 5  # bytes of a needle or a question with its newline
LEARNT = 6  # most needles of a window in training


def make_model(family: str, *, width: int, layers: int, length: int, seed: int) -> Any:
    """A decoder over the 256 bytes; both families have the same settings."""
    settings = {
        "vocab_size": 256, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": length,
        "initializer_range": 0.05, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
        "tie_word_embeddings": True,
    }  # fmt: skip
    torch.manual_seed(seed)
    if family == "diffllama":
        return longspan.DiffLlamaForCausalLM(longspan.DiffLlamaConfig(**settings))
    import transformers

    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))


def with_needles(text: np.ndarray, num_needles: int, num_asked: int, draw: np.random.Generator) -> np.ndarray:
    """A text with needles between its lines and questions behind it; as many bytes more as these have.

    Args:
        text: Bytes, (S,).
        num_needles: Needles, each with a key of its own.
        num_asked: Needles that are asked for.
        draw: Where keys, digits and places come from.
    """
    keys = draw.permutation(KEYS)[:num_needles].tolist()
    digits = draw.integers(ord("0"), ord("9") + 1, size=num_needles).tolist()
    breaks = np.flatnonzero(text == ord("\n")) + 1
    places = np.sort(draw.choice(breaks, num_needles) if len(breaks) else np.zeros(num_needles, int))
    pieces = np.split(text, places)
    parts = [pieces[0]]
    for key, digit, piece in zip(keys, digits, pieces[1:], strict=True):
        parts += [np.frombuffer(b"#%c=%c\n" % (key, digit), np.uint8), piece]
    for asked in draw.permutation(num_needles)[:num_asked]:
        parts.append(np.frombuffer(b"?%c=%c\n" % (keys[asked], digits[asked]), np.uint8))
    return np.concatenate(parts)


class Windows:
    """Windows of a text, with needles or without.

    Args:
        text: Bytes, (N,).
        length: Bytes of a window.
    """

    def __init__(self, text: np.ndarray, length: int) -> None:
        self.text, self.length = text, length

    def learnt(self, batch: int, draw: np.random.Generator) -> Tensor:
        """Windows to learn from, (B, S + 1)."""
        rows = []
        for start in draw.integers(len(self.text) - self.length, size=batch):
            needles = int(draw.integers(1, LEARNT + 1))
            size = self.length + 1 - 2 * LINE * needles
            rows.append(with_needles(self.text[start : start + size], needles, needles, draw))
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def asked(self, count: int, num_needles: int, draw: np.random.Generator) -> Tensor:
        """Windows of one question, which they end with, (B, S)."""
        size = self.length - LINE * (num_needles + 1)
        starts = draw.integers(len(self.text) - size, size=count)
        rows = [with_needles(self.text[start : start + size], num_needles, 1, draw) for start in starts]
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def plain(self, count: int) -> Tensor:
        """Evenly spread windows, (B, S + 1)."""
        starts = np.linspace(0, len(self.text) - self.length - 1, count).astype(int)
        return torch.from_numpy(np.stack([self.text[one : one + self.length + 1] for one in starts]).astype(np.int64))


def loss_of(model: Any, windows: Tensor) -> Tensor:
    """Mean cross-entropy in nats of the next byte, (B, S + 1) windows."""
    return F.cross_entropy(model(windows[:, :-1]).logits.flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def bits_per_byte(model: Any, windows: Tensor) -> np.ndarray:
    """Bits per byte of each window, (B,)."""
    losses = [loss_of(model, row[None]).item() / math.log(2) for row in windows]
    return np.array(losses)


@torch.no_grad()
def found(model: Any, windows: Tensor) -> np.ndarray:
    """In which windows the digit that ends the last line is the most likely byte, (B,)."""
    right = [model(part[:, :-2], use_cache=False).logits[:, -1].argmax(-1) == part[:, -2] for part in windows.split(20)]
    return torch.cat(right).numpy()


def measure(
    family: str, train: Windows, held_out: Windows, options: Any
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Train a model; its figures, its bits of each window, and which needles it found, (N, B)."""
    model = make_model(family, width=options.width, layers=options.layers, length=options.length, seed=options.seed)
    draw = np.random.default_rng(options.seed)
    loss = fit(
        model, lambda _: loss_of(model, train.learnt(options.batch, draw)),
        steps=options.steps, rate=options.rate, name=family,
    )  # fmt: skip
    draw = np.random.default_rng(1000 + options.seed)
    bits = bits_per_byte(model, held_out.plain(options.evaluated))
    right = np.stack([found(model, held_out.asked(options.evaluated, count, draw)) for count in NEEDLES])
    values = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss": round(loss, 4),
        "bits_per_byte": share(bits),
        "needles": {str(count): share(row) for count, row in zip(NEEDLES, right, strict=True)},
    }
    return values, bits, right


def read_options(words: Sequence[str] | None = None) -> Any:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="steps of the optimiser")
    parser.add_argument("--batch", type=int, default=16, help="windows of a step")
    parser.add_argument("--length", type=int, default=96, help="bytes of a window")
    parser.add_argument("--width", type=int, default=96, help="width of the models")
    parser.add_argument("--layers", type=int, default=2, help="layers of the models")
    parser.add_argument("--rate", type=float, default=4e-3, help="highest learning rate")
    parser.add_argument("--bytes", type=int, default=4_000_000, help="most bytes of training text")
    parser.add_argument("--evaluated", type=int, default=300, help="held-out windows of each figure")
    parser.add_argument("--seed", type=int, default=0, help="of weights, windows and needles")
    parser.add_argument("--quick", action="store_true", help="a few steps: shows that it runs, says nothing")
    parser.add_argument("--output", type=Path, help="file for the results, JSON")
    options = parser.parse_args(words)
    if options.quick:
        options.steps, options.width, options.layers, options.evaluated, options.bytes = 4, 32, 1, 4, 50_000
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Train both, ask both."""
    options = read_options(words)
    record = Record(options.output)
    settings = {name: value for name, value in vars(options).items() if name not in ("output", "quick")}
    train, held_out = (Windows(text, options.length) for text in library_bytes(options.bytes))
    bits, right = {}, {}
    for family in FAMILIES:
        with record.part(family, settings) as values:
            figures, bits[family], right[family] = measure(family, train, held_out, options)
            values |= figures
        print(family, record.values[family], flush=True)
    with record.part("difference", settings) as values:
        values["bits_per_byte"] = share(bits["diffllama"] - bits["llama"])
        apart = right["diffllama"].astype(np.int8) - right["llama"].astype(np.int8)
        values["needles"] = {str(count): share(row) for count, row in zip(NEEDLES, apart, strict=True)}
        values["needles_all"] = {"mean": round(float(apart.mean()), 4), "interval": interval(apart.mean(axis=0))}
    return 0


if __name__ == "__main__":
    sys.exit(main())
