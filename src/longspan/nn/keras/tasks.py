"""What every Keras task class does with its backbone: run it, score, compute the loss, hand on what it returned.

    outputs = backbone(inputs);   scores = head(outputs);   loss = task_loss(scores, labels)

A family writes one `call` with its explicit signature for the classes whose labels are `labels`; a class with other
labels or another order of arguments writes its own. Either is one call of `TaskModel.run`.

Axes: B batch, S tokens, N classes, C choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
from keras import ops

from longspan.configuration import PretrainedConfig
from longspan.inputs import get_input
from longspan.nn.keras.base import TFPreTrainedModel
from longspan.nn.keras.heads import fold_choices
from longspan.nn.keras.layers import linear
from longspan.nn.keras.losses import (
    causal_lm_loss,
    cross_entropy,
    question_answering_loss,
    sequence_classification_loss,
)
from longspan.nn.keras.outputs import TFModelOutput
from longspan.ops.keras import Tensor

Inputs = dict[str, Any]
Labels = Mapping[str, Tensor | None]
Scores = dict[str, Tensor]
#: `output_attentions`, `output_hidden_states`, `return_dict` and `training` of a call
Flags = tuple[bool | None, bool | None, bool | None, bool | None]


class TaskModel(TFPreTrainedModel):
    """A backbone, named `base_model_prefix`, and a head.

    Args:
        config: Settings; the weights are random.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    targets: ClassVar[Mapping[str, str]] = {"labels": "logits"}
    #: class of the backbone
    base_class: ClassVar[type[TFPreTrainedModel]]
    #: what a call returns
    output_class: ClassVar[type[TFModelOutput]]
    #: the head reads the pooled first token; None if backbones of the family have no pooler
    has_pooler: ClassVar[bool | None] = False
    #: inputs of the backbone that `run` takes, in the order in which `call` hands them on
    input_names: ClassVar[tuple[str, ...]]

    def __init__(self, config: PretrainedConfig, *inputs: Any, **kwargs: Any) -> None:
        """Make the backbone and the head.

        Args:
            config: Settings; the weights are random.
            *inputs: None: the configuration is all.
            **kwargs: `name`, `dtype` (a dtype policy such as `"mixed_bfloat16"`), `trainable`.
        """
        super().__init__(config, *inputs, **kwargs)
        base: Any = self.base_class
        prefix = self.base_model_prefix
        pooler = {} if self.has_pooler is None else {"add_pooling_layer": self.has_pooler}
        setattr(self, prefix, base(self.config, **pooler, dtype=self.dtype_policy, name=prefix))
        self.make_head()
        self.build()

    def make_head(self) -> None:
        """Make the layers of the head."""
        raise NotImplementedError(f"{type(self).__name__} must make its head")

    def head(self, outputs: TFModelOutput, training: bool | None) -> Scores:
        """The scores, by their names in `output_class`, from the outputs of the backbone."""
        raise NotImplementedError(f"{type(self).__name__} must say how it scores")

    def task_loss(self, output: TFModelOutput, labels: Mapping[str, Tensor], weights: Tensor | None = None) -> Tensor:
        """Mean cross-entropy over the labels that are not -100, (1,)."""
        return cross_entropy(output["logits"], labels["labels"], weights=weights)

    def encode(self, inputs: Inputs, training: bool | None) -> Any:
        """The outputs of the backbone."""
        return self.get_base_model()(**inputs, return_dict=True, training=training)

    def scores(self, inputs: Inputs, training: bool | None) -> TFModelOutput:
        """The output without its loss."""
        outputs = self.encode(inputs, training)
        output = self.output_class(**self.head(outputs, training))
        for name, value in outputs.items():
            if hasattr(output, name):
                output[name] = value
        return output

    def run(self, inputs: tuple[Any, ...], flags: Flags, labels: Labels, **further: Any) -> Any:
        """Run backbone, head and loss.

        Args:
            inputs: Inputs of the backbone by place, as `input_names` lists them.
            flags: The flags of the call.
            labels: The labels by name; the loss is computed if all are given.
            **further: Other arguments of the backbone.
        """
        attentions, states, return_dict, training = flags
        named = {**dict(zip(self.input_names, inputs, strict=True)), **further}
        named |= {"output_attentions": attentions, "output_hidden_states": states}
        output = self.scores({name: value for name, value in named.items() if value is not None}, training)
        return self.finish(self.with_loss(output, **labels), return_dict)

    def make_linear(self, units: int, name: str, *, use_bias: bool = True) -> keras.layers.Dense:
        """A projection of the head."""
        stddev = self.config.initializer_range
        return linear(units, stddev=stddev, dtype=self.dtype_policy, name=name, use_bias=use_bias)

    def make_dropout(self) -> keras.layers.Dropout:
        """The dropout of the head: `classifier_dropout`, or that of the hidden states."""
        rate = getattr(self.config, "classifier_dropout", None)
        return keras.layers.Dropout(self.config.hidden_dropout_prob if rate is None else rate, dtype=self.dtype_policy)


class SequenceClassificationModel(TaskModel):
    """A task class that scores rows; labels are class indices, targets of a regression, or multi-hot floats."""

    def task_loss(self, output: TFModelOutput, labels: Mapping[str, Tensor], weights: Tensor | None = None) -> Tensor:
        """Mean squared error, cross-entropy or binary cross-entropy, by `problem_type`, (1,)."""
        return sequence_classification_loss(self.config, output["logits"], labels["labels"], weights=weights)


class PooledClassificationModel(TaskModel):
    """A task class whose `classifier` scores the pooled first token of a row."""

    has_pooler = True

    def make_head(self) -> None:
        """Make the layers of the head."""
        self.dropout = self.make_dropout()
        self.classifier = self.make_linear(1 if self.has_choices else self.config.num_labels, "classifier")

    def head(self, outputs: TFModelOutput, training: bool | None) -> Scores:
        """Scores of the rows, (B, N)."""
        return {"logits": self.classifier(self.dropout(outputs["pooler_output"], training=training))}


class MultipleChoiceModel(PooledClassificationModel):
    """A task class that scores each of several choices, (B, C, S), from its pooled first token."""

    has_choices = True

    def scores(self, inputs: Inputs, training: bool | None) -> TFModelOutput:
        """As of every class, with the choices as rows of the batch."""
        names = [name for name in inputs if get_input(name).folds]
        num_choices, folded = fold_choices(*(inputs[name] for name in names))
        output = super().scores({**inputs, **dict(zip(names, folded, strict=True))}, training)
        output["logits"] = ops.reshape(output["logits"], (-1, num_choices))
        return output

    def task_loss(self, output: TFModelOutput, labels: Mapping[str, Tensor], weights: Tensor | None = None) -> Tensor:
        """Cross-entropy over the choices, (1,)."""
        return cross_entropy(output["logits"], ops.reshape(labels["labels"], (-1,)), weights=weights)


class CausalLMModel(TaskModel):
    """A task class that predicts the next token; labels are ids, -100 is ignored, (B, S), and are shifted here."""

    token_label: ClassVar[str | None] = "labels"

    def task_loss(self, output: TFModelOutput, labels: Mapping[str, Tensor], weights: Tensor | None = None) -> Tensor:
        """Next-token cross-entropy, (1,)."""
        return causal_lm_loss(output["logits"], labels["labels"], weights=weights)

    def align(self, labels: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The score at i belongs to the label at i + 1."""
        return labels[:, 1:], scores[:, :-1]


class TokenClassificationModel(TaskModel):
    """A task class whose `classifier` scores every token; labels are class indices, -100 is ignored, (B, S)."""

    token_label: ClassVar[str | None] = "labels"

    def make_head(self) -> None:
        """Make the layers of the head."""
        self.dropout = self.make_dropout()
        self.classifier = self.make_linear(self.config.num_labels, "classifier")

    def head(self, outputs: TFModelOutput, training: bool | None) -> Scores:
        """Scores of the classes, (B, S, N)."""
        return {"logits": self.classifier(self.dropout(outputs["last_hidden_state"], training=training))}


class QuestionAnsweringModel(TaskModel):
    """A task class whose `qa_outputs` scores each token as start and as end of an answer."""

    targets: ClassVar[Mapping[str, str]] = {"start_positions": "start_logits", "end_positions": "end_logits"}

    def make_head(self) -> None:
        """Make the layers of the head."""
        self.qa_outputs = self.make_linear(2, "qa_outputs")

    def head(self, outputs: TFModelOutput, training: bool | None) -> Scores:
        """Scores of the tokens, (B, S) each."""
        start, end = ops.unstack(self.qa_outputs(outputs["last_hidden_state"]), 2, axis=-1)
        return {"start_logits": start, "end_logits": end}

    def states_read(self, labels: Labels, training: bool | None) -> bool | Tensor:
        """All: the softmax runs over every position."""
        return True

    def task_loss(self, output: TFModelOutput, labels: Mapping[str, Tensor], weights: Tensor | None = None) -> Tensor:
        """Mean of the start and the end cross-entropy, (1,)."""
        scores = output["start_logits"], output["end_logits"]
        return question_answering_loss(*scores, labels["start_positions"], labels["end_positions"], weights=weights)
