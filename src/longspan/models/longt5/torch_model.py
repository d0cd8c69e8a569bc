"""LongT5 in PyTorch (Guo et al., 2022, https://arxiv.org/abs/2112.07916): the backbones, then the generating class.

Axes: B batch, S source tokens, T target tokens, H width, A heads, L layers, V vocabulary.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from longspan.checkpoints.names import ParameterNames
from longspan.errors import ConfigError
from longspan.generation.torch_mixin import GenerationMixin
from longspan.models.longt5.config import LongT5Config
from longspan.models.longt5.names import NAMES
from longspan.models.longt5.torch_decoder import LongT5Decoder
from longspan.models.longt5.torch_encoder import LongT5Encoder
from longspan.models.longt5.torch_layers import LongT5LayerNorm
from longspan.nn.torch.apply import project
from longspan.nn.torch.base import PreTrainedModel
from longspan.nn.torch.cache import Cache, LegacyCache
from longspan.nn.torch.losses import IGNORE_INDEX, cross_entropy
from longspan.nn.torch.outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput, finish, resolve
from longspan.ops.torch.context import alike
from longspan.ops.torch.sliding_window import DISPATCHER

EncoderOutputs = BaseModelOutput | tuple[Any, ...]


class LongT5PreTrainedModel(PreTrainedModel):
    """What all LongT5 classes share."""

    config_class: ClassVar[type[LongT5Config]] = LongT5Config
    names: ClassVar[ParameterNames] = NAMES
    config: LongT5Config
    shared: nn.Embedding
    encoder: LongT5Encoder

    def _init_weights(self, module: nn.Module) -> None:
        factor = self.config.initializer_factor
        if isinstance(module, LongT5LayerNorm):
            module.weight.data.fill_(factor)
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(mean=0.0, std=factor * getattr(module, "init_std", 1.0))

    def check_implementation(self, name: str) -> None:
        """Raise `InputError` unless `name` is an implementation of sliding-window attention."""
        DISPATCHER.check_name(name)

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings that encoder and decoder share."""
        return self.shared

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embeddings everywhere."""
        self.shared = value  # type: ignore[assignment]  # any module of its shape
        for stack in (self.get_encoder(), self.get_decoder()):
            if stack is not None:
                stack.embed_tokens = value  # type: ignore[assignment]  # any module of its shape

    def get_encoder(self) -> LongT5Encoder:
        """The encoder, which can be called by itself."""
        return self.encoder

    def get_decoder(self) -> LongT5Decoder | None:
        """The decoder, or None in a model without one."""
        return getattr(self, "decoder", None)

    def _shift_right(self, labels: Tensor) -> Tensor:
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
        first = torch.full_like(labels[:, :1], start)
        shifted = torch.cat((first, labels[:, :-1]), dim=1)
        return shifted.masked_fill(shifted == IGNORE_INDEX, padding)


class LongT5EncoderModel(LongT5PreTrainedModel):
    """The encoder of LongT5, whose attention is local or transient-global.

    Positions are relative: inputs may be padded on either side.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import LongT5Config, LongT5EncoderModel
        >>> config = LongT5Config(d_model=32, d_kv=8, num_heads=2, d_ff=64, num_layers=1)
        >>> LongT5EncoderModel(config)(torch.tensor([[100, 19, 3, 1]])).last_hidden_state.shape
        torch.Size([1, 4, 32])
    """

    def __init__(self, config: LongT5Config) -> None:
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = LongT5Encoder(config, self.shared)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the encoder.

        Args:
            input_ids: Token ids, (B, S). Exactly one of this and `inputs_embeds` is given.
            attention_mask: 1 for real tokens, 0 for padding on either side, (B, S). States at padding are unspecified.
            head_mask: 1 keeps a head, 0 removes it, (A,) or (L, A).
            inputs_embeds: Embedded tokens, (B, S, H).
            output_attentions: Return attention weights, in blocks of R + 1 tokens, R = `local_radius`:
                L × (B, blocks, A, R + 1, 3 (R + 1) + summaries). `blocked_attentions_to_dense` brings one to
                (B, A, S, S + summaries).
            output_hidden_states: Return hidden states, (L + 1) × (B, S, H); the last one is normalised.
            return_dict: Return a `ModelOutput` rather than a tuple.

        Returns:
            `BaseModelOutput`.

        Raises:
            InputError: shapes disagree, or an id is out of range.
        """
        return self.encoder(
            input_ids,
            attention_mask=attention_mask,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )


class LongT5EncoderDecoder(LongT5PreTrainedModel):
    """A LongT5 with both stacks."""

    source_names: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "head_mask", "inputs_embeds")
    target_names: ClassVar[tuple[str, ...]] = (
        "input_ids",
        "attention_mask",
        "inputs_embeds",
        "head_mask",
        "cross_attn_head_mask",
        "past_key_values",
        "use_cache",
        "cache_position",
    )
    decoder: LongT5Decoder

    def __init__(self, config: LongT5Config) -> None:
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = LongT5Encoder(config, self.shared)
        self.decoder = LongT5Decoder(config, self.shared)
        self.add_head()
        self.post_init()

    def add_head(self) -> None:
        """Make what reads the decoder's states; here nothing."""

    def run_stacks(
        self,
        source: tuple[Any, ...],
        encoder_outputs: EncoderOutputs | None,
        target: tuple[Any, ...],
        output_attentions: bool | None,
        output_hidden_states: bool | None,
    ) -> Any:
        """Run the encoder, unless its outputs are given, and then the decoder: a `Seq2SeqModelOutput`.

        Args:
            source: Inputs of the encoder by place, as `source_names` lists them.
            encoder_outputs: Its outputs.
            target: Inputs of the decoder by place, as `target_names` lists them.
            output_attentions: Return attention weights of both.
            output_hidden_states: Return hidden states of both.
        """
        inputs = dict(zip(self.source_names, source, strict=True))
        decoder_inputs = dict(zip(self.target_names, target, strict=True))
        flags = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        encoded = self.encoder(**inputs, **flags, return_dict=True) if encoder_outputs is None else encoder_outputs
        encoded = BaseModelOutput(*encoded) if isinstance(encoded, tuple | list) else encoded
        decoder_inputs["head_mask"] = _shared_head_mask(self.config, inputs["head_mask"], decoder_inputs["head_mask"])
        decoded = self.decoder(
            **decoder_inputs,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=inputs["attention_mask"],
            **flags,
            return_dict=True,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )


class LongT5Model(LongT5EncoderDecoder):
    """LongT5's encoder and decoder without a head.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import LongT5Config, LongT5Model
        >>> config = LongT5Config(d_model=32, d_kv=8, num_heads=2, d_ff=64, num_layers=1)
        >>> ids = torch.tensor([[100, 19, 3, 1]])
        >>> output = LongT5Model(config)(input_ids=ids, decoder_input_ids=torch.tensor([[0, 100]]))
        >>> output.last_hidden_state.shape, output.encoder_last_hidden_state.shape
        (torch.Size([1, 2, 32]), torch.Size([1, 4, 32]))
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        encoder_outputs: EncoderOutputs | None = None,
        past_key_values: Cache | LegacyCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: Source ids, (B, S). One of this, `inputs_embeds` and `encoder_outputs` is given.
            attention_mask: 1 for real source tokens, 0 for padding on either side, (B, S).
            decoder_input_ids: Target ids, (B, T), the first being the start token; with a cache, only the new ones.
            decoder_attention_mask: Padding mask of the target, (B, T); with a cache, (B, past + T). Default: all real.
            head_mask: 1 keeps a head of the encoder, 0 removes it, (A,) or (L, A).
            decoder_head_mask: The same for the decoder's self-attention.
            cross_attn_head_mask: The same for its cross-attention.
            encoder_outputs: Output of the encoder, which is then not run.
            past_key_values: Cache of earlier target tokens and of the source, or the older nested tuples of four
                tensors per layer. The same format is returned.
            inputs_embeds: Embedded source, (B, S, H).
            decoder_inputs_embeds: Embedded target, (B, T, H).
            use_cache: Return a cache; default as configured.
            output_attentions: Return attention weights of the encoder (blocked, see `LongT5EncoderModel.forward`), of
                the decoder, L × (B, A, T, T), and of its cross-attention, L × (B, A, T, S).
            output_hidden_states: Return hidden states of both.
            return_dict: Return a `ModelOutput` rather than a tuple.
            cache_position: Positions of the target tokens in the sequence, (T,); default: after those in the cache.

        Returns:
            `Seq2SeqModelOutput`.

        Raises:
            InputError: shapes disagree, an id is out of range, or the decoder has no input.
        """
        source = (input_ids, attention_mask, head_mask, inputs_embeds)
        target = (decoder_input_ids, decoder_attention_mask, decoder_inputs_embeds, decoder_head_mask)
        rest = (cross_attn_head_mask, past_key_values, use_cache, cache_position)
        outputs = self.run_stacks(source, encoder_outputs, (*target, *rest), output_attentions, output_hidden_states)
        return finish(outputs, resolve(return_dict, self.config.return_dict))


class LongT5ForConditionalGeneration(GenerationMixin, LongT5EncoderDecoder):
    """LongT5 with a projection of the decoder's states onto the vocabulary.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import LongT5Config, LongT5ForConditionalGeneration
        >>> config = LongT5Config(d_model=32, d_kv=8, num_heads=2, d_ff=64, num_layers=1)
        >>> model = LongT5ForConditionalGeneration(config)
        >>> output = model(input_ids=torch.tensor([[100, 19, 3, 1]]), labels=torch.tensor([[7, 8, 1]]))
        >>> output.loss.shape, output.logits.shape
        (torch.Size([]), torch.Size([1, 3, 32128]))
    """

    shares_source_between_rows: ClassVar[bool] = True

    def add_head(self) -> None:
        """Make the projection onto the vocabulary."""
        self.lm_head = nn.Linear(self.config.d_model, self.config.vocab_size, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        """The projection onto the vocabulary."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the projection onto the vocabulary."""
        self.lm_head = new_embeddings  # type: ignore[assignment]  # any module of its shape

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        encoder_outputs: EncoderOutputs | None = None,
        past_key_values: Cache | LegacyCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
    ) -> Any:
        """Run the model; inputs as in `LongT5Model.forward`.

        Args:
            labels: Target ids without the start token, -100 is ignored, (B, T). Without decoder inputs, the labels
                shifted to the right take their place.

        Returns:
            `Seq2SeqLMOutput`.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self._shift_right(labels)
        source = (input_ids, attention_mask, head_mask, inputs_embeds)
        target = (decoder_input_ids, decoder_attention_mask, decoder_inputs_embeds, decoder_head_mask)
        rest = (cross_attn_head_mask, past_key_values, use_cache, cache_position)
        outputs = self.run_stacks(source, encoder_outputs, (*target, *rest), output_attentions, output_hidden_states)
        states = outputs.last_hidden_state
        if self.config.tie_word_embeddings:  # the embeddings are large, as T5's first layers expect them
            states = states * self.config.d_model**-0.5
        logits = project(self.lm_head, states)
        loss = None if labels is None else alike(cross_entropy(logits, labels), self.context_shard)
        carried = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return finish(Seq2SeqLMOutput(loss, logits, **carried), resolve(return_dict, self.config.return_dict))

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """The decoder's inputs (B, T) while it learns to write the labels (B, T)."""
        return self._shift_right(labels)


def _shared_head_mask(
    config: LongT5Config, head_mask: Tensor | None, decoder_head_mask: Tensor | None
) -> Tensor | None:
    """The decoder's head mask; for compatibility, the encoder's if only that is given and both have as many layers."""
    if head_mask is None or decoder_head_mask is not None or config.num_layers != config.num_decoder_layers:
        return decoder_head_mask
    warnings.warn(
        "head_mask is used for the decoder as well, since decoder_head_mask is not given; pass both",
        FutureWarning,
        stacklevel=3,
    )
    return head_mask
