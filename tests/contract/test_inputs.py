"""The vocabulary of inputs covers every class of every framework, and the docstrings agree with it."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from tests.contract.test_docstrings import model_classes

import longspan
from longspan.errors import InputError
from longspan.inputs import INPUTS, axes_of, dynamic_axes, get_input, limit_of, padding_of, shape_of
from longspan.nn.torch.checks import check_input, export_shapes

#: arguments that carry no data: how a framework runs the model
CONTROLS = {
    "self", "params", "batch_stats", "dropout_rng", "train", "deterministic", "training", "args", "kwargs",
    "loss_arguments",
}  # fmt: skip
CLASSES = {name: cls for name, cls in model_classes().items() if "PreTrainedModel" not in name}


def forward_of(cls):
    kind = cls.__module__.rsplit(".", 1)[-1].partition("_")[0]
    return getattr(cls, {"torch": "forward", "keras": "call", "flax": "__call__"}[kind])


@pytest.mark.parametrize("name", CLASSES)
def test_every_argument_is_in_the_vocabulary(name):
    arguments = set(inspect.signature(forward_of(CLASSES[name])).parameters) - CONTROLS
    assert arguments <= set(INPUTS)


@pytest.mark.parametrize("name", CLASSES)
def test_docstrings_show_the_axes_of_the_vocabulary(name):
    text = inspect.getdoc(forward_of(CLASSES[name])) or ""
    arguments = text.partition("Args:")[2].partition("Returns:")[0]
    for argument, line in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", arguments, flags=re.M):
        if argument in CONTROLS:
            continue
        entry = get_input(argument)
        if entry.kind in ("flag", "object"):
            continue
        for shape in re.findall(r"\(([A-Z](?:, *[A-Z_a-z+ 0-9]+)*,?)\)", line):
            axes = shape.strip(",").replace(" ", "").split(",")
            folded = {len(axes_of(argument, choices=True))} if "C" in axes else set()
            assert len(axes) in {len(axes) for axes in entry.axes} | folded, f"{argument}: ({shape})"


def test_entries():
    config = longspan.BertConfig(vocab_size=30, pad_token_id=None)
    assert axes_of("input_ids", choices=True) == ("batch", "choices", "tokens")
    assert axes_of("labels", choices=True) == ("batch", "tokens")
    assert shape_of("attention_mask", {"batch": 2}) == (2, None)
    assert dynamic_axes(["head_mask", "use_cache"]) == {"head_mask": {}}
    assert (limit_of("input_ids", config), limit_of("labels", config)) == (30, None)
    assert (padding_of("input_ids", config), padding_of("labels", config)) == (0, -100)
    assert get_input("encoder_hidden_states").describe() == "States that cross-attention reads, (batch, source, width)."
    with pytest.raises(InputError, match=r"an input must be one of input_ids, .*Received: 'ids'"):
        get_input("ids")
    with pytest.raises(InputError, match=r"only inputs with an axis of tokens are padded. Received: 'head_mask'"):
        padding_of("head_mask", config)


def test_checks_read_the_vocabulary():
    config = longspan.BertConfig(type_vocab_size=2)
    check_input(None, "token_type_ids", config, batch=1, tokens=2)
    check_input(torch.tensor([[0, 1]]), "token_type_ids", config, batch=1, tokens=2)
    with pytest.raises(InputError, match=r"token_type_ids must have the shape \(batch, tokens\) = \(1, 3\)"):
        check_input(torch.tensor([[0, 1]]), "token_type_ids", config, batch=1, tokens=3)
    with pytest.raises(InputError, match=r"token_type_ids must lie in \[0, type_vocab_size=2\). Received: 2"):
        check_input(torch.tensor([[0, 2]]), "token_type_ids", config, batch=1, tokens=2)


def test_exported_graphs_take_every_length():
    config = longspan.LongT5Config(vocab_size=30, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, local_radius=3)
    model = longspan.LongT5EncoderModel(config).eval()
    inputs = {"input_ids": torch.randint(0, 30, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
    program = torch.export.export(model, (), inputs, dynamic_shapes=export_shapes(inputs)).module()
    for shape in ((1, 5), (3, 20)):
        other = {"input_ids": torch.randint(0, 30, shape), "attention_mask": torch.ones(shape, dtype=torch.long)}
        torch.testing.assert_close(program(**other)[0], model(**other)[0])
