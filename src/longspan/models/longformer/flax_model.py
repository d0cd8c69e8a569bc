"""Longformer in Flax (Beltagy et al., 2020, https://arxiv.org/abs/2004.05150): the backbone, then the task classes.

Axes: B batch, S tokens, H width, A heads, L layers, N classes, C choices, V vocabulary.

Each class is a `linen.Module` and its wrapper; all are called alike, see `FlaxLongformerPreTrainedModel.__call__`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from longspan.checkpoints.names import ParameterNames
from longspan.errors import InputError
from longspan.inputs import INPUTS, padding_of
from longspan.models.longformer.config import LongformerConfig
from longspan.models.longformer.flax_layers import (
    FlaxLongformerEmbeddings,
    FlaxLongformerEncoder,
    after_separator,
    before_separator,
    first_token,
    global_tokens,
    make_plan,
)
from longspan.models.longformer.flax_outputs import (
    FlaxLongformerBaseModelOutputWithPooling,
    FlaxLongformerMaskedLMOutput,
    FlaxLongformerMultipleChoiceModelOutput,
    FlaxLongformerQuestionAnsweringModelOutput,
    FlaxLongformerSequenceClassifierOutput,
    FlaxLongformerTokenClassifierOutput,
)
from longspan.models.longformer.names import NAMES
from longspan.nn.flax.base import FlaxPreTrainedModel
from longspan.nn.flax.buckets import bucket, cut_tokens, is_traced, pad_tokens, real_tokens
from longspan.nn.flax.checks import (
    as_array,
    as_indices,
    check_dropout_key,
    check_ids,
    check_length,
    values_visible,
)
from longspan.nn.flax.heads import LanguageModelHead, Pooler
from longspan.nn.flax.layers import PooledStack
from longspan.nn.flax.masks import drop_unseen_faults, expand_head_mask
from longspan.nn.flax.outputs import finish, resolve
from longspan.nn.flax.parameters import kernel_init
from longspan.nn.flax.tasks import (
    FirstTokenClassificationModule,
    MultipleChoiceModule,
    QuestionAnsweringModule,
    TaskModule,
    TokenClassificationModule,
)
from longspan.ops.flax.context import check_share
from longspan.ops.flax.sliding_window import DISPATCHER
from longspan.shapes import check_shape

__all__ = [
    "FlaxLongformerForMaskedLM",
    "FlaxLongformerForMultipleChoice",
    "FlaxLongformerForQuestionAnswering",
    "FlaxLongformerForSequenceClassification",
    "FlaxLongformerForTokenClassification",
    "FlaxLongformerModel",
    "FlaxLongformerPreTrainedModel",
]

_LIMIT = "max_position_embeddings - pad_token_id - 1"
#: inputs with one integer for each token, and the setting that limits each
_INDICES = ("input_ids", "token_type_ids", "position_ids")
_MASKS = ("attention_mask", "global_attention_mask", "head_mask")


class FlaxLongformerModule(PooledStack):
    """The backbone as a `linen.Module`; `FlaxLongformerModel` wraps it."""

    config: LongformerConfig

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        self.embeddings = FlaxLongformerEmbeddings(config, dtype=self.dtype)
        self.encoder = FlaxLongformerEncoder(config, self.dtype, self.gradient_checkpointing)
        if self.add_pooling_layer:
            self.pooler = Pooler(config.hidden_size, kernel_init=kernel_init(config), dtype=self.dtype)

    def __call__(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        global_attention_mask: Array | None = None,
        head_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        inputs_embeds: Array | None = None,
        *,
        num_global_slots: int | None = None,
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> FlaxLongformerBaseModelOutputWithPooling:
        """Run the backbone; the inputs as in `FlaxLongformerPreTrainedModel.__call__`.

        Args:
            num_global_slots: Global tokens that a row has room for; a row with more becomes NaN. Default: as the
                configuration says.
            deterministic: Drop nothing.
            output_attentions: Return attention weights.
            output_hidden_states: Return hidden states.
        """
        config = self.config
        if inputs_embeds is not None:
            inputs_embeds = drop_unseen_faults(inputs_embeds, attention_mask)
        read = input_ids if inputs_embeds is None else inputs_embeds
        assert read is not None
        check_share(read.shape[1], needs_weights=output_attentions)
        plan, overflows = make_plan(
            global_tokens(attention_mask, global_attention_mask),
            attention_mask,
            slots=config.num_global_slots if num_global_slots is None else num_global_slots,
            needs_weights=output_attentions,
            implementation=config.attn_implementation,
            deterministic=deterministic,
        )
        embedded = self.embeddings(input_ids, inputs_embeds, token_type_ids, position_ids, deterministic=deterministic)
        if overflows is not None:
            embedded = jnp.where(overflows[:, None, None], jnp.nan, embedded)
        heads = expand_head_mask(head_mask, num_layers=config.num_hidden_layers, num_heads=config.num_attention_heads)
        states, attentions, global_attentions = self.encoder(embedded, plan, heads)
        return FlaxLongformerBaseModelOutputWithPooling(
            last_hidden_state=states[-1],
            pooler_output=self.pooler(states[-1]) if self.add_pooling_layer else None,
            hidden_states=states if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
            global_attentions=global_attentions if output_attentions and plan.positions is not None else None,
        )


class FlaxLongformerPreTrainedModel(FlaxPreTrainedModel):
    """What all Flax Longformer classes share.

    Calls outside of `jax.jit` pad their inputs up to a few lengths, and their global tokens up to a power of two, and
    cut outputs back, so that one compiled program serves many inputs. With attention weights, lengths and numbers are
    taken as they are.
    """

    config_class: ClassVar[type[LongformerConfig]] = LongformerConfig
    base_model_prefix: ClassVar[str] = "longformer"
    names: ClassVar[ParameterNames] = NAMES
    #: `logits` has an axis of tokens
    scores_tokens: ClassVar[bool] = False
    config: LongformerConfig

    def check_implementation(self, name: str) -> None:
        """Raise `InputError` unless `name` is an implementation of sliding-window attention."""
        DISPATCHER.check_name(name)

    def dummy_inputs(self, input_shape: tuple[int, ...]) -> dict[str, Any]:
        """Arguments of the module that reach all of its parameters."""
        batch, *_, length = input_shape
        choices = [1] * (len(self.input_axes) - 2)
        ids = jnp.zeros((batch, *choices, length), jnp.int32)
        return {"input_ids": ids, "global_attention_mask": ids}

    def default_global_tokens(self, input_ids: Any, token_type_ids: Any) -> Any:
        """Tokens with global attention if no mask says it, boolean, in the shape of the ids; here none."""
        return None

    def program_settings(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """`num_global_slots` for these inputs; none if their values cannot be seen."""
        arrays = self._arrays(inputs)
        slots = self._count_slots(global_tokens(arrays["attention_mask"], arrays["global_attention_mask"]))
        return {} if slots is None else {"num_global_slots": _power_of_two(slots)}

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        global_attention_mask: Any = None,
        head_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        params: Mapping[str, Any] | None = None,
        dropout_rng: Array | None = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_global_slots: int | None = None,
    ) -> Any:
        """Run the model; in a class for multiple choice, inputs have an axis of choices, (B, C, S).

        Args:
            input_ids: Token ids, (B, S). Exactly one of this and `inputs_embeds` is given.
            attention_mask: 1 for real tokens, 0 for padding, 2 for tokens with global attention, (B, S). States at
                padding are unspecified.
            global_attention_mask: Nonzero for tokens with global attention, (B, S); default: what the class says.
                Rows may differ in their number; padding never attends, whatever this mask says there.
            head_mask: 1 keeps a head, 0 removes it, (A,) or (L, A).
            token_type_ids: Segment of each token, (B, S); default 0.
            position_ids: Position of each token, (B, S); default: counted over the ids that are not padding, from
                `pad_token_id + 1` on.
            inputs_embeds: Embedded tokens, (B, S, H).
            params: Parameters; default: the model's own.
            dropout_rng: Random key of dropout; needed if `train`.
            train: Drop activations as configured.
            output_attentions: Return attention weights; L × (B, A, S, G + W + 1) and L × (B, A, S, G), see
                `longspan.models.longformer.flax_outputs`.
            output_hidden_states: Return hidden states, (L + 1) × (B, S, H).
            return_dict: Return a `ModelOutput` rather than a tuple.
            num_global_slots: Global tokens that a row has room for, G. Default: their largest number, or inside of
                `jax.jit`, where it cannot be seen, that of the configuration. A row with more becomes NaN.

        Returns:
            The output that the class names, a pytree.

        Raises:
            InputError: shapes disagree, an id is out of range, the input is longer than the positions, or `params` or
                `dropout_rng` are missing.
        """
        config = self.config
        inputs = self._arrays(
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "global_attention_mask": global_attention_mask,
                "head_mask": head_mask,
                "token_type_ids": token_type_ids,
                "position_ids": position_ids,
                "inputs_embeds": inputs_embeds,
            }
        )
        check_dropout_key(train, dropout_rng, config.hidden_dropout_prob, config.attention_probs_dropout_prob)
        needs_weights = resolve(output_attentions, config.output_attentions)
        exact = needs_weights or is_traced(inputs, params, dropout_rng)
        if num_global_slots is None:
            slots = self._count_slots(global_tokens(inputs["attention_mask"], inputs["global_attention_mask"]))
            num_global_slots = slots if slots is None or needs_weights else _power_of_two(slots)
        length = self._main(inputs).shape[len(self.input_axes) - 1]
        settings = {
            "num_global_slots": num_global_slots,
            "deterministic": not train,
            "output_attentions": needs_weights,
            "output_hidden_states": resolve(output_hidden_states, config.output_hidden_states),
        }
        inputs = inputs if exact else self._in_bucket(inputs, length)
        output, _ = self._run(inputs, settings, params=params, dropout_rng=dropout_rng)
        if not exact:
            output = cut_tokens(output, length, rows=("pooler_output", *(() if self.scores_tokens else ("logits",))))
        return finish(output, resolve(return_dict, config.return_dict))

    def _main(self, inputs: Mapping[str, Any]) -> Any:
        return inputs["inputs_embeds"] if inputs["input_ids"] is None else inputs["input_ids"]

    def _arrays(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs as arrays, checked, with the class's global tokens where no mask is given."""
        config = self.config
        inputs = {
            name: value if value is None else as_indices(value, name=name) if name in _INDICES else as_array(value)
            for name, value in {**dict.fromkeys((*_INDICES, "inputs_embeds", *_MASKS)), **given}.items()
        }
        if (inputs["input_ids"] is None) == (inputs["inputs_embeds"] is None):
            raise InputError("exactly one of input_ids and inputs_embeds must be given")
        main, number = self._main(inputs), len(self.input_axes)
        width = () if inputs["inputs_embeds"] is None else (config.hidden_size,)
        axes = ", ".join((*self.input_axes, *(["hidden_size"] if width else [])))
        if main.ndim != number + len(width) or main.shape[number:] != width:
            name = "inputs_embeds" if width else "input_ids"
            raise InputError(f"{name} must have the shape ({axes}). Received: {tuple(main.shape)}")
        shape = main.shape[:number]
        for name in ("attention_mask", "global_attention_mask", "token_type_ids", "position_ids"):
            check_shape(inputs[name], shape, name=name, axes=f"({', '.join(self.input_axes)})")
        for name in _INDICES:
            ids, limit_name = inputs[name], INPUTS[name].limit
            assert limit_name is not None
            if ids is not None:
                check_ids(ids, getattr(config, limit_name), name=name, limit_name=limit_name)
        if inputs["position_ids"] is None:
            check_length(self._longest(inputs), config.max_length, limit_name=_LIMIT)
        if inputs["global_attention_mask"] is None:
            ids = inputs["input_ids"]
            ids = np.full(shape, -1) if ids is None else np.asarray(ids) if values_visible(ids) else ids
            inputs["global_attention_mask"] = self.default_global_tokens(ids, inputs["token_type_ids"])
        return inputs

    def _longest(self, inputs: Mapping[str, Any]) -> int:
        """Positions that the longest row takes up, as far as this can be seen."""
        ids = inputs["input_ids"]
        if ids is None:
            return inputs["inputs_embeds"].shape[-2]
        if not values_visible(ids) or ids.size == 0:
            return 0
        return int((np.asarray(ids) != self.config.pad_token_id).sum(axis=-1).max())

    def _count_slots(self, is_global: Any) -> int | None:
        """Largest number of global tokens of a row; None if that cannot be seen."""
        if is_global is None or is_global.size == 0:
            return 0
        return int(np.asarray(is_global).sum(axis=-1).max()) if values_visible(is_global) else None

    def _in_bucket(self, inputs: dict[str, Any], length: int) -> dict[str, Any]:
        """The inputs, padded up to their bucket, and a mask of what was there."""
        axis, room = len(self.input_axes) - 1, bucket(length)
        shape = self._main(inputs).shape[: axis + 1]
        inputs = {**inputs, "attention_mask": real_tokens(inputs["attention_mask"], shape)}
        return {
            name: value
            if value is None or name == "head_mask"
            else pad_tokens(value, room, value=padding_of(name, self.config), axis=axis)
            for name, value in inputs.items()
        }


def _power_of_two(number: int) -> int:
    """The next power of two, or 0."""
    return 1 << (number - 1).bit_length() if number > 0 else 0


class FlaxLongformerModel(FlaxLongformerPreTrainedModel):
    """Longformer without a head: an encoder whose attention is linear in the length.

    Each token sees a window of neighbours; tokens with global attention see all tokens and are seen by all. Calls
    return `FlaxLongformerBaseModelOutputWithPooling`. `add_pooling_layer=False` leaves out the pooler, which gives
    `pooler_output`.

    Example:
        >>> import numpy as np
        >>> from longspan import FlaxLongformerModel, LongformerConfig
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, attention_window=4)
        >>> global_attention_mask = np.array([[1, 0, 0, 0, 0, 0]])
        >>> output = FlaxLongformerModel(config)(
        ...     np.array([[0, 7, 8, 9, 10, 2]]), global_attention_mask=global_attention_mask, output_attentions=True
        ... )
        >>> output.last_hidden_state.shape, output.attentions[0].shape, output.global_attentions[0].shape
        ((1, 6, 32), (1, 2, 6, 6), (1, 2, 6, 1))
    """

    module_class = FlaxLongformerModule


class FlaxLongformerTaskModule(TaskModule):
    """A Longformer, with a pooler or not, and a head."""

    config: LongformerConfig
    backbone_name = "longformer"
    backbone_class = FlaxLongformerModule

    @property
    def dropout_rate(self) -> float:
        """Probability of the dropout before the head."""
        return self.config.hidden_dropout_prob


class FlaxLongformerForMaskedLMModule(FlaxLongformerTaskModule):
    """`FlaxLongformerForMaskedLM` as a `linen.Module`."""

    output_class = FlaxLongformerMaskedLMOutput

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        self.lm_head = LanguageModelHead(self.config, dtype=self.dtype)

    def head(self, outputs: Any, *, deterministic: bool) -> Array:
        """Scores of the vocabulary, (B, S, V)."""
        return self.lm_head(outputs.last_hidden_state, self.longformer.embeddings.word_embeddings)


class FlaxLongformerForMaskedLM(FlaxLongformerPreTrainedModel):
    """Longformer that predicts masked tokens.

    Calls return `FlaxLongformerMaskedLMOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import FlaxLongformerForMaskedLM, LongformerConfig
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> FlaxLongformerForMaskedLM(config)(np.array([[0, 7, 4, 2]])).logits.shape
        (1, 4, 30522)
    """

    module_class = FlaxLongformerForMaskedLMModule
    scores_tokens = True


class FlaxLongformerForSequenceClassificationModule(FirstTokenClassificationModule, FlaxLongformerTaskModule):
    """`FlaxLongformerForSequenceClassification` as a `linen.Module`."""

    output_class = FlaxLongformerSequenceClassifierOutput


class FlaxLongformerForSequenceClassification(FlaxLongformerPreTrainedModel):
    """Longformer with a classification or regression head on the first token, which attends globally by default.

    Calls return `FlaxLongformerSequenceClassifierOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import FlaxLongformerForSequenceClassification, LongformerConfig
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=3)
        >>> FlaxLongformerForSequenceClassification(config)(np.array([[0, 7, 8, 2]])).logits.shape
        (1, 3)
    """

    module_class = FlaxLongformerForSequenceClassificationModule

    def default_global_tokens(self, input_ids: Any, token_type_ids: Any) -> Any:
        """The first token."""
        return first_token(input_ids)


class FlaxLongformerForQuestionAnsweringModule(QuestionAnsweringModule, FlaxLongformerTaskModule):
    """`FlaxLongformerForQuestionAnswering` as a `linen.Module`."""

    output_class = FlaxLongformerQuestionAnsweringModelOutput


class FlaxLongformerForQuestionAnswering(FlaxLongformerPreTrainedModel):
    """Longformer that scores each token as start and as end of an answer; the question attends globally by default.

    The question is all tokens before the first separator. A row without separator takes the tokens before its first
    one of segment 1; without that, its first token, with a warning where that can be seen. Calls return
    `FlaxLongformerQuestionAnsweringModelOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import FlaxLongformerForQuestionAnswering, LongformerConfig
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> FlaxLongformerForQuestionAnswering(config)(np.array([[0, 7, 2, 2, 8, 9, 2]])).start_logits.shape
        (1, 7)
    """

    module_class = FlaxLongformerForQuestionAnsweringModule

    def default_global_tokens(self, input_ids: Any, token_type_ids: Any) -> Any:
        """The question."""
        question, lacking = before_separator(input_ids, token_type_ids, self.config.sep_token_id)
        _warn_if_any(lacking, "a question: no separator and no token of segment 1")
        return question


class FlaxLongformerForTokenClassificationModule(TokenClassificationModule, FlaxLongformerTaskModule):
    """`FlaxLongformerForTokenClassification` as a `linen.Module`."""

    output_class = FlaxLongformerTokenClassifierOutput


class FlaxLongformerForTokenClassification(FlaxLongformerPreTrainedModel):
    """Longformer with a classification head on every token.

    Calls return `FlaxLongformerTokenClassifierOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import FlaxLongformerForTokenClassification, LongformerConfig
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=5)
        >>> FlaxLongformerForTokenClassification(config)(np.array([[0, 7, 8, 2]])).logits.shape
        (1, 4, 5)
    """

    module_class = FlaxLongformerForTokenClassificationModule
    scores_tokens = True


class FlaxLongformerForMultipleChoiceModule(MultipleChoiceModule, FlaxLongformerTaskModule):
    """`FlaxLongformerForMultipleChoice` as a `linen.Module`."""

    output_class = FlaxLongformerMultipleChoiceModelOutput


class FlaxLongformerForMultipleChoice(FlaxLongformerPreTrainedModel):
    """Longformer that scores each of several choices; a choice attends globally by default.

    The choice is all tokens behind the first two separators. A row without a separator takes its first token, with a
    warning where that can be seen. Calls return `FlaxLongformerMultipleChoiceModelOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import FlaxLongformerForMultipleChoice, LongformerConfig
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> choices = np.array([[[0, 7, 2, 2, 8, 2], [0, 7, 2, 2, 9, 2]]])
        >>> FlaxLongformerForMultipleChoice(config)(choices).logits.shape
        (1, 2)
    """

    module_class = FlaxLongformerForMultipleChoiceModule
    input_axes = ("batch", "choices", "tokens")

    def default_global_tokens(self, input_ids: Any, token_type_ids: Any) -> Any:
        """The choice."""
        choice, lacking = after_separator(input_ids, self.config.sep_token_id)
        _warn_if_any(lacking, "a choice: no separator")
        return choice


def _warn_if_any(lacking: Any, what: str) -> None:
    if values_visible(lacking) and lacking.any():
        warnings.warn(
            f"the model cannot find {what} in {int(lacking.sum())} of {lacking.size} rows; global attention is on "
            "their first token. Pass global_attention_mask",
            stacklevel=5,
        )
