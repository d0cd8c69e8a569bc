"""torch.export, ONNX: a model exported once gives the results of PyTorch at five lengths, there and in onnxruntime."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from tests.ecosystem.models import inputs_of, make
from tests.tolerances import assert_close

pytestmark = [pytest.mark.ecosystem, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the exporter warns
LENGTHS = (5, 11, 16, 23, 40)


@pytest.mark.parametrize(
    "name",
    [
        "BertForSequenceClassification",
        "LongformerForSequenceClassification",
        "LongT5ForConditionalGeneration",
        "DiffLlamaForSequenceClassification",
        "MegaForSequenceClassification",
    ],
)
def test_five_lengths(name, tmp_path):
    layers = {"num_layers": 1} if name.startswith("LongT5") else {"num_hidden_layers": 1}
    model = make(name, use_cache=False, return_dict=False, **layers).eval()
    example = inputs_of(model, 16)
    length = torch.export.Dim("length", min=4, max=40)
    shapes = {key: {1: length} if value.shape[1] == 16 else {} for key, value in example.items()}
    exported = torch.export.export(model, (), kwargs=example, dynamic_shapes=shapes)
    torch.onnx.export(exported, (), str(tmp_path / "m.onnx"), dynamo=True, verbose=False, optimize=False)
    program, session = exported.module(), onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for tokens in LENGTHS:
        inputs = inputs_of(model, tokens)
        with torch.no_grad():
            expected = model(**inputs)[0]
            assert_close(program(**inputs)[0], expected)
        assert_close(session.run(None, {key: value.numpy() for key, value in inputs.items()})[0], expected)
