"""Gradient checkpointing: stacks of layers whose activations are recomputed in the backward pass."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class ModuleInfo(nn.Module):
    """A module that says where its parameters are and of what dtype."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are used; accelerate may keep them elsewhere until then."""
        device = next(self.parameters()).device
        if device.type == "meta":
            hooks = [module._hf_hook for module in self.modules() if hasattr(module, "_hf_hook")]
            parts = [part for hook in hooks for part in getattr(hook, "hooks", [hook])]
            places = [place for part in parts if (place := getattr(part, "execution_device", None)) is not None]
            return torch.device(places[0]) if places else device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the floating-point parameters."""
        return next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())


class CheckpointedLayers(ModuleInfo):
    """Base of encoders and decoders: runs their layers, recomputing activations if gradient checkpointing is on."""

    #: arguments of `torch.utils.checkpoint.checkpoint`, or None if activations are kept
    checkpoint_arguments: dict[str, Any] | None = None

    @property
    def gradient_checkpointing(self) -> bool:
        """True if activations are recomputed."""
        return self.checkpoint_arguments is not None

    def run_layer(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `layer`, with its activations recomputed in the backward pass if that is on."""
        arguments = self.checkpoint_arguments
        if arguments is None or not self.training or not torch.is_grad_enabled():
            return layer(*args, **kwargs)
        if getattr(layer, "keeps_activations", False):
            return layer(*args, **kwargs)
        if arguments.get("use_reentrant"):
            return _reentrant(layer, args, kwargs, arguments)
        return checkpoint(layer, *args, **arguments, **kwargs)

    def resolve_use_cache(self, use_cache: bool) -> bool:
        """A cache and recomputed activations exclude each other."""
        if use_cache and self.checkpoint_arguments is not None and self.training:
            warnings.warn("use_cache=True cannot be used with gradient checkpointing; no cache is kept", stacklevel=3)
            return False
        return use_cache


def set_checkpointing(model: nn.Module, arguments: dict[str, Any] | None, every_n_layers: int = 1) -> None:
    """Switch checkpointing of all stacks of `model`; None switches it off. Layers count over all stacks."""
    index = 0
    for stack in model.modules():
        if isinstance(stack, CheckpointedLayers):
            stack.checkpoint_arguments = arguments
            for layer in layers_of(stack):
                layer.keeps_activations = index % every_n_layers != 0  # type: ignore[assignment]  # a mark, no tensor
                index += 1


def layers_of(stack: nn.Module) -> list[nn.Module]:
    """The layers that a stack runs."""
    return [layer for child in stack.children() if isinstance(child, nn.ModuleList) for layer in child]


def _reentrant(layer: Callable[..., Any], args: Any, kwargs: Any, arguments: Mapping[str, Any]) -> Any:
    """Reentrant checkpointing sees positional tensors only: pass every tensor that takes a gradient as one."""
    tensors: list[Tensor] = []

    def take(value: Any) -> Any:
        if isinstance(value, Tensor) and value.requires_grad:
            tensors.append(value)
            return _Place(len(tensors) - 1)
        return value

    content = _map((args, kwargs), take)

    def run(*given: Tensor) -> Any:
        args, kwargs = _map(content, lambda value: given[value.index] if isinstance(value, _Place) else value)
        return layer(*args, **kwargs)

    return checkpoint(run, *tensors, **arguments)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor was."""

    index: int


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply `function` to what stands in tuples, lists, dicts and dataclasses."""
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return type(value)(_map(item, function) for item in value)
    if isinstance(value, dict):
        return {key: _map(item, function) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type | _Place):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        new = {name: _map(item, function) for name, item in fields.items()}
        changed = {name: item for name, item in new.items() if item is not fields[name]}
        return dataclasses.replace(value, **changed) if changed else value
    return function(value)
