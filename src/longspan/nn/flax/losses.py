"""Losses of the task heads. All compute in float32 and return a 0-d array.

Flax models take no labels: call these on their outputs, inside `jax.grad` and `jax.jit` as well.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from longspan.configuration import PretrainedConfig
from longspan.errors import InputError
from longspan.nn.flax.checks import ArrayLike, values_visible
from longspan.nn.flax.sharding import on_auto_axes
from longspan.ops.flax import context
from longspan.shapes import check_shape

IGNORE_INDEX = -100


def cross_entropy(logits: Array, labels: ArrayLike, *, name: str = "labels") -> Array:
    """Mean cross-entropy over the labels that are not -100; NaN if there are none.

    Args:
        logits: Scores, (..., N).
        labels: Class indices in [0, N) or -100, (...).
        name: Name of the labels in errors.

    Raises:
        InputError: a label is out of range, or the shapes disagree.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan.nn.flax.losses import cross_entropy
        >>> round(float(cross_entropy(jnp.zeros((2, 4)), jnp.array([3, -100]))), 4)
        1.3863
    """
    check_shape(labels, tuple(logits.shape[:-1]), name=name, axes="of the scores without their last axis")
    num_classes = logits.shape[-1]
    if values_visible(labels):
        host = np.asarray(labels)  # inside of jit, operations of JAX are traced even on values that are there
        wrong = (host != IGNORE_INDEX) & ((host < 0) | (host >= num_classes))
        if wrong.any():
            place = tuple(int(axis[0]) for axis in wrong.nonzero())
            raise InputError(
                f"{name} must lie in [0, {num_classes}) or be {IGNORE_INDEX} (ignored). "
                f"Received: {host[place].item()} at position {place}"
            )
    return _mean_cross_entropy(logits, jnp.asarray(labels), ignored=IGNORE_INDEX)


def causal_lm_loss(logits: Array, labels: ArrayLike) -> Array:
    """Next-token cross-entropy: the score at i is compared with the label at i + 1.

    Args:
        logits: (B, S, V).
        labels: (B, S), aligned with the input ids; -100 is ignored.
    """
    check_shape(labels, tuple(logits.shape[:-1]), name="labels", axes="(batch, tokens)")
    if context.shared_axis() is not None:
        is_last = context.token_places(labels.shape[1]) == labels.shape[1] * context.num_shares() - 1
        return cross_entropy(
            logits, jnp.where(is_last, IGNORE_INDEX, context.with_neighbours(jnp.asarray(labels), 0, 1)[:, 1:])
        )
    return cross_entropy(logits[:, :-1], labels[:, 1:])


def problem_type(config: PretrainedConfig, labels: ArrayLike) -> str:
    """The kind of a sequence-classification problem: as configured, or inferred from N and the dtype of the labels."""
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    is_float = jnp.issubdtype(labels.dtype, jnp.floating)
    return "multi_label_classification" if is_float else "single_label_classification"


def sequence_classification_loss(config: PretrainedConfig, logits: Array, labels: ArrayLike) -> Array:
    """Mean squared error, cross-entropy, or binary cross-entropy with logits, by `problem_type`.

    Args:
        config: Gives `problem_type` and `num_labels`.
        logits: (B, N).
        labels: (B,) class indices, (B,) or (B, N) targets of a regression, or (B, N) multi-hot floats.

    Raises:
        InputError: labels out of range or of the wrong shape.
    """
    kind = problem_type(config, labels)
    scores = logits.astype(jnp.float32)
    if kind == "regression":
        if config.num_labels == 1:
            return jnp.square(scores.reshape(-1) - jnp.asarray(labels, jnp.float32).reshape(-1)).mean()
        check_shape(labels, tuple(logits.shape), name="labels", axes="(batch, num_labels)")
        return jnp.square(scores - jnp.asarray(labels, jnp.float32)).mean()
    if kind == "single_label_classification":
        return cross_entropy(logits, labels.reshape(-1))
    check_shape(labels, tuple(logits.shape), name="labels", axes="(batch, num_labels)")
    targets = jnp.asarray(labels, jnp.float32)
    return (jax.nn.softplus(scores) - targets * scores).mean()


def question_answering_loss(
    start_logits: Array, end_logits: Array, start_positions: ArrayLike, end_positions: ArrayLike
) -> Array:
    """Mean of the start and the end cross-entropy; positions outside the sequence do not count.

    Args:
        start_logits: (B, S).
        end_logits: (B, S).
        start_positions: (B,); clamped to [0, S], where S is ignored.
        end_positions: (B,); likewise.
    """
    length = start_logits.shape[1] * context.num_shares()

    def one_side(logits: Array, positions: ArrayLike) -> Array:
        if positions.ndim > 1:
            positions = positions.squeeze(-1)
        check_shape(positions, (logits.shape[0],), name="start_positions and end_positions", axes="(batch,)")
        positions = jnp.clip(jnp.asarray(positions), 0, length)
        if context.shared_axis() is not None:
            return _cross_entropy_over_tokens(logits.astype(jnp.float32), positions)
        return _mean_cross_entropy(logits, positions, ignored=length)

    return (one_side(start_logits, start_positions) + one_side(end_logits, end_positions)) / 2


def _mean_cross_entropy(logits: Array, labels: Array, *, ignored: int) -> Array:
    """Over (..., N) and (...); labels equal to `ignored` do not count."""

    def mean(logits: Array, labels: Array) -> Array:
        counts = labels != ignored
        log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        picked = jnp.take_along_axis(log_probabilities, jnp.where(counts, labels, 0)[..., None], axis=-1)[..., 0]
        return -context.total(jnp.where(counts, picked, 0.0).sum()) / context.total(counts.sum())

    loss: Array = on_auto_axes(mean, logits, labels, rows=logits)
    return loss


def _cross_entropy_over_tokens(scores: Array, positions: Array) -> Array:
    """Mean cross-entropy of scores (B, S) of a share with places (B,) in the sequence; behind it they do not count."""
    peak = context.highest(scores.max(axis=1))
    log_sum = peak + jnp.log(context.total(jnp.exp(scores - peak[:, None]).sum(axis=1)))
    is_place = context.token_places(scores.shape[1]) == positions[:, None]
    score = context.total(jnp.where(is_place, scores, 0.0).sum(axis=1))
    counts = positions < scores.shape[1] * context.num_shares()
    return jnp.where(counts, log_sum - score, 0.0).sum() / counts.sum()
