"""Prints the figures by which the layout of `src/longspan` is judged; `docs/architecture.md` keeps the last ones.

Run `python scripts/layout_bars.py` from the repository. It reads the sources and imports nothing of them.
"""

from __future__ import annotations

import ast
import itertools
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "longspan"
#: lines that make a pair of places, and the most places of one run that still say something
RUN, MOST_PLACES = 6, 8
#: the way of a reader from a task class to the windowed product: name looked up, file where it is defined
ROUTE = (
    ("class LongformerForTokenClassification", "models/longformer/torch_model.py"),
    ("def run(", "nn/torch/tasks.py"),
    ("class LongformerSelfAttention", "models/longformer/torch_layers.py"),
    ("def sliding_window_attention", "ops/torch/sliding_window.py"),
    ("def blocked_attention", "ops/torch/sliding_window_blocked.py"),
)
_FRAMEWORK = re.compile(r"torch|flax|keras")


def main() -> None:
    """Print one line a figure."""
    texts = {
        path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py"))
    }
    lines = {name: text.count("\n") for name, text in texts.items()}
    print(f"lines of src/longspan                        {sum(lines.values()):6d} in {len(lines)} files")
    for room in ("models", "nn", "ops", "fast", "generation", "pipelines"):
        print(f"  of {room + '/':38s} {sum(n for name, n in lines.items() if name.startswith(room + '/')):9d}")
    bodies = sorted(body for text in texts.values() for body in body_lengths(text))
    print(f"lines of a function's body: median {statistics.median(bodies):.0f}, 90th percentile", end=" ")
    print(f"{bodies[int(0.9 * len(bodies))]}, longest {bodies[-1]}, above 60: {sum(body > 60 for body in bodies)}")
    classes = defaultdict(list)
    for name, text in texts.items():
        found = re.match(r"models/\w+/(torch|keras|flax)_model\.py", name)
        if found:
            classes[found[1]] += task_class_lengths(text)
    for framework, lengths in sorted(classes.items()):
        print(f"lines of a task class in {framework + ':':8s} {statistics.mean(lengths):22.0f} (of {len(lengths)})")
    pairs = alike(texts)
    print(
        f"pairs of files with {RUN} equal lines             {len(pairs):6d}, within a file or a framework's classes "
        f"{sum(is_sibling(*pair) for pair in pairs)}"
    )
    for word, name in ROUTE:
        assert word in texts[name], f"{word!r} is no longer in {name}: the route has changed"
    print(f"files from a Longformer task class to the windowed product {len(ROUTE):d}")


def body_lengths(text: str) -> Iterator[int]:
    """Lines of each function's body, signature and docstring left out."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body:
                yield (node.end_lineno or 0) - body[0].lineno + 1


def task_class_lengths(text: str) -> list[int]:
    """Lines of each public class that ends in a task's name."""
    nodes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    tasks = [node for node in nodes if re.search(r"For[A-Z]\w+$|LMHeadModel$", node.name) and "Output" not in node.name]
    return [(node.end_lineno or 0) - node.lineno + 1 for node in tasks if "Module" not in node.name]


def alike(texts: dict[str, str]) -> set[tuple[str, str]]:
    """Pairs of files (or a file with itself) that share runs of equal lines, space and comments apart."""
    places: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for name, text in texts.items():
        stripped = (re.sub(r"\s+", " ", line).strip() for line in text.splitlines())
        kept = [line for line in stripped if re.search(r"\w", line) and not line.startswith(("#", "import ", "from "))]
        for start in range(len(kept) - RUN + 1):
            places[tuple(kept[start : start + RUN])].append((name, start))
    found: set[tuple[str, str]] = set()
    for where in places.values():
        if 2 <= len(where) <= MOST_PLACES:
            found.update((first, second) for (first, _), (second, _) in itertools.combinations(where, 2))
    return found


def is_sibling(first: str, second: str) -> bool:
    """True for one file, or the models' files of one framework."""
    kinds = [set(_FRAMEWORK.findall(name)) for name in (first, second)]
    return first == second or (kinds[0] == kinds[1] and first.startswith("models/") and second.startswith("models/"))


if __name__ == "__main__":
    main()
