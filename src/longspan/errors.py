"""Exceptions of longspan.

Every error that a caller can cause is a `LongspanError` and also the built-in exception that Python programmers
expect (`ValueError`, `OSError`, `ImportError`), so that both `except LongspanError` and existing handlers work.
Messages state the rule first, then what came. What to do is a section of the documentation, `topic`, which a traceback
names below the message and `longspan doctor --error TOPIC` prints.
"""

from __future__ import annotations

from functools import cached_property


class LongspanError(Exception):
    """Base class of all errors that longspan raises on purpose."""

    @property
    def topic(self) -> str:
        """The section of the documentation about errors like this, e.g. `"input_ids-must-lie-in"`; empty if none is."""
        from longspan.remedies import find_remedy

        found = find_remedy(str(self), tuple(one.__name__ for one in type(self).__mro__))
        return found.topic if found else ""

    @cached_property
    def __notes__(self) -> list[str]:  # type: ignore[override]  # found when it is shown, and then an attribute like any
        """The line that a traceback shows below the message."""
        return [f"(what to do: longspan doctor --error {self.topic})"] if self.topic else []


class ConfigError(LongspanError, ValueError):
    """A configuration value breaks a rule."""


class InputError(LongspanError, ValueError):
    """An argument of a call (ids, masks, labels, texts) breaks a rule."""


class CheckpointError(LongspanError, ValueError):
    """A checkpoint is damaged, or does not fit the model."""


class CheckpointNotFoundError(CheckpointError, OSError):
    """A directory, repository or file of a checkpoint does not exist or cannot be reached."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint holds something that would run code or reach outside its directory."""


class MissingFrameworkError(LongspanError, ImportError):
    """A class needs a framework that is not installed."""


#: module that is missing -> (name for people, extra that installs it)
_FRAMEWORKS = {
    "torch": ("PyTorch", "torch"),
    "jax": ("JAX", "flax"),
    "flax": ("Flax", "flax"),
    "keras": ("Keras", "keras"),
    "tensorflow": ("TensorFlow", "keras"),
}


def missing_framework(name: str, error: ModuleNotFoundError) -> MissingFrameworkError | None:
    """Translate a failed framework import into one line that names the extra to install.

    Args:
        name: What the user asked for, e.g. `"BertModel"`.
        error: The import error that was raised.

    Returns:
        The error to raise instead, or None if the missing module is not a framework.
    """
    module = (error.name or "").partition(".")[0]
    if module not in _FRAMEWORKS:
        return None
    label, extra = _FRAMEWORKS[module]
    return MissingFrameworkError(f"{name} needs {label}, which is not installed: pip install 'longspan[{extra}]'")
