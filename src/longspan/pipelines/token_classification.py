"""Token classification: entities in documents, with the characters where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from longspan.documents.document import replace_surrogates
from longspan.documents.tokens import Tokens
from longspan.errors import InputError
from longspan.pipelines.base import Job, Pipeline, check_text
from longspan.pipelines.long.aggregation import STRATEGIES, Aggregator
from longspan.pipelines.long.merging import Floats, merge_windows, softmax
from longspan.pipelines.long.rows import Row
from longspan.pipelines.options import Options, check_choice, warn_of_old_word

_NO_TOKENS = Tokens(np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64))


@dataclass(frozen=True)
class TokenClassificationOptions(Options):
    """Options of token classification, besides those of every task.

    Attributes:
        aggregation_strategy: How tokens become entities: `"none"` (each token by itself), `"simple"` (neighbours of one
            kind), or, so that no word gets two labels, by its `"first"` token, the `"average"` of its tokens or the
            one of `"max"` score.
        ignore_labels: Labels that are left out; default `["O"]`.
        is_split_into_words: Inputs are lists of words, which no token reaches across.
        delimiter: What stands between words in the text that `start` and `end` count characters of.
    """

    aggregation_strategy: str = "none"
    ignore_labels: Sequence[str] = ("O",)
    is_split_into_words: bool = False
    delimiter: str = " "

    def __post_init__(self) -> None:
        super().__post_init__()
        strategy = str(getattr(self.aggregation_strategy, "value", self.aggregation_strategy)).lower()
        object.__setattr__(self, "aggregation_strategy", strategy)
        check_choice("aggregation_strategy", self.aggregation_strategy, STRATEGIES)

    def _renamed(self, settings: dict[str, Any]) -> dict[str, Any]:
        old = {word: settings.pop(word, None) for word in ("grouped_entities", "ignore_subwords")}
        given = [word for word, value in old.items() if value is not None]
        if given:
            grouped = "first" if old["ignore_subwords"] else "simple"
            settings["aggregation_strategy"] = grouped if old["grouped_entities"] else "none"
            warn_of_old_word(" and ".join(given), f"aggregation_strategy={settings['aggregation_strategy']!r}")
        return settings


class TokenClassificationPipeline(Pipeline):
    """Tags tokens and finds entities in texts of any length; see `Pipeline` for the arguments.

    A long text is read in overlapping windows. Each token takes its scores from the window that shows it with the most
    context, and entities are made of the tokens of the whole text, so that none is cut or found twice. Results are
    lists of dicts: `entity_group` (or `entity` and `index`, with strategy `"none"`), `score`, `word`, and the
    characters `start` to `end` of the text. With `is_split_into_words` an input is a list of words; as in the
    reference, one such list gives a list of one result.

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

    def __call__(self, inputs: Any, **settings: Any) -> Any:
        """Tag; see `Pipeline.__call__`."""
        is_split = settings.get("is_split_into_words", getattr(self.options, "is_split_into_words", False))
        if is_split and isinstance(inputs, list | tuple) and not all(isinstance(item, list) for item in inputs):
            inputs = [inputs]
        return super().__call__(inputs, **settings)

    def prepare_block(self, items: list[Any], options: Options) -> list[Job | InputError]:
        """As `Pipeline.prepare_block`, also of lists of words."""
        assert isinstance(options, TokenClassificationOptions)
        if not options.is_split_into_words:
            return super().prepare_block(items, options)
        jobs: list[Job | InputError] = []
        for item in items:
            try:
                words = _check_words(item)
                text = options.delimiter.join(words)
                tokens = self._tokenize_words(words, len(options.delimiter)) if words else _NO_TOKENS
                jobs.append(self._single_job(text, tokens, options))
            except InputError as error:
                jobs.append(error)
        return jobs

    def _tokenize_words(self, words: list[str], gap: int) -> Tokens:
        """Tokens of words, with characters of the text that has `gap` characters between words."""
        found = self.tokenizer(
            words, is_split_into_words=True, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        word_of = np.asarray(found.word_ids(), np.int64)
        begins = np.cumsum([0, *(len(word) + gap for word in words)])[word_of]
        offsets = np.asarray(found["offset_mapping"], np.int64).reshape(-1, 2) + begins[:, None]
        return Tokens(np.asarray(found["input_ids"], np.int32), offsets[:, 0], offsets[:, 1], word_of)

    def _texts(self, item: Any) -> list[str]:
        return [check_text(item)]

    def _job(self, item: str, tokens: list[Tokens], options: TokenClassificationOptions) -> Job:
        return self._single_job(item, tokens[0], options)

    def _pick(self, outputs: dict[str, Floats], row: Row, job: Job, options: TokenClassificationOptions) -> Floats:
        num_special = self._template(is_pair=False).num_special
        return softmax(outputs["logits"][job.lead : job.lead + len(row) - num_special])

    def _finish(self, job: Job, picked: list[Floats], options: TokenClassificationOptions) -> list[dict[str, Any]]:
        scores = merge_windows(picked, job.windows)
        shown = job.windows[-1][1]  # fewer than there are, if the text was truncated
        tokens = Tokens(job.tokens.ids[:shown], job.tokens.starts[:shown], job.tokens.ends[:shown])
        return self._aggregator.entities(
            job.text, tokens, scores, options.aggregation_strategy, options.ignore_labels, first_index=job.lead
        )


def _check_words(item: Any) -> list[str]:
    if not isinstance(item, list | tuple):
        raise InputError(f"With is_split_into_words an input must be a list of words. Received: {type(item).__name__}")
    return [replace_surrogates(check_text(word, "Each word")) for word in item]
