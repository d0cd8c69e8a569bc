"""Losses of the task heads. All compute in float32 and return a 0-d tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.configuration import PretrainedConfig
from longspan.errors import InputError
from longspan.nn.torch.checks import values_visible
from longspan.ops.torch.context import ContextShard
from longspan.shapes import check_shape

IGNORE_INDEX = -100


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    name: str = "labels",
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Mean cross-entropy over the labels that are not -100.

    Args:
        logits: Scores, (..., N).
        labels: Class indices in [0, N) or -100, (...).
        name: Name of the labels in errors.
        num_items_in_batch: Divide the sum by this number instead (the labels of all parts of an accumulated batch).
        ignore_index: The label that does not count.

    Raises:
        InputError: a label is out of range, or the shapes disagree.
    """
    check_shape(labels, tuple(logits.shape[:-1]), name=name, axes="of the scores without their last axis")
    num_classes = logits.shape[-1]
    if values_visible(labels):
        wrong = (labels != ignore_index) & ((labels < 0) | (labels >= num_classes))
        if wrong.any():
            raise InputError(
                f"{name} must lie in [0, {num_classes}) or be {ignore_index} (ignored). "
                f"Received: {labels[wrong][0].item()} at position {tuple(torch.nonzero(wrong)[0].tolist())}"
            )
    loss = F.cross_entropy(
        logits.float().reshape(-1, num_classes),
        labels.reshape(-1).long(),
        ignore_index=ignore_index,
        reduction="mean" if num_items_in_batch is None else "sum",
    )
    if num_items_in_batch is None:
        return loss
    return loss / (num_items_in_batch.to(loss.device) if isinstance(num_items_in_batch, Tensor) else num_items_in_batch)


def causal_lm_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Next-token cross-entropy: the score at i is compared with the label at i + 1.

    Args:
        logits: (B, S, V).
        labels: (B, S), aligned with the input ids; -100 is ignored.
        shift_labels: Labels that are shifted already, (B, S): the score at i is compared with the one at i.
        num_items_in_batch: Divide the sum by this number instead of by that of the labels.
        ignore_index: The label that does not count.
    """
    arguments: dict[str, Any] = {"num_items_in_batch": num_items_in_batch, "ignore_index": ignore_index}
    if shift_labels is not None:
        return cross_entropy(logits, shift_labels, name="shift_labels", **arguments)
    check_shape(labels, tuple(logits.shape[:-1]), name="labels", axes="(batch, tokens)")
    return cross_entropy(logits[:, :-1], labels[:, 1:], **arguments)


def problem_type(config: PretrainedConfig, labels: Tensor) -> str:
    """The kind of a sequence-classification problem: as configured, or inferred from N and the dtype of the labels."""
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def sequence_classification_loss(config: PretrainedConfig, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error, cross-entropy, or binary cross-entropy with logits, by `problem_type`.

    Args:
        config: Gives `problem_type` and `num_labels`.
        logits: (B, N).
        labels: (B,) class indices, (B,) or (B, N) targets of a regression, or (B, N) multi-hot floats.

    Raises:
        InputError: labels out of range or of the wrong shape.
    """
    kind = problem_type(config, labels)
    if kind == "regression":
        targets = labels.to(torch.float32)
        if config.num_labels == 1:
            return F.mse_loss(logits.float().reshape(-1), targets.reshape(-1))
        check_shape(labels, tuple(logits.shape), name="labels", axes="(batch, num_labels)")
        return F.mse_loss(logits.float(), targets)
    if kind == "single_label_classification":
        return cross_entropy(logits, labels.reshape(-1))
    check_shape(labels, tuple(logits.shape), name="labels", axes="(batch, num_labels)")
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float())


def question_answering_loss(
    start_logits: Tensor,
    end_logits: Tensor,
    start_positions: Tensor,
    end_positions: Tensor,
    *,
    shard: ContextShard | None = None,
) -> Tensor:
    """Mean of the start and the end cross-entropy; positions outside the sequence do not count.

    Args:
        start_logits: (B, S).
        end_logits: (B, S).
        start_positions: (B,); clamped to [0, S], where S is ignored.
        end_positions: (B,); likewise.
        shard: The scores are those of the tokens that this process holds; positions count from the sequence's first.
    """
    length = start_logits.shape[1] * (1 if shard is None else shard.size)

    def one_side(logits: Tensor, positions: Tensor) -> Tensor:
        if positions.dim() > 1:
            positions = positions.squeeze(-1)
        check_shape(positions, (logits.shape[0],), name="start_positions and end_positions", axes="(batch,)")
        positions = positions.clamp(0, length).long()
        if shard is not None:
            return _cross_entropy_over_tokens(logits.float(), positions, shard)
        return F.cross_entropy(logits.float(), positions, ignore_index=length)

    return (one_side(start_logits, start_positions) + one_side(end_logits, end_positions)) / 2


def next_labels(labels: Tensor, ignore_index: int, shard: ContextShard) -> Tensor:
    """Label of the token behind each, (B, S), from labels (B, S) of a share; ignored behind the sequence."""
    _, behind = shard.neighbours(labels[:, :1], labels[:, :0])
    if shard.rank == shard.size - 1:
        behind = torch.full_like(behind, ignore_index)
    return torch.cat((labels[:, 1:], behind), dim=1)


def _cross_entropy_over_tokens(scores: Tensor, positions: Tensor, shard: ContextShard) -> Tensor:
    """Mean cross-entropy of scores (B, S) of a share with places (B,) in the sequence; behind it they do not count."""
    length = scores.shape[1]
    peak = shard.highest(scores.amax(dim=1))
    log_sum = peak + torch.log(shard.total(torch.exp(scores - peak[:, None]).sum(dim=1)))
    place = positions - shard.start(length)
    is_here = (place >= 0) & (place < length)
    score = scores.gather(1, place.clamp(0, length - 1)[:, None]).squeeze(1)
    losses = log_sum - shard.total(score.masked_fill(~is_here, 0.0))
    return losses[positions < length * shard.size].mean()
