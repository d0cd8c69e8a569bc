r"""The multi-dimensional damped average of MEGA over a sequence, in blocks, in JAX.

Axes: B batch, S tokens, D channels, N dimensions of the average per channel, C tokens of a block, K blocks, L inputs
that a truncated average sees.

Each channel x of the input is expanded to N averages, and projected back to one number per token (Ma et al., arXiv
2209.10655, §3.1):

    h_t = w ⊙ x_t + q ⊙ h_{t−1},   y_t = ηᵀ h_t,   w = α ⊙ β,   q = 1 − α ⊙ δ

The sequence is cut into blocks. Inside a block, the kernels of both directions are one C×C matrix per channel; what a
block hands to its neighbours is its N averages. That is two small matrix products per block and one scan over the
blocks: linear in S in time and memory, forward and backward. It starts from and ends in a state, so that a sequence can
also be read part by part.
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


class EmaBlocks(NamedTuple):
    """What the blocks need of the coefficients; made once and used for any part of a sequence.

    Attributes:
        mixing: (D, C, C + N), with two directions (D, C, C + 2N): maps a block to its own share of its output and to
            the averages that it hands on.
        carry: (D, N, C) or (D, 2N, C): maps the averages that enter a block to their share of its output.
        forward: Coefficients of the direction from the first token on.
        backward: Coefficients of the direction from the last token on, if there is one.
    """

    mixing: Array
    carry: Array
    forward: EmaCoefficients
    backward: EmaCoefficients | None

    @property
    def size(self) -> int:
        """C."""
        return int(self.mixing.shape[1])


def ema_blocks(
    forward: EmaCoefficients, backward: EmaCoefficients | None = None, *, size: int | None = None
) -> EmaBlocks:
    """Prepare the matrices of a block.

    Args:
        forward: Coefficients of the direction from the first token on.
        backward: Coefficients of the direction from the last token on, if there is one.
        size: Tokens of a block, C; None for `BLOCK_SIZE`.
    """
    size = BLOCK_SIZE if size is None else size
    distance = jnp.arange(size) - jnp.arange(size)[:, None]  # from a token to another
    taps, powers = _taps(forward, size)
    kernel = jnp.where(distance >= 0, taps[:, jnp.maximum(distance, 0)], 0.0)  # (D, C, C)
    handed_on = [(forward.input_weight[..., None] * powers[..., :-1])[..., ::-1]]
    carry = [forward.output_weight[..., None] * powers[..., 1:]]
    if backward is not None:
        taps, powers = _taps(backward, size)
        kernel = kernel + jnp.where(distance <= 0, taps[:, jnp.maximum(-distance, 0)], 0.0)
        handed_on.append(backward.input_weight[..., None] * powers[..., :-1])
        carry.append((backward.output_weight[..., None] * powers[..., 1:])[..., ::-1])
    mixing = jnp.concatenate([kernel, *(matrix.swapaxes(1, 2) for matrix in handed_on)], axis=-1)
    return EmaBlocks(mixing, jnp.concatenate(carry, axis=1), forward, backward)


def _taps(coefficients: EmaCoefficients, size: int) -> tuple[Array, Array]:
    """Weights by distance (D, C), and the powers q^0 … q^C (D, N, C + 1)."""
    powers = jnp.exp(coefficients.log_decay[..., None] * jnp.arange(size + 1))
    weight = coefficients.input_weight * coefficients.output_weight
    return _product(weight[:, None], powers[..., :-1])[:, 0], powers


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
    x = _read(inputs, mask)
    if context.shared_axis() is not None:
        return _of_a_share(x, forward, backward, truncation)
    return _average(x, forward, backward, truncation, jnp.zeros((batch, channels, width)) if state is None else state)


def damped_ema_of_part(
    inputs: Array, blocks: EmaBlocks, *, mask: Array | None, state: Array, backward_state: Array | None
) -> tuple[Array, Array]:
    """Damped average of a part of a sequence whose neighbours are known by their states.

    Args:
        inputs: (B, S, D), any float dtype; S is a multiple of the size of a block.
        blocks: From `ema_blocks`.
        mask: (B, S), True = a token that counts; others are read as 0.
        state: h before the first token, (B, D, N).
        backward_state: h of the backward direction behind the last token, (B, D, N); None without such a direction.

    Returns:
        y (B, S, D), and h after the last token, in float32.
    """
    return _recur(_read(inputs, mask), blocks, state, backward_state)


def backward_state_before(inputs: Array, blocks: EmaBlocks, *, mask: Array | None, backward_state: Array) -> Array:
    """H of the backward direction at the first token: what the part of a sequence before `inputs` receives.

    Args:
        inputs: (B, S, D), any float dtype; S is a multiple of the size of a block.
        blocks: From `ema_blocks`, with a backward direction.
        mask: (B, S), True = a token that counts.
        backward_state: The same state behind the last token, (B, D, N).

    Returns:
        (B, D, N) in float32.
    """
    assert blocks.backward is not None
    batch, length, channels = inputs.shape
    size, num, log_decay = blocks.size, blocks.forward.log_decay.shape[1], blocks.backward.log_decay
    count = length // size
    rows = _rows(_read(inputs, mask), count, size)
    handed_on = _product(rows, blocks.mixing[..., size + num :]).reshape(channels, batch, count, num)
    decay = jnp.exp(log_decay[:, None] * size * jnp.arange(count)[:, None])  # (D, K, N)
    state = jnp.einsum("dbkn,dkn->bdn", handed_on, decay, precision=lax.Precision.HIGHEST)
    return state + jnp.exp(log_decay * length) * backward_state


def _read(inputs: Array, mask: Array | None) -> Array:
    x = inputs.astype(jnp.float32)
    return x if mask is None else jnp.where(mask[..., None], x, 0.0)


def _average(
    x: Array, forward: EmaCoefficients, backward: EmaCoefficients | None, truncation: int | None, state: Array
) -> tuple[Array, Array]:
    """Outputs (B, S, D) and the state after the last token, as `damped_ema`."""
    if truncation is None:
        return _untruncated(x, forward, backward, state)
    length, num = x.shape[1], forward.log_decay.shape[1]
    average, window = state[..., :num], state[..., num:]
    seen = jnp.concatenate([window.swapaxes(1, 2), x], axis=1)  # (B, L + S, D)
    nothing = jnp.zeros_like(average)
    outputs, after = _untruncated(x, forward, backward, average)
    surplus, surplus_after = _untruncated(seen[:, :length], forward.delayed(truncation), None, nothing)
    outputs = outputs - surplus
    if backward is not None:
        later = jnp.pad(x, ((0, 0), (0, truncation), (0, 0)))[:, truncation:]
        outputs = outputs - _untruncated(later[:, ::-1], backward.delayed(truncation), None, nothing)[0][:, ::-1]
    window = seen[:, length:].swapaxes(1, 2)
    return outputs, jnp.concatenate([after - surplus_after, window], axis=-1)


def _of_a_share(
    x: Array, forward: EmaCoefficients, backward: EmaCoefficients | None, truncation: int | None
) -> tuple[Array, Array]:
    """Of a sequence that devices share; the state is that behind this share."""
    length, count, place = x.shape[1], context.num_shares(), context.share()
    if truncation is None or truncation >= length * count:
        outputs, after = _untruncated(x, forward, None, _carried(x, forward, place))
        if backward is not None:
            flipped = x[:, ::-1]
            behind = _carried(flipped, backward, count - 1 - place, flip=True)
            outputs = outputs + _untruncated(flipped, backward, None, behind)[0][:, ::-1]
        return outputs, after
    left = truncation - 1  # a truncated average sees no further than its inputs
    context.check_share(length, reach=left)
    around = context.with_neighbours(x, left, left if backward is not None else 0)
    state = jnp.zeros((x.shape[0], x.shape[2], forward.log_decay.shape[1] + truncation))
    outputs, after = _average(around, forward, backward, truncation, state)
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
    powers = jnp.exp(log_decay[:, None] * jnp.arange(BLOCK_SIZE)[::-1, None])  # (D, C, N)
    handed_on = _product(_rows(rows, count, BLOCK_SIZE), weight[:, None] * powers).reshape(channels, batch, count, -1)
    decay = jnp.exp(log_decay[:, None] * BLOCK_SIZE * jnp.arange(count)[::-1, None])  # (D, K, N)
    return jnp.einsum("dbkn,dkn->bdn", handed_on, decay, precision=lax.Precision.HIGHEST)


def _untruncated(
    x: Array, forward: EmaCoefficients, backward: EmaCoefficients | None, state: Array
) -> tuple[Array, Array]:
    """Outputs (B, S, D) and h after the last token, from h before the first one, both (B, D, N)."""
    length = x.shape[1]
    if isinstance(length, int) and length == 1 and backward is None:
        state = jnp.exp(forward.log_decay) * state + forward.input_weight * x[:, 0, :, None]
        return (state * forward.output_weight).sum(axis=-1)[:, None], state
    size = min(BLOCK_SIZE, length) if isinstance(length, int) else BLOCK_SIZE
    return _recur(x, ema_blocks(forward, backward, size=size), state, None)


def _recur(x: Array, blocks: EmaBlocks, state: Array, backward_state: Array | None) -> tuple[Array, Array]:
    """As `_untruncated`; with a backward state, S must be a multiple of the size of a block."""
    batch, length, channels = x.shape
    size, num = blocks.size, blocks.forward.log_decay.shape[1]
    count = num_blocks(length, size)
    rows = _rows(jnp.pad(x, ((0, 0), (0, count * size - length), (0, 0))), count, size)
    mixed = _product(rows, blocks.mixing)
    handed_on = mixed[..., size:].reshape(channels, batch, count, -1).transpose(2, 1, 0, 3)  # (K, B, D, N or 2N)
    decay, start = jnp.exp(blocks.forward.log_decay * size), state
    if blocks.backward is not None:
        nothing = jnp.zeros_like(state) if backward_state is None else backward_state
        handed_on = jnp.concatenate([handed_on[..., :num], handed_on[::-1, ..., num:]], axis=-1)
        decay = jnp.concatenate([decay, jnp.exp(blocks.backward.log_decay * size)], axis=-1)
        start = jnp.concatenate([state, nothing], axis=-1)
    _, entering = lax.scan(lambda h, new: (decay * h + new, h), start, handed_on)
    if blocks.backward is not None:
        entering = jnp.concatenate([entering[..., :num], entering[::-1, ..., num:]], axis=-1)
    entered = entering.transpose(2, 1, 0, 3).reshape(channels, batch * count, -1)
    outputs = mixed[..., :size] + _product(entered, blocks.carry)
    outputs = outputs.reshape(channels, batch, count * size).transpose(1, 2, 0)[:, :length]
    if not isinstance(length, int):
        return outputs, state  # a graph for any length is read from the first token to the last
    weight, log_decay, _ = blocks.forward
    last = length - (count - 1) * size  # tokens of the last block; the rest of it is padding
    powers = jnp.exp(log_decay[..., None] * jnp.arange(last + 1))  # (D, N, tokens + 1)
    added = jnp.einsum("bcd,dnc->bdn", x[:, length - last :], weight[..., None] * powers[..., last - 1 :: -1])
    return outputs, added + powers[..., last] * entering[-1, ..., :num]


def _rows(x: Array, count: int, size: int) -> Array:
    """(B, K · C, D) -> (D, B · K, C)."""
    return x.reshape(x.shape[0] * count, size, x.shape[-1]).transpose(2, 0, 1)


def _product(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)
