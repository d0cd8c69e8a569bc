"""Losses of the task heads. All compute in float32 and return the shape (1,)."""

from __future__ import annotations

import numpy as np
from keras import ops

from longspan.configuration import PretrainedConfig
from longspan.errors import InputError
from longspan.nn.keras.checks import check_shape, static_shape
from longspan.nn.keras.runtime import values_visible
from longspan.ops.keras import Tensor

IGNORE_INDEX = -100


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    name: str = "labels",
    ignore_index: int = IGNORE_INDEX,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy over the labels that are not `ignore_index`; 0 if there is none.

    Args:
        logits: Scores, (..., N).
        labels: Class indices in [0, N) or `ignore_index`, (...).
        name: Name of the labels in errors.
        ignore_index: Label that does not count.
        weights: Factor of each label's loss (not of their number), (...) or (B,).

    Raises:
        InputError: a label is out of range, or the shapes disagree.
    """
    labels = ops.cast(labels, "int32")
    check_shape(labels, static_shape(logits)[:-1], name=name, axes="of the scores without their last axis")
    _check_labels(labels, int(logits.shape[-1]), name=name, ignore_index=ignore_index)
    counts = ops.cast(labels != ignore_index, "float32")
    safe = ops.where(labels == ignore_index, 0, labels)
    losses = ops.sparse_categorical_crossentropy(safe, ops.cast(logits, "float32"), from_logits=True)
    losses = _weighted(losses, weights)
    return ops.reshape(ops.sum(losses * counts) / ops.maximum(ops.sum(counts), 1.0), (1,))


def _weighted(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Losses (B, ...) times weights of as many or fewer axes."""
    if weights is None:
        return losses
    missing = len(losses.shape) - len(weights.shape)
    if missing < 0:
        raise InputError(f"sample_weight must have at most the axes of the labels. Received: {static_shape(weights)}")
    return losses * ops.cast(ops.reshape(weights, (*ops.shape(weights), *(1,) * missing)), losses.dtype)


def _check_labels(labels: Tensor, num_classes: int, *, name: str, ignore_index: int) -> None:
    if not values_visible(labels):
        return
    values = np.asarray(labels)
    wrong = np.argwhere((values != ignore_index) & ((values < 0) | (values >= num_classes)))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise InputError(
            f"{name} must lie in [0, {num_classes}) or be {ignore_index} (ignored). "
            f"Received: {values[place]} at position {place}"
        )


def causal_lm_loss(logits: Tensor, labels: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Next-token cross-entropy: the score at i is compared with the label at i + 1.

    Args:
        logits: (B, S, V).
        labels: (B, S), aligned with the input ids; -100 is ignored.
        weights: Factor of each label's loss, (B, S) or (B,).
    """
    check_shape(labels, static_shape(logits)[:-1], name="labels", axes="(batch, tokens)")
    if weights is not None and len(weights.shape) > 1:
        weights = weights[:, 1:]
    return cross_entropy(logits[:, :-1], labels[:, 1:], weights=weights)


def problem_type(config: PretrainedConfig, labels: Tensor) -> str:
    """The kind of a sequence-classification problem: as configured, or inferred from N and the dtype of the labels."""
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    return "multi_label_classification" if _is_float(labels) else "single_label_classification"


def _is_float(tensor: Tensor) -> bool:
    name = getattr(tensor.dtype, "name", None) or str(tensor.dtype)
    return "float" in name


def sequence_classification_loss(
    config: PretrainedConfig, logits: Tensor, labels: Tensor, *, weights: Tensor | None = None
) -> Tensor:
    """Mean squared error, cross-entropy, or binary cross-entropy with logits, by `problem_type`.

    Args:
        config: Gives `problem_type` and `num_labels`.
        logits: (B, N).
        labels: (B,) or (B, 1) class indices, (B,) or (B, N) targets of a regression, or (B, N) multi-hot floats.
        weights: Factor of each row's loss, (B,).

    Raises:
        InputError: labels out of range or of the wrong shape.
    """
    kind = problem_type(config, labels)
    if kind == "single_label_classification":
        return cross_entropy(logits, ops.reshape(labels, (-1,)), weights=weights)
    logits, targets = ops.cast(logits, "float32"), ops.cast(labels, "float32")
    if kind == "regression" and config.num_labels == 1:
        logits, targets = ops.reshape(logits, (-1,)), ops.reshape(targets, (-1,))
    check_shape(targets, static_shape(logits), name="labels", axes="(batch, num_labels)")
    if kind == "regression":
        return ops.reshape(ops.mean(_weighted(ops.square(logits - targets), weights)), (1,))
    # log(1 + exp(x)) - x·y, without overflow
    losses = ops.maximum(logits, 0.0) - logits * targets + ops.log1p(ops.exp(-ops.abs(logits)))
    return ops.reshape(ops.mean(_weighted(losses, weights)), (1,))


def question_answering_loss(
    start_logits: Tensor,
    end_logits: Tensor,
    start_positions: Tensor,
    end_positions: Tensor,
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean of the start and the end cross-entropy; positions outside the sequence do not count.

    Args:
        start_logits: (B, S).
        end_logits: (B, S).
        start_positions: (B,) or (B, 1); clamped to [0, S], where S is ignored.
        end_positions: (B,) or (B, 1); likewise.
        weights: Factor of each row's loss, (B,).
    """

    def one_side(logits: Tensor, positions: Tensor) -> Tensor:
        length = ops.shape(logits)[1]
        if len(positions.shape) > 1:
            positions = ops.squeeze(positions, -1)
        check_shape(positions, static_shape(logits)[:1], name="start_positions and end_positions", axes="(batch,)")
        positions = ops.maximum(ops.cast(positions, "int32"), 0)
        return cross_entropy(logits, ops.where(positions >= length, IGNORE_INDEX, positions), weights=weights)

    return (one_side(start_logits, start_positions) + one_side(end_logits, end_positions)) / 2
