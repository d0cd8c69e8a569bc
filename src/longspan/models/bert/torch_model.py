"""BERT in PyTorch (Devlin et al., 2018, https://arxiv.org/abs/1810.04805): the task classes.

The layers and the backbone are in `torch_backbone.py`.
Axes: B batch, S tokens, H width, N classes, C choices, V vocabulary.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from longspan.errors import InputError
from longspan.generation.torch_mixin import GenerationMixin
from longspan.models.bert.config import BertConfig
from longspan.models.bert.torch_backbone import BertModel, BertPreTrainedModel
from longspan.nn.torch.apply import project
from longspan.nn.torch.cache import Cache, LegacyCache
from longspan.nn.torch.heads import PredictionHeadTransform, fold_choices
from longspan.nn.torch.losses import (
    causal_lm_loss,
    cross_entropy,
    question_answering_loss,
    sequence_classification_loss,
)
from longspan.nn.torch.outputs import (
    CausalLMOutputWithCrossAttentions,
    DictOutput,
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

__all__ = [
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertLMHeadModel",
    "BertModel",
    "BertPreTrainedModel",
]


class BertLMPredictionHead(nn.Module):
    """Scores over the vocabulary: decoder(LayerNorm(act(W x + b))).

    Args:
        config: Settings of the model.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = PredictionHeadTransform(
            hidden_size=config.hidden_size, activation=config.hidden_act, layer_norm_eps=config.layer_norm_eps
        )
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (B, S, V)."""
        return project(self.decoder, self.transform(hidden_states))


class BertHeads(nn.Module):
    """The heads of pre-training: masked language modelling, next sentence prediction, or both.

    Args:
        config: Settings of the model.
        predictions: Have the language modelling head.
        seq_relationship: Have the next sentence head.
    """

    def __init__(self, config: BertConfig, *, predictions: bool, seq_relationship: bool) -> None:
        super().__init__()
        if predictions:
            self.predictions = BertLMPredictionHead(config)
        if seq_relationship:
            self.seq_relationship = nn.Linear(config.hidden_size, 2)


@model_output
class BertForPreTrainingOutput(DictOutput):
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
        self.cls.predictions.decoder = new_embeddings  # type: ignore[assignment]  # any module of its shape
        self.cls.predictions.bias = new_embeddings.bias  # type: ignore[assignment]  # any module of its shape


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


class BertLMHeadModel(GenerationMixin, _WithPredictionHead):
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

    def check_can_generate(self) -> None:
        """Raise `InputError` unless `config.is_decoder`: otherwise a token sees those behind it."""
        if not self.config.is_decoder:
            raise InputError("generate needs a decoder: config.is_decoder=True. Received: is_decoder=False")

    def max_positions(self) -> int:
        """Tokens that have a position embedding."""
        return self.config.max_position_embeddings


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
            padding_states=start_positions is not None and end_positions is not None,
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
