"""Train a LongT5 from scratch to write the one-line docstring of a Python function from its source.

The functions are those of the Python library and of the packages that are installed beside PyTorch; whole packages are
held out. The model first learns to repeat the function's name, since what to say stands in the source and looking there
is the hardest to learn, then to write summaries. It learns for some minutes on two cores, and the figure is ROUGE-L on
held-out functions, beside two baselines: the first line of the source, and the words of the function's name.

    python examples/docstrings_longt5.py [--minutes 8] [--output results.json]
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sysconfig
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

import longspan

PAD, END = 0, 1
SHOWN = 12  # sample outputs in the results
HELD_OUT = 100  # functions of one held-out package at most


@dataclass(frozen=True)
class Function:
    """A documented function.

    Attributes:
        package: Where it comes from.
        name: Its name.
        source: Its source without the docstring and comments.
        summary: The first sentence of its docstring.
    """

    package: str
    name: str
    source: str
    summary: str


def packages() -> dict[str, list[Path]]:
    """Files of every installed package, and of every module or package of the Python library."""
    paths = sysconfig.get_paths()
    found: dict[str, list[Path]] = {}
    for folder in (Path(paths["stdlib"]), Path(paths["purelib"])):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).parts
            if "site-packages" not in parts and not any("test" in part for part in parts):
                found.setdefault(parts[0].removesuffix(".py"), []).append(path)
    return found


def functions_of(package: str, files: Sequence[Path], limit: int) -> Iterator[Function]:
    """Documented functions of a package, spread over its files."""
    for path in sorted(files, key=lambda path: zlib.crc32(path.name.encode())):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError, UnicodeDecodeError):  # files for other versions, or not text
            continue
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        for node in (*tree.body, *(node for scope in classes for node in scope.body)):
            if isinstance(node, ast.FunctionDef) and (function := read_function(package, node)):
                yield function
                limit -= 1
        if limit <= 0:
            return


def read_function(package: str, node: ast.FunctionDef) -> Function | None:
    """A function with a summary of 3 to 16 words and something to read, else None."""
    text = ast.get_docstring(node)
    if not text or not text.isascii() or len(node.body) < 2:
        return None
    summary = " ".join(text.split("\n\n")[0].split())
    summary = re.split(r"\.(?:\s|$)", summary)[0]
    if not 3 <= len(summary.split()) <= 16 or any(mark in summary for mark in "`:<>=*{}|("):
        return None
    node.body, node.decorator_list = node.body[1:], []
    return Function(package, node.name, ast.unparse(node), summary)


def collect(most: int, per_package: int) -> tuple[list[Function], list[Function]]:
    """Functions to learn from and functions of other packages, no summary or source twice.

    Args:
        most: Functions to learn from at most.
        per_package: Functions of one package at most.
    """
    parts: tuple[list[Function], list[Function]] = ([], [])
    seen: set[str] = set()
    found = packages()
    for package in sorted(found, key=lambda name: zlib.crc32(name.encode())):
        is_held_out = zlib.crc32(package.encode()) % 8 == 0
        part = parts[is_held_out]
        if not is_held_out and len(part) >= most:
            continue
        for function in functions_of(package, found[package], HELD_OUT if is_held_out else per_package):
            keys = {plain(function.summary), plain(function.source)}
            if not keys & seen:
                part.append(function)
            seen |= keys
    return parts[0][:most], parts[1]


def plain(text: str) -> str:
    """Lower case, with the words of identifiers apart: `readLines` and `read_lines` become `read lines`."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text.replace("_", " ")).lower()
    return " ".join(text.split())


def as_source(function: Function) -> str:
    """What the model reads: the name first, then all of the source."""
    return f"{plain(function.name)} : {plain(function.source)}"


def train_tokenizer(functions: Sequence[Function], size: int) -> Tokenizer:
    """Byte pairs within words; a word is the same in the source and in the summary."""
    texts = (text for function in functions for text in (as_source(function), plain(function.summary)))
    return train_tokenizer_of(texts, size)


def train_tokenizer_of(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte pairs within words of texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@dataclass
class Examples:
    """Ids of sources (N, S) and summaries (N, T), padded."""

    sources: Tensor
    summaries: Tensor

    @classmethod
    def of(cls, functions: Sequence[Function], tokenizer: Tokenizer, *, length: int, target: int) -> Examples:
        """Encode functions; sources and summaries are cut to `length` and `target` tokens."""
        columns = []
        for texts, size in (
            ([as_source(function) for function in functions], length),
            ([plain(function.summary) for function in functions], target),
        ):
            ids = torch.full((len(texts), size), PAD)
            for row, encoding in enumerate(tokenizer.encode_batch(texts)):
                kept = [*encoding.ids[: size - 1], END]
                ids[row, : len(kept)] = torch.tensor(kept)
            columns.append(ids)
        return cls(*columns)

    def rows(self, index: Any) -> tuple[Tensor, Tensor]:
        """Some rows, without columns that are padding in all of them."""
        parts = (ids[index] for ids in (self.sources, self.summaries))
        sources, summaries = (ids[:, : int((ids != PAD).sum(dim=1).max())] for ids in parts)
        return sources, summaries


def make_model(vocabulary: int, width: int, layers: int = 3) -> longspan.LongT5ForConditionalGeneration:
    """A small LongT5 with transient-global attention and shared embeddings."""
    model = longspan.LongT5ForConditionalGeneration(
        longspan.LongT5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=width // 4,
            d_ff=width * 2,
            num_heads=4,
            num_layers=layers,
            num_decoder_layers=2,
            local_radius=31,
            encoder_attention_type="transient-global",
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=PAD,
            eos_token_id=END,
            decoder_start_token_id=PAD,
        )
    )
    # cross-attention begins by passing on what it looks at: words of the source are likely before anything is learnt
    for block in model.decoder.block:
        attention = block.layer[1].EncDecAttention
        for projection in (attention.v, attention.o):
            torch.nn.init.eye_(projection.weight)
    return model


def loss_of(model: Any, sources: Tensor, summaries: Tensor) -> Tensor:
    """Mean cross-entropy of the summaries, in nats per token; products in bfloat16."""
    labels = summaries.masked_fill(summaries == PAD, -100)
    with torch.autocast("cpu", torch.bfloat16):
        return model(input_ids=sources, attention_mask=sources != PAD, labels=labels).loss


def train(model: Any, examples: Examples, *, seconds: float, steps: int, batch: int, rate: float) -> tuple[int, float]:
    """AdamW until the time or the steps are over; the rate warms up and falls with the time that is left.

    Returns:
        Steps made, and the mean loss of the last tenth of them.
    """
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    start, losses = time.perf_counter(), []
    order = torch.empty(0, dtype=torch.long)
    model.train()
    for step in range(steps):
        done = max((time.perf_counter() - start) / seconds, step / steps)
        if done >= 1.0:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / 50, 1.0 - done)
        if len(order) < batch:
            order = torch.randperm(len(examples.sources), generator=generator)
        index, order = order[:batch], order[batch:]
        loss = loss_of(model, *examples.rows(index))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            print(f"  step {step + 1:5}, {done:4.0%}: loss {sum(losses[-100:]) / 100:.3f}", flush=True)
    last = losses[-max(len(losses) // 10, 1) :]
    return len(losses), sum(last) / len(last)


def write_summaries(model: Any, tokenizer: Tokenizer, examples: Examples, *, num_beams: int) -> list[str]:
    """What the model says about each source, by beam search."""
    model.eval()
    texts: list[str] = []
    for index in torch.arange(len(examples.sources)).split(32):
        sources, _ = examples.rows(index)
        rows = model.generate(
            sources, attention_mask=sources != PAD, max_new_tokens=24, num_beams=num_beams, no_repeat_ngram_size=3
        )
        texts += [text.strip() for text in tokenizer.decode_batch(rows.tolist())]
    return texts


def rouge_l(candidate: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin, 2004)."""
    first, second = (re.findall(r"[a-z0-9]+", plain(text)) for text in (candidate, reference))
    lengths = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            diagonal, lengths[place] = (
                lengths[place],
                diagonal + 1 if word == other else max(lengths[place], lengths[place - 1]),
            )
    return 2 * lengths[-1] / max(len(first) + len(second), 1)


def mean_rouge(candidates: Sequence[str], functions: Sequence[Function]) -> float:
    """Mean ROUGE-L, in percent."""
    scores = [rouge_l(text, function.summary) for text, function in zip(candidates, functions, strict=True)]
    return round(100 * sum(scores) / len(scores), 2)


def evaluate(model: Any, tokenizer: Tokenizer, functions: Sequence[Function], options: Any) -> dict[str, Any]:
    """Scores of the model and of the baselines on held-out functions, and samples."""
    examples = Examples.of(functions, tokenizer, length=options.length, target=options.target)
    texts = write_summaries(model, tokenizer, examples, num_beams=options.beams)
    samples = [
        {"package": function.package, "function": function.name, "docstring": function.summary, "written": text}
        for function, text in list(zip(functions, texts, strict=True))[:SHOWN]
    ]
    return {
        "rouge_l": mean_rouge(texts, functions),
        "rouge_l_first_line": mean_rouge([function.source.split("\n")[0] for function in functions], functions),
        "rouge_l_name": mean_rouge([function.name for function in functions], functions),
        "different_texts": len(set(texts)),
        "samples": samples,
    }


def main() -> None:
    """Collect, train, write, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="time to learn")
    parser.add_argument("--practice", type=float, default=0.3, help="share of the time in which names are repeated")
    parser.add_argument("--steps", type=int, default=100_000, help="most steps of the optimiser")
    parser.add_argument("--batch", type=int, default=32, help="functions of a step")
    parser.add_argument("--length", type=int, default=48, help="most tokens of a source")
    parser.add_argument("--target", type=int, default=24, help="most tokens of a summary")
    parser.add_argument("--width", type=int, default=128, help="width of the model")
    parser.add_argument("--vocabulary", type=int, default=4096, help="tokens of the tokenizer")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--functions", type=int, default=20_000, help="most functions to learn from")
    parser.add_argument("--per-package", type=int, default=800, help="most functions of one package")
    parser.add_argument("--evaluated", type=int, default=500, help="held-out functions")
    parser.add_argument("--beams", type=int, default=4, help="beams of the search")
    parser.add_argument("--output", type=Path, help="file for the results, JSON")
    options = parser.parse_args()
    torch.manual_seed(0)
    known, held_out = collect(options.functions, options.per_package)
    held_out = sorted(held_out, key=lambda function: zlib.crc32(function.source.encode()))[: options.evaluated]
    names = sorted({function.package for function in held_out})
    print(f"{len(known):,} functions to learn from, {len(held_out):,} held out, of {len(names)} other packages")
    tokenizer = train_tokenizer(known, options.vocabulary)
    model = make_model(tokenizer.get_vocab_size(), options.width)
    size = sum(parameter.numel() for parameter in model.parameters())
    examples = Examples.of(known, tokenizer, length=options.length, target=options.target)
    print(f"LongT5: {size:,} parameters, {tokenizer.get_vocab_size()} tokens")
    names_only = Examples.of(
        [replace(function, summary=function.name) for function in known],
        tokenizer,
        length=options.length,
        target=options.target,
    )
    start, seconds = time.perf_counter(), 60 * options.minutes
    settings = {"steps": options.steps, "batch": options.batch, "rate": options.rate}
    practised, _ = train(model, names_only, seconds=options.practice * seconds, **settings)
    steps, loss = train(model, examples, seconds=(1 - options.practice) * seconds, **settings)
    results: dict[str, Any] = {
        "train_functions": len(known),
        "held_out_functions": len(held_out),
        "held_out_packages": names,
        "parameters": size,
        "seconds": round(time.perf_counter() - start),
        "practice_steps": practised,
        "steps": steps,
        "loss": round(loss, 3),
        **{name: getattr(options, name) for name in ("batch", "length", "width", "vocabulary", "rate", "beams")},
    }
    results |= evaluate(model, tokenizer, held_out, options)
    for sample in results["samples"]:
        print(f"  {sample['function']}: {sample['written']!r} (docstring: {sample['docstring']!r})")
    for name in ("rouge_l", "rouge_l_name", "rouge_l_first_line"):
        print(f"{name}: {results[name]}")
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
