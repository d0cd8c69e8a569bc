"""torch.compile: one graph gives the results of plain calls at five lengths."""

from __future__ import annotations

import pytest
import torch
from tests.ecosystem.models import inputs_of, make
from tests.tolerances import assert_close
from torch._dynamo.testing import CompileCounterWithBackend

pytestmark = [pytest.mark.ecosystem, pytest.mark.slow]


@torch.no_grad()
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
def test_one_graph_serves_five_lengths(name):
    layers = {"num_layers": 1} if name.startswith("LongT5") else {"num_hidden_layers": 1}
    model, counter = make(name, use_cache=False, **layers).eval(), CompileCounterWithBackend("eager")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    for tokens in (16, 5, 11, 23, 40):
        inputs = inputs_of(model, tokens)
        assert_close(compiled(**inputs).logits, model(**inputs).logits)
    assert counter.frame_count == 1
    torch._dynamo.reset()
