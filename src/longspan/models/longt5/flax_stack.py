"""What the stacks of LongT5's encoder and decoder have in common, in Flax: blocks, the whole stack.

Axes: B batch, S tokens, H width. The modules are nested, and named, as the keys of checkpoints are.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from longspan.models.longt5.config import LongT5Config
from longspan.models.longt5.flax_layers import FlaxLongT5LayerNorm, end_residual, wide
from longspan.nn.flax.layers import Dtype


class FlaxLongT5Block(nn.Module):
    """One layer of a stack.

    Attributes:
        config: Settings of the model.
        has_relative_attention_bias: Hold the biases of all layers.
    """

    config: LongT5Config
    has_relative_attention_bias: bool
    dtype: Dtype = jnp.float32

    #: module with the sublayers
    layer_class: ClassVar[type[nn.Module]]

    def setup(self) -> None:
        """Make the parts."""
        self.layer = self.layer_class(self.config, self.has_relative_attention_bias, dtype=self.dtype)

    def __call__(self, *inputs: Any) -> tuple[Array, *tuple[Array | None, ...]]:
        """Inputs, beginning with states (B, S, H), as of the sublayers -> (B, S, H), and weights."""
        outputs: tuple[Array, *tuple[Array | None, ...]] = self.layer(*inputs)
        return outputs

    def biases(self, *arguments: Any) -> Any:
        """As of the attention."""
        return self.layer.biases(*arguments)


class FlaxLongT5Blocks(nn.Module):
    """The layers of a stack, named by their index.

    Attributes:
        config: Settings of the model.
        num_blocks: Number of layers.
        gradient_checkpointing: Recompute the layers' activations in the backward pass.
    """

    config: LongT5Config
    num_blocks: int
    dtype: Dtype = jnp.float32
    gradient_checkpointing: bool = False

    block_class: ClassVar[type[FlaxLongT5Block]]

    def setup(self) -> None:
        """Make the parts."""
        block: Any = self.block_class
        if self.gradient_checkpointing:
            block = nn.remat(block, methods=["__call__"])
        self.blocks = [
            block(self.config, index == 0, dtype=self.dtype, name=str(index)) for index in range(self.num_blocks)
        ]

    def __call__(self, hidden_states: Array, *inputs: Any) -> tuple[list[Array], list[tuple[Array | None, ...]]]:
        """States before every layer and behind the last one, and for each kind of attention the weights of all."""
        states, weights = [hidden_states], []
        for block in self.blocks:
            hidden_states, *new = block(hidden_states, *inputs)
            states.append(hidden_states)
            weights.append(new)
        return states, list(zip(*weights, strict=True))

    def biases(self, *arguments: Any) -> Any:
        """Biases that the first layer holds and all use."""
        return self.blocks[0].biases(*arguments)


class FlaxLongT5Stack(nn.Module):
    """Embeddings through all layers and a last norm.

    Attributes:
        config: Settings of the model.
        gradient_checkpointing: Recompute the layers' activations in the backward pass.
    """

    config: LongT5Config
    dtype: Dtype = jnp.float32
    gradient_checkpointing: bool = False

    def setup(self) -> None:
        """Make the parts."""
        self.block = self.make_blocks()
        self.final_layer_norm = FlaxLongT5LayerNorm(self.config, dtype=self.dtype)
        self.dropout = nn.Dropout(self.config.dropout_rate)

    def make_blocks(self) -> FlaxLongT5Blocks:
        """Make the layers."""
        raise NotImplementedError(f"{type(self).__name__} must say what its layers are")

    def run_blocks(
        self, inputs_embeds: Array, *inputs: Any, deterministic: bool
    ) -> tuple[tuple[Array, ...], list[tuple[Array | None, ...]]]:
        """Embeddings (B, S, H), and what all layers get -> states before every layer and at the end; weights."""
        hidden_states = self.dropout(inputs_embeds, deterministic=deterministic).astype(wide(self.dtype))
        states, weights = self.block(hidden_states, *inputs)
        last = self.dropout(self.final_layer_norm(states.pop()), deterministic=deterministic)
        return (*(end_residual(state, self.dtype) for state in states), last), weights
