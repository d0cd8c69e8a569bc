"""What changes the scores of the next token, as formulas for the arrays of any framework.

Axes: R rows, V vocabulary. Scores (R, V) are logits or log-probabilities. The rules of sampling set what must not be
drawn to -inf and leave at least the `keep` likeliest ids; they take (arrays, scores, setting, keep).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Arrays:
    """The functions of a framework that the formulas need, beside the operators and methods of its arrays.

    Attributes:
        xp: Namespace with NumPy's functions.
        softmax: Along the last axis.
        log_softmax: Likewise.
        take: (values (R, V), index (R, N)) -> the values at the index.
        unsort: (marks (R, V), order (R, V)) -> the marks before the sorting that `order` tells.
        largest: (values (R, V), number) -> the largest, falling.
        places: (number, where) -> 0, 1, … on the device of `where`.
        smallest: Smallest finite number of the dtype of an array.
    """

    xp: Any
    softmax: Callable[[Any], Any]
    log_softmax: Callable[[Any], Any]
    take: Callable[[Any, Any], Any]
    unsort: Callable[[Any, Any], Any]
    largest: Callable[[Any, int], Any]
    places: Callable[[int, Any], Any]
    smallest: Callable[[Any], float]


def keep_top_k(arrays: Arrays, scores: Any, number: int, keep: int) -> Any:
    """The k likeliest ids (Fan et al., 2018)."""
    number = min(max(number, keep), scores.shape[1])
    return arrays.xp.where(scores < arrays.largest(scores, number)[:, -1:], -math.inf, scores)


def keep_top_p(arrays: Arrays, scores: Any, probability: float, keep: int) -> Any:
    """The likeliest ids that together reach a probability (Holtzman et al., 2019)."""
    order = arrays.xp.argsort(scores, axis=-1)
    unlikely = arrays.softmax(arrays.take(scores, order)).cumsum(axis=-1) <= 1.0 - probability
    unlikely = unlikely & (arrays.places(scores.shape[1], scores) < scores.shape[1] - keep)
    return arrays.xp.where(arrays.unsort(unlikely, order), -math.inf, scores)


def keep_min_p(arrays: Arrays, scores: Any, share: float, keep: int) -> Any:
    """Ids at least that share as likely as the likeliest (Nguyen et al., 2024)."""
    probabilities = arrays.softmax(scores)
    return _drop(arrays, scores, probabilities < share * arrays.xp.amax(probabilities, axis=-1, keepdims=True), keep)


def keep_typical(arrays: Arrays, scores: Any, probability: float, keep: int) -> Any:
    """The ids whose surprise is nearest the expected one and that reach a probability (Meister et al., 2022)."""
    xp, surprise = arrays.xp, -arrays.log_softmax(scores)
    distance = xp.abs(surprise - xp.nansum(surprise * xp.exp(-surprise), axis=-1, keepdims=True))
    order = xp.argsort(distance, axis=-1)
    distance = arrays.take(distance, order)
    reached = arrays.softmax(arrays.take(scores, order)).cumsum(axis=-1)
    last = (reached < probability).sum(axis=1, keepdims=True).clip(max=scores.shape[1] - 1)
    atypical = (distance > arrays.take(distance, last)) & (arrays.places(scores.shape[1], scores) >= keep)
    return xp.where(arrays.unsort(atypical, order), -math.inf, scores)


def keep_epsilon(arrays: Arrays, scores: Any, epsilon: float, keep: int) -> Any:
    """Ids of at least the probability ε (Hewitt et al., 2022)."""
    return _drop(arrays, scores, arrays.softmax(scores) < epsilon, keep)


def keep_eta(arrays: Arrays, scores: Any, epsilon: float, keep: int) -> Any:
    """Ids of at least the probability min(ε, √ε · exp(-entropy)) (same paper)."""
    logarithms = arrays.log_softmax(scores)
    probabilities = arrays.xp.exp(logarithms)
    entropy = -(logarithms.clip(min=arrays.smallest(scores)) * probabilities).sum(axis=-1, keepdims=True)
    bound = (math.sqrt(epsilon) * arrays.xp.exp(-entropy)).clip(max=epsilon)
    return _drop(arrays, scores, probabilities < bound, keep)


def penalised(arrays: Arrays, scores: Any, penalty: float) -> Any:
    """Scores divided by a penalty where positive, multiplied where negative (Keskar et al., 2019)."""
    return arrays.xp.where(scores < 0, scores * penalty, scores / penalty)


def encouraged(arrays: Arrays, scores: Any, growth: Any) -> Any:
    """Scores s of end tokens as s + |s| (g − 1), g their growth."""
    return scores + arrays.xp.abs(scores) * (growth - 1.0)


def _drop(arrays: Arrays, scores: Any, drop: Any, keep: int) -> Any:
    """Forbid what `drop` (R, V) marks, but not the likeliest ids."""
    likeliest = arrays.largest(scores, min(keep, scores.shape[1]))[:, -1:]
    return arrays.xp.where(drop & (scores < likeliest), -math.inf, scores)


#: setting of `GenerationConfig` -> its rule
SAMPLING: dict[str, Callable[[Arrays, Any, Any, int], Any]] = {
    "temperature": lambda arrays, scores, temperature, keep: scores / temperature,
    "top_k": keep_top_k,
    "top_p": keep_top_p,
    "min_p": keep_min_p,
    "typical_p": keep_typical,
    "epsilon_cutoff": keep_epsilon,
    "eta_cutoff": keep_eta,
}
