"""Training to embed texts: pairs, triplets, and pairs with a score."""

from __future__ import annotations

import hashlib
import importlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from longspan.checkpoints.hub import Source
from longspan.documents.document import replace_surrogates
from longspan.embeddings.modules import read_sentence_modules
from longspan.embeddings.sentence_encoder import SentenceEncoder, locate
from longspan.errors import InputError
from longspan.inputs import IGNORE_INDEX
from longspan.pipelines.long.rows import Row
from longspan.pipelines.long.splitter import Piece, TextSplitter
from longspan.training import metrics
from longspan.training.options import TrainOptions
from longspan.training.records import Record
from longspan.training.task import Example, Sample, TensorBatch, TrainingTask, number, text_of

#: Cosines times this are the logits of the right text among all of a forward pass.
_SCALE = 20.0
_NEGATIVE, _SCORE = "negative", "score"
_RETRIEVAL = ("accuracy@1", "mrr")


class EmbedTask(TrainingTask):
    """Vectors of texts: near for what belongs together.

    A record has `anchor` and `positive`, or also `negative`, or also `score`, the cosine that is wanted. Each anchor
    picks its positive among all positives and negatives of the forward pass by cross-entropy (multiple negatives
    ranking; Henderson et al., 2017, arXiv:1705.00652); scores are learnt by squared error. A text is the mean of its
    windows, weighted by their tokens, as `SentenceEncoder` embeds it; all its windows are read in the same pass.
    """

    name: ClassVar[str] = "embed"
    pipeline_task: ClassVar[str] = "feature-extraction"
    model_task: ClassVar[str] = "feature-extraction"
    text_field: ClassVar[str] = "anchor"
    label_field: ClassVar[str] = "positive"
    metric: ClassVar[str] = "accuracy@1"
    #: What the first record holds besides anchor and positive, which all others must: `negative`, `score` or "".
    third = ""
    encoder: SentenceEncoder

    def __init__(self, options: TrainOptions) -> None:
        super().__init__(options)
        self._framework: Any = importlib.import_module(f"longspan.training.sentences.{options.framework}")

    @property
    def best_metric(self) -> str:
        """Accuracy@1 of retrieval, Spearman's correlation for scores."""
        return self.options.metric or ("spearman" if self.third == _SCORE else self.metric)

    @property
    def metric_names(self) -> tuple[str, ...]:  # type: ignore[override]  # which they are is known when records are
        """Those of the kind of records."""
        return ("spearman",) if self.third == _SCORE else _RETRIEVAL

    # Records

    def example(self, record: Record) -> Example:
        """The texts, and the score."""
        third = [name for name in (_NEGATIVE, _SCORE) if record.values.get(name) is not None]
        if len(third) > 1:
            raise InputError("A record must have one of the columns 'negative' and 'score'. Received: both")
        columns = [self.text_column, self.label_column, *(name for name in third if name == _NEGATIVE)]
        texts = [replace_surrogates(text_of(record, name)) for name in columns]
        if third != [_SCORE]:
            return Example(texts, None, record)
        score = number(record.values[_SCORE], _SCORE)
        if not -1 <= score <= 1:
            raise InputError(f"column 'score' must be a cosine, in [-1, 1] (scale others). Received: {score}")
        return Example(texts, score, record)

    def learn_labels(self, examples: Sequence[Example], known: Mapping[str, int]) -> None:
        """Take note what the records hold."""
        self.third = _third(examples[0])

    # The model

    def source(self, name: str) -> Source:
        """Where the transformer of a sentence model is."""
        return read_sentence_modules(Source(locate(name)[1])).transformer

    def load(self, name: str) -> Any:
        """The transformer of a sentence model, or of a plain one, with the layers after pooling."""
        options = self.options
        self.backend.seed(options.seed)
        is_torch = options.framework == "torch"  # accelerate sees to device and precision later
        settings = {"device": "cpu"} if is_torch else {"device": options.device, "dtype": options.precision}
        with warnings.catch_warnings(), self.backend.scope(options):
            # it is about to become one
            warnings.filterwarnings("ignore", ".* is no sentence-transformers model", UserWarning)
            self.encoder = SentenceEncoder(name, framework=options.framework, max_length=options.max_length, **settings)
            return self._framework.model_of(self.encoder, options)

    def open(self, model: Any, tokenizer: Any) -> None:
        """Take the model in training."""
        self.model, self.tokenizer = model, self.encoder.tokenizer

    def place(self, device: Any) -> None:
        """Tell the encoder where accelerate has put the model."""
        self.encoder._backend.device = device

    def save(self, model: Any, output: Path) -> None:
        """Write a folder that `SentenceEncoder` and sentence-transformers load."""
        self._take_layers(model)
        self.encoder._backend.model = self._framework.detach(model)
        self.encoder.save_pretrained(output)

    def _take_layers(self, model: Any) -> None:
        """Give the encoder the weights that layers after pooling have now."""
        modules = self.encoder._modules
        self.encoder._modules = replace(modules, layers=self._framework.layers_of(model, modules.layers))

    # Samples

    @property
    def _reading(self) -> dict[str, Any]:
        return {"on_long": self.options.on_long, "overlap": self.options.stride}

    def _prompts(self) -> tuple[str, str]:
        """Prompts of the anchor and of the other texts: those of queries and documents, but for scores one for both."""
        encoder = self.encoder
        if self.third == _SCORE:
            prompt = encoder._resolve_prompt(None, None)
            return prompt, prompt
        return encoder.query_prompt, encoder.document_prompt

    def samples(self, examples: Sequence[Example]) -> list[list[Sample] | InputError]:
        """One sample an example, whose rows are the windows of all its texts."""
        first, second = (self.encoder.splitter(prompt=prompt, **self._reading) for prompt in self._prompts())
        anchors = iter(_pieces(first, [example.item[0] for example in examples]))
        others = iter(_pieces(second, [text for example in examples for text in example.item[1:]]))
        found: list[list[Sample] | InputError] = []
        for example in examples:
            texts = [next(anchors), *islice(others, len(example.item) - 1)]
            try:
                found.append([self._sample(example, texts)])
            except InputError as error:
                found.append(error)
        return found

    def _sample(self, example: Example, texts: Sequence[list[Piece] | InputError]) -> Sample:
        if _third(example) != self.third:
            raise InputError(f"Records must be alike. Received: one with {_third(example) or 'neither'!r}, "
                             f"the first with {self.third or 'neither'!r}")  # fmt: skip
        pieces: list[Piece] = []
        for name, of_text in zip((self.text_column, self.label_column, _NEGATIVE), texts, strict=False):
            if isinstance(of_text, InputError):
                raise InputError(f"column {name!r}: {of_text}")
            if not of_text[0].num_tokens:
                raise InputError(f"column {name!r} must have at least one token. Received: a text without any")
            pieces += of_text
        targets = {
            "tokens": np.array([piece.num_tokens for piece in pieces], np.float32),
            "leading": np.array([piece.num_leading for piece in pieces]),
            "counts": np.array([len(of_text) for of_text in texts if not isinstance(of_text, InputError)]),
            "texts": np.array([_number_of(text) for text in example.item]),
            "score": np.float32(example.target or 0),
        }
        return Sample([Row(piece.ids, np.zeros(len(piece.ids), np.int32)) for piece in pieces], targets)

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """Raise `InputError` if no forward pass holds two pairs: a pair learns from the others of its pass."""
        if self.third:
            return
        widths = sorted(map(self.width_of, samples))[:2]
        most = min(self.options.micro_tokens, self.options.batch_tokens)
        if len(widths) < 2 or 2 * widths[1] > most:
            raise InputError(
                "A forward pass must hold two pairs, for each learns from the others: raise micro_tokens and "
                f"batch_tokens, or give negatives. Received: room for {most} tokens, pairs of {widths} or more"
            )

    # Steps

    def arrays(self, samples: Sequence[Sample], shape: tuple[int, int] | None = None) -> TensorBatch:
        """Rows of all texts, padded, with their weights in pooling and their shares of the texts.

        Args:
            samples: What is read together.
            shape: Samples and tokens to pad to, default none: samples without rows of their own, which count nothing
                and are nobody's negatives, fill up, and rows that are part of no text.
        """
        count, length = (len(samples), 0) if shape is None else shape
        rows = [row for sample in samples for row in sample.rows]
        num_rows = len(rows) if shape is None else -(-len(rows) // count) * count
        rows += [rows[-1]] * (num_rows - len(rows))
        leading = np.concatenate([sample.targets["leading"] for sample in samples])
        ids, mask, pooling, max_mask = self.encoder._batch_arrays(
            [row.ids for row in rows],
            np.pad(leading, (0, num_rows - len(leading)), mode="edge").tolist(),
            (num_rows, max(length or 0, *map(len, rows))),
        )
        inputs = {"input_ids": ids, "attention_mask": mask, "pooling": pooling}
        inputs |= {"shares": _shares(samples, count, num_rows)} | ({} if max_mask is None else {"max_mask": max_mask})
        filled = [*samples, *[samples[-1]] * (count - len(samples))]
        is_there = np.arange(count) < len(samples)
        negatives = ~_not_negative(np.stack([sample.targets["texts"] for sample in filled]))
        targets = {
            "labels": np.where(is_there, np.arange(count), IGNORE_INDEX),
            "candidates": negatives & np.tile(is_there, negatives.shape[1] // count),
            "score": np.stack([sample.targets["score"] for sample in filled]),
        }
        return TensorBatch(inputs, targets, np.array([sample.weight for sample in filled], np.float32) * is_there)

    def run(self, model: Any, batch: TensorBatch) -> Any:
        """Vectors of length 1 of all texts, (B, 2 or 3, D)."""
        return self._framework.run(model, self.model, batch.inputs, self.encoder._modules.pooling)

    def loss(self, outputs: Any, batch: TensorBatch) -> Any:
        """Cross-entropy of the positive among the texts of the pass, or squared error of the cosine."""
        backend = self.backend
        if self.third == _SCORE:
            terms = backend.squared_error(backend.cosines_of_pairs(outputs), batch.targets["score"])
        else:
            logits = backend.hide(_SCALE * backend.cosines(outputs), batch.targets["candidates"])
            terms = backend.cross_entropy(logits, batch.targets["labels"])
        return backend.total(terms, batch.weights)

    # Evaluation

    def evaluate(self, examples: Sequence[Example]) -> dict[str, float]:
        """Retrieval of the positives among all positives and negatives, or Spearman's correlation of the scores."""
        self._take_layers(self.model)
        anchors = [example.item[0] for example in examples]
        first, second = self._prompts()
        found = self._encode(anchors, first)
        if self.third == _SCORE:
            cosines = (found * self._encode([example.item[1] for example in examples], second)).sum(1)
            return metrics.rank_correlation(cosines, np.array([example.target for example in examples]))
        places: dict[str, int] = {}
        right: dict[str, list[int]] = {}
        for example in examples:
            for text in example.item[1:]:
                places.setdefault(text, len(places))
            right.setdefault(example.item[0], []).append(places[example.item[1]])
        itself = [[places[text]] if text in places and places[text] not in right[text] else [] for text in anchors]
        return metrics.retrieval(found, self._encode(list(places), second), [right[text] for text in anchors], itself)

    def _encode(self, texts: list[str], prompt: str) -> Any:
        settings = {"normalize": True, "batch_tokens": self.options.micro_tokens, **self._reading}
        return self.encoder.encode(texts, prompt=prompt, **settings)


def _third(example: Example) -> str:
    return _SCORE if example.target is not None else _NEGATIVE if len(example.item) > 2 else ""


def _pieces(splitter: TextSplitter, texts: Sequence[str]) -> list[list[Piece] | InputError]:
    """The pieces of each text, or why it has none."""
    try:
        return list(splitter.split(texts))
    except InputError as error:
        return [error] if len(texts) == 1 else [found for text in texts for found in _pieces(splitter, [text])]


def _number_of(text: str) -> int:
    """A number by which equal texts are known; 7 bytes, which fit an int64."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())


def _shares(samples: Sequence[Sample], count: int, num_rows: int) -> npt.NDArray[np.float32]:
    """(`count`, T, `num_rows`) share of each row in each text, by its tokens; the last sample's again at the end."""
    num_texts = len(samples[0].targets["counts"])
    shares = np.zeros((count, num_texts, num_rows), np.float32)
    begin = 0
    for place, sample in enumerate(samples):
        owners = np.repeat(np.arange(num_texts), sample.targets["counts"])
        shares[place, owners, begin + np.arange(len(owners))] = sample.targets["tokens"]
        begin += len(owners)
    shares[len(samples) :] = shares[len(samples) - 1]
    shares /= shares.sum(-1, keepdims=True)
    return shares


def _not_negative(texts: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which texts of a pass are no negatives of which anchor, the right one aside.

    These are copies of the anchor or its positive, and the positives of the same anchor in other samples.

    Args:
        texts: (B, T) numbers of the texts: anchor, positive, negative.

    Returns:
        (B, (T - 1) B), all positives first; True at what is left out.
    """
    count = len(texts)
    others = texts[:, 1:].T.reshape(-1)
    found: npt.NDArray[np.bool_] = (others == texts[:, :1]) | (others == texts[:, 1:2])
    found[:, :count] |= texts[:, 0] == texts[:, :1]
    np.fill_diagonal(found[:, :count], val=False)
    return found
