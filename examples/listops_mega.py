r"""Train a MEGA on ListOps: nested lists of operators and digits, such as [MAX 2 [MIN 4 7 ] 0 ], whose value is asked.

The expressions are drawn by the published grammar (Nangia and Bowman, 2018, https://arxiv.org/abs/1804.06028) with the
numbers of Long Range Arena (Tay et al., 2020, https://arxiv.org/abs/2011.04006), which are the defaults; the model is
MEGA's for this task (Ma et al., 2022, https://arxiv.org/abs/2209.10655). The figure is the accuracy on expressions that
it has not seen, beside three tables of most frequent answers. The whole training of the paper, on a GPU, and the same
for nine minutes:

    python examples/listops_mega.py --device cuda --dtype bfloat16 --output results.json
    python examples/listops_mega.py --device cuda --dtype bfloat16 --minutes 9 --output results.json

Two cores learn short expressions in five minutes; that is another task, not to be compared with published figures:

    python examples/listops_mega.py --lengths 10 60 --max-depth 4 --max-args 5 --layers 4 --batch 32 --rate 3e-3 \
        --warm-up 100 --dropout 0 --minutes 5 --seed 1 --output results.json

Those settings were chosen by the expressions of seed 0.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import longspan

NAMES = ("[MIN", "[MAX", "[MED", "[SM")
PAD, DIGIT, END, OPERATOR = 0, 1, 11, 12  # ids: a digit is DIGIT + its value, an operator OPERATOR + its place in NAMES
NESTING = 0.25  # probability that an argument is an expression
FOREST = 1024  # expressions drawn at a time
BARREN = 100  # forests without anything new, after which there is taken to be nothing new
WINDOW = 16  # batches that are sorted by length together
BENCHMARK = {"lengths": [500, 2000], "max_depth": 10, "max_args": 10, "train_examples": 96_000}
PAPER = {"accuracy": 63.14, "accuracy_chunk_128": 58.76, "steps": 90_000, **BENCHMARK}


@dataclass
class Level:
    """Nodes of one depth in many trees; children of a node lie side by side, in the order of their parents.

    Attributes:
        operators: Place in NAMES; of no meaning where a node is a digit, (N,).
        arguments: Number of children, 0 for a digit, (N,).
        values: Digit, or value of the expression, (N,).
        sizes: Tokens, the brackets of the expression included, (N,).
    """

    operators: np.ndarray
    arguments: np.ndarray
    values: np.ndarray
    sizes: np.ndarray


def grow(rng: np.random.Generator, *, longest: int, max_depth: int, max_args: int) -> list[Level]:
    """Draw FOREST trees from the root down. The root is an operator; the deepest level has digits only.

    An argument is an expression with probability NESTING. A tree of `longest` tokens or more grows no further, since
    it will not be used.
    """
    tree, tokens, levels = np.arange(FOREST), np.zeros(FOREST, np.int64), []
    for depth in range(1, max_depth + 1):
        count = len(tree)
        inner = (rng.random(count) < NESTING) | (depth == 1)
        inner &= (depth < max_depth) & (tokens[tree] < longest)
        arguments = np.where(inner, rng.integers(2, max_args + 1, count), 0)
        operators, values = rng.integers(len(NAMES), size=count), rng.integers(10, size=count)
        levels.append(Level(operators, arguments, values, np.ones(count, np.int64)))
        tokens += np.bincount(tree, weights=1 + inner, minlength=FOREST).astype(np.int64)
        tree = np.repeat(tree, arguments)
        if not len(tree):
            break
    return levels


def settle(levels: Sequence[Level]) -> None:
    """Fill in values and sizes of expressions, from the deepest level up."""
    for upper, lower in reversed(list(itertools.pairwise(levels))):
        inner = np.flatnonzero(upper.arguments)
        counts = upper.arguments[inner]
        starts = np.cumsum(counts) - counts
        upper.sizes[inner] = 2 + np.add.reduceat(lower.sizes, starts)
        upper.values[inner] = apply(upper.operators[inner], lower.values, counts)


def apply(operators: np.ndarray, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Apply operators (N,) to their arguments, which lie side by side in `values`, `counts` (N,) of them each.

    MED is the median; of an even count it is the mean of the middle two, rounded down. SM is the sum modulo 10.
    """
    starts = np.cumsum(counts) - counts
    ordered = values[np.lexsort((values, np.repeat(np.arange(len(counts)), counts)))]
    median = (ordered[starts + (counts - 1) // 2] + ordered[starts + counts // 2]) // 2
    answers = (ordered[starts], ordered[starts + counts - 1], median, np.add.reduceat(values, starts) % 10)
    return np.choose(operators, answers)


def write(levels: Sequence[Level]) -> np.ndarray:
    """Ids of the tokens of all trees, one tree after the other, uint8."""
    sizes = levels[0].sizes
    ids, places = np.zeros(sizes.sum(), np.uint8), np.cumsum(sizes) - sizes
    for depth, level in enumerate(levels):
        inner = level.arguments > 0
        ids[places] = np.where(inner, OPERATOR + level.operators, DIGIT + level.values)
        ids[places[inner] + level.sizes[inner] - 1] = END
        if depth + 1 < len(levels):
            below, counts = levels[depth + 1].sizes, level.arguments[inner]
            before = np.cumsum(below) - below  # tokens of earlier nodes of the level below
            first = np.cumsum(counts) - counts
            places = before + np.repeat(places[inner] + 1 - before[first], counts)
    return ids


def expressions(seed: int, *, lengths: Sequence[int], max_depth: int, max_args: int) -> Iterator[tuple[bytes, int]]:
    """Different expressions and their values, without end.

    Args:
        seed: The same seed draws the same expressions.
        lengths: Bounds of the number of tokens, both exclusive, as in Long Range Arena. An operator with its bracket is
            one token, so are a digit and a closing bracket.
        max_depth: Levels, the one of digits included.
        max_args: Most arguments of an operator; at least it has two.

    Yields:
        Ids of the tokens, one byte each, and the value, 0 to 9.

    Raises:
        ValueError: no further expression of such lengths was found.
    """
    rng, seen, barren = np.random.default_rng(seed), set(), 0
    while barren < BARREN:
        barren += 1
        levels = grow(rng, longest=lengths[1], max_depth=max_depth, max_args=max_args)
        settle(levels)
        ids, sizes, values = write(levels), levels[0].sizes, levels[0].values
        ends = np.cumsum(sizes)
        for tree in np.flatnonzero((sizes > lengths[0]) & (sizes < lengths[1])):
            tokens = ids[ends[tree] - sizes[tree] : ends[tree]].tobytes()
            key = hashlib.blake2b(tokens, digest_size=16).digest()
            if key not in seen:
                seen.add(key)
                barren = 0
                yield tokens, int(values[tree])
    raise ValueError(
        "There must be enough different expressions of these lengths. "
        f"Received: lengths={tuple(lengths)}, max_depth={max_depth}, max_args={max_args}, which gave {len(seen):,}"
    )


def to_text(tokens: bytes) -> str:
    """Tokens as one reads them: `[MAX 2 9 [MIN 4 7 ] 0 ]`."""
    words = {END: "]"} | {DIGIT + value: str(value) for value in range(10)}
    words |= {OPERATOR + place: name for place, name in enumerate(NAMES)}
    return " ".join(words[token] for token in tokens)


@dataclass
class Examples:
    """Expressions one after the other.

    Attributes:
        ids: Tokens of all, uint8.
        sizes: Tokens of each, (N,).
        values: Value of each, (N,).
    """

    ids: np.ndarray
    sizes: np.ndarray
    values: np.ndarray

    @classmethod
    def take(cls, source: Iterator[tuple[bytes, int]], count: int) -> Examples:
        """The next `count` expressions."""
        ids, sizes, values = bytearray(), np.empty(count, np.int64), np.empty(count, np.int64)
        for place, (tokens, value) in enumerate(itertools.islice(source, count)):
            ids += tokens
            sizes[place], values[place] = len(tokens), value
        return cls(np.frombuffer(ids, np.uint8), sizes, values)

    def rows(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Some expressions, padded: ids (B, S) and values (B,)."""
        ids = np.full((len(index), self.sizes[index].max()), PAD)
        ends = self.ends[index]
        for row, (end, size) in enumerate(zip(ends, self.sizes[index], strict=True)):
            ids[row, :size] = self.ids[end - size : end]
        return torch.from_numpy(ids), torch.from_numpy(self.values[index])

    def __post_init__(self) -> None:
        """Find where each expression ends."""
        self.ends = np.cumsum(self.sizes)

    def batches(self, rng: np.random.Generator, size: int) -> Iterator[np.ndarray]:
        """Indices of batches, epoch after epoch; batches hold expressions of like length."""
        while True:
            order = rng.permutation(len(self.sizes))
            for window in np.split(order, range(size * WINDOW, len(order), size * WINDOW)):
                by_length = window[np.argsort(self.sizes[window], kind="stable")]
                parts = np.split(by_length, range(size, len(by_length), size))
                yield from (parts[place] for place in rng.permutation(len(parts)))


def baselines(known: Examples, held_out: Examples) -> dict[str, float]:
    """Accuracies of tables that hold the most frequent answer among the known expressions.

    The tables have one entry; one for each outermost operator; one for each outermost operator and what it makes of
    those of its arguments that are digits.
    """
    keys = {"majority": np.zeros_like, "outermost_operator": _outermost, "outermost_operator_and_digits": _shallow}
    scores = {}
    for name, key_of in keys.items():
        table = np.zeros((len(NAMES) * 11, 10), np.int64)
        known_keys, keys_held_out = (
            key_of(part.sizes if key_of is np.zeros_like else part) for part in (known, held_out)
        )
        np.add.at(table, (known_keys, known.values), 1)
        answers = (table + table.sum(axis=0) / (1 + table.sum())).argmax(axis=1)  # where nothing is known: the majority
        scores[name] = percent(answers[keys_held_out] == held_out.values)
    return scores


def _outermost(examples: Examples) -> np.ndarray:
    """Place in NAMES of the outermost operators, (N,)."""
    return examples.ids[examples.ends - examples.sizes].astype(np.int64) - OPERATOR


def _shallow(examples: Examples) -> np.ndarray:
    """Outermost operator times 11, and its value on its own digits, 10 if it has none, (N,)."""
    ids, operators = examples.ids, _outermost(examples)
    depth = np.cumsum((ids >= OPERATOR).astype(np.int8) - (ids == END), dtype=np.int32)
    own = np.flatnonzero((depth == 1) & (ids < END))
    counts = np.bincount(np.searchsorted(examples.ends, own, side="right"), minlength=len(operators))
    found, values = counts > 0, np.full(len(operators), 10)
    values[found] = apply(operators[found], ids[own].astype(np.int64) - DIGIT, counts[found])
    return operators * 11 + values


def percent(right: np.ndarray) -> float:
    """Share of what is true, in percent."""
    return round(100 * float(right.mean()), 2)


class MeanPoolClassifier(nn.Module):
    """MEGA, the mean of its states, a hidden layer and ten classes, as in the paper's runs on Long Range Arena.

    Args:
        config: Settings of the backbone.
    """

    def __init__(self, config: longspan.MegaConfig) -> None:
        super().__init__()
        self.mega = longspan.MegaModel(config, add_pooling_layer=False)
        self.dense = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.out = nn.Linear(2 * config.hidden_size, config.num_labels)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores of the classes, (B, 10)."""
        states = self.mega(ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.to(states.dtype).unsqueeze(-1)
        mean = (states * weights).sum(dim=1) / weights.sum(dim=1)
        return self.out(nn.functional.gelu(self.dense(mean)))


class FirstTokenClassifier(nn.Module):
    """`MegaForSequenceClassification`, which reads the state of the first token: here, the outermost operator.

    Args:
        config: Settings of the model.
    """

    def __init__(self, config: longspan.MegaConfig) -> None:
        super().__init__()
        self.model = longspan.MegaForSequenceClassification(config)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores of the classes, (B, 10)."""
        return self.model(ids, attention_mask=attention_mask).logits


POOLINGS = {"mean": MeanPoolClassifier, "first": FirstTokenClassifier}


def make_model(options: argparse.Namespace) -> nn.Module:
    """The paper's MEGA for this task; width, depth, chunks, normalisation and bias can be set otherwise.

    The settings are those of the published command for ListOps. Its moving average sees 1,024 tokens, here it sees all.
    """
    config = longspan.MegaConfig(
        vocab_size=OPERATOR + len(NAMES),
        num_labels=10,
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        intermediate_size=2 * options.width,
        nffn_hidden_size=2 * options.width,
        shared_representation_size=64,
        ema_projection_size=16,
        activation="silu",
        attention_activation="softmax",
        normalization_type=options.normalization,
        normalize_before_mega=options.pre_norm,
        normalize_before_ffn=options.pre_norm,
        relative_positional_bias=options.bias,
        max_positions=max(options.lengths[1], options.chunk),
        use_chunking=options.chunk > 0,
        chunk_size=options.chunk or -1,
        dropout_prob=options.dropout,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        nffn_activation_dropout_prob=0.0,
        classifier_dropout=0.0,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=None,
    )
    return POOLINGS[options.pooling](config)


def scores_of(model: nn.Module, ids: Tensor, options: argparse.Namespace) -> Tensor:
    """Scores of the ten values in float32, (B, 10)."""
    ids = ids.to(options.device)
    with torch.autocast(options.device, torch.bfloat16, enabled=options.dtype == "bfloat16"):
        return model(ids, ids != PAD).float()


def clock(device: str) -> float:
    """Seconds of training: on a CPU those that the main thread computes, so that a stopped process does not age."""
    return time.thread_time() if device == "cpu" else time.perf_counter()


def train(model: nn.Module, examples: Examples, options: argparse.Namespace) -> dict[str, Any]:
    """AdamW with a linear warm-up and a linear fall to zero, until the steps or the minutes are over."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options.rate, betas=(0.9, 0.98), weight_decay=options.weight_decay
    )
    batches = examples.batches(np.random.default_rng(options.seed), options.batch)
    start, losses, right = clock(options.device), [], []
    model.train()
    for step in range(options.steps):
        seconds = clock(options.device) - start
        done = max(seconds / (60 * options.minutes), step / options.steps)
        if done >= 1.0:
            break
        for group in optimizer.param_groups:
            group["lr"] = options.rate * min((step + 1) / options.warm_up, 1.0 - done)
        ids, values = examples.rows(next(batches))
        scores = scores_of(model, ids, options)
        loss = nn.functional.cross_entropy(scores, values.to(options.device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        right.append(percent((scores.argmax(dim=1).cpu() == values).numpy()))
        if (step + 1) % 100 == 0:
            print(
                f"  step {step + 1:6}, {done:4.0%}: loss {np.mean(losses[-100:]):.3f}, {np.mean(right[-100:]):.1f} %",
                flush=True,
            )
    return {
        "steps": len(losses),
        "epochs": round(len(losses) * options.batch / len(examples.sizes), 2),
        "seconds": round(clock(options.device) - start),
        "train_loss": round(float(np.mean(losses[-100:])), 3),
        "train_accuracy": round(float(np.mean(right[-100:])), 2),
    }


@torch.no_grad()
def evaluate(model: nn.Module, examples: Examples, options: argparse.Namespace) -> float:
    """Accuracy in percent."""
    model.eval()
    right = np.zeros(len(examples.sizes), bool)
    order = np.argsort(examples.sizes, kind="stable")
    for index in np.split(order, range(options.batch, len(order), options.batch)):
        ids, values = examples.rows(index)
        right[index] = (scores_of(model, ids, options).argmax(dim=1).cpu() == values).numpy()
    return percent(right)


def read_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; leaves with an error if an option cannot be served."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the matrix products")
    add("--minutes", type=float, default=float("inf"), help="most minutes of training")
    add("--steps", type=int, default=PAPER["steps"], help="most steps of the optimiser")
    add("--lengths", type=int, nargs=2, default=BENCHMARK["lengths"], metavar=("LO", "HI"), help="LO < tokens < HI")
    add("--max-depth", type=int, default=BENCHMARK["max_depth"], help="levels, the one of digits included")
    add("--max-args", type=int, default=BENCHMARK["max_args"], help="most arguments of an operator")
    add("--train-examples", type=int, default=BENCHMARK["train_examples"])
    add("--eval-examples", type=int, default=2000, help="held-out expressions")
    add("--layers", type=int, default=6)
    add("--width", type=int, default=80, help="width of the states, and half that of values and feed-forward layers")
    add("--chunk", type=int, default=0, help="tokens of a chunk of attention; 0 for none, the paper has 128 as well")
    add("--pooling", default="mean", choices=tuple(POOLINGS), help="`first`: MegaForSequenceClassification as it is")
    add("--normalization", default="layernorm", choices=("layernorm", "scalenorm", "rmsnorm", "batchnorm"))
    add("--pre-norm", action="store_true", help="normalise before, not after")
    add("--bias", default="simple", choices=("simple", "rotary"), help="relative positions in the attention")
    add("--dropout", type=float, default=0.1)
    add("--batch", type=int, default=64, help="expressions of a step")
    add("--rate", type=float, default=1e-3, help="highest learning rate")
    add("--warm-up", type=int, default=3000, help="steps until the highest learning rate")
    add("--weight-decay", type=float, default=0.01)
    add("--seed", type=int, default=0, help="of expressions, weights and order")
    add("--output", type=Path, help="file for the results, JSON")
    options = parser.parse_args(words)
    low, high = options.lengths
    if not 3 <= low < high - 1:
        parser.error(f"--lengths needs 3 <= LO < HI - 1. Received: {low} {high}")
    for name, least in (("max_depth", 2), ("max_args", 2), ("chunk", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}. Received: {getattr(options, name)}")
    for name in ("minutes", "steps", "train_examples", "eval_examples", "layers", "width", "batch", "rate", "warm_up"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be positive. Received: {getattr(options, name)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that PyTorch can use. Received: none")
    return options


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the results say of the data and the model, and whether the data are the benchmark's."""
    data = {name: getattr(options, name) for name in (*BENCHMARK, "eval_examples")}
    same = all(data[name] == value for name, value in BENCHMARK.items())
    names = ("layers", "width", "chunk", "pooling", "normalization", "pre_norm", "bias", "dropout", "batch", "rate")
    return {
        "task": "ListOps as in Long Range Arena" if same else "shorter ListOps: not to be compared with the paper",
        **data,
        **{name: getattr(options, name) for name in (*names, "warm_up", "weight_decay", "seed", "dtype", "device")},
    }


def main() -> None:
    """Draw, train, compare."""
    options = read_options()
    torch.manual_seed(options.seed)
    source = expressions(options.seed, lengths=options.lengths, max_depth=options.max_depth, max_args=options.max_args)
    start = time.perf_counter()
    held_out = Examples.take(source, options.eval_examples)
    known = Examples.take(source, options.train_examples)
    print(f"{len(known.sizes):,} expressions of {known.sizes.mean():.0f} tokens on average to learn from, ", end="")
    print(f"{len(held_out.sizes):,} held out, in {time.perf_counter() - start:.0f} s, such as")
    print(f"  {to_text(held_out.ids[: held_out.sizes[0]].tobytes())} = {held_out.values[0]}"[:400])
    tables = baselines(known, held_out)
    print(", ".join(f"{name}: {score} %" for name, score in tables.items()))
    model = make_model(options).to(options.device)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"MEGA: {size:,} parameters")
    trained = train(model, known, options)
    results = settings_of(options) | {"mean_tokens": round(float(known.sizes.mean()), 1), "parameters": size} | trained
    results |= {"accuracy": evaluate(model, held_out, options), "baseline_accuracy": tables, "paper": PAPER}
    print(f"{results['accuracy']} % on held-out expressions after {trained['steps']:,} steps, {trained['seconds']} s")
    print(f"({results['task']}; the paper: {PAPER['accuracy']} % after {PAPER['steps']:,} steps, 500 to 2,000 tokens)")
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
