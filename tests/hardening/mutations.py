"""Mutations of the files of a checkpoint, from a fixed seed, and what a load of the result may be.

A load of a mutant must equal the load of the original, or end in a `LongspanError` that names a file of the
checkpoint. Values of formats without checksums (old `.bin`, msgpack, HDF5, safetensors of others) are numbers like any
other, so a changed bit in them is another sound file: there, only what describes the values is mutated in place.
"""

from __future__ import annotations

import json
import random
import resource
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longspan.errors import LongspanError

#: seconds of the processor that a load may take
SECONDS = 5
#: address space of the process may grow by so many bytes in a battery of small files
MEMORY = 256 << 20


class ReportedError(LongspanError):
    """A load that works and says in its report what differs."""


@dataclass(frozen=True)
class Subject:
    """A sound checkpoint and how to load it.

    Attributes:
        name: What it is called in a report.
        file: The file that is mutated.
        content: Its bytes.
        load: Loads the directory; gives what must stay equal.
        regions: Byte ranges whose change must be noticed or harmless; the whole file if it has checksums.
        seeds: Byte strings that a mutation may put into the file.
    """

    name: str
    file: Path
    content: bytes
    load: Callable[[Path], Any]
    regions: tuple[tuple[int, int], ...]
    seeds: tuple[bytes, ...] = ()


@dataclass
class Tally:
    """What became of the mutants of a subject; `reported` is a load whose report says what differs."""

    equal: int = 0
    refused: int = 0
    reported: int = 0
    slowest: float = 0.0


def mutants(subject: Subject, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield (what was done, content) of `count` mutants."""
    rng = random.Random(f"{subject.name} {seed}")
    for _ in range(count):
        change = rng.choice((flip, flip, byte, cut, insert, swap, splice, number, delete))
        yield change.__name__, change(rng, subject)


def place(rng: random.Random, subject: Subject) -> int:
    """A position in one of the regions."""
    start, end = rng.choice(subject.regions)
    return rng.randrange(start, max(start + 1, end))


def flip(rng: random.Random, subject: Subject) -> bytes:
    content, at = bytearray(subject.content), place(rng, subject)
    content[at] ^= 1 << rng.randrange(8)
    return bytes(content)


def byte(rng: random.Random, subject: Subject) -> bytes:
    content, at = bytearray(subject.content), place(rng, subject)
    content[at] = rng.choice((0, 0xFF, 0x7F, 0x80, rng.randrange(256)))
    return bytes(content)


def number(rng: random.Random, subject: Subject) -> bytes:
    """Overwrite eight bytes with a number at the edge of a type."""
    content, at = bytearray(subject.content), place(rng, subject)
    value = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1))
    piece = struct.pack(rng.choice("<>") + "Q", value)
    if in_regions(subject, at, at, 8):
        content[at : at + 8] = piece
    return bytes(content)


def cut(rng: random.Random, subject: Subject) -> bytes:
    return subject.content[: rng.randrange(len(subject.content))]


def insert(rng: random.Random, subject: Subject) -> bytes:
    at = rng.randrange(len(subject.content) + 1)
    extra = rng.choice((b"\0", b"\0" * 8, rng.randbytes(4), rng.randbytes(64), *subject.seeds))
    return subject.content[:at] + extra + subject.content[at:]


def delete(rng: random.Random, subject: Subject) -> bytes:
    at = rng.randrange(len(subject.content))
    return subject.content[:at] + subject.content[at + rng.choice((1, 4, 8, 100)) :]


def swap(rng: random.Random, subject: Subject) -> bytes:
    """Exchange two stretches of what describes the values."""
    content, size = bytearray(subject.content), rng.choice((1, 2, 4, 16))
    one, two = place(rng, subject), place(rng, subject)
    held = content[one : one + size], content[two : two + size]
    if len(held[0]) == len(held[1]) == size and abs(one - two) >= size and in_regions(subject, one, two, size):
        content[one : one + size], content[two : two + size] = held[1], held[0]
    return bytes(content)


def splice(rng: random.Random, subject: Subject) -> bytes:
    """Overwrite a stretch with another one, or with a seed."""
    content, size = bytearray(subject.content), rng.choice((2, 8, 32))
    source, target = place(rng, subject), place(rng, subject)
    piece = rng.choice(subject.seeds) if subject.seeds and rng.random() < 0.5 else content[source : source + size]
    if in_regions(subject, target, target, len(piece)):
        content[target : target + len(piece)] = piece
    return bytes(content)


def in_regions(subject: Subject, one: int, two: int, size: int) -> bool:
    return all(any(start <= at and at + size <= end for start, end in subject.regions) for at in (one, two))


def run(subject: Subject, cases: Iterator[tuple[str, bytes]], tally: Tally) -> None:
    """Load every mutant; raises `AssertionError` with the mutation for one that is neither equal nor refused."""
    expected = subject.load(subject.file.parent)
    seen = {subject.content}
    try:
        for index, (what, content) in enumerate(cases):
            if content in seen:
                tally.equal += 1
                continue
            subject.file.write_bytes(content)
            attempt(subject, f"{subject.name} {index} {what}", expected, tally)
    finally:
        subject.file.write_bytes(subject.content)


def attempt(subject: Subject, what: str, expected: Any, tally: Tally) -> None:
    started = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found = subject.load(subject.file.parent)
    except LongspanError as error:
        message = str(error)
        assert str(subject.file.parent) in message or subject.file.name in message, f"{what}: no file in {message!r}"
        assert len(message) < 20_000, f"{what}: a message of {len(message)} characters"
        tally.reported += isinstance(error, ReportedError)
        tally.refused += not isinstance(error, ReportedError)
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {str(error)[:500]}") from error
    else:
        assert equal(found, expected), f"{what}: another result without a word"
        tally.equal += 1
    seconds = time.process_time() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert seconds < SECONDS, f"{what}: {seconds:.1f} s"
    assert grown < MEMORY, f"{what}: {grown >> 20} MiB more"
    tally.slowest = max(tally.slowest, seconds)


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()
    return bool(one == two)


# -- JSON -----------------------------------------------------------------------------------------------------------

DEEP = json.loads("[" * 200 + "]" * 200)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 10**6, 10**12, 2**31, 2**63, 10**400, -(10**12)),
    *(1.5, -0.5, float("nan"), float("inf"), 1e308, -1e308, 1e-320, "", "a", "gelu", "\ud800", "x" * 5000, "../../etc"),
    *(
        [],
        [1],
        [None],
        {},
        {"a": 1},
        {"0": "a", "1": ["b"]},
        DEEP,
        [[1, 2], [3]],
        {"content": 3},
        {"1": {"content": "x"}},
    ),
)


def json_mutants(
    content: dict[str, Any], count: int, seed: int, extra: tuple[str, ...] = ()
) -> Iterator[tuple[str, bytes]]:
    """Yield JSON texts in which one or two values are of another kind, missing, doubled or new."""
    rng = random.Random(seed)
    for _ in range(count):
        changed = json.loads(json.dumps(content))
        done = [mutate(rng, changed, extra) for _ in range(rng.choice((1, 1, 1, 2)))]
        text = json.dumps(changed)
        if rng.random() < 0.1:
            key = rng.choice(list(content))
            text = text[:-1] + f", {json.dumps(key)}: {json.dumps(rng.choice(VALUES))}}}"
            done.append(f"{key} twice")
        if rng.random() < 0.05:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(("[" * 100_000, "{" * 100_000, '{"a":' * 100_000, "9" * 5000, "\0", ""))
            done.append("broken")
        yield "; ".join(done), text.encode("utf-8", "surrogatepass")


def mutate(rng: random.Random, root: Any, extra: tuple[str, ...]) -> str:
    node, path = root, []
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not path and extra and rng.random() < 0.3:
            keys = [key for key in extra if key not in node] or keys
        if not keys:
            return "nothing"
        key = rng.choice(keys)
        path.append(str(key))
        child = node[key] if not isinstance(node, dict) or key in node else None
        if isinstance(child, dict | list) and child and rng.random() < 0.7:
            node = child
            continue
        if rng.random() < 0.1 and isinstance(node, dict) and key in node:
            del node[key]
            return f"without {'.'.join(path)}"
        node[key] = rng.choice(VALUES)
        return f"{'.'.join(path)}={str(node[key])[:40]!r}"
