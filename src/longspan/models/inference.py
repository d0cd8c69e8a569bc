"""The family of a checkpoint whose `config.json` names none: its settings or names of weights tell it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longspan.errors import CheckpointNotFoundError, ConfigError
from longspan.models.registry import FAMILIES

#: settings that only one family has
_OWN_SETTINGS = {
    "attention_window": "longformer",
    "local_radius": "longt5",
    "ema_projection_size": "mega",
    "lambda_std_dev": "diffllama",
}


def resolve_model_type(
    content: Mapping[str, Any],
    name: str | os.PathLike[str],
    given: str | None = None,
    **source: Any,
) -> str:
    """The model type of a checkpoint.

    Args:
        content: Its `config.json`.
        name: Directory or hub repository; its weights' names are read if the configuration does not tell.
        given: What the caller says; it is used where the configuration names none.
        **source: Further arguments of `longspan.checkpoints.hub.Source`.

    Raises:
        ConfigError: nothing tells the family.
    """
    stored = content.get("model_type") or given
    if stored:
        return str(stored)
    for family_type, family in FAMILIES.items():
        names = [str(each).removeprefix("TF").removeprefix("Flax") for each in content.get("architectures") or []]
        if any(each.startswith(family.prefix) for each in names):
            return family_type
    found = {family for setting, family in _OWN_SETTINGS.items() if setting in content} or _of_weights(name, source)
    if len(found) == 1:
        return found.pop()
    raise ConfigError(
        f"{name} names no model_type in its config.json, and neither its settings nor its weights tell one: pass "
        f"model_type=, one of {', '.join(FAMILIES)}. Received: model_type=None"
    )


def _of_weights(name: str | os.PathLike[str], arguments: Mapping[str, Any]) -> set[str]:
    """Families whose name stands before names of weights; BERT by its layers beside a WordPiece vocabulary."""
    from longspan.checkpoints.files import open_checkpoint
    from longspan.checkpoints.hub import Source

    if Path(name).is_file():
        return set()
    source = Source(name, **arguments)
    try:
        with open_checkpoint(source) as reader:
            keys = list(reader)
            named = {key.partition(".")[0] for key in keys} & set(FAMILIES)
            bare = "encoder.layer.0.attention.self.query.weight" in keys and "pooler.dense.weight" in keys
            return {"bert"} if not named and bare and source.find("vocab.txt") is not None else named
    except CheckpointNotFoundError:
        return set()
