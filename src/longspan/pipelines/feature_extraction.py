"""Feature extraction: the states of a document's tokens."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from longspan.documents.tokens import Tokens
from longspan.pipelines.base import Job, Pipeline, check_text
from longspan.pipelines.long.merging import Floats, merge_windows
from longspan.pipelines.long.rows import Row
from longspan.pipelines.options import Options

#: framework -> module and function that make a tensor of an array
_TENSORS = {"torch": ("torch", "from_numpy"), "flax": ("jax.numpy", "asarray"), "keras": ("keras.ops", "array")}


@dataclass(frozen=True)
class FeatureExtractionOptions(Options):
    """Options of feature extraction, besides those of every task.

    Attributes:
        return_tensors: Return a tensor of the framework instead of nested lists.
    """

    return_tensors: bool = False


class FeatureExtractionPipeline(Pipeline):
    """The last hidden states of texts of any length; see `Pipeline` for the arguments.

    In a long text each token takes its state from the window that shows it with the most context; the special tokens
    before and after the text take theirs from the first and last window. A result has shape (1, S, H): nested lists, or
    a tensor. For one vector a text see `longspan.SentenceEncoder`.

    Options: `FeatureExtractionOptions`.

    Example:
        >>> from longspan import pipeline
        >>> extract = pipeline("feature-extraction", "./my-bert", return_tensors=True)  # doctest: +SKIP
        >>> extract("A test.").shape  # doctest: +SKIP
        torch.Size([1, 5, 768])
    """

    task: ClassVar[str] = "feature-extraction"
    options_class: ClassVar[type[Options]] = FeatureExtractionOptions
    block_characters: ClassVar[int] = 1 << 16  # states are large

    def _texts(self, item: Any) -> list[str]:
        return [check_text(item)]

    def _alignment(self, options: Options) -> dict[str, bool]:
        return {"with_offsets": False}

    def _job(self, item: str, tokens: list[Tokens], options: FeatureExtractionOptions) -> Job:
        return self._single_job(item, tokens[0], options)

    def _pick(self, outputs: dict[str, Floats], row: Row, job: Job, options: FeatureExtractionOptions) -> Floats:
        return outputs["last_hidden_state"][: len(row)].copy()

    def _finish(self, job: Job, picked: list[Floats], options: FeatureExtractionOptions) -> Any:
        counts = [stop - start for start, stop in job.windows]
        own = [states[job.lead : job.lead + count] for states, count in zip(picked, counts, strict=True)]
        parts = [picked[0][: job.lead], merge_windows(own, job.windows), picked[-1][job.lead + counts[-1] :]]
        states = np.concatenate(parts)[None]
        if not options.return_tensors:
            return states.tolist()
        module, function = _TENSORS[self.framework]
        return getattr(importlib.import_module(module), function)(states)
