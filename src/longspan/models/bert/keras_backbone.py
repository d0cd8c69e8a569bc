"""The backbone of BERT in Keras 3 (Devlin et al., 2018, https://arxiv.org/abs/1810.04805).

Axes: B batch, S tokens, T keys, N tokens of the batch that are computed, H width, A heads, D head size, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
from keras import ops

from longspan.checkpoints.names import ParameterNames
from longspan.errors import InputError
from longspan.models.bert.config import BertConfig
from longspan.models.bert.keras_layers import ATTENTION, AttentionPlan, BertEncoder, make_plan
from longspan.models.bert.names import NAMES
from longspan.nn.keras.base import TFPreTrainedModel, register
from longspan.nn.keras.checks import Size, check_input, check_length, check_shape, input_shape
from longspan.nn.keras.heads import Pooler
from longspan.nn.keras.inputs import unpack_inputs
from longspan.nn.keras.masks import drop_unseen_faults, expand_head_mask
from longspan.nn.keras.outputs import KeyValues, TFBaseModelOutputWithPoolingAndCrossAttentions, resolve
from longspan.nn.keras.post_norm import Embeddings, prune_layers
from longspan.nn.keras.resizing import replace_layer
from longspan.nn.keras.runtime import after
from longspan.ops.keras import Tensor


class TFBertPreTrainedModel(TFPreTrainedModel):
    """What all BERT classes share."""

    config_class: ClassVar[type[BertConfig]] = BertConfig
    base_model_prefix: ClassVar[str] = "bert"
    names: ClassVar[ParameterNames] = NAMES
    converts_to_onnx: ClassVar[bool] = True
    config: BertConfig

    @classmethod
    def check_implementation(cls, name: str) -> None:
        """Raise `InputError` unless `name` is an attention implementation of BERT."""
        ATTENTION.check_name(name)


@register
class TFBertModel(TFBertPreTrainedModel):
    """BERT without a head: an encoder, or a decoder if `config.is_decoder`.

    As a decoder it attends causally and may keep a cache; with `config.add_cross_attention` it also attends to
    `encoder_hidden_states`.

    Args:
        config: Settings; the weights are random.
        add_pooling_layer: Have the pooler, which gives `pooler_output`.
        **kwargs: `name`, `dtype`, `trainable`.

    Example:
        >>> from longspan import BertConfig, TFBertModel
        >>> import numpy as np
        >>> model = TFBertModel(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> output = model(input_ids=np.array([[101, 7592, 102]]))
        >>> tuple(output.last_hidden_state.shape), tuple(output.pooler_output.shape)
        ((1, 3, 32), (1, 32))
    """

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        adds_positions = config.position_embedding_type == "absolute"
        padding = self.position_padding
        self.embeddings = Embeddings(
            config,
            adds_positions=adds_positions,
            position_padding=padding,
            dtype=self.dtype_policy,
            name="embeddings",
        )
        self.encoder = BertEncoder(config, dtype=self.dtype_policy, name="encoder")
        self.pooler = None
        if add_pooling_layer:
            size, stddev = config.hidden_size, config.initializer_range
            self.pooler = Pooler(hidden_size=size, stddev=stddev, dtype=self.dtype_policy, name="pooler")
        self.build()

    @property
    def position_padding(self) -> int | None:
        """Row of the position table that padding takes, if it has one of its own."""
        return None

    def get_config(self) -> dict[str, Any]:
        """Everything that `from_config` needs to make the same model, without weights."""
        return {**super().get_config(), "add_pooling_layer": self.pooler is not None}

    def get_input_embeddings(self) -> keras.layers.Embedding:
        """The word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: keras.layers.Embedding) -> None:
        """Replace the word embeddings by others that are built."""
        replace_layer(self.embeddings, "word_embeddings", value)

    def _prune_heads(self, heads_to_prune: Mapping[int, list[int]]) -> None:
        prune_layers(self.encoder.layer, heads_to_prune)

    @unpack_inputs
    def call(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: KeyValues | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = False,
        *,
        padding_states: bool | Tensor = False,
        cache_position: Tensor | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: Token ids, (B, S); or all inputs, as list, tuple or dict. Exactly one of ids and `inputs_embeds`
                is given.
            attention_mask: 1 for real tokens, 0 for padding, (B, S); with a cache (B, past + S). A mask per query,
                (B, S, S), is possible as well. States at padding are unspecified.
            token_type_ids: Segment of each token, (B, S); default 0.
            position_ids: Position of each token, (B, S); default 0, 1, ...
            head_mask: 1 keeps a head, 0 removes it, (A,) or (L, A).
            inputs_embeds: Embedded tokens, (B, S, H).
            encoder_hidden_states: States that cross-attention reads, (B, S_enc, H); needs a decoder with
                `add_cross_attention`.
            encoder_attention_mask: Their padding mask, (B, S_enc).
            past_key_values: Keys and values of earlier tokens, L tuples of 2 (with cross-attention 4) tensors
                (B, A, T, D). With `cache_position`, T is the fixed size of the cache, in what comes back as well.
            use_cache: Return keys and values (decoder only); default as configured.
            output_attentions: Return attention weights, L × (B, A, S, T).
            output_hidden_states: Return hidden states, (L + 1) × (B, S, H).
            return_dict: Return a `ModelOutput` rather than a tuple. Default as configured; a TensorFlow graph always
                returns a `ModelOutput` unless False is passed.
            training: Apply dropout.
            padding_states: Compute states at padding as if it were text: True for all of them, or a boolean (B, S). The
                others are unspecified.
            cache_position: Places of the tokens in a cache of a fixed size, one after the other, (S,); needs
                `position_ids`, and an `attention_mask` of the cache's size.

        Returns:
            `TFBaseModelOutputWithPoolingAndCrossAttentions`.

        Raises:
            InputError: shapes disagree, an id is out of range, or the input is longer than the positions.
        """
        config = self.config
        shape = input_shape(input_ids, inputs_embeds)
        if not isinstance(padding_states, bool):
            check_shape(padding_states, shape, name="labels", axes="of the scores without their last axis")
        cached = 0 if past_key_values is None else ops.shape(past_key_values[0][0])[2]
        past_length = cached if cache_position is None else cache_position[0]
        assertions = self._check_inputs(shape, input_ids, token_type_ids, encoder_hidden_states, past_key_values)
        if position_ids is None:
            position_ids, more = self.default_positions(input_ids, shape[1], past_length)
        else:
            more = check_input(position_ids, "position_ids", config, batch=shape[0], tokens=shape[1])
            more += [] if cache_position is not None else check_length(shape[1], config.max_position_embeddings)
        plan = make_plan(
            config,
            shape=shape,
            past_length=past_length,
            num_keys=cached + shape[1] if cache_position is None else cached,
            write_at=None if cache_position is None else past_length,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            needs_weights=resolve(output_attentions, config.output_attentions),
            padding_states=padding_states,
            first_states=self.pooler is not None,
        )
        if inputs_embeds is not None:
            inputs_embeds = drop_unseen_faults(inputs_embeds, attention_mask)
        if encoder_hidden_states is not None:
            encoder_hidden_states = drop_unseen_faults(encoder_hidden_states, encoder_attention_mask)
        with after([*assertions, *more]):
            embedded = self._embed(plan, input_ids, inputs_embeds, token_type_ids, position_ids, training)
        last_hidden_state, hidden, attentions, cross_attentions, presents = self.encoder(
            embedded,
            plan=plan,
            head_mask=expand_head_mask(
                head_mask, num_layers=config.num_hidden_layers, num_heads=config.num_attention_heads
            ),
            encoder_hidden_states=encoder_hidden_states,
            past_key_values=past_key_values,
            output_hidden_states=resolve(output_hidden_states, config.output_hidden_states),
            training=training,
        )
        keeps_cache = config.is_decoder and resolve(use_cache, config.use_cache)
        output = TFBaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=last_hidden_state,
            pooler_output=None if self.pooler is None else self.pooler(last_hidden_state),
            past_key_values=presents if keeps_cache else None,
            hidden_states=hidden,
            attentions=attentions,
            cross_attentions=cross_attentions,
        )
        return self.finish(output, return_dict)

    def _check_inputs(
        self,
        shape: tuple[Size, Size],
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        encoder_hidden_states: Tensor | None,
        past_key_values: KeyValues | None,
    ) -> list[Any]:
        config, sizes = self.config, {"batch": shape[0], "tokens": shape[1]}
        assertions = check_input(input_ids, "input_ids", config, **sizes)
        assertions += check_input(token_type_ids, "token_type_ids", config, **sizes)
        if past_key_values is not None and not config.is_decoder:
            raise InputError("past_key_values needs a decoder: config.is_decoder=True. Received: is_decoder=False")
        if past_key_values is not None and len(past_key_values) != config.num_hidden_layers:
            raise InputError(
                f"past_key_values must hold one tuple for each of num_hidden_layers={config.num_hidden_layers} layers. "
                f"Received: {len(past_key_values)}"
            )
        if encoder_hidden_states is not None and not config.add_cross_attention:
            raise InputError(
                "encoder_hidden_states needs a decoder with cross-attention: config.is_decoder=True and "
                f"config.add_cross_attention=True. Received: is_decoder={config.is_decoder}, "
                f"add_cross_attention={config.add_cross_attention}"
            )
        return assertions

    def default_positions(self, input_ids: Tensor | None, length: Size, past_length: Size) -> tuple[Tensor, list[Any]]:
        """Positions where none are given, (B, S) or (1, S): past, past + 1, …; and assertions as of `check_ids`."""
        assertions = check_length(past_length + length, self.config.max_position_embeddings)
        return past_length + ops.arange(length, dtype="int32")[None], assertions

    def _embed(
        self,
        plan: AttentionPlan,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor,
        training: bool | None,
    ) -> Tensor:
        """Embed the tokens, (N, H): all of them, or only the real ones of a packed batch."""
        positions = ops.cast(position_ids, "int32")
        if plan.packing is None:
            states = self.embeddings(
                input_ids,
                inputs_embeds=inputs_embeds,
                token_type_ids=token_type_ids,
                position_ids=positions,
                training=training,
            )
            return plan.pack(states)
        take = plan.packing.take
        return self.embeddings(
            None if input_ids is None else take(input_ids),
            inputs_embeds=None if inputs_embeds is None else take(inputs_embeds),
            token_type_ids=None if token_type_ids is None else take(token_type_ids),
            position_ids=take(ops.broadcast_to(positions, plan.shape)),
            training=training,
        )
