"""Generating in several processes that share the weights of one model (FSDP, ZeRO), in PyTorch.

Sharded weights come together when a module is called, in all processes at once. A process whose rows have ended goes
on calling the model for as long as another one needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def in_step_with_peers(model: Any, wanted: bool | None) -> Iterator[None]:
    """Let all processes call `model` equally often, however long what each generates is.

    Args:
        model: A model with a language modelling head.
        wanted: Whether to; None does if `fully_shard` sharded the model. Without other processes, nothing happens.
    """
    if not _has_peers() or not (_is_sharded(model) if wanted is None else wanted):
        yield
        return
    # before what gathers the weights, so that all processes communicate in one order
    hook = model.register_forward_pre_hook(lambda *_: _any_runs(model, True) and None, prepend=True)
    try:
        yield
    finally:
        hook.remove()
        while _any_runs(model, False):
            model(**_idle_inputs(model))


def _any_runs(model: Any, runs: bool) -> bool:
    """True if this process or another one calls the model; all must ask at the same time."""
    flag = torch.full((1,), float(runs), device=model.device)
    torch.distributed.all_reduce(flag)
    return bool(flag)


def _idle_inputs(model: Any) -> dict[str, Any]:
    """One token, which goes through the modules that a step goes through."""
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    if not model.config.is_encoder_decoder:
        return {"input_ids": token, "attention_mask": torch.ones_like(token), "use_cache": False}
    source = torch.zeros(1, 1, model.config.hidden_size, dtype=model.dtype, device=model.device)
    return {"encoder_outputs": (source,), "decoder_input_ids": token, "use_cache": False}


def _has_peers() -> bool:
    """True in one of several processes that run together."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def _is_sharded(model: Any) -> bool:
    from torch.distributed.fsdp import FSDPModule  # imports much

    return isinstance(model, FSDPModule)
