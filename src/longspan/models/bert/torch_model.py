"""BERT in PyTorch (Devlin et al., 2018, https://arxiv.org/abs/1810.04805): the task classes.

The layers and the backbone are in `torch_backbone.py`.
Axes: B batch, S tokens, H width, N classes, C choices, V vocabulary.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from longspan.errors import InputError
from longspan.generation.torch_mixin import GenerationMixin
from longspan.models.bert.config import BertConfig
from longspan.models.bert.torch_backbone import BertModel, BertPreTrainedModel
from longspan.nn.torch.apply import project
from longspan.nn.torch.cache import Cache, LegacyCache
from longspan.nn.torch.checks import values_visible
from longspan.nn.torch.dropout import Dropout
from longspan.nn.torch.heads import PredictionHeadTransform
from longspan.nn.torch.losses import cross_entropy
from longspan.nn.torch.outputs import (
    CausalLMOutputWithCrossAttentions,
    DictOutput,
    MaskedLMOutput,
    NextSentencePredictorOutput,
    Tensors,
    model_output,
    resolve,
)
from longspan.nn.torch.tasks import (
    CausalLMModel,
    Inputs,
    Labels,
    MultipleChoiceModel,
    QuestionAnsweringModel,
    SequenceClassificationModel,
    TaskModel,
    TokenClassificationModel,
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
    """Scores over the vocabulary: decoder(LayerNorm(act(W x + b)))."""

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


class BertTask(TaskModel, BertPreTrainedModel):
    """A BERT with a head: its inputs, and that labels may read states at padding."""

    backbone: ClassVar[type[BertModel]] = BertModel
    input_names: ClassVar[tuple[str, ...]] = (
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "position_ids",
        "head_mask",
        "inputs_embeds",
        "encoder_hidden_states",
        "encoder_attention_mask",
    )

    def __init__(self, config: BertConfig) -> None:
        """Make the backbone and the head.

        Args:
            config: Settings; the weights are random.
        """
        super().__init__(config)

    def run(self, inputs: Inputs, labels: Labels, *flags: bool | None, **further: Any) -> Any:
        """As `TaskModel.run`; states at padding are computed if the loss reads them."""
        read = None
        if all(label is not None for label in labels):
            read = self.read_places(inputs[1], *labels, **(further.get("loss_arguments") or {}))
        return super().run(inputs, labels, *flags, **further, padding_states=self._reads_padding(inputs[1], read))

    def _reads_padding(self, attention_mask: Tensor | None, read: Tensor | None) -> bool:
        """True if a place that is read may be padding; where values cannot be seen, it may."""
        if read is None or attention_mask is None or attention_mask.shape != read.shape:
            return False
        packs = self.config.attn_implementation == "packed" and not torch.compiler.is_compiling()
        if not packs and not (values_visible(attention_mask) and values_visible(read)):
            return True
        return bool((read & (attention_mask == 0)).any())


class BertLabelTask(BertTask):
    """A BERT with a head whose labels are one tensor, `labels`."""

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
        """Run the model; inputs as in `BertModel.forward`, with an axis of choices (B, C, S) in a multiple choice.

        Args:
            labels: What the loss compares the scores with, as the class says; without them there is no loss.

        Returns:
            The `output_class` of the class.
        """
        row = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        return self.run(row, (labels,), output_attentions, output_hidden_states, return_dict)


class BertWordTask(BertTask):
    """A BERT that scores the words of its vocabulary at each token."""

    output_embeddings = "cls.predictions.decoder"

    def add_head(self) -> None:
        """Make the head."""
        self.cls = BertHeads(self.config, predictions=True, seq_relationship=False)

    def head(self, outputs: Any) -> Tensor:
        """Scores of the vocabulary, (B, S, V)."""
        return self.cls.predictions(outputs.last_hidden_state)


class BertCausalTask(CausalLMModel, BertWordTask):
    """A BERT that predicts the next token."""

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
        **loss_arguments: Any,
    ) -> Any:
        """Run the model; inputs as in `BertModel.forward`.

        Args:
            labels: Ids, -100 is ignored, (B, S); the shift by one token happens here.
            logits_to_keep: Compute scores for the last that many tokens only, or for the token indices of a 1-D
                tensor; 0 means all.
            **loss_arguments: `num_items_in_batch` and `shift_labels`, see `causal_lm_loss`.
        """
        row = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        flags = (output_attentions, output_hidden_states, return_dict)
        return self.run(
            (*row, encoder_hidden_states, encoder_attention_mask),
            (labels,),
            *flags,
            past_key_values=past_key_values,
            use_cache=resolve(use_cache, self.config.use_cache) and labels is None,
            cache_position=cache_position,
            logits_to_keep=logits_to_keep,
            loss_arguments=loss_arguments,
        )


class BertMaskedTask(BertWordTask):
    """A BERT that predicts masked tokens, as an encoder or with cross-attention."""

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
        """
        row = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        flags = (output_attentions, output_hidden_states, return_dict)
        return self.run((*row, encoder_hidden_states, encoder_attention_mask), (labels,), *flags, use_cache=False)


class BertSpanTask(QuestionAnsweringModel, BertTask):
    """A BERT that scores each token as start and as end of an answer."""

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
        """
        row = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        return self.run(row, (start_positions, end_positions), output_attentions, output_hidden_states, return_dict)


class BertForPreTraining(BertTask):
    """BERT with the two heads of its pre-training: masked language modelling and next sentence prediction.

    Example:
        >>> import torch
        >>> from longspan import BertConfig, BertForPreTraining
        >>> model = BertForPreTraining(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> output = model(torch.tensor([[101, 7592, 102]]))
        >>> output.prediction_logits.shape, output.seq_relationship_logits.shape
        (torch.Size([1, 3, 30522]), torch.Size([1, 2]))
    """

    output_class = BertForPreTrainingOutput
    output_embeddings = "cls.predictions.decoder"
    has_pooler = True

    def add_head(self) -> None:
        """Make the heads."""
        self.cls = BertHeads(self.config, predictions=True, seq_relationship=True)

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
        """
        row = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        return self.run(row, (labels, next_sentence_label), output_attentions, output_hidden_states, return_dict)

    def head(self, outputs: Any) -> tuple[Tensor, Tensor]:
        """Scores of the vocabulary (B, S, V) and of the two kinds of pairs (B, 2)."""
        return self.cls.predictions(outputs.last_hidden_state), self.cls.seq_relationship(outputs.pooler_output)

    def loss(self, tokens: Tensor, pairs: Tensor, labels: Tensor, next_sentence_label: Tensor) -> Tensor:
        """The sum of both; it needs both labels."""
        next_sentence = cross_entropy(pairs, next_sentence_label.reshape(-1), name="next_sentence_label")
        return cross_entropy(tokens, labels) + next_sentence


class BertLMHeadModel(GenerationMixin, BertCausalTask):
    """BERT as a causal language model; set `config.is_decoder=True`.

    Example:
        >>> import torch
        >>> from longspan import BertConfig, BertLMHeadModel
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, is_decoder=True)
        >>> output = BertLMHeadModel(config)(torch.tensor([[101, 7592, 102]]))
        >>> output.logits.shape, output.past_key_values.get_seq_length()
        (torch.Size([1, 3, 30522]), 3)
    """

    output_class = CausalLMOutputWithCrossAttentions

    def __init__(self, config: BertConfig) -> None:
        """Make the backbone and the head; warn unless they are those of a decoder.

        Args:
            config: Settings; the weights are random.
        """
        super().__init__(config)
        if not config.is_decoder:
            text = f"{type(self).__name__} attends in both directions unless config.is_decoder=True"
            warnings.warn(text, stacklevel=2)

    def check_can_generate(self) -> None:
        """Raise `InputError` unless `config.is_decoder`: otherwise a token sees those behind it."""
        if not self.config.is_decoder:
            raise InputError("generate needs a decoder: config.is_decoder=True. Received: is_decoder=False")

    def max_positions(self) -> int:
        """Tokens that have a position embedding."""
        return self.config.max_position_embeddings


class BertForMaskedLM(BertMaskedTask):
    """BERT that predicts masked tokens.

    Example:
        >>> import torch
        >>> from longspan import BertConfig, BertForMaskedLM
        >>> model = BertForMaskedLM(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> model(torch.tensor([[101, 103, 102]])).logits.shape
        torch.Size([1, 3, 30522])
    """

    output_class = MaskedLMOutput

    def __init__(self, config: BertConfig) -> None:
        """Make the backbone and the head; warn unless they are those of an encoder.

        Args:
            config: Settings; the weights are random.
        """
        super().__init__(config)
        if config.is_decoder:
            text = f"{type(self).__name__} should see both directions: set config.is_decoder=False"
            warnings.warn(text, stacklevel=2)


class BertForNextSentencePrediction(BertLabelTask):
    """BERT that tells whether the second segment continues the first: labels 0 if so, 1 if it is random, (B,).

    Example:
        >>> import torch
        >>> from longspan import BertConfig, BertForNextSentencePrediction
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> model = BertForNextSentencePrediction(config)
        >>> model(torch.tensor([[101, 7592, 102]])).logits.shape
        torch.Size([1, 2])
    """

    output_class = NextSentencePredictorOutput
    has_pooler = True

    def add_head(self) -> None:
        """Make the head."""
        self.cls = BertHeads(self.config, predictions=False, seq_relationship=True)

    def head(self, outputs: Any) -> Tensor:
        """Scores of "continues" and of "is random", (B, 2)."""
        return self.cls.seq_relationship(outputs.pooler_output)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy."""
        return cross_entropy(logits, labels.reshape(-1))


class BertForSequenceClassification(SequenceClassificationModel, BertLabelTask):
    """BERT with a classification or regression head on the pooled first token.

    Labels are class indices (B,), regression targets (B,) or (B, N), or multi-hot floats (B, N); see
    `longspan.nn.torch.losses.sequence_classification_loss`.

    Example:
        >>> import torch
        >>> from longspan import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=3)
        >>> output = BertForSequenceClassification(config)(torch.tensor([[101, 7592, 102]]), labels=torch.tensor([2]))
        >>> output.logits.shape, output.loss.shape
        (torch.Size([1, 3]), torch.Size([]))
    """

    has_pooler = True

    def add_head(self) -> None:
        """Make the head."""
        self.dropout = Dropout(self.head_dropout)
        self.classifier = nn.Linear(self.config.hidden_size, self.config.num_labels)

    def head(self, outputs: Any) -> Tensor:
        """Scores of the classes, (B, N)."""
        return self.classifier(self.dropout(outputs.pooler_output))


class BertForMultipleChoice(MultipleChoiceModel, BertLabelTask):
    """BERT that scores each of several choices from its pooled first token; labels are the right ones, (B,).

    Example:
        >>> import torch
        >>> from longspan import BertConfig, BertForMultipleChoice
        >>> model = BertForMultipleChoice(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> model(torch.tensor([[[101, 7592, 102], [101, 2088, 102]]])).logits.shape
        torch.Size([1, 2])
    """


class BertForTokenClassification(TokenClassificationModel, BertLabelTask):
    """BERT with a classification head on every token; labels are class indices, -100 is ignored, (B, S).

    Example:
        >>> import torch
        >>> from longspan import BertConfig, BertForTokenClassification
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=5)
        >>> BertForTokenClassification(config)(torch.tensor([[101, 7592, 102]])).logits.shape
        torch.Size([1, 3, 5])
    """


class BertForQuestionAnswering(BertSpanTask):
    """BERT that scores each token as start and as end of an answer.

    Example:
        >>> import torch
        >>> from longspan import BertConfig, BertForQuestionAnswering
        >>> model = BertForQuestionAnswering(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> model(torch.tensor([[101, 7592, 102]])).start_logits.shape
        torch.Size([1, 3])
    """
