"""BERT in Flax: the task classes, each a `linen.Module` and its wrapper. The backbone is in `flax_backbone.py`.

Axes: B batch, S tokens, H width, N classes, C choices, V vocabulary.

All classes are called alike; see `FlaxBertPreTrainedModel.__call__`.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.nn.initializers import zeros

from longspan.generation.flax_loop import CausalStepper
from longspan.generation.flax_mixin import FlaxCausalGenerationMixin
from longspan.model_output import ModelOutput
from longspan.models.bert.config import BertConfig
from longspan.models.bert.flax_backbone import FlaxBertModel, FlaxBertModule, FlaxBertPreTrainedModel
from longspan.nn.flax.heads import PredictionHeadTransform
from longspan.nn.flax.layers import Dense, Dtype, Embedding, Part
from longspan.nn.flax.outputs import (
    Arrays,
    FlaxCausalLMOutputWithCrossAttentions,
    FlaxMaskedLMOutput,
    FlaxMultipleChoiceModelOutput,
    FlaxNextSentencePredictorOutput,
    FlaxQuestionAnsweringModelOutput,
    FlaxSequenceClassifierOutput,
    FlaxTokenClassifierOutput,
    model_output,
)
from longspan.nn.flax.parameters import kernel_init, parameter
from longspan.nn.flax.tasks import MultipleChoiceModule, QuestionAnsweringModule, TaskModule, TokenClassificationModule

__all__ = [
    "FlaxBertForCausalLM",
    "FlaxBertForMaskedLM",
    "FlaxBertForMultipleChoice",
    "FlaxBertForNextSentencePrediction",
    "FlaxBertForPreTraining",
    "FlaxBertForQuestionAnswering",
    "FlaxBertForSequenceClassification",
    "FlaxBertForTokenClassification",
    "FlaxBertModel",
    "FlaxBertPreTrainedModel",
]


class FlaxBertLMPredictionHead(Part):
    """Scores over the vocabulary: LayerNorm(act(W x + b)) Eᵀ + bias, with the word embeddings E if they are tied."""

    config: BertConfig

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        self.transform = PredictionHeadTransform(
            config.hidden_size, config.hidden_act, config.layer_norm_eps, kernel_init(config), dtype=self.dtype
        )
        if not config.tie_word_embeddings:
            self.decoder = Dense(config.vocab_size, kernel_init=kernel_init(config), use_bias=False, dtype=self.dtype)
        self.bias = parameter(self, "bias", zeros, (config.vocab_size,), jnp.float32)

    def __call__(self, hidden_states: Array, word_embeddings: Embedding) -> Array:
        """(B, S, H), the word embeddings -> (B, S, V)."""
        states = self.transform(hidden_states)
        scores = word_embeddings.attend(states) if self.config.tie_word_embeddings else self.decoder(states)
        return (scores + self.bias).astype(self.dtype)


class FlaxBertHeads(nn.Module):
    """The heads of pre-training: masked language modelling, next sentence prediction, or both.

    Attributes:
        config: Settings of the model.
        has_predictions: Have the language modelling head.
        has_seq_relationship: Have the next sentence head.
    """

    config: BertConfig
    has_predictions: bool
    has_seq_relationship: bool
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the parts."""
        if self.has_predictions:
            self.predictions = FlaxBertLMPredictionHead(self.config, dtype=self.dtype)
        if self.has_seq_relationship:
            self.seq_relationship = Dense(2, kernel_init=kernel_init(self.config), dtype=self.dtype)


class FlaxBertTaskModule(TaskModule):
    """A BERT, with a pooler or not, and a head."""

    config: BertConfig
    backbone_name = "bert"
    backbone_class: ClassVar[type[FlaxBertModule]] = FlaxBertModule


class FlaxBertLMModule(FlaxBertTaskModule):
    """A BERT that scores the vocabulary at each token."""

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        self.cls = FlaxBertHeads(self.config, has_predictions=True, has_seq_relationship=False, dtype=self.dtype)

    def head(self, outputs: Any, *, deterministic: bool) -> Array:
        """Scores of the vocabulary, (B, S, V)."""
        return self.cls.predictions(outputs.last_hidden_state, self.bert.embeddings.word_embeddings)


@model_output
class FlaxBertForPreTrainingOutput(ModelOutput):
    """`prediction_logits` (B, S, V), `seq_relationship_logits` (B, 2)."""

    prediction_logits: Array | None = None
    seq_relationship_logits: Array | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


class FlaxBertForPreTrainingModule(FlaxBertTaskModule):
    """`FlaxBertForPreTraining` as a `linen.Module`."""

    output_class = FlaxBertForPreTrainingOutput
    has_pooler = True

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        self.cls = FlaxBertHeads(self.config, has_predictions=True, has_seq_relationship=True, dtype=self.dtype)

    def head(self, outputs: Any, *, deterministic: bool) -> tuple[Array, Array]:
        """Scores of the vocabulary (B, S, V) and of the two kinds of pairs (B, 2)."""
        tokens = self.cls.predictions(outputs.last_hidden_state, self.bert.embeddings.word_embeddings)
        return tokens, self.cls.seq_relationship(outputs.pooler_output)


class FlaxBertForPreTraining(FlaxBertPreTrainedModel):
    """BERT with the two heads of its pre-training: masked language modelling and next sentence prediction.

    Calls return `FlaxBertForPreTrainingOutput`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import BertConfig, FlaxBertForPreTraining
        >>> model = FlaxBertForPreTraining(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> output = model(jnp.array([[101, 7592, 102]]))
        >>> output.prediction_logits.shape, output.seq_relationship_logits.shape
        ((1, 3, 30522), (1, 2))
    """

    module_class = FlaxBertForPreTrainingModule
    scores_tokens = True


class FlaxBertForCausalLMModule(FlaxBertLMModule):
    """`FlaxBertForCausalLM` as a `linen.Module`."""

    output_class = FlaxCausalLMOutputWithCrossAttentions


class FlaxBertForCausalLM(FlaxCausalGenerationMixin, FlaxBertPreTrainedModel):
    """BERT as a causal language model; set `config.is_decoder=True`.

    Calls return `FlaxCausalLMOutputWithCrossAttentions`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import BertConfig, FlaxBertForCausalLM
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, is_decoder=True)
        >>> FlaxBertForCausalLM(config)(jnp.array([[101, 7592, 102]])).logits.shape
        (1, 3, 30522)
    """

    module_class: ClassVar[type[nn.Module]] = FlaxBertForCausalLMModule
    scores_tokens = True
    architecture = "BertLMHeadModel"
    keeps_cache = True

    def _check_use(self) -> None:
        if not self.config.is_decoder:
            text = f"{type(self).__name__} attends in both directions unless config.is_decoder=True"
            warnings.warn(text, stacklevel=3)

    def max_positions(self) -> int:
        """Tokens that have a position embedding."""
        return self.most_tokens

    def make_stepper(self, variables: Any, inputs: dict[str, Array], *, rows: int, room: int) -> CausalStepper:
        """What runs the model during `generate`."""
        self._check_decoder("generate")
        return super().make_stepper(variables, inputs, rows=rows, room=room)


class FlaxBertForMaskedLMModule(FlaxBertLMModule):
    """`FlaxBertForMaskedLM` as a `linen.Module`."""

    output_class = FlaxMaskedLMOutput


class FlaxBertForMaskedLM(FlaxBertPreTrainedModel):
    """BERT that predicts masked tokens.

    Calls return `FlaxMaskedLMOutput`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import BertConfig, FlaxBertForMaskedLM
        >>> model = FlaxBertForMaskedLM(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> model(jnp.array([[101, 103, 102]])).logits.shape
        (1, 3, 30522)
    """

    module_class: ClassVar[type[nn.Module]] = FlaxBertForMaskedLMModule
    scores_tokens = True

    def _check_use(self) -> None:
        if self.config.is_decoder:
            text = f"{type(self).__name__} should see both directions: set config.is_decoder=False"
            warnings.warn(text, stacklevel=3)


class FlaxBertForNextSentencePredictionModule(FlaxBertTaskModule):
    """`FlaxBertForNextSentencePrediction` as a `linen.Module`."""

    output_class = FlaxNextSentencePredictorOutput
    has_pooler = True

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        self.cls = FlaxBertHeads(self.config, has_predictions=False, has_seq_relationship=True, dtype=self.dtype)

    def head(self, outputs: Any, *, deterministic: bool) -> Array:
        """Scores of "continues" and of "is random", (B, 2)."""
        return self.cls.seq_relationship(outputs.pooler_output)


class FlaxBertForNextSentencePrediction(FlaxBertPreTrainedModel):
    """BERT that tells whether the second segment continues the first.

    Calls return `FlaxNextSentencePredictorOutput`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import BertConfig, FlaxBertForNextSentencePrediction
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> model = FlaxBertForNextSentencePrediction(config)
        >>> model(jnp.array([[101, 7592, 102]])).logits.shape
        (1, 2)
    """

    module_class = FlaxBertForNextSentencePredictionModule


class FlaxBertForSequenceClassificationModule(FlaxBertTaskModule):
    """`FlaxBertForSequenceClassification` as a `linen.Module`."""

    output_class = FlaxSequenceClassifierOutput
    has_pooler = True

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        self.classifier = self.make_dense(self.config.num_labels)

    def head(self, outputs: Any, *, deterministic: bool) -> Array:
        """Scores of the classes, (B, N)."""
        return self.classifier(self.dropout(outputs.pooler_output, deterministic=deterministic))


class FlaxBertForSequenceClassification(FlaxBertPreTrainedModel):
    """BERT with a classification or regression head on the pooled first token.

    Calls return `FlaxSequenceClassifierOutput`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import BertConfig, FlaxBertForSequenceClassification
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=3)
        >>> FlaxBertForSequenceClassification(config)(jnp.array([[101, 7592, 102]])).logits.shape
        (1, 3)
    """

    module_class = FlaxBertForSequenceClassificationModule


class FlaxBertForMultipleChoiceModule(MultipleChoiceModule, FlaxBertTaskModule):
    """`FlaxBertForMultipleChoice` as a `linen.Module`."""

    output_class = FlaxMultipleChoiceModelOutput


class FlaxBertForMultipleChoice(FlaxBertPreTrainedModel):
    """BERT that scores each of several choices from its pooled first token.

    Ids and masks have an axis of choices, (B, C, S). Calls return `FlaxMultipleChoiceModelOutput`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import BertConfig, FlaxBertForMultipleChoice
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> model = FlaxBertForMultipleChoice(config)
        >>> model(jnp.array([[[101, 7592, 102], [101, 2088, 102]]])).logits.shape
        (1, 2)
    """

    module_class = FlaxBertForMultipleChoiceModule
    input_axes = ("batch", "choices", "tokens")


class FlaxBertForTokenClassificationModule(TokenClassificationModule, FlaxBertTaskModule):
    """`FlaxBertForTokenClassification` as a `linen.Module`."""

    output_class = FlaxTokenClassifierOutput


class FlaxBertForTokenClassification(FlaxBertPreTrainedModel):
    """BERT with a classification head on every token.

    Calls return `FlaxTokenClassifierOutput`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import BertConfig, FlaxBertForTokenClassification
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=5)
        >>> FlaxBertForTokenClassification(config)(jnp.array([[101, 7592, 102]])).logits.shape
        (1, 3, 5)
    """

    module_class: ClassVar[type[nn.Module]] = FlaxBertForTokenClassificationModule
    scores_tokens = True


class FlaxBertForQuestionAnsweringModule(QuestionAnsweringModule, FlaxBertTaskModule):
    """`FlaxBertForQuestionAnswering` as a `linen.Module`."""

    output_class = FlaxQuestionAnsweringModelOutput


class FlaxBertForQuestionAnswering(FlaxBertPreTrainedModel):
    """BERT that scores each token as start and as end of an answer.

    Calls return `FlaxQuestionAnsweringModelOutput`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import BertConfig, FlaxBertForQuestionAnswering
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> FlaxBertForQuestionAnswering(config)(jnp.array([[101, 7592, 102]])).start_logits.shape
        (1, 3)
    """

    module_class = FlaxBertForQuestionAnsweringModule
    needs_padding_states = True
