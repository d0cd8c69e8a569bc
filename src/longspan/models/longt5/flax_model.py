"""LongT5 in Flax (Guo et al., 2022, https://arxiv.org/abs/2112.07916): what its classes share, then each class.

Axes: B batch, S source tokens, T target tokens, H width, A heads, L layers, V vocabulary.

Each class is a `linen.Module` and its wrapper. Models take no labels: `prepare_decoder_input_ids_from_labels` makes the
target's ids of them, and `longspan.nn.flax.losses.cross_entropy` the loss of the logits.

Calls outside of `jax.jit` pad their inputs up to a few lengths (`longspan.nn.flax.buckets`) and cut their outputs
back, so that one compiled program serves many lengths. Inside of `jax.jit`, and when attention weights are asked for,
lengths are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import normal

from longspan.checkpoints.names import ParameterNames
from longspan.errors import ConfigError, InputError
from longspan.generation.flax_loop import SourceStepper
from longspan.generation.flax_mixin import FlaxGenerationMixin
from longspan.models.longt5.config import LongT5Config
from longspan.models.longt5.flax_decoder import FlaxLongT5Decoder
from longspan.models.longt5.flax_encoder import FlaxLongT5Encoder
from longspan.models.longt5.flax_layers import linear
from longspan.models.longt5.names import NAMES
from longspan.nn.flax.base import FlaxPreTrainedModel
from longspan.nn.flax.buckets import bucket, cut_tokens, is_traced, pad_tokens, real_tokens
from longspan.nn.flax.cache import check_cache, check_cached_mask, empty_cache, tokens_and_room
from longspan.nn.flax.checks import as_array, as_indices, check_dropout_key, check_ids, values_visible
from longspan.nn.flax.layers import Embedding, Stack
from longspan.nn.flax.losses import IGNORE_INDEX
from longspan.nn.flax.masks import drop_unseen_faults
from longspan.nn.flax.outputs import (
    FlaxBaseModelOutput,
    FlaxCache,
    FlaxCausalLMOutputWithCrossAttentions,
    FlaxSeq2SeqLMOutput,
    FlaxSeq2SeqModelOutput,
    finish,
    resolve,
)
from longspan.ops.flax.sliding_window import DISPATCHER
from longspan.shapes import check_shape

__all__ = [
    "FlaxLongT5EncoderModel",
    "FlaxLongT5ForConditionalGeneration",
    "FlaxLongT5Model",
    "FlaxLongT5PreTrainedModel",
]


class FlaxLongT5PreTrainedModel(FlaxPreTrainedModel):
    """What all Flax LongT5 classes share."""

    config_class: ClassVar[type[LongT5Config]] = LongT5Config
    names: ClassVar[ParameterNames] = NAMES
    #: the class has a decoder
    has_decoder: ClassVar[bool] = True
    config: LongT5Config

    def __init__(
        self,
        config: LongT5Config,
        input_shape: tuple[int, ...] = (1, 1),
        seed: int = 0,
        dtype: Any = jnp.float32,
        _do_init: bool = True,
        **kwargs: Any,
    ) -> None:
        """Make the module, and draw its parameters.

        Args:
            config: Settings of the model; the weights are random.
            input_shape: (batch, tokens) of the input that shapes the parameters.
            seed: Seed of the random weights.
            dtype: Dtype of the computation: float32, float16 or bfloat16. The parameters stay float32; see `to_bf16`.
            _do_init: Draw weights and keep them in `params`. False keeps none: every call needs `params`.
            **kwargs: `gradient_checkpointing=True` recomputes the layers' activations in the backward pass.
        """
        super().__init__(config, input_shape, seed, dtype, _do_init, **kwargs)

    def check_implementation(self, name: str) -> None:
        """Raise `InputError` unless `name` is an implementation of sliding-window attention."""
        DISPATCHER.check_name(name)

    def dummy_inputs(self, input_shape: tuple[int, ...]) -> dict[str, Any]:
        """Arguments of the module that reach all of its parameters."""
        # shorter than a block, an input has no summaries, and so not their biases
        batch, length = input_shape[0], max(input_shape[-1], self.config.global_block_size)
        ids = jnp.zeros((batch, length), jnp.int32)
        return {"input_ids": ids, "decoder_input_ids": ids} if self.has_decoder else {"input_ids": ids}

    # -- calling ------------------------------------------------------------------------------------------------------

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
        params: Mapping[str, Any] | None = None,
        dropout_rng: Array | None = None,
    ) -> Any:
        """Run encoder and decoder.

        Args:
            input_ids: Source ids, (B, S).
            attention_mask: 1 for real source tokens, 0 for padding on either side, (B, S). States at padding are
                unspecified.
            decoder_input_ids: Target ids, (B, T), the first being the start token.
            decoder_attention_mask: Padding mask of the target, (B, T). Default: all real.
            output_attentions: Return attention weights of the encoder (blocked, see `encode`), of the decoder,
                L × (B, A, T, T), and of its cross-attention, L × (B, A, T, S).
            output_hidden_states: Return hidden states of both.
            return_dict: Return a `ModelOutput` rather than a tuple.
            train: Drop activations as configured.
            params: Parameters; default: the model's own.
            dropout_rng: Random key of dropout; needed if `train`.

        Returns:
            The output that the class names, a pytree.

        Raises:
            InputError: shapes disagree, an id is out of range, or `decoder_input_ids`, `params` or `dropout_rng` are
                missing.
        """
        if decoder_input_ids is None:
            raise InputError(
                "decoder_input_ids must be given; prepare_decoder_input_ids_from_labels makes them of labels. "
                "Received: decoder_input_ids=None"
            )
        ids, mask = self._check_tokens(input_ids, attention_mask)
        target, target_mask = self._check_tokens(decoder_input_ids, decoder_attention_mask, prefix="decoder_")
        check_shape(target[:, 0], ids.shape[:1], name="decoder_input_ids", axes="(batch,) of input_ids, then tokens,")
        settings = self._settings(train, dropout_rng, output_attentions, output_hidden_states)
        exact = settings["output_attentions"] or is_traced(ids, mask, target, target_mask, params, dropout_rng)
        inputs = {
            **self._in_bucket(ids, mask, exact=exact),
            **{f"decoder_{name}": value for name, value in self._in_bucket(target, target_mask, exact=exact).items()},
        }
        settings["implementation"] = self.config.attn_implementation
        output, _ = self._run(inputs, settings, params=params, dropout_rng=dropout_rng)
        if not exact:
            source = [name for name in output if name.startswith("encoder")]
            output = cut_tokens(output, target.shape[1], rows=source)
            output = cut_tokens(output, ids.shape[1], rows=set(output) - set(source))
        return finish(output, resolve(return_dict, self.config.return_dict))

    def encode(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
        params: Mapping[str, Any] | None = None,
        dropout_rng: Array | None = None,
    ) -> Any:
        """Run the encoder.

        Args:
            input_ids: Source ids, (B, S).
            attention_mask: 1 for real tokens, 0 for padding on either side, (B, S). States at padding are unspecified.
            output_attentions: Return attention weights, in blocks of R + 1 tokens, R = `local_radius`:
                L × (B, blocks, A, R + 1, 3 (R + 1) + summaries).
            output_hidden_states: Return hidden states, (L + 1) × (B, S, H); the last one is normalised.
            return_dict: Return a `ModelOutput` rather than a tuple.
            train: Drop activations as configured.
            params: Parameters; default: the model's own.
            dropout_rng: Random key of dropout; needed if `train`.

        Returns:
            `FlaxBaseModelOutput`.

        Raises:
            InputError: shapes disagree, an id is out of range, or `params` or `dropout_rng` are missing.

        Example:
            >>> import numpy as np
            >>> from longspan import FlaxLongT5ForConditionalGeneration, LongT5Config
            >>> config = LongT5Config(d_model=32, d_kv=8, num_heads=2, d_ff=64, num_layers=1)
            >>> FlaxLongT5ForConditionalGeneration(config).encode(np.array([[100, 19, 1]])).last_hidden_state.shape
            (1, 3, 32)
        """
        ids, mask = self._check_tokens(input_ids, attention_mask)
        settings = self._settings(train, dropout_rng, output_attentions, output_hidden_states)
        settings["implementation"] = self.config.attn_implementation
        exact = settings["output_attentions"] or is_traced(ids, mask, params, dropout_rng)
        inputs = self._in_bucket(ids, mask, exact=exact)
        output, _ = self._run(inputs, settings, params=params, dropout_rng=dropout_rng, method="encode")
        if not exact:
            output = cut_tokens(output, ids.shape[1])
        return finish(output, resolve(return_dict, self.config.return_dict))

    def decode(
        self,
        decoder_input_ids: Any,
        encoder_outputs: Any,
        encoder_attention_mask: Any = None,
        decoder_attention_mask: Any = None,
        past_key_values: Mapping[str, Any] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
        params: Mapping[str, Any] | None = None,
        dropout_rng: Array | None = None,
    ) -> Any:
        """Run the decoder.

        Args:
            decoder_input_ids: Target ids, (B, T), the first being the start token; with a cache, only the new ones.
            encoder_outputs: What `encode` returned, or a tuple that begins with the encoder's states (B, S, H).
            encoder_attention_mask: Padding mask of the source, (B, S).
            decoder_attention_mask: Padding mask of the target, (B, T); with a cache for all tokens that fit it, or for
                those up to the new ones. Default: all real.
            past_key_values: Cache made by `init_cache` or returned by an earlier call; it comes back filled further.
                Keys and values of the source are kept in it with the first tokens, and later calls may read them there.
            output_attentions: Return attention weights, L × (B, A, T, T), and of the cross-attention,
                L × (B, A, T, S); with a cache, the last axis is as long as what fits the cache.
            output_hidden_states: Return hidden states, (L + 1) × (B, T, H).
            return_dict: Return a `ModelOutput` rather than a tuple.
            train: Drop activations as configured.
            params: Parameters; default: the model's own.
            dropout_rng: Random key of dropout; needed if `train`.

        Returns:
            The output that the class names, a pytree, with `past_key_values` if a cache was given.

        Raises:
            InputError: shapes disagree, an id is out of range, the cache does not fit, the class has no decoder, or
                `params` or `dropout_rng` are missing.

        Example:
            >>> import numpy as np
            >>> from longspan import FlaxLongT5ForConditionalGeneration, LongT5Config
            >>> config = LongT5Config(d_model=32, d_kv=8, num_heads=2, d_ff=64, num_layers=1)
            >>> model = FlaxLongT5ForConditionalGeneration(config)
            >>> encoded = model.encode(np.array([[100, 19, 1]]))
            >>> cache = model.init_cache(1, 8, encoded)
            >>> output = model.decode(np.array([[0]]), encoded, past_key_values=cache)
            >>> model.decode(np.array([[7]]), encoded, past_key_values=output.past_key_values).logits.shape
            (1, 1, 32128)
        """
        target, target_mask = self._check_tokens(
            decoder_input_ids, decoder_attention_mask, prefix="decoder_", has_cache=past_key_values is not None
        )
        states = self._states_of(encoder_outputs, batch=target.shape[0])
        source_mask = None if encoder_attention_mask is None else as_array(encoder_attention_mask)
        check_shape(source_mask, states.shape[:2], name="encoder_attention_mask", axes="(batch, source tokens)")
        settings = self._settings(train, dropout_rng, output_attentions, output_hidden_states)
        length, cache = target.shape[1], past_key_values or None
        exact = settings["output_attentions"] or is_traced(target, states, source_mask, params, dropout_rng, cache)
        if cache is not None:
            settings["source"] = self._check_cache(cache, target_mask, states, new=length)
            room, masked = _source_room(cache) or states.shape[1], True
        else:
            room, masked = (states.shape[1], False) if exact else (bucket(states.shape[1]), True)
        inputs: dict[str, Any] = {"decoder_input_ids": target, "decoder_attention_mask": target_mask}
        if cache is None and not exact:
            padded = self._in_bucket(target, target_mask, exact=False)
            inputs = {f"decoder_{name}": value for name, value in padded.items()}
        if masked:
            source_mask = pad_tokens(real_tokens(source_mask, states.shape[:2]), room)
        inputs |= {"encoder_hidden_states": pad_tokens(states, room), "encoder_attention_mask": source_mask}
        output, _ = self._run(inputs, settings, params=params, dropout_rng=dropout_rng, cache=cache, method="decode")
        if cache is None and not exact:
            output = cut_tokens(output, length)
        return finish(output, resolve(return_dict, self.config.return_dict))

    def init_cache(self, batch_size: int, max_length: int, encoder_outputs: Any) -> FlaxCache:
        """Make an empty cache for incremental decoding.

        Args:
            batch_size: B.
            max_length: Number of target tokens that fit.
            encoder_outputs: What `encode` returned; the cache has room for keys and values of as many source tokens.

        Returns:
            Nested dicts of arrays, to be passed to `decode` as `past_key_values`; each call returns it filled further.

        Raises:
            InputError: the encoder's states are of another batch size, or the class has no decoder.
        """
        states = self._states_of(encoder_outputs, batch=batch_size)
        return empty_cache(self._cache_shapes(batch_size, max_length, bucket(states.shape[1])))

    def prepare_decoder_input_ids_from_labels(self, labels: Any) -> Array:
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
        labels = jnp.asarray(labels)
        shifted = jnp.concatenate([jnp.full_like(labels[:, :1], start), labels[:, :-1]], axis=1)
        return jnp.where(shifted == IGNORE_INDEX, padding, shifted)

    # -- checking inputs ----------------------------------------------------------------------------------------------

    def _check_tokens(
        self, input_ids: Any, attention_mask: Any, *, prefix: str = "", has_cache: bool = False
    ) -> tuple[Any, Any]:
        name = f"{prefix}input_ids"
        ids = as_indices(input_ids, name=name)
        if ids.ndim != 2:
            raise InputError(f"{name} must have the shape (batch, tokens). Received: {tuple(ids.shape)}")
        check_ids(ids, self.config.vocab_size, name=name, limit_name="vocab_size")
        mask = None if attention_mask is None else as_array(attention_mask)
        if not has_cache:
            check_shape(mask, tuple(ids.shape), name=f"{prefix}attention_mask", axes="(batch, tokens)")
        return ids, mask

    def _settings(
        self, train: bool, dropout_rng: Any, output_attentions: bool | None, output_hidden_states: bool | None
    ) -> dict[str, Any]:
        config = self.config
        check_dropout_key(train, dropout_rng, config.dropout_rate)
        return {
            "deterministic": not train,
            "output_attentions": resolve(output_attentions, config.output_attentions),
            "output_hidden_states": resolve(output_hidden_states, config.output_hidden_states),
        }

    def _in_bucket(self, ids: Any, mask: Any, *, exact: bool) -> dict[str, Any]:
        """Ids and mask, padded up to their bucket unless the lengths are to be exact."""
        if exact:
            return {"input_ids": ids, "attention_mask": mask}
        length = bucket(ids.shape[1])
        # any value will do as padding, since the mask hides it
        mask = pad_tokens(real_tokens(mask, ids.shape) != 0, length)
        return {"input_ids": pad_tokens(ids, length), "attention_mask": mask}

    def _states_of(self, encoder_outputs: Any, *, batch: int) -> Any:
        if not self.has_decoder:
            raise InputError(f"{type(self).__name__} has no decoder; use FlaxLongT5ForConditionalGeneration")
        states = encoder_outputs[0]
        states = states if isinstance(states, Array) else jnp.asarray(states)
        expected = (batch, states.shape[1] if states.ndim > 1 else 1, self.config.d_model)
        check_shape(states, expected, name="encoder_outputs[0]", axes="(batch, source tokens, d_model)")
        return states

    # -- the cache ----------------------------------------------------------------------------------------------------

    def _check_cache(self, cache: Any, target_mask: Any, states: Any, *, new: int) -> str:
        """Check that a cache fits, and say where the keys and values of the source come from."""
        batch, is_mapping = states.shape[0], isinstance(cache, Mapping)
        past, room = tokens_and_room(cache) if is_mapping else (0, None)
        source = _source_room(cache) if is_mapping else None
        check_cache(cache, self._cache_shapes(batch, room or new, source or 1), num_new=new)
        if states.shape[1] > (source or 0):
            raise InputError(
                "the cache must have room for the source: make it with init_cache of these encoder_outputs. "
                f"Received: {states.shape[1]} source tokens for a cache of {source}"
            )
        if target_mask is not None:
            check_cached_mask(target_mask, cache, batch=batch, num_new=new)
        is_filled = not isinstance(past, int) and values_visible(past) and int(past) > 0
        return "read" if is_filled else "write"

    def _cache_shapes(self, batch: int, length: int, source: int = 1) -> Any:
        """Tree of the shapes of a cache for so many target and source tokens of each row."""

        def make_inputs() -> dict[str, Any]:
            ids, states = jnp.zeros((batch, length), jnp.int32), jnp.zeros((batch, source, self.config.d_model))
            return {"decoder_input_ids": ids, "encoder_hidden_states": states}

        return self._shapes_of_cache((batch, length, source), make_inputs, method="decode")


class FlaxLongT5EncoderModule(Stack):
    """`FlaxLongT5EncoderModel` as a `linen.Module`."""

    config: LongT5Config

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        self.shared = Embedding(
            config.vocab_size, config.d_model, embedding_init=normal(config.initializer_factor), dtype=self.dtype
        )
        self.encoder = FlaxLongT5Encoder(config, self.dtype, self.gradient_checkpointing)

    def __call__(self, input_ids: Array, attention_mask: Array | None = None, **arguments: Any) -> FlaxBaseModelOutput:
        """Encode; arguments of `encode`."""
        return self.encode(input_ids, attention_mask, **arguments)

    def encode(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        *,
        implementation: str = "auto",
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> FlaxBaseModelOutput:
        """Encode ids (B, S).

        Args:
            input_ids: (B, S).
            attention_mask: Nonzero for real tokens, (B, S); None for all.
            implementation: How to attend.
            deterministic: Drop nothing.
            output_attentions: Return attention weights.
            output_hidden_states: Return hidden states.
        """
        return self.encoder(
            self.shared(input_ids),
            attention_mask,
            implementation=implementation,
            deterministic=deterministic,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )


class FlaxLongT5Module(FlaxLongT5EncoderModule):
    """`FlaxLongT5Model` as a `linen.Module`."""

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        self.decoder = FlaxLongT5Decoder(self.config, self.dtype, self.gradient_checkpointing)

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        decoder_input_ids: Array | None = None,
        decoder_attention_mask: Array | None = None,
        *,
        implementation: str = "auto",
        **flags: Any,
    ) -> Any:
        """Encode and decode; arguments of `encode` and `decode`."""
        encoded = self.encode(input_ids, attention_mask, implementation=implementation, **flags)
        assert decoder_input_ids is not None
        assert encoded.last_hidden_state is not None
        decoded = self.decode(
            decoder_input_ids, encoded.last_hidden_state, attention_mask, decoder_attention_mask, **flags
        )
        fields = {
            "decoder_hidden_states": decoded.hidden_states,
            "decoder_attentions": decoded.attentions,
            "cross_attentions": decoded.cross_attentions,
            "encoder_last_hidden_state": encoded.last_hidden_state,
            "encoder_hidden_states": encoded.hidden_states,
            "encoder_attentions": encoded.attentions,
        }
        if "logits" in decoded:
            return FlaxSeq2SeqLMOutput(logits=decoded.logits, **fields)
        return FlaxSeq2SeqModelOutput(last_hidden_state=decoded.last_hidden_state, **fields)

    def decode(
        self,
        decoder_input_ids: Array,
        encoder_hidden_states: Array,
        encoder_attention_mask: Array | None = None,
        decoder_attention_mask: Array | None = None,
        *,
        source: Any = "compute",
        ancestors: Array | None = None,
        init_cache: bool = False,
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> Any:
        """Decode ids (B, T).

        Args:
            decoder_input_ids: (B, T).
            encoder_hidden_states: (B, S, H).
            encoder_attention_mask: Nonzero for real source tokens, (B, S); None for all.
            decoder_attention_mask: Nonzero for real target tokens, (B, T); None for all.
            source: Where keys and values of the source come from, see `flax_decoder.Source`.
            ancestors: (B, K, T_cached), with a cache for K rows of each prompt, see `longspan.nn.flax.cache`.
            init_cache: Make a cache for as many tokens as this input has.
            deterministic: Drop nothing.
            output_attentions: Return attention weights.
            output_hidden_states: Return hidden states.
        """
        states = drop_unseen_faults(encoder_hidden_states, encoder_attention_mask)
        return self.decoder(
            self.shared(decoder_input_ids),
            decoder_attention_mask,
            states.astype(self.dtype),
            encoder_attention_mask,
            source=source,
            ancestors=ancestors,
            init_cache=init_cache,
            deterministic=deterministic,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )


class FlaxLongT5ForConditionalGenerationModule(FlaxLongT5Module):
    """`FlaxLongT5ForConditionalGeneration` as a `linen.Module`."""

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        if not self.config.tie_word_embeddings:
            self.lm_head = linear(self.config, self.config.vocab_size, std=1.0, dtype=self.dtype)

    def decode(self, *inputs: Any, **arguments: Any) -> FlaxCausalLMOutputWithCrossAttentions:
        """Decode ids (B, T) into logits; arguments of `FlaxLongT5Module.decode`."""
        output = super().decode(*inputs, **arguments)
        fields = {name: output[name] for name in output if name != "last_hidden_state"}
        return FlaxCausalLMOutputWithCrossAttentions(logits=self._logits(output.last_hidden_state), **fields)

    def _logits(self, hidden_states: Array) -> Array:
        """(B, T, H) -> (B, T, V)."""
        if not self.config.tie_word_embeddings:
            return self.lm_head(hidden_states)
        # the embeddings are large, as T5's first layers expect them
        states = hidden_states * self.config.d_model**-0.5
        return self.shared.attend(states).astype(self.dtype)


class FlaxLongT5EncoderModel(FlaxLongT5PreTrainedModel):
    """The encoder of LongT5, whose attention is local or transient-global.

    Positions are relative: inputs may be padded on either side. Calls are those of `encode`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import FlaxLongT5EncoderModel, LongT5Config
        >>> config = LongT5Config(d_model=32, d_kv=8, num_heads=2, d_ff=64, num_layers=1)
        >>> FlaxLongT5EncoderModel(config)(jnp.array([[100, 19, 3, 1]])).last_hidden_state.shape
        (1, 4, 32)
    """

    module_class = FlaxLongT5EncoderModule
    has_decoder = False

    def __call__(  # type: ignore[override]  # without a decoder, none of its inputs
        self,
        input_ids: Any,
        attention_mask: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
        params: Any = None,
        dropout_rng: Array | None = None,
    ) -> Any:
        """Run the encoder; arguments and result as in `encode`."""
        return self.encode(
            input_ids, attention_mask, output_attentions, output_hidden_states, return_dict, train, params, dropout_rng
        )


class FlaxLongT5Model(FlaxLongT5PreTrainedModel):
    """LongT5's encoder and decoder without a head.

    Calls return `FlaxSeq2SeqModelOutput`, and `decode` `FlaxBaseModelOutputWithPastAndCrossAttentions`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import FlaxLongT5Model, LongT5Config
        >>> model = FlaxLongT5Model(LongT5Config(d_model=32, d_kv=8, num_heads=2, d_ff=64, num_layers=1))
        >>> output = model(jnp.array([[100, 19, 3, 1]]), decoder_input_ids=jnp.array([[0, 100]]))
        >>> output.last_hidden_state.shape, output.encoder_last_hidden_state.shape
        ((1, 2, 32), (1, 4, 32))
    """

    module_class = FlaxLongT5Module


class FlaxLongT5ForConditionalGeneration(FlaxGenerationMixin, FlaxLongT5PreTrainedModel):
    """LongT5 with a projection of the decoder's states onto the vocabulary.

    Calls return `FlaxSeq2SeqLMOutput`, and `decode` `FlaxCausalLMOutputWithCrossAttentions`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import FlaxLongT5ForConditionalGeneration, LongT5Config
        >>> config = LongT5Config(d_model=32, d_kv=8, num_heads=2, d_ff=64, num_layers=1)
        >>> model = FlaxLongT5ForConditionalGeneration(config)
        >>> encoded = model.encode(jnp.array([[100, 19, 3, 1]]))
        >>> model.decode(jnp.array([[0]]), encoded).logits.shape
        (1, 1, 32128)
    """

    module_class = FlaxLongT5ForConditionalGenerationModule

    def make_stepper(self, variables: Any, inputs: dict[str, Array], *, rows: int, room: int) -> SourceStepper:
        """What runs the model during `generate`."""
        batch, source = inputs["input_ids"].shape
        shapes = self._cache_shapes(batch, room, source)
        implementation = self.config.attn_implementation
        return SourceStepper(self.computing_module, variables, inputs, shapes, rows, implementation)


def _source_room(cache: Any) -> int | None:
    """Source tokens that fit a cache."""
    paths = jax.tree_util.tree_leaves_with_path(cache)
    rooms = [leaf.shape[-1] for path, leaf in paths if getattr(path[-1], "key", None) == "source_key"]
    return rooms[0] if rooms else None
