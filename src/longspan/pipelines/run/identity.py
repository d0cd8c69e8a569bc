"""What a run is: everything that its results depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from longspan.checkpoints.files import open_checkpoint
from longspan.checkpoints.hub import Source
from longspan.configuration import CONFIG_NAME


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
    names = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
    return [path, *(source.require(name) for name in names)]
