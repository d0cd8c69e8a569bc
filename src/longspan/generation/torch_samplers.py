"""What shapes the distribution that the next token is drawn from, in PyTorch.

Axes: B rows, L tokens so far, V vocabulary. Each takes ids (B, L) and scores (B, V) and returns scores (B, V) in which
the ids that must not be drawn are -inf; at least `min_tokens_to_keep` ids stay.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longspan.errors import InputError
from longspan.generation.torch_processors import LogitsProcessor


class TemperatureLogitsWarper(LogitsProcessor):
    """Divides the scores.

    Args:
        temperature: Above 1 evens out, below 1 sharpens.

    Raises:
        InputError: it is not positive.
    """

    def __init__(self, temperature: float) -> None:
        if not temperature > 0:
            raise InputError(f"temperature must be positive. Received: {temperature}")
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, L), (B, V) -> (B, V)."""
        return scores / self.temperature


class _Truncation(LogitsProcessor):
    """Base of the rules that leave ids out."""

    def __init__(self, min_tokens_to_keep: int) -> None:
        if min_tokens_to_keep < 1:
            raise InputError(f"min_tokens_to_keep must be positive. Received: {min_tokens_to_keep}")
        self.min_tokens_to_keep = min_tokens_to_keep

    def _drop(self, scores: Tensor, drop: Tensor) -> Tensor:
        """Forbid what `drop` (B, V) marks, but not the likeliest ids."""
        likeliest = scores.topk(min(self.min_tokens_to_keep, scores.shape[1])).values[:, -1:]
        return scores.masked_fill(drop & (scores < likeliest), -math.inf)


class TopKLogitsWarper(_Truncation):
    """Keeps the k likeliest ids (Fan et al., 2018).

    Args:
        top_k: k.
        min_tokens_to_keep: Keep at least that many.

    Raises:
        InputError: a number is not positive.
    """

    def __init__(self, top_k: int, min_tokens_to_keep: int = 1) -> None:
        super().__init__(min_tokens_to_keep)
        if top_k <= 0:
            raise InputError(f"top_k must be positive. Received: {top_k}")
        self.top_k = max(top_k, min_tokens_to_keep)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, L), (B, V) -> (B, V)."""
        if self.top_k >= scores.shape[1]:
            return scores
        return scores.masked_fill(scores < scores.topk(self.top_k).values[:, -1:], -math.inf)


class TopPLogitsWarper(_Truncation):
    """Keeps the likeliest ids that together reach the probability p (Holtzman et al., 2019).

    Args:
        top_p: p.
        min_tokens_to_keep: Keep at least that many.

    Raises:
        InputError: p does not lie in (0, 1].
    """

    def __init__(self, top_p: float, min_tokens_to_keep: int = 1) -> None:
        super().__init__(min_tokens_to_keep)
        if not 0 < top_p <= 1:
            raise InputError(f"top_p must lie in (0, 1]. Received: {top_p}")
        self.top_p = top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, L), (B, V) -> (B, V)."""
        ascending, order = scores.sort()
        unlikely = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.top_p
        unlikely[:, -self.min_tokens_to_keep :] = False
        return scores.masked_fill(unlikely.scatter(1, order, unlikely), -math.inf)


class MinPLogitsWarper(_Truncation):
    """Keeps ids at least p times as likely as the likeliest (Nguyen et al., 2024).

    Args:
        min_p: p.
        min_tokens_to_keep: Keep at least that many.

    Raises:
        InputError: p does not lie in [0, 1].
    """

    def __init__(self, min_p: float, min_tokens_to_keep: int = 1) -> None:
        super().__init__(min_tokens_to_keep)
        if not 0 <= min_p <= 1:
            raise InputError(f"min_p must lie in [0, 1]. Received: {min_p}")
        self.min_p = min_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, L), (B, V) -> (B, V)."""
        probabilities = scores.softmax(dim=-1)
        return self._drop(scores, probabilities < self.min_p * probabilities.amax(dim=-1, keepdim=True))


class TypicalLogitsWarper(_Truncation):
    """Keeps the ids whose surprise is nearest the expected one and that reach a probability (Meister et al., 2022).

    Args:
        mass: The probability.
        min_tokens_to_keep: Keep at least that many.

    Raises:
        InputError: the probability does not lie in (0, 1).
    """

    def __init__(self, mass: float = 0.9, min_tokens_to_keep: int = 1) -> None:
        super().__init__(min_tokens_to_keep)
        if not 0 < mass < 1:
            raise InputError(f"typical_p must lie in (0, 1). Received: {mass}")
        self.mass = mass

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, L), (B, V) -> (B, V)."""
        surprise = -scores.log_softmax(dim=-1)
        entropy = (surprise * (-surprise).exp()).nansum(dim=-1, keepdim=True)
        distance, order = (surprise - entropy).abs().sort()
        reached = scores.gather(1, order).softmax(dim=-1).cumsum(dim=-1)
        last = (reached < self.mass).sum(dim=1, keepdim=True).clamp(max=scores.shape[1] - 1)
        atypical = distance > distance.gather(1, last)
        atypical[:, : self.min_tokens_to_keep] = False
        return scores.masked_fill(atypical.scatter(1, order, atypical), -math.inf)


class EpsilonLogitsWarper(_Truncation):
    """Keeps ids of at least some probability ε (Hewitt et al., 2022).

    Args:
        epsilon: ε.
        min_tokens_to_keep: Keep at least that many.

    Raises:
        InputError: ε does not lie in (0, 1).
    """

    def __init__(self, epsilon: float, min_tokens_to_keep: int = 1) -> None:
        super().__init__(min_tokens_to_keep)
        if not 0 < epsilon < 1:
            raise InputError(f"epsilon must lie in (0, 1). Received: {epsilon}")
        self.epsilon = epsilon

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, L), (B, V) -> (B, V)."""
        return self._drop(scores, scores.softmax(dim=-1) < self.epsilon)


class EtaLogitsWarper(EpsilonLogitsWarper):
    """Keeps ids of at least the probability min(ε, √ε · exp(-entropy)) (Hewitt et al., 2022); arguments alike."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, L), (B, V) -> (B, V)."""
        logarithms = scores.log_softmax(dim=-1)
        probabilities = logarithms.exp()
        entropy = -(logarithms.clamp(min=torch.finfo(scores.dtype).min) * probabilities).sum(dim=-1, keepdim=True)
        bound = (math.sqrt(self.epsilon) * (-entropy).exp()).clamp(max=self.epsilon)
        return self._drop(scores, probabilities < bound)
