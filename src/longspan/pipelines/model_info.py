"""What a checkpoint is and can do, without loading it: settings, parameters, tasks, and what a call will cost."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from longspan.auto import AutoConfig
from longspan.checkpoints.files import open_checkpoint
from longspan.checkpoints.hub import Source
from longspan.errors import InputError
from longspan.models.registry import get_family
from longspan.pipelines.backends import longest_input
from longspan.tasks import TASKS

_FRAMEWORKS = {"torch": "", "flax": "Flax", "keras": "TF"}
#: Arrays of (tokens, hidden size) and (tokens, feed-forward size) that are alive at once in a layer, about.
_HIDDEN_ARRAYS, _INNER_ARRAYS = 6, 2


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a checkpoint.

    Attributes:
        model_type: Its family.
        architectures: Classes that its config names.
        num_parameters: Numbers in its tensors.
        num_embedding: Those of them in embedding tables.
        dtypes: Tensors by type.
        num_bytes: Bytes of the weights.
        max_positions: Most tokens read at once; None for any number.
        tasks: Tasks that the family has classes for, by framework.
        settings: Sizes.
    """

    model_type: str
    architectures: list[str]
    num_parameters: int
    num_embedding: int
    dtypes: dict[str, int]
    num_bytes: int
    max_positions: int | None
    tasks: dict[str, list[str]]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """What a forward pass costs, as an estimate.

    Attributes:
        length: Tokens of a row.
        batch: Rows.
        num_bytes: Weights and what is alive of a layer, in float32.
        num_operations: Floating-point operations.
        seconds: Time at the rate that this machine's CPU reaches in a large matrix product.
    """

    length: int
    batch: int
    num_bytes: int
    num_operations: float
    seconds: float


def read_info(name: str) -> ModelInfo:
    """Read what a checkpoint is.

    Args:
        name: Directory or hub repository.

    Raises:
        CheckpointNotFoundError: there is no such checkpoint.
        CheckpointError: a file is damaged.
    """
    config = AutoConfig.from_pretrained(name)
    with open_checkpoint(Source(name)) as weights:
        sizes = {key: int(np.prod(weights.shape(key), dtype=np.int64)) for key in weights}
        dtypes = Counter(weights.dtype(key) for key in weights)
        num_bytes = sum(weights.nbytes(key) for key in weights)
    shown = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "num_labels", "attention_window",
             "chunk_size", "use_chunking", "local_radius", "encoder_attention_type")  # fmt: skip
    return ModelInfo(
        model_type=config.model_type,
        architectures=list(config.architectures or []),
        num_parameters=sum(sizes.values()),
        num_embedding=sum(size for key, size in sizes.items() if "embed" in key or key == "shared.weight"),
        dtypes=dict(dtypes),
        num_bytes=num_bytes,
        max_positions=longest_input(config),
        tasks=_tasks(config.model_type),
        settings={name: getattr(config, name) for name in shown if hasattr(config, name)},
    )


def estimate(name: str, *, length: int, batch: int = 1) -> Cost:
    """Estimate what one forward pass takes.

    Operations are `2 · tokens · parameters` without embeddings plus `4 · tokens · span · H` a layer for attention,
    where span is how many tokens one attends to; bytes are those of the weights and of some arrays of one layer.

    Args:
        name: Directory or hub repository.
        length: Tokens of a row.
        batch: Rows.

    Raises:
        InputError: `length` or `batch` is not positive, or the model reads less.
    """
    info, config = read_info(name), AutoConfig.from_pretrained(name)
    for what, value in (("length", length), ("batch", batch)):
        if value < 1:
            raise InputError(f"{what} must be at least 1. Received: {what}={value}")
    if info.max_positions is not None and length > info.max_positions:
        raise InputError(f"length must be at most the model's {info.max_positions} tokens. Received: length={length}")
    tokens, hidden = length * batch, int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or getattr(config, "d_ff", None) or 4 * hidden)
    attention = 4.0 * tokens * _span(config, length) * hidden * int(config.num_hidden_layers)
    operations = 2.0 * tokens * (info.num_parameters - info.num_embedding) + attention
    alive = 4 * tokens * (_HIDDEN_ARRAYS * hidden + _INNER_ARRAYS * inner)
    return Cost(length, batch, 4 * info.num_parameters + alive, operations, operations / _rate())


def _span(config: Any, length: int) -> float:
    """Tokens that one attends to."""
    if config.model_type == "longformer":
        windows = config.attention_window
        widths = windows if isinstance(windows, list) else [windows] * config.num_hidden_layers
        return min(float(length), float(np.mean(widths)) + 2)
    if config.model_type == "longt5":
        return min(float(length), float(3 * (config.local_radius + 1) + length / config.global_block_size))
    if config.model_type == "mega" and config.use_chunking:
        return float(min(length, int(config.chunk_size)))
    return float(length)


def _rate(size: int = 768) -> float:
    """Operations per second of a matrix product."""
    left = np.ones((size, size), np.float32)
    left @ left
    start = time.perf_counter()
    for _ in range(3):
        left @ left
    return 3 * 2 * size**3 / (time.perf_counter() - start)


def _tasks(model_type: str) -> dict[str, list[str]]:
    import longspan

    prefix, names = get_family(model_type).prefix, set(dir(longspan))
    return {
        framework: [task for task, facts in TASKS.items()
                    if any(f"{before}{prefix}{suffix}" in names for suffix in facts.suffixes)]
        for framework, before in _FRAMEWORKS.items()
    }  # fmt: skip
