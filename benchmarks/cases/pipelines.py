"""Tasks end to end: 200 documents of mixed lengths, text to labels and entities, against the reference.

The reference runs one document at a time, its best: on 200 of these documents and 2 cores batches of 1, 2, 4, 8 and 16
took 3.2, 3.9, 7.7, 7.6 and 10.8 s, for it pads each batch to the longest of unsorted documents.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Work, case

#: every tenth of so many documentation strings
DOCUMENTS = 2000
LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}


def model_folder(head: str, **settings: Any) -> Path:
    """A model of MiniLM's size with random weights and MiniLM's tokenizer."""
    import torch

    import longspan
    from longspan.embeddings.modules import default_model_folder

    folder = Path(tempfile.mkdtemp(prefix="longspan-bench-"))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(default_model_folder() / name, folder)
    config = longspan.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, **settings
    )
    torch.manual_seed(0)
    getattr(longspan, head)(config).save_pretrained(folder)
    return folder


def difference(peer: list[Any], ours: list[Any]) -> float:
    """Largest difference of scores; 1 if labels or places differ."""
    worst = 0.0
    for theirs, mine in zip(peer, ours, strict=True):
        for a, b in zip(*([x] if isinstance(x, dict) else x for x in (theirs, mine)), strict=True):
            if {key: a[key] for key in a if key != "score"} != {key: b[key] for key in b if key != "score"}:
                return 1.0
            worst = max(worst, abs(float(a["score"]) - b["score"]))
    return worst


def compare(task: str, folder: Path, count: int = DOCUMENTS, **settings: Any) -> Work:
    import transformers

    from benchmarks.corpus import docstrings
    from longspan import pipeline

    texts = docstrings(count)[::10]
    peer = transformers.pipeline(task, str(folder), device="cpu", **settings)
    peer.tokenizer.model_max_length = 512
    ours = pipeline(task, folder, on_long="truncate", **settings)  # as the peer does
    truncation = {"truncation": True} if task == "text-classification" else {}
    return Work(
        peer=lambda: peer(texts, **truncation),
        ours=lambda: ours(texts),
        difference=difference,
        tolerance=1e-5,
        extra={"documents": len(texts)},
        after=lambda p, o: {"peer_documents_per_second": len(texts) / p, "ours_documents_per_second": len(texts) / o},
    )


@case("pipeline/classify/float32", "200 documentation strings, text to labels", rounds=3, at_least=2.0)
def classify() -> Work:
    return compare("text-classification", model_folder("BertForSequenceClassification", num_labels=5))


@case("pipeline/tag/float32", "200 documentation strings, text to entities", rounds=3, at_least=2.0)
def tag() -> Work:
    folder = model_folder("BertForTokenClassification", id2label=LABELS)
    return compare("token-classification", folder, aggregation_strategy="simple")
