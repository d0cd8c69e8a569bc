"""Sentence encoders learn in Flax and Keras what they learn in PyTorch, and load in every framework."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tiny_encoder import HIDDEN, make_sentence_model
from tests.training import frameworks
from tests.training.conftest import SETTINGS, read_csv
from tests.training.test_embed import TOPICS, pairs

from longspan import BertConfig, BertModel, SentenceEncoder
from longspan.training.runs import finetune

#: passes of few shapes, not all of them full
SIZES = {"micro_tokens": 700, "max_length": 24, "stride": 0}
SEEN = pairs(TOPICS[:5])
TRIPLETS = [one | {"negative": SEEN[place - 1]["positive"]} for place, one in enumerate(SEEN)]
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
def test_a_step_is_that_of_pytorch(model, framework):
    torchs, ours = (frameworks.make(each, "embed", model, TRIPLETS, **SIZES) for each in ("torch", framework))
    assert len({len(sample.rows) for sample in ours._prepared.samples}) > 1
    expected = frameworks.step_of_torch(torchs)
    assert {"sentence_layers.0.0.weight", "sentence_layers.1.bias"} <= expected[1].keys()
    frameworks.assert_same_step(frameworks.STEPS[framework](ours), expected)


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):
    """What two steps came to in each framework, and where it was written."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {**SETTINGS, **frameworks.ONE_STEP, **SIZES, "micro_tokens": 1000, "epochs": 2, "log_steps": 1}
    found = {}
    for framework in ("torch", "flax", "keras"):
        run = ("embed", model, SEEN, folder / framework)
        report = finetune(*run, framework=framework, validation=SEEN, **settings)
        found[framework] = report, read_csv(folder / framework / "log.csv")
    return found


@pytest.mark.parametrize("framework", ["flax", "keras"])
def test_a_run_is_that_of_pytorch_and_its_model_loads_everywhere(model, runs, framework):
    report, rows = runs[framework]
    expected, torch_rows = runs["torch"]
    assert report.metrics == pytest.approx(expected.metrics, abs=1e-6)
    for name in ("loss", "learning_rate", "accuracy@1", "mrr"):
        found, right = ([float(row[name]) for row in each if row[name]] for each in (rows, torch_rows))
        assert len(right) == 2
        np.testing.assert_allclose(found, right, rtol=1e-5, err_msg=name)
    texts = [row["anchor"] for row in SEEN]
    folders = (model, report.output, report.output, expected.output)
    loaders = ("torch", "torch", framework, "torch")
    before, *after = (
        SentenceEncoder(folder, framework=loader).encode(texts) for folder, loader in zip(folders, loaders, strict=True)
    )
    assert np.abs(after[0] - before).max() > 1e-2
    np.testing.assert_allclose(after[1], after[0], atol=1e-5)
    np.testing.assert_allclose(after[2], after[0], atol=1e-4)
