"""BERT in Flax (Devlin et al., 2018, https://arxiv.org/abs/1810.04805): the backbone and what its classes share.

Axes: B batch, S tokens, T keys, H width, A heads, L layers, C choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from longspan.checkpoints.names import ParameterNames
from longspan.errors import InputError
from longspan.models.bert.config import BertConfig
from longspan.models.bert.flax_attention import ATTENTION, choose_attention, make_plan
from longspan.models.bert.flax_layers import FlaxBertEmbeddings, FlaxBertEncoder
from longspan.models.bert.names import NAMES
from longspan.nn.flax.base import FlaxPreTrainedModel
from longspan.nn.flax.buckets import is_traced
from longspan.nn.flax.cache import check_cache, check_cached_mask, empty_cache, tokens_and_room
from longspan.nn.flax.checks import as_array, as_indices, check_dropout_key, check_ids, check_length
from longspan.nn.flax.heads import Pooler
from longspan.nn.flax.layers import PooledStack
from longspan.nn.flax.masks import drop_unseen_faults, expand_head_mask
from longspan.nn.flax.outputs import (
    FlaxBaseModelOutputWithPooling,
    FlaxBaseModelOutputWithPoolingAndCrossAttentions,
    FlaxCache,
    finish,
    resolve,
)
from longspan.nn.flax.packing import Packing
from longspan.nn.flax.parameters import kernel_init
from longspan.shapes import check_key_mask, check_shape


class FlaxBertModule(PooledStack):
    """The backbone as a `linen.Module`; `FlaxBertModel` wraps it."""

    config: BertConfig
    embeddings_class: ClassVar[type[FlaxBertEmbeddings]] = FlaxBertEmbeddings

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        self.embeddings = self.embeddings_class(config, dtype=self.dtype)
        self.encoder = FlaxBertEncoder(config, self.dtype, self.gradient_checkpointing)
        if self.add_pooling_layer:
            self.pooler = Pooler(config.hidden_size, kernel_init=kernel_init(config), dtype=self.dtype)

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        head_mask: Array | None = None,
        encoder_hidden_states: Array | None = None,
        encoder_attention_mask: Array | None = None,
        packing: Packing | None = None,
        *,
        implementation: str = "auto",
        init_cache: bool = False,
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> Any:
        """Run the backbone; the first seven arguments as in `FlaxBertPreTrainedModel.__call__`.

        Args:
            packing: Where the real tokens are in packed rows, or None.
            implementation: How to attend.
            init_cache: Make a cache for as many tokens as this input has, instead of using one.
            deterministic: Drop nothing.
            output_attentions: Return attention weights.
            output_hidden_states: Return hidden states.

        Returns:
            `FlaxBaseModelOutputWithPooling`, or of a decoder `FlaxBaseModelOutputWithPoolingAndCrossAttentions`.
        """
        config = self.config
        past, capacity = (0, None) if init_cache else tokens_and_room(self.variables.get("cache"))
        if position_ids is None:
            position_ids = self.default_positions(input_ids, past)
        if packing is not None:
            position_ids = packing.pack(jnp.broadcast_to(position_ids, input_ids.shape))
            input_ids = packing.pack(input_ids)
            token_type_ids = None if token_type_ids is None else packing.pack(token_type_ids)
        plan = make_plan(
            config,
            implementation=implementation,
            length=input_ids.shape[1],
            past=past,
            capacity=capacity,
            attention_mask=attention_mask,
            encoder_attention_mask=encoder_attention_mask,
            packing=packing,
            needs_weights=output_attentions,
            deterministic=deterministic,
        )
        if encoder_hidden_states is not None:
            encoder_hidden_states = drop_unseen_faults(encoder_hidden_states, encoder_attention_mask)
        hidden_states = self.embeddings(input_ids, token_type_ids, position_ids, deterministic=deterministic)
        last_hidden_state, hidden, attentions, cross_attentions = self.encoder(
            hidden_states,
            plan=plan,
            packing=packing,
            head_mask=expand_head_mask(
                head_mask, num_layers=config.num_hidden_layers, num_heads=config.num_attention_heads
            ),
            encoder_hidden_states=encoder_hidden_states,
            init_cache=init_cache,
            output_hidden_states=output_hidden_states,
        )
        fields: dict[str, Any] = {
            "last_hidden_state": last_hidden_state,
            "pooler_output": self.pooler(last_hidden_state) if self.add_pooling_layer else None,
            "hidden_states": hidden,
            "attentions": attentions,
        }
        if not config.is_decoder:
            return FlaxBaseModelOutputWithPooling(**fields)
        return FlaxBaseModelOutputWithPoolingAndCrossAttentions(**fields, cross_attentions=cross_attentions)

    def default_positions(self, input_ids: Array, past: Array | int) -> Array:
        """Positions of the tokens behind `past` earlier ones, (1, S) or (B, S)."""
        return (past + jnp.arange(input_ids.shape[1]))[None]


class FlaxBertPreTrainedModel(FlaxPreTrainedModel):
    """What all Flax BERT classes share."""

    config_class: ClassVar[type[BertConfig]] = BertConfig
    base_model_prefix: ClassVar[str] = "bert"
    names: ClassVar[ParameterNames] = NAMES
    #: `past_key_values` may be given, and comes back
    keeps_cache: ClassVar[bool] = False
    #: the loss that users compute from the output always reads the positions of padding too
    needs_padding_states: ClassVar[bool] = False
    #: the output has scores of each token, so that such a loss may read them at padding
    scores_tokens: ClassVar[bool] = False
    #: Compute states at padding as if it were text. None: where scores of tokens or gradients are asked for, unless
    #: `config.attn_implementation` is "packed". False leaves them unspecified, and a plain call packs its batch.
    padding_states: bool | None = None
    config: BertConfig

    def check_implementation(self, name: str) -> None:
        """Raise `InputError` unless `name` is an attention implementation of BERT."""
        ATTENTION.check_name(name)

    def dummy_inputs(self, input_shape: tuple[int, ...]) -> dict[str, Any]:
        """Arguments of the module that reach all of its parameters."""
        batch, *_, length = input_shape
        choices = [1] * (len(self.input_axes) - 2)
        inputs: dict[str, Any] = {"input_ids": jnp.zeros((batch, *choices, length), jnp.int32)}
        if self.config.add_cross_attention:
            inputs["encoder_hidden_states"] = jnp.zeros((batch, length, self.config.hidden_size))
        return inputs

    def init_cache(self, batch_size: int, max_length: int) -> FlaxCache:
        """Make an empty cache for incremental decoding.

        Args:
            batch_size: B.
            max_length: Number of tokens that fit.

        Returns:
            Nested dicts of arrays, to be passed as `past_key_values`; each call returns it filled further.

        Raises:
            InputError: the model is no decoder, or `max_length` is beyond its positions.

        Example:
            >>> import jax.numpy as jnp
            >>> from longspan import BertConfig, FlaxBertForCausalLM
            >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, is_decoder=True)
            >>> model = FlaxBertForCausalLM(config)
            >>> cache = model.init_cache(batch_size=1, max_length=8)
            >>> cache = model(jnp.array([[101, 7592]]), past_key_values=cache).past_key_values
            >>> model(jnp.array([[2088]]), past_key_values=cache).logits.shape
            (1, 1, 30522)
        """
        self._check_decoder("init_cache")
        check_length(max_length, self.most_tokens)
        return empty_cache(self._cache_shapes(batch_size, max_length))

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        params: Mapping[str, Any] | None = None,
        dropout_rng: Array | None = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        past_key_values: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: Token ids, (B, S); for multiple choice (B, C, S), and likewise the next three.
            attention_mask: 1 for real tokens, 0 for padding, (B, S); with a cache (B, T) for all tokens that fit it, or
                for those up to the new ones. A mask per query, (B, S, S), is possible as well. States at padding are
                unspecified.
            token_type_ids: Segment of each token, (B, S); default 0.
            position_ids: Position of each token, (B, S) or (1, S); default 0, 1, ..., or on from the cache.
            head_mask: 1 keeps a head, 0 removes it, (A,) or (L, A).
            encoder_hidden_states: States that cross-attention reads, (B, S_enc, H); needs a decoder with
                `add_cross_attention`.
            encoder_attention_mask: Their padding mask, (B, S_enc).
            params: Parameters; default: the model's own.
            dropout_rng: Random key of dropout; needed if `train`.
            train: Drop activations as configured.
            output_attentions: Return attention weights, L × (B, A, S, T).
            output_hidden_states: Return hidden states, (L + 1) × (B, S, H).
            return_dict: Return a `ModelOutput` rather than a tuple.
            past_key_values: Cache made by `init_cache` or returned by an earlier call; it comes back filled further.

        Returns:
            The output that the class names, a pytree.

        Raises:
            InputError: shapes disagree, an id is out of range, the input is longer than the positions, the cache does
                not fit, or `params` or `dropout_rng` are missing.
        """
        config = self.config
        inputs = {
            "input_ids": as_indices(input_ids, name="input_ids"),
            "attention_mask": _optional(attention_mask),
            "token_type_ids": None if token_type_ids is None else as_indices(token_type_ids, name="token_type_ids"),
            "position_ids": None if position_ids is None else as_indices(position_ids, name="position_ids"),
            "head_mask": _optional(head_mask),
            "encoder_hidden_states": _optional(encoder_hidden_states),
            "encoder_attention_mask": _optional(encoder_attention_mask),
        }
        cache = past_key_values or None
        self._check_tokens(**{name: inputs[name] for name in ("input_ids", "token_type_ids", "position_ids")})
        batch, length = self._rows(inputs["input_ids"]).shape
        self._check_cache(cache, batch, length)
        self._check_masks(inputs, batch, length, cache)
        rates = (config.hidden_dropout_prob, config.attention_probs_dropout_prob, config.classifier_dropout or 0.0)
        check_dropout_key(train, dropout_rng, *rates)
        needs_weights = resolve(output_attentions, config.output_attentions)
        mask = inputs["attention_mask"]
        implementation, inputs["packing"] = choose_attention(
            config,
            attention_mask=mask if mask is None else self._rows(mask),
            shape=(batch, length),
            incremental=cache is not None or encoder_hidden_states is not None,
            needs_weights=needs_weights,
            padding_states=self._needs_padding(params),
            first_states=self.reads_first_state,
            tracing=isinstance(inputs["input_ids"], jax.core.Tracer),
        )
        settings = {
            "implementation": implementation,
            "deterministic": not train,
            "output_attentions": needs_weights,
            "output_hidden_states": resolve(output_hidden_states, config.output_hidden_states),
        }
        output, _ = self._run(inputs, settings, params=params, dropout_rng=dropout_rng, cache=cache)
        return finish(output, resolve(return_dict, config.return_dict))

    @property
    def most_tokens(self) -> int:
        """Tokens that have a position embedding."""
        return self.config.max_position_embeddings

    @property
    def reads_first_state(self) -> bool:
        """The output has what the pooler makes of each row's first token."""
        module = self.module
        return bool(getattr(module, "add_pooling_layer", getattr(module, "has_pooler", False)))

    def _needs_padding(self, params: Any) -> bool:
        if self.padding_states is not None or self.needs_padding_states:
            return bool(self.padding_states) or self.needs_padding_states
        return self.config.attn_implementation == "auto" and (self.scores_tokens or is_traced(params))

    def _rows(self, array: Any) -> Any:
        """Ids or a mask with one row for each sequence: axes before the tokens are folded."""
        return array if len(self.input_axes) == 2 else array.reshape(-1, array.shape[-1])

    def _check_tokens(self, input_ids: Any, token_type_ids: Any, position_ids: Any) -> None:
        config = self.config
        if input_ids.ndim != len(self.input_axes):
            axes = ", ".join(self.input_axes)
            raise InputError(f"input_ids must have the shape ({axes}). Received: {tuple(input_ids.shape)}")
        self._check_length(input_ids)
        check_ids(input_ids, config.vocab_size, name="input_ids", limit_name="vocab_size")
        for name, ids, limit_name in (
            ("token_type_ids", token_type_ids, "type_vocab_size"),
            ("position_ids", position_ids, "max_position_embeddings"),
        ):
            if ids is not None:
                if ids.shape != (1, *input_ids.shape[1:]) or name == "token_type_ids":
                    check_shape(ids, input_ids.shape, name=name, axes="of input_ids")
                check_ids(ids, getattr(config, limit_name), name=name, limit_name=limit_name)

    def _check_length(self, input_ids: Any) -> None:
        check_length(input_ids.shape[-1], self.most_tokens)

    def _check_decoder(self, what: str) -> None:
        if not self.config.is_decoder:
            raise InputError(f"{what} needs a decoder: config.is_decoder=True. Received: is_decoder=False")

    def _check_cache(self, cache: Any, batch: int, length: int) -> None:
        if cache is None:
            return
        self._check_decoder("past_key_values")
        if not self.keeps_cache:
            raise InputError(f"{type(self).__name__} reads whole sequences and takes no past_key_values")
        _, room = tokens_and_room(cache) if isinstance(cache, Mapping) else (0, None)
        check_cache(cache, self._cache_shapes(batch, room or length), num_new=length)

    def _check_masks(self, inputs: dict[str, Any], batch: int, length: int, cache: Any) -> None:
        mask, states = inputs["attention_mask"], inputs["encoder_hidden_states"]
        if mask is not None and cache is None:
            check_key_mask(self._rows(mask), batch=batch, num_keys=length)
        elif mask is not None:
            check_cached_mask(mask, cache, batch=batch, num_new=length)
        if states is None:
            return
        if not self.config.add_cross_attention:
            raise InputError(
                "encoder_hidden_states needs a decoder with cross-attention: config.is_decoder=True and "
                f"config.add_cross_attention=True. Received: is_decoder={self.config.is_decoder}, "
                f"add_cross_attention={self.config.add_cross_attention}"
            )
        expected = (batch, states.shape[1] if states.ndim > 1 else 1, self.config.hidden_size)
        check_shape(states, expected, name="encoder_hidden_states", axes="(batch, tokens, hidden_size)")
        if inputs["encoder_attention_mask"] is not None:
            check_key_mask(
                inputs["encoder_attention_mask"], batch=batch, num_keys=states.shape[1], name="encoder_attention_mask"
            )


def _optional(value: Any) -> Any:
    return None if value is None else as_array(value)


class FlaxBertModel(FlaxBertPreTrainedModel):
    """BERT without a head: an encoder, or a decoder if `config.is_decoder`.

    As a decoder it attends causally and may keep a cache; with `config.add_cross_attention` it also attends to
    `encoder_hidden_states`. Calls return `FlaxBaseModelOutputWithPooling`, a decoder's with `past_key_values` and
    `cross_attentions` besides. `add_pooling_layer=False` leaves out the pooler, which gives `pooler_output`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import BertConfig, FlaxBertModel
        >>> model = FlaxBertModel(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> output = model(input_ids=jnp.array([[101, 7592, 102]]))
        >>> output.last_hidden_state.shape, output.pooler_output.shape
        ((1, 3, 32), (1, 32))
    """

    module_class: ClassVar[type[nn.Module]] = FlaxBertModule
    keeps_cache: ClassVar[bool] = True
