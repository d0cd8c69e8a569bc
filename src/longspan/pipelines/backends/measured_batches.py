"""How many tokens a batch has, and how many batches run side by side: measured on this machine, once.

What suits a processor depends on its caches, its cores and its instructions, and on the width and type of a model. What
was found is kept in the folder of `huggingface_hub` for what libraries keep (`HF_ASSETS_CACHE`), a file for each kind
of model and processor; without it the default holds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Batching(NamedTuple):
    """Positions of all batches at a time, and how many those are."""

    tokens: int
    lanes: int


#: what holds until something else is found to be faster
DEFAULT = Batching(2048, 2)
#: tokens of work from which on it pays to measure, and of a call that counts as such work: a measurement reads about
#: 120,000 with two threads, and a service should not stop for it
WORTH_MEASURING, IS_BULK = 1_000_000, 50_000
#: tokens of a text that is tried, and batches for each lane
LENGTH, BATCHES = 128, 2
#: positions of one batch that are tried
_TOKENS = (512, 1024, 2048, 4096)
#: what takes more of the time of the default than this is not taken in its place: machines are noisy
_MUCH_FASTER = 0.9
_ROUNDS = 3


def choose(threads: int, seconds: Callable[[Batching], float]) -> Batching:
    """The fastest way of those tried; the default where none is much faster.

    First batches of several sizes are tried, then other numbers of them side by side.

    Args:
        threads: Most batches side by side.
        seconds: Measures the time that a token takes.
    """
    default = Batching(DEFAULT.tokens, min(DEFAULT.lanes, threads))
    best, of_best = _fastest([default, *(Batching(size * default.lanes, default.lanes) for size in _TOKENS)], seconds)
    lanes = [lanes for lanes in (1, *_doublings(threads)) if lanes != best.lanes]
    other, of_other = _fastest([best, *(Batching(best.tokens // best.lanes * each, each) for each in lanes)], seconds)
    return other if of_other < _MUCH_FASTER * of_best else best


def _fastest(tried: list[Batching], seconds: Callable[[Batching], float]) -> tuple[Batching, float]:
    """The fastest, or the first if none is much faster than it; and its time."""
    tried = list(dict.fromkeys(tried))
    taken = {each: seconds(each) for each in tried}
    for each in tried * (_ROUNDS - 1):
        taken[each] = min(taken[each], seconds(each))
    best = min(tried, key=lambda each: taken[each])
    best = best if taken[best] < _MUCH_FASTER * taken[tried[0]] else tried[0]
    return best, taken[best]


def _doublings(threads: int) -> list[int]:
    """2, 4, 8, …, at most `threads`."""
    return [2**power for power in range(1, threads.bit_length())]


def stored(kind: Mapping[str, Any]) -> Batching | None:
    """What was found for a kind of model and processor."""
    try:
        found = json.loads(_path(kind).read_text(encoding="utf-8"))
        batching = Batching(int(found["tokens"]), int(found["lanes"]))
    except (OSError, ValueError, TypeError, KeyError):  # not there, or not ours
        return None
    return batching if min(batching) > 0 else None


def store(kind: Mapping[str, Any], batching: Batching) -> None:
    """Keep what was found; where nothing can be written it is measured again another time."""
    try:
        path = _path(kind)
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps({**kind, **batching._asdict()}), encoding="utf-8")
        scratch.replace(path)
    except (OSError, ValueError):
        return


def _path(kind: Mapping[str, Any]) -> Path:
    from huggingface_hub import cached_assets_path  # a query needs it not

    name = hashlib.sha256(json.dumps(kind, sort_keys=True).encode()).hexdigest()[:16]
    folder: Path = cached_assets_path("longspan", "batches", "cpu")
    return folder / f"{name}.json"
