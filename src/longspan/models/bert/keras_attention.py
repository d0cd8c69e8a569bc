"""How one call of a Keras BERT attends: which implementation runs, with which masks.

Axes: B batch, S queries, T keys, A heads, D head size, H width, N tokens of the batch that are computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keras import ops

from longspan.models.bert.config import BertConfig
from longspan.nn.keras.checks import Size, check_shape
from longspan.nn.keras.masks import as_boolean, causal_mask, key_mask
from longspan.nn.keras.runtime import in_graph, runs_on_cpu, shapes_may_depend_on_values, values_visible
from longspan.ops.dispatch import Dispatcher
from longspan.ops.keras import Tensor
from longspan.ops.keras.attention import mask_to_bias, rows_that_attend

if TYPE_CHECKING:
    from longspan.nn.keras.packing import Packing


@dataclass(frozen=True)
class AttentionRequest:
    """What one call asks of BERT's attention.

    Attributes:
        needs_weights: Attention weights are returned.
        relative_positions: The scores depend on query and key through their distance.
        causal: A token does not see those after it.
        row_mask: The mask is one row per sequence, (B, S).
        dynamic_shapes: Shapes may depend on values.
        padding_states: States at padding are needed too.
        padded: The mask holds a False; None if that is known only when the graph runs.
        asked: The implementation was asked for by name.
        on_cpu: No accelerator takes part.
    """

    needs_weights: bool
    relative_positions: bool
    causal: bool
    row_mask: bool
    dynamic_shapes: bool
    padding_states: bool
    padded: bool | None
    asked: bool
    on_cpu: bool


def _packed_why_not(request: AttentionRequest) -> str | None:
    if request.needs_weights:
        return "attention weights are returned by 'eager' only"
    if request.relative_positions:
        return "relative position scores are computed by 'eager' only"
    if request.causal:
        return "packing works in an encoder, without a cache and without cross-attention"
    if request.padding_states:
        return "the states at padding are needed, as for the loss of question answering, which scores every position"
    if not request.row_mask:
        return "packing needs an attention_mask of the shape (batch, tokens)"
    if not request.dynamic_shapes:
        return "the number of real tokens is known only when a batch runs: this needs TensorFlow without XLA"
    if request.asked:
        return None
    if request.padded is False:
        return "nothing is padded"
    return None if request.on_cpu else "on an accelerator shapes that depend on values are not chosen unasked"


ATTENTION: Dispatcher[AttentionRequest] = Dispatcher(
    "BERT attention", {"packed": _packed_why_not, "eager": lambda request: None}
)


@dataclass(frozen=True)
class AttentionPlan:
    """How all layers of one call attend.

    Attributes:
        implementation: Name of the implementation.
        shape: (B, S), as integers where they are known.
        bias: Added to the scores, broadcastable to (B, A, S, T), or None.
        attends: 0 for queries that may attend to no key, else 1; None for all 1.
        encoder_bias: The same as `bias` for cross-attention.
        encoder_attends: The same as `attends` for cross-attention.
        packing: Where the real tokens are, if the batch is packed.
        positions: Positions of the queries among the keys, (S,).
        needs_weights: Attention weights are returned.
    """

    implementation: str
    shape: tuple[Size, Size]
    bias: Tensor | None
    attends: Tensor | None
    encoder_bias: Tensor | None
    encoder_attends: Tensor | None
    packing: Packing | None
    positions: Tensor
    needs_weights: bool

    def pack(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (N, H): the tokens that the layers compute, one after the other."""
        if self.packing is not None:
            return self.packing.take(hidden_states)
        return ops.reshape(hidden_states, (-1, hidden_states.shape[-1]))

    def unpack(self, hidden_states: Tensor) -> Tensor:
        """(N, H) -> (B, S, H)."""
        if self.packing is not None:
            return self.packing.unpack(hidden_states)
        return ops.reshape(hidden_states, (*self.shape, hidden_states.shape[-1]))


def make_plan(
    config: BertConfig,
    *,
    shape: tuple[Size, Size],
    past_length: Size,
    attention_mask: Tensor | None,
    encoder_hidden_states: Tensor | None,
    encoder_attention_mask: Tensor | None,
    needs_weights: bool,
    padding_states: bool,
) -> AttentionPlan:
    """Choose the implementation of one call and build the masks that all layers share.

    Args:
        config: Settings of the model.
        shape: (B, S).
        past_length: Number of cached tokens.
        attention_mask: (B, T) or (B, S, T), nonzero = attend; None for all.
        encoder_hidden_states: States that cross-attention reads, (B, S_enc, H).
        encoder_attention_mask: Their padding mask, (B, S_enc).
        needs_weights: Attention weights are returned.
        padding_states: States at padding are needed too.

    Raises:
        InputError: a mask has the wrong shape, or the implementation that was asked for cannot serve.
    """
    request = _make_request(config, attention_mask, needs_weights, padding_states)
    tracing = attention_mask is not None and in_graph(attention_mask)
    implementation = ATTENTION.choose(config.attn_implementation, request, tracing=tracing)
    positions = past_length + ops.arange(shape[1], dtype="int32")
    packing = None
    if implementation == "packed":
        packing, bias, attends = _make_packing(attention_mask, shape), None, None
    else:
        bias, attends = _self_masks(config, shape, past_length, positions, attention_mask)
    encoder_bias, encoder_attends = _encoder_masks(encoder_hidden_states, encoder_attention_mask)
    return AttentionPlan(
        implementation=implementation,
        shape=shape,
        bias=bias,
        attends=attends,
        encoder_bias=encoder_bias,
        encoder_attends=encoder_attends,
        packing=packing,
        positions=positions,
        needs_weights=needs_weights,
    )


def _make_request(
    config: BertConfig, attention_mask: Tensor | None, needs_weights: bool, padding_states: bool
) -> AttentionRequest:
    dynamic = shapes_may_depend_on_values()
    padded: bool | None = attention_mask is not None
    if attention_mask is not None and values_visible(attention_mask):
        padded = not bool(ops.all(as_boolean(attention_mask)))
    elif attention_mask is not None:
        padded = None
    return AttentionRequest(
        needs_weights=needs_weights,
        relative_positions=config.position_embedding_type != "absolute",
        causal=config.is_decoder,
        row_mask=attention_mask is not None and len(attention_mask.shape) == 2,
        dynamic_shapes=dynamic,
        padding_states=padding_states,
        padded=padded,
        asked=config.attn_implementation != "auto",
        on_cpu=dynamic and runs_on_cpu(),
    )


def _make_packing(attention_mask: Tensor, shape: tuple[Size, Size]) -> Packing:
    from longspan.nn.keras.packing import Packing

    check_shape(attention_mask, shape, name="attention_mask", axes="(batch, tokens)")
    return Packing.from_mask(as_boolean(attention_mask), shape)


def _self_masks(
    config: BertConfig,
    shape: tuple[Size, Size],
    past_length: Size,
    positions: Tensor,
    attention_mask: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Bias and attending rows of self-attention."""
    num_keys = past_length + shape[1]
    padding = None if attention_mask is None else key_mask(attention_mask, batch=shape[0], num_keys=num_keys)
    if not config.is_decoder:
        return (None, None) if padding is None else (mask_to_bias(padding), rows_that_attend(padding))
    causal = causal_mask(positions, num_keys)
    if padding is None:
        return mask_to_bias(causal), None
    mask = ops.logical_and(padding, causal)
    return mask_to_bias(mask), rows_that_attend(mask)


def _encoder_masks(
    encoder_hidden_states: Tensor | None, encoder_attention_mask: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Bias and attending rows of cross-attention."""
    if encoder_hidden_states is None or encoder_attention_mask is None:
        return None, None
    batch, num_keys, _ = ops.shape(encoder_hidden_states)
    mask = key_mask(encoder_attention_mask, batch=batch, num_keys=num_keys, name="encoder_attention_mask")
    return mask_to_bias(mask), rows_that_attend(mask)
