"""Training to embed texts: pairs, triplets, and pairs with a score."""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.checkpoints.hub import Source
from longspan.documents.document import replace_surrogates
from longspan.embeddings.modules import Layer, read_sentence_modules
from longspan.embeddings.pooling import Dense, LayerNorm, order_modes
from longspan.embeddings.sentence_encoder import SentenceEncoder, locate
from longspan.errors import InputError
from longspan.pipelines.backends.torch import pool
from longspan.pipelines.long.rows import Row
from longspan.pipelines.long.splitter import Piece, TextSplitter
from longspan.training import metrics
from longspan.training.backends.torch import weighted_cross_entropy
from longspan.training.records import Record
from longspan.training.task import Example, Sample, TensorBatch, TrainingTask, number, text_of

#: Cosines times this are the logits of the right text among all of a forward pass.
_SCALE = 20.0
_NEGATIVE, _SCORE = "negative", "score"
_RETRIEVAL = ("accuracy@1", "mrr")


class EmbedTask(TrainingTask):
    """Vectors of texts: near for what belongs together.

    A record has `anchor` and `positive`, or also `negative`, or also `score`, the cosine that is wanted. Each anchor
    picks its positive among all positives and negatives of the forward pass by cross-entropy (InfoNCE; Henderson et
    al., 2017, arXiv:1705.00652); scores are learnt by squared error. A text is the mean of its windows, weighted by
    their tokens, as `SentenceEncoder` embeds it; all its windows are read in the same forward pass.
    """

    name: ClassVar[str] = "embed"
    pipeline_task: ClassVar[str] = "feature-extraction"
    model_task: ClassVar[str] = "feature-extraction"
    frameworks: ClassVar[tuple[str, ...]] = ("torch",)
    text_field: ClassVar[str] = "anchor"
    label_field: ClassVar[str] = "positive"
    metric: ClassVar[str] = "accuracy@1"
    #: What the first record holds besides anchor and positive, which all others must: `negative`, `score` or "".
    third = ""
    encoder: SentenceEncoder

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
        """The transformer of a sentence model, or of a plain one; the weights of layers after pooling are with it."""
        torch.manual_seed(self.options.seed)
        with warnings.catch_warnings():  # it is about to become one
            warnings.filterwarnings("ignore", ".* is no sentence-transformers model", UserWarning)
            self.encoder = SentenceEncoder(name, device="cpu", max_length=self.options.max_length)
        model = self.encoder._backend.model
        for key, parameter in model.named_parameters():
            if key.startswith("pooler."):  # vectors do not depend on it
                parameter.requires_grad_(False)
        if self.encoder._modules.layers:
            model.sentence_layers = nn.ModuleList(map(_module_of, self.encoder._modules.layers))
        return model

    def open(self, model: Any, tokenizer: Any) -> None:
        """Take the model in training."""
        self.model, self.tokenizer = model, self.encoder.tokenizer
        takes_cache = "use_cache" in inspect.signature(model.forward).parameters
        self._settings = {"use_cache": False} if takes_cache else {}

    def place(self, device: torch.device) -> None:
        """Tell the encoder where accelerate has put the model."""
        self.encoder._backend.device = device

    def save(self, model: Any, output: Path) -> None:
        """Write a folder that `SentenceEncoder` and sentence-transformers load."""
        self._take_layers(model)
        if hasattr(model, "sentence_layers"):
            del model.sentence_layers
        self.encoder._backend.model = model
        self.encoder.save_pretrained(output)

    def _take_layers(self, model: Any) -> None:
        """Give the encoder the weights that layers after pooling have now."""
        modules = self.encoder._modules
        trained = getattr(model, "sentence_layers", ())
        layers = tuple(_layer_of(*both) for both in zip(modules.layers, trained, strict=True))
        self.encoder._modules = replace(modules, layers=layers)

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
        widths = sorted(len(sample.rows) * max(map(len, sample.rows)) for sample in samples)[:2]
        most = min(self.options.micro_tokens, self.options.batch_tokens)
        if len(widths) < 2 or 2 * widths[1] > most:
            raise InputError(
                "A forward pass must hold two pairs, for each learns from the others: raise micro_tokens and "
                f"batch_tokens, or give negatives. Received: room for {most} tokens, pairs of {widths} or more"
            )

    # Steps

    def batch(self, samples: Sequence[Sample], device: Any = None) -> TensorBatch:
        """Rows of all texts, padded, with their weights in pooling and in the mean over windows."""
        rows = [row for sample in samples for row in sample.rows]
        together = {key: np.concatenate([sample.targets[key] for sample in samples])
                    for key in ("tokens", "leading", "counts")}  # fmt: skip
        shape = (len(rows), max(map(len, rows)))
        ids, mask, weights, max_mask = self.encoder._batch_arrays(
            [row.ids for row in rows], together["leading"].tolist(), shape
        )
        owners = np.repeat(np.arange(len(together["counts"])), together["counts"])
        shares = np.zeros((len(together["counts"]), len(rows)), np.float32)
        shares[owners, np.arange(len(rows))] = together["tokens"]
        shares /= shares.sum(1, keepdims=True)
        inputs = {"input_ids": ids} | ({} if mask.all() else {"attention_mask": mask})
        targets = {"pooling": weights, "shares": shares} | ({} if max_mask is None else {"max_mask": max_mask})
        targets |= {key: np.stack([sample.targets[key] for sample in samples]) for key in ("texts", "score")}
        counted = torch.tensor([sample.weight for sample in samples], dtype=torch.float32, device=device)
        return TensorBatch(_tensors(inputs, device), _tensors(targets, device), counted)

    def run(self, model: Any, batch: TensorBatch) -> Any:
        """Vectors of length 1 of all texts, (B, 2 or 3, D)."""
        states = model(**batch.inputs, **self._settings).last_hidden_state.float()
        pooled: Any = pool(states, batch.targets["pooling"], batch.targets.get("max_mask"))
        vectors: Any = order_modes(self.encoder._modules.pooling, pooled)
        for layer in getattr(self.model, "sentence_layers", ()):
            vectors = layer(vectors)
        of_texts: Tensor = F.normalize(batch.targets["shares"] @ vectors, dim=-1)
        return of_texts.view(len(batch.weights), -1, of_texts.shape[-1])

    def loss(self, outputs: Any, batch: TensorBatch) -> Tensor:
        """Cross-entropy of the positive among the texts of the pass, or squared error of the cosine."""
        terms: Tensor
        anchors, others = outputs[:, 0], outputs[:, 1:].transpose(0, 1).flatten(0, 1)
        if self.third == _SCORE:
            terms = ((anchors * others).sum(-1) - batch.targets["score"]) ** 2
        else:
            logits = (_SCALE * anchors @ others.T).masked_fill(_not_negative(batch.targets["texts"]), float("-inf"))
            terms = weighted_cross_entropy(logits, torch.arange(len(logits), device=logits.device))
        weights: Tensor = batch.weights
        return (terms * weights).sum()

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


def _not_negative(texts: Tensor) -> Tensor:
    """Which texts of a pass are no negatives of which anchor, the right one aside.

    These are copies of the anchor or its positive, and the positives of the same anchor in other samples.

    Args:
        texts: (B, T) numbers of the texts: anchor, positive, negative.

    Returns:
        (B, (T - 1) B), all positives first; True at what is left out.
    """
    count = len(texts)
    others = texts[:, 1:].T.reshape(-1)
    found = (others == texts[:, :1]) | (others == texts[:, 1:2])
    found[:, :count] |= texts[:, 0] == texts[:, :1]
    found[:, :count].fill_diagonal_(fill_value=False)
    return found


def _tensors(arrays: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


class _UnitLength(nn.Module):
    """A normalisation between other layers."""

    def forward(self, vectors: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        return F.normalize(vectors, dim=-1)


def _module_of(layer: Layer) -> nn.Module:
    """A layer after pooling as one that can be trained."""
    if isinstance(layer, Dense):
        size, width = layer.weight.shape
        linear = nn.Linear(width, size, bias=layer.bias is not None)
        _fill(linear, layer)
        return nn.Sequential(linear, getattr(nn, layer.activation)())
    if isinstance(layer, LayerNorm):
        norm = nn.LayerNorm(len(layer.weight))
        _fill(norm, layer)
        return norm
    return _UnitLength()


def _fill(module: nn.Module, layer: Dense | LayerNorm) -> None:
    weights = {"weight": layer.weight, "bias": layer.bias}
    module.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items() if value is not None})


def _layer_of(layer: Layer, module: nn.Module) -> Layer:
    """The layer with the weights of its module."""
    if not isinstance(layer, Dense | LayerNorm):
        return layer
    state = (module[0] if isinstance(module, nn.Sequential) else module).state_dict()
    return replace(layer, **{key: value.cpu().numpy().copy() for key, value in state.items()})
