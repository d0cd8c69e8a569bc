"""The base of all model outputs: named fields that also read as a dict and as a tuple."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, overload


class ModelOutput(Mapping[str, Any]):
    """Named results of a model; subclasses are dataclasses whose fields default to None.

    Fields that are None count as absent, both as keys and as tuple items:

    - attribute: `output.logits`
    - dict: `output["logits"]`, `output.keys()`, `**output`, `"loss" in output`
    - tuple: `output[0]`, `output[:2]`, `output.to_tuple()`; indices skip absent fields

    As with a dict, `len` counts and iteration yields the names of the present fields.
    """

    def to_tuple(self) -> tuple[Any, ...]:
        """The present fields in their order."""
        return tuple(value for _, value in self._present())

    def _present(self) -> list[tuple[str, Any]]:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
        pairs = ((field.name, getattr(self, field.name)) for field in fields)
        return [(name, value) for name, value in pairs if value is not None]

    @overload
    def __getitem__(self, key: str | int) -> Any: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Any, ...]: ...
    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            value = getattr(self, key) if key in self._names() else None
            if value is None:
                raise KeyError(key)
            return value
        return self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self._names():
            raise KeyError(f"{type(self).__name__} has no field {key!r}")
        setattr(self, key, value)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._present())

    def __len__(self) -> int:
        return len(self._present())

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key in self._names() and getattr(self, key) is not None

    @classmethod
    def _names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]  # a dataclass


def resolve(flag: bool | None, default: bool) -> bool:
    """An explicit argument wins over the configuration."""
    return default if flag is None else flag


def finish(output: ModelOutput, return_dict: bool) -> Any:
    """The output itself, or its present fields as a plain tuple."""
    return output if return_dict else output.to_tuple()
