"""Long documents with something planted in them, and small models that have learnt to find it.

`python -m tests.pipelines.planted` trains the models in `trained` again, which takes half a minute.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from tests.tiny_encoder import POSITIONS, WORDS, make_plain_model, write_json

import longspan
from longspan import AutoTokenizer, BertConfig, LongformerConfig

TRAINED = Path(__file__).parent / "trained"
LABELS = ["O", "B-PER", "I-PER"]
#: What is planted: words of several tokens each, and words that are one token.
NAME = "Zelda Quux"
ANSWER = "Python error"
_TASKS = {"token-classification": "BertForTokenClassification", "question-answering": "BertForQuestionAnswering",
          "text-classification": "BertForSequenceClassification"}  # fmt: skip
_ROWS = 16
QUESTION = "where is the token?"


def filler(count: int, seed: int) -> list[str]:
    """Words without meaning, with line ends, punctuation and characters beyond ASCII among them."""
    draw = random.Random(seed)
    words = [word for word in WORDS if word not in ANSWER.lower()]
    return draw.choices([*words, "fog,", "bog\n", "é", "日", "  hmm.", "42"], k=count)


def plant(words: list[str], phrase: str, place: int) -> tuple[str, int]:
    """The text of `words` with `phrase` before word `place`, and the first character of the phrase."""
    before = " ".join(words[:place]) + " "
    return before + phrase + " " + " ".join(words[place:]), len(before)


def make_finder(folder: Path, task: str) -> Path:
    """A BERT of one layer and 64 positions that has learnt to find what is planted."""
    return _with_trained(folder, task, POSITIONS)


def make_long_finder(folder: Path) -> Path:
    """A Longformer of one layer that answers `QUESTIONS`; far from the question that takes global attention on it."""
    return _with_trained(folder, "long", LONG_POSITIONS)


def _with_trained(folder: Path, name: str, positions: int) -> Path:
    """The tokenizer of the tiny encoder and a model from `trained`."""
    make_plain_model(folder)
    for path in (TRAINED / name).iterdir():
        shutil.copyfile(path, folder / path.name)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "model_max_length": positions})
    torch.manual_seed(0)  # what is drawn next does not depend on what making the folder draws
    return folder


def _train_finder(folder: Path, task: str, *, steps: int = 80) -> torch.nn.Module:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = {"id2label": dict(enumerate(LABELS))} if task == "token-classification" else {"num_labels": 2}
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        **settings,
    )
    torch.manual_seed(0)
    model = getattr(longspan, _TASKS[task])(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        batch = _batch(tokenizer, task, step)
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


#: Question -> the phrase that answers it.
QUESTIONS = {"python error?": ANSWER, "zelda quux?": NAME}
#: Positions of the Longformer; each of its tokens sees 8 tokens on either side, and the global ones.
LONG_POSITIONS = 256


def _train_long_finder(folder: Path, *, steps: int = 400) -> torch.nn.Module:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = LongformerConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=LONG_POSITIONS + 1, attention_window=16, type_vocab_size=1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id, sep_token_id=tokenizer.sep_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = longspan.LongformerForQuestionAnswering(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for step in range(steps):
        loss = model(**_long_batch(tokenizer, step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


def _long_batch(tokenizer: Any, step: int) -> dict[str, torch.Tensor]:
    """Texts that hold both phrases, or one, beside either question."""
    draw = random.Random(step)
    questions, texts, spans = [], [], []
    for row in range(_ROWS):
        question = draw.choice(list(QUESTIONS))
        phrase, other = QUESTIONS[question], ({ANSWER, NAME} - {QUESTIONS[question]}).pop()
        words = filler(draw.randint(2, 120), step * _ROWS + row)
        if row % 2:
            words.insert(draw.randint(0, len(words)), other)
        text, start = plant(words, phrase, draw.randint(0, len(words))) if row % 8 else (" ".join([*words, other]), -1)
        questions.append(question)
        texts.append(text)
        spans.append((start, start + len(phrase)))
    batch = tokenizer(questions, texts, padding=True, truncation=True, max_length=LONG_POSITIONS, return_tensors="pt",
                      return_offsets_mapping=True)  # fmt: skip
    return {name: batch[name] for name in ("input_ids", "attention_mask")} | _labels(
        batch, spans, "question-answering", sequence=1
    )


def _batch(tokenizer: Any, task: str, step: int) -> dict[str, torch.Tensor]:
    """Short texts, some with the phrase, some with parts of it, some without."""
    draw = random.Random(step)
    phrase = ANSWER if task == "question-answering" else NAME
    texts, spans = [], []
    for row in range(_ROWS):
        words = filler(draw.randint(2, 45), step * _ROWS + row)
        text, start = plant(words, phrase, draw.randint(0, len(words))) if row % 4 else (" ".join(words), -1)
        texts.append(text)
        spans.append((start, start + len(phrase)))
    questions = [QUESTION] * _ROWS if task == "question-answering" else None
    first, second = (questions, texts) if questions else (texts, None)
    batch = tokenizer(first, second, padding=True, truncation=True, max_length=POSITIONS, return_tensors="pt",
                      return_offsets_mapping=True)  # fmt: skip
    return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")} | _labels(
        batch, spans, task, sequence=0 if questions is None else 1
    )


def _labels(batch: Any, spans: list[tuple[int, int]], task: str, *, sequence: int) -> dict[str, torch.Tensor]:
    if task == "text-classification":
        return {"labels": torch.tensor([int(start >= 0) for start, _ in spans])}
    labels = torch.zeros_like(batch["input_ids"])
    for row, (start, end) in enumerate(spans):
        offsets, of_row = batch["offset_mapping"][row].tolist(), batch.sequence_ids(row)
        inside = [place for place, (first, last) in enumerate(offsets)
                  if of_row[place] == sequence and 0 <= start <= first < last <= end]  # fmt: skip
        labels[row, inside] = 2
        labels[row, inside[:1]] = 1
    if task == "token-classification":
        return {"labels": labels.masked_fill(batch["attention_mask"] == 0, -100)}
    first = [row.nonzero()[0].item() if row.any() else 0 for row in labels]
    last = [row.nonzero()[-1].item() if row.any() else 0 for row in labels]
    return {"start_positions": torch.tensor(first), "end_positions": torch.tensor(last)}


def main() -> None:
    """Train all models."""
    with tempfile.TemporaryDirectory() as place:
        folder = make_plain_model(Path(place) / "tokenizer")
        for task in _TASKS:
            _train_finder(folder, task).eval().save_pretrained(TRAINED / task)
        _train_long_finder(folder).eval().save_pretrained(TRAINED / "long")


if __name__ == "__main__":
    main()
