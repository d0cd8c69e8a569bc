"""Metrics of whole documents, in the definitions that scikit-learn, seqeval and SQuAD's script have."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from longspan.errors import InputError

Metrics = dict[str, float]


def single_label(found: npt.NDArray[Any], truth: npt.NDArray[Any]) -> Metrics:
    """Accuracy, and F1 averaged over the classes that occur; both (D,) indices."""
    classes = np.union1d(found, truth)
    return {
        "accuracy": float((found == truth).mean()),
        "f1": float(np.mean([_f1(found == each, truth == each) for each in classes])),
    }


def multi_label(found: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> Metrics:
    """Part of the documents with exactly the right labels, macro-F1 and micro-F1; both (D, N)."""
    return {
        "accuracy": float((found == truth).all(1).mean()),
        "f1": float(np.mean([_f1(of_class, right) for of_class, right in zip(found.T, truth.T, strict=True)])),
        "f1_micro": _f1(found.ravel(), truth.ravel()),
    }


def regression(found: npt.NDArray[Any], truth: npt.NDArray[Any]) -> Metrics:
    """Mean squared error, and Pearson's correlation (0 where one side is constant); both (D,)."""
    return {"mse": float(((found - truth) ** 2).mean()), "pearson": _correlation(found, truth)}


def rank_correlation(found: npt.NDArray[Any], truth: npt.NDArray[Any]) -> Metrics:
    """Spearman's correlation, equal values at the mean of their ranks (0 where one side is constant); both (D,)."""
    return {"spearman": _correlation(_ranks(found), _ranks(truth))}


def _correlation(found: npt.NDArray[Any], truth: npt.NDArray[Any]) -> float:
    is_constant = len(truth) < 2 or found.std() == 0 or truth.std() == 0
    return 0.0 if is_constant else float(np.corrcoef(found, truth)[0, 1])


def _ranks(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: npt.NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks


def retrieval(
    anchors: npt.NDArray[Any],
    candidates: npt.NDArray[Any],
    right: Sequence[Sequence[int]],
    ignored: Sequence[Sequence[int]],
) -> Metrics:
    """Part of the anchors whose nearest candidate is right, and mean of 1 / rank of the nearest right one.

    A wrong candidate as near as the right one comes before it.

    Args:
        anchors: (A, D) of length 1.
        candidates: (C, D) of length 1.
        right: For each anchor the candidates that are right.
        ignored: For each anchor the candidates that count as neither.
    """
    ranks = []
    for anchor, own, neither in zip(anchors, right, ignored, strict=True):
        likeness = candidates @ anchor
        best = likeness[list(own)].max()
        likeness[[*own, *neither]] = -np.inf
        ranks.append(1 + int((likeness >= best).sum()))
    return {"accuracy@1": float(np.mean([rank == 1 for rank in ranks])),
            "mrr": float(np.mean([1 / rank for rank in ranks]))}  # fmt: skip


def _f1(found: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    return f1_of_counts(int((found & truth).sum()), int(found.sum()), int(truth.sum()))["f1"]


def f1_of_counts(right: int, found: int, there: int) -> Metrics:
    """Precision, recall and F1 of what was found; 0 where nothing can be divided."""
    precision = right / found if found else 0.0
    recall = right / there if there else 0.0
    f1 = 2 * right / (found + there) if found + there else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


def entities(found: Sequence[set[Any]], truth: Sequence[set[Any]]) -> Metrics:
    """Precision, recall and F1 of entities: those with the right kind, begin and end count.

    Args:
        found: For each document (kind, begin, end) of the entities that were found.
        truth: Those that are there.
    """
    pairs = list(zip(found, truth, strict=True))
    right = sum(len(ours & theirs) for ours, theirs in pairs)
    return f1_of_counts(right, sum(len(ours) for ours, _ in pairs), sum(len(theirs) for _, theirs in pairs))


def answers(found: Sequence[str], truth: Sequence[Sequence[str]]) -> Metrics:
    """Exact match and F1 of words, each the best over the right answers; "" is the answer that there is none."""
    pairs = [(answer, list(right) or [""]) for answer, right in zip(found, truth, strict=True)]
    exact = [max(_plain(answer) == _plain(one) for one in right) for answer, right in pairs]
    return {
        "exact_match": float(np.mean(exact)),
        "f1": float(np.mean([max(_word_f1(answer, one) for one in right) for answer, right in pairs])),
    }


def _plain(text: str) -> str:
    """Lower case without punctuation, articles and superfluous blanks, as SQuAD's script compares."""
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def _word_f1(found: str, truth: str) -> float:
    ours, theirs = _plain(found).split(), _plain(truth).split()
    if not ours or not theirs:
        return float(ours == theirs)
    return f1_of_counts(sum((Counter(ours) & Counter(theirs)).values()), len(ours), len(theirs))["f1"]


def rouge(found: Sequence[str], truth: Sequence[str]) -> Metrics:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L by `rouge_score`, with its stemmer.

    Raises:
        InputError: it is not installed.
    """
    names = ["rouge1", "rouge2", "rougeL"]
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise InputError("ROUGE needs rouge-score: pip install 'longspan[train]'. Received: none installed") from error
    scorer = RougeScorer(names, use_stemmer=True)
    scores = [scorer.score(right, ours) for ours, right in zip(found, truth, strict=True)]
    return {name: float(np.mean([score[name].fmeasure for score in scores])) for name in names}
