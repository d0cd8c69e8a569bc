r"""Coefficients, convolution kernel and single step of the multi-dimensional damped average of MEGA.

Axes: B batch, S tokens, D channels, N dimensions of the average per channel, L taps of a kernel.

Each channel x of the input is expanded to N averages, and projected back to one number per token (Ma et al., arXiv
2209.10655, §3.1):

    h_t = w ⊙ x_t + q ⊙ h_{t−1},   y_t = ηᵀ h_t,   w = α ⊙ β,   q = 1 − α ⊙ δ

so that y is the convolution of x with the kernel k_m = Σ_n η_n w_n q_n^m. A *truncated* average sees only its last L
inputs: its kernel ends after L taps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.errors import InputError


class EmaCoefficients(NamedTuple):
    """One direction of a damped average, in float32 or float64: q = 0.999 would round to 1 in bfloat16.

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
        first, second = zip(*(tensor.chunk(2, dim=0) for tensor in self), strict=True)
        return EmaCoefficients(*first), EmaCoefficients(*second)

    def delayed(self, tokens: int) -> EmaCoefficients:
        """Coefficients for an input that is `tokens` older than it looks: w is smaller by q^tokens."""
        return self._replace(input_weight=self.input_weight * torch.exp(self.log_decay * tokens))


def ema_coefficients(
    *, damping_factor: Tensor, decay_factor: Tensor, expansion: Tensor, projection: Tensor
) -> EmaCoefficients:
    """Turn the parameters of a layer into coefficients.

    The parameters have the names of the checkpoints, where `damping_factor` holds the paper's α and `decay_factor`
    its δ, as logits.

    Args:
        damping_factor: Logit of α, (D, N, 1).
        decay_factor: Logit of δ, (D, N, 1).
        expansion: β, (D, N, 1).
        projection: η, (D, N).

    Returns:
        Coefficients in float32, or in float64 if the parameters are.
    """
    dtype = torch.promote_types(projection.dtype, torch.float32)
    alpha, delta = (torch.sigmoid(logit.squeeze(-1).to(dtype)) for logit in (damping_factor, decay_factor))
    # both sigmoids may round to 1, and q = 0 has no logarithm
    forgotten = (alpha * delta).clamp(max=1.0 - torch.finfo(dtype).eps)
    return EmaCoefficients(
        input_weight=alpha * expansion.squeeze(-1).to(dtype),
        log_decay=torch.log1p(-forgotten),
        output_weight=projection.to(dtype) * projection.shape[-1] ** -0.5,
    )


def decay_powers(log_decay: Tensor, count: int) -> Tensor:
    """q^0 … q^(count − 1) as products of 2√count exponentials.

    Args:
        log_decay: log q, (D, N).
        count: How many powers.

    Returns:
        (D, N, count).
    """
    inner = int(count**0.5) + 1
    outer = -(-count // inner)
    step = torch.arange(max(inner, outer), device=log_decay.device, dtype=log_decay.dtype)
    fine = torch.exp(log_decay[..., None, None] * step[:inner])  # (D, N, 1, inner)
    coarse = torch.exp(log_decay[..., None, None] * (inner * step[:outer, None]))  # (D, N, outer, 1)
    return (coarse * fine).flatten(-2)[..., :count]


def ema_kernel(coefficients: EmaCoefficients, length: int) -> Tensor:
    """The kernel k_m = Σ_n η_n w_n q_n^m of a damped average.

    Args:
        coefficients: Of one direction, each (D, N).
        length: Number of taps L.

    Returns:
        (D, L).
    """
    return project_powers(coefficients, decay_powers(coefficients.log_decay, length))


def project_powers(coefficients: EmaCoefficients, powers: Tensor) -> Tensor:
    """Σ_n η_n w_n p_n for `powers` p of shape (D, N, L); returns (D, L)."""
    weight = coefficients.input_weight * coefficients.output_weight
    return torch.bmm(weight.unsqueeze(1), powers).squeeze(1)


def damped_ema_fft(
    inputs: Tensor,
    forward: EmaCoefficients,
    backward: EmaCoefficients | None = None,
    *,
    mask: Tensor | None = None,
    truncation: int | None = None,
) -> Tensor:
    """Damped average of a whole sequence as a convolution by FFT: O(S log S), with one kernel of S taps a direction.

    Args:
        inputs: (B, S, D), any float dtype.
        forward: Coefficients of the direction from the first token on, each (D, N).
        backward: Coefficients of the direction from the last token on, if there is one.
        mask: (B, S), True = a token that counts; others are read as 0.
        truncation: Taps of the kernels; None for as many as there are tokens.

    Returns:
        y, (B, S, D), in the dtype of the coefficients.
    """
    length = inputs.shape[1]
    taps = length if truncation is None else min(truncation, length)
    size = length + taps - 1  # a circular convolution of this size wraps around nothing
    kernel = F.pad(ema_kernel(forward, taps), (0, size - taps))  # (D, size)
    if backward is not None:
        # the tap of distance −m stands at size − m, and that of distance 0 at 0
        kernel = kernel + F.pad(ema_kernel(backward, taps), (0, size - taps)).flip(-1).roll(1, dims=-1)
    x = read_inputs(inputs, mask, forward.log_decay.dtype).transpose(1, 2)  # (B, D, S)
    convolved = torch.fft.irfft(torch.fft.rfft(x, n=size) * torch.fft.rfft(kernel, n=size), n=size)
    return convolved[..., :length].transpose(1, 2)


def damped_ema_step(
    inputs: Tensor, coefficients: EmaCoefficients, state: Tensor | None = None, *, truncation: int | None = None
) -> tuple[Tensor, Tensor]:
    """One token of a damped average, at a cost that does not depend on those before it.

    Args:
        inputs: (B, D); 0 for a token that does not count.
        coefficients: Of the forward direction, each (D, N).
        state: What earlier tokens left: h, (B, D, N); with `truncation` h and the last L inputs, oldest first,
            (B, D, N + L). None for no earlier tokens.
        truncation: Number of taps L that the average sees, or None for all.

    Returns:
        y (B, D) and the new state, in the dtype of the coefficients.

    Raises:
        InputError: the state has the wrong shape.
    """
    w, log_decay, projection = coefficients
    x = inputs.to(log_decay.dtype)
    if state is None:
        state = x.new_zeros(*x.shape, state_width(coefficients, truncation))
    check_state(state, coefficients, x.shape[0], truncation)
    average, window = state[..., : w.shape[1]], state[..., w.shape[1] :]
    average = torch.exp(log_decay) * average + w * x.unsqueeze(-1)
    if truncation is not None:
        average = average - coefficients.delayed(truncation).input_weight * window[..., :1]
        window = torch.cat([window[..., 1:], x.unsqueeze(-1)], dim=-1)
    return (average * projection).sum(dim=-1), torch.cat([average, window], dim=-1)


def state_width(coefficients: EmaCoefficients, truncation: int | None) -> int:
    """Numbers that a state holds per channel: N, and the inputs that a truncated average must forget again."""
    return coefficients.log_decay.shape[1] + (truncation or 0)


def check_state(state: Tensor | None, coefficients: EmaCoefficients, batch: int, truncation: int | None = None) -> None:
    """Raise `InputError` unless an EMA state has the shape that its layer gave it."""
    expected = (batch, coefficients.log_decay.shape[0], state_width(coefficients, truncation))
    if state is not None and tuple(state.shape) != expected:
        raise InputError(
            f"an EMA state must have the shape (batch, channels, averages) = {expected}. Received: {tuple(state.shape)}"
        )


def read_inputs(inputs: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`inputs` (B, S, D) in `dtype`, with 0 where `mask` (B, S) is False."""
    if mask is not None:
        inputs = inputs.masked_fill(~mask.unsqueeze(-1), 0.0)
    return inputs.to(dtype)
