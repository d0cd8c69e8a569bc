"""LongT5's encoder in Keras 3 (Guo et al., 2022, https://arxiv.org/abs/2112.07916).

Axes: B batch, S tokens, H width, A heads, D head size, L layers, R radius, G summaries, N blocks of R + 1 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keras import ops

from longspan.models.longt5.config import LongT5Config
from longspan.models.longt5.keras_layers import (
    LongT5Attention,
    LongT5LayerAttention,
    LongT5LayerFF,
    LongT5LayerNorm,
    LongT5Part,
    LongT5Stack,
    relative_bias,
)
from longspan.nn.keras.checks import Size
from longspan.nn.keras.masks import as_boolean, expand_head_mask
from longspan.nn.keras.outputs import TFBaseModelOutput
from longspan.ops.keras import Tensor
from longspan.ops.keras.sliding_window import ExtraKeys, sliding_window_attention


@dataclass(frozen=True)
class Summaries:
    """Which tokens each summary of transient-global attention stands for.

    Blocks count the real tokens of a row, so padding may lie on either side. Tokens that do not fill a block belong to
    the last full one; a row shorter than one block has no summary.

    Attributes:
        number: G.
        position: Where each token stands on the axis of the summaries, (B, S).
        belongs: Tokens that belong to a summary, (B, S).
        filled: Summaries that exist, (B, G).
    """

    number: Size
    position: Tensor
    belongs: Tensor
    filled: Tensor

    @classmethod
    def from_mask(cls, real: Tensor | None, shape: tuple[Size, Size], block_size: int) -> Summaries | None:
        """Divide the real tokens, boolean (B, S) or None for all, into blocks; None if S tokens surely fill none."""
        number = shape[1] // block_size
        if isinstance(number, int) and number == 0:
            return None
        number = number if isinstance(number, int) else ops.maximum(number, 1)  # a graph has room for one
        real = ops.ones(shape, "bool") if real is None else real
        count = ops.cumsum(ops.cast(real, "int32"), axis=1)
        full = count[:, -1:] // block_size  # (B, 1)
        position = ops.minimum(ops.maximum(count - 1, 0) // block_size, ops.maximum(full - 1, 0))
        filled = ops.arange(number, dtype="int32")[None] < full
        return cls(number, position, ops.logical_and(real, full > 0), filled)

    def add_up(self, hidden_states: Tensor) -> Tensor:
        """Sum the states (B, S, H) of each block, in float32: (B, G, H)."""
        batch, _, width = ops.shape(hidden_states)
        states = ops.where(self.belongs[..., None], ops.cast(hidden_states, "float32"), 0.0)
        row = ops.arange(batch, dtype="int32")[:, None] * self.number
        segments = ops.reshape(self.position + row, (-1,))
        sums = ops.segment_sum(ops.reshape(states, (-1, width)), segments, num_segments=batch * self.number)
        return ops.reshape(sums, (batch, self.number, width))


@dataclass(frozen=True)
class EncoderPlan:
    """What all encoder layers of one call share.

    Attributes:
        real: Tokens that are not padding, boolean (B, S); None if all are.
        bias: Bias by relative position of the window, (A, 2R + 1).
        summaries: Blocks of transient-global attention; None for local attention.
        summary_bias: Bias by relative position of the summaries, (A, 2G - 1).
        needs_weights: Attention weights are returned.
        implementation: Name of the implementation of sliding-window attention.
    """

    real: Tensor | None
    bias: Tensor
    summaries: Summaries | None
    summary_bias: Tensor | None
    needs_weights: bool
    implementation: str


class LongT5LocalAttention(LongT5Attention):
    """Attention to the tokens at most R away.

        cᵢ = Σⱼ softmax(qᵢ·kⱼ + b(j - i)) vⱼ      over |i - j| ≤ R

    The first layer holds b, and all layers use it.
    """

    def call(
        self,
        hidden_states: Tensor,
        *,
        plan: EncoderPlan,
        head_mask: Tensor | None = None,
        training: bool | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from (B, S, H) to themselves.

        Returns:
            (B, S, H), and the weights (B, N, A, R + 1, 3 (R + 1) + G) if the plan needs them: the tokens of the block
            before, of the block and of the block behind, then the summaries.
        """
        radius = self.config.local_radius
        context, weights = sliding_window_attention(
            *(self.split(layer(hidden_states)) for layer in (self.q, self.k, self.v)),
            left=radius,
            right=radius,
            scale=1.0,
            mask=plan.real,
            bias=plan.bias,
            extra=self.summarise(hidden_states, plan),
            dropout=self.drop_weights(training),
            needs_weights=plan.needs_weights,
            implementation=plan.implementation,
            **({"rows": radius + 1} if plan.needs_weights else {}),
        )
        if head_mask is not None:
            head_mask = ops.cast(head_mask, context.dtype)
            context = context * head_mask
        if weights is not None:
            weights = _in_three_blocks(weights, radius)
            weights = weights if head_mask is None else weights * head_mask
        return self.merge(context), weights

    def biases(self, number: Size) -> tuple[Tensor, Tensor | None]:
        """With G summaries, bias by relative position of the window, (A, 2R + 1), and of the summaries, (A, 2G - 1)."""
        radius = self.config.local_radius
        offsets = ops.arange(-radius, radius + 1, dtype="int32")
        return relative_bias(self.config, offsets, self.relative_attention_bias, bidirectional=True), None

    def summarise(self, hidden_states: Tensor, plan: EncoderPlan) -> ExtraKeys | None:
        """Keys that all tokens see; none in local attention."""
        return None


def _in_three_blocks(weights: Tensor, radius: int) -> Tensor:
    """(B, A, N, R + 1, G + 3R + 1), summaries first -> (B, N, A, R + 1, 3 (R + 1) + G)."""
    num_summaries = ops.shape(weights)[-1] - (3 * radius + 1)
    extra, window = weights[..., :num_summaries], weights[..., num_summaries:]
    window = ops.pad(window, ((0, 0),) * 4 + ((1, 1),))
    return ops.transpose(ops.concatenate([window, extra], axis=-1), (0, 2, 1, 3, 4))


class LongT5TransientGlobalAttention(LongT5LocalAttention):
    """Attention to the tokens at most R away and to a summary of every block of tokens.

    The summary of a block is the normalised sum of its states, made anew in every layer; keys and values of both kinds
    come from the same projections:

        cᵢ = Σⱼ softmax(qᵢ·kⱼ + b(j - i)) vⱼ      over |i - j| ≤ R and all blocks g, with b'(g - block(i)) for a block

    The first layer holds b and b', and all layers use them.
    """

    def __init__(self, config: LongT5Config, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.global_input_layer_norm = LongT5LayerNorm(config, dtype=self.dtype_policy, name="global_input_layer_norm")

    def biases(self, number: Size) -> tuple[Tensor, Tensor | None]:
        """With G summaries, bias by relative position of the window, (A, 2R + 1), and of the summaries, (A, 2G - 1)."""
        bias, _ = super().biases(number)
        if isinstance(number, int) and number == 0:
            return bias, None
        offsets = ops.arange(2 * number - 1, dtype="int32") - (number - 1)
        table = self.global_relative_attention_bias
        return bias, relative_bias(self.config, offsets, table, bidirectional=True)

    def summarise(self, hidden_states: Tensor, plan: EncoderPlan) -> ExtraKeys | None:
        """Keys that all tokens see: those of the summaries."""
        summaries = plan.summaries
        if summaries is None:
            return None
        states = self.global_input_layer_norm(summaries.add_up(hidden_states))  # (B, G, H)
        key, value = self.split(self.k(states)), self.split(self.v(states))
        return ExtraKeys(key, value, summaries.filled, plan.summary_bias, summaries.position)


#: `encoder_attention_type` -> the attention, its name in checkpoints and its tables of biases
ATTENTIONS: dict[str, tuple[type[LongT5LocalAttention], str, tuple[str, ...]]] = {
    "local": (LongT5LocalAttention, "LocalSelfAttention", ("relative_attention_bias",)),
    "transient-global": (
        LongT5TransientGlobalAttention,
        "TransientGlobalSelfAttention",
        ("relative_attention_bias", "global_relative_attention_bias"),
    ),
}


class LongT5EncoderBlock(LongT5Part):
    """One encoder layer: attention, feed-forward.

    Args:
        config: Settings of the model.
        has_biases: Hold the biases of all layers.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, config: LongT5Config, *, has_biases: bool, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        policy = self.dtype_policy
        kind, name, biases = ATTENTIONS[config.encoder_attention_type]
        attention = kind(config, biases=biases if has_biases else (), dtype=policy, name=name)
        self.layer = [
            LongT5LayerAttention(config, attention, dtype=policy, name="layer_0"),
            LongT5LayerFF(config, dtype=policy, name="layer_1"),
        ]

    def call(
        self, hidden_states: Tensor, *, plan: EncoderPlan, head_mask: Tensor | None, training: bool | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, S, H) -> (B, S, H) and the weights."""
        hidden_states, weights = self.layer[0](hidden_states, plan=plan, head_mask=head_mask, training=training)
        return self.layer[1](hidden_states, training=training), weights


class LongT5Encoder(LongT5Stack):
    """The stack of encoder layers."""

    def __init__(self, config: LongT5Config, **kwargs: Any) -> None:
        blocks: list[LongT5Part] = [
            LongT5EncoderBlock(config, has_biases=index == 0, dtype=kwargs["dtype"], name=f"block_{index}")
            for index in range(config.num_layers)
        ]
        super().__init__(config, blocks, **kwargs)

    def call(
        self,
        inputs_embeds: Tensor,
        *,
        attention_mask: Tensor | None,
        head_mask: Tensor | None,
        output_attentions: bool,
        output_hidden_states: bool,
        training: bool | None = None,
    ) -> TFBaseModelOutput:
        """Encode embeddings (B, S, H); arguments and result as in `TFLongT5EncoderModel.call`."""
        config = self.config
        real = None if attention_mask is None else as_boolean(attention_mask)
        batch, length = ops.shape(inputs_embeds)[:2]
        summaries = None
        if config.encoder_attention_type == "transient-global":
            summaries = Summaries.from_mask(real, (batch, length), config.global_block_size)
        first: Any = self.block[0]
        bias, summary_bias = first.layer[0].attention.biases(0 if summaries is None else summaries.number)
        plan = EncoderPlan(real, bias, summaries, summary_bias, output_attentions, config.attn_implementation)
        masks = expand_head_mask(head_mask, num_layers=config.num_layers, num_heads=config.num_heads)
        each = [{"head_mask": None if masks is None else masks[index]} for index in range(config.num_layers)]
        states, (weights,) = self.run_blocks(inputs_embeds, each=each, training=training, plan=plan)
        return TFBaseModelOutput(
            last_hidden_state=states[-1],
            hidden_states=states if output_hidden_states else None,
            attentions=weights if output_attentions else None,
        )
