"""DiffLlama in Keras 3 (Ye et al., 2024, https://arxiv.org/abs/2410.05258): the backbone.

Axes: B batch, S tokens, T keys, H width, A softmax maps, K key/value heads, D head size, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
from keras import ops

from longspan.checkpoints.names import ParameterNames
from longspan.errors import InputError
from longspan.models.diffllama.config import DiffLlamaConfig
from longspan.models.diffllama.keras_layers import DiffLlamaDecoderLayer, DiffLlamaRMSNorm, make_plan
from longspan.models.diffllama.names import NAMES
from longspan.nn.keras.base import TFPreTrainedModel, register
from longspan.nn.keras.checks import check_input, input_shape
from longspan.nn.keras.inputs import unpack_inputs
from longspan.nn.keras.layers import embedding, look_up
from longspan.nn.keras.masks import drop_unseen_faults
from longspan.nn.keras.outputs import KeyValues, Tensors, TFModelOutput, model_output, resolve
from longspan.nn.keras.resizing import replace_layer
from longspan.nn.keras.runtime import after
from longspan.ops.keras import Tensor
from longspan.ops.keras.differential import IMPLEMENTATIONS


@model_output
class TFDiffLlamaModelOutput(TFModelOutput):
    """`last_hidden_state` (B, S, H); `differential_attentions`: A1 − λ·A2 of each layer, L × (B, A/2, S, T)."""

    last_hidden_state: Tensor | None = None
    past_key_values: KeyValues | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    differential_attentions: Tensors | None = None


class TFDiffLlamaPreTrainedModel(TFPreTrainedModel):
    """What all DiffLlama classes share."""

    config_class: ClassVar[type[DiffLlamaConfig]] = DiffLlamaConfig
    base_model_prefix: ClassVar[str] = "model"
    names: ClassVar[ParameterNames] = NAMES
    config: DiffLlamaConfig

    @classmethod
    def check_implementation(cls, name: str) -> None:
        """Raise `InputError` unless `name` is an attention implementation of DiffLlama."""
        IMPLEMENTATIONS.check_name(name)

    def _may_pad(self, inputs: Mapping[str, Any], *, training: bool) -> bool:
        return self.config.rotary_table().limit is None  # otherwise frequencies depend on the length

    def init_cache(self, batch_size: int, max_length: int) -> KeyValues:
        """An empty cache of a fixed size for incremental decoding.

        Args:
            batch_size: B.
            max_length: Number of tokens that fit, T.

        Returns:
            L × (key, value) of zeros, (B, K, T, D), to be passed as `past_key_values` together with `cache_position`,
            the places of the new tokens; each call returns it filled further.

        Example:
            >>> import numpy as np
            >>> from longspan import DiffLlamaConfig, TFDiffLlamaForCausalLM
            >>> config = DiffLlamaConfig(
            ...     vocab_size=100, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1
            ... )
            >>> model = TFDiffLlamaForCausalLM(config)
            >>> cache = model.init_cache(batch_size=1, max_length=8)
            >>> places = np.arange(3)
            >>> cache = model(np.array([[1, 5]]), past_key_values=cache, cache_position=places[:2]).past_key_values
            >>> tuple(model(np.array([[7]]), past_key_values=cache, cache_position=places[2:]).logits.shape)
            (1, 1, 100)
        """
        base: Any = self.get_base_model()
        attentions = [layer.self_attn for layer in base.layers_]
        shapes = [(batch_size, part.num_kv_heads, max_length, part.head_dim) for part in attentions]
        return tuple((ops.zeros(shape, self.compute_dtype), ops.zeros(shape, self.compute_dtype)) for shape in shapes)


@register
class TFDiffLlamaModel(TFDiffLlamaPreTrainedModel):
    """DiffLlama without a head: a causal decoder that returns hidden states.

    Args:
        config: Settings; the weights are random.
        **kwargs: `name`, `dtype`, `trainable`.

    Example:
        >>> import numpy as np
        >>> from longspan import DiffLlamaConfig, TFDiffLlamaModel
        >>> config = DiffLlamaConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1)
        >>> output = TFDiffLlamaModel(config)(np.array([[1, 15043, 3186]]), output_attentions=True)
        >>> tuple(output.last_hidden_state.shape), tuple(output.attentions[0].shape)
        ((1, 3, 32), (1, 4, 3, 3))
    """

    def __init__(self, config: DiffLlamaConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        policy, padding = self.dtype_policy, config.pad_token_id
        self.embed_tokens = embedding(
            config.vocab_size,
            config.hidden_size,
            stddev=config.initializer_range,
            dtype=policy,
            name="embed_tokens",
            padding_index=padding,
        )
        # Keras keeps the name `layers` for itself
        self.layers_ = [
            DiffLlamaDecoderLayer(config, layer_index=index, dtype=policy, name=f"layers_{index}")
            for index in range(config.num_hidden_layers)
        ]
        self.norm = DiffLlamaRMSNorm(config, dtype=policy, name="norm")
        self.build()
        self._prune_heads(config.pruned_heads)

    def get_input_embeddings(self) -> keras.layers.Embedding:
        """The token embeddings."""
        return self.embed_tokens

    def set_input_embeddings(self, value: keras.layers.Embedding) -> None:
        """Replace the token embeddings by others that are built."""
        replace_layer(self, "embed_tokens", value)

    def _prune_heads(self, heads_to_prune: Mapping[int, list[int]]) -> None:
        for index in heads_to_prune:
            if not 0 <= index < len(self.layers_):
                raise InputError(f"layers to prune must lie in [0, {len(self.layers_)}). Received: {index}")
        for index, heads in heads_to_prune.items():
            self.layers_[index].self_attn.prune_heads(heads)

    @unpack_inputs
    def call(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KeyValues | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: Tensor | None = None,
        return_dict: bool | None = None,
        training: bool | None = False,
        *,
        output_differential_attentions: bool = False,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: Token ids, (B, S); or all inputs, as list, tuple or dict. Exactly one of ids and `inputs_embeds`
                is given.
            attention_mask: 1 for real tokens, 0 for padding, (B, S); with a cache (B, past + S), with one of a fixed
                size for the tokens up to the new ones or for all that fit. States at padding are unspecified.
            position_ids: Position of each token, (B, S) or (1, S); default `cache_position`, or on from the cache.
                Without a mask and a cache, positions that do not go up by one start a new document, which sees only
                itself.
            past_key_values: Keys and values of earlier tokens, L × (key, value) of (B, K, past, D), which the returned
                ones continue; or a cache of a fixed size, made by `init_cache`, with `cache_position`.
            inputs_embeds: Embedded tokens, (B, S, H).
            use_cache: Return keys and values; default as configured, but not in training.
            output_attentions: Return the softmax maps before the subtraction, L × (B, A, S, T).
            output_hidden_states: Return hidden states, (L + 1) × (B, S, H): the embeddings, the output of all but the
                last layer, and the normed output of the last.
            cache_position: Places of the tokens in a cache of a fixed size, one after the other, (S,). They are written
                there, and see what lies at or before them.
            return_dict: Return a `ModelOutput` rather than a tuple. Default as configured; a TensorFlow graph always
                returns a `ModelOutput` unless False is passed.
            training: Apply dropout.
            output_differential_attentions: Return A1 − λ·A2 of each pair of maps, L × (B, A/2, S, T).

        Returns:
            `TFDiffLlamaModelOutput`.

        Raises:
            InputError: shapes disagree, an id is out of range, or the cache does not fit.
        """
        config = self.config
        shape = input_shape(input_ids, inputs_embeds)
        assertions = check_input(input_ids, "input_ids", config, batch=shape[0], tokens=shape[1])
        if past_key_values is not None and len(past_key_values) != config.num_hidden_layers:
            raise InputError(
                f"past_key_values must hold one entry for each of the {config.num_hidden_layers} layers. "
                f"Received: {len(past_key_values)}"
            )
        show_maps = resolve(output_attentions, config.output_attentions)
        plan = make_plan(
            config,
            shape=shape,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache_position=cache_position,
            past_key_values=past_key_values,
            dtype=self.dtype_policy.compute_dtype,
            output_weights=show_maps or output_differential_attentions,
        )
        with after(assertions):
            hidden_states = self._embed(input_ids, inputs_embeds, None if plan.write_at is not None else attention_mask)
        states, maps, presents = [hidden_states], [], []
        for layer, past in zip(self.layers_, past_key_values or [None] * len(self.layers_), strict=True):
            hidden_states, weights, present = layer(hidden_states, plan=plan, past=past, training=training)
            states.append(hidden_states)
            maps.append(weights)
            presents.append(present)
        states[-1] = self.norm(states[-1])
        output = TFDiffLlamaModelOutput(
            last_hidden_state=states[-1],
            past_key_values=tuple(presents) if resolve(use_cache, config.use_cache and not training) else None,
            hidden_states=tuple(states) if resolve(output_hidden_states, config.output_hidden_states) else None,
            attentions=tuple(item.weights for item in maps) if show_maps else None,
            differential_attentions=tuple(item.differential_weights for item in maps)
            if output_differential_attentions
            else None,
        )
        return self.finish(output, return_dict)

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, mask: Tensor | None) -> Tensor:
        """(B, S, H) in the dtype of the computation."""
        if inputs_embeds is None:
            return look_up(self.embed_tokens, input_ids, padding_index=self.config.pad_token_id)
        return drop_unseen_faults(ops.cast(inputs_embeds, self.dtype_policy.compute_dtype), mask)
