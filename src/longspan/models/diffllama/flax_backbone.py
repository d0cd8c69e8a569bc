"""DiffLlama in Flax (Ye et al., 2024, https://arxiv.org/abs/2410.05258): the backbone and what its classes share.

Axes: B batch, S tokens, T keys, H width, A softmax maps, K key/value heads, L layers.

Calls outside of `jax.jit` pad their inputs up to a few lengths (`longspan.nn.flax.buckets`) and cut their outputs
back, so that one compiled program serves many lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from longspan.checkpoints.names import ParameterNames
from longspan.errors import InputError
from longspan.model_output import ModelOutput
from longspan.models.diffllama.config import DiffLlamaConfig
from longspan.models.diffllama.flax_layers import LAMBDA_NAMES, FlaxDiffLlamaLayers, FlaxDiffLlamaRMSNorm, make_plan
from longspan.models.diffllama.names import NAMES
from longspan.nn.flax.base import FlaxPreTrainedModel
from longspan.nn.flax.buckets import bucket, cut_tokens, is_traced, pad_tokens
from longspan.nn.flax.cache import check_cache, check_cached_mask, empty_cache, tokens_and_room
from longspan.nn.flax.checks import as_array, as_indices, check_ids
from longspan.nn.flax.layers import Embedding, Stack
from longspan.nn.flax.masks import drop_unseen_faults
from longspan.nn.flax.outputs import Arrays, FlaxCache, finish, model_output, resolve
from longspan.nn.flax.parameters import kernel_init
from longspan.ops.flax.differential import IMPLEMENTATIONS
from longspan.shapes import check_shape


@model_output
class FlaxDiffLlamaModelOutput(ModelOutput):
    """`last_hidden_state` (B, S, H); `differential_attentions`: A1 − λ·A2 of each layer, L × (B, A/2, S, T)."""

    last_hidden_state: Array | None = None
    past_key_values: FlaxCache | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None
    differential_attentions: Arrays | None = None


class FlaxDiffLlamaModule(Stack):
    """The backbone as a `linen.Module`; `FlaxDiffLlamaModel` wraps it."""

    config: DiffLlamaConfig

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        self.embed_tokens = Embedding(
            config.vocab_size,
            config.hidden_size,
            embedding_init=kernel_init(config),
            padding_idx=config.pad_token_id,
            dtype=self.dtype,
        )
        self.layers = FlaxDiffLlamaLayers(config, self.dtype, self.gradient_checkpointing)
        self.norm = FlaxDiffLlamaRMSNorm(config, dtype=self.dtype)

    def __call__(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        inputs_embeds: Array | None = None,
        *,
        implementation: str = "auto",
        init_cache: bool = False,
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        output_differential_attentions: bool = False,
    ) -> FlaxDiffLlamaModelOutput:
        """Run the backbone; the first four arguments as in `FlaxDiffLlamaPreTrainedModel.__call__`.

        Args:
            implementation: How to attend.
            init_cache: Make a cache for as many tokens as this input has, instead of using one.
            deterministic: Drop nothing.
            output_attentions: Return the softmax maps.
            output_hidden_states: Return hidden states.
            output_differential_attentions: Return the differences of the maps.
        """
        hidden_states: Any = inputs_embeds if input_ids is None else self.embed_tokens(input_ids)
        past, capacity = (0, None) if init_cache else tokens_and_room(self.variables.get("cache"))
        if input_ids is None:
            seen = attention_mask if capacity is None else None
            hidden_states = drop_unseen_faults(hidden_states.astype(self.dtype), seen)
        plan = make_plan(
            self.config,
            attention_mask=attention_mask,
            position_ids=position_ids,
            batch=hidden_states.shape[0],
            length=hidden_states.shape[1],
            past=past,
            capacity=capacity,
            dtype=self.dtype,
            implementation=implementation,
            output_weights=output_attentions or output_differential_attentions,
            deterministic=deterministic,
        )
        states, maps, differences = self.layers(hidden_states, plan, init_cache)
        states[-1] = self.norm(states[-1])
        return FlaxDiffLlamaModelOutput(
            last_hidden_state=states[-1],
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(maps) if output_attentions else None,
            differential_attentions=tuple(differences) if output_differential_attentions else None,
        )


class FlaxDiffLlamaPreTrainedModel(FlaxPreTrainedModel):
    """What all Flax DiffLlama classes share."""

    config_class: ClassVar[type[DiffLlamaConfig]] = DiffLlamaConfig
    base_model_prefix: ClassVar[str] = "model"
    names: ClassVar[ParameterNames] = NAMES
    raw_parameters: ClassVar[frozenset[str]] = frozenset(LAMBDA_NAMES)
    #: outputs that have one entry a row, and none a token
    row_outputs: ClassVar[tuple[str, ...]] = ()
    config: DiffLlamaConfig

    def check_implementation(self, name: str) -> None:
        """Raise `InputError` unless `name` is an attention implementation of DiffLlama."""
        IMPLEMENTATIONS.check_name(name)

    def dummy_inputs(self, input_shape: tuple[int, ...]) -> dict[str, Any]:
        """Arguments of the module that reach all of its parameters."""
        return {"input_ids": jnp.zeros(input_shape, jnp.int32)}

    def init_cache(self, batch_size: int, max_length: int) -> FlaxCache:
        """Make an empty cache for incremental decoding.

        Args:
            batch_size: B.
            max_length: Number of tokens that fit.

        Returns:
            Nested dicts of arrays, to be passed as `past_key_values`; each call returns it filled further.

        Example:
            >>> import jax.numpy as jnp
            >>> from longspan import DiffLlamaConfig, FlaxDiffLlamaForCausalLM
            >>> config = DiffLlamaConfig(
            ...     vocab_size=100, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1
            ... )
            >>> model = FlaxDiffLlamaForCausalLM(config)
            >>> cache = model.init_cache(batch_size=1, max_length=8)
            >>> cache = model(jnp.array([[1, 5]]), past_key_values=cache).past_key_values
            >>> model(jnp.array([[7]]), past_key_values=cache).logits.shape
            (1, 1, 100)
        """
        return empty_cache(self._cache_shapes(batch_size, max_length))

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Mapping[str, Any] | None = None,
        inputs_embeds: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        output_differential_attentions: bool = False,
        return_dict: bool | None = None,
        params: Mapping[str, Any] | None = None,
        dropout_rng: Array | None = None,
        train: bool = False,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: Token ids, (B, S). Exactly one of this and `inputs_embeds` is given.
            attention_mask: 1 for real tokens, 0 for padding, (B, S); with a cache (B, T) for all tokens that fit it, or
                for those up to the new ones. States at padding are unspecified.
            position_ids: Position of each token, (B, S) or (1, S); default 0, 1, ..., or on from the cache. Without a
                mask and a cache, positions that do not go up by one start a new document, which sees only itself.
            past_key_values: Cache made by `init_cache` or returned by an earlier call; it comes back filled further.
            inputs_embeds: Embedded tokens, (B, S, H).
            output_attentions: Return the softmax maps before the subtraction, L × (B, A, S, T).
            output_hidden_states: Return hidden states, (L + 1) × (B, S, H): the embeddings, the output of all but the
                last layer, and the normed output of the last.
            output_differential_attentions: Return A1 − λ·A2 of each pair of maps, L × (B, A/2, S, T).
            return_dict: Return a `ModelOutput` rather than a tuple.
            params: Parameters; default: the model's own.
            dropout_rng: Random key of dropout; needed if `train`.
            train: Drop activations as configured.

        Returns:
            The output that the class names, a pytree.

        Raises:
            InputError: shapes disagree, an id is out of range, the cache does not fit, or `params` or `dropout_rng` are
                missing.
        """
        config, cache = self.config, past_key_values or None
        inputs = {
            "input_ids": None if input_ids is None else as_indices(input_ids, name="input_ids"),
            "attention_mask": None if attention_mask is None else as_array(attention_mask),
            "position_ids": None if position_ids is None else as_indices(position_ids, name="position_ids"),
            "inputs_embeds": None if inputs_embeds is None else as_array(inputs_embeds),
        }
        length = self._check_inputs(inputs, cache)
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
            "output_differential_attentions": output_differential_attentions,
        }
        shows_maps = settings["output_attentions"] or output_differential_attentions
        exact = cache is not None or shows_maps or is_traced(inputs, params, dropout_rng) or not self.may_pad(inputs)
        if not exact:
            inputs = self._in_bucket(inputs, bucket(length))
        output, _ = self._run(inputs, settings, params=params, dropout_rng=dropout_rng, cache=cache)
        if not exact:
            output = cut_tokens(output, length, rows=self.row_outputs)
        return finish(output, resolve(return_dict, config.return_dict))

    @property
    def dropout_rate(self) -> float:
        """The largest rate of dropout."""
        return self.config.attention_dropout

    def may_pad(self, inputs: Mapping[str, Any]) -> bool:
        """True if tokens behind the last one change no output; where attention is causal, they do not."""
        return True

    def _in_bucket(self, inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
        """Inputs padded at the end."""
        fill = {"input_ids": self.config.pad_token_id or 0}
        if inputs["position_ids"] is None and self.config.rotary_table().limit is not None:
            # frequencies that depend on the length depend on the real one
            tokens = inputs["inputs_embeds"] if inputs["input_ids"] is None else inputs["input_ids"]
            inputs = {**inputs, "position_ids": np.arange(tokens.shape[1])[None]}
        return {
            name: None if array is None else pad_tokens(array, length, value=fill.get(name, 0))
            for name, array in inputs.items()
        }

    def _check_inputs(self, inputs: Mapping[str, Any], cache: Any) -> int:
        """Check the inputs of a call, and return S."""
        config, ids, states = self.config, inputs["input_ids"], inputs["inputs_embeds"]
        if (ids is None) == (states is None):
            both = "both" if states is not None else "neither"
            raise InputError(f"exactly one of input_ids and inputs_embeds must be given. Received: {both}")
        if ids is not None:
            if ids.ndim != 2:
                raise InputError(f"input_ids must have the shape (batch, tokens). Received: {tuple(ids.shape)}")
            check_ids(ids, config.vocab_size, name="input_ids", limit_name="vocab_size")
            batch, length = ids.shape
        else:
            expected = (*states.shape[:2], *(1, 1))[:2]
            check_shape(states, (*expected, config.hidden_size), name="inputs_embeds", axes="(batch, tokens, width)")
            batch, length = expected
        mask, positions = inputs["attention_mask"], inputs["position_ids"]
        if positions is not None and tuple(positions.shape) != (1, length):
            check_shape(positions, (batch, length), name="position_ids", axes="(batch, tokens), or (1, tokens),")
        if cache is not None:
            _, room = tokens_and_room(cache) if isinstance(cache, Mapping) else (0, None)
            check_cache(cache, self._cache_shapes(batch, room or length), num_new=length)
            if mask is not None:
                check_cached_mask(mask, cache, batch=batch, num_new=length)
        elif mask is not None:
            check_shape(mask, (batch, length), name="attention_mask", axes="(batch, tokens)")
        return length


class FlaxDiffLlamaModel(FlaxDiffLlamaPreTrainedModel):
    """DiffLlama without a head: a causal decoder that returns hidden states.

    Calls return `FlaxDiffLlamaModelOutput`.

    Example:
        >>> import jax.numpy as jnp
        >>> from longspan import DiffLlamaConfig, FlaxDiffLlamaModel
        >>> config = DiffLlamaConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1)
        >>> output = FlaxDiffLlamaModel(config)(jnp.array([[1, 15043, 3186]]), output_attentions=True)
        >>> output.last_hidden_state.shape, output.attentions[0].shape
        ((1, 3, 32), (1, 4, 3, 3))
    """

    module_class: ClassVar[type[nn.Module]] = FlaxDiffLlamaModule
