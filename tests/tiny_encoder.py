"""A small sentence encoder with random weights, written to a folder in the layout of sentence-transformers."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch

from longspan import BertConfig, BertModel

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_TEXT = "the file log open read write error line text python data model window token search index"
WORDS = _TEXT.split()
HIDDEN = 32
POSITIONS = 64


def make_plain_model(folder: Path, *, seed: int = 0) -> Path:
    """A BERT with random weights (norms and biases too) and a vocabulary of characters and some words."""
    folder.mkdir(parents=True, exist_ok=True)
    characters = [c for c in string.printable if not c.isspace() and not c.isupper()]
    vocabulary = [*SPECIAL_TOKENS, *characters, *(f"##{c}" for c in characters if c.isalnum()), *WORDS, "é", "日"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=POSITIONS,
    )
    generator = torch.Generator().manual_seed(seed)
    model = BertModel(config)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.15
        parameter.data = noise + (1.0 if name.endswith("LayerNorm.weight") else 0.0)
    model.save_pretrained(folder)
    return folder


def make_sentence_model(
    folder: Path,
    *,
    seed: int = 0,
    max_length: int = 48,
    pooling: dict[str, Any] | None = None,
    layers: list[tuple[str, dict[str, Any], dict[str, torch.Tensor]]] | None = None,
    normalize: bool = True,
    lower_case: bool = False,
    prompts: dict[str, Any] | None = None,
) -> Path:
    """The plain model with pooling, further layers (module class, settings, weights) and a final normalisation."""
    make_plain_model(folder, seed=seed)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": lower_case})
    modules = ["Transformer", "Pooling", *(kind for kind, _, _ in layers or []), *(["Normalize"] if normalize else [])]
    entries = []
    for index, kind in enumerate(modules):
        path = "" if kind == "Transformer" else f"{index}_{kind}"
        entries.append({"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"})
    write_json(folder / "modules.json", entries)
    settings = {"word_embedding_dimension": HIDDEN, **(pooling or {"pooling_mode_mean_tokens": True})}
    write_json(folder / "1_Pooling" / "config.json", settings)
    for index, (kind, settings, weights) in enumerate(layers or [], start=2):
        write_json(folder / f"{index}_{kind}" / "config.json", settings)
        from safetensors.torch import save_file

        save_file(weights, folder / f"{index}_{kind}" / "model.safetensors")
    if prompts is not None:
        write_json(folder / "config_sentence_transformers.json", prompts)
    return folder


def write_json(path: Path, values: Any) -> None:
    """Write JSON, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
