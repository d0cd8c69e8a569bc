"""Text classification: labels of whole documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, get_args

import numpy as np
import numpy.typing as npt

from longspan.documents.tokens import Tokens
from longspan.errors import InputError
from longspan.pipelines.base import Job, Pipeline, check_text
from longspan.pipelines.long.merging import Floats, WindowPooling, pool_windows, sigmoid, softmax
from longspan.pipelines.long.rows import Row
from longspan.pipelines.options import Options, check_at_least, check_choice, warn_of_old_word

_FUNCTIONS = ("sigmoid", "softmax", "none")
#: Stands for a `top_k` that was not given, which has its own form of output.
_NOT_GIVEN = -1
#: Stands for the old `return_all_scores=True`: all labels, in the model's order.
_ALL_IN_ORDER = -2


@dataclass(frozen=True)
class TextClassificationOptions(Options):
    """Options of text classification, besides those of every task.

    Attributes:
        top_k: How many labels to return, best first; None for all. Not given: the best one, without a list of its own.
        function_to_apply: `"softmax"`, `"sigmoid"` or `"none"`; default as the model's `problem_type` and number of
            labels ask for.
        window_pooling: How the scores of windows become one: their `"mean"`, their `"max"`, or their mean `"weighted"`
            by tokens.
        return_windows: Add to each label `"windows"`, the characters `start` to `end` of each window and its score.
    """

    top_k: int | None = _NOT_GIVEN
    function_to_apply: str | None = None
    window_pooling: WindowPooling = "mean"
    return_windows: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("window_pooling", self.window_pooling, get_args(WindowPooling))
        if self.function_to_apply is not None:
            check_choice("function_to_apply", self.function_to_apply.lower(), _FUNCTIONS)
        if self.top_k not in (_NOT_GIVEN, _ALL_IN_ORDER):
            check_at_least("top_k", self.top_k, 1)

    def _renamed(self, settings: dict[str, Any]) -> dict[str, Any]:
        all_scores = settings.pop("return_all_scores", None)
        if all_scores is not None and "top_k" not in settings:
            warn_of_old_word("return_all_scores", "top_k=None, all labels, unsorted" if all_scores else "top_k=1")
            settings["top_k"] = _ALL_IN_ORDER if all_scores else _NOT_GIVEN
        return settings


class TextClassificationPipeline(Pipeline):
    """Gives texts of any length labels with scores; see `Pipeline` for the arguments.

    Inputs are strings, or dicts `{"text": ..., "text_pair": ...}`; a long `text` is read in windows, beside the whole
    `text_pair`. Longformer's first token has global attention. Results are dicts `{"label": ..., "score": ...}`; with
    `top_k` lists of them. As in the reference, one string without `top_k` gives a list of one dict.

    Options: `TextClassificationOptions`.

    Example:
        >>> from longspan import pipeline
        >>> classify = pipeline("text-classification", model="./my-longformer")  # doctest: +SKIP
        >>> classify("A whole book ...")  # doctest: +SKIP
        [{'label': 'POSITIVE', 'score': 0.98}]
    """

    task: ClassVar[str] = "text-classification"
    options_class: ClassVar[type[Options]] = TextClassificationOptions

    def __call__(self, inputs: Any, **settings: Any) -> Any:
        """Classify; see `Pipeline.__call__`."""
        result = super().__call__(inputs, **settings)
        return [result] if isinstance(inputs, str) and "top_k" not in settings else result

    def _texts(self, item: Any) -> list[str]:
        if not isinstance(item, Mapping):
            return [check_text(item)]
        unknown = set(item) - {"text", "text_pair"}
        if unknown or "text" not in item:
            raise InputError(f"A pair of texts must have the keys text and text_pair. Received: {sorted(item)}")
        texts = [check_text(item["text"])]
        return [*texts, check_text(item["text_pair"], "text_pair")] if item.get("text_pair") is not None else texts

    def _alignment(self, options: Options) -> dict[str, bool]:
        return {"with_offsets": isinstance(options, TextClassificationOptions) and options.return_windows}

    def _job(self, item: Any, tokens: list[Tokens], options: TextClassificationOptions) -> Job:
        text = item if isinstance(item, str) else item["text"]
        if len(tokens) == 1:
            job = self._single_job(text, tokens[0], options)
        else:
            template = self._template(is_pair=True)
            pair = tokens[1].ids
            windows = self._windows(len(tokens[0].ids), template.num_special + len(pair), options)
            wrapped = [template.wrap(tokens[0].ids[start:stop], pair) for start, stop in windows]
            job = Job(text, tokens[0], windows, [row for row, _ in wrapped], wrapped[0][1][0])
        job.rows = [replace(row, is_global=np.arange(len(row)) == 0) for row in job.rows]
        return job

    def _pick(self, outputs: dict[str, Floats], row: Row, job: Job, options: TextClassificationOptions) -> Floats:
        logits = outputs["logits"]
        name = options.function_to_apply.lower() if options.function_to_apply else _default_function(self.model.config)
        if name == "none":
            return logits.copy()
        return softmax(logits) if name == "softmax" else sigmoid(logits)

    def _finish(self, job: Job, picked: list[Floats], options: TextClassificationOptions) -> Any:
        of_windows = np.stack(picked)
        scores = pool_windows(of_windows, job.windows, options.window_pooling)
        spans = [job.tokens.span(*window) if window[1] else (0, 0) for window in job.windows] \
            if options.return_windows else []  # fmt: skip
        results: list[dict[str, Any]] = []
        for index in _chosen(scores, options.top_k).tolist():
            result = {"label": self.model.config.id2label[index], "score": float(scores[index])}
            if options.return_windows:
                result["windows"] = [
                    {"start": start, "end": end, "score": float(of_window[index])}
                    for (start, end), of_window in zip(spans, of_windows, strict=True)
                ]
            results.append(result)
        return results[0] if options.top_k == _NOT_GIVEN else results


def _default_function(config: Any) -> str:
    problem = config.problem_type
    if problem == "regression":
        return "none"
    return "sigmoid" if problem == "multi_label_classification" or config.num_labels == 1 else "softmax"


def _chosen(scores: Floats, top_k: int | None) -> npt.NDArray[np.int64]:
    """The labels that are returned, in their order."""
    if top_k == _ALL_IN_ORDER:
        return np.arange(len(scores))
    return np.argsort(-scores, kind="stable")[: 1 if top_k == _NOT_GIVEN else top_k]
