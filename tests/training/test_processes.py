"""A whole `longspan train` in two processes, by DDP and by FSDP2, is that of one; each resumes another."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from tests.processes import run_group
from tests.training.conftest import documents, write_lines

from longspan import (
    AutoTokenizer,
    LongformerConfig,
    LongformerForSequenceClassification,
    LongT5Config,
    LongT5ForConditionalGeneration,
)

ROOT = Path(__file__).parents[2]
CASES = ("bert", "longformer", "longt5")
SETTINGS = ["--batch-tokens", "500", "--micro-tokens", "130", "--epochs", "1", "--learning-rate", "0.001"]
SETTINGS += ["--log-steps", "1", "--save-steps", "2", "--validation-split", "0.2", "--max-grad-norm", "0.5"]


def folder_of(encoder: Path, folder: Path, model) -> Path:
    """A model with the encoder's tokenizer."""
    shutil.copytree(encoder, folder, ignore=shutil.ignore_patterns("model.safetensors", "config.json"))
    model.save_pretrained(folder)
    return folder


def models(encoder: Path, folder: Path) -> dict[str, Path]:
    """Small models without dropout, which each process draws for itself."""
    size = len(AutoTokenizer.from_pretrained(encoder))
    torch.manual_seed(0)
    longformer = LongformerConfig(
        vocab_size=size, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        attention_window=8, max_position_embeddings=65, pad_token_id=0, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    longt5 = LongT5Config(
        vocab_size=size, d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4, local_radius=5, pad_token_id=0,
        eos_token_id=3, decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    bert = shutil.copytree(encoder, folder / "bert")
    settings = json.loads((bert / "config.json").read_text())
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (bert / "config.json").write_text(json.dumps({**settings, **none}))
    return {
        "bert": bert,
        "longformer": folder_of(encoder, folder / "longformer", LongformerForSequenceClassification(longformer)),
        "longt5": folder_of(encoder, folder / "longt5", LongT5ForConditionalGeneration(longt5)),
    }


@pytest.fixture(scope="module")
def outcomes(encoder, tmp_path_factory):
    """What one and two processes say of each model."""
    folder = tmp_path_factory.mktemp("processes")
    data = [{**one, "summary": f"the {one['label']} file"} for one in documents(20, seed=3)]
    path = write_lines(folder / "data.jsonl", data)
    further = {
        "longt5": ["--max-length", "60", "--max-target-length", "8", "--batch-tokens", "200", "--micro-tokens", "70"]
    }
    commands = {
        name: ["summarize" if name == "longt5" else "classify", str(path), "--model", str(model), *SETTINGS,
               *further.get(name, [])]
        for name, model in models(encoder, folder).items()
    }  # fmt: skip
    line = [sys.executable, "-m", "tests.training.processes_worker", str(folder), json.dumps(commands)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = run_group(line, env=environment, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


def assert_equal(rows, expected):
    """Losses, rates and metrics of every row."""
    assert len(rows) == len(expected) > 3
    for row, right in zip(rows, expected, strict=True):
        assert row == pytest.approx(right, rel=1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("way", "kind"), [("ddp", "Tensor"), ("fsdp2", "DTensor")])
def test_two_processes_equal_one(outcomes, name, way, kind):
    found, expected = outcomes[name][way], outcomes[name]["one"]
    assert found["kinds"] == [kind]
    assert any(passes % 2 for passes in found["passes"]), "one process has a pass less"
    assert found["gradients"] <= 1e-5
    assert_equal(found["rows"], expected["rows"])
    assert found["weights"] <= 1e-4
    assert found["left"] == []


@pytest.mark.parametrize("ways", ["fsdp2 one", "one fsdp2", "fsdp2 ddp"])
def test_an_interrupted_run_goes_on_with_other_processes(outcomes, ways):
    found = outcomes["bert"][ways]
    assert_equal(found["rows"], outcomes["bert"]["one"]["rows"])
    assert found["left"] == []
