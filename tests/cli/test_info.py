"""`longspan info` and `longspan verify`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.pipelines.task_models import make_task_model

from longspan import BertForSequenceClassification
from longspan.cli.main import app
from longspan.cli.running import run

Outcome = tuple[int, str, str]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def call(*arguments: object) -> Outcome:
        code = run(app, [str(argument) for argument in arguments])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    return make_task_model(tmp_path_factory.mktemp("info") / "m", "text-classification", "wordpiece", minilm_dir)


def test_info(cli: Callable[..., Outcome], folder: Path) -> None:
    code, out, err = cli("info", folder, "--json", "--length", 100, "--batch", 2)
    assert (code, err) == (0, "")
    found = json.loads(out)
    model = BertForSequenceClassification.from_pretrained(folder)
    assert found["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["num_bytes"] == 4 * found["num_parameters"]
    assert found["max_positions"] == 128
    assert "question-answering" in found["tasks"]["flax"]
    assert found["cost"]["num_bytes"] > found["num_bytes"]
    dense = sum(parameter.numel() for name, parameter in model.named_parameters() if "embed" not in name)
    assert found["cost"]["num_operations"] == 2 * 200 * dense + 4 * 200 * 100 * 24 * 2
    code, out, _ = cli("info", folder, "--length", 64)
    assert code == 0
    assert "BertForSequenceClassification" in out
    assert "longest input: 128 tokens" in out
    assert "a pass of 1 x 64 tokens: about" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--length", 129), "length must be at most the model's 128 tokens. Received: length=129"),
     (("--length", 0), "length must be at least 1. Received: length=0"),
     (("--length", 5, "--batch", 0), "batch must be at least 1. Received: batch=0")],
)  # fmt: skip
def test_info_errors(cli: Callable[..., Outcome], folder: Path, arguments: tuple[object, ...], message: str) -> None:
    code, _, err = cli("info", folder, *arguments)
    assert code == 1
    assert message in err


def test_verify_compares_every_framework(cli: Callable[..., Outcome], folder: Path) -> None:
    code, out, _ = cli("verify", folder)
    assert code == 0
    assert [line.partition(":")[0] for line in out.splitlines()] == ["torch", "flax", "keras", "all agree"]
    code, out, _ = cli("verify", folder, "--json")
    found = json.loads(out)
    assert found["equal"] is True
    assert 0 < found["frameworks"]["flax"]["logits"] < 1e-4


def test_verify_finds_what_differs(
    cli: Callable[..., Outcome], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longspan import fingerprint

    other = tmp_path / "other"
    other.mkdir()
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] = weights["classifier.bias"] + 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    (other / "config.json").write_bytes((folder / "config.json").read_bytes())
    real = fingerprint._run

    def run_other(model_class, directory, inputs):
        return real(model_class, other if model_class.__name__.startswith("Flax") else directory, inputs)

    monkeypatch.setattr(fingerprint, "_run", run_other)
    code, out, _ = cli("verify", folder)
    assert (code, out.splitlines()[-1]) == (1, "they differ")
    code, _, err = cli("verify", tmp_path)
    assert code == 1
    assert "A model directory must hold a config.json. Received:" in err
