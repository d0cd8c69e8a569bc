"""LongT5 in Keras 3 (Guo et al., 2022, https://arxiv.org/abs/2112.07916): the backbones, then the generating class.

Axes: B batch, S source tokens, T target tokens, H width, A heads, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
from keras import ops

from longspan.checkpoints.names import ParameterNames
from longspan.errors import ConfigError, InputError
from longspan.generation.keras_mixin import TFGenerationMixin
from longspan.models.longt5.config import LongT5Config
from longspan.models.longt5.keras_decoder import LongT5Decoder
from longspan.models.longt5.keras_encoder import LongT5Encoder
from longspan.models.longt5.names import NAMES
from longspan.nn.keras.base import TFPreTrainedModel, register
from longspan.nn.keras.checks import check_input, check_shape, input_shape
from longspan.nn.keras.inputs import unpack_inputs
from longspan.nn.keras.layers import embedding, linear, score_rows
from longspan.nn.keras.losses import IGNORE_INDEX, cross_entropy
from longspan.nn.keras.masks import drop_unseen_faults
from longspan.nn.keras.outputs import (
    KeyValues,
    TFBaseModelOutput,
    TFModelOutput,
    TFSeq2SeqLMOutput,
    TFSeq2SeqModelOutput,
    resolve,
)
from longspan.nn.keras.resizing import replace_layer, resize_linear
from longspan.nn.keras.runtime import after
from longspan.ops.keras import Tensor
from longspan.ops.keras.sliding_window import DISPATCHER

__all__ = ["TFLongT5EncoderModel", "TFLongT5ForConditionalGeneration", "TFLongT5Model", "TFLongT5PreTrainedModel"]

EncoderOutputs = TFBaseModelOutput | tuple[Any, ...]
#: of encoder outputs that come as a tuple
_ENCODED = ("last_hidden_state", "hidden_states", "attentions")


class TFLongT5PreTrainedModel(TFPreTrainedModel):
    """What all LongT5 classes share.

    Args:
        config: Settings; the weights are random.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    config_class: ClassVar[type[LongT5Config]] = LongT5Config
    names: ClassVar[ParameterNames] = NAMES
    config: LongT5Config

    def __init__(self, config: LongT5Config, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        policy, factor = self.dtype_policy, config.initializer_factor
        self.shared = embedding(config.vocab_size, config.d_model, stddev=factor, dtype=policy, name="shared")
        self.encoder = LongT5Encoder(config, dtype=policy, name="encoder")
        self.add_parts()
        self.build()

    def add_parts(self) -> None:
        """Make what stands behind the encoder; here nothing."""

    @classmethod
    def check_implementation(cls, name: str) -> None:
        """Raise `InputError` unless `name` is an implementation of sliding-window attention."""
        DISPATCHER.check_name(name)

    def get_input_embeddings(self) -> keras.layers.Embedding:
        """The embeddings that encoder and decoder share."""
        return self.shared

    def set_input_embeddings(self, value: keras.layers.Embedding) -> None:
        """Replace the embeddings everywhere by others that are built."""
        replace_layer(self, "shared", value)

    def get_encoder(self) -> LongT5Encoder:
        """The encoder."""
        return self.encoder

    def encode(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        training: bool | None = None,
    ) -> TFBaseModelOutput:
        """Run the encoder; arguments and result as in `TFLongT5EncoderModel.call`."""
        config = self.config
        batch, tokens = input_shape(input_ids, inputs_embeds)
        assertions = check_input(input_ids, "input_ids", config, batch=batch, tokens=tokens)
        check_shape(attention_mask, (batch, tokens), name="attention_mask", axes="(batch, tokens)")
        with after(assertions):
            embeds = drop_unseen_faults(inputs_embeds, attention_mask) if input_ids is None else self.shared(input_ids)
        output: TFBaseModelOutput = self.encoder(
            embeds,
            attention_mask=attention_mask,
            head_mask=head_mask,
            output_attentions=resolve(output_attentions, config.output_attentions),
            output_hidden_states=resolve(output_hidden_states, config.output_hidden_states),
            training=training,
        )
        return output


@register
class TFLongT5EncoderModel(TFLongT5PreTrainedModel):
    """The encoder of LongT5, whose attention is local or transient-global.

    Positions are relative: inputs may be padded on either side. Nothing is padded to the window.

    Args:
        config: Settings; the weights are random.
        **kwargs: `name`, `dtype`, `trainable`.

    Example:
        >>> import numpy as np
        >>> from longspan import LongT5Config, TFLongT5EncoderModel
        >>> config = LongT5Config(d_model=32, d_kv=8, num_heads=2, d_ff=64, num_layers=1)
        >>> tuple(TFLongT5EncoderModel(config)(np.array([[100, 19, 3, 1]])).last_hidden_state.shape)
        (1, 4, 32)
    """

    @unpack_inputs
    def call(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = False,
    ) -> Any:
        """Run the encoder.

        Args:
            input_ids: Token ids, (B, S); or all inputs, as list, tuple or dict. Exactly one of ids and `inputs_embeds`
                is given.
            attention_mask: 1 for real tokens, 0 for padding on either side, (B, S). States at padding are unspecified.
            head_mask: 1 keeps a head, 0 removes it, (A,) or (L, A).
            inputs_embeds: Embedded tokens, (B, S, H).
            output_attentions: Return attention weights, in blocks of R + 1 tokens, R = `local_radius`:
                L × (B, blocks, A, R + 1, 3 (R + 1) + summaries).
            output_hidden_states: Return hidden states, (L + 1) × (B, S, H); the last one is normalised.
            return_dict: Return a `ModelOutput` rather than a tuple. Default as configured; a TensorFlow graph always
                returns a `ModelOutput` unless False is passed.
            training: Apply dropout.

        Returns:
            `TFBaseModelOutput`.

        Raises:
            InputError: shapes disagree, or an id is out of range.
        """
        output = self.encode(
            input_ids, attention_mask, head_mask, inputs_embeds, output_attentions, output_hidden_states, training
        )
        return self.finish(output, return_dict)


class TFLongT5EncoderDecoder(TFLongT5PreTrainedModel):
    """A LongT5 with both stacks."""

    source_names: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "head_mask", "inputs_embeds")
    target_names: ClassVar[tuple[str, ...]] = (
        "input_ids", "attention_mask", "inputs_embeds", "head_mask", "cross_attn_head_mask", "past_key_values"
    )  # fmt: skip

    def add_parts(self) -> None:
        """Make the decoder."""
        self.decoder = LongT5Decoder(self.config, dtype=self.dtype_policy, name="decoder")

    def get_decoder(self) -> LongT5Decoder:
        """The decoder."""
        return self.decoder

    def run_stacks(
        self,
        source: tuple[Any, ...],
        encoder_outputs: EncoderOutputs | None,
        target: tuple[Any, ...],
        flags: tuple[bool | None, bool | None, bool | None],
        training: bool | None,
    ) -> TFSeq2SeqModelOutput:
        """Run the encoder, unless its outputs are given, and then the decoder.

        Args:
            source: Inputs of the encoder by place, as `source_names` lists them.
            encoder_outputs: Its outputs.
            target: Inputs of the decoder by place, as `target_names` lists them.
            flags: Return the cache, attention weights, hidden states.
            training: Apply dropout.
        """
        inputs = dict(zip(self.source_names, source, strict=True))
        wanted = {"output_attentions": flags[1], "output_hidden_states": flags[2]}
        if encoder_outputs is None:
            encoded = self.encode(**inputs, **wanted, training=training)
        elif isinstance(encoder_outputs, tuple | list):
            encoded = TFBaseModelOutput(**dict(zip(_ENCODED, encoder_outputs, strict=False)))
        else:
            encoded = encoder_outputs
        assert encoded.last_hidden_state is not None
        mask = inputs["attention_mask"]
        decoded = self.decode(
            dict(zip(self.target_names, target, strict=True)),
            drop_unseen_faults(encoded.last_hidden_state, mask),
            encoder_attention_mask=mask,
            output_attentions=resolve(flags[1], self.config.output_attentions),
            output_hidden_states=resolve(flags[2], self.config.output_hidden_states),
            training=training,
        )
        return TFSeq2SeqModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            past_key_values=decoded.past_key_values if resolve(flags[0], self.config.use_cache) else None,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )

    def decode(self, inputs: dict[str, Any], encoder_hidden_states: Tensor | None, **arguments: Any) -> Any:
        """Run the decoder.

        Args:
            inputs: Its inputs by name; exactly one of `input_ids` (B, T) and `inputs_embeds` (B, T, H).
            encoder_hidden_states: (B, S, H), or None if a cache holds their keys and values.
            **arguments: Further arguments of `LongT5Decoder.call`.
        """
        ids, embeds, past = inputs.pop("input_ids"), inputs.pop("inputs_embeds", None), inputs.get("past_key_values")
        advice = " (or labels, from which the model makes decoder_input_ids)"
        batch, target = input_shape(ids, embeds, prefix="decoder_", advice=advice)
        assertions = check_input(ids, "decoder_input_ids", self.config, batch=batch, target=target)
        if encoder_hidden_states is not None and past is None:
            of_rows = "(batch,) of the encoder's states, then tokens,"
            shape = (ops.shape(encoder_hidden_states)[0], *(None,) * (1 if embeds is None else 2))
            check_shape(embeds if ids is None else ids, shape, name="the decoder's input", axes=of_rows)
        layers = self.decoder.num_layers
        if past is not None and (len(past) != layers or any(len(tensors) != 4 for tensors in past)):
            raise InputError(
                f"past_key_values must hold four tensors for each of num_decoder_layers={layers} layers. "
                f"Received: {[len(tensors) for tensors in past]}"
            )
        with after(assertions):
            embeds = drop_unseen_faults(embeds, inputs.get("attention_mask")) if ids is None else self.shared(ids)
        inputs = {"attention_mask": None, **inputs}
        return self.decoder(embeds, encoder_hidden_states=encoder_hidden_states, **inputs, **arguments)


@register
class TFLongT5Model(TFLongT5EncoderDecoder):
    """LongT5's encoder and decoder without a head.

    Args:
        config: Settings; the weights are random.
        **kwargs: `name`, `dtype`, `trainable`.

    Example:
        >>> import numpy as np
        >>> from longspan import LongT5Config, TFLongT5Model
        >>> config = LongT5Config(d_model=32, d_kv=8, num_heads=2, d_ff=64, num_layers=1)
        >>> output = TFLongT5Model(config)(np.array([[100, 19, 3, 1]]), decoder_input_ids=np.array([[0, 100]]))
        >>> tuple(output.last_hidden_state.shape), tuple(output.encoder_last_hidden_state.shape)
        ((1, 2, 32), (1, 4, 32))
    """

    @unpack_inputs
    def call(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        encoder_outputs: EncoderOutputs | None = None,
        past_key_values: KeyValues | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = False,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: Source ids, (B, S); or all inputs, as list, tuple or dict. One of this, `inputs_embeds` and
                `encoder_outputs` is given.
            attention_mask: 1 for real source tokens, 0 for padding on either side, (B, S).
            decoder_input_ids: Target ids, (B, T), the first being the start token; with a cache, only the new ones.
            decoder_attention_mask: Padding mask of the target, (B, T); with a cache, (B, past + T). Default: all real.
            head_mask: 1 keeps a head of the encoder, 0 removes it, (A,) or (L, A).
            decoder_head_mask: The same for the decoder's self-attention.
            cross_attn_head_mask: The same for its cross-attention.
            encoder_outputs: Output of the encoder, which is then not run.
            past_key_values: Keys and values of earlier target tokens and of the source, L tuples of 4 tensors
                (B, A, T, D) and (B, A, S, D).
            inputs_embeds: Embedded source, (B, S, H).
            decoder_inputs_embeds: Embedded target, (B, T, H).
            use_cache: Return keys and values; default as configured.
            output_attentions: Return attention weights of the encoder (blocked, see `TFLongT5EncoderModel.call`), of
                the decoder, L × (B, A, T, T), and of its cross-attention, L × (B, A, T, S).
            output_hidden_states: Return hidden states of both.
            return_dict: Return a `ModelOutput` rather than a tuple. Default as configured; a TensorFlow graph always
                returns a `ModelOutput` unless False is passed.
            training: Apply dropout.

        Returns:
            `TFSeq2SeqModelOutput`.

        Raises:
            InputError: shapes disagree, an id is out of range, or the decoder has no input.
        """
        source = (input_ids, attention_mask, head_mask, inputs_embeds)
        target = (decoder_input_ids, decoder_attention_mask, decoder_inputs_embeds, decoder_head_mask)
        rest = (cross_attn_head_mask, past_key_values)
        flags = (use_cache, output_attentions, output_hidden_states)
        return self.finish(self.run_stacks(source, encoder_outputs, (*target, *rest), flags, training), return_dict)


@register
class TFLongT5ForConditionalGeneration(TFGenerationMixin, TFLongT5EncoderDecoder):
    """LongT5 with a projection of the decoder's states onto the vocabulary.

    `labels` are target ids without the start token, -100 is ignored, (B, T). Without decoder inputs, the labels shifted
    to the right take their place. A call returns `TFSeq2SeqLMOutput`.

    Args:
        config: Settings; the weights are random.
        **kwargs: `name`, `dtype`, `trainable`.

    Example:
        >>> import numpy as np
        >>> from longspan import LongT5Config, TFLongT5ForConditionalGeneration
        >>> config = LongT5Config(d_model=32, d_kv=8, num_heads=2, d_ff=64, num_layers=1)
        >>> model = TFLongT5ForConditionalGeneration(config)
        >>> output = model(np.array([[100, 19, 3, 1]]), labels=np.array([[7, 8, 1]]))
        >>> tuple(output.loss.shape), tuple(output.logits.shape)
        ((1,), (1, 3, 32128))
    """

    targets: ClassVar[Mapping[str, str]] = {"labels": "logits"}

    def add_parts(self) -> None:
        """Make the decoder and the projection onto the vocabulary."""
        super().add_parts()
        if not self.config.tie_word_embeddings:
            size, stddev = self.config.vocab_size, self.config.initializer_factor
            self.lm_head = linear(size, stddev=stddev, dtype=self.dtype_policy, name="lm_head", use_bias=False)

    def resize_output_embeddings(self, size: int, *, mean_resizing: bool) -> None:
        """Give the projection onto the vocabulary, if it is not tied, `size` outputs."""
        if not self.config.tie_word_embeddings:
            replace_layer(self, "lm_head", resize_linear(self.lm_head, size, mean_resizing=mean_resizing))

    def score(self, hidden_states: Tensor) -> Tensor:
        """Scores of the vocabulary, (B, T, H) -> (B, T, V)."""
        if not self.config.tie_word_embeddings:
            return self.lm_head(hidden_states)
        # the embeddings are large, as T5's first layers expect them
        batch, length, width = ops.shape(hidden_states)
        states = ops.reshape(hidden_states, (batch * length, width)) * self.config.d_model**-0.5
        return ops.reshape(score_rows(states, self.shared), (batch, length, -1))

    def task_loss(self, output: TFModelOutput, labels: Mapping[str, Tensor], weights: Tensor | None = None) -> Tensor:
        """Mean cross-entropy over the labels that are not -100, (1,)."""
        return cross_entropy(output["logits"], labels["labels"], weights=weights)

    def prepare_decoder_input_ids_from_labels(self, labels: Any) -> Tensor:
        """Shift labels (B, T) to the right, behind the start token; -100 becomes padding.

        Raises:
            ConfigError: the configuration has neither a start token nor a padding token.
        """
        padding = self.config.pad_token_id
        start = padding if self.config.decoder_start_token_id is None else self.config.decoder_start_token_id
        if start is None or padding is None:
            raise ConfigError(
                "shifting labels needs pad_token_id (and decoder_start_token_id, if it differs). "
                f"Received: pad_token_id={padding}, decoder_start_token_id={self.config.decoder_start_token_id}"
            )
        labels = ops.cast(labels, "int32")
        shifted = ops.concatenate([ops.full_like(labels[:, :1], start), labels[:, :-1]], axis=1)
        return ops.where(shifted == IGNORE_INDEX, padding, shifted)

    def begin_generation(self, inputs: Mapping[str, Tensor], room: int) -> tuple[Tensor, Any, Any]:
        """Read the source and the prompts; see `TFGenerationMixin.begin_generation`."""
        mask = inputs["attention_mask"]
        encoded = self.encode(inputs["input_ids"], mask)
        output = self.decode(
            {"input_ids": inputs["decoder_input_ids"]}, encoded.last_hidden_state, encoder_attention_mask=mask
        )
        behind = ((0, 0), (0, 0), (0, room - inputs["decoder_input_ids"].shape[1]), (0, 0))
        cache = tuple(tuple(ops.pad(part, behind) for part in layer[:2]) for layer in output.past_key_values)
        source = tuple(layer[2:] for layer in output.past_key_values)
        return self.score(output.last_hidden_state[:, -1:])[:, 0], cache, (source, mask)

    def continue_generation(self, tokens: Tensor, cache: Any, shared: Any, write_at: Tensor) -> tuple[Tensor, Any]:
        """Make one step; see `TFGenerationMixin.continue_generation`."""
        source, mask = shared
        past = tuple((*own, *read) for own, read in zip(cache, source, strict=True))
        output = self.decode(
            {"input_ids": tokens, "past_key_values": past}, None, encoder_attention_mask=mask, write_at=write_at
        )
        cache = tuple(layer[:2] for layer in output.past_key_values)
        return self.score(output.last_hidden_state)[:, 0], cache

    @unpack_inputs
    def call(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None, decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None, encoder_outputs: EncoderOutputs | None = None,
        past_key_values: KeyValues | None = None, inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None,
        return_dict: bool | None = None, training: bool | None = False,
    ) -> Any:  # fmt: skip
        """Run the model; inputs as in `TFLongT5Model.call`, `labels` as the class says. With labels, no cache."""
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        source = (input_ids, attention_mask, head_mask, inputs_embeds)
        target = (decoder_input_ids, decoder_attention_mask, decoder_inputs_embeds, decoder_head_mask)
        rest = (cross_attn_head_mask, past_key_values)
        flags = (resolve(use_cache, self.config.use_cache) and labels is None, output_attentions, output_hidden_states)
        decoded = self.run_stacks(source, encoder_outputs, (*target, *rest), flags, training)
        carried = {name: value for name, value in decoded.items() if name != "last_hidden_state"}
        output = TFSeq2SeqLMOutput(logits=self.score(decoded.last_hidden_state), **carried)
        return self.finish(self.with_loss(output, labels=labels), return_dict)
