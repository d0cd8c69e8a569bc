"""MEGA without a head (Ma et al., 2022, https://arxiv.org/abs/2209.10655) in Keras 3, and what its classes share.

Axes: B batch, S tokens, D width, T encoder tokens, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
from keras import ops

from longspan.checkpoints.names import ParameterNames
from longspan.checkpoints.writer import LazyTensor
from longspan.configuration import require
from longspan.errors import InputError
from longspan.models.mega.config import MegaConfig
from longspan.models.mega.keras_layers import LayerCache, MegaBlock, MegaPlan, make_plan
from longspan.models.mega.names import NAMES
from longspan.nn.keras.base import TFPreTrainedModel, register
from longspan.nn.keras.checks import Size, check_input, check_shape, input_shape
from longspan.nn.keras.heads import Pooler
from longspan.nn.keras.inputs import unpack_inputs
from longspan.nn.keras.layers import Block, embedding, look_up
from longspan.nn.keras.masks import as_boolean, drop_unseen_faults
from longspan.nn.keras.outputs import KeyValues, TFBaseModelOutputWithPoolingAndCrossAttentions, resolve
from longspan.nn.keras.resizing import replace_layer
from longspan.nn.keras.runtime import after, is_concrete, is_symbolic, is_tensorflow
from longspan.ops.keras import Tensor
from longspan.ops.keras.gated_attention import GATED_ATTENTION
from longspan.shapes import differ


class MegaEmbeddings(Block):
    """Word embeddings, with token type embeddings if configured."""

    def __init__(self, config: MegaConfig, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        self.padding, self.token_type_embeddings = config.pad_token_id, None
        shared: dict[str, Any] = {"stddev": config.initializer_range, "dtype": self.dtype_policy}
        self.word_embeddings = embedding(
            config.vocab_size, config.hidden_size, padding_index=self.padding, name="word_embeddings", **shared
        )
        if config.add_token_type_embeddings:
            self.token_type_embeddings = embedding(
                config.type_vocab_size, config.hidden_size, name="token_type_embeddings", **shared
            )

    def call(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Embed ids (B, S) or embeddings (B, S, D) into (B, S, D)."""
        if input_ids is None:
            embeddings = ops.cast(inputs_embeds, self.compute_dtype)
        else:
            embeddings = look_up(self.word_embeddings, input_ids, padding_index=self.padding)
        if self.token_type_embeddings is None:
            return embeddings
        types = ops.zeros((1, 1), "int32") if token_type_ids is None else token_type_ids
        return embeddings + self.token_type_embeddings(types)


class TFMegaPreTrainedModel(TFPreTrainedModel):
    """What all MEGA classes share."""

    config_class: ClassVar[type[MegaConfig]] = MegaConfig
    base_model_prefix: ClassVar[str] = "mega"
    names: ClassVar[ParameterNames] = NAMES
    #: a cache has the dtypes of `init_cache`, in part float32
    kept_fields: ClassVar[frozenset[str]] = frozenset({"loss", "past_key_values"})
    config: MegaConfig

    def __init__(self, config: MegaConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        require(
            not (config.is_decoder and config.bidirectional),
            "a decoder needs bidirectional=False: an average over later tokens would show it the future",
            is_decoder=config.is_decoder,
            bidirectional=config.bidirectional,
        )
        require(
            config.is_decoder or not config.add_cross_attention,
            "add_cross_attention needs is_decoder=True",
            add_cross_attention=config.add_cross_attention,
            is_decoder=config.is_decoder,
        )

    @classmethod
    def check_implementation(cls, name: str) -> None:
        """Raise `InputError` unless `name` is an attention implementation of MEGA in Keras."""
        GATED_ATTENTION.check_name(name)

    def _may_pad(self, inputs: Mapping[str, Any], *, training: bool) -> bool:
        return not (training and "batchnorm" in self.config.normalization_type)  # statistics would count padding

    def init_cache(self, batch_size: int, max_length: int) -> tuple[LayerCache, ...]:
        """Make an empty cache of fixed size for incremental decoding.

        Args:
            batch_size: B.
            max_length: Number of tokens that fit.

        Returns:
            For each layer keys, values, the state of the average and the number of tokens read, with the batch as first
            axis of each, to be passed as `past_key_values`; each call returns it filled further.

        Raises:
            InputError: the model is no decoder.

        Example:
            >>> import numpy as np
            >>> from longspan import MegaConfig, TFMegaForCausalLM
            >>> model = TFMegaForCausalLM(MegaConfig(num_hidden_layers=1, is_decoder=True, bidirectional=False))
            >>> cache = model.init_cache(batch_size=1, max_length=8)
            >>> cache = model(np.array([[0, 314]]), past_key_values=cache).past_key_values
            >>> tuple(model(np.array([[6]]), past_key_values=cache).logits.shape)
            (1, 1, 30522)
        """
        self._check_decoder()
        dtypes = (self.compute_dtype, self.compute_dtype, "float32", "int32")
        parts = list(zip(self._cache_shapes(batch_size, max_length), dtypes, strict=True))
        return tuple(tuple(ops.zeros(*part) for part in parts) for _ in range(self.config.num_hidden_layers))

    def _cache_shapes(self, batch: Size, capacity: int) -> list[tuple[Size, ...]]:
        """Shapes of what a layer remembers."""
        config = self.config
        places, averages = capacity + _margin(config), config.ema_projection_size + (config.truncation or 0)
        widths = config.shared_representation_size, config.intermediate_size
        keys_and_values = [(batch, places, width) for width in widths]
        return [*keys_and_values, (batch, config.hidden_size, averages), (batch,)]

    def _check_decoder(self) -> None:
        if not self.config.is_decoder:
            raise InputError("past_key_values needs a decoder (config.is_decoder=True). Received: is_decoder=False")

    def tensors_to_save(self) -> dict[str, LazyTensor]:
        """With a placeholder that the reference stores beside each rotary bias, and draws the bias anew without."""
        tensors = super().tensors_to_save()
        alphas = {name: tensor for name, tensor in tensors.items() if name.endswith("rel_pos_bias.alpha")}
        for name, tensor in alphas.items():
            zero = ops.convert_to_numpy(ops.zeros(1, tensor.dtype))
            tensors[name.removesuffix("alpha") + "_float_tensor"] = LazyTensor(zero.shape, tensor.dtype, zero.copy)
        return tensors


def _margin(config: MegaConfig) -> int:
    """Places before the first token of a cache, so that a chunk's length lies before every token."""
    return config.chunk_size - 1 if config.use_chunking else 0


@register
class TFMegaModel(TFMegaPreTrainedModel):
    """MEGA without a head: an encoder, or a decoder if `config.is_decoder`.

    A decoder attends causally and may keep a cache; with `config.add_cross_attention` it also attends to
    `encoder_hidden_states`. With `config.use_chunking`, time and memory are linear in the length.

    Args:
        config: Settings; the weights are random.
        add_pooling_layer: Have the pooler, which gives `pooler_output`.
        **kwargs: `name`, `dtype`, `trainable`.

    Raises:
        ConfigError: a decoder is bidirectional, or a model with cross-attention is no decoder.

    Example:
        >>> import numpy as np
        >>> from longspan import MegaConfig, TFMegaModel
        >>> model = TFMegaModel(MegaConfig(num_hidden_layers=1, use_chunking=True, chunk_size=4))
        >>> output = model(np.array([[0, 3141, 6, 127, 2335, 2]]))
        >>> tuple(output.last_hidden_state.shape), tuple(output.pooler_output.shape)
        ((1, 6, 128), (1, 128))
    """

    def __init__(self, config: MegaConfig, add_pooling_layer: bool = True, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        policy = self.dtype_policy
        self.embedding_layer = MegaEmbeddings(config, dtype=policy, name="embedding_layer")
        # `layers` is a property of every Keras model
        self.layers_ = [
            MegaBlock(config, dtype=policy, name=f"layers_{index}") for index in range(config.num_hidden_layers)
        ]
        self.pooler = None
        if add_pooling_layer:
            size, stddev = config.hidden_size, config.initializer_range
            self.pooler = Pooler(hidden_size=size, stddev=stddev, dtype=policy, name="pooler")
        self.build()

    def get_config(self) -> dict[str, Any]:
        """Everything that `from_config` needs to make the same model, without weights."""
        return {**super().get_config(), "add_pooling_layer": self.pooler is not None}

    def get_input_embeddings(self) -> keras.layers.Embedding:
        """The word embeddings."""
        return self.embedding_layer.word_embeddings

    def set_input_embeddings(self, value: keras.layers.Embedding) -> None:
        """Replace the word embeddings by others that are built."""
        replace_layer(self.embedding_layer, "word_embeddings", value)

    @unpack_inputs
    def call(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: KeyValues | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = False,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: Token ids, (B, S), of any length; or all inputs, as list, tuple or dict. Exactly one of ids and
                `inputs_embeds` is given.
            attention_mask: 1 for real tokens, 0 for padding, (B, S); with a cache (B, T) for all tokens that fit it, or
                for those up to the new ones. States at padding are unspecified.
            token_type_ids: Type of each token, (B, S), default 0; not read without `config.add_token_type_embeddings`.
            inputs_embeds: Embedded tokens, (B, S, D).
            encoder_hidden_states: States that cross-attention reads, (B, T, D); needs a decoder with
                `add_cross_attention`, with a cache too.
            encoder_attention_mask: Their padding mask, (B, T).
            past_key_values: Cache made by `init_cache` or returned by an earlier call; it comes back filled further.
            output_attentions: Return attention weights, L × (B, 1, S, S), or with chunks of C tokens
                L × (B, chunks, C, C), where chunks begin at the first real token of a row and the last is padded; with
                a cache and chunks, of the windows that are read.
            output_hidden_states: Return hidden states, (L + 1) × (B, S, D).
            return_dict: Return a `ModelOutput` rather than a tuple. Default as configured; a TensorFlow graph always
                returns a `ModelOutput` unless False is passed.
            training: Apply dropout.

        Returns:
            `TFBaseModelOutputWithPoolingAndCrossAttentions`; its `cross_attentions` are L × (B, S, T).

        Raises:
            InputError: shapes disagree, an id is out of range, the cache does not fit, the encoder's states are missing
                or not expected, or the input is longer than a `"simple"` bias.
        """
        config = self.config
        shape = input_shape(input_ids, inputs_embeds)
        if inputs_embeds is not None:
            inputs_embeds = drop_unseen_faults(inputs_embeds, attention_mask if past_key_values is None else None)
        if encoder_hidden_states is not None:
            encoder_hidden_states = drop_unseen_faults(encoder_hidden_states, encoder_attention_mask)
        assertions = self._check_inputs(shape, input_ids, token_type_ids, encoder_hidden_states)
        capacity = self._check_cache(past_key_values, shape, attention_mask)
        plan = make_plan(
            attention_mask,
            shape=shape,
            past=0 if past_key_values is None else past_key_values[0][3][0],
            capacity=capacity,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            implementation=config.attn_implementation,
            needs_weights=resolve(output_attentions, config.output_attentions),
        )
        with after(assertions):
            states = self.embedding_layer(input_ids, inputs_embeds=inputs_embeds, token_type_ids=token_type_ids)
        output = self._run_layers(states, plan, past_key_values, training)
        if not resolve(output_hidden_states, config.output_hidden_states):
            output["hidden_states"] = None
        return self.finish(output, return_dict)

    def _run_layers(
        self, hidden_states: Tensor, plan: MegaPlan, cache: KeyValues | None, training: bool | None
    ) -> TFBaseModelOutputWithPoolingAndCrossAttentions:
        """The output, with all hidden states."""
        states, attentions, cross_attentions, caches = [hidden_states], [], [], []
        for index, layer in enumerate(self.layers_):
            past = None if cache is None else cache[index]
            hidden_states, weights, cross_weights, own = layer(hidden_states, plan=plan, cache=past, training=training)
            states.append(hidden_states)
            attentions.append(weights)
            cross_attentions.append(cross_weights)
            if past is not None:  # layers may compute in another dtype
                caches.append(tuple(ops.cast(new, old.dtype) for new, old in zip(own, past, strict=True)))
        has_cross = plan.needs_weights and self.config.add_cross_attention
        return TFBaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=hidden_states,
            pooler_output=None if self.pooler is None else self.pooler(hidden_states),
            past_key_values=None if cache is None else tuple(caches),
            hidden_states=tuple(states),
            attentions=tuple(attentions) if plan.needs_weights else None,
            cross_attentions=tuple(cross_attentions) if has_cross else None,
        )

    def _check_inputs(
        self,
        shape: tuple[Size, Size],
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        encoder_hidden_states: Tensor | None,
    ) -> list[Any]:
        """Check the inputs besides the cache; assertions as of `check_ids`."""
        config, sizes = self.config, {"batch": shape[0], "tokens": shape[1]}
        if isinstance(shape[1], int) and shape[1] == 0:
            raise InputError("the input must have at least one token. Received: 0 tokens")
        assertions = check_input(input_ids, "input_ids", config, **sizes)
        if config.add_token_type_embeddings:  # else they are not read
            assertions += check_input(token_type_ids, "token_type_ids", config, **sizes)
        if (encoder_hidden_states is not None) != config.add_cross_attention:
            raise InputError(
                "a model with cross-attention (config.is_decoder=True and config.add_cross_attention=True), and no "
                f"other, needs encoder_hidden_states. Received: add_cross_attention={config.add_cross_attention}, "
                f"encoder_hidden_states={None if encoder_hidden_states is None else tuple(encoder_hidden_states.shape)}"
            )
        if encoder_hidden_states is not None:
            source = encoder_hidden_states.shape[1]
            expected = (shape[0], source, config.hidden_size)
            check_shape(encoder_hidden_states, expected, name="encoder_hidden_states", axes="(batch, tokens, width)")
            self._check_reach(source)
        return assertions

    def _check_cache(
        self, cache: KeyValues | None, shape: tuple[Size, Size], attention_mask: Tensor | None
    ) -> int | None:
        """Tokens that fit the cache, or None without one."""
        config = self.config
        if cache is None:
            if not config.use_chunking:
                self._check_reach(shape[1])
            return None
        self._check_decoder()
        capacity = (cache[0][0].shape[1] if cache and len(cache[0]) == 4 else 0) - _margin(config)
        wanted = [
            tuple(size if isinstance(size, int) else None for size in one)
            for one in self._cache_shapes(shape[0], capacity)
        ]
        fits = all(len(layer) == 4 and not any(map(differ, layer, wanted)) for layer in cache)
        if len(cache) != config.num_hidden_layers or not fits:
            raise InputError(
                f"past_key_values must be what init_cache made: {config.num_hidden_layers} layers of the shapes "
                f"{wanted}. Received: {[[tuple(part.shape) for part in layer] for layer in cache]}"
            )
        read = cache[0][3]
        total = shape[1] + int(read[0]) if is_concrete(read) and read.shape[0] else shape[1]
        for longest in (total, None if attention_mask is None else attention_mask.shape[1]):
            if isinstance(longest, int) and longest > capacity:
                raise InputError(f"the cache has room for {capacity} tokens. Received: {longest} tokens")
        if config.use_chunking:
            return capacity
        if attention_mask is None:
            self._check_reach(total)
        elif is_concrete(attention_mask):  # padding before a row is out of reach, and is not read
            first = ops.argmax(ops.cast(as_boolean(attention_mask), "int32"), axis=1)
            self._check_reach(total - int(ops.min(first)))
        return capacity

    def _check_reach(self, positions: Size) -> None:
        """Raise `InputError` for more tokens than a simple bias reaches; what lies behind it is not read."""
        config = self.config
        if config.relative_positional_bias != "simple" or (is_symbolic() and not is_tensorflow()):
            return  # without TensorFlow, Keras tries a made-up length
        if isinstance(positions, int) and positions > config.bias_positions:
            name = "max_positions" if config.chunk_size < 0 else "chunk_size"
            raise InputError(
                f"relative_positional_bias='simple' reaches {name}={config.bias_positions} tokens. Received: "
                f"{positions} tokens. Truncate the input, use chunks, or use relative_positional_bias='rotary', which "
                "has no limit"
            )
