"""Train a LongT5 to give a Python module a title, and ask it when it has read only the first n tokens.

The title is the name of the one class that a module defines, in words: `class ConnectionPool` is titled "connection
pool". It stands anywhere from the first lines to behind thousands of tokens of imports, constants and functions, so
that what is asked for may lie behind what is read. Modules are those of the Python library and of the installed
packages, no title twice; whole packages are held out, and as many modules are asked for of each depth.

The model learns from pieces of modules, in three stages of growing length; the last is shorter than the longest input
that it is asked about. The figure is ROUGE-L beside that of a constant answer.

    python -m examples.titles_longt5 --output benchmarks/results/titles_longt5.json
"""

from __future__ import annotations

import argparse
import re
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from examples.docstrings_longt5 import END, PAD, make_model, packages, plain, rouge_l, train_tokenizer_of
from examples.evidence import Record, fit, share
from tokenizers import Tokenizer
from torch import Tensor

LENGTHS = (256, 512, 1024, 2048, 4096)
STAGES = ((48, 16, 0.7), (256, 4, 0.2), (1024, 1, 0.1))  # tokens of a piece, pieces of a step, share of the steps
CLASS = re.compile(r"^[ \t]*class (\w+)", flags=re.M)
LINE = " ; "  # what ends a line in what the model reads
TARGET = 12
CHARACTERS = 5  # of a token, at most on average: how much of a module is encoded


@dataclass
class Module:
    """A module that defines one class.

    Attributes:
        package: Where it comes from.
        text: Its source as the model reads it.
        title: The name of the class, in words.
        place: First character of that name in the text.
        ids: Tokens of the text, up to the longest length.
        depth: Tokens before the name.
    """

    package: str
    text: str
    title: str
    place: int
    ids: list[int] = field(default_factory=list)
    depth: int = 0


def as_text(source: str) -> str:
    """What the model reads: lower case, words of identifiers apart, a mark at the end of each line that has any."""
    return LINE.join(line for line in (plain(line) for line in source.split("\n")) if line)


def modules_of(package: str, files: Sequence[Path], most: int, longest: int) -> list[Module]:
    """Modules of a package with one class in about the first `longest` characters of what is read."""
    found: list[Module] = []
    for path in sorted(files, key=lambda path: zlib.crc32(path.name.encode()))[: 5 * most]:
        if len(found) >= most:
            break
        try:
            source = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        classes = list(CLASS.finditer(source[: 2 * longest]))
        if len(classes) != 1 or not source.isascii():
            continue
        first = classes[0]
        title, before = plain(first.group(1)), as_text(source[: first.start()])
        place = len(before) + len(LINE) * bool(before) + len("class ")
        text = as_text(source[: 2 * longest])[:longest]
        if text[place:].startswith(title) and 1 <= len(title.split()) <= 5:
            found.append(Module(package, text, title, place))
    return found


def collect(per_package: int, longest: int) -> tuple[list[Module], list[Module]]:
    """Modules to learn from, and modules of other packages; no title twice."""
    parts: tuple[list[Module], list[Module]] = ([], [])
    seen: set[str] = set()
    for package, files in sorted(packages().items()):
        is_held_out = zlib.crc32(package.encode()) % 6 == 0
        for module in modules_of(package, files, per_package, longest):
            if module.title not in seen:
                seen.add(module.title)
                parts[is_held_out].append(module)
    return parts


def encode(modules: Sequence[Module], tokenizer: Tokenizer, longest: int) -> None:
    """Fill in the tokens of modules, and where the name stands."""
    for module in modules:
        before = tokenizer.encode(module.text[: module.place].rstrip()).ids
        module.depth = len(before)
        behind = tokenizer.encode(module.text[module.place :]).ids if len(before) < longest else []
        module.ids = [*before, *behind][:longest]


def spread(modules: Sequence[Module], each: int) -> list[Module]:
    """As many modules of each depth: up to the first length, from there to the second, ..."""
    chosen = []
    for low, high in zip((0, *LENGTHS[:-1]), LENGTHS, strict=True):
        there = [module for module in modules if low <= module.depth < high - TARGET]
        chosen += sorted(there, key=lambda module: zlib.crc32(module.text.encode()))[:each]
    return chosen


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of tokens, (B, S)."""
    ids = torch.full((len(rows), max(map(len, rows))), PAD)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
    return ids


def piece(module: Module, length: int, draw: np.random.Generator) -> list[int]:
    """A run of tokens with the name at a place drawn evenly; whole modules where they are shorter."""
    last = min(module.depth, length - TARGET)
    start = max(0, module.depth - int(draw.integers(1, last + 1))) if last > 0 else module.depth
    return module.ids[start : start + length]


class Lessons:
    """Losses of the steps of all stages.

    Args:
        model: What learns.
        modules: What it learns from.
        tokenizer: Their tokenizer.
        steps: Steps of all stages together.
    """

    def __init__(self, model: Any, modules: Sequence[Module], tokenizer: Tokenizer, steps: int) -> None:
        self.model, self.modules, self.draw = model, modules, np.random.default_rng(0)
        self.titles = [[*tokenizer.encode(module.title).ids[: TARGET - 1], END] for module in modules]
        self.ends = np.round(np.cumsum([part for *_, part in STAGES]) * steps)

    def __call__(self, step: int) -> Tensor:
        """Mean cross-entropy of the titles of a step, in nats per token."""
        length, batch, _ = STAGES[int(np.searchsorted(self.ends, step, side="right"))]
        chosen = self.draw.integers(len(self.modules), size=batch)
        sources = padded([piece(self.modules[place], length, self.draw) for place in chosen])
        labels = padded([self.titles[place] for place in chosen])
        labels = labels.masked_fill(labels == PAD, -100)
        return self.model(input_ids=sources, attention_mask=sources != PAD, labels=labels).loss


@torch.no_grad()
def write_titles(model: Any, tokenizer: Tokenizer, modules: Sequence[Module], length: int) -> list[str]:
    """What the model writes when it has read the first `length` tokens of each module."""
    texts: list[str] = []
    size = max(1, 8192 // length)
    for start in range(0, len(modules), size):
        sources = padded([module.ids[:length] for module in modules[start : start + size]])
        rows = model.generate(sources, attention_mask=sources != PAD, max_new_tokens=TARGET)
        texts += [text.strip() for text in tokenizer.decode_batch(rows.tolist())]
    return texts


def evaluate(model: Any, tokenizer: Tokenizer, modules: Sequence[Module], constant: str) -> dict[str, Any]:
    """ROUGE-L for each length: of all modules, of those whose title has been read, and of the others."""
    found: dict[str, Any] = {"constant": share(np.array([rouge_l(constant, module.title) for module in modules]))}
    depths = np.array([module.depth for module in modules])
    for length in LENGTHS:
        texts = write_titles(model, tokenizer, modules, length)
        scores = np.array([rouge_l(text, module.title) for text, module in zip(texts, modules, strict=True)])
        was_read = depths < length - TARGET
        found[str(length)] = {
            "rouge_l": share(scores),
            "title_read": round(float(was_read.mean()), 4),
            "rouge_l_read": share(scores[was_read]) if was_read.any() else None,
            "rouge_l_unread": share(scores[~was_read]) if not was_read.all() else None,
            "samples": [{"title": one.title, "depth": one.depth, "written": text}
                        for one, text in list(zip(modules, texts, strict=True))[:: max(len(modules) // 6, 1)]],
        }  # fmt: skip
        print(f"first {length} tokens: {found[str(length)]['rouge_l']}", flush=True)
    return found


def most_frequent(modules: Sequence[Module]) -> str:
    """The constant answer: the two words that most titles hold, most frequent last."""
    words, counts = np.unique([word for module in modules for word in set(module.title.split())], return_counts=True)
    return " ".join(words[np.argsort(counts)[-2:]])


def read_options(words: Sequence[str] | None = None) -> Any:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6000, help="steps of the optimiser, of all stages together")
    parser.add_argument("--width", type=int, default=64, help="width of the model")
    parser.add_argument("--vocabulary", type=int, default=2048, help="tokens of the tokenizer")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--per-package", type=int, default=20, help="most modules of one package")
    parser.add_argument("--each", type=int, default=20, help="held-out modules of each depth")
    parser.add_argument("--quick", action="store_true", help="a few steps: shows that it runs, says nothing")
    parser.add_argument("--output", type=Path, help="file for the results, JSON")
    options = parser.parse_args(words)
    if options.quick:
        options.steps, options.width, options.vocabulary, options.per_package, options.each = 6, 32, 512, 3, 2
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Collect, train, ask."""
    options = read_options(words)
    torch.manual_seed(0)
    settings = {name: value for name, value in vars(options).items() if name not in ("output", "quick")}
    with Record(options.output).part("titles", {**settings, "seed": 0, "stages": STAGES}) as values:
        known, held_out = collect(options.per_package, CHARACTERS * LENGTHS[-1])
        texts = [part for module in known[:: max(len(known) // 600, 1)] for part in (module.text, module.title)]
        tokenizer = train_tokenizer_of(texts, options.vocabulary)
        encode(known, tokenizer, LENGTHS[-1])
        encode(held_out, tokenizer, LENGTHS[-1])
        known = [module for module in known if module.depth < LENGTHS[-1] - TARGET]
        asked = spread(held_out, options.each)
        print(f"{len(known):,} modules to learn from, {len(asked)} of other packages", flush=True)
        model = make_model(options.vocabulary, options.width, layers=2)
        loss = fit(model, Lessons(model, known, tokenizer, options.steps), steps=options.steps, rate=options.rate)
        values |= {
            "train_modules": len(known), "held_out_modules": len(asked), "loss": round(loss, 3),
            "held_out_packages": len({module.package for module in asked}),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "lengths": evaluate(model, tokenizer, asked, most_frequent(known)),
        }  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
