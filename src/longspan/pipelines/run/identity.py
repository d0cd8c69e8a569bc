"""What a run is: everything that its results depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from longspan.checkpoints.files import open_checkpoint
from longspan.checkpoints.hub import Source
from longspan.checkpoints.untrusted import read_json
from longspan.configuration import CONFIG_NAME
from longspan.pipelines.backends.base import Backend

#: Fields of a configuration that say where it is from, and how this process treats it.
_PLACES = ("name_or_path", "_name_or_path", "transformers_version")


def identity_of(backend: Backend, fingerprint: str) -> dict[str, Any]:
    """Everything about a model that its results depend on.

    Args:
        backend: The model on its device.
        fingerprint: Digest of its checkpoint.

    Returns:
        JSON values by name: version of longspan, framework with versions, kind of device, types, implementation of
        attention, digests of the checkpoint and of the configuration with what was changed in it.
    """
    from longspan import __version__

    config = {name: value for name, value in backend.config.to_dict().items() if name not in _PLACES}
    return {
        "longspan": __version__,
        "framework": backend.framework,
        **backend.environment,
        "implementation": getattr(backend.config, "attn_implementation", None),
        "model": fingerprint,
        "config": digest_of_json(config),
    }


def digest_of_json(values: Any) -> str:
    """Digest (BLAKE2b, 128 bits, hexadecimal) of values that JSON can hold, or their representation where it cannot."""
    text = json.dumps(values, sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of the values in which two identities differ, those of nested ones with a dot."""
    found = []
    for name in sorted({*one, *other}):
        left, right = one.get(name), other.get(name)
        if isinstance(left, dict) and isinstance(right, dict):
            found += differences(left, right, f"{prefix}{name}.")
        elif left != right:
            found.append(prefix + name)
    return found


def add_checkpoint(digest: Any, source: Source, tokenizer: Tokenizer) -> None:
    """Update a digest of `hashlib` with the tokenizer, the settings and the weights of a model."""
    digest.update(tokenizer.to_str().encode())
    digest.update(source.require(CONFIG_NAME).read_bytes())
    for path in _weight_files(source):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)


def _weight_files(source: Source) -> list[Path]:
    """Files that hold the weights, an index first."""
    with open_checkpoint(source) as reader:
        path = reader.path
    if not path.name.endswith(".index.json"):
        return [path]
    names = sorted(set(read_json(path)["weight_map"].values()))
    return [path, *(source.require(name) for name in names)]
