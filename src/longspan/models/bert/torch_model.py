"""BERT in PyTorch (Devlin et al., 2018, https://arxiv.org/abs/1810.04805): the backbone, then the task classes.

Axes: B batch, S tokens, T keys, H width, A heads, L layers, N classes, C choices, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from longspan.checkpoints.names import ParameterNames
from longspan.errors import InputError
from longspan.model_output import ModelOutput
from longspan.models.bert.config import BertConfig
from longspan.models.bert.names import NAMES
from longspan.models.bert.torch_attention import ATTENTION, make_plan
from longspan.models.bert.torch_layers import BertEmbeddings, BertEncoder, BertHeads, BertLMPredictionHead
from longspan.nn.torch.base import PreTrainedModel
from longspan.nn.torch.cache import Cache, DynamicCache, EncoderDecoderCache, LegacyCache
from longspan.nn.torch.checks import check_ids, check_length, check_shape, input_shape, values_visible
from longspan.nn.torch.heads import Pooler, fold_choices
from longspan.nn.torch.losses import (
    causal_lm_loss,
    cross_entropy,
    question_answering_loss,
    sequence_classification_loss,
)
from longspan.nn.torch.masks import expand_head_mask
from longspan.nn.torch.outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    Tensors,
    TokenClassifierOutput,
    finish,
    model_output,
    resolve,
)
from longspan.nn.torch.packing import Packing


class BertPreTrainedModel(PreTrainedModel):
    """What all BERT classes share."""

    config_class: ClassVar[type[BertConfig]] = BertConfig
    base_model_prefix: ClassVar[str] = "bert"
    names: ClassVar[ParameterNames] = NAMES
    config: BertConfig

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(mean=0.0, std=self.config.initializer_range)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight.data[module.padding_idx].zero_()
        if isinstance(module, nn.LayerNorm):
            module.weight.data.fill_(1.0)
        if isinstance(module, nn.Linear | nn.LayerNorm | BertLMPredictionHead) and module.bias is not None:
            module.bias.data.zero_()

    def check_implementation(self, name: str) -> None:
        """Raise `InputError` unless `name` is an attention implementation of BERT."""
        ATTENTION.check_name(name)


class BertModel(BertPreTrainedModel):
    """BERT without a head: an encoder, or a decoder if `config.is_decoder`.

    As a decoder it attends causally and may keep a cache; with `config.add_cross_attention` it also attends to
    `encoder_hidden_states`.

    Args:
        config: Settings; the weights are random.
        add_pooling_layer: Have the pooler, which gives `pooler_output`.

    Example:
        >>> import torch
        >>> from longspan import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> output = model(input_ids=torch.tensor([[101, 7592, 102]]))
        >>> output.last_hidden_state.shape, output.pooler_output.shape
        (torch.Size([1, 3, 32]), torch.Size([1, 32]))
    """

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = Pooler(hidden_size=config.hidden_size) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.embeddings.word_embeddings = value  # type: ignore[assignment]

    def _prune_heads(self, heads_to_prune: Mapping[int, list[int]]) -> None:
        for layer, heads in heads_to_prune.items():
            if not 0 <= layer < len(self.encoder.layer):
                raise InputError(f"layers to prune must lie in [0, {len(self.encoder.layer)}). Received: {layer}")
            self.encoder.layer[layer].attention.prune_heads(list(heads))  # type: ignore[operator,union-attr]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | LegacyCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: Token ids, (B, S). Exactly one of this and `inputs_embeds` is given.
            attention_mask: 1 for real tokens, 0 for padding, (B, S); with a cache (B, past + S). A mask per query,
                (B, S, S), is possible as well. States at padding are unspecified.
            token_type_ids: Segment of each token, (B, S); default 0.
            position_ids: Position of each token, (B, S); default 0, 1, ...
            head_mask: 1 keeps a head, 0 removes it, (A,) or (L, A).
            inputs_embeds: Embedded tokens, (B, S, H).
            encoder_hidden_states: States that cross-attention reads, (B, S_enc, H); needs a decoder with
                `add_cross_attention`.
            encoder_attention_mask: Their padding mask, (B, S_enc).
            past_key_values: Cache of earlier tokens, or the older nested tuples. The same format is returned.
            use_cache: Return a cache (decoder only); default as configured.
            output_attentions: Return attention weights, L × (B, A, S, T).
            output_hidden_states: Return hidden states, (L + 1) × (B, S, H).
            return_dict: Return a `ModelOutput` rather than a tuple.
            cache_position: Positions of the input tokens in the sequence, (S,); default: after those in the cache.

        Returns:
            `BaseModelOutputWithPoolingAndCrossAttentions`.

        Raises:
            InputError: shapes disagree, an id is out of range, or the input is longer than the positions.
        """
        config = self.config
        batch, length = input_shape(input_ids, inputs_embeds)
        device = (inputs_embeds if input_ids is None else input_ids).device  # type: ignore[union-attr]
        needs_weights = resolve(output_attentions, config.output_attentions)
        use_cache = self.encoder.resolve_use_cache(config.is_decoder and resolve(use_cache, config.use_cache))
        self._check_inputs(batch, length, input_ids, token_type_ids, encoder_hidden_states, past_key_values)
        legacy = isinstance(past_key_values, tuple | list)
        cache = self._make_cache(past_key_values, use_cache)
        past = 0 if cache is None else cache.get_seq_length()
        if cache_position is None:
            cache_position = past + torch.arange(length, device=device)
        self._check_positions(cache_position, position_ids, length)
        plan = make_plan(
            config,
            batch=batch,
            cache_position=cache_position,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            cache=cache,
            needs_weights=needs_weights,
        )
        hidden_states = self._embed(
            plan.packing, input_ids, inputs_embeds, token_type_ids, position_ids, cache_position
        )
        last_hidden_state, hidden, attentions, cross_attentions = self.encoder(
            hidden_states,
            plan=plan,
            head_mask=expand_head_mask(
                head_mask, num_layers=config.num_hidden_layers, num_heads=config.num_attention_heads
            ),
            encoder_hidden_states=encoder_hidden_states,
            cache=cache,
            cache_position=cache_position,
            output_hidden_states=resolve(output_hidden_states, config.output_hidden_states),
        )
        output = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=last_hidden_state,
            pooler_output=None if self.pooler is None else self.pooler(last_hidden_state),
            past_key_values=None if not use_cache or cache is None else cache.to_legacy_cache() if legacy else cache,
            hidden_states=hidden,
            attentions=attentions,
            cross_attentions=cross_attentions,
        )
        return finish(output, resolve(return_dict, config.return_dict))

    def _check_inputs(
        self,
        batch: int,
        length: int,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        encoder_hidden_states: Tensor | None,
        past_key_values: Cache | LegacyCache | None,
    ) -> None:
        config = self.config
        if input_ids is not None:
            check_ids(input_ids, config.vocab_size, name="input_ids", limit_name="vocab_size")
        if token_type_ids is not None:
            check_shape(token_type_ids, (batch, length), name="token_type_ids", axes="(batch, tokens)")
            check_ids(token_type_ids, config.type_vocab_size, name="token_type_ids", limit_name="type_vocab_size")
        if past_key_values is not None and not config.is_decoder:
            raise InputError("past_key_values needs a decoder: config.is_decoder=True. Received: is_decoder=False")
        if encoder_hidden_states is not None and not config.add_cross_attention:
            raise InputError(
                "encoder_hidden_states needs a decoder with cross-attention: config.is_decoder=True and "
                f"config.add_cross_attention=True. Received: is_decoder={config.is_decoder}, "
                f"add_cross_attention={config.add_cross_attention}"
            )

    def _check_positions(self, cache_position: Tensor, position_ids: Tensor | None, length: int) -> None:
        limit = self.config.max_position_embeddings
        if position_ids is not None:
            check_ids(position_ids, limit, name="position_ids", limit_name="max_position_embeddings")
            check_length(length, limit)
        elif values_visible(cache_position) and length > 0:
            check_length(int(cache_position[-1]) + 1, limit)
        else:
            check_length(length, limit)

    def _make_cache(self, past_key_values: Cache | LegacyCache | None, use_cache: bool) -> Cache | None:
        kind = EncoderDecoderCache if self.config.add_cross_attention else DynamicCache
        if isinstance(past_key_values, Cache):
            return past_key_values
        if past_key_values is not None:
            return kind.from_legacy_cache(past_key_values)
        if not use_cache:
            return None
        return EncoderDecoderCache(DynamicCache(), DynamicCache()) if kind is EncoderDecoderCache else DynamicCache()

    def _embed(
        self,
        packing: Packing | None,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        cache_position: Tensor,
    ) -> Tensor:
        """Embed the tokens: all of them, or only the real ones of a packed batch."""
        positions = cache_position[None] if position_ids is None else position_ids
        if packing is None:
            return self.embeddings(
                input_ids=input_ids, inputs_embeds=inputs_embeds, token_type_ids=token_type_ids, position_ids=positions
            )
        pick = packing.indices
        positions = positions.expand(packing.shape) if positions.shape[0] == 1 else positions
        return self.embeddings(
            input_ids=None if input_ids is None else input_ids.reshape(-1)[pick],
            inputs_embeds=None if inputs_embeds is None else packing.pack(inputs_embeds),
            token_type_ids=None if token_type_ids is None else token_type_ids.reshape(-1)[pick],
            position_ids=positions.reshape(-1)[pick],
        )


@model_output
class BertForPreTrainingOutput(ModelOutput):
    """`loss` (0-d), `prediction_logits` (B, S, V), `seq_relationship_logits` (B, 2)."""

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


class _WithPredictionHead(BertPreTrainedModel):
    """A BERT class whose `cls.predictions` scores the vocabulary."""

    cls: BertHeads

    def get_output_embeddings(self) -> nn.Module:
        """The projection onto the vocabulary."""
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the projection onto the vocabulary and its bias."""
        self.cls.predictions.decoder = new_embeddings  # type: ignore[assignment]
        self.cls.predictions.bias = new_embeddings.bias  # type: ignore[assignment]


class BertForPreTraining(_WithPredictionHead):
    """BERT with the two heads of its pre-training: masked language modelling and next sentence prediction.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import BertConfig, BertForPreTraining
        >>> model = BertForPreTraining(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> output = model(torch.tensor([[101, 7592, 102]]))
        >>> output.prediction_logits.shape, output.seq_relationship_logits.shape
        (torch.Size([1, 3, 30522]), torch.Size([1, 2]))
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.cls = BertHeads(config, predictions=True, seq_relationship=True)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; inputs as in `BertModel.forward`.

        Args:
            labels: Ids of the masked tokens, -100 elsewhere, (B, S).
            next_sentence_label: 0 if the second segment continues the first, 1 if it is random, (B,).

        Returns:
            `BertForPreTrainingOutput`; the loss is the sum of both and needs both labels.
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        prediction_logits = self.cls.predictions(outputs.last_hidden_state)
        seq_relationship_logits = self.cls.seq_relationship(outputs.pooler_output)
        loss = None
        if labels is not None and next_sentence_label is not None:
            loss = cross_entropy(prediction_logits, labels) + cross_entropy(
                seq_relationship_logits, next_sentence_label.reshape(-1), name="next_sentence_label"
            )
        output = BertForPreTrainingOutput(
            loss=loss,
            prediction_logits=prediction_logits,
            seq_relationship_logits=seq_relationship_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return finish(output, resolve(return_dict, self.config.return_dict))


class BertLMHeadModel(_WithPredictionHead):
    """BERT as a causal language model; set `config.is_decoder=True`.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import BertConfig, BertLMHeadModel
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, is_decoder=True)
        >>> output = BertLMHeadModel(config)(torch.tensor([[101, 7592, 102]]))
        >>> output.logits.shape, output.past_key_values.get_seq_length()
        (torch.Size([1, 3, 30522]), 3)
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        if not config.is_decoder:
            warnings.warn("BertLMHeadModel attends in both directions unless config.is_decoder=True", stacklevel=2)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.cls = BertHeads(config, predictions=True, seq_relationship=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | LegacyCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> Any:
        """Run the model; inputs as in `BertModel.forward`.

        Args:
            labels: Ids, -100 is ignored, (B, S); the shift by one token happens here.
            logits_to_keep: Compute scores for the last that many tokens only, or for the token indices of a 1-D
                tensor; 0 means all.

        Returns:
            `CausalLMOutputWithCrossAttentions`.
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=resolve(use_cache, self.config.use_cache) and labels is None,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            cache_position=cache_position,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.cls.predictions(outputs.last_hidden_state[:, kept])
        output = CausalLMOutputWithCrossAttentions(
            loss=None if labels is None else causal_lm_loss(logits, labels),
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )
        return finish(output, resolve(return_dict, self.config.return_dict))


class BertForMaskedLM(_WithPredictionHead):
    """BERT that predicts masked tokens.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import BertConfig, BertForMaskedLM
        >>> model = BertForMaskedLM(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> model(torch.tensor([[101, 103, 102]])).logits.shape
        torch.Size([1, 3, 30522])
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        if config.is_decoder:
            warnings.warn("BertForMaskedLM should see both directions: set config.is_decoder=False", stacklevel=2)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.cls = BertHeads(config, predictions=True, seq_relationship=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; inputs as in `BertModel.forward`.

        Args:
            labels: Ids of the masked tokens, -100 elsewhere, (B, S).

        Returns:
            `MaskedLMOutput`.
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.cls.predictions(outputs.last_hidden_state)
        output = MaskedLMOutput(
            loss=None if labels is None else cross_entropy(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return finish(output, resolve(return_dict, self.config.return_dict))


class BertForNextSentencePrediction(BertPreTrainedModel):
    """BERT that tells whether the second segment continues the first.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import BertConfig, BertForNextSentencePrediction
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> model = BertForNextSentencePrediction(config)
        >>> model(torch.tensor([[101, 7592, 102]])).logits.shape
        torch.Size([1, 2])
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.cls = BertHeads(config, predictions=False, seq_relationship=True)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; inputs as in `BertModel.forward`.

        Args:
            labels: 0 if the second segment continues the first, 1 if it is random, (B,).

        Returns:
            `NextSentencePredictorOutput`.
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.cls.seq_relationship(outputs.pooler_output)
        output = NextSentencePredictorOutput(
            loss=None if labels is None else cross_entropy(logits, labels.reshape(-1)),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return finish(output, resolve(return_dict, self.config.return_dict))


class BertForSequenceClassification(BertPreTrainedModel):
    """BERT with a classification or regression head on the pooled first token.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=3)
        >>> output = BertForSequenceClassification(config)(torch.tensor([[101, 7592, 102]]), labels=torch.tensor([2]))
        >>> output.logits.shape, output.loss.shape
        (torch.Size([1, 3]), torch.Size([]))
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; inputs as in `BertModel.forward`.

        Args:
            labels: Class indices (B,), regression targets (B,) or (B, N), or multi-hot floats (B, N); see
                `longspan.nn.torch.losses.sequence_classification_loss`.

        Returns:
            `SequenceClassifierOutput`.
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))
        output = SequenceClassifierOutput(
            loss=None if labels is None else sequence_classification_loss(self.config, logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return finish(output, resolve(return_dict, self.config.return_dict))


class BertForMultipleChoice(BertPreTrainedModel):
    """BERT that scores each of several choices from its pooled first token.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import BertConfig, BertForMultipleChoice
        >>> model = BertForMultipleChoice(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> model(torch.tensor([[[101, 7592, 102], [101, 2088, 102]]])).logits.shape
        torch.Size([1, 2])
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; inputs as in `BertModel.forward`, each with an axis of choices: (B, C, S).

        Args:
            labels: Index of the correct choice, (B,).

        Returns:
            `MultipleChoiceModelOutput`.
        """
        num_choices, (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds) = fold_choices(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        )
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output)).view(-1, num_choices)
        output = MultipleChoiceModelOutput(
            loss=None if labels is None else cross_entropy(logits, labels.reshape(-1)),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return finish(output, resolve(return_dict, self.config.return_dict))


class BertForTokenClassification(BertPreTrainedModel):
    """BERT with a classification head on every token.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import BertConfig, BertForTokenClassification
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=5)
        >>> BertForTokenClassification(config)(torch.tensor([[101, 7592, 102]])).logits.shape
        torch.Size([1, 3, 5])
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; inputs as in `BertModel.forward`.

        Args:
            labels: Class index of each token, -100 is ignored, (B, S).

        Returns:
            `TokenClassifierOutput`.
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        output = TokenClassifierOutput(
            loss=None if labels is None else cross_entropy(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return finish(output, resolve(return_dict, self.config.return_dict))


class BertForQuestionAnswering(BertPreTrainedModel):
    """BERT that scores each token as start and as end of an answer.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import BertConfig, BertForQuestionAnswering
        >>> model = BertForQuestionAnswering(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> model(torch.tensor([[101, 7592, 102]])).start_logits.shape
        torch.Size([1, 3])
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; inputs as in `BertModel.forward`.

        Args:
            start_positions: Token where the answer starts, (B,); outside the sequence it does not count.
            end_positions: Token where it ends, (B,).

        Returns:
            `QuestionAnsweringModelOutput`.
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = question_answering_loss(start_logits, end_logits, start_positions, end_positions)
        output = QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return finish(output, resolve(return_dict, self.config.return_dict))


def _classifier_dropout(config: BertConfig) -> float:
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
