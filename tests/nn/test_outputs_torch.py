"""Model outputs read as attributes, dicts and tuples; they pickle and cross compilers."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.utils import _pytree as pytree

from longspan import ModelOutput
from longspan.nn.torch.outputs import MaskedLMOutput, SequenceClassifierOutput


def make():
    return SequenceClassifierOutput(logits=torch.arange(3.0), attentions=(torch.ones(2),))


def test_reads_in_three_ways():
    output = make()
    assert isinstance(output, ModelOutput)
    assert output.loss is None
    assert list(output) == ["logits", "attentions"]
    assert len(output) == 2
    assert output[0] is output.logits is output["logits"]
    assert output[1:] == (output.attentions,)
    assert output.to_tuple() == (output.logits, output.attentions)
    assert "loss" not in output
    assert "logits" in output
    assert dict(**output).keys() == {"logits", "attentions"}
    assert output.get("loss", "none") == "none"
    for absent in ("loss", "no_such_field"):
        with pytest.raises(KeyError, match=absent):
            output[absent]


def test_fields_can_be_set_in_both_ways_and_further_keys_go_behind_them():
    output = make()
    output["loss"] = torch.tensor(1.0)
    assert output[0] == 1.0
    output.loss = None
    assert list(output) == ["logits", "attentions"]
    output.update(loss=torch.tensor(2.0), x=1)
    assert list(output) == ["loss", "logits", "attentions", "x"]
    assert output.loss == 2.0
    assert pickle.loads(pickle.dumps(output))["x"] == output[3] == 1
    assert (output.pop("x"), output.pop("y", 5), output.pop("loss")) == (1, 5, 2.0)
    assert output.loss is None
    assert list(output) == ["logits", "attentions"]
    with pytest.raises(KeyError, match="loss"):
        del output["loss"]


def test_is_a_dict_and_can_be_made_of_one():
    output = SequenceClassifierOutput({"logits": 1, "loss": 2})
    assert isinstance(output, dict)
    assert {**output} == dict(output) == {"loss": 2, "logits": 1}
    assert output == SequenceClassifierOutput(loss=2, logits=1)
    assert type(output)(output) == output


def test_pickles():
    back = pickle.loads(pickle.dumps(make()))
    assert type(back) is SequenceClassifierOutput
    assert torch.equal(back.logits, make().logits)
    assert back.loss is None


def test_is_a_pytree_and_survives_vmap_and_compile():
    leaves, spec = pytree.tree_flatten(make())
    assert len(leaves) == 2
    back = pytree.tree_unflatten(leaves, spec)
    assert type(back) is SequenceClassifierOutput
    assert back.loss is None

    def model(x):
        return MaskedLMOutput(logits=x * 2)

    assert torch.equal(torch.vmap(model)(torch.ones(3, 2)).logits, torch.full((3, 2), 2.0))
    compiled = torch.compile(model, fullgraph=True, backend="eager")(torch.ones(2))
    assert type(compiled) is MaskedLMOutput
    assert torch.equal(compiled.logits, torch.full((2,), 2.0))
