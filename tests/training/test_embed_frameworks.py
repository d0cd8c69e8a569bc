"""Sentence encoders learn in Flax and Keras what they learn in PyTorch, and load in every framework."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tiny_encoder import HIDDEN, make_sentence_model
from tests.training import frameworks
from tests.training.test_embed import TOPICS, pairs

from longspan import BertConfig, BertModel, SentenceEncoder
from longspan.training.records import Record

#: passes of few shapes, not all of them full
SIZES = {"micro_tokens": 700, "max_length": 24, "stride": 0}
_SEEN = pairs(TOPICS[:5])
TRIPLETS = [one | {"negative": _SEEN[place - 1]["positive"]} for place, one in enumerate(_SEEN)]
TRIPLETS[4]["anchor"] = TRIPLETS[3]["anchor"]  # whose positive is no negative of it


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny encoder without dropout, with two poolings, a projection and a normalisation behind them."""
    draw = torch.Generator().manual_seed(0)
    noise = lambda *shape: torch.randn(shape, generator=draw) * 0.2  # noqa: E731
    settings = {"in_features": 2 * HIDDEN, "out_features": 16, "bias": True,
                "activation_function": "torch.nn.modules.activation.GELU"}  # fmt: skip
    layers = [
        ("Dense", settings, {"linear.weight": noise(16, 2 * HIDDEN), "linear.bias": noise(16)}),
        ("LayerNorm", {"dimension": 16}, {"norm.weight": 1 + noise(16), "norm.bias": noise(16)}),
    ]
    pooling = {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}
    folder = make_sentence_model(tmp_path_factory.mktemp("embed") / "model", layers=layers, pooling=pooling)
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_hidden_layers": 1}
    transformer = BertModel(BertConfig.from_pretrained(folder, **none))
    for parameter in transformer.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    transformer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("framework", ["flax", "keras"])
def test_a_step_is_that_of_pytorch_and_its_model_loads_everywhere(model, tmp_path, framework):
    torchs, ours = (frameworks.make(each, "embed", model, TRIPLETS, **SIZES) for each in ("torch", framework))
    assert len({len(sample.rows) for sample in ours._prepared.samples}) > 1
    expected = frameworks.step_of_torch(torchs)
    assert {"sentence_layers.0.0.weight", "sentence_layers.1.bias"} <= expected[1].keys()
    frameworks.assert_same_step(frameworks.STEPS[framework](ours), expected)

    for name, parameter in torchs.base.named_parameters():
        parameter.data = torch.from_numpy(expected[1][name])
    records = [Record(row, "rows", place) for place, row in enumerate(TRIPLETS)]
    metrics = [one.task.evaluate(one.task.take(records).examples) for one in (torchs, ours)]
    assert metrics[1] == pytest.approx(metrics[0])
    ours.folder.path = tmp_path
    ours.save_best()
    ours.write_best(tmp_path / "out")
    texts = [row["anchor"] for row in TRIPLETS]
    right = torchs.task.encoder.encode(texts)
    assert np.abs(right - SentenceEncoder(model).encode(texts)).max() > 1e-2
    for loader in ("torch", framework):
        found = SentenceEncoder(tmp_path / "out", framework=loader).encode(texts)
        np.testing.assert_allclose(found, right, atol=1e-4)
