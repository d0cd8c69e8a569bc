"""BERT in Keras 3 (Devlin et al., 2018, https://arxiv.org/abs/1810.04805): all classes."""

from __future__ import annotations

from longspan.models.bert.keras_backbone import TFBertModel, TFBertPreTrainedModel
from longspan.models.bert.keras_pretraining import (
    TFBertForMaskedLM,
    TFBertForNextSentencePrediction,
    TFBertForPreTraining,
    TFBertForPreTrainingOutput,
    TFBertLMHeadModel,
)
from longspan.models.bert.keras_tasks import (
    TFBertForMultipleChoice,
    TFBertForQuestionAnswering,
    TFBertForSequenceClassification,
    TFBertForTokenClassification,
)

__all__ = [
    "TFBertForMaskedLM",
    "TFBertForMultipleChoice",
    "TFBertForNextSentencePrediction",
    "TFBertForPreTraining",
    "TFBertForPreTrainingOutput",
    "TFBertForQuestionAnswering",
    "TFBertForSequenceClassification",
    "TFBertForTokenClassification",
    "TFBertLMHeadModel",
    "TFBertModel",
    "TFBertPreTrainedModel",
]
