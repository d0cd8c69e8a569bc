"""Four devices of JAX that share a sequence compute what one computes, forward and backward."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from tests.grid import grid
from tests.parallel.cases import CASES
from tests.processes import run_group
from tests.tolerances import TOLERANCE

HERE = Path(__file__).parent
NAMES = (
    "longformer_fill_global", "longformer_choose", "longt5_transient", "mega_fill", "mega_generate_chunks"
)  # fmt: skip
#: windows, separators and averages as above; they differ in a head or a setting
FURTHER = ("longformer_answer", "longt5_local", "mega_truncated", "mega_classify")


def run(*names):
    root = HERE.parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    command = [sys.executable, str(HERE / "flax_worker.py"), *names]
    done = run_group(command, env=environment, timeout=700)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def results():
    """What a process with four devices says of all cases: it is started once."""
    return run(*NAMES, "memory", "errors")


@pytest.fixture(scope="module")
def further():
    return run(*FURTHER)


@pytest.mark.parametrize("name", grid((*NAMES, *FURTHER), wide=FURTHER))
def test_four_devices_equal_one(request, name):
    found = request.getfixturevalue("further" if name in FURTHER else "results")[name]
    assert isinstance(found["gradients"], int), found["gradients"]
    assert found["gradients"] > 10
    outputs = [output for output in CASES[name].outputs if "logits" in output]
    for key in ("loss", *outputs):
        assert found[key] <= TOLERANCE["float32"], key


def test_each_device_keeps_its_part(results):
    """Memory of the compiled step beside its parameters and their gradients, of one device of four and of one alone."""
    assert results["memory"]["part"] < 0.35


def test_errors(results):
    said = results["errors"]
    assert "axis must be one of the mesh, tokens. Received: 'words'" in said["axis"]
    assert "at least the 4 tokens that its neighbours see. Received: 3 tokens on each of 4 devices" in said["short"]
    assert "a multiple of a chunk of 6 tokens. Received: 8" in said["chunks"]
    assert "returns no attention weights" in said["weights"]
    assert "normalization_type='batchnorm'" in said["norm"]
    assert said["left"] == [True, False]
