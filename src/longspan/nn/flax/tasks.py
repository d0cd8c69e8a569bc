"""What every Flax task class does with its backbone: run it, score, hand on what it returned.

    outputs = backbone(inputs);   scores = head(outputs)

A task class is a `linen.Module` that says what is its own, a head and an output class, and the class that wraps it. The
arguments of a call are written once for each family, in the `__call__` of its `…PreTrainedModel`; the wrapper hands
them on by name. Models take no labels: `longspan.nn.flax.losses` has the loss of each task.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from flax import linen as nn
from jax import Array

from longspan.configuration import classifier_dropout
from longspan.inputs import INPUTS
from longspan.model_output import ModelOutput
from longspan.nn.flax.heads import FirstTokenClassificationHead, fold_choices
from longspan.nn.flax.layers import Dense, Stack
from longspan.nn.flax.outputs import Arrays
from longspan.nn.flax.parameters import kernel_init


class TaskModule(Stack):
    """A backbone with a head; `setup` makes both.

    Attributes:
        backbone_name: Attribute that holds the backbone.
        backbone_class: Its class.
        has_pooler: The head reads `pooler_output`.
        output_class: What a call returns; its first fields are the scores in the head's order.
    """

    backbone_name: ClassVar[str]
    backbone_class: ClassVar[type[nn.Module]]
    has_pooler: ClassVar[bool] = False
    output_class: ClassVar[type[ModelOutput]]

    def setup(self) -> None:
        """Make the backbone and the dropout before the head."""
        make: Any = self.backbone_class
        setattr(self, self.backbone_name, make(self.config, self.dtype, self.has_pooler, self.gradient_checkpointing))
        self.dropout = nn.Dropout(self.dropout_rate)

    @property
    def dropout_rate(self) -> float:
        """Probability of the dropout before the head."""
        return classifier_dropout(self.config)

    @property
    def backbone(self) -> nn.Module:
        """The backbone, whatever its name in checkpoints."""
        return getattr(self, self.backbone_name)

    def make_dense(self, features: int) -> Dense:
        """A layer of the head, drawn as the configuration says. No part has its name: NNX would find this instead."""
        return Dense(features, kernel_init=kernel_init(self.config), dtype=self.dtype)

    def head(self, outputs: Any, *, deterministic: bool) -> Array | Arrays:
        """The scores, from the outputs of the backbone."""
        raise NotImplementedError(f"{type(self).__name__} must say how it scores")

    def encode_and_score(self, *inputs: Any, deterministic: bool, **arguments: Any) -> tuple[Any, Array | Arrays]:
        """The outputs of the backbone and the scores."""
        outputs = self.backbone(*inputs, deterministic=deterministic, **arguments)
        return outputs, self.head(outputs, deterministic=deterministic)

    def __call__(self, *inputs: Any, deterministic: bool = True, **arguments: Any) -> Any:
        """Run backbone and head.

        Args:
            *inputs: Arguments of the backbone by place.
            deterministic: Drop nothing.
            **arguments: Arguments of the backbone by name.

        Returns:
            The `output_class` of the class.
        """
        outputs, scores = self.encode_and_score(*inputs, deterministic=deterministic, **arguments)
        scores = scores if isinstance(scores, tuple) else (scores,)
        names = self.output_class._names()
        return self.output_class(*scores, **{name: value for name, value in outputs.items() if name in names})


class MultipleChoiceModule(TaskModule):
    """A task class that scores each of several choices, (B, C, S), from the pooled first token of its row."""

    has_pooler = True

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        self.classifier = self.make_dense(1)

    def head(self, outputs: Any, *, deterministic: bool) -> Array:
        """Score of each choice, (B·C, 1)."""
        return self.classifier(self.dropout(outputs.pooler_output, deterministic=deterministic))

    def encode_and_score(self, *inputs: Any, deterministic: bool, **arguments: Any) -> tuple[Any, Array | Arrays]:
        """Outputs of B·C rows, and of their scores (B·C, 1) the scores of the choices, (B, C)."""
        call = inspect.signature(type(self.backbone).__call__)
        given = call.bind(self.backbone, *inputs, **arguments).arguments
        del given[next(iter(call.parameters))]
        names = [name for name in given if name in INPUTS and INPUTS[name].folds]
        num_choices, folded = fold_choices(*(given[name] for name in names))
        given |= dict(zip(names, folded, strict=True))
        outputs, logits = super().encode_and_score(deterministic=deterministic, **given)
        assert not isinstance(logits, tuple)
        return outputs, logits.reshape(-1, num_choices)


class FirstTokenClassificationModule(TaskModule):
    """A task class that scores each row from the state of its first token."""

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        config = self.config
        self.classifier = FirstTokenClassificationHead(
            config.hidden_size, config.num_labels, self.dropout_rate, kernel_init(config), dtype=self.dtype
        )

    def head(self, outputs: Any, *, deterministic: bool) -> Array:
        """Scores of the classes, (B, N)."""
        return self.classifier(outputs.last_hidden_state, deterministic=deterministic)


class TokenClassificationModule(TaskModule):
    """A task class that scores each token, linearly."""

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        self.classifier = self.make_dense(self.config.num_labels)

    def head(self, outputs: Any, *, deterministic: bool) -> Array:
        """Scores of the classes, (B, S, N)."""
        return self.classifier(self.dropout(outputs.last_hidden_state, deterministic=deterministic))


class QuestionAnsweringModule(TaskModule):
    """A task class whose `qa_outputs` scores each token as start and as end of an answer."""

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        self.qa_outputs = self.make_dense(2)

    def head(self, outputs: Any, *, deterministic: bool) -> Arrays:
        """Scores of being the start and of being the end, (B, S) each."""
        logits = self.qa_outputs(outputs.last_hidden_state)
        return logits[..., 0], logits[..., 1]
