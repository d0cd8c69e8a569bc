"""Which module holds the classes of a model type.

Everything is a string, so that looking a family up imports nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        package: Package of the family, e.g. `"longspan.models.bert"`.
        prefix: Beginning of its class names, e.g. `"Bert"`; `Flax` and `TF` come before it.
        class_names: Class suffixes that differ from those of the task table, e.g. `{"causal-lm": "LMHeadModel"}`.
    """

    package: str
    prefix: str


FAMILIES: dict[str, Family] = {
    "bert": Family("longspan.models.bert", "Bert"),
}
