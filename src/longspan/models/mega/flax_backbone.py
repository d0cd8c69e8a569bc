"""MEGA without a head (Ma et al., 2022, https://arxiv.org/abs/2209.10655) in Flax, and what its classes share.

Axes: B batch, S tokens, D width, T encoder tokens, L layers.

Calls outside of `jax.jit` pad their inputs up to a few lengths (`longspan.nn.flax.buckets`) and cut their outputs
back, so that one compiled program serves many lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from longspan.checkpoints.files import LazyTensor
from longspan.checkpoints.names import ParameterNames
from longspan.configuration import require
from longspan.errors import InputError
from longspan.models.mega.config import MegaConfig
from longspan.models.mega.flax_layers import RAW_PARAMETERS, FlaxMegaLayers, make_plan
from longspan.models.mega.names import NAMES
from longspan.nn.flax.base import FlaxPreTrainedModel
from longspan.nn.flax.buckets import bucket, cut_tokens, is_traced, pad_tokens, real_tokens
from longspan.nn.flax.cache import check_cache, check_cached_mask, empty_cache, tokens_and_room
from longspan.nn.flax.checks import as_array, as_indices, check_ids
from longspan.nn.flax.heads import Pooler
from longspan.nn.flax.layers import Embedding, Part, PooledStack
from longspan.nn.flax.masks import drop_unseen_faults
from longspan.nn.flax.outputs import (
    FlaxBaseModelOutputWithPoolingAndCrossAttentions,
    FlaxCache,
    finish,
    resolve,
)
from longspan.nn.flax.parameters import kernel_init
from longspan.ops.flax.context import check_share, share, shared_axis, total
from longspan.ops.flax.gated_attention import GATED_ATTENTION
from longspan.shapes import check_shape


class FlaxMegaEmbeddings(Part):
    """Word embeddings, with token type embeddings if configured."""

    config: MegaConfig

    def setup(self) -> None:
        """Make the parts."""
        config, init = self.config, kernel_init(self.config)
        self.word_embeddings = Embedding(
            config.vocab_size, config.hidden_size, init, padding_idx=config.pad_token_id, dtype=self.dtype
        )
        if config.add_token_type_embeddings:
            self.token_type_embeddings = Embedding(config.type_vocab_size, config.hidden_size, init, dtype=self.dtype)

    def __call__(self, input_ids: Array | None, inputs_embeds: Any, token_type_ids: Array | None) -> Array:
        """Embed ids (B, S) or embeddings (B, S, D) into (B, S, D)."""
        embeddings: Array = inputs_embeds if input_ids is None else self.word_embeddings(input_ids)
        if not self.config.add_token_type_embeddings:
            return embeddings
        types = jnp.zeros((1, 1), jnp.int32) if token_type_ids is None else token_type_ids
        return embeddings + self.token_type_embeddings(types)


class FlaxMegaModule(PooledStack):
    """The backbone as a `linen.Module`; `FlaxMegaModel` wraps it."""

    config: MegaConfig

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        self.embedding_layer = FlaxMegaEmbeddings(config, dtype=self.dtype)
        self.layers = FlaxMegaLayers(config, self.dtype, self.gradient_checkpointing)
        if self.add_pooling_layer:
            self.pooler = Pooler(config.hidden_size, kernel_init=kernel_init(config), dtype=self.dtype)

    def __call__(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        inputs_embeds: Array | None = None,
        encoder_hidden_states: Array | None = None,
        encoder_attention_mask: Array | None = None,
        *,
        position_ids: Array | None = None,
        implementation: str = "auto",
        init_cache: bool = False,
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        begins_at_first: bool = False,
    ) -> FlaxBaseModelOutputWithPoolingAndCrossAttentions:
        """Run the backbone; the first six arguments as in `FlaxMegaPreTrainedModel.__call__`.

        Args:
            position_ids: Not read, since all positions are relative; what steps a decoder gives them to every family.
            implementation: How to attend.
            init_cache: Make a cache for as many tokens as this input has, instead of using one.
            deterministic: Drop nothing.
            output_attentions: Return attention weights.
            output_hidden_states: Return hidden states.
            begins_at_first: The first token of every row is known to be real: what the program need not find out.
        """
        del position_ids
        past, capacity = (0, None) if init_cache else tokens_and_room(self.variables.get("cache"))
        if inputs_embeds is not None:
            seen = attention_mask if capacity is None else None
            inputs_embeds = drop_unseen_faults(inputs_embeds.astype(self.dtype), seen)
        if encoder_hidden_states is not None:
            encoder_hidden_states = drop_unseen_faults(encoder_hidden_states, encoder_attention_mask).astype(self.dtype)
        hidden_states = self.embedding_layer(input_ids, inputs_embeds, token_type_ids)
        hidden_states = self._check_share(
            hidden_states, attention_mask, needs_weights=output_attentions, trains=not deterministic
        )
        plan = make_plan(
            attention_mask,
            length=hidden_states.shape[1],
            past=past,
            capacity=capacity,
            begins_at_first=begins_at_first,
            encoder_hidden_states=encoder_hidden_states,
            encoder_mask=None if encoder_attention_mask is None else encoder_attention_mask != 0,
            implementation=implementation,
            needs_weights=output_attentions,
            deterministic=deterministic,
        )
        states, attentions, cross_attentions = self.layers(hidden_states, plan, init_cache)
        has_cross = output_attentions and self.config.add_cross_attention
        return FlaxBaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=states[-1],
            pooler_output=self.pooler(states[-1]) if self.add_pooling_layer else None,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            cross_attentions=tuple(cross_attentions) if has_cross else None,
        )

    def _check_share(
        self, hidden_states: Array, attention_mask: Array | None, *, needs_weights: bool, trains: bool
    ) -> Array:
        """The embeddings; where devices share a sequence whose chunks do not begin at its first token, NaN."""
        check_share(hidden_states.shape[1], needs_weights=needs_weights)
        kind = self.config.normalization_type
        if shared_axis() is not None and trains and "batch" in kind:
            raise InputError(
                "in training, a model that shares a sequence normalises tokens by themselves. Received: "
                f"normalization_type={kind!r}"
            )
        if shared_axis() is None or attention_mask is None or not self.config.use_chunking:
            return hidden_states
        begins_late = total(jnp.where(share() == 0, attention_mask[:, 0] == 0, False).astype(jnp.int32)) > 0
        return jnp.where(begins_late[:, None, None], jnp.nan, hidden_states)


class FlaxMegaPreTrainedModel(FlaxPreTrainedModel):
    """What all Flax MEGA classes share."""

    config_class: ClassVar[type[MegaConfig]] = MegaConfig
    base_model_prefix: ClassVar[str] = "mega"
    names: ClassVar[ParameterNames] = NAMES
    raw_parameters: ClassVar[frozenset[str]] = RAW_PARAMETERS
    #: `past_key_values` may be given, and comes back
    keeps_cache: ClassVar[bool] = False
    #: outputs that have one entry a row, and none a token
    row_outputs: ClassVar[tuple[str, ...]] = ("pooler_output",)
    config: MegaConfig

    def _check_use(self) -> None:
        config = self.config
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

    def check_implementation(self, name: str) -> None:
        """Raise `InputError` unless `name` is an attention implementation of MEGA."""
        GATED_ATTENTION.check_name(name)

    def dummy_inputs(self, input_shape: tuple[int, ...]) -> dict[str, Any]:
        """Arguments of the module that reach all of its parameters."""
        choices = [1] * (len(self.input_axes) - 2)
        batch, length = input_shape[0], input_shape[-1]
        inputs: dict[str, Any] = {"input_ids": jnp.zeros((batch, *choices, length), jnp.int32)}
        if self.config.add_cross_attention:
            inputs["encoder_hidden_states"] = jnp.zeros((batch, 1, self.config.hidden_size))
        return inputs

    def init_cache(self, batch_size: int, max_length: int) -> FlaxCache:
        """Make an empty cache for incremental decoding.

        Args:
            batch_size: B.
            max_length: Number of tokens that fit.

        Returns:
            Nested dicts of arrays, to be passed as `past_key_values`; each call returns it filled further.

        Raises:
            InputError: the model is no decoder.

        Example:
            >>> import jax.numpy as jnp
            >>> from longspan import FlaxMegaForCausalLM, MegaConfig
            >>> model = FlaxMegaForCausalLM(MegaConfig(num_hidden_layers=1, is_decoder=True, bidirectional=False))
            >>> cache = model.init_cache(batch_size=1, max_length=8)
            >>> cache = model(jnp.array([[0, 314]]), past_key_values=cache).past_key_values
            >>> model(jnp.array([[6]]), past_key_values=cache).logits.shape
            (1, 1, 30522)
        """
        self._check_decoder()
        return empty_cache(self._cache_shapes(batch_size, max_length))

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        inputs_embeds: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        past_key_values: Mapping[str, Any] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        params: Mapping[str, Any] | None = None,
        dropout_rng: Array | None = None,
        train: bool = False,
        batch_stats: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: Token ids, (B, S), of any length; for multiple choice (B, C, S), and likewise the next two.
                Exactly one of this and `inputs_embeds` is given.
            attention_mask: 1 for real tokens, 0 for padding, (B, S); with a cache (B, T) for all tokens that fit it, or
                for those up to the new ones. States at padding are unspecified.
            token_type_ids: Type of each token, (B, S), default 0; not read without `config.add_token_type_embeddings`.
            inputs_embeds: Embedded tokens, (B, S, H).
            encoder_hidden_states: States that cross-attention reads, (B, S_enc, H); needs a decoder with
                `add_cross_attention`, with a cache too.
            encoder_attention_mask: Their padding mask, (B, S_enc).
            past_key_values: Cache made by `init_cache` or returned by an earlier call; it comes back filled further.
            output_attentions: Return attention weights, L × (B, 1, S, S), or with chunks of C tokens
                L × (B, chunks, C, C), where chunks begin at the first real token of a row and the last is padded; with
                a cache and chunks, of the window that is read.
            output_hidden_states: Return hidden states, (L + 1) × (B, S, H).
            return_dict: Return a `ModelOutput` rather than a tuple.
            params: Parameters; default: the model's own.
            dropout_rng: Random key of dropout; needed if `train`.
            train: Drop activations as configured, and normalise batches by their own statistics.
            batch_stats: Running statistics of batch normalisation; default: the model's own.

        Returns:
            The output that the class names, a pytree. With batch normalisation, and if `train`, a pair of it and the
            running statistics after this batch, in which all of its tokens count, padding too.

        Raises:
            InputError: shapes disagree, an id is out of range, the cache does not fit, the encoder's states are missing
                or not expected, the input is longer than a `"simple"` bias, `params` or `dropout_rng` are missing, or
                `batch_stats` are given to a model that keeps none.
        """
        config, cache = self.config, past_key_values or None
        inputs = {
            "input_ids": None if input_ids is None else as_indices(input_ids, name="input_ids"),
            "attention_mask": None if attention_mask is None else as_array(attention_mask),
            "token_type_ids": None if token_type_ids is None else as_indices(token_type_ids, name="token_type_ids"),
            "inputs_embeds": None if inputs_embeds is None else as_array(inputs_embeds),
        }
        source = {
            "encoder_hidden_states": None if encoder_hidden_states is None else as_array(encoder_hidden_states),
            "encoder_attention_mask": None if encoder_attention_mask is None else as_array(encoder_attention_mask),
        }
        if batch_stats is not None and not self.batch_stats:
            raise InputError(
                "batch_stats needs batch normalisation. Received: batch_stats with "
                f"normalization_type={config.normalization_type!r}"
            )
        shape = self._check_inputs(inputs, cache)
        self._check_source(shape[0], **source)
        if train and dropout_rng is None and self.dropout_rate > 0.0:
            raise InputError(
                "train=True drops activations, which needs a random key: dropout_rng=jax.random.key(0). "
                "Received: dropout_rng=None"
            )
        settings = {
            "implementation": config.attn_implementation,
            "deterministic": not train,
            "output_attentions": resolve(output_attentions, config.output_attentions),
            "output_hidden_states": resolve(output_hidden_states, config.output_hidden_states),
        }
        traced = is_traced(inputs, source, params, dropout_rng, batch_stats)
        tracks = train and bool(self.batch_stats)  # padding would change the statistics
        exact = cache is not None or settings["output_attentions"] or traced or len(shape) > 2 or tracks
        if not exact:
            mask = np.asarray(real_tokens(inputs["attention_mask"], shape))
            inputs["attention_mask"], settings["begins_at_first"] = mask, bool((mask[:, 0] != 0).all())
            inputs = {
                name: None if array is None else pad_tokens(array, bucket(shape[1])) for name, array in inputs.items()
            }
        output, moved = self._run(
            {**inputs, **source}, settings, params=params, dropout_rng=dropout_rng, batch_stats=batch_stats, cache=cache
        )
        if not exact:
            output = cut_tokens(output, shape[1], rows=self.row_outputs)
        output = finish(output, resolve(return_dict, config.return_dict))
        return output if moved is None else (output, moved)

    @property
    def dropout_rate(self) -> float:
        """The largest rate of dropout."""
        config = self.config
        rates = (config.dropout_prob, config.hidden_dropout_prob, config.attention_probs_dropout_prob)
        return max(*rates, config.nffn_activation_dropout_prob, config.classifier_dropout or 0.0)

    def _check_inputs(self, inputs: Mapping[str, Any], cache: Any) -> Any:
        """Check the inputs of a call, and return the shape of the tokens."""
        config, ids, states = self.config, inputs["input_ids"], inputs["inputs_embeds"]
        if (ids is None) == (states is None):
            both = "both" if states is not None else "neither"
            raise InputError(f"exactly one of input_ids and inputs_embeds must be given. Received: {both}")
        axes = ", ".join(self.input_axes)
        shape = tuple(states.shape[:-1] if ids is None else ids.shape)
        if len(shape) != len(self.input_axes):
            name = "inputs_embeds" if ids is None else "input_ids"
            raise InputError(f"{name} must have the axes ({axes}{', width' if ids is None else ''}). Received: {shape}")
        if ids is None:
            check_shape(states, (*shape, config.hidden_size), name="inputs_embeds", axes=f"({axes}, width)")
        else:
            check_ids(ids, config.vocab_size, name="input_ids", limit_name="vocab_size")
        if shape[-1] == 0:
            raise InputError("the input must have at least one token. Received: 0 tokens")
        types, mask = inputs["token_type_ids"], inputs["attention_mask"]
        if types is not None and config.add_token_type_embeddings:  # else they are not read
            check_shape(types, shape, name="token_type_ids", axes=f"({axes})")
            check_ids(types, config.type_vocab_size, name="token_type_ids", limit_name="type_vocab_size")
        room = None
        if cache is not None:
            self._check_decoder()
            if not self.keeps_cache:
                raise InputError(f"{type(self).__name__} reads whole sequences and takes no past_key_values")
            _, room = tokens_and_room(cache) if isinstance(cache, Mapping) else (0, None)
            check_cache(cache, self._cache_shapes(shape[0], room or shape[1]), num_new=shape[1])
            if mask is not None:
                check_cached_mask(mask, cache, batch=shape[0], num_new=shape[1])
        else:
            check_shape(mask, shape, name="attention_mask", axes=f"({axes})")
        if not config.use_chunking:
            self._check_reach(shape[-1] if room is None else room)
        return shape

    def _check_source(self, batch: int, encoder_hidden_states: Any, encoder_attention_mask: Any) -> None:
        config = self.config
        if (encoder_hidden_states is not None) != config.add_cross_attention:
            raise InputError(
                "a model with cross-attention (config.is_decoder=True and config.add_cross_attention=True), and no "
                f"other, needs encoder_hidden_states. Received: add_cross_attention={config.add_cross_attention}, "
                f"encoder_hidden_states={None if encoder_hidden_states is None else encoder_hidden_states.shape}"
            )
        if encoder_hidden_states is None:
            return
        expected = (batch, encoder_hidden_states.shape[1], config.hidden_size)
        check_shape(encoder_hidden_states, expected, name="encoder_hidden_states", axes="(batch, tokens, width)")
        check_shape(encoder_attention_mask, expected[:2], name="encoder_attention_mask", axes="(batch, tokens)")
        self._check_reach(expected[1])

    def _check_reach(self, positions: Any) -> None:
        config = self.config
        is_simple = config.relative_positional_bias == "simple" and isinstance(positions, int)
        if is_simple and positions > config.bias_positions:
            name = "max_positions" if config.chunk_size < 0 else "chunk_size"
            raise InputError(
                f"relative_positional_bias='simple' reaches {name}={config.bias_positions} tokens. Received: "
                f"{positions} tokens. Truncate the input, use chunks, or use relative_positional_bias='rotary', which "
                "has no limit"
            )

    def _tensors_to_save(self, params: Mapping[str, Any]) -> dict[str, LazyTensor]:
        """As the reference's files are: a placeholder beside each rotary bias, without which it is drawn anew there."""
        tensors = super()._tensors_to_save(params)
        alphas = {name: tensor for name, tensor in tensors.items() if name.endswith("rel_pos_bias.alpha")}
        for name, tensor in alphas.items():
            zero = np.zeros(1, jnp.dtype(tensor.dtype))
            tensors[name.removesuffix("alpha") + "_float_tensor"] = LazyTensor(zero.shape, tensor.dtype, zero.copy)
        for name, tensor in tensors.items():
            if name.endswith(".num_batches_tracked"):  # of the type that PyTorch gives it
                tensors[name] = LazyTensor(tensor.shape, "int64", partial(_read_wide, tensor))
        return tensors

    def _check_decoder(self) -> None:
        if not self.config.is_decoder:
            raise InputError("past_key_values needs a decoder (config.is_decoder=True). Received: is_decoder=False")


def _read_wide(tensor: LazyTensor) -> np.ndarray:
    return np.asarray(tensor.read(), np.int64)


class FlaxMegaModel(FlaxMegaPreTrainedModel):
    """MEGA without a head: an encoder, or a decoder if `config.is_decoder`.

    A decoder attends causally and may keep a cache; with `config.add_cross_attention` it also attends to
    `encoder_hidden_states`. With `config.use_chunking`, time and memory are linear in the length. Calls return
    `FlaxBaseModelOutputWithPoolingAndCrossAttentions`. `add_pooling_layer=False` leaves out the pooler, which gives
    `pooler_output`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import FlaxMegaModel, MegaConfig
        >>> model = FlaxMegaModel(MegaConfig(num_hidden_layers=1, use_chunking=True, chunk_size=4))
        >>> output = model(jnp.array([[0, 3141, 6, 127, 2335, 2]]))
        >>> output.last_hidden_state.shape, output.pooler_output.shape
        ((1, 6, 128), (1, 128))
    """

    module_class: ClassVar[type[nn.Module]] = FlaxMegaModule
    keeps_cache: ClassVar[bool] = True
