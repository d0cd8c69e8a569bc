r"""The damped average of MEGA over a sequence, in blocks.

Axes: B batch, S tokens, D channels, N dimensions of the average per channel, C tokens of a block, K blocks.

    h_t = w ⊙ x_t + q ⊙ h_{t−1},   y_t = ηᵀ h_t          (see `ema_kernels`)

The sequence is cut into blocks. Inside a block, the kernels of both directions are one C×C matrix per channel; what a
block hands to its neighbours is its N averages. That is two small matrix products per block and one scan over the
blocks: linear in S in time and memory, forward and backward, and without an FFT. It starts from and ends in a state,
so that a sequence can also be read part by part.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.errors import InputError
from longspan.ops.torch.blocks import from_blocks, to_blocks
from longspan.ops.torch.ema_kernels import (
    EmaCoefficients,
    check_state,
    decay_powers,
    project_powers,
    read_inputs,
    state_width,
)

#: tokens of a block
BLOCK_SIZE = 32
#: rounds of the scan in a graph that has to serve every length: enough for 2^20 blocks
_ROUNDS = 20


class EmaBlocks(NamedTuple):
    """What the blocks need of the coefficients; made once and used for any part of a sequence.

    Attributes:
        mixing: (D, C, C + N), with two directions (D, C, C + 2N): maps a block to its own share of its output and to
            the averages that it hands on.
        carry: (D, N, C) or (D, 2N, C): maps the averages that enter a block to their share of its output.
        log_decay: Of the averages over one whole block, (D, N) or (D, 2N).
        forward: Coefficients of the direction from the first token on.
        backward: Coefficients of the direction from the last token on, if there is one.
    """

    mixing: Tensor
    carry: Tensor
    log_decay: Tensor
    forward: EmaCoefficients
    backward: EmaCoefficients | None


def ema_blocks(
    forward: EmaCoefficients, backward: EmaCoefficients | None = None, *, block_size: int = BLOCK_SIZE
) -> EmaBlocks:
    """Prepare the matrices of a block.

    Args:
        forward: Coefficients of the direction from the first token on, each (D, N).
        backward: Coefficients of the direction from the last token on, if there is one.
        block_size: Tokens of a block, C.

    Returns:
        The matrices.
    """
    powers = decay_powers(forward.log_decay, block_size + 1)  # (D, N, C + 1)
    taps = F.pad(project_powers(forward, powers[..., :-1]), (block_size - 1, 0))  # distances 1 − C … C − 1
    handed_on = [(forward.input_weight.unsqueeze(-1) * powers[..., :-1]).flip(-1)]
    carry = [forward.output_weight.unsqueeze(-1) * powers[..., 1:]]
    log_decay = [forward.log_decay]
    if backward is not None:
        powers = decay_powers(backward.log_decay, block_size + 1)
        taps = taps + F.pad(project_powers(backward, powers[..., :-1]).flip(-1), (0, block_size - 1))
        handed_on.append(backward.input_weight.unsqueeze(-1) * powers[..., :-1])
        carry.append((backward.output_weight.unsqueeze(-1) * powers[..., 1:]).flip(-1))
        log_decay.append(backward.log_decay)
    toeplitz = taps.unfold(-1, block_size, 1).flip(-2)  # (D, C from, C to)
    return EmaBlocks(
        mixing=torch.cat([toeplitz, *(matrix.transpose(1, 2) for matrix in handed_on)], dim=-1),
        carry=torch.cat(carry, dim=1),
        log_decay=torch.cat(log_decay, dim=1) * block_size,
        forward=forward,
        backward=backward,
    )


def damped_ema(
    inputs: Tensor,
    blocks: EmaBlocks,
    *,
    mask: Tensor | None = None,
    state: Tensor | None = None,
    backward_state: Tensor | None = None,
    return_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Damped average of a sequence, or of a part of one.

    Args:
        inputs: (B, S, D), any float dtype.
        blocks: From `ema_blocks`.
        mask: (B, S), True = a token that counts; others are read as 0.
        state: h before the first token, (B, D, N); None for 0.
        backward_state: h of the backward direction behind the last token, (B, D, N); None for 0.
        return_state: Return h after the last token.

    Returns:
        y, (B, S, D), in the dtype of the coefficients, and the state (B, D, N) or None.

    Raises:
        InputError: a state has the wrong shape, or belongs to a direction that is not there.
    """
    check_state(state, blocks.forward, inputs.shape[0])
    _check_backward(blocks, backward_state, inputs.shape[0])
    (batch, length, _), size = inputs.shape, blocks.mixing.shape[1]
    with torch.autocast(inputs.device.type, enabled=False):
        x = _read_blocks(inputs, mask, blocks)  # (D, B, K, C)
        num_blocks = x.shape[2]
        mixed = torch.bmm(x.flatten(1, 2), blocks.mixing)
        own, handed_on = mixed[..., :size], mixed[..., size:].unflatten(1, (batch, num_blocks))  # (D, B, K, N or 2N)
        before_last = (length - 1) // size  # blocks before that of the last token
        last = length - before_last * size  # tokens of that block; the rest of it is padding
        if backward_state is not None:
            handed_on = _hand_through(handed_on, blocks, backward_state, last)
        entering = _entering(handed_on, blocks, state)  # (D, B, K, N or 2N)
        outputs = torch.baddbmm(own, entering.flatten(1, 2), blocks.carry)
        outputs = from_blocks(outputs.unflatten(1, (batch, num_blocks)).permute(1, 2, 3, 0), length)
        if backward_state is not None:
            outputs = torch.cat([outputs[:, :-last], outputs[:, -last:] + _tail(blocks, backward_state, last)], dim=1)
        if not return_state:
            return outputs, None
        place = torch.full((1,), before_last, device=x.device)
        last_block = x.index_select(2, place).squeeze(2)  # (D, B, C)
        state = entering[..., : blocks.forward.log_decay.shape[1]].index_select(2, place).squeeze(2)
        return outputs, _fold(last_block, blocks.forward, state, last)


def backward_state_before(
    inputs: Tensor, blocks: EmaBlocks, *, mask: Tensor | None = None, backward_state: Tensor | None = None
) -> Tensor:
    """H of the backward direction at the first token: what the part of a sequence before `inputs` receives.

    Args:
        inputs: (B, S, D).
        blocks: From `ema_blocks`, with a backward direction.
        mask: (B, S), True = a token that counts.
        backward_state: The same state behind the last token, (B, D, N); None for 0.

    Returns:
        (B, D, N) in the dtype of the coefficients.

    Raises:
        InputError: there is no backward direction, or the state has the wrong shape.
    """
    backward = _check_backward(blocks, backward_state, inputs.shape[0], required=True)
    size, num = blocks.mixing.shape[1], blocks.forward.log_decay.shape[1]
    with torch.autocast(inputs.device.type, enabled=False):
        x = _read_blocks(inputs, mask, blocks)
        handed_on = torch.bmm(x.flatten(1, 2), blocks.mixing[..., size + num :]).unflatten(1, x.shape[1:3])
        decay = decay_powers(backward.log_decay * size, handed_on.shape[2])  # (D, N, K)
        state = torch.einsum("dbkn,dnk->bdn", handed_on, decay)
        if backward_state is not None:
            state = state + torch.exp(backward.log_decay * inputs.shape[1]) * backward_state
        return state


def forward_state_after(inputs: Tensor, blocks: EmaBlocks, *, mask: Tensor | None = None) -> Tensor:
    """H after the last token, if it is 0 before the first: what a part of a sequence hands to the one behind.

    Args:
        inputs: (B, S, D).
        blocks: From `ema_blocks`.
        mask: (B, S), True = a token that counts.

    Returns:
        (B, D, N) in the dtype of the coefficients.
    """
    (batch, length, _), size, num = inputs.shape, blocks.mixing.shape[1], blocks.forward.log_decay.shape[1]
    whole = (length - 1) // size  # blocks before that of the last token
    with torch.autocast(inputs.device.type, enabled=False):
        x = _read_blocks(inputs, mask, blocks)  # (D, B, K, C)
        handed_on = torch.bmm(x[:, :, :whole].flatten(1, 2), blocks.mixing[..., size : size + num])
        decay = decay_powers(blocks.forward.log_decay * size, whole).flip(-1)  # (D, N, whole)
        state = torch.einsum("dbkn,dnk->dbn", handed_on.unflatten(1, (batch, whole)), decay)
        return _fold(x[:, :, whole], blocks.forward, state, length - whole * size)


def carried_state(handed_on: Tensor, log_decay: Tensor, place: int) -> Tensor:
    """H before a part of a sequence, from what the parts before it hand on.

    Args:
        handed_on: `forward_state_after` of all parts of a sequence, (n, B, D, N), in the order of the direction.
        log_decay: log q over the tokens of a part, (D, N).
        place: Number of this part.

    Returns:
        (B, D, N).
    """
    distance = place - 1 - torch.arange(handed_on.shape[0], device=handed_on.device)  # parts between
    decay = torch.exp(log_decay * distance.clamp(min=0)[:, None, None]) * (distance >= 0)[:, None, None]
    return torch.einsum("pbdn,pdn->bdn", handed_on, decay)


def truncated_damped_ema(
    inputs: Tensor,
    forward: EmaCoefficients,
    backward: EmaCoefficients | None = None,
    *,
    truncation: int,
    mask: Tensor | None = None,
    state: Tensor | None = None,
    return_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Damped average that sees the last `truncation` inputs only, in both directions.

    What the recurrence remembers for longer is taken away again, by the same recurrence over an input that comes
    `truncation` tokens later: linear in S whatever the truncation.

    Args:
        inputs: (B, S, D), any float dtype.
        forward: Coefficients of the direction from the first token on, each (D, N).
        backward: Coefficients of the direction from the last token on, if there is one.
        truncation: Number of inputs L that an output sees, its own included.
        mask: (B, S), True = a token that counts; others are read as 0.
        state: From an earlier part of the sequence, (B, D, N + L): h, then the last L inputs, oldest first.
        return_state: Return the state after the last token.

    Returns:
        y, (B, S, D), in the dtype of the coefficients, and the state (B, D, N + L) or None.

    Raises:
        InputError: the state has the wrong shape.
    """
    check_state(state, forward, inputs.shape[0], truncation)
    with torch.autocast(inputs.device.type, enabled=False):
        x = read_inputs(inputs, mask, forward.log_decay.dtype)
        outputs, state = _truncated_forward(x, forward, truncation, state, return_state)
        if backward is not None:
            outputs = outputs + _truncated_forward(x.flip(1), backward, truncation, None, False)[0].flip(1)
    return outputs, state


def _truncated_forward(
    x: Tensor, coefficients: EmaCoefficients, truncation: int, state: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor | None]:
    batch, length, channels = x.shape
    num = coefficients.log_decay.shape[1]
    if state is None:
        state = x.new_zeros(batch, channels, state_width(coefficients, truncation))
    average, window = state[..., :num], state[..., num:]
    seen = torch.cat([window.transpose(1, 2), x], dim=1)  # (B, L + S, D)
    remembered, after = damped_ema(x, ema_blocks(coefficients), state=average, return_state=return_state)
    delayed = ema_blocks(coefficients.delayed(truncation))
    surplus, surplus_after = damped_ema(seen[:, :length], delayed, return_state=return_state)
    if after is None or surplus_after is None:
        return remembered - surplus, None
    window = seen[:, length:].transpose(1, 2)
    return remembered - surplus, torch.cat([after - surplus_after, window], dim=-1)


def _check_backward(
    blocks: EmaBlocks, backward_state: Tensor | None, batch: int, *, required: bool = False
) -> EmaCoefficients:
    if blocks.backward is None:
        if required or backward_state is not None:
            raise InputError("a backward EMA state needs coefficients of the backward direction. Received: none")
        return blocks.forward
    check_state(backward_state, blocks.backward, batch)
    return blocks.backward


def _read_blocks(inputs: Tensor, mask: Tensor | None, blocks: EmaBlocks) -> Tensor:
    """(B, S, D) -> (D, B, K, C), masked and padded with zeros, in the dtype of the coefficients."""
    x = read_inputs(inputs, mask, blocks.mixing.dtype)
    return to_blocks(x, blocks.mixing.shape[1]).permute(3, 0, 1, 2).contiguous()


def _entering(handed_on: Tensor, blocks: EmaBlocks, state: Tensor | None) -> Tensor:
    """The averages that enter each block, from those that each block hands on; both (D, B, K, N or 2N)."""
    num = blocks.forward.log_decay.shape[1]
    first = handed_on.new_zeros(*handed_on.shape[:2], 1, num) if state is None else state.transpose(0, 1).unsqueeze(2)
    ahead = torch.cat([first.to(handed_on.dtype), handed_on[..., :-1, :num]], dim=2)
    if blocks.backward is None:
        return decay_scan(ahead, blocks.log_decay)
    behind = F.pad(handed_on[..., 1:, num:].flip(2), (0, 0, 1, 0))
    scanned = decay_scan(torch.cat([ahead, behind], dim=-1), blocks.log_decay)
    return torch.cat([scanned[..., :num], scanned[..., num:].flip(2)], dim=-1)


def _hand_through(handed_on: Tensor, blocks: EmaBlocks, backward_state: Tensor, last: int) -> Tensor:
    """Add to what the last block hands backward the state that comes from behind its `last` real tokens."""
    assert blocks.backward is not None
    state = torch.exp(blocks.backward.log_decay * last).unsqueeze(1) * backward_state.transpose(0, 1)  # (D, B, N)
    state = F.pad(state.unsqueeze(2), (blocks.forward.log_decay.shape[1], 0))
    return torch.cat([handed_on[:, :, :-1], handed_on[:, :, -1:] + state], dim=2)


def _tail(blocks: EmaBlocks, backward_state: Tensor, last: int) -> Tensor:
    """Share of the state from behind in the outputs of the `last` tokens, (B, last, D)."""
    carry = blocks.carry[:, blocks.forward.log_decay.shape[1] :, blocks.carry.shape[2] - last :]  # (D, N, last)
    return torch.einsum("bdn,dnc->bcd", backward_state.to(carry.dtype), carry)


def _fold(x: Tensor, coefficients: EmaCoefficients, state: Tensor, tokens: int) -> Tensor:
    """H after the first `tokens` of a block x (D, B, C), from h before it (D, B, N); returns (B, D, N).

    Its shapes do not depend on `tokens`, so that a compiled graph serves them all.
    """
    place = torch.arange(x.shape[2], device=x.device)
    powers = decay_powers(coefficients.log_decay, x.shape[2])  # (D, N, C)
    distance = (tokens - 1 - place).clamp(min=0)
    weight = powers.index_select(2, distance) * (place < tokens)
    added = torch.bmm(x, weight.transpose(1, 2)) * coefficients.input_weight.unsqueeze(1)
    return (added + torch.exp(coefficients.log_decay * tokens).unsqueeze(1) * state).transpose(0, 1)


def decay_scan(values: Tensor, log_decay: Tensor) -> Tensor:
    """h_k = v_k + exp(log_decay) ⊙ h_{k−1} along the third axis.

    Args:
        values: v, (D, B, K, N).
        log_decay: (D, N).

    Returns:
        h, (D, B, K, N).
    """
    if torch.compiler.is_exporting() or _varies(values.shape[2]):
        return _scan_any_length(values, log_decay)
    if torch.compiler.is_compiling() or values.shape[2] == 1:
        return _scan(values, log_decay)
    scanned: Tensor = _DecayScan.apply(values, log_decay)
    return scanned


def _varies(size: int) -> bool:
    """True if the size is not fixed, in a graph for several."""
    if not torch.compiler.is_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value  # imports much

    return not has_static_value(size)


def _scan(values: Tensor, log_decay: Tensor) -> Tensor:
    """The scan in log₂ K doublings."""
    reach = 1
    while reach < values.shape[2]:
        decay = torch.exp(log_decay * reach)[:, None, None]
        far = torch.addcmul(values[:, :, reach:], values[:, :, :-reach], decay)
        values = torch.cat([values[:, :, :reach], far], dim=2)
        reach *= 2
    return values


def _scan_in_place(values: Tensor, log_decay: Tensor) -> Tensor:
    """The scan one block after the other: what a CPU does fastest."""
    decay = torch.exp(log_decay).unsqueeze(1)
    blocks = values.unbind(2)
    for before, block in zip(blocks, blocks[1:], strict=False):
        block.addcmul_(before, decay)
    return values


def _scan_any_length(values: Tensor, log_decay: Tensor) -> Tensor:
    """The scan with a number of doublings that does not depend on the number of blocks."""
    place = torch.arange(values.shape[2], device=values.device)
    for round_ in range(_ROUNDS):
        reach = 2**round_
        far = values.index_select(2, (place - reach).clamp(min=0))
        decay = torch.exp(log_decay * reach)[:, None, None] * (place >= reach)[:, None]
        values = torch.addcmul(values, far, decay)
    return values


class _DecayScan(torch.autograd.Function):
    """The scan with the same scan from the end as its gradient, so that only h is kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, log_decay: Tensor) -> Tensor:
        on_cpu = values.device.type == "cpu"
        return _scan_in_place(values.clone(), log_decay) if on_cpu else _scan(values, log_decay)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output, inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        scanned, log_decay = ctx.saved_tensors
        for_values = decay_scan(gradient.flip(2), log_decay).flip(2)
        before = scanned[:, :, :-1] * torch.exp(log_decay)[:, None, None]
        return for_values, (for_values[:, :, 1:] * before).sum(dim=(1, 2))
