"""Every module of a sentence-transformers folder, against sentence-transformers itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny_encoder import HIDDEN, make_sentence_model, write_json

from longspan import SentenceEncoder
from longspan.errors import CheckpointError

TEXTS = ["the log file", "Read", "", "write error " * 40, "é 日 ? MODEL data", "index of the search window"]


def theirs(folder: Path, texts: list[str] = TEXTS, **kwargs: str) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(texts, **kwargs)


def assert_same(folder: Path) -> SentenceEncoder:
    encoder = SentenceEncoder(folder)
    np.testing.assert_allclose(encoder.encode(TEXTS, on_long="truncate"), theirs(folder), rtol=0, atol=1e-5)
    return encoder


def weights(seed: int, **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name.replace("_", ".", 1): torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode": "cls"},
        {"pooling_mode": "max"},
        {"pooling_mode": "mean"},
        {"pooling_mode": "mean_sqrt_len_tokens"},
        {"pooling_mode": "weightedmean"},
        {"pooling_mode": "lasttoken"},
        {"pooling_mode": ["max", "lasttoken", "mean"]},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
        {"pooling_mode_mean_tokens": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("normalize", [True, False])
def test_pooling(tmp_path: Path, pooling: dict[str, object], normalize: bool):
    assert_same(make_sentence_model(tmp_path, pooling=pooling, normalize=normalize))


@pytest.mark.parametrize("activation", ["Tanh", "Identity", "ReLU", "Sigmoid", "SiLU", "GELU"])
def test_dense(tmp_path: Path, activation: str):
    settings = {"in_features": HIDDEN, "out_features": 12, "bias": True}
    settings["activation_function"] = f"torch.nn.{activation}"
    layer = ("Dense", settings, weights(1, linear_weight=(12, HIDDEN), linear_bias=(12,)))
    assert assert_same(make_sentence_model(tmp_path, layers=[layer])).dimension == 12


def test_dense_without_bias_then_layer_norm_then_dropout(tmp_path: Path):
    settings = {"in_features": HIDDEN, "out_features": 8, "bias": False}
    settings["activation_function"] = "torch.nn.modules.activation.Tanh"
    layers = [
        ("Dense", settings, weights(1, linear_weight=(8, HIDDEN))),
        ("LayerNorm", {"dimension": 8}, weights(2, norm_weight=(8,), norm_bias=(8,))),
        ("Dropout", {"dropout": 0.5}, {}),
    ]
    assert_same(make_sentence_model(tmp_path, layers=layers))


def test_normalisation_before_another_layer(tmp_path: Path):
    settings = {"in_features": HIDDEN, "out_features": 8, "bias": True}
    settings["activation_function"] = "torch.nn.modules.linear.Identity"
    layers = [("Normalize", {}, {}), ("Dense", settings, weights(1, linear_weight=(8, HIDDEN), linear_bias=(8,)))]
    encoder = assert_same(make_sentence_model(tmp_path, layers=layers, normalize=False))
    assert not encoder.normalizes


def test_transformer_in_a_folder_of_its_own(tmp_path: Path):
    make_sentence_model(tmp_path)
    moved = ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json", "sentence_bert_config.json")
    (tmp_path / "0_Transformer").mkdir()
    for name in moved:
        (tmp_path / name).rename(tmp_path / "0_Transformer" / name)
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    write_json(tmp_path / "modules.json", modules)
    assert_same(tmp_path)


def test_lower_case(tmp_path: Path):
    folder = make_sentence_model(tmp_path, lower_case=True)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": False})
    encoder = assert_same(folder)
    np.testing.assert_array_equal(encoder.encode("LOG File"), encoder.encode("log file"))


@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts(tmp_path: Path, include_prompt: bool):
    prompts = {"prompts": {"query": "search: ", "document": "text: "}, "default_prompt_name": "document"}
    pooling = {"pooling_mode": ["mean", "weightedmean", "max"], "include_prompt": include_prompt}
    folder = make_sentence_model(tmp_path, prompts=prompts, pooling=pooling)
    encoder = SentenceEncoder(folder)
    for name in ("query", "document"):
        ours = encoder.encode(TEXTS, on_long="truncate", prompt_name=name)
        np.testing.assert_allclose(ours, theirs(folder, prompt_name=name), rtol=0, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(TEXTS, on_long="truncate"), theirs(folder), rtol=0, atol=1e-5)


def _edit(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text())
    values.update(changes)
    write_json(path, values)


def _set_kind(folder: Path, index: int, kind: str) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[index]["type"] = f"sentence_transformers.models.{kind}"
    write_json(folder / "modules.json", modules)


DENSE = {"in_features": HIDDEN, "out_features": 4, "bias": False, "activation_function": "torch.nn.Tanh"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: _set_kind(f, 3, "LSTM"),
            "must be Transformer, Pooling, Dense, LayerNorm, Dropout or Normalize. Received: '.*LSTM'",
        ),
        (lambda f: _set_kind(f, 0, "BoW"), "The first module, and no other, must be a Transformer"),
        (lambda f: _set_kind(f, 3, "Transformer"), "The first module, and no other, must be a Transformer"),
        (lambda f: _set_kind(f, 1, "Dropout"), "A sentence model must have a Pooling module"),
        (lambda f: write_json(f / "modules.json", []), r"modules.json must list at least one module. Received: \[\]"),
        (lambda f: (f / "modules.json").write_text("{"), "modules.json must be valid JSON"),
        (lambda f: (f / "modules.json").write_text("[" * 100_000), "modules.json must be valid JSON.*nests too deep"),
        (lambda f: (f / "1_Pooling" / "config.json").unlink(), "has no file .*config.json"),
        (
            lambda f: _edit(f / "1_Pooling" / "config.json", pooling_mode="median"),
            r"Pooling modes must be of cls, max, .* Received: \['median'\]",
        ),
        (
            lambda f: _edit(f / "2_Dense" / "config.json", activation_function="torch.nn.Mish"),
            "The activation of a Dense module must be of Identity, Tanh, .* Received: 'torch.nn.Mish'",
        ),
        (
            lambda f: _edit(f / "2_Dense" / "config.json", module_input_name="token_embeddings"),
            "A Dense module must act on the sentence embedding. Received: module_input_name='token_embeddings'",
        ),
        (
            lambda f: write_json(f / "config_sentence_transformers.json", {"default_prompt_name": "x"}),
            r"default_prompt_name must be one of \[\]. Received: 'x'",
        ),
        (lambda f: (f / "2_Dense" / "model.safetensors").write_bytes(b"x" * 50), "2_Dense"),
    ],
)
def test_damaged_folders(tmp_path: Path, damage, message: str):
    folder = make_sentence_model(tmp_path, layers=[("Dense", DENSE, weights(1, linear_weight=(4, HIDDEN)))])
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        SentenceEncoder(folder)
