"""LongT5 in Flax (Guo et al., 2022, https://arxiv.org/abs/2112.07916): each class a `linen.Module` and its wrapper.

Axes: B batch, S source tokens, T target tokens, H width, A heads, L layers, V vocabulary.

Models take no labels: `prepare_decoder_input_ids_from_labels` makes the target's ids of them, and
`longspan.nn.flax.losses.cross_entropy` the loss of the logits.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.nn.initializers import normal

from longspan.generation.flax_loop import SourceStepper
from longspan.generation.flax_mixin import FlaxGenerationMixin
from longspan.models.longt5.config import LongT5Config
from longspan.models.longt5.flax_base import FlaxLongT5PreTrainedModel
from longspan.models.longt5.flax_decoder import FlaxLongT5Decoder
from longspan.models.longt5.flax_encoder import FlaxLongT5Encoder
from longspan.models.longt5.flax_layers import linear
from longspan.nn.flax.layers import Dtype, Embedding
from longspan.nn.flax.masks import drop_unseen_faults
from longspan.nn.flax.outputs import (
    FlaxBaseModelOutput,
    FlaxCausalLMOutputWithCrossAttentions,
    FlaxSeq2SeqLMOutput,
    FlaxSeq2SeqModelOutput,
)

__all__ = [
    "FlaxLongT5EncoderModel",
    "FlaxLongT5ForConditionalGeneration",
    "FlaxLongT5Model",
    "FlaxLongT5PreTrainedModel",
]


class FlaxLongT5EncoderModule(nn.Module):
    """`FlaxLongT5EncoderModel` as a `linen.Module`.

    Attributes:
        config: Settings of the model.
        dtype: Dtype of the computation.
        gradient_checkpointing: Recompute the layers' activations in the backward pass.
    """

    config: LongT5Config
    dtype: Dtype = jnp.float32
    gradient_checkpointing: bool = False

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

    def make_stepper(self, params: Any, inputs: dict[str, Array], *, rows: int, room: int) -> SourceStepper:
        """What runs the model during `generate`."""
        batch, source = inputs["input_ids"].shape
        shapes = self._cache_shapes(batch, room, source)
        return SourceStepper(self.module, params, inputs, shapes, rows, self.config.attn_implementation)
