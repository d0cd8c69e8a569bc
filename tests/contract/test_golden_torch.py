"""What must not change by accident in a PyTorch class: the keys of its state dict and the arguments of its forward.

`python -m tests.contract.test_golden_torch` writes the golden file anew, after a change that is meant.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
from tests.contract.test_pickles import DECODERS, TINY
from tests.contract.test_signatures_torch import TORCH

GOLDEN = Path(__file__).with_name("golden_torch.json")


def tiny_model(name):
    """A model of the class with one small layer."""
    family = next(family for family in TINY if name.startswith(family))
    config = type(TINY[family])(**TINY[family].to_dict())
    if name in DECODERS:
        config.is_decoder, config.bidirectional = True, False
    return TORCH[name](config)


def describe(name):
    parameters = list(inspect.signature(TORCH[name].forward).parameters.values())[1:]
    return {
        "forward": [f"{p.name}={p.default!r}{' (keyword)' if p.kind is p.KEYWORD_ONLY else ''}" for p in parameters],
        "state_dict": [f"{key} {tuple(value.shape)}" for key, value in tiny_model(name).state_dict().items()],
    }


@pytest.mark.parametrize("name", TORCH)
def test_keys_and_arguments_are_as_frozen(name):
    assert describe(name) == json.loads(GOLDEN.read_text(encoding="utf-8"))[name]


def test_every_class_is_frozen():
    assert sorted(json.loads(GOLDEN.read_text(encoding="utf-8"))) == sorted(TORCH)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: describe(name) for name in TORCH}, indent=1) + "\n", encoding="utf-8")
