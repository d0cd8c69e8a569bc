r"""The multi-dimensional damped average of MEGA over a sequence, in blocks, in `keras.ops`.

Axes: B batch, S tokens, D channels, N dimensions of the average per channel, C tokens of a block, K blocks, L inputs
that a truncated average sees. B and S may be known only when a graph runs.

Each channel x of the input is expanded to N averages, and projected back to one number per token (Ma et al., arXiv
2209.10655, §3.1):

    h_t = w ⊙ x_t + q ⊙ h_{t−1},   y_t = ηᵀ h_t,   w = α ⊙ β,   q = 1 − α ⊙ δ

The sequence is cut into blocks. Inside a block, the kernel of both directions is one C×C matrix per channel; what a
block hands to the next one is its N averages. Those are summed over the blocks by doubling: after i steps each has what
2^i blocks before it handed on, so that no step waits for as many others as there are blocks. Where the length is known
only when a graph runs, a loop goes from block to block.
"""

from __future__ import annotations

from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from longspan.errors import InputError
from longspan.ops.keras import Tensor
from longspan.ops.keras.scan import scan
from longspan.ops.keras.sliding_window import bias_tile

#: tokens of a block
BLOCK_SIZE = 32


class EmaCoefficients(NamedTuple):
    """One direction of a damped average, in float32: q = 0.999 would round to 1 in bfloat16.

    Attributes:
        input_weight: w = α ⊙ β, (D, N).
        log_decay: log q = log(1 − α ⊙ δ), (D, N), negative.
        output_weight: η/√N, (D, N).
    """

    input_weight: Tensor
    log_decay: Tensor
    output_weight: Tensor

    def split(self) -> tuple[EmaCoefficients, EmaCoefficients]:
        """The first and the second half of the channels: the two directions of a bidirectional layer."""
        first, second = zip(*(ops.split(tensor, 2) for tensor in self), strict=True)
        return EmaCoefficients(*first), EmaCoefficients(*second)

    def delayed(self, tokens: int) -> EmaCoefficients:
        """Coefficients for an input that is `tokens` older than it looks: w is smaller by q^tokens."""
        return self._replace(input_weight=self.input_weight * ops.exp(self.log_decay * tokens))

    def powers(self, exponents: Tensor) -> Tensor:
        """q^e for exponents (E,): (D, N, E)."""
        return ops.exp(self.log_decay[..., None] * ops.cast(exponents, self.log_decay.dtype))


def ema_coefficients(
    *, damping_factor: Tensor, decay_factor: Tensor, expansion: Tensor, projection: Tensor
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
    alpha, delta = (ops.sigmoid(_wide(logit[..., 0])) for logit in (damping_factor, decay_factor))
    # both sigmoids may round to 1, and q = 0 has no logarithm
    forgotten = ops.minimum(alpha * delta, 1.0 - float(np.finfo(np.float32).eps))
    return EmaCoefficients(
        input_weight=alpha * _wide(expansion[..., 0]),
        log_decay=ops.log1p(-forgotten),
        output_weight=_wide(projection) * projection.shape[-1] ** -0.5,
    )


def damped_ema(
    inputs: Tensor,
    forward: EmaCoefficients,
    backward: EmaCoefficients | None = None,
    *,
    mask: Tensor | None = None,
    truncation: int | None = None,
    state: Tensor | None = None,
    return_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
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
        return_state: Return the state after the last token.

    Returns:
        y (B, S, D) in float32, and the state or None.

    Raises:
        InputError: the state has the wrong shape.
    """
    num, width = forward.log_decay.shape[1], forward.log_decay.shape[1] + (truncation or 0)
    if state is not None and tuple(state.shape)[1:] != (inputs.shape[2], width):
        expected = (inputs.shape[0], inputs.shape[2], width)
        raise InputError(
            f"an EMA state must have the shape (batch, channels, averages) = {expected}. Received: {tuple(state.shape)}"
        )
    x = _wide(inputs)
    x = x if mask is None else ops.where(mask[..., None], x, 0.0)
    if truncation is None:
        return _average(x, forward, backward, state, return_state)
    if state is None:
        window, average = ops.zeros((ops.shape(x)[0], truncation, x.shape[2]), x.dtype), None
    else:
        window, average = ops.transpose(state[..., num:], (0, 2, 1)), state[..., :num]
    seen, length = ops.concatenate([window, x], axis=1), ops.shape(x)[1]
    outputs, after = _average(x, forward, backward, average, return_state)
    surplus, surplus_after = _average(seen[:, :length], forward.delayed(truncation), None, None, return_state)
    outputs = outputs - surplus
    if backward is not None:
        later = ops.flip(ops.pad(x, ((0, 0), (0, truncation), (0, 0)))[:, truncation:], axis=1)
        outputs = outputs - ops.flip(_average(later, backward.delayed(truncation), None, None, False)[0], axis=1)
    if after is None:
        return outputs, None
    return outputs, ops.concatenate([after - surplus_after, ops.transpose(seen[:, length:], (0, 2, 1))], axis=-1)


def _average(
    x: Tensor, forward: EmaCoefficients, backward: EmaCoefficients | None, state: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor | None]:
    """Outputs (B, S, D) and h after the last token (or None), from h before the first one, both (B, D, N)."""
    batch, length, channels = ops.shape(x)
    if isinstance(length, int) and length == 1 and backward is None:
        new = forward.input_weight * x[:, 0, :, None]
        after = new if state is None else ops.exp(forward.log_decay) * state + new
        return ops.sum(after * forward.output_weight, axis=-1)[:, None], after
    size = min(BLOCK_SIZE, max(length, 1)) if isinstance(length, int) else BLOCK_SIZE
    count = -(-length // size)
    padded = ops.pad(x, ((0, 0), (0, count * size - length), (0, 0)))
    rows = ops.reshape(ops.transpose(padded, (2, 0, 1)), (channels, batch * count, size))
    directions = [forward] if backward is None else [forward, backward]
    num = forward.log_decay.shape[1]
    mixed = ops.matmul(rows, _block_matrix(directions, size))
    mixed = ops.reshape(mixed, (channels, batch, count, size + len(directions) * num))
    handed_on = mixed[..., size : size + num]
    start = None if state is None else ops.transpose(state, (1, 0, 2))
    entering = [_enter(handed_on, forward.log_decay * size, start)]
    if backward is not None:
        mirrored = _enter(ops.flip(mixed[..., size + num :], axis=2), backward.log_decay * size, None)
        entering.append(ops.flip(mirrored, axis=2))
    entered = ops.reshape(ops.concatenate(entering, axis=-1), (channels, batch * count, len(directions) * num))
    outputs = ops.matmul(entered, _lift(directions, size))
    outputs = ops.reshape(mixed[..., :size], (channels, batch * count, size)) + outputs
    outputs = ops.transpose(ops.reshape(outputs, (channels, batch, count * size)), (1, 2, 0))[:, :length]
    if not return_state:
        return outputs, None
    last = length - (count - 1) * size  # tokens of the last block; the rest of it is padding
    behind = last - 1 - ops.arange(size, dtype="int32")  # tokens that follow each one
    fading = ops.where(behind >= 0, forward.powers(ops.maximum(behind, 0)), 0.0) * forward.input_weight[..., None]
    block = ops.transpose(padded[:, (count - 1) * size :], (2, 0, 1))  # (D, B, C)
    after = ops.matmul(block, ops.transpose(fading, (0, 2, 1)))
    after = after + ops.exp(forward.log_decay * ops.cast(last, x.dtype))[:, None] * entering[0][:, :, -1]
    return outputs, ops.transpose(after, (1, 0, 2))


def _block_matrix(directions: list[EmaCoefficients], size: int) -> Tensor:
    """What a token gives to the tokens of its block, and to what the block hands on each way: (D, C, C + …)."""
    taps, handed_on = None, []
    for is_backward, way in enumerate(directions):
        powers = way.powers(np.arange(size, dtype=np.float32))
        own = ops.sum((way.input_weight * way.output_weight)[..., None] * powers, axis=1)  # (D, C)
        by_distance = ops.pad(own, ((0, 0), (size - 1, 0)))  # from 1 − C to C − 1
        by_distance = ops.flip(by_distance, axis=1) if is_backward else by_distance
        taps = by_distance if taps is None else taps + by_distance
        reach = powers if is_backward else ops.flip(powers, axis=2)
        handed_on.append(ops.transpose(way.input_weight[..., None] * reach, (0, 2, 1)))
    kernel = bias_tile(taps, size)[:, :, size - 1 : 2 * size - 1]
    return ops.concatenate([kernel, *handed_on], axis=-1)


def _lift(directions: list[EmaCoefficients], size: int) -> Tensor:
    """What each average that enters a block gives to its tokens: (D, directions · N, C)."""
    parts = []
    for is_backward, way in enumerate(directions):
        reached = way.output_weight[..., None] * way.powers(np.arange(1, size + 1, dtype=np.float32))
        parts.append(ops.flip(reached, axis=2) if is_backward else reached)
    return ops.concatenate(parts, axis=1)


def _enter(handed_on: Tensor, log_decay: Tensor, start: Tensor | None) -> Tensor:
    """The averages that enter each block, (D, B, K, N), from what the blocks hand on and what enters the first one.

    Args:
        handed_on: (D, B, K, N).
        log_decay: Logarithm of what a block keeps of what entered it, (D, N).
        start: (D, B, N), or None for 0.
    """
    count = ops.shape(handed_on)[2]
    first = ops.zeros_like(handed_on[:, :, :1]) if start is None else ops.cast(start, handed_on.dtype)[:, :, None]
    decay = log_decay[:, None, None]
    if not isinstance(count, int):
        kept = ops.exp(decay[:, 0])
        blocks = ops.transpose(handed_on, (2, 0, 1, 3))
        _, entering = scan(lambda h, new: (kept * h + new[0], h), first[:, :, 0], (blocks,))
        return ops.transpose(entering, (1, 2, 0, 3))
    entering = ops.concatenate([first, handed_on[:, :, :-1]], axis=2)
    for step in range((count - 1).bit_length()):
        earlier = ops.pad(entering, ((0, 0), (0, 0), (2**step, 0), (0, 0)))[:, :, :count]
        entering = entering + ops.exp(decay * 2**step) * earlier
    return entering


def _wide(tensor: Tensor) -> Tensor:
    """At least float32."""
    return ops.cast(tensor, keras.backend.result_type(tensor.dtype, "float32"))
