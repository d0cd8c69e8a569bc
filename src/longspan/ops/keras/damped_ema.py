r"""The multi-dimensional damped average of MEGA over a sequence, in blocks, in `keras.ops`.

Axes: B batch, S tokens, D channels, N dimensions of the average per channel, C tokens of a block, K blocks, L inputs
that a truncated average sees. B and S may be known only when a graph runs.

Each channel x of the input is expanded to N averages, and projected back to one number per token (Ma et al., arXiv
2209.10655, §3.1):

    h_t = w ⊙ x_t + q ⊙ h_{t−1},   y_t = ηᵀ h_t,   w = α ⊙ β,   q = 1 − α ⊙ δ

The sequence is cut into blocks. Inside a block, the kernel of both directions is one C×C matrix per channel; what a
block hands to the next one is its N averages. On a CPU, and where the length is known only when a graph runs, a loop
sums those from block to block. Elsewhere that goes by doubling: after i steps each has what 2^i blocks before it handed
on, so that no step waits for as many others as there are blocks. It starts from and ends in a state, so that a sequence
can also be read part by part.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from longspan.errors import InputError
from longspan.ops.keras import Tensor
from longspan.ops.keras.scan import computes_on_cpu, scan
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


class EmaBlocks(NamedTuple):
    """What the blocks need of the coefficients; made once and used for any part of a sequence.

    Attributes:
        mixing: (D, C, C + N), with two directions (D, C, C + 2N): maps a block to its own share of its output and to
            the averages that it hands on.
        carry: (D, N, C) or (D, 2N, C): maps the averages that enter a block to their share of its output.
        forward: Coefficients of the direction from the first token on.
        backward: Coefficients of the direction from the last token on, if there is one.
    """

    mixing: Tensor
    carry: Tensor
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
    directions = [forward] if backward is None else [forward, backward]
    return EmaBlocks(_block_matrix(directions, size), _lift(directions, size), forward, backward)


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
    x = _read(inputs, mask)
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


def damped_ema_of_part(
    inputs: Tensor,
    blocks: EmaBlocks,
    *,
    mask: Tensor | None,
    state: Tensor,
    backward_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
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
    outputs, after = _recur(_read(inputs, mask), blocks, state, backward_state, return_state=True)
    assert after is not None
    return outputs, after


def backward_state_before(inputs: Tensor, blocks: EmaBlocks, *, mask: Tensor | None, backward_state: Tensor) -> Tensor:
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
    batch, length, channels = ops.shape(inputs)
    size, num, log_decay = blocks.size, blocks.forward.log_decay.shape[1], blocks.backward.log_decay
    count = length // size
    rows = _rows(_read(inputs, mask), count, size)
    handed_on = ops.matmul(rows, blocks.mixing[..., size + num :])
    decay = ops.exp(log_decay[:, None] * ops.cast(ops.arange(count) * size, log_decay.dtype)[:, None])  # (D, K, N)
    added = ops.sum(ops.reshape(handed_on, (channels, batch, count, num)) * decay[:, None], axis=2)
    state = ops.exp(log_decay * ops.cast(length, log_decay.dtype)) * backward_state
    return state + ops.transpose(added, (1, 0, 2))


def _read(inputs: Tensor, mask: Tensor | None) -> Tensor:
    """At least float32, with 0 where `mask` is False."""
    x = _wide(inputs)
    return x if mask is None else ops.where(mask[..., None], x, 0.0)


def _average(
    x: Tensor, forward: EmaCoefficients, backward: EmaCoefficients | None, state: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor | None]:
    """Outputs (B, S, D) and h after the last token (or None), from h before the first one, both (B, D, N)."""
    length = ops.shape(x)[1]
    if isinstance(length, int) and length == 1 and backward is None:
        new = forward.input_weight * x[:, 0, :, None]
        after = new if state is None else ops.exp(forward.log_decay) * state + new
        return ops.sum(after * forward.output_weight, axis=-1)[:, None], after
    size = min(BLOCK_SIZE, max(length, 1)) if isinstance(length, int) else BLOCK_SIZE
    return _recur(x, ema_blocks(forward, backward, size=size), state, None, return_state=return_state)


def _recur(
    x: Tensor,
    blocks: EmaBlocks,
    state: Tensor | None,
    backward_state: Tensor | None,
    *,
    return_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """As `_average`; with a backward state, S must be a multiple of the size of a block."""
    batch, length, channels = ops.shape(x)
    forward, backward, size = blocks.forward, blocks.backward, blocks.size
    num, ways = forward.log_decay.shape[1], 1 if backward is None else 2
    count = -(-length // size)
    padded = ops.pad(x, ((0, 0), (0, count * size - length), (0, 0)))
    mixed = ops.matmul(_rows(padded, count, size), blocks.mixing)
    mixed = ops.reshape(mixed, (channels, batch, count, size + ways * num))
    handed_on, decay = mixed[..., size:], forward.log_decay * size
    start = ops.zeros((batch, channels, num), x.dtype) if state is None else ops.cast(state, x.dtype)
    if backward is not None:
        handed_on = ops.concatenate([handed_on[..., :num], ops.flip(handed_on[..., num:], axis=2)], axis=-1)
        decay = ops.concatenate([decay, backward.log_decay * size], axis=-1)
        behind = ops.zeros_like(start) if backward_state is None else ops.cast(backward_state, x.dtype)
        start = ops.concatenate([start, behind], axis=-1)
    entering = _enter(handed_on, decay, ops.transpose(start, (1, 0, 2)))
    ahead = entering[..., :num]
    if backward is not None:
        entering = ops.concatenate([ahead, ops.flip(entering[..., num:], axis=2)], axis=-1)
    entered = ops.reshape(entering, (channels, batch * count, ways * num))
    outputs = ops.matmul(entered, blocks.carry)
    outputs = ops.reshape(mixed[..., :size], (channels, batch * count, size)) + outputs
    outputs = ops.transpose(ops.reshape(outputs, (channels, batch, count * size)), (1, 2, 0))[:, :length]
    if not return_state:
        return outputs, None
    last = length - (count - 1) * size  # tokens of the last block; the rest of it is padding
    behind = last - 1 - ops.arange(size, dtype="int32")  # tokens that follow each one
    fading = ops.where(behind >= 0, forward.powers(ops.maximum(behind, 0)), 0.0) * forward.input_weight[..., None]
    block = ops.transpose(padded[:, (count - 1) * size :], (2, 0, 1))  # (D, B, C)
    after = ops.matmul(block, ops.transpose(fading, (0, 2, 1)))
    after = after + ops.exp(forward.log_decay * ops.cast(last, x.dtype))[:, None] * ahead[:, :, -1]
    return outputs, ops.transpose(after, (1, 0, 2))


def _rows(x: Tensor, count: Any, size: int) -> Tensor:
    """(B, K · C, D) -> (D, B · K, C)."""
    batch, _, channels = ops.shape(x)
    return ops.reshape(ops.transpose(x, (2, 0, 1)), (channels, batch * count, size))


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


def _enter(handed_on: Tensor, log_decay: Tensor, start: Tensor) -> Tensor:
    """The averages that enter each block, (D, B, K, M), from what the blocks hand on and what enters the first one.

    Args:
        handed_on: (D, B, K, M), in the order of the direction.
        log_decay: Logarithm of what a block keeps of what entered it, (D, M).
        start: (D, B, M).
    """
    count, decay = ops.shape(handed_on)[2], log_decay[:, None]
    if not isinstance(count, int) or computes_on_cpu():  # there, passes over memory cost more than steps
        kept = ops.exp(decay)
        _, entering = scan(lambda h, new: (kept * h + new[0], h), start, (ops.transpose(handed_on, (2, 0, 1, 3)),))
        return ops.transpose(entering, (1, 2, 0, 3))
    entering = ops.concatenate([start[:, :, None], handed_on[:, :, :-1]], axis=2)
    for step in range((count - 1).bit_length()):
        earlier = ops.pad(entering, ((0, 0), (0, 0), (2**step, 0), (0, 0)))[:, :, :count]
        entering = entering + ops.exp(decay[:, None] * 2**step) * earlier
    return entering


def _wide(tensor: Tensor) -> Tensor:
    """At least float32."""
    return ops.cast(tensor, keras.backend.result_type(tensor.dtype, "float32"))
