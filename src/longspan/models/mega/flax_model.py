"""MEGA in Flax (Ma et al., 2022, https://arxiv.org/abs/2209.10655): the task classes.

The layers are in `flax_layers.py`, the backbone is in `flax_backbone.py`.
Axes: B batch, S tokens, D width, N classes, C choices, V vocabulary.

All classes are called alike; see `FlaxMegaPreTrainedModel.__call__`.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.nn.initializers import zeros

from longspan.configuration import require
from longspan.generation.flax_mixin import FlaxCausalGenerationMixin
from longspan.model_output import ModelOutput
from longspan.models.mega.config import MegaConfig
from longspan.models.mega.flax_backbone import FlaxMegaModel, FlaxMegaModule, FlaxMegaPreTrainedModel
from longspan.models.mega.flax_layers import dense
from longspan.nn.flax.layers import Embedding, Part
from longspan.nn.flax.outputs import (
    FlaxCausalLMOutputWithCrossAttentions,
    FlaxMaskedLMOutput,
    FlaxMultipleChoiceModelOutput,
    FlaxQuestionAnsweringModelOutput,
    FlaxSequenceClassifierOutput,
    FlaxTokenClassifierOutput,
)
from longspan.nn.flax.parameters import parameter
from longspan.nn.flax.tasks import (
    FirstTokenClassificationModule,
    MultipleChoiceModule,
    QuestionAnsweringModule,
    TaskModule,
    TokenClassificationModule,
)

__all__ = [
    "FlaxMegaForCausalLM",
    "FlaxMegaForMaskedLM",
    "FlaxMegaForMultipleChoice",
    "FlaxMegaForQuestionAnswering",
    "FlaxMegaForSequenceClassification",
    "FlaxMegaForTokenClassification",
    "FlaxMegaModel",
    "FlaxMegaPreTrainedModel",
]


class FlaxMegaTiedHead(Part):
    """Scores E x + b over the vocabulary, with the word embeddings E."""

    config: MegaConfig

    @nn.compact
    def __call__(self, states: Array, word_embeddings: Embedding) -> Array:
        """(B, S, D), the word embeddings -> (B, S, V)."""
        bias = parameter(self, "bias", zeros, (self.config.vocab_size,), jnp.float32)
        return (word_embeddings.attend(states) + bias).astype(self.dtype)


class FlaxMegaTaskModule(TaskModule):
    """A MEGA, with a pooler or not, and a head."""

    config: MegaConfig
    backbone_name = "mega"
    backbone_class = FlaxMegaModule


class FlaxMegaLMModule(FlaxMegaTaskModule):
    """A MEGA that scores the vocabulary at each token."""

    head_name: ClassVar[str]

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        config = self.config
        if config.add_lm_hidden_dense_layer:
            self.dense = dense(config, config.hidden_size, dtype=self.dtype)
        self.scores: Any = (
            FlaxMegaTiedHead(config, dtype=self.dtype, name=self.head_name)
            if config.tie_word_embeddings
            else dense(config, config.vocab_size, dtype=self.dtype, name=self.head_name)
        )

    def head(self, outputs: Any, *, deterministic: bool) -> Array:
        """Scores of the vocabulary, (B, S, V)."""
        states = outputs.last_hidden_state
        if self.config.add_lm_hidden_dense_layer:
            states = jnp.tanh(self.dense(states))
        if self.config.tie_word_embeddings:
            return self.scores(states, self.mega.embedding_layer.word_embeddings)
        return self.scores(states)


class FlaxMegaForCausalLMModule(FlaxMegaLMModule):
    """`FlaxMegaForCausalLM` as a `linen.Module`."""

    head_name = "lm_head"
    output_class = FlaxCausalLMOutputWithCrossAttentions


class FlaxMegaForCausalLM(FlaxCausalGenerationMixin, FlaxMegaPreTrainedModel):
    """MEGA as a causal language model; needs `config.is_decoder=True` and `config.bidirectional=False`.

    Calls return `FlaxCausalLMOutputWithCrossAttentions`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import FlaxMegaForCausalLM, MegaConfig
        >>> model = FlaxMegaForCausalLM(MegaConfig(num_hidden_layers=1, is_decoder=True, bidirectional=False))
        >>> model(jnp.array([[0, 3141, 6]])).logits.shape
        (1, 3, 30522)
        >>> model.generate(jnp.array([[0, 3141, 6]]), max_new_tokens=2, min_new_tokens=2).sequences.shape
        (1, 5)
    """

    module_class: ClassVar[type[nn.Module]] = FlaxMegaForCausalLMModule
    keeps_cache = True

    def _check_use(self) -> None:
        super()._check_use()
        require(
            self.config.is_decoder,
            "FlaxMegaForCausalLM needs is_decoder=True and bidirectional=False: otherwise a token sees its future",
            is_decoder=self.config.is_decoder,
            bidirectional=self.config.bidirectional,
        )

    def max_positions(self) -> int | None:
        """Tokens that a simple bias reaches; chunks and a rotary bias have no limit."""
        config = self.config
        unlimited = config.use_chunking or config.relative_positional_bias == "rotary"
        return None if unlimited else config.bias_positions


class FlaxMegaForMaskedLMModule(FlaxMegaLMModule):
    """`FlaxMegaForMaskedLM` as a `linen.Module`."""

    head_name = "mlm_head"
    output_class = FlaxMaskedLMOutput


class FlaxMegaForMaskedLM(FlaxMegaPreTrainedModel):
    """MEGA that predicts masked tokens.

    Calls return `FlaxMaskedLMOutput`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import FlaxMegaForMaskedLM, MegaConfig
        >>> FlaxMegaForMaskedLM(MegaConfig(num_hidden_layers=1))(jnp.array([[0, 133, 812, 2]])).logits.shape
        (1, 4, 30522)
    """

    module_class: ClassVar[type[nn.Module]] = FlaxMegaForMaskedLMModule

    def _check_use(self) -> None:
        super()._check_use()
        if self.config.is_decoder:
            warnings.warn("FlaxMegaForMaskedLM should see both directions: set config.is_decoder=False", stacklevel=3)


class FlaxMegaForSequenceClassificationModule(FirstTokenClassificationModule, FlaxMegaTaskModule):
    """`FlaxMegaForSequenceClassification` as a `linen.Module`."""

    output_class = FlaxSequenceClassifierOutput


class FlaxMegaForSequenceClassification(FlaxMegaPreTrainedModel):
    """MEGA with a classifier or regressor on the first token.

    Calls return `FlaxSequenceClassifierOutput`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import FlaxMegaForSequenceClassification, MegaConfig
        >>> model = FlaxMegaForSequenceClassification(MegaConfig(num_hidden_layers=1, num_labels=3))
        >>> model(jnp.array([[0, 133, 2]])).logits.shape
        (1, 3)
    """

    module_class: ClassVar[type[nn.Module]] = FlaxMegaForSequenceClassificationModule
    row_outputs = ("logits",)


class FlaxMegaForMultipleChoiceModule(MultipleChoiceModule, FlaxMegaTaskModule):
    """`FlaxMegaForMultipleChoice` as a `linen.Module`."""

    output_class = FlaxMultipleChoiceModelOutput

    @property
    def dropout_rate(self) -> float:
        """Probability of the dropout before the head."""
        return self.config.hidden_dropout_prob


class FlaxMegaForMultipleChoice(FlaxMegaPreTrainedModel):
    """MEGA that scores several continuations of one text.

    Ids and masks have an axis of choices, (B, C, S). Calls return `FlaxMultipleChoiceModelOutput`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import FlaxMegaForMultipleChoice, MegaConfig
        >>> model = FlaxMegaForMultipleChoice(MegaConfig(num_hidden_layers=1))
        >>> model(jnp.array([[[0, 133, 2], [0, 812, 2]]])).logits.shape
        (1, 2)
    """

    module_class: ClassVar[type[nn.Module]] = FlaxMegaForMultipleChoiceModule
    input_axes = ("batch", "choices", "tokens")


class FlaxMegaForTokenClassificationModule(TokenClassificationModule, FlaxMegaTaskModule):
    """`FlaxMegaForTokenClassification` as a `linen.Module`."""

    output_class = FlaxTokenClassifierOutput


class FlaxMegaForTokenClassification(FlaxMegaPreTrainedModel):
    """MEGA with a classifier on every token.

    Calls return `FlaxTokenClassifierOutput`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import FlaxMegaForTokenClassification, MegaConfig
        >>> model = FlaxMegaForTokenClassification(MegaConfig(num_hidden_layers=1, num_labels=9))
        >>> model(jnp.array([[0, 133, 2]])).logits.shape
        (1, 3, 9)
    """

    module_class: ClassVar[type[nn.Module]] = FlaxMegaForTokenClassificationModule


class FlaxMegaForQuestionAnsweringModule(QuestionAnsweringModule, FlaxMegaTaskModule):
    """`FlaxMegaForQuestionAnswering` as a `linen.Module`."""

    output_class: ClassVar[type[ModelOutput]] = FlaxQuestionAnsweringModelOutput


class FlaxMegaForQuestionAnswering(FlaxMegaPreTrainedModel):
    """MEGA that finds the span of an answer: scores of being its first and its last token.

    Calls return `FlaxQuestionAnsweringModelOutput`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import FlaxMegaForQuestionAnswering, MegaConfig
        >>> output = FlaxMegaForQuestionAnswering(MegaConfig(num_hidden_layers=1))(jnp.array([[0, 133, 2]]))
        >>> output.start_logits.shape, output.end_logits.shape
        ((1, 3), (1, 3))
    """

    module_class: ClassVar[type[nn.Module]] = FlaxMegaForQuestionAnsweringModule
