"""The layers of MEGA (Ma et al., 2022, https://arxiv.org/abs/2209.10655) in PyTorch.

Axes: B batch, S tokens, D width, Z width of queries and keys, V width of values, C tokens of a chunk, T encoder tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.models.mega.config import MegaConfig
from longspan.models.mega.torch_cache import MegaCache, MegaLayerCache
from longspan.models.mega.torch_masks import append_mask
from longspan.models.mega.torch_norms import MegaSequenceNorm
from longspan.nn.torch.activations import get_activation
from longspan.nn.torch.apply import may_overwrite, project
from longspan.ops.torch.blocks import count_blocks, from_blocks, to_blocks
from longspan.ops.torch.context import ContextShard, with_neighbours
from longspan.ops.torch.damped_ema import (
    EmaBlocks,
    backward_state_before,
    carried_state,
    damped_ema,
    ema_blocks,
    forward_state_after,
    truncated_damped_ema,
)
from longspan.ops.torch.dropout import dropout
from longspan.ops.torch.ema_kernels import EmaCoefficients, damped_ema_step, ema_coefficients, read_inputs
from longspan.ops.torch.gated_attention import RotaryBias, ToeplitzBias, gated_attention, rotate


@dataclass(frozen=True)
class MegaPlan:
    """What all layers need to know about a call; made once.

    Attributes:
        implementation: Of the attention.
        causal: A token sees itself and those before it.
        chunk_size: Tokens of a chunk, or None for attention over all tokens.
        mask: Which tokens are real, (B, S); None for all.
        held_mask: Which of the tokens that a cache holds are real and of the chunk that goes on, (B, L); None for all.
        starts: First real token of each row, (B,), from which its chunks are counted; None for 0.
        table: Angles of the rotary bias in self-attention; None for the simple bias.
        cross_table: The same in cross-attention.
        encoder_hidden_states: (B, T, D), if the layers attend to an encoder.
        encoder_mask: Which of those are real, (B, T); None for all.
        offset: Tokens read before this call.
        needs_weights: Return attention weights.
        use_cache: Return what the next token needs.
        shard: The share of the sequence that this process holds; None for all of it.
    """

    implementation: str
    causal: bool
    chunk_size: int | None
    mask: Tensor | None
    held_mask: Tensor | None
    starts: Tensor | None
    table: tuple[Tensor, Tensor] | None
    cross_table: tuple[Tensor, Tensor] | None
    encoder_hidden_states: Tensor | None
    encoder_mask: Tensor | None
    offset: int
    needs_weights: bool
    use_cache: bool
    shard: ContextShard | None = None


def rotate_rows(tensor: Tensor, starts: Tensor, *, back: bool = False) -> Tensor:
    """Move token `starts` of each row to its beginning, and what stood before it to the end; or the way `back`.

    Args:
        tensor: (B, S) or (B, S, D).
        starts: (B,).
        back: Undo it.
    """
    length = tensor.shape[1]
    shift = -starts if back else starts
    places = torch.remainder(torch.arange(length, device=tensor.device) + shift.unsqueeze(1), length)
    if tensor.dim() == 3:
        places = places.unsqueeze(-1).expand(-1, -1, tensor.shape[-1])
    return tensor.gather(1, places)


def held_keys(key: Tensor, value: Tensor, plan: MegaPlan) -> tuple[Tensor, Tensor]:
    """What the next token may see of the tokens so far: all, or those of the chunk that it continues."""
    if plan.chunk_size is None:
        return key, value
    if plan.starts is not None:  # each row may be at another place of its chunk
        unseen = max(key.shape[1] - (plan.chunk_size - 1), 0)
        return key[:, unseen:], value[:, unseen:]
    begun = key.shape[1] - key.shape[1] % plan.chunk_size
    return key[:, begun:], value[:, begun:]


def make_cache(
    layers: Sequence[MegaLayerCache | None], cache: MegaCache | None, plan: MegaPlan, length: int
) -> MegaCache:
    """Gather what the layers keep of one call.

    Args:
        layers: What each layer keeps.
        cache: What earlier tokens left.
        plan: What the layers shared.
        length: New tokens S.
    """
    kept = [layer for layer in layers if layer is not None]
    mask = plan.mask
    if cache is not None:
        mask = append_mask(plan.held_mask, plan.mask, cache.layers[0].key.shape[1])
    if mask is not None:
        mask = mask[:, mask.shape[1] - kept[0].key.shape[1] :]
    return MegaCache(kept, num_tokens=plan.offset + length, mask=mask, starts=plan.starts)


class MegaLayerExtras(NamedTuple):
    """What a layer returns besides its states: weights of both attentions, and its cache; None where not asked for."""

    weights: Tensor | None = None
    cross_weights: Tensor | None = None
    cache: MegaLayerCache | None = None


def silu(x: Tensor, *, overwrite: bool) -> Tensor:
    """Apply silu, in the place of x where that is allowed."""
    return F.silu(x, inplace=overwrite)


def multiply(x: Tensor, y: Tensor, *, overwrite: bool) -> Tensor:
    """X ⊙ y, in the place of x where that is allowed."""
    return x.mul_(y) if overwrite else x * y


def add(x: Tensor, y: Tensor, *, overwrite: bool) -> Tensor:
    """X + y, in the place of x where that is allowed."""
    return x.add_(y) if overwrite else x + y


class MegaDropout(nn.Module):
    """Dropout of single numbers, or of whole features of a sequence.

    Args:
        probability: With which a number or feature is dropped.
        featurewise: Drop features.
    """

    def __init__(self, probability: float, *, featurewise: bool) -> None:
        super().__init__()
        self.probability = probability
        self.featurewise = featurewise

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        if not self.featurewise or not self.training or self.probability == 0.0:
            return dropout(x, self.probability, training=self.training)
        return x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), p=self.probability)


class MegaSimpleRelativePositionalBias(nn.Module):
    """One learned number per distance."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.rel_pos_bias = nn.Parameter(torch.empty(2 * config.max_positions - 1))
        self.centre = config.bias_positions - 1  # the reference's place of distance 0, also where chunks are shorter

    def forward(self, table: tuple[Tensor, Tensor] | None) -> ToeplitzBias:
        """The bias; it needs no table."""
        return ToeplitzBias(self.rel_pos_bias, self.centre)


class MegaRotaryRelativePositionalBias(nn.Module):
    """b_ij = ⟨R_i α, R_j β⟩ with learned α and β."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(1, config.shared_representation_size))
        self.b_param = nn.Parameter(torch.empty(1, config.shared_representation_size))

    def forward(self, table: tuple[Tensor, Tensor] | None) -> RotaryBias:
        """Rotate α and β by the angles of a table."""
        assert table is not None
        return RotaryBias(rotate(self.alpha, table), rotate(self.b_param, table))


def make_bias(config: MegaConfig) -> MegaRotaryRelativePositionalBias | MegaSimpleRelativePositionalBias:
    """The configured relative bias."""
    simple = config.relative_positional_bias == "simple"
    return MegaSimpleRelativePositionalBias(config) if simple else MegaRotaryRelativePositionalBias(config)


class EmaFlow(NamedTuple):
    """What reaches a part of a sequence from its neighbours, and the matrices that all parts share.

    Attributes:
        blocks: Matrices of the EMA.
        state: From the tokens before, (B, D, N), or None.
        backward_state: From the tokens behind, (B, D, N), or None.
    """

    blocks: EmaBlocks
    state: Tensor | None
    backward_state: Tensor | None


class MegaMultiDimensionDampedEma(nn.Module):
    """silu(EMA(x) + ω ⊙ x): the multi-dimensional damped average over the tokens, with a residual (eq. 1-3, 5).

    h_t = α ⊙ β x_t + (1 − α ⊙ δ) ⊙ h_{t−1},  y_t = ηᵀ h_t,  in both directions if `config.bidirectional`.
    """

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.bidirectional, self.truncation = config.bidirectional, config.truncation
        channels = config.hidden_size * (2 if config.bidirectional else 1)
        size = config.ema_projection_size
        self.damping_factor = nn.Parameter(torch.empty(channels, size, 1))  # logit of α
        self.decay_factor = nn.Parameter(torch.empty(channels, size, 1))  # logit of δ
        self.ema_expansion_matrix = nn.Parameter(torch.empty(channels, size, 1))  # β
        self.kernel_projection_matrix = nn.Parameter(torch.empty(channels, size))  # η
        self.residual_weight = nn.Parameter(torch.empty(config.hidden_size))  # ω

    def coefficients(self) -> tuple[EmaCoefficients, EmaCoefficients | None]:
        """Coefficients of the forward and, if there is one, of the backward direction."""
        both = ema_coefficients(
            damping_factor=self.damping_factor,
            decay_factor=self.decay_factor,
            expansion=self.ema_expansion_matrix,
            projection=self.kernel_projection_matrix,
        )
        return both.split() if self.bidirectional else (both, None)

    def blocks(self) -> EmaBlocks:
        """Matrices of the untruncated average."""
        return ema_blocks(*self.coefficients())

    def forward(
        self,
        inputs: Tensor,
        *,
        mask: Tensor | None,
        flow: EmaFlow | None = None,
        state: Tensor | None = None,
        return_state: bool = False,
        shard: ContextShard | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Average the tokens.

        Args:
            inputs: (B, S, D).
            mask: Which tokens are real, (B, S); others are read as 0.
            flow: For a part of a sequence, what comes from its neighbours.
            state: From earlier calls; then S is 1.
            return_state: Return the state after the last token.
            shard: The tokens are the share of a sequence that this process holds.

        Returns:
            (B, S, D), and the state or None.
        """
        truncates = self._truncates(inputs.shape[1] * (1 if shard is None else shard.size), return_state)
        if shard is not None and not truncates:
            flow = self._flow_between(inputs, mask, shard)
        if state is not None:
            token = inputs[:, 0] if mask is None else inputs[:, 0].masked_fill(~mask, 0.0)
            averaged, state = damped_ema_step(token, self.coefficients()[0], state, truncation=self.truncation)
            averaged = averaged.unsqueeze(1)
        elif flow is not None:
            averaged, state = damped_ema(
                inputs,
                flow.blocks,
                mask=mask,
                state=flow.state,
                backward_state=flow.backward_state,
                return_state=return_state,
            )
        elif truncates and shard is not None:
            averaged = self._truncated_over_border(inputs, mask, shard)
        elif truncates:
            assert self.truncation is not None
            averaged, state = truncated_damped_ema(
                inputs, *self.coefficients(), truncation=self.truncation, mask=mask, return_state=return_state
            )
        else:
            averaged, state = damped_ema(inputs, self.blocks(), mask=mask, return_state=return_state)
        residual, weight = inputs.to(averaged.dtype), self.residual_weight.to(averaged.dtype)
        overwrite = may_overwrite(self)
        if overwrite:
            summed = torch.addcmul(averaged, residual, weight, out=torch.empty_like(residual))
        else:
            summed = residual * weight + averaged  # in this order: the first decides the memory layout
        return silu(summed, overwrite=overwrite).to(inputs.dtype), state

    def _flow_between(self, inputs: Tensor, mask: Tensor | None, shard: ContextShard) -> EmaFlow:
        """What the other shares of a sequence hand to this one."""
        blocks, length = self.blocks(), inputs.shape[1]
        handed_on = [forward_state_after(inputs, blocks, mask=mask)]
        if blocks.backward is not None:
            handed_on.append(backward_state_before(inputs, blocks, mask=mask))
        states = shard.of_all(torch.stack(handed_on))  # (n, 1 or 2, B, D, N)
        state = carried_state(states[:, 0], blocks.forward.log_decay * length, shard.rank)
        if blocks.backward is None:
            return EmaFlow(blocks, state, None)
        behind = carried_state(states[:, 1].flip(0), blocks.backward.log_decay * length, shard.size - 1 - shard.rank)
        return EmaFlow(blocks, state, behind)

    def _truncated_over_border(self, inputs: Tensor, mask: Tensor | None, shard: ContextShard) -> Tensor:
        """The truncated average of a share: it sees no further than its inputs."""
        assert self.truncation is not None
        left = self.truncation - 1
        right = left if self.bidirectional else 0
        around = with_neighbours(read_inputs(inputs, mask, inputs.dtype), left, right, shard)
        averaged, _ = truncated_damped_ema(around, *self.coefficients(), truncation=self.truncation)
        return averaged.narrow(1, left, inputs.shape[1])

    def _truncates(self, length: int, return_state: bool) -> bool:
        if self.truncation is None:
            return False
        return torch.compiler.is_exporting() or return_state or self.truncation < length


class MegaMovingAverageGatedAttention(nn.Module):
    """Gated attention over averaged tokens (§3.2-3.3, eq. 6-14).

    With X the input and X' its damped average:

        Z = silu(X' W_z),  Q = κ_q ⊙ Z + μ_q,  K = κ_k ⊙ Z + μ_k,  V = act(X W_v)
        O = f(Q Kᵀ / τ + b) V,  γ = silu(X' W_γ),  φ = sigmoid(X' W_φ)
        Y = φ ⊙ act(X' W_h + (γ ⊙ O) U_h) + (1 − φ) ⊙ X
    """

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        width, values, shared = config.hidden_size, config.intermediate_size, config.shared_representation_size
        self.normalize_before = config.normalize_before_mega
        self.attention_activation = config.attention_activation
        self.attention_dropout = config.attention_probs_dropout_prob
        self.sizes = [width, shared + values, width]
        self.activation = get_activation(config.activation)
        self.norm = MegaSequenceNorm(config)
        self.ema_gate = MegaMultiDimensionDampedEma(config)
        self.v_proj = nn.Linear(width, values)
        self.mx_proj = nn.Linear(width, sum(self.sizes))
        self.h_proj = nn.Linear(values, width)
        self.qk_weight = nn.Parameter(torch.empty(2, shared))  # κ
        self.qk_bias = nn.Parameter(torch.empty(2, shared))  # μ
        self.rel_pos_bias = make_bias(config)
        self.dropout = MegaDropout(config.dropout_prob, featurewise=config.use_feature_dropout)
        self.hidden_dropout = MegaDropout(config.hidden_dropout_prob, featurewise=config.use_feature_dropout)

    def forward(
        self, hidden_states: Tensor, *, plan: MegaPlan, cache: MegaLayerCache | None = None, flow: EmaFlow | None = None
    ) -> tuple[Tensor, MegaLayerExtras]:
        """(B, S, D) -> (B, S, D); weights are (B, chunks, C, C), or (B, 1, S, S) without chunks.

        Args:
            hidden_states: X.
            plan: What all layers share.
            cache: What earlier tokens left.
            flow: For a part of a sequence, what comes from its neighbours.
        """
        overwrite = may_overwrite(self)
        x = self.normalize_inputs(hidden_states)
        value = project(self.v_proj, x, self.activation)
        averaged, ema_state = self.ema_gate(
            x,
            mask=plan.mask,
            flow=flow,
            state=None if cache is None else cache.ema_state,
            return_state=plan.use_cache,
            shard=plan.shard,
        )
        update_gate, shared_and_gate, candidate = project(self.mx_proj, self.dropout(averaged)).split(
            self.sizes, dim=-1
        )
        sizes = [self.qk_weight.shape[1], value.shape[-1]]
        shared, attention_gate = silu(shared_and_gate, overwrite=overwrite).split(sizes, dim=-1)
        query, key = (torch.addcmul(self.qk_bias[index], shared, self.qk_weight[index]) for index in (0, 1))
        attended, weights, held = self._attend(query, key, value, plan, cache)
        gated = project(self.h_proj, multiply(attended, attention_gate, overwrite=overwrite))
        candidate = self.activation(add(gated, candidate, overwrite=overwrite))
        output = _update(hidden_states, self.dropout(candidate), update_gate)
        output = output if self.normalize_before else self.norm(output)
        kept = MegaLayerCache(*held, ema_state) if ema_state is not None and held is not None else None
        return output, MegaLayerExtras(weights, cache=kept)

    def normalize_inputs(self, hidden_states: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D), what the average and the values are made of."""
        return self.norm(hidden_states) if self.normalize_before else hidden_states

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, plan: MegaPlan, cache: MegaLayerCache | None
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
        """Output (B, S, V), weights, and the keys and values that the next token may see."""
        if cache is None:
            held = held_keys(key, value, plan) if plan.use_cache else None
            attended, weights = self._attend_in_chunks(query, key, self.hidden_dropout(value), plan)
            return attended, weights, held
        key, value = torch.cat([cache.key, key], dim=1), torch.cat([cache.value, value], dim=1)
        mask = append_mask(plan.held_mask, plan.mask, key.shape[1] - 1)
        attended, weights = self._weighted_sum(query, key, value, mask, plan, offset=key.shape[1] - 1)
        held = held_keys(key, value, plan) if plan.use_cache else None
        return attended, weights, held

    def _attend_in_chunks(
        self, query: Tensor, key: Tensor, value: Tensor, plan: MegaPlan
    ) -> tuple[Tensor, Tensor | None]:
        if plan.chunk_size is None:
            mask, offset, shard = plan.mask, 0, plan.shard
            if shard is not None:
                real = query.new_ones(query.shape[:2], dtype=torch.bool) if mask is None else mask
                mask, offset = shard.whole(real.byte()) != 0, shard.start(query.shape[1])
                key, value = shard.whole(key), shard.whole(value)
            return self._weighted_sum(query, key, value, mask, plan, offset=offset, causal=plan.causal)
        batch, length, _ = query.shape
        size = plan.chunk_size
        if not torch.compiler.is_exporting():
            size = min(size, length)  # a sequence that is shorter than a chunk is a chunk of its own length
        chunks = count_blocks(length, size)
        mask = plan.mask
        if mask is None and not plan.causal and (torch.compiler.is_compiling() or length % size):
            # padding lies behind all that a causal query sees, but a query of an encoder must not see it
            mask = query.new_ones(batch, length, dtype=torch.bool)
        if plan.starts is not None:
            query, key, value = (rotate_rows(tensor, plan.starts) for tensor in (query, key, value))
            mask = None if mask is None else rotate_rows(mask, plan.starts)
        query, key, value = (to_blocks(tensor, size).flatten(0, 1) for tensor in (query, key, value))
        mask = None if mask is None else to_blocks(mask, size).flatten(0, 1)
        attended, weights = self._weighted_sum(query, key, value, mask, plan, causal=plan.causal, chunks=chunks)
        attended = from_blocks(attended.unflatten(0, (batch, chunks)), length)
        if plan.starts is not None:
            attended = rotate_rows(attended, plan.starts, back=True)
        return attended, weights

    def _weighted_sum(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        plan: MegaPlan,
        *,
        offset: int = 0,
        causal: bool = False,
        chunks: int = 1,
    ) -> tuple[Tensor, Tensor | None]:
        """Output (R, T, V), and weights (B, chunks, T, S) or None."""
        return gated_attention(
            query,
            key,
            value,
            activation=self.attention_activation,
            bias=self.rel_pos_bias(plan.table),
            mask=mask,
            causal=causal,
            offset=offset,
            dropout=self.attention_dropout if self.training else 0.0,
            implementation=plan.implementation,
            return_weights=plan.needs_weights,
            chunks=chunks,
        )


def _update(hidden_states: Tensor, candidate: Tensor, gate: Tensor) -> Tensor:
    """φ ⊙ candidate + (1 − φ) ⊙ X for the logit of φ, in the dtype of X (which autocast may leave wider)."""
    dtype = hidden_states.dtype
    return torch.lerp(hidden_states, candidate.to(dtype), torch.sigmoid(gate).to(dtype))


class MegaGatedCrossAttention(nn.Module):
    """Gated attention of a decoder to the states of an encoder (§3.5).

    With X the decoder's tokens and E the encoder's states:

        [φ, γ, Q] = [sigmoid, silu, identity](X W_q),  K = E W_k,  V = act(E W_v)
        Y = φ ⊙ act((γ ⊙ f(Q Kᵀ / τ + b) V) W_h) + (1 − φ) ⊙ X
    """

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        width, shared = config.hidden_size, config.shared_representation_size
        self.normalize_before = config.normalize_before_mega
        self.attention_activation = config.attention_activation
        self.attention_dropout = config.attention_probs_dropout_prob
        self.sizes = [width, width, shared]
        self.activation = get_activation(config.activation)
        self.norm = MegaSequenceNorm(config)
        self.k_proj = nn.Linear(width, shared)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, sum(self.sizes))
        self.h_proj = nn.Linear(width, width)
        self.rel_pos_bias = make_bias(config)
        self.dropout = MegaDropout(config.dropout_prob, featurewise=config.use_feature_dropout)
        self.hidden_dropout = MegaDropout(config.hidden_dropout_prob, featurewise=config.use_feature_dropout)

    def forward(
        self, hidden_states: Tensor, *, plan: MegaPlan, cache: MegaLayerCache | None = None
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor]]:
        """(B, S, D) -> (B, S, D), weights (B, S, T) or None, and the keys and values of the encoder's states."""
        overwrite = may_overwrite(self)
        x = self.norm(hidden_states) if self.normalize_before else hidden_states
        update_gate, attention_gate, query = project(self.q_proj, x).split(self.sizes, dim=-1)
        key, value = self._encoder_keys(plan, cache)
        attended, weights = gated_attention(
            query,
            key,
            self.hidden_dropout(value),
            activation=self.attention_activation,
            bias=self.rel_pos_bias(plan.cross_table),
            mask=plan.encoder_mask,
            offset=plan.offset,
            dropout=self.attention_dropout if self.training else 0.0,
            implementation=plan.implementation,
            return_weights=plan.needs_weights,
        )
        gated = multiply(attended, silu(attention_gate, overwrite=overwrite), overwrite=overwrite)
        candidate = project(self.h_proj, gated, self.activation)
        output = _update(hidden_states, self.dropout(candidate), update_gate)
        return output if self.normalize_before else self.norm(output), weights, (key, value)

    def _encoder_keys(self, plan: MegaPlan, cache: MegaLayerCache | None) -> tuple[Tensor, Tensor]:
        """Keys (B, T, Z) and values (B, T, D); computed once and then taken from the cache."""
        if cache is not None and cache.cross_key is not None and cache.cross_value is not None:
            return cache.cross_key, cache.cross_value
        states = plan.encoder_hidden_states
        assert states is not None
        return project(self.k_proj, states), project(self.v_proj, states, self.activation)


class MegaNormalizedFeedForwardNetwork(nn.Module):
    """X + W₂ act(W₁ norm(X)), or norm(X + W₂ act(W₁ X))."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.normalize_before = config.normalize_before_ffn
        self.activation = get_activation(config.activation)
        self.norm = MegaSequenceNorm(config)
        self.fc1 = nn.Linear(config.hidden_size, config.nffn_hidden_size)
        self.fc2 = nn.Linear(config.nffn_hidden_size, config.hidden_size)
        self.dropout = MegaDropout(config.dropout_prob, featurewise=config.use_feature_dropout)
        self.hidden_dropout = MegaDropout(config.nffn_activation_dropout_prob, featurewise=config.use_feature_dropout)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        x = self.norm(hidden_states) if self.normalize_before else hidden_states
        x = project(self.fc2, self.hidden_dropout(project(self.fc1, x, self.activation)))
        output = hidden_states + self.dropout(x)
        return output if self.normalize_before else self.norm(output)


class MegaBlock(nn.Module):
    """One layer: gated attention, in a decoder with an encoder cross-attention, and the feed-forward layer."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.mega_layer = MegaMovingAverageGatedAttention(config)
        self.nffn = MegaNormalizedFeedForwardNetwork(config) if config.use_normalized_ffn else None
        self.cross_attn = MegaGatedCrossAttention(config) if config.add_cross_attention else None

    def forward(
        self, hidden_states: Tensor, *, plan: MegaPlan, cache: MegaLayerCache | None = None, flow: EmaFlow | None = None
    ) -> tuple[Tensor, MegaLayerExtras]:
        """(B, S, D) -> (B, S, D), weights and cache; arguments of `MegaMovingAverageGatedAttention`."""
        hidden_states, extras = self.mega_layer(hidden_states, plan=plan, cache=cache, flow=flow)
        if self.cross_attn is not None:
            hidden_states, cross_weights, cross_keys = self.cross_attn(hidden_states, plan=plan, cache=cache)
            kept = None if extras.cache is None else MegaLayerCache(*extras.cache[:3], *cross_keys)
            extras = MegaLayerExtras(extras.weights, cross_weights, kept)
        if self.nffn is not None:
            hidden_states = self.nffn(hidden_states)
        return hidden_states, extras
