"""ONNX: a model exported once gives onnxruntime the results of PyTorch at five lengths."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from tests.ecosystem.models import make
from tests.tolerances import assert_close

pytestmark = [pytest.mark.ecosystem, pytest.mark.filterwarnings("ignore")]  # the exporter deprecates itself


@pytest.mark.parametrize("name", ["BertForSequenceClassification"])
def test_five_lengths(name, tmp_path):
    model = make(name).eval()
    model.config.return_dict = False
    ids = torch.randint(3, 40, (2, 16))
    length = torch.export.Dim("length", min=4, max=40)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    shapes = {key: {1: length} for key in inputs}
    settings = {"dynamo": True, "dynamic_shapes": shapes, "verbose": False}
    torch.onnx.export(model, (), str(tmp_path / "m.onnx"), kwargs=inputs, **settings)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for tokens in (5, 11, 16, 23, 40):
        ids = torch.randint(3, 40, (2, tokens))
        mask = torch.ones_like(ids)
        got = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
        with torch.no_grad():
            assert_close(got, model(ids, attention_mask=mask)[0])
