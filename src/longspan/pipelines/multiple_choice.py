"""Multiple choice: which of several texts goes best with a document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, get_args

import numpy as np

from longspan.documents.tokens import Tokens
from longspan.errors import InputError
from longspan.pipelines.base import Job, Pipeline, check_text
from longspan.pipelines.long.merging import Floats, WindowPooling, pool_windows, softmax
from longspan.pipelines.long.rows import Row
from longspan.pipelines.options import Options, check_choice


@dataclass(frozen=True)
class MultipleChoiceOptions(Options):
    """Options of multiple choice, besides those of every task.

    Attributes:
        window_pooling: How the scores of windows become one: their `"mean"`, their `"max"` (scaled to sum 1 again), or
            their mean `"weighted"` by tokens.
    """

    window_pooling: WindowPooling = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("window_pooling", self.window_pooling, get_args(WindowPooling))


class MultipleChoicePipeline(Pipeline):
    """Chooses among texts by a document of any length; see `Pipeline` for the arguments.

    Inputs are dicts `{"prompt": ..., "choices": [...]}`. A long prompt is read in windows, each beside every choice.
    Longformer's choice has global attention. A result is a dict: `choice`, the index of the best one, `answer`, its
    text, `score`, and the `scores` of all, which sum to 1.

    Options: `MultipleChoiceOptions`.

    Example:
        >>> from longspan import pipeline
        >>> choose = pipeline("multiple-choice", "./my-longformer")  # doctest: +SKIP
        >>> choose(prompt="A whole book ...", choices=["in London", "in Turin"])  # doctest: +SKIP
        {'choice': 0, 'answer': 'in London', 'score': 0.9, 'scores': [0.9, 0.1]}
    """

    task: ClassVar[str] = "multiple-choice"
    options_class: ClassVar[type[Options]] = MultipleChoiceOptions

    def __call__(
        self, inputs: Any = None, *, prompt: str | None = None, choices: list[str] | None = None, **settings: Any
    ) -> Any:
        """Choose.

        Args:
            inputs: One dict `{"prompt": ..., "choices": [...]}` or any iterable of them.
            prompt: The document, if `inputs` is not given.
            choices: The texts to choose from.
            **settings: Options for this call.

        Returns:
            The result of one input, or a list of results (a generator for iterables that are no lists).

        Raises:
            InputError: an input or option breaks a rule.
        """
        if inputs is None:
            inputs = {"prompt": prompt, "choices": choices}
        return super().__call__(inputs, **settings)

    def _texts(self, item: Any) -> list[str]:
        if not isinstance(item, Mapping) or not {"prompt", "choices"} <= set(item):
            keys = sorted(item) if isinstance(item, Mapping) else type(item).__name__
            raise InputError(f"An input must be a dict with the keys prompt and choices. Received: {keys}")
        choices = item["choices"]
        if not isinstance(choices, list | tuple) or len(choices) < 2:
            raise InputError(f"choices must be a list of at least two texts. Received: {choices!r}")
        return [check_text(item["prompt"], "prompt"), *(check_text(choice, "Each choice") for choice in choices)]

    def _alignment(self, options: Options) -> dict[str, bool]:
        return {"with_offsets": False}

    def _job(self, item: Mapping[str, Any], tokens: list[Tokens], options: MultipleChoiceOptions) -> Job:
        template = self._template(is_pair=True)
        prompt, *choices = tokens
        longest = max(len(choice.ids) for choice in choices)
        windows = self._windows(len(prompt.ids), template.num_special + longest, options)
        rows = []
        for start, stop in windows:
            for choice in choices:
                row, (_, begin) = template.wrap(prompt.ids[start:stop], choice.ids)
                rows.append(replace(row, is_global=np.arange(len(row)) >= begin))
        return Job(item["prompt"], prompt, windows, rows, 0, list(item["choices"]))

    def _pick(self, outputs: dict[str, Floats], row: Row, job: Job, options: MultipleChoiceOptions) -> float:
        return float(outputs["logits"][0])

    def _finish(self, job: Job, picked: list[float], options: MultipleChoiceOptions) -> dict[str, Any]:
        logits = np.asarray(picked, np.float32).reshape(len(job.windows), len(job.extra))
        scores = pool_windows(softmax(logits), job.windows, options.window_pooling)
        scores = scores / scores.sum()
        best = int(scores.argmax())
        return {"choice": best, "answer": job.extra[best], "score": float(scores[best]), "scores": scores.tolist()}
