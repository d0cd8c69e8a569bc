"""Zero-shot classification by embeddings or by entailment: labels that no model was trained on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from longspan.checkpoints.hub import Source
from longspan.checkpoints.untrusted import read_json
from longspan.configuration import CONFIG_NAME, SOURCE_ARGUMENTS
from longspan.embeddings.pooling import normalize
from longspan.embeddings.sentence_encoder import SentenceEncoder
from longspan.errors import InputError
from longspan.pipelines.base import check_text
from longspan.pipelines.long.merging import softmax
from longspan.pipelines.run.attributes import FixedAttributes
from longspan.pipelines.run.progress import progress_bar
from longspan.pipelines.text_classification import TextClassificationPipeline

#: Cosines are multiplied by this before the softmax, as in the training of most sentence encoders.
_SCALE = 20.0
#: What a label is put into, for an encoder and for a model of entailment (as in the reference).
_TEMPLATE, _HYPOTHESIS = "This text is about {}.", "This example is {}."


class ZeroShotClassificationPipeline(FixedAttributes):
    """Gives texts of any length the labels whose descriptions mean most alike.

    Text and labels become vectors of a `SentenceEncoder` (a long text the mean of its windows); the score of a label is
    `softmax(20 · cosine)` over the labels, or with `multi_label` its cosine, at least 0.

    A sequence classifier that has a label named `entailment` is asked whether the text entails each hypothesis, as in
    the reference: the softmax of these scores over the labels, or with `multi_label` that of entailment beside
    contradiction. Scores of a long text are the mean of its windows. Results have one form: `sequence`, and `labels`
    with `scores`, best first.

    Args:
        model: Directory or hub repository of a sentence encoder or of a classifier of entailment; default the packaged
            all-MiniLM-L6-v2.
        tokenizer: That of a classifier of entailment; a sentence encoder brings its own.
        candidate_labels: Labels of calls that name none: a list, or words separated by commas.
        hypothesis_template: What a label is put into before it is embedded or judged; `{}` is its place. Default: "This
            text is about {}.", for entailment "This example is {}.".
        multi_label: Score each label by itself.
        on_long: See `SentenceEncoder.encode`.
        show_progress: Draw a bar with documents and tokens on the standard error stream.
        **arguments: As for `SentenceEncoder` or `TextClassificationPipeline`: `framework`, `device`, `dtype`,
            `max_length`, `batch_tokens` and others.

    Raises:
        InputError: an argument breaks a rule.

    Example:
        >>> from longspan import pipeline
        >>> classify = pipeline("zero-shot-classification", candidate_labels=["cooking", "law"])
        >>> classify("Simmer the onions for ten minutes.")["labels"][0]
        'cooking'
    """

    task = "zero-shot-classification"
    encoder: SentenceEncoder
    framework: str
    _judge: TextClassificationPipeline | None

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        *,
        candidate_labels: str | list[str] | None = None,
        hypothesis_template: str | None = None,
        multi_label: bool = False,
        on_long: Any = "window",
        show_progress: bool = False,
        **arguments: Any,
    ) -> None:
        self._judge = None
        if _tells_entailment(model, arguments):
            self._judge = TextClassificationPipeline(model, tokenizer, **arguments)
            self.framework = self._judge.framework
        else:
            if tokenizer is not None:
                raise InputError(f"tokenizer must be None: a sentence encoder brings its own. Received: {tokenizer!r}")
            self.encoder = SentenceEncoder(model, **arguments)
            self.framework = self.encoder.framework
        if hypothesis_template is None:
            hypothesis_template = _TEMPLATE if self._judge is None else _HYPOTHESIS
        self._defaults = {
            "candidate_labels": candidate_labels,
            "hypothesis_template": hypothesis_template,
            "multi_label": multi_label,
            "on_long": on_long,
            "show_progress": show_progress,
        }

    def identity(self) -> dict[str, Any]:
        """Everything that results depend on besides the texts and options of a call."""
        defaults = {name: value for name, value in self._defaults.items() if name != "show_progress"}
        if self._judge is not None:
            return {**self._judge.identity(), "defaults": defaults}
        encoder = self.encoder
        lengths = {"max_length": encoder.max_length, "batch_tokens": encoder.batch_tokens}
        return {**encoder.identity(), **lengths, "defaults": defaults}

    def __call__(
        self, sequences: str | Iterable[str], candidate_labels: str | list[str] | None = None, **settings: Any
    ) -> Any:
        """Classify.

        Args:
            sequences: One text, a list of them, or any other iterable.
            candidate_labels: The labels; default those of the constructor.
            **settings: `hypothesis_template`, `multi_label`, `on_long`, `show_progress` for this call.

        Returns:
            The result of one text; a list for a list; a generator for other iterables.

        Raises:
            InputError: an argument breaks a rule.
        """
        unknown = [name for name in settings if name not in self._defaults]
        if unknown:
            raise InputError(f"The options of {self.task} are {', '.join(self._defaults)}. Received: {unknown[0]}")
        options = {**self._defaults, **settings}
        labels = _read_labels(options["candidate_labels"] if candidate_labels is None else candidate_labels)
        if "{}" not in options["hypothesis_template"]:
            template = options["hypothesis_template"]
            raise InputError(f"hypothesis_template must hold {{}}. Received: hypothesis_template={template!r}")
        classify = self._results if self._judge is None else self._judged
        results = classify([sequences] if isinstance(sequences, str) else sequences, labels, options)
        if isinstance(sequences, str):
            return next(results)
        return list(results) if isinstance(sequences, list | tuple) else results

    def _results(
        self, sequences: Iterable[str], labels: list[str], options: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        template = options["hypothesis_template"]
        of_labels = normalize(self.encoder.encode([template.format(label) for label in labels], normalize=True))
        texts = [sequences] if isinstance(sequences, str) else sequences
        kept: list[str] = []  # texts that the encoder has read ahead
        with progress_bar(options["show_progress"]) as progress:
            progress.start(len(texts) if isinstance(texts, Sequence) else None, None)
            vectors = self.encoder.encode_iter(
                _remember(texts, kept), normalize=True, on_long=options["on_long"], progress=progress
            )
            for vector in vectors:
                cosines = of_labels @ vector
                scores = np.maximum(cosines, 0) if options["multi_label"] else softmax(np.float32(_SCALE) * cosines)
                yield _ranked(kept.pop(0), labels, scores)

    def _judged(
        self, sequences: Iterable[str], labels: list[str], options: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        kept: list[str] = []
        hypotheses = [options["hypothesis_template"].format(label) for label in labels]
        pairs = ({"text": text, "text_pair": each} for text in _remember(sequences, kept) for each in hypotheses)
        judge: Any = self._judge
        settings = {name: options[name] for name in ("on_long", "show_progress")}
        found = judge(pairs, top_k=None, function_to_apply="none", **settings)
        id2label = judge.model.config.id2label
        names = [id2label[index] for index in range(len(id2label))]
        entailment = next(index for index, name in enumerate(names) if _is_entailment(name))
        contradiction = len(names) - 1 if entailment == 0 else 0  # where the reference looks for it
        while answers := list(islice(found, len(labels))):
            scored = [{answer["label"]: answer["score"] for answer in rows} for rows in answers]
            table = np.array([[row[name] for name in names] for row in scored], np.float32)
            if options["multi_label"] or len(labels) == 1:
                scores = np.array([softmax(row)[1] for row in table[:, [contradiction, entailment]]])
            else:
                scores = softmax(table[:, entailment])
            yield _ranked(kept.pop(0), labels, scores)


def _tells_entailment(model: Any, arguments: Mapping[str, Any]) -> bool:
    """True for a classifier, loaded or named, that has a label of entailment."""
    if isinstance(model, str | os.PathLike):
        file = Source(model, **{n: arguments[n] for n in SOURCE_ARGUMENTS if n in arguments}).find(CONFIG_NAME)
        labels = None if file is None else read_json(file).get("id2label")
    else:
        labels = getattr(getattr(model, "config", None), "id2label", None)
    return isinstance(labels, Mapping) and any(map(_is_entailment, labels.values()))


def _is_entailment(label: Any) -> bool:
    return str(label).lower().startswith("entail")


def _ranked(sequence: str, labels: list[str], scores: Any) -> dict[str, Any]:
    order = np.argsort(-scores, kind="stable")
    return {
        "sequence": sequence,
        "labels": [labels[index] for index in order],
        "scores": [float(scores[index]) for index in order],
    }


def _remember(texts: Iterable[str], kept: list[str]) -> Iterator[str]:
    for text in texts:
        kept.append(check_text(text))
        yield text


def _read_labels(labels: Any) -> list[str]:
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    if not labels or not all(isinstance(label, str) for label in labels):
        raise InputError(f"candidate_labels must be at least one label. Received: candidate_labels={labels!r}")
    return list(labels)
