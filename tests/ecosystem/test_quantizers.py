"""Quantisers: PyTorch's dynamic one and torchao's reach every linear layer, and change the results by little."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.ecosystem.models import LANGUAGE_MODELS, batch, make
from torch import nn

pytestmark = pytest.mark.ecosystem
WORKER = """
import sys
sys.path.insert(0, {root!r})
import torch, torchao
from torch import nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from tests.ecosystem.models import LANGUAGE_MODELS, batch, make

for name in LANGUAGE_MODELS.values():
    plain = make(name).eval()(**batch(name)).logits
    for config in (Int8WeightOnlyConfig(), Int8DynamicActivationInt8WeightConfig()):
        model = make(name).eval()
        total = sum(type(module) is nn.Linear for module in model.modules())
        quantize_(model, config)
        changed = sum(
            type(module) is nn.Linear and type(module.weight) is not nn.Parameter for module in model.modules()
        )
        with torch.no_grad():
            error = (model(**batch(name)).logits - plain).norm() / plain.norm()
        assert changed == total > 5, (name, changed, total)
        assert error < 0.05, (name, type(config).__name__, float(error))
        print(name, "ok", flush=True)
"""


@pytest.mark.parametrize("name", LANGUAGE_MODELS.values())
@pytest.mark.filterwarnings("ignore")  # this quantiser says that torchao follows it
def test_dynamic_quantisation_reaches_every_linear_layer(name):
    model = make(name).eval()
    total = sum(isinstance(module, nn.Linear) for module in model.modules())
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    count = sum(isinstance(module, torch.ao.nn.quantized.dynamic.Linear) for module in quantised.modules())
    assert count == total > 5
    with torch.no_grad():
        expected, got = model(**batch(name)).logits, quantised(**batch(name)).logits
    assert (got - expected).norm() / expected.norm() < 0.05


def test_torchao():
    path = os.pathsep.join([str(Path(sys.prefix) / "torchao"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WORKER.format(root=str(Path(__file__).parents[2]))],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(" ok") == 10
