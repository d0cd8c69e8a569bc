"""Objects that refuse to be given what they would not read."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

from longspan.errors import InputError


class UnknownAttributeError(InputError, AttributeError):
    """An attribute was set that nothing reads."""


class FixedAttributes:
    """Refuses attributes that nothing reads, so that a misspelt or foreign setting is an error and not without effect.

    What may be set is annotated in the class or a base of it, is a property that can be set, or begins with `_`.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and not any(name in known for known in self._known()):
            names = sorted({each for base in type(self).__mro__ for each in vars(base).get("__annotations__", ())})
            raise UnknownAttributeError(
                f"What may be set on a {type(self).__name__} is {', '.join(n for n in names if n[0] != '_')}. "
                f"Received: {name}={value!r}"
            )
        super().__setattr__(name, value)

    def _known(self) -> Iterator[Container[str]]:
        for base in type(self).__mro__:
            yield vars(base)
            yield vars(base).get("__annotations__", ())
