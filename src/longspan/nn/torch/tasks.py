"""What every PyTorch task class does with its backbone: run it, score, compute the loss, hand on what it returned.

    outputs = backbone(inputs);   scores = head(outputs);   loss = loss(scores, labels)

A family writes one `forward` with its explicit signature for the classes whose labels are `labels`; a class with other
labels or another order of arguments writes its own. Either is one call of `TaskModel.run`. Heads that several families
have stand here: a class takes them by naming the task first among its bases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.configuration import classifier_dropout
from longspan.errors import InputError
from longspan.inputs import IGNORE_INDEX, get_input
from longspan.nn.torch.base import PreTrainedModel
from longspan.nn.torch.dropout import Dropout
from longspan.nn.torch.heads import FirstTokenClassificationHead, fold_choices
from longspan.nn.torch.losses import (
    causal_lm_loss,
    cross_entropy,
    next_labels,
    question_answering_loss,
    sequence_classification_loss,
)
from longspan.nn.torch.outputs import (
    DictOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
    finish,
    resolve,
)
from longspan.ops.torch.context import ContextShard

Scores = Tensor | tuple[Tensor, ...]
Inputs = tuple[Any, ...]
Labels = tuple[Tensor | None, ...]


class TaskModel(PreTrainedModel):
    """A backbone with a head.

    Attributes:
        backbone: Class of what the head reads; the attribute that holds it has the name `base_model_prefix`.
        has_pooler: The head reads `pooler_output`.
        input_names: The backbone's inputs that `run` takes, in the order in which `forward` hands them on.
        output_class: What `forward` returns; its first fields are the loss and the scores in the head's order.
        output_embeddings: Path of the projection onto the vocabulary; empty if there is none.
    """

    backbone: ClassVar[type[PreTrainedModel]]
    has_pooler: ClassVar[bool] = False
    input_names: ClassVar[tuple[str, ...]]
    output_class: ClassVar[type[DictOutput]]
    output_embeddings: ClassVar[str] = ""

    def __init__(self, config: Any) -> None:
        """Make the backbone and the head.

        Args:
            config: Settings; the weights are random.
        """
        super().__init__(config)
        self.add_backbone()
        self.add_head()
        self.post_init()

    def add_backbone(self) -> None:
        """Make the backbone."""
        setattr(self, self.base_model_prefix, self.backbone(self.config, add_pooling_layer=self.has_pooler))

    def add_head(self) -> None:
        """Make the head."""
        raise NotImplementedError(f"{type(self).__name__} must say what its head is")

    @property
    def head_dropout(self) -> float:
        """Probability of the dropout before the head."""
        return classifier_dropout(self.config)

    def head(self, outputs: Any) -> Scores:
        """The scores, from the outputs of the backbone."""
        raise NotImplementedError(f"{type(self).__name__} must say how it scores")

    def loss(self, *scores_and_labels: Any, **arguments: Any) -> Tensor:
        """The loss (0-d), from the scores and then the labels; here the mean cross-entropy over labels not -100."""
        return cross_entropy(*scores_and_labels, **arguments)

    def _labelled_loss(self, scores: tuple[Tensor, ...], labels: Labels, arguments: Mapping[str, Any]) -> Tensor:
        shard = self.context_shard
        if shard is None:
            return self.loss(*scores, *labels, **arguments)
        return self.shared_loss(shard, scores, labels, dict(arguments))

    def shared_loss(
        self, shard: ContextShard, scores: tuple[Tensor, ...], labels: Labels, arguments: dict[str, Any]
    ) -> Tensor:
        """The loss over the tokens of all processes that share a sequence; here of scores and labels by token."""
        if arguments.get("num_items_in_batch") is None:
            ignored = arguments.get("ignore_index", IGNORE_INDEX)
            arguments["num_items_in_batch"] = shard.total((labels[0] != ignored).sum())
        return shard.sum_of(self.loss(*scores, *labels, **arguments))

    def read_places(self, attention_mask: Tensor | None, labels: Any, *others: Any, **arguments: Any) -> Tensor:
        """Which states the loss reads, boolean: (B, S) if it scores tokens, else of another shape."""
        return labels != IGNORE_INDEX

    def encode(self, inputs: dict[str, Any]) -> Any:
        """The outputs of the backbone."""
        return self.base_model(**inputs, return_dict=True)

    def encode_and_score(self, inputs: dict[str, Any]) -> tuple[Any, Scores]:
        """The outputs of the backbone and the scores."""
        outputs = self.encode(inputs)
        return outputs, self.head(outputs)

    def run(
        self,
        inputs: Inputs,
        labels: Labels,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
        *,
        loss_arguments: Mapping[str, Any] | None = None,
        **further: Any,
    ) -> Any:
        """Run backbone and head.

        Args:
            inputs: Inputs of the backbone by place, as `input_names` lists them.
            labels: Labels of the loss; it is computed if all are given.
            output_attentions: As the backbone's.
            output_hidden_states: As the backbone's.
            return_dict: Return `output_class` rather than a tuple.
            loss_arguments: Keywords of the loss.
            **further: Other arguments of the backbone.
        """
        flags = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        outputs, scores = self.encode_and_score(
            {**dict(zip(self.input_names, inputs, strict=False)), **flags, **further}
        )
        scores = scores if isinstance(scores, tuple) else (scores,)
        is_labelled = all(label is not None for label in labels)
        loss = self._labelled_loss(scores, labels, loss_arguments or {}) if is_labelled else None
        carried = {name: value for name, value in outputs.items() if name in self.output_class._fields}
        output = self.output_class(loss, *scores, **carried)  # type: ignore[arg-type]  # a dataclass of that form
        return finish(output, resolve(return_dict, self.config.return_dict))

    def get_output_embeddings(self) -> nn.Module | None:
        """The projection onto the vocabulary, or None if the class has none."""
        return self.get_submodule(self.output_embeddings) if self.output_embeddings else None

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the projection onto the vocabulary, and the bias of its head where that is kept beside it."""
        if not self.output_embeddings:
            super().set_output_embeddings(new_embeddings)
        path, _, name = self.output_embeddings.rpartition(".")
        parent = self.get_submodule(path)
        setattr(parent, name, new_embeddings)
        if hasattr(parent, "bias"):
            parent.bias = new_embeddings.bias


class SequenceTaskModel(TaskModel):
    """A task class whose scores stand for whole sequences: processes that share one have the same."""

    def shared_loss(
        self, shard: ContextShard, scores: tuple[Tensor, ...], labels: Labels, arguments: dict[str, Any]
    ) -> Tensor:
        """As in one process."""
        return shard.alike(self.loss(*scores, *labels, **arguments))


class MultipleChoiceModel(SequenceTaskModel):
    """A task class that scores each of several choices, (B, C, S), from the pooled first token of its row."""

    output_class = MultipleChoiceModelOutput
    has_pooler = True

    def add_head(self) -> None:
        """Make the head."""
        self.dropout = Dropout(self.head_dropout)
        self.classifier = nn.Linear(self.config.hidden_size, 1)

    def head(self, outputs: Any) -> Tensor:
        """Score of each choice, (B·C, 1)."""
        return self.classifier(self.dropout(outputs.pooler_output))

    def encode_and_score(self, inputs: dict[str, Any]) -> tuple[Any, Scores]:
        """Outputs of B·C rows, and of their scores (B·C, 1) the scores of the choices, (B, C)."""
        names = [name for name, value in inputs.items() if get_input(name).folds and value is not None]
        num_choices, folded = fold_choices(*(inputs[name] for name in names))
        outputs, logits = super().encode_and_score({**inputs, **dict(zip(names, folded, strict=True))})
        assert isinstance(logits, Tensor)
        return outputs, logits.view(-1, num_choices)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy over the choices; labels (B,)."""
        return cross_entropy(logits, labels.reshape(-1))


class SequenceClassificationModel(SequenceTaskModel):
    """A task class that scores each row, for a classification or a regression."""

    output_class: ClassVar[type[DictOutput]] = SequenceClassifierOutput

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """By `problem_type`."""
        return sequence_classification_loss(self.config, logits, labels)


class FirstTokenClassificationModel(SequenceClassificationModel):
    """A task class that scores each row from the state of its first token."""

    def add_head(self) -> None:
        """Make the head."""
        self.classifier = FirstTokenClassificationHead(
            hidden_size=self.config.hidden_size, dropout=self.head_dropout, num_labels=self.config.num_labels
        )

    def head(self, outputs: Any) -> Tensor:
        """Scores of the classes, (B, N)."""
        return self.classifier(outputs.last_hidden_state)


class TokenClassificationModel(TaskModel):
    """A task class that scores each token, linearly."""

    output_class = TokenClassifierOutput

    def add_head(self) -> None:
        """Make the head."""
        self.dropout = Dropout(self.head_dropout)
        self.classifier = nn.Linear(self.config.hidden_size, self.config.num_labels)

    def head(self, outputs: Any) -> Tensor:
        """Scores of the classes, (B, S, N)."""
        return self.classifier(self.dropout(outputs.last_hidden_state))


class QuestionAnsweringModel(SequenceTaskModel):
    """A task class whose `qa_outputs` scores each token as start and as end of an answer."""

    output_class = QuestionAnsweringModelOutput

    def add_head(self) -> None:
        """Make the head."""
        self.qa_outputs = nn.Linear(self.config.hidden_size, 2)

    def head(self, outputs: Any) -> tuple[Tensor, ...]:
        """Scores of being the start and of being the end, (B, S) each."""
        return self.qa_outputs(outputs.last_hidden_state).unbind(-1)

    def read_places(self, attention_mask: Tensor | None, labels: Any, *others: Any, **arguments: Any) -> Tensor:
        """All: each token is scored against all others."""
        shape = (1,) if attention_mask is None else attention_mask.shape
        return torch.ones(shape, dtype=torch.bool, device=labels.device)

    def loss(self, *scores_and_labels: Tensor) -> Tensor:
        """Mean of the two cross-entropies; positions outside the sequence do not count."""
        return question_answering_loss(*scores_and_labels, shard=self.context_shard)


class CausalLMModel(TaskModel):
    """A task class that predicts the next token."""

    def run(
        self,
        inputs: Inputs,
        labels: Labels,
        *flags: bool | None,
        loss_arguments: Mapping[str, Any] | None = None,
        **further: Any,
    ) -> Any:
        """As `TaskModel.run`; a keyword that the loss does not have is an error, with or without labels."""
        unknown = sorted(set(loss_arguments or {}) - {"num_items_in_batch", "shift_labels", "ignore_index"})
        if unknown:
            raise TypeError(f"{type(self).__name__}.forward() got an unexpected keyword argument '{unknown[0]}'")
        return super().run(inputs, labels, *flags, loss_arguments=loss_arguments, **further)

    def encode_and_score(self, inputs: dict[str, Any]) -> tuple[Any, Scores]:
        """Outputs and scores of the tokens that `logits_to_keep` names."""
        kept = inputs.pop("logits_to_keep")
        if self.context_shard is not None and (isinstance(kept, Tensor) or kept != 0):
            raise InputError("a model that shares a sequence scores all its tokens. Received: logits_to_keep")
        outputs = self.encode(inputs)
        outputs.last_hidden_state = kept_tokens(outputs.last_hidden_state, kept)
        return outputs, self.head(outputs)

    def read_places(self, attention_mask: Tensor | None, labels: Any, *others: Any, **arguments: Any) -> Tensor:
        """The tokens before those with a label."""
        shifted = arguments.get("shift_labels")
        return (
            F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX) != IGNORE_INDEX
            if shifted is None
            else shifted != IGNORE_INDEX
        )

    def shared_loss(
        self, shard: ContextShard, scores: tuple[Tensor, ...], labels: Labels, arguments: dict[str, Any]
    ) -> Tensor:
        """With the label of the first token of the next process."""
        shifted = arguments.pop("shift_labels", None)
        if shifted is None:
            assert labels[0] is not None
            shifted = next_labels(labels[0], arguments.get("ignore_index", IGNORE_INDEX), shard)
        return super().shared_loss(shard, scores, (shifted,), arguments)

    def loss(self, logits: Tensor, labels: Tensor, **arguments: Any) -> Tensor:
        """Cross-entropy of the score at each token with the label of the next one."""
        if self.context_shard is not None:
            return causal_lm_loss(logits, labels, shift_labels=labels, **arguments)
        return causal_lm_loss(logits, labels, **arguments)


def kept_tokens(hidden_states: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The states (B, S', H) that are to be scored: the last few of (B, S, H), the indexed ones, or all for 0.

    Raises:
        InputError: the number is negative, or the tensor has not one axis.
    """
    if isinstance(logits_to_keep, Tensor):
        if logits_to_keep.dim() != 1:
            raise InputError(
                f"logits_to_keep must be an int or a 1-D tensor of indices. Received: {logits_to_keep.dim()} axes"
            )
        return hidden_states[:, logits_to_keep]
    if logits_to_keep < 0:
        raise InputError(f"logits_to_keep must be 0 (all) or positive. Received: {logits_to_keep}")
    return hidden_states if logits_to_keep == 0 else hidden_states[:, -logits_to_keep:]
