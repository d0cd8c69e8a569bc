"""`pipeline`: a task by its name."""

from __future__ import annotations

import importlib
import os
from typing import Any

from longspan.configuration import PretrainedConfig
from longspan.errors import InputError
from longspan.pipelines.options import constructor_words

#: task -> module here and class
_TASKS = {
    "text-classification": ("text_classification", "TextClassificationPipeline"),
    "token-classification": ("token_classification", "TokenClassificationPipeline"),
    "question-answering": ("question_answering", "QuestionAnsweringPipeline"),
    "multiple-choice": ("multiple_choice", "MultipleChoicePipeline"),
    "zero-shot-classification": ("zero_shot", "ZeroShotClassificationPipeline"),
    "fill-mask": ("fill_mask", "FillMaskPipeline"),
    "text-generation": ("text_generation", "TextGenerationPipeline"),
    "text2text-generation": ("text_generation", "Text2TextGenerationPipeline"),
    "summarization": ("summarization", "SummarizationPipeline"),
    "feature-extraction": ("feature_extraction", "FeatureExtractionPipeline"),
}
_ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}
#: end of the name of a class of models -> its task
_HEADS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "ForConditionalGeneration": "text2text-generation",
    "Model": "feature-extraction",
}
_SOURCE = ("revision", "cache_dir", "local_files_only", "token")


def pipeline(task: str | None = None, model: Any = None, tokenizer: Any = None, **arguments: Any) -> Any:
    """A task on texts and documents of any length.

    Args:
        task: `"text-classification"` (or `"sentiment-analysis"`), `"token-classification"` (or `"ner"`),
            `"question-answering"`, `"multiple-choice"`, `"fill-mask"`, `"feature-extraction"`,
            `"zero-shot-classification"` (by embeddings or entailment), `"text-generation"`, `"text2text-generation"` or
            `"summarization"`; default what the model's class is for.
        model: Directory or hub repository, or a loaded model of longspan. Only zero-shot classification has a default.
        tokenizer: A tokenizer, or where to load one from; default the model's.
        **arguments: See `longspan.pipelines.base.Pipeline` for `framework`, `device`, `dtype` and others, and the
            task's class for its options, which here hold for every call. The reference's `torch_dtype`, `model_kwargs`,
            `num_workers`, `use_fast` and `trust_remote_code` are understood.

    Returns:
        The pipeline: a function of inputs.

    Raises:
        InputError: there is no such task, or an argument breaks a rule.
        CheckpointNotFoundError: there is no such model.
        ConfigError: the model's family has no class for the task in the framework.
        MissingFrameworkError: the framework is not installed.

    Example:
        >>> from longspan import pipeline
        >>> tag = pipeline("ner", "./my-model", aggregation_strategy="simple", on_long="window")  # doctest: +SKIP
        >>> entities = tag(open("book.txt").read())  # doctest: +SKIP
    """
    arguments = constructor_words(arguments)
    if model is None and task != "zero-shot-classification":
        raise InputError("model must be named: a directory, a hub repository or a loaded model. Received: model=None")
    if task is None:
        task = _task_of(model, arguments)
    name = _ALIASES.get(task, task)
    if name not in _TASKS:
        raise InputError(f"task must be one of {', '.join([*_TASKS, *_ALIASES])}. Received: task={task!r}")
    module, class_name = _TASKS[name]
    pipeline_class = getattr(importlib.import_module(f"longspan.pipelines.{module}"), class_name)
    return pipeline_class(model, tokenizer, **arguments)


def _task_of(model: Any, arguments: dict[str, Any]) -> str:
    """The task that the class of a model or checkpoint is for."""
    if isinstance(model, str | os.PathLike):
        place = {name: arguments[name] for name in _SOURCE if name in arguments}
        names = PretrainedConfig.get_config_dict(model, **place).get("architectures") or []
    else:
        names = [type(model).__name__]
    for name in names:
        for ending, task in _HEADS.items():
            if name.endswith(ending):
                return task
    raise InputError(f"task must be given: {model} does not say what it is for. Received: task=None, {names=}")
