"""Token classification: entities in documents, with the characters where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from longspan.documents.tokens import Tokens
from longspan.documents.windows import owned_ranges
from longspan.pipelines.aggregation import STRATEGIES, Aggregator
from longspan.pipelines.base import Job, Pipeline, check_text
from longspan.pipelines.frames import Row
from longspan.pipelines.options import Options, check_choice
from longspan.pipelines.scores import Floats, softmax


@dataclass(frozen=True)
class TokenClassificationOptions(Options):
    """Options of token classification, besides those of every task.

    Attributes:
        aggregation_strategy: How tokens become entities: `"none"` (each token by itself), `"simple"` (neighbours of one
            kind), or, so that no word gets two labels, by its `"first"` token, the `"average"` of its tokens or the
            one of `"max"` score.
        ignore_labels: Labels that are left out; default `["O"]`.
    """

    aggregation_strategy: str = "none"
    ignore_labels: Sequence[str] = ("O",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("aggregation_strategy", self.aggregation_strategy, STRATEGIES)


class TokenClassificationPipeline(Pipeline):
    """Tags tokens and finds entities in texts of any length; see `Pipeline` for the arguments.

    A long text is read in overlapping windows. Each token takes its scores from the window that shows it with the most
    context, and entities are made of the tokens of the whole text, so that none is cut or found twice. Results are
    lists of dicts: `entity_group` (or `entity` and `index`, with strategy `"none"`), `score`, `word`, and the
    characters `start` to `end` of the text.

    Options: `TokenClassificationOptions`.

    Example:
        >>> from longspan import pipeline
        >>> tag = pipeline("token-classification", "./my-ner", aggregation_strategy="simple")  # doctest: +SKIP
        >>> tag("Ada Lovelace was born in London.")  # doctest: +SKIP
        [{'entity_group': 'PER', 'score': 0.99, 'word': 'Ada Lovelace', 'start': 0, 'end': 12}, ...]
    """

    task: ClassVar[str] = "token-classification"
    options_class: ClassVar[type[Options]] = TokenClassificationOptions

    def __init__(self, model: Any, tokenizer: Any = None, **arguments: Any) -> None:
        super().__init__(model, tokenizer, **arguments)
        self._aggregator = Aggregator(self.tokenizer, self.model.config.id2label)

    def _texts(self, item: Any) -> list[str]:
        return [check_text(item)]

    def _job(self, item: str, tokens: list[Tokens], options: TokenClassificationOptions) -> Job:
        return self._single_job(item, tokens[0], options)

    def _pick(self, outputs: dict[str, Floats], row: Row, job: Job, options: TokenClassificationOptions) -> Floats:
        num_special = self._frame(is_pair=False).num_special
        return softmax(outputs["logits"][job.lead : job.lead + len(row) - num_special])

    def _finish(self, job: Job, picked: list[Floats], options: TokenClassificationOptions) -> list[dict[str, Any]]:
        scores = merge_windows(picked, job.windows)
        shown = job.windows[-1][1]  # fewer than there are, if the text was truncated
        tokens = Tokens(job.tokens.ids[:shown], job.tokens.starts[:shown], job.tokens.ends[:shown])
        return self._aggregator.entities(
            job.text, tokens, scores, options.aggregation_strategy, options.ignore_labels, first_index=job.lead
        )


def merge_windows(values: Sequence[Floats], windows: list[tuple[int, int]]) -> Floats:
    """Values of each token of a document, from the window that shows it with the most context.

    Args:
        values: For each window (n, ...) values of its n tokens.
        windows: Tokens `(start, stop)` of each window.

    Returns:
        (T, ...) values.
    """
    if len(values) == 1:
        return values[0]
    ranges = owned_ranges(windows)
    owned = [
        value[first - start : last - start]
        for value, (start, _), (first, last) in zip(values, windows, ranges, strict=True)
    ]
    return np.concatenate(owned)
