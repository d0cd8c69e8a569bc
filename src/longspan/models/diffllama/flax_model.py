"""DiffLlama in Flax (Ye et al., 2024, https://arxiv.org/abs/2410.05258): the task classes.

Axes: B batch, S tokens, T keys, H width, A softmax maps, L layers, N classes, V vocabulary.

All classes are called alike; see `FlaxDiffLlamaPreTrainedModel.__call__`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from longspan.checkpoints.names import ParameterNames
from longspan.generation.flax_mixin import FlaxCausalGenerationMixin
from longspan.model_output import ModelOutput
from longspan.models.diffllama.config import DiffLlamaConfig
from longspan.models.diffllama.flax_backbone import (
    FlaxDiffLlamaModel,
    FlaxDiffLlamaModule,
    FlaxDiffLlamaPreTrainedModel,
)
from longspan.models.diffllama.flax_layers import linear
from longspan.models.diffllama.names import QUESTION_ANSWERING_NAMES
from longspan.nn.flax.outputs import Arrays, FlaxCache, model_output
from longspan.nn.flax.tasks import QuestionAnsweringModule, TaskModule

__all__ = [
    "FlaxDiffLlamaForCausalLM",
    "FlaxDiffLlamaForQuestionAnswering",
    "FlaxDiffLlamaForSequenceClassification",
    "FlaxDiffLlamaForTokenClassification",
    "FlaxDiffLlamaModel",
    "FlaxDiffLlamaPreTrainedModel",
]


@model_output
class FlaxDiffLlamaScoresOutput(ModelOutput):
    """`logits` of the class; `differential_attentions`: A1 − λ·A2 of each layer, L × (B, A/2, S, T)."""

    logits: Array | None = None
    past_key_values: FlaxCache | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None
    differential_attentions: Arrays | None = None


@model_output
class FlaxDiffLlamaQuestionAnsweringOutput(ModelOutput):
    """`start_logits`, `end_logits` (B, S); `differential_attentions`: A1 − λ·A2 of each layer, L × (B, A/2, S, T)."""

    start_logits: Array | None = None
    end_logits: Array | None = None
    past_key_values: FlaxCache | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None
    differential_attentions: Arrays | None = None


class FlaxDiffLlamaTaskModule(TaskModule):
    """A DiffLlama with a head."""

    config: DiffLlamaConfig
    backbone_name = "model"
    output_class: ClassVar[type[ModelOutput]] = FlaxDiffLlamaScoresOutput

    def setup(self) -> None:
        """Make the backbone, which has no pooler."""
        setattr(self, self.backbone_name, FlaxDiffLlamaModule(self.config, self.dtype, self.gradient_checkpointing))


class FlaxDiffLlamaForCausalLMModule(FlaxDiffLlamaTaskModule):
    """`FlaxDiffLlamaForCausalLM` as a `linen.Module`."""

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        if not self.config.tie_word_embeddings:
            self.lm_head = linear(self.config, self.config.vocab_size, dtype=self.dtype)

    def head(self, outputs: Any, *, deterministic: bool) -> Array:
        """Scores of the vocabulary, (B, S, V)."""
        states = outputs.last_hidden_state
        if self.config.tie_word_embeddings:
            return self.model.embed_tokens.attend(states).astype(self.dtype)
        return self.lm_head(states)


class FlaxDiffLlamaForCausalLM(FlaxCausalGenerationMixin, FlaxDiffLlamaPreTrainedModel):
    """DiffLlama with a language modelling head.

    Calls return `FlaxDiffLlamaScoresOutput` with `logits` (B, S, V).

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import DiffLlamaConfig, FlaxDiffLlamaForCausalLM
        >>> config = DiffLlamaConfig(
        ...     vocab_size=100, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1
        ... )
        >>> model = FlaxDiffLlamaForCausalLM(config)
        >>> model(jnp.array([[1, 5, 7]])).logits.shape
        (1, 3, 100)
        >>> model.generate(jnp.array([[1, 5, 7]]), max_new_tokens=2, min_new_tokens=2).sequences.shape
        (1, 5)
    """

    module_class: ClassVar[type[nn.Module]] = FlaxDiffLlamaForCausalLMModule


class FlaxDiffLlamaForSequenceClassificationModule(FlaxDiffLlamaTaskModule):
    """`FlaxDiffLlamaForSequenceClassification` as a `linen.Module`."""

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        self.score = linear(self.config, self.config.num_labels, dtype=self.dtype)

    def encode_and_score(self, *inputs: Any, deterministic: bool, **arguments: Any) -> tuple[Any, Array]:
        """The outputs of the backbone, and the scores of the last real token of each row, (B, N)."""
        outputs: Any = self.model(*inputs, deterministic=deterministic, **arguments)
        ids = inputs[0] if inputs else arguments.get("input_ids")
        return outputs, self.score(_last_token(outputs.last_hidden_state, ids, self.config.pad_token_id))


class FlaxDiffLlamaForSequenceClassification(FlaxDiffLlamaPreTrainedModel):
    """DiffLlama with a linear classifier on the last real token of each row.

    The last real token is the rightmost one that is not `config.pad_token_id`; it is simply the last token if no
    padding id is set or if `inputs_embeds` are given. Calls return `FlaxDiffLlamaScoresOutput` with `logits` (B, N).

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import DiffLlamaConfig, FlaxDiffLlamaForSequenceClassification
        >>> config = DiffLlamaConfig(
        ...     hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1, pad_token_id=0
        ... )
        >>> FlaxDiffLlamaForSequenceClassification(config)(jnp.array([[1, 5, 7], [1, 6, 0]])).logits.shape
        (2, 2)
    """

    module_class: ClassVar[type[nn.Module]] = FlaxDiffLlamaForSequenceClassificationModule
    row_outputs = ("logits",)

    def may_pad(self, inputs: Mapping[str, Any]) -> bool:
        """True if padding can be told from the last real token."""
        return inputs["input_ids"] is not None and self.config.pad_token_id is not None


class FlaxDiffLlamaForQuestionAnsweringModule(QuestionAnsweringModule, FlaxDiffLlamaTaskModule):
    """`FlaxDiffLlamaForQuestionAnswering` as a `linen.Module`."""

    backbone_name = "transformer"
    output_class = FlaxDiffLlamaQuestionAnsweringOutput


class FlaxDiffLlamaForQuestionAnswering(FlaxDiffLlamaPreTrainedModel):
    """DiffLlama with scores for the start and the end of an answer at each token.

    Calls return `FlaxDiffLlamaQuestionAnsweringOutput`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import DiffLlamaConfig, FlaxDiffLlamaForQuestionAnswering
        >>> config = DiffLlamaConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1)
        >>> output = FlaxDiffLlamaForQuestionAnswering(config)(jnp.array([[1, 5, 7]]))
        >>> output.start_logits.shape, output.end_logits.shape
        ((1, 3), (1, 3))
    """

    module_class: ClassVar[type[nn.Module]] = FlaxDiffLlamaForQuestionAnsweringModule
    base_model_prefix: ClassVar[str] = "transformer"
    names: ClassVar[ParameterNames] = QUESTION_ANSWERING_NAMES


class FlaxDiffLlamaForTokenClassificationModule(FlaxDiffLlamaTaskModule):
    """`FlaxDiffLlamaForTokenClassification` as a `linen.Module`."""

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        self.dropout = nn.Dropout(_classifier_dropout(self.config))
        self.score = linear(self.config, self.config.num_labels, use_bias=True, dtype=self.dtype)

    def head(self, outputs: Any, *, deterministic: bool) -> Array:
        """Scores of the classes, (B, S, N)."""
        return self.score(self.dropout(outputs.last_hidden_state, deterministic=deterministic))


class FlaxDiffLlamaForTokenClassification(FlaxDiffLlamaPreTrainedModel):
    """DiffLlama with a linear classifier on every token.

    The dropout before it is `config.classifier_dropout`, else `config.hidden_dropout`, else 0.1, as in the reference.
    Calls return `FlaxDiffLlamaScoresOutput` with `logits` (B, S, N).

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import DiffLlamaConfig, FlaxDiffLlamaForTokenClassification
        >>> config = DiffLlamaConfig(
        ...     hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1, num_labels=5
        ... )
        >>> FlaxDiffLlamaForTokenClassification(config)(jnp.array([[1, 5, 7]])).logits.shape
        (1, 3, 5)
    """

    module_class: ClassVar[type[nn.Module]] = FlaxDiffLlamaForTokenClassificationModule

    @property
    def dropout_rate(self) -> float:
        """The largest rate of dropout."""
        return max(self.config.attention_dropout, _classifier_dropout(self.config))


def _classifier_dropout(config: DiffLlamaConfig) -> float:
    settings = (getattr(config, name, None) for name in ("classifier_dropout", "hidden_dropout"))
    return next((value for value in settings if value is not None), 0.1)


def _last_token(hidden_states: Array, input_ids: Array | None, pad_token_id: int | None) -> Array:
    """The state of each row's last real token, (B, S, H) -> (B, H)."""
    if input_ids is None or pad_token_id is None:
        return hidden_states[:, -1]
    last = (jnp.arange(input_ids.shape[1]) * (input_ids != pad_token_id)).argmax(axis=-1)
    return jnp.take_along_axis(hidden_states, last[:, None, None], axis=1)[:, 0]
