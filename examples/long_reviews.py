"""Does it help to read all of a document? Sentiment of film reviews, most of them longer than 512 tokens.

Three parts, each with the same reviews read in part and whole:

- `words`: logistic regression on weighted counts of words (tf-idf), five rounds of two published folds;
- `frozen`: logistic regression on vectors of the packaged MiniLM, of the first windows, of all windows, and of the
  Longformer that `to_long` makes of it, likewise;
- `tuned`: a BERT of one layer, which begins with MiniLM's vectors of words, fine-tuned by `longspan.training.finetune`
  with documents cut off, in windows, and lengthened by `to_long`; reviews that are held out. `--seeds` repeats it.

The data are the polarity reviews of Pang and Lee (2004), as NLTK packs them (movie_reviews.zip); the file is read where
it lies. Vectors are kept in `--cache`, so that an interrupted run goes on.

    python -m examples.long_reviews --data movie_reviews.zip --output benchmarks/results/long_reviews.json
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from examples.evidence import Record, share
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV

from longspan import AutoTokenizer, BertConfig, BertModel, SentenceEncoder, pipeline
from longspan.embeddings.modules import default_model_folder
from longspan.to_long import lengthen_checkpoint
from longspan.training import finetune

DATA = Path(__file__).resolve().parents[1].parent / "shared/data/movie_reviews.zip"
PARTS = ("words", "frozen", "tuned")
FOLDS = 10
ROUNDS = 5  # of cross-validation, each with two folds held out
HELD_OUT = 2  # folds that the fine-tuned models are tested on
PREFIXES = (1, 2, 3, 4)  # windows from the beginning whose mean is looked at, besides all
WINDOW = 256  # what the settings of the packaged MiniLM say
LENGTHENED = 4096
ARMS = ("truncated", "truncated_longer", "windows", "to_long")
LONGER = 3  # times the epochs, for about as many steps as the windows make


@dataclass(frozen=True)
class Review:
    """A review.

    Attributes:
        name: File in the archive.
        text: What it says.
        label: `neg` or `pos`.
        number: 0 to 999 within its label; the hundreds are the published folds.
    """

    name: str
    text: str
    label: str
    number: int

    @property
    def fold(self) -> int:
        """The published fold."""
        return self.number * FOLDS // 1000


def read_reviews(archive: Path, count: int) -> list[Review]:
    """The first reviews of each fold and label, `count` in all; ordered by number, labels in turn."""
    reviews = []
    with zipfile.ZipFile(archive) as opened:
        for name in opened.namelist():
            label, _, file = name.partition("/")[2].partition("/")
            if label in ("neg", "pos") and file.startswith("cv"):
                reviews.append(Review(name, opened.read(name).decode("utf-8", "replace"), label, int(file[2:5])))
    kept = [review for review in reviews if review.number % (1000 // FOLDS) < count // (2 * FOLDS)]
    return sorted(kept, key=lambda review: (review.number, review.label))


def labels_of(reviews: Sequence[Review]) -> np.ndarray:
    """True for a good one, (N,)."""
    return np.array([review.label == "pos" for review in reviews])


def compared(correct: dict[str, np.ndarray], base: str) -> dict[str, Any]:
    """Accuracy of each arm with its interval, and that of what it gains over another on the same documents."""
    arms = {}
    for name, right in correct.items():
        arms[name] = {"accuracy": share(right)}
        if name != base:
            arms[name]["gain"] = share(right.astype(np.int8) - correct[base].astype(np.int8))
            arms[name]["gain"]["over"] = base
    return arms


def cross_validated(
    inputs: np.ndarray | Sequence[str], reviews: Sequence[Review], make: Callable[[], tuple[Any, Any]]
) -> np.ndarray:
    """Which reviews are classified rightly, each by a classifier that learnt from the other folds, (N,)."""
    rounds, truth = np.array([review.fold * ROUNDS // FOLDS for review in reviews]), labels_of(reviews)
    right = np.zeros(len(reviews), bool)
    for number in range(ROUNDS):
        known, asked = np.flatnonzero(rounds != number), np.flatnonzero(rounds == number)
        features, classifier = make()
        classifier.fit(features.fit_transform([inputs[place] for place in known]), truth[known])
        right[asked] = classifier.predict(features.transform([inputs[place] for place in asked])) == truth[asked]
    return right


class Unit:
    """Vectors scaled to length 1."""

    def transform(self, vectors: Sequence[np.ndarray]) -> np.ndarray:
        """(N, D)."""
        stacked = np.stack(vectors)
        return stacked / np.linalg.norm(stacked, axis=1, keepdims=True)

    fit_transform = transform


def of_words() -> tuple[Any, Any]:
    """Features and classifier of a text."""
    return TfidfVectorizer(sublinear_tf=True, min_df=2), LogisticRegression(C=10.0, max_iter=1000)


def of_vectors() -> tuple[Any, Any]:
    """Features and classifier of a vector; how much the weights are held down is chosen on the known folds."""
    return Unit(), LogisticRegressionCV(
        scoring="accuracy", Cs=[1, 10, 100], cv=3, max_iter=1000, use_legacy_attributes=False, l1_ratios=(0,)
    )


def beginnings(reviews: Sequence[Review], num_tokens: int) -> list[str]:
    """Texts cut off after so many tokens of MiniLM."""
    tokenizer = AutoTokenizer.from_pretrained(default_model_folder())
    texts = []
    for review in reviews:
        places = tokenizer(review.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        texts.append(review.text[: places[num_tokens - 1][1]] if len(places) > num_tokens else review.text)
    return texts


def words_part(reviews: Sequence[Review], options: Any, values: dict[str, Any]) -> None:
    """Counts of words, of beginnings and of whole texts."""
    texts = {str(size): beginnings(reviews, size) for size in (254, 510)} | {"all": [one.text for one in reviews]}
    correct = {name: cross_validated(inputs, reviews, of_words) for name, inputs in texts.items()}
    values["arms"] = compared(correct, "510")


class Cache:
    """Vectors of reviews by name, in a file that is written as they come.

    Args:
        path: The file, .npz.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.vectors: dict[str, np.ndarray] = dict(np.load(path)) if path.exists() else {}

    def get(self, reviews: Sequence[Review], encode: Callable[[list[Review]], list[np.ndarray]]) -> np.ndarray:
        """Vectors of reviews, (N, K, D); those that are not there are made, a hundred at a time."""
        missing = [review for review in reviews if review.name not in self.vectors]
        for start in range(0, len(missing), 100):
            part = missing[start : start + 100]
            self.vectors |= {one.name: vectors for one, vectors in zip(part, encode(part), strict=True)}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(self.path, **self.vectors)
            print(f"  {self.path.stem}: {start + len(part)} of {len(missing)} reviews", flush=True)
        return np.stack([self.vectors[review.name] for review in reviews])


def window_vectors(encoder: SentenceEncoder, reviews: Sequence[Review]) -> list[np.ndarray]:
    """Means of the vectors of the first windows, weighted by their tokens; the last is that of all, (5, D) each."""
    split = encoder.splitter().split([review.text for review in reviews])
    vectors = iter(encoder.encode_pieces([piece for pieces in split for piece in pieces], normalize=False))
    found = []
    for pieces in split:
        weights = np.array([piece.num_tokens for piece in pieces], np.float64)[:, None]
        sums = np.cumsum(weights * np.stack([next(vectors) for _ in pieces]), axis=0) / np.cumsum(weights, axis=0)
        found.append(sums[[min(count, len(pieces)) - 1 for count in (*PREFIXES, len(pieces))]].astype(np.float32))
    return found


def frozen_part(reviews: Sequence[Review], options: Any, values: dict[str, Any]) -> None:
    """Vectors of MiniLM, of beginnings and of whole texts."""
    encoder = SentenceEncoder()
    windows = Cache(options.cache / "windows.npz").get(reviews, lambda part: window_vectors(encoder, part))
    names = [f"{count} window{'s' * (count > 1)}" for count in PREFIXES] + ["all windows"]
    correct = {name: cross_validated(windows[:, place], reviews, of_vectors) for place, name in enumerate(names)}
    pieces = encoder.splitter().split([review.text for review in reviews])
    values["window"] = encoder.max_length
    values["tokens"] = {
        name: round(float(np.mean([sum(piece.num_tokens for piece in one[:count]) for one in pieces])))
        for name, count in zip(names, (*PREFIXES, None), strict=True)
    }
    if options.whole:
        long_encoder = SentenceEncoder(max_length=LENGTHENED)
        whole = Cache(options.cache / "whole.npz").get(
            reviews, lambda part: list(long_encoder.encode([one.text for one in part], normalize=False)[:, None])
        )
        correct["to_long"] = cross_validated(whole[:, 0], reviews, of_vectors)
    values["arms"] = compared(correct, names[0])


def small_model(folder: Path, width: int) -> Path:
    """A BERT of one layer over MiniLM's tokens, whose vectors are the principal components of MiniLM's."""
    torch.manual_seed(0)
    vectors = BertModel.from_pretrained(default_model_folder()).embeddings.word_embeddings.weight.detach()
    centred = vectors - vectors.mean(dim=0)
    components = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -width:]
    model = BertModel(
        BertConfig(
            vocab_size=len(vectors), hidden_size=width, num_hidden_layers=1, num_attention_heads=4,
            intermediate_size=2 * width,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.copy_(centred @ components)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(default_model_folder()).save_pretrained(folder)
    return folder


def tuned_once(arm: str, seed: int, known: Sequence[Review], asked: Sequence[Review], options: Any) -> np.ndarray:
    """Which held-out reviews a fine-tuned model classifies rightly, (N,)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = small_model(folder / "short", options.width)
        if arm == "to_long":
            lengthen_checkpoint(
                model, folder / "long", max_length=LENGTHENED, attention_window=options.attention_window
            )
            model = folder / "long"
        epochs = options.epochs * (LONGER if arm == "truncated_longer" else 1)
        reading = {"on_long": "truncate" if arm.startswith("truncated") else "window"}
        if arm != "to_long":
            reading["max_length"] = WINDOW
        finetune(
            "classify", model, [{"text": one.text, "label": one.label} for one in known], folder / "tuned",
            validation_split=0.0, epochs=epochs, batch_tokens=options.batch_tokens, micro_tokens=4096,
            learning_rate=options.rate, seed=seed, device="cpu", **reading,
        )  # fmt: skip
        classify = pipeline("text-classification", folder / "tuned", **reading)
        answers = [best["label"] for best in classify([one.text for one in asked])]
        shutil.rmtree(folder / "tuned")
    return np.array([answer == one.label for answer, one in zip(answers, asked, strict=True)])


def tuned_part(reviews: Sequence[Review], options: Any, record: Record) -> None:
    """Fine-tuned models, an arm a part of the record; then their comparison."""
    known = [one for one in reviews if one.fold < FOLDS - HELD_OUT]
    asked = [one for one in reviews if one.fold >= FOLDS - HELD_OUT]
    known = [one for one in known if one.number % 100 < options.known // (2 * (FOLDS - HELD_OUT))]
    asked = [one for one in asked if one.number % 100 < options.asked // (2 * HELD_OUT)]
    names = ("known", "asked", "width", "epochs", "rate", "batch_tokens", "attention_window")
    settings = {name: getattr(options, name) for name in names}
    for seed in range(options.seeds):
        for arm in options.arms:
            name = f"tuned {arm} {seed}"
            if record.has(name, settings):
                continue
            with record.part(name, settings) as values:
                values |= {"train_documents": len(known), "test_documents": len(asked), "seed": seed}
                right = tuned_once(arm, seed, known, asked, options)
                values |= {"accuracy": share(right), "right": "".join(str(int(one)) for one in right)}
            print(f"{name}: {values['accuracy']}", flush=True)
    with record.part("tuned", settings) as values:
        runs = {arm: [record.values[f"tuned {arm} {seed}"] for seed in range(options.seeds)] for arm in options.arms}
        rows = {
            arm: np.array([[int(c) for c in one["right"]] for one in found]).mean(axis=0) for arm, found in runs.items()
        }
        values["arms"] = {arm: {"accuracy": share(right)} for arm, right in rows.items()}
        for arm in options.arms[1:]:
            values["arms"][arm]["gain"] = share(rows[arm] - rows[options.arms[0]]) | {"over": options.arms[0]}


def read_options(words: Sequence[str] | None = None) -> Any:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="movie_reviews.zip")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS, help="of `tuned`, the base of gains first")
    parser.add_argument("--reviews", type=int, default=2000, help="reviews of `words` and `frozen`")
    parser.add_argument("--no-whole", dest="whole", action="store_false", help="leave out to_long of `frozen`")
    parser.add_argument("--known", type=int, default=1000, help="reviews that are fine-tuned on")
    parser.add_argument("--asked", type=int, default=400, help="reviews that the fine-tuned models are tested on")
    parser.add_argument("--width", type=int, default=96, help="width of the model that is fine-tuned")
    parser.add_argument("--epochs", type=int, default=3, help="times that each review is read")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens of a step")
    parser.add_argument("--attention-window", type=int, default=256, help="of the lengthened model")
    parser.add_argument("--seeds", type=int, default=1, help="times that each model is fine-tuned")
    parser.add_argument("--cache", type=Path, default=Path("build/long_reviews"), help="folder of vectors")
    parser.add_argument("--quick", action="store_true", help="20 reviews: shows that it runs, says nothing")
    parser.add_argument("--output", type=Path, help="file for the results, JSON")
    options = parser.parse_args(words)
    if options.quick:
        options.reviews, options.known, options.asked, options.width, options.epochs = 40, 16, 4, 32, 1
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Read, classify, compare."""
    options = read_options(words)
    if not options.data.exists():
        print(f"skipped: the reviews are not at {options.data}; --data names movie_reviews.zip of NLTK")
        return 0
    record = Record(options.output)
    reviews = read_reviews(options.data, options.reviews)
    for name, run in (("words", words_part), ("frozen", frozen_part)):
        if name in options.parts:
            with record.part(name, {"reviews": len(reviews), "rounds": ROUNDS}) as values:
                run(reviews, options, values)
            print(name, {arm: found["accuracy"] for arm, found in values["arms"].items()}, flush=True)
    if "tuned" in options.parts:
        torch.manual_seed(0)
        tuned_part(read_reviews(options.data, 2000), options, record)
    return 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
