"""DiffLlama in PyTorch (Ye et al., 2024, https://arxiv.org/abs/2410.05258): the backbone.

Axes: B batch, S tokens, T keys, H width, A softmax maps, K key/value heads, L layers.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from longspan.checkpoints.names import ParameterNames
from longspan.models.diffllama.config import DiffLlamaConfig
from longspan.models.diffllama.names import NAMES
from longspan.models.diffllama.torch_layers import (
    LAMBDA_NAMES,
    AttentionPlan,
    DiffLlamaAttention,
    DiffLlamaDecoderLayer,
    DiffLlamaRMSNorm,
    DiffLlamaRotaryEmbedding,
    make_cache,
    make_key_mask,
    make_positions,
)
from longspan.nn.torch.base import CheckpointedLayers, PreTrainedModel
from longspan.nn.torch.cache import Cache, LegacyCache
from longspan.nn.torch.checks import check_ids, input_shape
from longspan.nn.torch.masks import finite_at_padding
from longspan.nn.torch.outputs import BaseModelOutputWithPast, Tensors, finish, model_output, resolve
from longspan.ops.torch.differential import IMPLEMENTATIONS


@model_output
class DiffLlamaModelOutput(BaseModelOutputWithPast):
    """`differential_attentions`: A1 − λ·A2 of each layer, L × (B, A/2, S, T)."""

    differential_attentions: Tensors | None = None


class DiffLlamaPreTrainedModel(PreTrainedModel):
    """What all DiffLlama classes share."""

    config_class: ClassVar[type[DiffLlamaConfig]] = DiffLlamaConfig
    base_model_prefix: ClassVar[str] = "model"
    names: ClassVar[ParameterNames] = NAMES
    input_embeddings: ClassVar[str] = "embed_tokens"
    attention_in: ClassVar[tuple[str, str] | None] = ("layers", "self_attn")
    config: DiffLlamaConfig

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DiffLlamaRMSNorm):
            module.weight.data.fill_(1.0)
        if isinstance(module, DiffLlamaAttention):
            for name in LAMBDA_NAMES:
                getattr(module, name).data.normal_(mean=0.0, std=self.config.lambda_std_dev)

    def check_implementation(self, name: str) -> None:
        """Raise `InputError` unless `name` is an attention implementation of DiffLlama."""
        IMPLEMENTATIONS.check_name(name)


class DiffLlamaModel(DiffLlamaPreTrainedModel, CheckpointedLayers):
    """DiffLlama without a head: a causal decoder that returns hidden states.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import DiffLlamaConfig, DiffLlamaModel
        >>> config = DiffLlamaConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1)
        >>> output = DiffLlamaModel(config)(torch.tensor([[1, 15043, 3186]]), output_attentions=True)
        >>> output.last_hidden_state.shape, output.attentions[0].shape
        (torch.Size([1, 3, 32]), torch.Size([1, 4, 3, 3]))
    """

    def __init__(self, config: DiffLlamaConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.layers = nn.ModuleList(
            [DiffLlamaDecoderLayer(config, layer_index=index) for index in range(config.num_hidden_layers)]
        )
        self.norm = DiffLlamaRMSNorm(hidden_size=config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = DiffLlamaRotaryEmbedding(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | LegacyCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: Tensor | None = None,
        *,
        output_differential_attentions: bool = False,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: Token ids, (B, S). Exactly one of this and `inputs_embeds` is given.
            attention_mask: 1 for real tokens, 0 for padding, (B, S); with a cache (B, past + S). States at padding
                are unspecified.
            position_ids: Position of each token, (B, S) or (1, S); default `cache_position`. Without a mask and a
                cache, positions that do not go up by one start a new document, which sees only itself.
            past_key_values: Cache of earlier tokens, or the older nested tuples, L × (key, value) of (B, K, past, D).
                The same format is returned.
            inputs_embeds: Embedded tokens, (B, S, H).
            use_cache: Return a cache; default as configured.
            output_attentions: Return the softmax maps before the subtraction, L × (B, A, S, T).
            output_hidden_states: Return hidden states, (L + 1) × (B, S, H): the embeddings, the output of all but the
                last layer, and the normed output of the last.
            cache_position: Positions of the input tokens in the sequence, (S,), whatever the padding; default: after
                those in the cache.
            output_differential_attentions: Return A1 − λ·A2 of each pair of maps, L × (B, A/2, S, T).
            return_dict: Return a `ModelOutput` rather than a tuple.

        Returns:
            `DiffLlamaModelOutput`.

        Raises:
            InputError: shapes disagree, an id is out of range, or the cache does not fit.
        """
        config = self.config
        batch, length = input_shape(input_ids, inputs_embeds)
        inputs_embeds = finite_at_padding(inputs_embeds, attention_mask)
        if input_ids is not None:
            check_ids(input_ids, config.vocab_size, name="input_ids", limit_name="vocab_size")
        use_cache = self._resolve_use_cache(use_cache)
        cache = make_cache(past_key_values, use_cache=use_cache, config=config)
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        positions = make_positions(
            batch=batch,
            length=length,
            device=hidden_states.device,
            position_ids=position_ids,
            cache_position=cache_position,
            attention_mask=attention_mask,
            cache=cache,
        )
        show_maps = resolve(output_attentions, config.output_attentions)
        show_states = resolve(output_hidden_states, config.output_hidden_states)
        cos, sin = self.rotary_emb(positions.position_ids, hidden_states.dtype)
        plan = AttentionPlan(
            cos=cos,
            sin=sin,
            position=positions.query_position,
            key_mask=make_key_mask(attention_mask, batch=batch, length=length, cache=cache),
            segment_ids=positions.segment_ids,
            implementation=config.attn_implementation,
            output_weights=show_maps or output_differential_attentions,
        )
        states, maps, differences = [], [], []
        for layer in self.layers:
            if show_states:
                states.append(hidden_states)
            hidden_states, weights, difference = self.run_layer(
                layer, hidden_states, plan=plan, cache=cache, cache_position=positions.cache_position
            )
            maps.append(weights)
            differences.append(difference)
        hidden_states = self.norm(hidden_states)
        legacy = isinstance(past_key_values, tuple | list)
        output = DiffLlamaModelOutput(
            last_hidden_state=hidden_states,
            past_key_values=None if not use_cache or cache is None else cache.to_legacy_cache() if legacy else cache,
            hidden_states=(*states, hidden_states) if show_states else None,
            attentions=tuple(maps) if show_maps else None,
            differential_attentions=tuple(differences) if output_differential_attentions else None,
        )
        return finish(output, resolve(return_dict, config.return_dict))

    def _resolve_use_cache(self, use_cache: bool | None) -> bool:
        """An explicit wish is refused aloud while activations are recomputed, the configured default silently."""
        if use_cache is None:
            return self.config.use_cache and not (self.checkpoint_arguments is not None and self.training)
        return self.resolve_use_cache(use_cache)
