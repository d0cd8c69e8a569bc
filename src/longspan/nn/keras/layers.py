"""The weight-bearing layers of Keras as the families use them: initialised, named, with a dtype policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from longspan.nn.keras.initializers import Normal, NormalWithPadding
from longspan.nn.keras.plain import is_plain
from longspan.nn.keras.runtime import is_symbolic
from longspan.ops.fast_paths import is_off
from longspan.ops.keras import Tensor
from longspan.ops.keras.scan import computes_on_cpu, is_compiled, scan
from longspan.shapes import tokens_of_block


class Block(keras.layers.Layer):
    """A layer made of layers that read states of one width; its weights are made with theirs.

    Args:
        width: Size of the last axis of what the sub-layers read.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width
        #: how each weight of this layer itself is drawn, by its name
        self.initializers: dict[str, Any] = {}

    def build(self, input_shape: Any = None) -> None:
        """Make the weights of the sub-layers that have none yet."""
        build_all(self, self.width)

    def add_parameter(self, name: str, shape: tuple[int, ...], initializer: Any, **kwargs: Any) -> keras.Variable:
        """A weight of this layer itself, which mixed precision leaves in its own dtype; it can be drawn again."""
        self.initializers[name] = keras.initializers.get(initializer)
        kwargs = {"autocast": False, **kwargs}
        return self.add_weight(shape=shape, initializer=self.initializers[name], name=name, **kwargs)


def build_all(parent: keras.layers.Layer, width: int) -> None:
    """Build the sub-layers of `parent` that are not built; they read (..., width)."""
    for layer in parent._flatten_layers(include_self=False, recursive=False):
        if not layer.built:
            layer.build((None, width))


@keras.saving.register_keras_serializable(package="longspan")
class HeavyTailedDense(keras.layers.Dense):
    """`x W + b` of states whose largest numbers lie far out: in 8 bits W alone is, and x stays as it is.

    An x in 8 bits has one scale a token, that of its largest number. Where that is 6 standard deviations from 0,
    rounding costs more than twice what it does where the numbers are distributed normally.
    """

    def quantize(self, mode: str | None = None, type_check: bool = True, config: Any = None) -> None:
        """As of `keras.layers.Dense`; `"int8"` knows no quantiser of activations."""
        if mode == "int8":
            config = keras.quantizers.Int8QuantizationConfig(config and config.weight_quantizer, None)
        super().quantize(mode, type_check=type_check and type(self) is not HeavyTailedDense, config=config)


def may_loop(x: Tensor, *parts: keras.layers.Layer) -> bool:
    """True if layers that are not trained may compute in a loop over parts of x: in a program for a CPU.

    Args:
        x: Their input.
        *parts: The layers, which no tool may have changed: what it sees of a loop has no meaning outside of it.
    """
    looped = keras.backend.backend() != "torch" and not is_symbolic() and is_compiled(x) and computes_on_cpu()
    return looped and not is_off() and is_plain(*parts)


def tokenwise(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    parts: Sequence[keras.layers.Layer],
    width: int,
    training: bool | None = None,
) -> Tensor:
    """function(x), (B, S, H) -> (B, S, H), for a function that treats every token by itself.

    On a CPU many tokens go block by block where nothing is trained, which saves time and memory; but not through layers
    that a tool changed, which may look on: what they see of a loop has no meaning outside of it.

    Args:
        function: Maps (B, S, H) to (B, S, H) in the same dtype.
        x: (B, S, H).
        parts: The layers that the function calls.
        width: Features of the widest activation inside the function.
        training: The model is trained.
    """
    if training or not may_loop(x, *parts):
        return function(x)
    batch, length, size = ops.shape(x)
    count, limit = batch * length, tokens_of_block(width)

    def in_blocks() -> Tensor:
        blocks = -(-count // limit)
        rows = -(-count // blocks)
        padded = ops.pad(ops.reshape(x, (count, size)), ((0, blocks * rows - count), (0, 0)))
        cut = ops.reshape(padded, (blocks, 1, rows, size))
        _, outputs = scan(lambda carry, block: (carry, function(block[0])), ops.zeros(()), (cut,))
        return ops.reshape(ops.reshape(outputs, (blocks * rows, size))[:count], (batch, length, size))

    if isinstance(count, int):
        return in_blocks() if count > limit else function(x)
    return ops.cond(count > limit, in_blocks, lambda: function(x))


def linear(
    units: int,
    *,
    stddev: float,
    dtype: Any,
    name: str,
    use_bias: bool = True,
    kind: type[keras.layers.Dense] = keras.layers.Dense,
) -> keras.layers.Dense:
    """`x W + b` with normally distributed W.

    Args:
        units: Output width.
        stddev: Standard deviation of the first values.
        dtype: Dtype policy.
        name: Name of the layer; part of the path of its weights.
        use_bias: Have b.
        kind: Class of the layer.
    """
    return kind(units, use_bias=use_bias, kernel_initializer=Normal(stddev=stddev), dtype=dtype, name=name)


def embedding(
    size: int, width: int, *, stddev: float, dtype: Any, name: str, padding_index: int | None = None
) -> keras.layers.Embedding:
    """A table of `size` vectors, normally distributed; that of the padding token starts as zeros."""
    initializer = (
        Normal(stddev=stddev)
        if padding_index is None
        else NormalWithPadding(stddev=stddev, padding_index=padding_index)
    )
    return keras.layers.Embedding(size, width, embeddings_initializer=initializer, dtype=dtype, name=name)


def look_up(table: keras.layers.Layer, ids: Tensor, *, padding_index: int | None) -> Tensor:
    """The vectors of ids, (...) -> (..., H); that of the padding token learns nothing from being looked up."""
    rows = table(ids)
    if padding_index is None:
        return rows
    return ops.where(ops.equal(ids, padding_index)[..., None], ops.stop_gradient(rows), rows)


def take_tokens(states: Tensor, positions: Tensor) -> Tensor:
    """Tokens `positions` (B, G) of (B, S, ...)."""
    batch, length = ops.shape(states)[:2]
    flat = ops.reshape(states, (-1, *states.shape[2:]))
    first = ops.arange(batch, dtype="int32")[:, None] * length
    return ops.take(flat, first + positions, axis=0)


def layer_norm(epsilon: float, *, dtype: Any, name: str, affine: bool = True) -> keras.layers.LayerNormalization:
    """Layer normalisation over the last axis, with a scale and a shift if `affine`."""
    return keras.layers.LayerNormalization(epsilon=epsilon, center=affine, scale=affine, dtype=dtype, name=name)


def score_rows(states: Tensor, layer: keras.layers.Layer) -> Tensor:
    """Products of states with the rows of an embedding, as a projection onto the vocabulary that is tied to it.

    The table is shared, so this is the one place that reads a weight out of its layer. A layer that computes its rows
    (quantised, or one that a tool put in the place of the embedding or of its `call`) is asked for all of them.

    Args:
        states: (N, H).
        layer: The embedding of V rows.

    Returns:
        (N, V).
    """
    stores_rows = isinstance(layer, keras.layers.Embedding) and layer.quantization_mode is None and is_plain(layer)
    ids = ops.arange(layer.input_dim, dtype="int32")
    table = ops.convert_to_tensor(layer.embeddings) if stores_rows else layer(ids)
    return ops.matmul(states, ops.cast(ops.transpose(table), states.dtype))
