"""MEGA without a head (Ma et al., 2022, https://arxiv.org/abs/2209.10655) in PyTorch.

Axes: B batch, S tokens, D width, T encoder tokens, L layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from longspan.checkpoints.names import ParameterNames
from longspan.configuration import require
from longspan.errors import InputError
from longspan.models.mega.config import MegaConfig
from longspan.models.mega.names import NAMES
from longspan.models.mega.torch_cache import MegaCache, read_cache
from longspan.models.mega.torch_layers import (
    MegaBlock,
    MegaLayerExtras,
    MegaMovingAverageGatedAttention,
    MegaMultiDimensionDampedEma,
    MegaPlan,
    MegaRotaryRelativePositionalBias,
    MegaSimpleRelativePositionalBias,
    make_cache,
)
from longspan.models.mega.torch_masks import as_mask, first_real_tokens, in_open_chunk, split_mask
from longspan.models.mega.torch_norms import MegaRMSNorm, MegaScaleNorm
from longspan.nn.torch.apply import lookup
from longspan.nn.torch.base import CheckpointedLayers, PreTrainedModel
from longspan.nn.torch.cache import Cache, LegacyCache
from longspan.nn.torch.checks import check_ids, check_masked, input_shape
from longspan.nn.torch.heads import Pooler
from longspan.nn.torch.masks import finite_at_padding
from longspan.nn.torch.outputs import BaseModelOutputWithPoolingAndCrossAttentions, Tensors, finish, resolve
from longspan.ops.fast_paths import fast_path
from longspan.ops.torch.gated_attention import GATED_ATTENTION, rotary_table
from longspan.ops.torch.modes import is_traced
from longspan.shapes import check_shape


class MegaEmbeddings(nn.Module):
    """Word embeddings, with token type embeddings if configured."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.use_token_types = config.add_token_type_embeddings
        if self.use_token_types:
            self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)

    def forward(
        self, *, input_ids: Tensor | None, inputs_embeds: Tensor | None, token_type_ids: Tensor | None
    ) -> Tensor:
        """Embed ids (B, S) or embeddings (B, S, D) into (B, S, D)."""
        embeddings = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if not self.use_token_types:
            return embeddings
        return embeddings + lookup(self.token_type_embeddings, token_type_ids, like=embeddings)


class MegaPreTrainedModel(PreTrainedModel):
    """What all MEGA classes share."""

    config_class: ClassVar[type[MegaConfig]] = MegaConfig
    base_model_prefix: ClassVar[str] = "mega"
    names: ClassVar[ParameterNames] = NAMES
    input_embeddings: ClassVar[str] = "embedding_layer.word_embeddings"
    config: MegaConfig

    def __init__(self, config: MegaConfig) -> None:
        super().__init__(config)
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

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        match module:
            case MegaMultiDimensionDampedEma():
                self._init_ema(module)
            case MegaSimpleRelativePositionalBias():
                module.rel_pos_bias.normal_(std=std)
            case MegaRotaryRelativePositionalBias():
                module.alpha.normal_(std=std)
                module.b_param.normal_(std=std)
            case MegaMovingAverageGatedAttention():
                module.qk_weight.normal_(std=std)
                module.qk_bias.zero_()
            case MegaScaleNorm() if module.scalar is not None:
                module.scalar.fill_(1.0)
            case MegaRMSNorm() if module.weight is not None:
                module.weight.fill_(1.0)
            case nn.LayerNorm() | nn.BatchNorm1d() | nn.SyncBatchNorm():
                module.reset_parameters()
            case nn.Linear() | nn.Embedding():
                _init_linear_or_embedding(module, std)

    def _init_ema(self, module: MegaMultiDimensionDampedEma) -> None:
        config = self.config
        module.damping_factor.normal_(std=config.ema_delta_alpha_range)
        module.decay_factor.normal_(std=config.ema_delta_alpha_range)
        # alternating signs keep the sum of the averages small at first
        module.ema_expansion_matrix.normal_(mean=1.0, std=config.ema_beta_range)
        module.ema_expansion_matrix[:, 1::2] -= 2.0
        module.kernel_projection_matrix.normal_(std=config.ema_gamma_omega_range)
        module.residual_weight.normal_(std=config.ema_gamma_omega_range)

    def check_implementation(self, name: str) -> None:
        """Raise `InputError` unless `name` is an attention implementation of MEGA."""
        GATED_ATTENTION.check_name(name)

    def _tensors_to_save(self, state_dict: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """With a placeholder that the reference stores beside each rotary bias, and draws the bias anew without."""
        tensors = super()._tensors_to_save(state_dict)
        placeholders = [name for name in tensors if name.endswith("rel_pos_bias.alpha")]
        for name in placeholders:
            tensors[name.removesuffix("alpha") + "_float_tensor"] = tensors[name].new_zeros(1)
        return tensors


def _init_linear_or_embedding(module: nn.Linear | nn.Embedding, std: float) -> None:
    module.weight.normal_(std=std)
    if isinstance(module, nn.Embedding):
        if module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()
    elif module.bias is not None:
        module.bias.zero_()


def _present(tensors: Iterable[Tensor | None]) -> Tensors | None:
    """The tensors that are there, or None if there are none."""
    return tuple(tensor for tensor in tensors if tensor is not None) or None


class MegaModel(MegaPreTrainedModel, CheckpointedLayers):
    """MEGA without a head: an encoder, or a decoder if `config.is_decoder`.

    A decoder attends causally and may keep a cache; with `config.add_cross_attention` it also attends to
    `encoder_hidden_states`. With `config.use_chunking`, time and memory are linear in the length.

    Args:
        config: Settings; the weights are random.
        add_pooling_layer: Have the pooler, which gives `pooler_output`.

    Raises:
        ConfigError: a decoder is bidirectional, or a model with cross-attention is no decoder.

    Example:
        >>> import torch
        >>> from longspan import MegaConfig, MegaModel
        >>> model = MegaModel(MegaConfig(num_hidden_layers=1, use_chunking=True, chunk_size=4))
        >>> output = model(torch.tensor([[0, 3141, 6, 127, 2335, 2]]))
        >>> output.last_hidden_state.shape, output.pooler_output.shape
        (torch.Size([1, 6, 128]), torch.Size([1, 128]))
    """

    def __init__(self, config: MegaConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embedding_layer = MegaEmbeddings(config)
        self.layers = nn.ModuleList([MegaBlock(config) for _ in range(config.num_hidden_layers)])
        self.pooler = Pooler(hidden_size=config.hidden_size) if add_pooling_layer else None
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | LegacyCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: Token ids, (B, S), of any length. Exactly one of this and `inputs_embeds` is given.
            attention_mask: 1 for real tokens, 0 for padding, (B, S); with a cache (B, 1), or (B, past + 1).
            token_type_ids: Type of each token, (B, S), default 0; not read without `config.add_token_type_embeddings`.
            inputs_embeds: Embedded tokens, (B, S, D).
            encoder_hidden_states: States that cross-attention reads, (B, T, D).
            encoder_attention_mask: Their padding mask, (B, T).
            past_key_values: Cache of earlier tokens, a `MegaCache` or the older nested tuples; S is 1 then. The same
                format is returned.
            use_cache: Return a cache (decoder only); default as configured. A graph of `torch.export` has none.
            output_attentions: Return attention weights, L × (B, 1, S, S), or with chunks of C tokens
                L × (B, chunks, C, C), where chunks begin at the first real token of a row and the last is padded.
            output_hidden_states: Return hidden states, (L + 1) × (B, S, D).
            return_dict: Return a `ModelOutput` rather than a tuple.

        Returns:
            `BaseModelOutputWithPoolingAndCrossAttentions`; its `cross_attentions` are L × (B, S, T).

        Raises:
            InputError: shapes disagree, an id is out of range, the cache does not fit, the encoder's states are
                missing or not expected, or the input is longer than a `"simple"` bias.
        """
        config = self.config
        batch, length = input_shape(input_ids, inputs_embeds)
        inputs_embeds = finite_at_padding(inputs_embeds, attention_mask)
        if self.context_shard is not None:
            self._check_shared((batch, length), attention_mask, past_key_values, output_attentions)
        cache = read_cache(past_key_values, config, new_tokens=length, mask=attention_mask)
        self._check_inputs(batch, length, input_ids, token_type_ids, encoder_hidden_states, cache)
        if cache is None:  # a row that has ended goes on with padding
            check_masked(input_ids, attention_mask, config.pad_token_id)
        plan = self._make_plan(
            (batch, length),
            cache,
            attention_mask,
            encoder_hidden_states,
            encoder_attention_mask,
            needs_weights=resolve(output_attentions, config.output_attentions),
            use_cache=self._resolve_cache(use_cache),
        )
        embedded = self.embedding_layer(input_ids=input_ids, inputs_embeds=inputs_embeds, token_type_ids=token_type_ids)
        keeps_states = resolve(output_hidden_states, config.output_hidden_states)
        states, extras = self._run_layers(
            embedded, plan, cache, keeps_states=keeps_states, may_overwrite=embedded is not inputs_embeds
        )
        next_cache: Any = None
        if plan.use_cache:
            next_cache = make_cache([layer.cache for layer in extras], cache, plan, length)
            next_cache = tuple(next_cache) if isinstance(past_key_values, tuple | list) else next_cache
        output = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=states[-1],
            pooler_output=None if self.pooler is None else self.pooler(states[-1]),
            hidden_states=tuple(states) if keeps_states else None,
            past_key_values=next_cache,
            attentions=_present(layer.weights for layer in extras),
            cross_attentions=_present(layer.cross_weights for layer in extras),
        )
        return finish(output, resolve(return_dict, config.return_dict))

    def _resolve_cache(self, use_cache: bool | None) -> bool:
        if torch.compiler.is_exporting():
            if use_cache:
                raise InputError("an exported graph keeps no cache. Received: use_cache=True")
            return False
        if self.context_shard is not None:  # whose tokens stand in several processes
            return False
        return self.resolve_use_cache(self.config.is_decoder and resolve(use_cache, self.config.use_cache))

    def _check_shared(
        self,
        shape: tuple[int, int],
        attention_mask: Tensor | None,
        past_key_values: Any,
        output_attentions: bool | None,
    ) -> None:
        """Refuse a call that processes cannot share."""
        config, shard = self.config, self.context_shard
        assert shard is not None
        if past_key_values is not None:
            raise InputError("a model that shares a sequence reads no cache. Received: past_key_values")
        if self.training and "batch" in config.normalization_type:
            raise InputError(
                "in training, a model that shares a sequence normalises tokens by themselves. Received: "
                f"normalization_type={config.normalization_type!r}"
            )
        if self.training and config.use_feature_dropout:
            raise InputError(
                "dropout of whole features would differ between the shares of a sequence. Received: "
                "use_feature_dropout=True"
            )
        shard.check_call(
            shape,
            self.device,
            needs_weights=resolve(output_attentions, config.output_attentions),
            reach=0
            if config.truncation is None or config.truncation >= shape[1] * shard.size
            else config.truncation - 1,
            unit=config.chunk_size if config.use_chunking else 1,
        )
        if config.use_chunking:
            mask = torch.ones(shape, device=self.device) if attention_mask is None else attention_mask
            begins_late = (mask[:, :1] == 0).any().to(torch.uint8) * (shard.rank == 0)
            if bool(shard.highest(begins_late)):
                raise InputError(
                    "the chunks of a model that shares a sequence begin at its first token, which must be no padding. "
                    "Received: a row that is padded on the left"
                )

    def _run_layers(
        self, hidden_states: Tensor, plan: MegaPlan, cache: MegaCache | None, *, keeps_states: bool, may_overwrite: bool
    ) -> tuple[list[Tensor], list[MegaLayerExtras]]:
        """The states after the embeddings and each layer, or only the last ones, and what the layers return besides."""
        states, extras = [hidden_states], []
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, MegaBlock)
            in_spans = None
            may_split = cache is None and plan.chunk_size is not None and plan.shard is None
            if may_split and not is_traced(hidden_states):
                in_spans = fast_path("mega_spans.run_layer_in_spans")
            result = None
            if in_spans is not None:
                result = in_spans(layer, hidden_states, plan, overwrite=may_overwrite and not keeps_states)
            if result is None:
                layer_cache = None if cache is None else cache.layers[index]
                result = self.run_layer(layer, hidden_states, plan=plan, cache=layer_cache)
            hidden_states, extra = result
            may_overwrite = True
            states = [*states, hidden_states] if keeps_states else [hidden_states]
            extras.append(extra)
        return states, extras

    def _check_inputs(
        self,
        batch: int,
        length: int,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        encoder_hidden_states: Tensor | None,
        cache: MegaCache | None,
    ) -> None:
        config = self.config
        if length == 0:
            raise InputError("the input must have at least one token. Received: 0 tokens")
        if input_ids is not None:
            check_ids(input_ids, config.vocab_size, name="input_ids", limit_name="vocab_size")
        if token_type_ids is not None and config.add_token_type_embeddings:  # else they are not read
            check_shape(token_type_ids, (batch, length), name="token_type_ids", axes="(batch, tokens)")
            check_ids(token_type_ids, config.type_vocab_size, name="token_type_ids", limit_name="type_vocab_size")
        if config.add_cross_attention and encoder_hidden_states is None and cache is None:
            raise InputError("a model with cross-attention needs encoder_hidden_states. Received: None")
        if encoder_hidden_states is not None and not config.add_cross_attention:
            raise InputError(
                "encoder_hidden_states needs config.is_decoder=True and config.add_cross_attention=True. "
                f"Received: is_decoder={config.is_decoder}, add_cross_attention={config.add_cross_attention}"
            )

    def _make_plan(
        self,
        shape: tuple[int, int],
        cache: MegaCache | None,
        attention_mask: Tensor | None,
        encoder_hidden_states: Tensor | None,
        encoder_attention_mask: Tensor | None,
        *,
        needs_weights: bool,
        use_cache: bool,
    ) -> MegaPlan:
        config, shard = self.config, self.context_shard
        batch, length = shape
        past = 0 if cache is None else cache.num_tokens
        if shard is not None:
            past = shard.start(length)
        mask, held_mask = split_mask(attention_mask, shape, cache)
        source = self._source_length(batch, encoder_hidden_states, cache)
        starts = None
        if config.use_chunking:
            starts = None if shard is not None else first_real_tokens(mask, cache, length)
            if cache is not None:
                held = cache.layers[0].key.shape[1]
                in_chunk = in_open_chunk(cache.starts, config.chunk_size, read=past, held=held)
                if in_chunk is not None:
                    held_mask = in_chunk if held_mask is None else held_mask & in_chunk
        return MegaPlan(
            implementation=config.attn_implementation,
            causal=config.is_decoder,
            chunk_size=config.chunk_size if config.use_chunking else None,
            mask=mask,
            held_mask=held_mask,
            starts=starts,
            table=self._rotary_table(self._self_positions(length, cache)),
            cross_table=None if source is None else self._rotary_table(torch.sym_max(past + length, source)),
            encoder_hidden_states=encoder_hidden_states,
            encoder_mask=None
            if source is None
            else as_mask(encoder_attention_mask, (batch, source), "encoder_attention_mask"),
            offset=past,
            needs_weights=needs_weights,
            use_cache=use_cache,
            shard=shard,
        )

    def _self_positions(self, length: int, cache: MegaCache | None) -> int:
        """Positions that the relative bias of self-attention must reach."""
        positions = length if cache is None else cache.layers[0].key.shape[1] + length
        if self.context_shard is not None:
            positions = length * self.context_shard.size
        if not self.config.use_chunking:
            return positions
        # an exported graph pads any length to whole chunks
        return self.config.chunk_size if torch.compiler.is_exporting() else min(self.config.chunk_size, positions)

    def _source_length(self, batch: int, encoder_hidden_states: Tensor | None, cache: MegaCache | None) -> int | None:
        """Number of encoder tokens, or None without cross-attention."""
        if not self.config.add_cross_attention:
            return None
        if encoder_hidden_states is None:
            assert cache is not None
            cross_key = cache.layers[0].cross_key
            assert cross_key is not None
            return cross_key.shape[1]
        source = encoder_hidden_states.shape[1]
        expected = (batch, source, self.config.hidden_size)
        check_shape(encoder_hidden_states, expected, name="encoder_hidden_states", axes="(batch, tokens, width)")
        return source

    def _rotary_table(self, positions: int) -> tuple[Tensor, Tensor] | None:
        """Angles up to a number of positions; a simple bias has none and checks its reach."""
        config = self.config
        if config.relative_positional_bias == "rotary":
            return rotary_table(positions, config.shared_representation_size, device=self.device)
        if positions > config.bias_positions:
            name = "max_positions" if config.chunk_size < 0 else "chunk_size"
            raise InputError(
                f"relative_positional_bias='simple' reaches {name}={config.bias_positions} tokens. Received: "
                f"{positions} tokens. Truncate the input, use chunks, or use relative_positional_bias='rotary', which "
                "has no limit"
            )
        return None
