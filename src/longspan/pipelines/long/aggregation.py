"""From the scores of tokens to entities."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longspan.documents.tokens import Tokens
from longspan.pipelines.long.merging import Floats

STRATEGIES = ("none", "simple", "first", "average", "max")
_WORD_STRATEGIES = ("first", "average", "max")
_SPACE = ord(" ")


@dataclass(frozen=True, eq=False)
class _Units:
    """Tokens or words with one label each.

    Attributes:
        labels: (U,) index of the label.
        scores: (U,) its score.
        first: (U,) first token.
        last: (U,) last token.
    """

    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.floating[Any]]
    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]


def _marks_of(labels: Collection[str]) -> tuple[str, ...]:
    """The marks before kinds: those of IOBES or BILOU, if all labels but `O` have one, else `B-` and `I-`."""
    found = {label[:2] for label in labels if label != "O"}
    for scheme in (("B-", "I-", "E-", "S-"), ("B-", "I-", "L-", "U-")):
        if found <= set(scheme) and found & set(scheme[2:]):
            return scheme
    return ("B-", "I-")


class Aggregator:
    """Makes entities of tokens.

    Labels may begin with `B-` (begins an entity) or `I-` (goes on, or begins one after another kind); others count as
    `I-`. Where all but `O` are marked as in IOBES (also `E-`, the last token, and `S-`, the only one) or BILOU (`L-`
    and `U-`), these count too. Neighbours of one kind are one entity unless the first ends or the second begins one.

    Args:
        tokenizer: The tokenizer that the tokens are from.
        id2label: Label of each class.
    """

    def __init__(self, tokenizer: Any, id2label: Mapping[int, str]) -> None:
        self._labels = [id2label[index] for index in range(len(id2label))]
        marks = _marks_of(self._labels)
        kinds = [label[2:] if label[:2] in marks else label for label in self._labels]
        self._kinds = np.array([kinds.index(kind) for kind in kinds], np.int64)
        self._begins = np.array([label[:2] in marks and label[0] in "BSU" for label in self._labels])
        self._ends = np.array([label[:2] in marks and label[0] in "ELSU" for label in self._labels])
        self._names = [label.split("-", 1)[-1] for label in self._labels]
        self._decoder = tokenizer.backend_tokenizer.decoder
        vocabulary = tokenizer.get_vocab()
        self._tokens: dict[int, str] = {index: token for token, index in vocabulary.items()}
        self._unknown = tokenizer.unk_token_id
        self._marks_words = bool(getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None))
        self._lengths = np.zeros(max(self._tokens) + 1, np.int64)
        self._lengths[list(self._tokens)] = [len(token) for token in self._tokens.values()]

    def entities(
        self,
        text: str,
        tokens: Tokens,
        scores: Floats,
        strategy: str,
        ignored: Collection[str],
        *,
        first_index: int = 0,
    ) -> list[dict[str, Any]]:
        """Entities of a text.

        Args:
            text: The text.
            tokens: Its tokens with their characters.
            scores: (T, N) score of each label for each token.
            strategy: One of `STRATEGIES`.
            ignored: Labels (`entity`, or `entity_group` without `B-` and `I-`) that are left out.
            first_index: Index of the first token in results.

        Returns:
            Dicts as the reference's pipeline returns them, in order.
        """
        if len(tokens.ids) == 0:
            return []
        if strategy in _WORD_STRATEGIES:
            units = self._words(text, tokens, scores, strategy)
        else:
            every = np.arange(len(tokens.ids))
            labels = scores.argmax(axis=1)
            units = _Units(labels, scores[every, labels], every, every)
        if strategy == "none":
            kept = [index for index, label in enumerate(units.labels) if self._labels[label] not in ignored]
            return [self._token_entity(text, tokens, units, index, first_index) for index in kept]
        return self._groups(text, tokens, units, strategy, ignored)

    def _words(self, text: str, tokens: Tokens, scores: Floats, strategy: str) -> _Units:
        first = np.flatnonzero(~self._goes_on(text, tokens))
        if len(first) == 0 or first[0] != 0:
            first = np.concatenate([[0], first])
        last = np.append(first[1:], len(tokens.ids)) - 1
        if strategy == "average":
            counts = (last - first + 1).astype(scores.dtype)
            of_words = np.asarray(np.add.reduceat(scores, first, axis=0) / counts[:, None], scores.dtype)
        elif strategy == "first":
            of_words = scores[first]
        else:
            best = scores.max(axis=1)
            chosen = [start + int(best[start : stop + 1].argmax()) for start, stop in zip(first, last, strict=True)]
            of_words = scores[chosen]
        labels = of_words.argmax(axis=1)
        return _Units(labels, of_words[np.arange(len(labels)), labels], first, last)

    def _goes_on(self, text: str, tokens: Tokens) -> npt.NDArray[np.bool_]:
        """Which tokens go on with the word of the token before them, (T,).

        A vocabulary that marks such tokens says so itself; otherwise a token goes on unless white space comes before
        it. The unknown token is a word of its own.
        """
        if self._marks_words:
            goes_on = self._lengths[tokens.ids] != tokens.ends - tokens.starts
        else:
            read = text[: int(tokens.ends.max()) + 1]
            codes = np.frombuffer(read.encode("utf-32-le", "surrogatepass"), "<u4")
            blank = np.append(codes == _SPACE, False)
            starts = tokens.starts
            goes_on = (starts > 0) & ~blank[np.maximum(starts - 1, 0)] & ~blank[starts]
        result: npt.NDArray[np.bool_] = goes_on if self._unknown is None else goes_on & (tokens.ids != self._unknown)
        return result

    def _groups(
        self, text: str, tokens: Tokens, units: _Units, strategy: str, ignored: Collection[str]
    ) -> list[dict[str, Any]]:
        kinds = self._kinds[units.labels]
        labels = units.labels
        breaks = (kinds[1:] != kinds[:-1]) | self._begins[labels[1:]] | self._ends[labels[:-1]]
        starts = np.concatenate([[0], np.flatnonzero(breaks) + 1])
        stops = np.append(starts[1:], len(kinds))
        entities = []
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            name = self._names[units.labels[start]]
            if name in ignored:
                continue
            first, last = units.first[start], units.last[stop - 1]
            entity = {
                "entity_group": name,
                "score": float(units.scores[start:stop].mean()),
                "word": self._joined(text, tokens, units, start, stop, strategy),
                "start": int(tokens.starts[first]),
                "end": int(tokens.ends[last]),
            }
            entities.append(entity)
        return entities

    def _joined(self, text: str, tokens: Tokens, units: _Units, start: int, stop: int, strategy: str) -> str:
        words = []
        for index in range(start, stop):
            pieces = [self._word(text, tokens, token) for token in range(units.first[index], units.last[index] + 1)]
            words.append(self._decode(pieces) if strategy in _WORD_STRATEGIES else pieces[0])
        return self._decode(words)

    def _token_entity(self, text: str, tokens: Tokens, units: _Units, index: int, first_index: int) -> dict[str, Any]:
        return {
            "entity": self._labels[units.labels[index]],
            "score": float(units.scores[index]),
            "index": first_index + index,
            "word": self._word(text, tokens, index),
            "start": int(tokens.starts[index]),
            "end": int(tokens.ends[index]),
        }

    def _word(self, text: str, tokens: Tokens, index: int) -> str:
        token = int(tokens.ids[index])
        if token == self._unknown:
            return text[tokens.starts[index] : tokens.ends[index]]
        return self._tokens[token]

    def _decode(self, words: list[str]) -> str:
        return " ".join(words) if self._decoder is None else str(self._decoder.decode(words))
