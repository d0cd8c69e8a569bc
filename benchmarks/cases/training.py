"""Fine-tuning on long documents against the Trainer of transformers 4.57: an epoch, in tokens a second.

Both train a model of the same sizes, weights and dropout on the same windows, with AdamW, clipped gradients and a
linear schedule, as many positions in a forward pass and as many tokens in a step; nothing is evaluated, logged or
saved. `trainer` groups by length, its best; `trainer-default` draws rows at random, as it does unless told otherwise.
Tokens are those of the documents, without padding.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Work, case

RATE = 5e-5
LABELS = ("high", "low")
#: words of the documents that BERT reads
BERT_LENGTHS = (700, 120, 400, 60, 500, 250, 40, 150, 200)


def documents(lengths: Sequence[int]) -> list[dict[str, str]]:
    """Documents of so many words, of documentation strings put together, labels by turns."""
    from benchmarks.corpus import docstrings

    words = iter(" ".join(docstrings(3000)).split())
    return [
        {"text": " ".join(next(words) for _ in range(length)), "label": LABELS[number % 2]}
        for number, length in enumerate(lengths)
    ]


def model_folder(family: str, **settings: Any) -> Path:
    """A model of a family with random weights for two labels, and MiniLM's tokenizer."""
    import torch

    import longspan
    from longspan.embeddings.modules import default_model_folder

    folder = Path(tempfile.mkdtemp(prefix="longspan-bench-"))
    shutil.copy(default_model_folder() / "tokenizer.json", folder)
    values = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "pad_token": "[PAD]", "cls_token": "[CLS]",
              "sep_token": "[SEP]", "unk_token": "[UNK]", "mask_token": "[MASK]"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    config = getattr(longspan, f"{family}Config")(
        vocab_size=30522, num_hidden_layers=2, pad_token_id=0, label2id={name: i for i, name in enumerate(LABELS)},
        id2label=dict(enumerate(LABELS)), **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    getattr(longspan, f"{family}ForSequenceClassification")(config).save_pretrained(folder)
    return folder


class Peer:
    """The Trainer on the windows of longspan's run.

    Args:
        folder: Folder of the model.
        samples: The windows.
        rows: Rows of a forward pass.
        passes: Forward passes of a step.
        grouped: Rows of like lengths together.
    """

    def __init__(self, folder: Path, samples: Sequence[Any], *, rows: int, passes: int, grouped: bool) -> None:
        import transformers

        self.model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        windows = [
            {"input_ids": sample.rows[0].ids.tolist(), "labels": int(sample.targets["labels"])} for sample in samples
        ]
        self._data = {
            "train_dataset": windows,
            "data_collator": transformers.DataCollatorWithPadding(transformers.AutoTokenizer.from_pretrained(folder)),
        }
        self._settings = transformers.TrainingArguments(
            output_dir=str(folder / "peer"), use_cpu=True, report_to="none", disable_tqdm=True, group_by_length=grouped,
            num_train_epochs=1, per_device_train_batch_size=rows, gradient_accumulation_steps=passes,
            learning_rate=RATE, weight_decay=0.01, warmup_ratio=0.06, save_strategy="no", logging_strategy="no",
        )  # fmt: skip
        self._trainer = transformers.Trainer

    def run(self) -> Any:
        """Train one epoch."""
        self._trainer(self.model, self._settings, **self._data).train()
        return self.model


def compare(
    family: str, lengths: Sequence[int], *, rows: int, passes: int, grouped: bool = True, **settings: Any
) -> Work:
    """An epoch of both sides; their models are compared before."""
    from longspan.training.loop import Loop
    from longspan.training.options import TrainOptions
    from longspan.training.runs import prepare

    folder = model_folder(family, **settings)
    longest = settings["max_position_embeddings"] - (family == "Longformer")
    positions = rows * longest
    options = TrainOptions(epochs=1, micro_tokens=positions, batch_tokens=passes * positions, learning_rate=RATE,
                           validation_split=0.0, device="cpu", max_length=longest)  # fmt: skip
    ready = prepare("classify", folder, documents(lengths), folder / "ours", validation=None, options=options)
    peer = Peer(folder, ready.samples, rows=rows, passes=passes, grouped=grouped)
    differs = difference(peer.model, ready.task, ready.samples)
    tokens = sum(sample.length for sample in ready.samples)

    def ours() -> Any:
        loop = Loop(ready, show_progress=False)
        for step in loop.epoch(0):
            loop.step(step)
        return loop.base

    return Work(
        peer=peer.run,
        ours=ours,
        difference=lambda _a, _b: differs,  # after an epoch the models have seen other orders and other dropout
        tolerance=1e-4,
        extra={"windows": len(ready.samples), "tokens": tokens},
        after=lambda p, o: {"peer_tokens_per_second": tokens / p, "ours_tokens_per_second": tokens / o},
    )


def difference(peer: Any, task: Any, samples: Sequence[Any]) -> float:
    """Largest difference of the gradients of some windows, in parts of the largest gradient, without dropout."""
    import torch

    batch = task.batch(samples[:2], torch.device("cpu"))
    found = []
    for model, inputs in ((peer, batch.inputs), (task.model, batch.inputs)):
        model.eval()
        logits = model(**{name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}).logits
        torch.nn.functional.cross_entropy(logits, batch.targets["labels"]).backward()
        found.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
        model.zero_grad(set_to_none=True)
        model.train()
    theirs, mine = found
    assert theirs.keys() == mine.keys()
    largest = max(float(each.abs().max()) for each in theirs.values())
    return max(float((theirs[name] - mine[name]).abs().max()) for name in mine) / largest


@case(
    "training/bert/trainer/float32",
    "BERT-base, 2 layers, an epoch of 9 documents in windows of 512, classify, against the Trainer",
    at_least=1.5,
)
def bert() -> Work:
    return compare("Bert", BERT_LENGTHS, rows=4, passes=2, max_position_embeddings=512)


@case(
    "training/bert/trainer-default/float32",
    "BERT-base, 2 layers, an epoch of 9 documents in windows of 512, classify, against the Trainer's defaults",
    at_least=1.5,
)
def bert_default() -> Work:
    return compare("Bert", BERT_LENGTHS, rows=4, passes=2, grouped=False, max_position_embeddings=512)


@case(
    "training/longformer/trainer/float32",
    "Longformer-base, 2 layers, an epoch of 5 documents of up to 4096 tokens, classify, against the Trainer",
    at_least=1.5,
)
def longformer() -> Work:
    return compare(
        "Longformer", (2400, 1300, 700, 400, 200), rows=1, passes=2, max_position_embeddings=4097, attention_window=512
    )
