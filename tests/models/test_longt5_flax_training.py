"""The example that trains LongT5 in Flax: it learns, on eight devices, and resumes bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import longspan

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_flax_longt5.py"
ARGUMENTS = "--rows 8 --length 64 --span 16 --width 16 --layers 1 --every 8 --rate 0.1".split()  # noqa: SIM905
#: a whole run, and one from its checkpoint of step 8; in one process, since much of the time goes into imports
SCRIPT = """
import importlib.util, json, shutil, sys
import jax
assert len(jax.devices()) == 8
spec = importlib.util.spec_from_file_location("example", sys.argv[1])
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)
def run(name):
    losses = example.train(example.parse(["--output", f"{sys.argv[2]}/{name}", "--steps", "16", *sys.argv[3:]]))
    print("losses", json.dumps(losses))
run("whole")
shutil.copytree(f"{sys.argv[2]}/whole/checkpoints/8", f"{sys.argv[2]}/parts/checkpoints/8")
run("parts")
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Directory of the runs, and the losses of each."""
    root = tmp_path_factory.mktemp("runs")
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(EXAMPLE), str(root), *ARGUMENTS]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("losses ")]
    return root, [json.loads(line.removeprefix("losses ")) for line in lines]


def test_it_learns(runs):
    _, (whole, _) = runs
    assert len(whole) == 16
    assert np.mean(whole[-5:]) < np.mean(whole[:5]) - 0.5


def test_it_resumes_bit_for_bit(runs):
    root, (whole, resumed) = runs
    assert len(resumed) == 8
    assert resumed == whole[8:]
    weights = [(root / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_what_it_writes_generates_in_pytorch_and_in_flax(runs):
    root, _ = runs
    ids = np.arange(3, 60)[None]
    expected = longspan.AutoModelForSeq2SeqLM.from_pretrained(root / "whole" / "model").generate(ids, max_new_tokens=5)
    model = longspan.FlaxAutoModelForSeq2SeqLM.from_pretrained(root / "whole" / "model")
    np.testing.assert_array_equal(model.generate(ids, max_new_tokens=5).sequences, expected)
