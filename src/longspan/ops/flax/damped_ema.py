r"""The multi-dimensional damped average of MEGA over a sequence, in blocks, in JAX.

Axes: B batch, S tokens, D channels, N dimensions of the average per channel, C tokens of a block, K blocks, L inputs
that a truncated average sees.

Each channel x of the input is expanded to N averages, and projected back to one number per token (Ma et al., arXiv
2209.10655, §3.1):

    h_t = w ⊙ x_t + q ⊙ h_{t−1},   y_t = ηᵀ h_t,   w = α ⊙ β,   q = 1 − α ⊙ δ

The sequence is cut into blocks. Inside a block, the kernel is one C×C matrix per channel; what a block hands to the
next one is its N averages. That is two small matrix products per block and one scan over the blocks: linear in S in
time and memory, forward and backward.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from longspan.ops.flax import context
from longspan.ops.patterns import num_blocks
from longspan.shapes import check_shape

#: tokens of a block
BLOCK_SIZE = 32


class EmaCoefficients(NamedTuple):
    """One direction of a damped average, in float32: q = 0.999 would round to 1 in bfloat16.

    Attributes:
        input_weight: w = α ⊙ β, (D, N).
        log_decay: log q = log(1 − α ⊙ δ), (D, N), negative.
        output_weight: η/√N, (D, N).
    """

    input_weight: Array
    log_decay: Array
    output_weight: Array

    def split(self) -> tuple[EmaCoefficients, EmaCoefficients]:
        """The first and the second half of the channels: the two directions of a bidirectional layer."""
        first, second = zip(*(jnp.split(array, 2) for array in self), strict=True)
        return EmaCoefficients(*first), EmaCoefficients(*second)

    def delayed(self, tokens: int) -> EmaCoefficients:
        """Coefficients for an input that is `tokens` older than it looks: w is smaller by q^tokens."""
        return self._replace(input_weight=self.input_weight * jnp.exp(self.log_decay * tokens))


def ema_coefficients(
    *, damping_factor: Array, decay_factor: Array, expansion: Array, projection: Array
) -> EmaCoefficients:
    """Turn the parameters of a layer into coefficients, in float32.

    The parameters have the names of the checkpoints, where `damping_factor` holds the paper's α and `decay_factor`
    its δ, as logits.

    Args:
        damping_factor: Logit of α, (D, N, 1).
        decay_factor: Logit of δ, (D, N, 1).
        expansion: β, (D, N, 1).
        projection: η, (D, N).
    """
    alpha, delta = (jax.nn.sigmoid(logit[..., 0].astype(jnp.float32)) for logit in (damping_factor, decay_factor))
    # both sigmoids may round to 1, and q = 0 has no logarithm
    forgotten = jnp.minimum(alpha * delta, 1.0 - float(jnp.finfo(jnp.float32).eps))
    return EmaCoefficients(
        input_weight=alpha * expansion[..., 0].astype(jnp.float32),
        log_decay=jnp.log1p(-forgotten),
        output_weight=projection.astype(jnp.float32) * projection.shape[-1] ** -0.5,
    )


def damped_ema(
    inputs: Array,
    forward: EmaCoefficients,
    backward: EmaCoefficients | None = None,
    *,
    mask: Array | None = None,
    truncation: int | None = None,
    state: Array | None = None,
) -> tuple[Array, Array]:
    """Damped average of a sequence, or of a part of one.

    Args:
        inputs: (B, S, D), any float dtype.
        forward: Coefficients of the direction from the first token on.
        backward: Coefficients of the direction from the last token on, if there is one.
        mask: (B, S), True = a token that counts; others are read as 0.
        truncation: Number of inputs L that an output sees in each direction, its own included; None for all. What the
            recurrence remembers for longer is taken away by the same recurrence over inputs L tokens later.
        state: What earlier tokens left in the forward direction, (B, D, N), with a truncation (B, D, N + L): h, and the
            last L inputs, oldest first. None for no earlier tokens.

    Returns:
        y (B, S, D), and the state after the last token, in float32.

    Raises:
        InputError: the state has the wrong shape.
    """
    batch, _, channels = inputs.shape
    width = forward.log_decay.shape[1] + (truncation or 0)
    check_shape(state, (batch, channels, width), name="an EMA state", axes="(batch, channels, averages)")
    x = inputs.astype(jnp.float32)
    if mask is not None:
        x = jnp.where(mask[..., None], x, 0.0)
    if context.shared_axis() is not None:
        return _of_a_share(x, forward, backward, truncation)
    return _both_directions(
        x, forward, backward, truncation, jnp.zeros((batch, channels, width)) if state is None else state
    )


def _both_directions(
    x: Array, forward: EmaCoefficients, backward: EmaCoefficients | None, truncation: int | None, state: Array
) -> tuple[Array, Array]:
    outputs, after = _one_direction(x, forward, truncation, state)
    if backward is not None:
        outputs = outputs + _one_direction(x[:, ::-1], backward, truncation, jnp.zeros_like(state))[0][:, ::-1]
    return outputs, after


def _of_a_share(
    x: Array, forward: EmaCoefficients, backward: EmaCoefficients | None, truncation: int | None
) -> tuple[Array, Array]:
    """Of a sequence that devices share; the state is that behind this share."""
    length, count, place = x.shape[1], context.num_shares(), context.share()
    if truncation is None or truncation >= length * count:
        outputs, after = _recur(x, forward, _carried(x, forward, place))
        if backward is not None:
            flipped = x[:, ::-1]
            behind = _carried(flipped, backward, count - 1 - place, flip=True)
            outputs = outputs + _recur(flipped, backward, behind)[0][:, ::-1]
        return outputs, after
    left = truncation - 1  # a truncated average sees no further than its inputs
    context.check_share(length, reach=left)
    around = context.with_neighbours(x, left, left if backward is not None else 0)
    state = jnp.zeros((x.shape[0], x.shape[2], forward.log_decay.shape[1] + truncation))
    outputs, after = _both_directions(around, forward, backward, truncation, state)
    return outputs[:, left : left + length], after


def _carried(x: Array, coefficients: EmaCoefficients, place: Array | int, *, flip: bool = False) -> Array:
    """H before this share, (B, D, N), from what the shares before it hand on; `flip` counts them from the last."""
    states = context.of_all(_state_after(x, coefficients))  # (n, B, D, N)
    states = states[::-1] if flip else states
    distance = (place - 1 - jnp.arange(states.shape[0]))[:, None, None]  # shares between
    decay = jnp.exp(coefficients.log_decay * x.shape[1] * jnp.maximum(distance, 0)) * (distance >= 0)
    return jnp.einsum("pbdn,pdn->bdn", states, decay, precision=lax.Precision.HIGHEST)


def _state_after(x: Array, coefficients: EmaCoefficients) -> Array:
    """H behind the last token, (B, D, N), if it is 0 before the first one."""
    weight, log_decay, _ = coefficients
    batch, length, channels = x.shape
    count = num_blocks(length, BLOCK_SIZE)
    rows = jnp.pad(x, ((0, 0), (count * BLOCK_SIZE - length, 0), (0, 0)))  # zeros before the first token change nothing
    rows = rows.reshape(batch * count, BLOCK_SIZE, channels).transpose(2, 0, 1)
    powers = jnp.exp(log_decay[:, None] * jnp.arange(BLOCK_SIZE)[::-1, None])  # (D, C, N)
    handed_on = _product(rows, weight[:, None] * powers).reshape(channels, batch, count, -1)
    decay = jnp.exp(log_decay[:, None] * BLOCK_SIZE * jnp.arange(count)[::-1, None])  # (D, K, N)
    return jnp.einsum("dbkn,dkn->bdn", handed_on, decay, precision=lax.Precision.HIGHEST)


def _one_direction(
    x: Array, coefficients: EmaCoefficients, truncation: int | None, state: Array
) -> tuple[Array, Array]:
    if truncation is None:
        return _recur(x, coefficients, state)
    length, num = x.shape[1], coefficients.log_decay.shape[1]
    average, window = state[..., :num], state[..., num:]
    seen = jnp.concatenate([window.swapaxes(1, 2), x], axis=1)  # (B, L + S, D)
    remembered, after = _recur(x, coefficients, average)
    surplus, surplus_after = _recur(seen[:, :length], coefficients.delayed(truncation), jnp.zeros_like(average))
    window = seen[:, length:].swapaxes(1, 2)
    return remembered - surplus, jnp.concatenate([after - surplus_after, window], axis=-1)


def _recur(x: Array, coefficients: EmaCoefficients, state: Array) -> tuple[Array, Array]:
    """Outputs (B, S, D) and h after the last token, from h before the first one, both (B, D, N)."""
    weight, log_decay, projection = coefficients
    batch, length, channels = x.shape
    if isinstance(length, int) and length == 1:
        state = jnp.exp(log_decay) * state + weight * x[:, 0, :, None]
        return (state * projection).sum(axis=-1)[:, None], state
    size = min(BLOCK_SIZE, length) if isinstance(length, int) else BLOCK_SIZE
    count = num_blocks(length, size)
    padded = jnp.pad(x, ((0, 0), (0, count * size - length), (0, 0)))
    rows = padded.reshape(batch * count, size, channels).transpose(2, 0, 1)  # (D, B·K, C)
    powers = jnp.exp(log_decay[..., None] * jnp.arange(size + 1))  # (D, N, C + 1)
    taps = _product((weight * projection)[:, None], powers[..., :-1])[:, 0]  # (D, C)
    distance = jnp.arange(size) - jnp.arange(size)[:, None]  # from a token to another
    kernel = jnp.where(distance >= 0, taps[:, jnp.maximum(distance, 0)], 0.0)  # (D, C, C)
    hands_on = (weight[..., None] * powers[..., :-1])[..., ::-1].swapaxes(1, 2)  # (D, C, N)
    mixed = _product(rows, jnp.concatenate([kernel, hands_on], axis=-1))
    handed_on = mixed[..., size:].reshape(channels, batch, count, -1).transpose(2, 1, 0, 3)  # (K, B, D, N)
    decay = jnp.exp(log_decay * size)
    _, entering = lax.scan(lambda h, new: (decay * h + new, h), state, handed_on)
    entered = entering.transpose(2, 1, 0, 3).reshape(channels, batch * count, -1)
    outputs = mixed[..., :size] + _product(entered, projection[..., None] * powers[..., 1:])
    outputs = outputs.reshape(channels, batch, count * size).transpose(1, 2, 0)[:, :length]
    if not isinstance(length, int):
        return outputs, state  # a graph for any length is read from the first token to the last
    last = length - (count - 1) * size  # tokens of the last block; the rest of it is padding
    added = jnp.einsum("bcd,dnc->bdn", x[:, length - last :], weight[..., None] * powers[..., last - 1 :: -1])
    return outputs, added + powers[..., last] * entering[-1]


def _product(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)
