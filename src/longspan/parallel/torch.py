"""Context parallelism in PyTorch: each process of a group holds an equal share of every sequence.

What a model needs of other shares, it asks for itself (`longspan.ops.torch.context`): Longformer and LongT5 the tokens
of the windows that cross a border, the global tokens or summaries and their sums; MEGA the state of its average, and,
if it is not chunked, all keys and values.

    group = torch.distributed.new_group(...)               # or None for all processes
    context_parallel(model, group)
    loss = model(**split_tokens(model, batch)).loss        # that of the whole sequence, in each process
    loss.backward()
    sum_gradients(model)                                   # or DistributedDataParallel with size * loss
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch import distributed as dist

from longspan.errors import InputError
from longspan.inputs import INPUTS
from longspan.nn.torch.base import PreTrainedModel
from longspan.ops.torch.context import ContextShard, ReadsContext

#: families whose operations know their neighbours
FAMILIES = ("longformer", "longt5", "mega")


def context_parallel(model: nn.Module, group: dist.ProcessGroup | None = None, *, undo: bool = False) -> nn.Module:
    """Let a model read, from now on, the share of each sequence that this process holds.

    Process r of n gets the tokens r·S … (r + 1)·S − 1 of each row, and the states and scores of these tokens. Losses,
    and scores of whole sequences, are the same in all processes; gradients of parameters are this process's part of a
    sum (`sum_gradients`). All processes must make the same calls. Positions that are given (`start_positions`) count
    from the first token of the sequence; a decoder's inputs and labels are given whole.

    Args:
        model: A Longformer, LongT5 or MEGA of any task, or a module that has one inside; changed in place.
        group: The processes, in the order of their tokens; None for all.
        undo: Let the model read whole sequences again.

    Returns:
        The model.

    Raises:
        InputError: there is no process group, or nothing in the model can share a sequence.
    """
    models = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    others = sorted({type(part).__name__ for part in models if part.config.model_type not in FAMILIES})
    if others or not models:
        found = ", ".join(others) or type(model).__name__
        raise InputError(f"a sequence can be shared by models of {', '.join(FAMILIES)}. Received: {found}")
    shard = None if undo else ContextShard(_group(group))
    for module in model.modules():
        if isinstance(module, ReadsContext):
            module.context_shard = shard
    return model


def split_tokens(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The share of this process of the arguments of a call.

    Args:
        model: What `context_parallel` returned.
        inputs: Arguments by name. Those with an axis of tokens, (B, S, ...), or (B, C, S) for ids and masks of multiple
            choice, are split; labels are, if they are (B, S) as `input_ids` or `inputs_embeds` are and not those of a
            decoder. Others are whole.

    Returns:
        The same arguments with S / n tokens; views.

    Raises:
        InputError: the number of processes does not divide the number of tokens, or the model reads whole sequences.
    """
    shard, has_decoder = _shard_of(model)
    axes = {name: _token_axis(name, value, inputs) for name, value in inputs.items()}
    if has_decoder:
        axes["labels"] = None
    split = dict(inputs)
    for name, axis in axes.items():
        if axis is None:
            continue
        length = inputs[name].shape[axis]
        if length % shard.size:
            raise InputError(
                f"the tokens of {name} must be a multiple of the {shard.size} processes; pad them. "
                f"Received: {length} tokens"
            )
        part = length // shard.size
        split[name] = inputs[name].narrow(axis, shard.start(part), part)
    return split


def sum_gradients(model: nn.Module) -> None:
    """Add up the gradients of a model's parameters over the processes that share its sequences, in place.

    Args:
        model: What `context_parallel` returned, after `backward`.

    Raises:
        InputError: the model reads whole sequences.
    """
    shard, _ = _shard_of(model)
    for parameter in model.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad, group=shard.group)


def _shard_of(model: nn.Module) -> tuple[ContextShard, bool]:
    """The share that a model reads, and whether it has a decoder beside what is shared."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and part.context_shard is not None:
            return part.context_shard, bool(part.config.is_encoder_decoder)
    raise InputError(
        f"context_parallel(model) comes first. Received: a {type(model).__name__} that reads whole sequences"
    )


def _group(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    if not (dist.is_available() and dist.is_initialized()):
        raise InputError(
            "sharing a sequence needs torch.distributed.init_process_group(...). Received: no process group"
        )
    found = dist.group.WORLD if group is None else group
    assert found is not None
    return found


def _token_axis(name: str, value: Any, inputs: Mapping[str, Any]) -> int | None:
    """Which axis of an argument counts tokens; None if none does."""
    if not isinstance(value, Tensor) or name not in INPUTS:
        return None
    if name == "labels":
        read = inputs.get("input_ids", inputs.get("inputs_embeds"))
        return 1 if read is not None and value.shape == read.shape[:2] else None
    entry = INPUTS[name]
    axes = next((axes for axes in entry.axes if len(axes) == value.dim()), None)
    if axes is None and entry.folds and value.dim() == len(entry.axes[0]) + 1:  # choices behind the batch
        return 2
    return axes.index("tokens") if axes is not None and "tokens" in axes else None
