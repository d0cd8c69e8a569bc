"""BERT in Flax: the task classes, each a `linen.Module` and its wrapper. The backbone is in `flax_backbone.py`.

Axes: B batch, S tokens, H width, N classes, C choices, V vocabulary.

All classes are called alike; see `FlaxBertPreTrainedModel.__call__`. They take no labels: `longspan.nn.flax.losses` has
the loss of each task.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.nn.initializers import zeros

from longspan.generation.flax_loop import CausalStepper
from longspan.generation.flax_mixin import FlaxGenerationMixin
from longspan.model_output import ModelOutput
from longspan.models.bert.config import BertConfig
from longspan.models.bert.flax_backbone import FlaxBertModel, FlaxBertModule, FlaxBertPreTrainedModel
from longspan.models.bert.flax_layers import kernel_init
from longspan.nn.flax.heads import PredictionHeadTransform, fold_choices
from longspan.nn.flax.layers import Dense, Dtype, Embedding
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
from longspan.nn.flax.parameters import parameter

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


class FlaxBertLMPredictionHead(nn.Module):
    """Scores over the vocabulary: LayerNorm(act(W x + b)) Eᵀ + bias, with the word embeddings E if they are tied.

    Attributes:
        config: Settings of the model.
    """

    config: BertConfig
    dtype: Dtype = jnp.float32

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


class _FlaxBertTaskModule(nn.Module):
    """A backbone named `bert`, and a head.

    Attributes:
        config: Settings of the model.
        dtype: Dtype of the computation.
        gradient_checkpointing: Recompute the layers' activations in the backward pass.
    """

    config: BertConfig
    dtype: Dtype = jnp.float32
    gradient_checkpointing: bool = False
    has_pooler: ClassVar[bool] = True

    def setup(self) -> None:
        """Make the parts."""
        self.bert = FlaxBertModule(
            self.config,
            dtype=self.dtype,
            add_pooling_layer=self.has_pooler,
            gradient_checkpointing=self.gradient_checkpointing,
        )
        self.dropout = nn.Dropout(_classifier_dropout(self.config))
        self.make_head()

    def make_head(self) -> None:
        """Make the modules of the head."""
        raise NotImplementedError

    def _dense(self, features: int) -> Dense:
        return Dense(features, kernel_init=kernel_init(self.config), dtype=self.dtype)

    def _word_embeddings(self) -> Embedding:
        return self.bert.embeddings.word_embeddings


@model_output
class FlaxBertForPreTrainingOutput(ModelOutput):
    """`prediction_logits` (B, S, V), `seq_relationship_logits` (B, 2)."""

    prediction_logits: Array | None = None
    seq_relationship_logits: Array | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


class FlaxBertForPreTrainingModule(_FlaxBertTaskModule):
    """`FlaxBertForPreTraining` as a `linen.Module`."""

    def make_head(self) -> None:
        """Make the modules of the head."""
        self.cls = FlaxBertHeads(self.config, has_predictions=True, has_seq_relationship=True, dtype=self.dtype)

    def __call__(self, *inputs: Any, deterministic: bool = True, **arguments: Any) -> FlaxBertForPreTrainingOutput:
        """Run the model; arguments of `FlaxBertModule`."""
        outputs = self.bert(*inputs, deterministic=deterministic, **arguments)
        return FlaxBertForPreTrainingOutput(
            prediction_logits=self.cls.predictions(outputs.last_hidden_state, self._word_embeddings()),
            seq_relationship_logits=self.cls.seq_relationship(outputs.pooler_output),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class FlaxBertForPreTraining(FlaxBertPreTrainedModel):
    """BERT with the two heads of its pre-training: masked language modelling and next sentence prediction.

    Calls return `FlaxBertForPreTrainingOutput`.

    Args:
        config: Settings; the weights are random.
        input_shape: (batch, tokens) of the input that shapes the parameters.
        seed: Seed of the random weights.
        dtype: Dtype of the computation; parameters stay float32.
        _do_init: Draw weights and keep them; False keeps none.
        gradient_checkpointing: Recompute the layers' activations in the backward pass.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import BertConfig, FlaxBertForPreTraining
        >>> model = FlaxBertForPreTraining(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> output = model(jnp.array([[101, 7592, 102]]))
        >>> output.prediction_logits.shape, output.seq_relationship_logits.shape
        ((1, 3, 30522), (1, 2))
    """

    module_class: ClassVar[type[nn.Module]] = FlaxBertForPreTrainingModule
    scores_tokens: ClassVar[bool] = True


class FlaxBertForCausalLMModule(_FlaxBertTaskModule):
    """`FlaxBertForCausalLM` as a `linen.Module`."""

    has_pooler: ClassVar[bool] = False

    def make_head(self) -> None:
        """Make the modules of the head."""
        self.cls = FlaxBertHeads(self.config, has_predictions=True, has_seq_relationship=False, dtype=self.dtype)

    def __call__(
        self, *inputs: Any, deterministic: bool = True, **arguments: Any
    ) -> FlaxCausalLMOutputWithCrossAttentions:
        """Run the model; arguments of `FlaxBertModule`."""
        outputs = self.bert(*inputs, deterministic=deterministic, **arguments)
        return FlaxCausalLMOutputWithCrossAttentions(
            logits=self.cls.predictions(outputs.last_hidden_state, self._word_embeddings()),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=getattr(outputs, "cross_attentions", None),
        )


class FlaxBertForCausalLM(FlaxGenerationMixin, FlaxBertPreTrainedModel):
    """BERT as a causal language model; set `config.is_decoder=True`.

    Calls return `FlaxCausalLMOutputWithCrossAttentions`.

    Args:
        config: Settings; the weights are random.
        input_shape: (batch, tokens) of the input that shapes the parameters.
        seed: Seed of the random weights.
        dtype: Dtype of the computation; parameters stay float32.
        _do_init: Draw weights and keep them; False keeps none.
        gradient_checkpointing: Recompute the layers' activations in the backward pass.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import BertConfig, FlaxBertForCausalLM
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, is_decoder=True)
        >>> FlaxBertForCausalLM(config)(jnp.array([[101, 7592, 102]])).logits.shape
        (1, 3, 30522)
    """

    module_class: ClassVar[type[nn.Module]] = FlaxBertForCausalLMModule
    scores_tokens: ClassVar[bool] = True
    architecture: ClassVar[str] = "BertLMHeadModel"
    keeps_cache: ClassVar[bool] = True

    def __init__(
        self,
        config: BertConfig,
        input_shape: tuple[int, ...] = (1, 1),
        seed: int = 0,
        dtype: Any = jnp.float32,
        _do_init: bool = True,
        gradient_checkpointing: bool = False,
        **kwargs: Any,
    ) -> None:
        if not config.is_decoder:
            warnings.warn("FlaxBertForCausalLM attends in both directions unless config.is_decoder=True", stacklevel=2)
        super().__init__(config, input_shape, seed, dtype, _do_init, gradient_checkpointing, **kwargs)

    def max_positions(self) -> int:
        """Tokens that have a position embedding."""
        return self.config.max_position_embeddings

    def make_stepper(self, params: Any, inputs: dict[str, Array], *, rows: int, room: int) -> CausalStepper:
        """What runs the model during `generate`."""
        self._check_decoder("generate")
        shapes = self._cache_shapes(inputs["input_ids"].shape[0], room)
        return CausalStepper(self.module, params, inputs, shapes, rows, room)

    def prepare_inputs_for_generation(
        self, input_ids: Array, max_length: int, attention_mask: Array | None = None
    ) -> dict[str, Any]:
        """The arguments, besides the ids, of the first call of a generation.

        Args:
            input_ids: The prompts, (B, S).
            max_length: Number of tokens, prompts included, that will be generated at most.
            attention_mask: 1 for real tokens, 0 for padding on the left, (B, S).

        Returns:
            `past_key_values`, `attention_mask` (B, max_length) and `position_ids` (B, S).
        """
        batch, length = input_ids.shape
        mask = jnp.ones((batch, max_length), jnp.int32)
        position_ids = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
        if attention_mask is not None:
            # what lies behind the prompt is masked by causality, so one mask serves all steps
            mask = lax.dynamic_update_slice(mask, jnp.asarray(attention_mask, jnp.int32), (0, 0))
            position_ids = jnp.maximum(jnp.cumsum(mask[:, :length], axis=-1) - 1, 0)
        cache = self.init_cache(batch, max_length)
        return {"past_key_values": cache, "attention_mask": mask, "position_ids": position_ids}

    def update_inputs_for_generation(
        self, model_outputs: FlaxCausalLMOutputWithCrossAttentions, model_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """The arguments of the next call: the cache it returned, and the next positions (B, 1)."""
        next_positions = model_kwargs["position_ids"][:, -1:] + 1
        return {**model_kwargs, "past_key_values": model_outputs.past_key_values, "position_ids": next_positions}


class FlaxBertForMaskedLMModule(_FlaxBertTaskModule):
    """`FlaxBertForMaskedLM` as a `linen.Module`."""

    has_pooler: ClassVar[bool] = False

    def make_head(self) -> None:
        """Make the modules of the head."""
        self.cls = FlaxBertHeads(self.config, has_predictions=True, has_seq_relationship=False, dtype=self.dtype)

    def __call__(self, *inputs: Any, deterministic: bool = True, **arguments: Any) -> FlaxMaskedLMOutput:
        """Run the model; arguments of `FlaxBertModule`."""
        outputs = self.bert(*inputs, deterministic=deterministic, **arguments)
        return FlaxMaskedLMOutput(
            logits=self.cls.predictions(outputs.last_hidden_state, self._word_embeddings()),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class FlaxBertForMaskedLM(FlaxBertPreTrainedModel):
    """BERT that predicts masked tokens.

    Calls return `FlaxMaskedLMOutput`.

    Args:
        config: Settings; the weights are random.
        input_shape: (batch, tokens) of the input that shapes the parameters.
        seed: Seed of the random weights.
        dtype: Dtype of the computation; parameters stay float32.
        _do_init: Draw weights and keep them; False keeps none.
        gradient_checkpointing: Recompute the layers' activations in the backward pass.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import BertConfig, FlaxBertForMaskedLM
        >>> model = FlaxBertForMaskedLM(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> model(jnp.array([[101, 103, 102]])).logits.shape
        (1, 3, 30522)
    """

    module_class: ClassVar[type[nn.Module]] = FlaxBertForMaskedLMModule
    scores_tokens: ClassVar[bool] = True

    def __init__(
        self,
        config: BertConfig,
        input_shape: tuple[int, ...] = (1, 1),
        seed: int = 0,
        dtype: Any = jnp.float32,
        _do_init: bool = True,
        gradient_checkpointing: bool = False,
        **kwargs: Any,
    ) -> None:
        if config.is_decoder:
            warnings.warn("FlaxBertForMaskedLM should see both directions: set config.is_decoder=False", stacklevel=2)
        super().__init__(config, input_shape, seed, dtype, _do_init, gradient_checkpointing, **kwargs)


class FlaxBertForNextSentencePredictionModule(_FlaxBertTaskModule):
    """`FlaxBertForNextSentencePrediction` as a `linen.Module`."""

    def make_head(self) -> None:
        """Make the modules of the head."""
        self.cls = FlaxBertHeads(self.config, has_predictions=False, has_seq_relationship=True, dtype=self.dtype)

    def __call__(self, *inputs: Any, deterministic: bool = True, **arguments: Any) -> FlaxNextSentencePredictorOutput:
        """Run the model; arguments of `FlaxBertModule`."""
        outputs = self.bert(*inputs, deterministic=deterministic, **arguments)
        return FlaxNextSentencePredictorOutput(
            logits=self.cls.seq_relationship(outputs.pooler_output),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class FlaxBertForNextSentencePrediction(FlaxBertPreTrainedModel):
    """BERT that tells whether the second segment continues the first.

    Calls return `FlaxNextSentencePredictorOutput`.

    Args:
        config: Settings; the weights are random.
        input_shape: (batch, tokens) of the input that shapes the parameters.
        seed: Seed of the random weights.
        dtype: Dtype of the computation; parameters stay float32.
        _do_init: Draw weights and keep them; False keeps none.
        gradient_checkpointing: Recompute the layers' activations in the backward pass.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import BertConfig, FlaxBertForNextSentencePrediction
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> model = FlaxBertForNextSentencePrediction(config)
        >>> model(jnp.array([[101, 7592, 102]])).logits.shape
        (1, 2)
    """

    module_class: ClassVar[type[nn.Module]] = FlaxBertForNextSentencePredictionModule


class FlaxBertForSequenceClassificationModule(_FlaxBertTaskModule):
    """`FlaxBertForSequenceClassification` as a `linen.Module`."""

    def make_head(self) -> None:
        """Make the modules of the head."""
        self.classifier = self._dense(self.config.num_labels)

    def __call__(self, *inputs: Any, deterministic: bool = True, **arguments: Any) -> FlaxSequenceClassifierOutput:
        """Run the model; arguments of `FlaxBertModule`."""
        outputs = self.bert(*inputs, deterministic=deterministic, **arguments)
        return FlaxSequenceClassifierOutput(
            logits=self.classifier(self.dropout(outputs.pooler_output, deterministic=deterministic)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class FlaxBertForSequenceClassification(FlaxBertPreTrainedModel):
    """BERT with a classification or regression head on the pooled first token.

    Calls return `FlaxSequenceClassifierOutput`.

    Args:
        config: Settings; the weights are random.
        input_shape: (batch, tokens) of the input that shapes the parameters.
        seed: Seed of the random weights.
        dtype: Dtype of the computation; parameters stay float32.
        _do_init: Draw weights and keep them; False keeps none.
        gradient_checkpointing: Recompute the layers' activations in the backward pass.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import BertConfig, FlaxBertForSequenceClassification
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=3)
        >>> FlaxBertForSequenceClassification(config)(jnp.array([[101, 7592, 102]])).logits.shape
        (1, 3)
    """

    module_class: ClassVar[type[nn.Module]] = FlaxBertForSequenceClassificationModule


class FlaxBertForMultipleChoiceModule(_FlaxBertTaskModule):
    """`FlaxBertForMultipleChoice` as a `linen.Module`."""

    def make_head(self) -> None:
        """Make the modules of the head."""
        self.classifier = self._dense(1)

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        *inputs: Any,
        deterministic: bool = True,
        **arguments: Any,
    ) -> FlaxMultipleChoiceModelOutput:
        """Run the model; arguments of `FlaxBertModule`, the first four with an axis of choices, (B, C, S)."""
        folded: Any
        num_choices, folded = fold_choices(input_ids, attention_mask, token_type_ids, position_ids)
        outputs = self.bert(*folded, *inputs, deterministic=deterministic, **arguments)
        logits = self.classifier(self.dropout(outputs.pooler_output, deterministic=deterministic))
        return FlaxMultipleChoiceModelOutput(
            logits=logits.reshape(-1, num_choices),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class FlaxBertForMultipleChoice(FlaxBertPreTrainedModel):
    """BERT that scores each of several choices from its pooled first token.

    Ids and masks have an axis of choices, (B, C, S). Calls return `FlaxMultipleChoiceModelOutput`.

    Args:
        config: Settings; the weights are random.
        input_shape: (batch, tokens) of the input that shapes the parameters.
        seed: Seed of the random weights.
        dtype: Dtype of the computation; parameters stay float32.
        _do_init: Draw weights and keep them; False keeps none.
        gradient_checkpointing: Recompute the layers' activations in the backward pass.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import BertConfig, FlaxBertForMultipleChoice
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> model = FlaxBertForMultipleChoice(config)
        >>> model(jnp.array([[[101, 7592, 102], [101, 2088, 102]]])).logits.shape
        (1, 2)
    """

    module_class: ClassVar[type[nn.Module]] = FlaxBertForMultipleChoiceModule
    input_axes: ClassVar[tuple[str, ...]] = ("batch", "choices", "tokens")


class FlaxBertForTokenClassificationModule(_FlaxBertTaskModule):
    """`FlaxBertForTokenClassification` as a `linen.Module`."""

    has_pooler: ClassVar[bool] = False

    def make_head(self) -> None:
        """Make the modules of the head."""
        self.classifier = self._dense(self.config.num_labels)

    def __call__(self, *inputs: Any, deterministic: bool = True, **arguments: Any) -> FlaxTokenClassifierOutput:
        """Run the model; arguments of `FlaxBertModule`."""
        outputs = self.bert(*inputs, deterministic=deterministic, **arguments)
        return FlaxTokenClassifierOutput(
            logits=self.classifier(self.dropout(outputs.last_hidden_state, deterministic=deterministic)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class FlaxBertForTokenClassification(FlaxBertPreTrainedModel):
    """BERT with a classification head on every token.

    Calls return `FlaxTokenClassifierOutput`.

    Args:
        config: Settings; the weights are random.
        input_shape: (batch, tokens) of the input that shapes the parameters.
        seed: Seed of the random weights.
        dtype: Dtype of the computation; parameters stay float32.
        _do_init: Draw weights and keep them; False keeps none.
        gradient_checkpointing: Recompute the layers' activations in the backward pass.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import BertConfig, FlaxBertForTokenClassification
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=5)
        >>> FlaxBertForTokenClassification(config)(jnp.array([[101, 7592, 102]])).logits.shape
        (1, 3, 5)
    """

    module_class: ClassVar[type[nn.Module]] = FlaxBertForTokenClassificationModule
    scores_tokens: ClassVar[bool] = True


class FlaxBertForQuestionAnsweringModule(_FlaxBertTaskModule):
    """`FlaxBertForQuestionAnswering` as a `linen.Module`."""

    has_pooler: ClassVar[bool] = False

    def make_head(self) -> None:
        """Make the modules of the head."""
        self.qa_outputs = self._dense(2)

    def __call__(self, *inputs: Any, deterministic: bool = True, **arguments: Any) -> FlaxQuestionAnsweringModelOutput:
        """Run the model; arguments of `FlaxBertModule`."""
        outputs = self.bert(*inputs, deterministic=deterministic, **arguments)
        logits = self.qa_outputs(outputs.last_hidden_state)
        return FlaxQuestionAnsweringModelOutput(
            start_logits=logits[..., 0],
            end_logits=logits[..., 1],
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class FlaxBertForQuestionAnswering(FlaxBertPreTrainedModel):
    """BERT that scores each token as start and as end of an answer.

    Calls return `FlaxQuestionAnsweringModelOutput`.

    Args:
        config: Settings; the weights are random.
        input_shape: (batch, tokens) of the input that shapes the parameters.
        seed: Seed of the random weights.
        dtype: Dtype of the computation; parameters stay float32.
        _do_init: Draw weights and keep them; False keeps none.
        gradient_checkpointing: Recompute the layers' activations in the backward pass.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import BertConfig, FlaxBertForQuestionAnswering
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> FlaxBertForQuestionAnswering(config)(jnp.array([[101, 7592, 102]])).start_logits.shape
        (1, 3)
    """

    module_class: ClassVar[type[nn.Module]] = FlaxBertForQuestionAnsweringModule
    needs_padding_states: ClassVar[bool] = True


def _classifier_dropout(config: BertConfig) -> float:
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
