"""What to do about an error, by the table `remedies.toml`."""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Remedy:
    """What to do about the errors of one kind.

    Attributes:
        heading: Words of the message, or the class of the error; the heading of the section of the documentation.
        advice: What to do.
        kind: The class of the errors, or empty.
        patterns: Regular expressions that find the message by its rule. Entries for the rest of a class have none.
    """

    heading: str
    advice: str
    kind: str = ""
    patterns: tuple[str, ...] = ()

    @property
    def topic(self) -> str:
        """The anchor of the section, e.g. `"input_ids-must-lie-in"`."""
        return re.sub(r"[^\w\- ]", "", self.heading.lower()).replace(" ", "-")


@functools.cache
def remedies() -> tuple[Remedy, ...]:
    """All entries, in the order in which they are tried."""
    table = tomllib.loads((files("longspan") / "remedies.toml").read_text(encoding="utf-8"))["remedy"]
    return tuple(
        Remedy(
            entry["heading"],
            " ".join(entry["advice"].split()),
            entry.get("kind", ""),
            tuple(entry.get("patterns", ())),
        )
        for entry in table
    )


def find_remedy(message: str, classes: tuple[str, ...] = ()) -> Remedy | None:
    """The entry of a message.

    Args:
        message: What the error says. What it received is the user's and tells nothing.
        classes: Names of its classes, if they are known. Without them, only messages with words of their own are found.
    """
    rule = message.partition("Received")[0]
    for remedy in remedies():
        fits = not remedy.kind or remedy.kind in classes or (not classes and remedy.patterns)
        if fits and (not remedy.patterns or any(re.search(pattern, rule) for pattern in remedy.patterns)):
            return remedy
    return None
