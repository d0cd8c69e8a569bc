"""Sharing the files of a job among runs that know nothing of each other."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from longspan.documents.walk import SourceFile
from longspan.errors import InputError


@dataclass(frozen=True)
class FileShard:
    """One share of the files.

    Attributes:
        number: Which share, from 1.
        count: How many there are.

    Raises:
        InputError: there is no such share.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise InputError(f"A shard must be i/n with i from 1 to n, such as 2/3. Received: {self}")

    @classmethod
    def parse(cls, text: str) -> FileShard:
        """The share that `text`, such as `"2/3"`, names; `InputError` if it names none."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        if found is None:
            raise InputError(f"A shard must be i/n with i from 1 to n, such as 2/3. Received: {text}")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def take(self, files: Sequence[SourceFile]) -> list[SourceFile]:
        """The files of this share: neighbours, so that all shares one after another are `files`.

        A file belongs to the share that the middle of its bytes falls into, which makes shares of nearly equal sizes.
        """
        sizes = [file.size + 1 for file in files]  # files without bytes have a middle too
        ends = list(accumulate(sizes))
        whole = 2 * ends[-1] if ends else 1
        middles = (2 * end - size for end, size in zip(ends, sizes, strict=True))
        shares = [middle * self.count // whole for middle in middles]
        return [file for file, share in zip(files, shares, strict=True) if share == self.number - 1]


def listing_digest(files: Sequence[SourceFile]) -> str:
    """Digest of the names and sizes of `files`: shares fit together if it is the same for all."""
    return hashlib.sha256(json.dumps([[file.name, file.size] for file in files]).encode()).hexdigest()
