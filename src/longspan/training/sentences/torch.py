"""Sentence encoders in training in PyTorch: the layers behind pooling hang on the transformer, as modules."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.embeddings.modules import Layer
from longspan.embeddings.pooling import Dense, LayerNorm, order_modes
from longspan.pipelines.backends.torch import pool
from longspan.training.options import TrainOptions


def model_of(encoder: Any, options: TrainOptions) -> nn.Module:
    """The transformer of an encoder; the weights of layers behind pooling are with it."""
    del options  # accelerate and the loop see to devices, precision and checkpointing
    model: nn.Module = encoder._backend.model
    for key, parameter in model.named_parameters():
        if key.startswith("pooler."):  # vectors do not depend on it
            parameter.requires_grad_(False)
    if encoder._modules.layers:
        model.sentence_layers = nn.ModuleList(map(_module_of, encoder._modules.layers))
    return model


def run(model: Any, base: nn.Module, inputs: Mapping[str, Tensor], modes: tuple[str, ...]) -> Tensor:
    """Vectors of length 1 of all texts, (B, T, D).

    Args:
        model: What accelerate made of the transformer.
        base: The transformer.
        inputs: What `EmbedTask.arrays` gives.
        modes: How states are pooled.
    """
    settings = {"use_cache": False} if "use_cache" in inspect.signature(base.forward).parameters else {}
    tokens = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
    states = model(**tokens, **settings).last_hidden_state.float()
    pooled: Any = pool(states, inputs["pooling"], inputs.get("max_mask"))
    vectors: Any = order_modes(modes, pooled)
    layers: Any = getattr(base, "sentence_layers", ())
    for layer in layers:
        vectors = layer(vectors)
    return F.normalize(inputs["shares"] @ vectors, dim=-1)


def layers_of(model: Any, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The layers behind pooling with the weights that they have now."""
    modules = getattr(model, "sentence_layers", ())
    return tuple(_layer_of(layer, module) for layer, module in zip(layers, modules, strict=True))


def detach(model: Any) -> Any:
    """The transformer alone."""
    if hasattr(model, "sentence_layers"):
        del model.sentence_layers
    return model


class _UnitLength(nn.Module):
    """A normalisation between other layers."""

    def forward(self, vectors: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        return F.normalize(vectors, dim=-1)


def _module_of(layer: Layer) -> nn.Module:
    """A layer behind pooling as one that can be trained."""
    if isinstance(layer, Dense):
        size, width = layer.weight.shape
        linear = nn.Linear(width, size, bias=layer.bias is not None)
        _fill(linear, layer)
        return nn.Sequential(linear, getattr(nn, layer.activation)())
    if isinstance(layer, LayerNorm):
        norm = nn.LayerNorm(len(layer.weight))
        _fill(norm, layer)
        return norm
    return _UnitLength()


def _fill(module: nn.Module, layer: Dense | LayerNorm) -> None:
    weights = {"weight": layer.weight, "bias": layer.bias}
    module.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items() if value is not None})


def _layer_of(layer: Layer, module: nn.Module) -> Layer:
    """The layer with the weights of its module."""
    if not isinstance(layer, Dense | LayerNorm):
        return layer
    state = (module[0] if isinstance(module, nn.Sequential) else module).state_dict()
    return replace(layer, **{key: value.cpu().numpy().copy() for key, value in state.items()})
