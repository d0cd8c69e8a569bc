"""Small models with random weights for each task, with tokenizers of each kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tests.tokenization.conftest import _make_byte_level, _make_unigram

import longspan
from longspan import AutoTokenizer, BertConfig, LongformerConfig

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC"]
#: Kinds of tokenizers; each with the family that its model is of.
KINDS = {"wordpiece": "Bert", "byte_level": "Longformer", "unigram": "Bert"}
HEADS = {
    "text-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "fill-mask": "ForMaskedLM",
    "multiple-choice": "ForMultipleChoice",
    "feature-extraction": "Model",
}
POSITIONS = 128

TEXTS = [
    "Ada Lovelace wrote the first program in London.",
    "  Résumé — naïve café,  two  spaces; O'Neill's co-op (1843)!",
    "unbelievably internationalisation antidisestablishmentarianism Kraków",
    "def main(argv=None): return 0",
    "a",
]


def make_tokenizer(folder: Path, kind: str, minilm: Path) -> Any:
    """Write the files of a tokenizer, and load it."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "wordpiece":
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(minilm / name, folder)
        edit_json(folder / "tokenizer_config.json", model_max_length=POSITIONS)
        edit_json(folder / "tokenizer.json", truncation=None, padding=None)
    elif kind == "byte_level":
        _make_byte_level("longformer", {"model_max_length": POSITIONS}, folder)
    else:
        _make_unigram({"model_max_length": POSITIONS, "legacy": False, "extra_ids": 10}, folder)
    return AutoTokenizer.from_pretrained(folder)


def edit_json(path: Path, **values: Any) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def make_task_model(folder: Path, task: str, kind: str, minilm: Path, *, scale: float = 0.4, **settings: Any) -> Path:
    """A folder with a tokenizer and a model of two layers for a task."""
    tokenizer = make_tokenizer(folder, kind, minilm)
    family = KINDS[kind]
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if task == "token-classification":
        settings = {"id2label": dict(enumerate(LABELS))} | settings
    if family == "Longformer":
        special = {"sep_token_id": tokenizer.sep_token_id, "attention_window": 16, "type_vocab_size": 1}
        config: Any = LongformerConfig(max_position_embeddings=POSITIONS + 2, **common, **special, **settings)
    else:
        config = BertConfig(max_position_embeddings=POSITIONS, **common, **settings)
    model = getattr(longspan, f"{family}{HEADS[task]}")(config)
    randomize(model, scale)
    if task == "token-classification":
        model.get_input_embeddings().weight.data *= 4  # so that tokens differ in their labels
        model.classifier.bias.data *= 0.1
    model.save_pretrained(folder)
    return folder


def make_summarizer(folder: Path, minilm: Path) -> Path:
    """A folder with a tokenizer and a LongT5 of one layer."""
    tokenizer = make_tokenizer(folder, "unigram", minilm)
    config = longspan.LongT5Config(
        vocab_size=len(tokenizer), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, local_radius=7,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    model = longspan.LongT5ForConditionalGeneration(config)
    randomize(model, 0.3)
    model.save_pretrained(folder)
    return folder


def randomize(model: Any, scale: float, seed: int = 0) -> None:
    """Random weights, norms and biases included, so that predictions vary."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * scale
        parameter.data = noise + (1.0 if name.endswith("LayerNorm.weight") else 0.0)
