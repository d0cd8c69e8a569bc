"""The table of tasks: what each is called, what it takes, what it returns, how its loss is computed.

Axes: B batch, S tokens, T target tokens, N classes, C choices, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: Id of the task, as on model hubs.
        suffixes: Possible ends of the names of its classes, after the family's prefix, most usual first.
        labels: Names of the label arguments with their shapes.
        outputs: Names of the result fields with their shapes.
        loss: How the labels become a loss.
    """

    name: str
    suffixes: tuple[str, ...]
    labels: dict[str, str]
    outputs: dict[str, str]
    loss: str | None


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("feature-extraction", ("Model",), {}, {"last_hidden_state": "(B, S, H)"}, None),
        Task(
            "pretraining",
            ("ForPreTraining", "ForConditionalGeneration", "ForMaskedLM", "ForCausalLM"),
            {"labels": "(B, S)", "next_sentence_label": "(B,)"},
            {"prediction_logits": "(B, S, V)", "seq_relationship_logits": "(B, 2)"},
            "sum of two cross-entropies",
        ),
        Task(
            "text-generation",
            ("ForCausalLM", "LMHeadModel"),
            {"labels": "(B, S)"},
            {"logits": "(B, S, V)"},
            "cross-entropy with the next token",
        ),
        Task(
            "text2text-generation",
            ("ForConditionalGeneration",),
            {"labels": "(B, T)"},
            {"logits": "(B, T, V)"},
            "cross-entropy",
        ),
        Task("fill-mask", ("ForMaskedLM",), {"labels": "(B, S)"}, {"logits": "(B, S, V)"}, "cross-entropy"),
        Task(
            "next-sentence-prediction",
            ("ForNextSentencePrediction",),
            {"labels": "(B,)"},
            {"logits": "(B, 2)"},
            "cross-entropy",
        ),
        Task(
            "text-classification",
            ("ForSequenceClassification",),
            {"labels": "(B,) or (B, N)"},
            {"logits": "(B, N)"},
            "by problem_type",
        ),
        Task("multiple-choice", ("ForMultipleChoice",), {"labels": "(B,)"}, {"logits": "(B, C)"}, "cross-entropy"),
        Task(
            "token-classification",
            ("ForTokenClassification",),
            {"labels": "(B, S)"},
            {"logits": "(B, S, N)"},
            "cross-entropy",
        ),
        Task(
            "question-answering",
            ("ForQuestionAnswering",),
            {"start_positions": "(B,)", "end_positions": "(B,)"},
            {"start_logits": "(B, S)", "end_logits": "(B, S)"},
            "mean of two cross-entropies",
        ),
        Task("text-encoding", ("EncoderModel", "Model"), {}, {"last_hidden_state": "(B, S, H)"}, None),
    )
}
