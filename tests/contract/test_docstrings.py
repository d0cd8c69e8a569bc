"""Docstring examples run; public classes have one; models are explicit classes."""

from __future__ import annotations

import doctest
import functools
import importlib
import inspect
import pkgutil

import pytest
from tests.contract.test_imports import public_names

import longspan

#: import a framework that is in a folder of its own; tests/ecosystem/test_retrieval.py runs them
ELSEWHERE = {f"longspan.integrations.{name}" for name in ("haystack", "langchain", "llama_index")}
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(longspan.__path__, "longspan.")
    if not module.name.endswith("__main__")
    and ".keras" not in module.name
    and ".flax" not in module.name
    and module.name not in ELSEWHERE
)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_examples_give_what_they_show(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False)
    assert results.failed == 0


@functools.cache
def model_classes():
    return {
        name: getattr(longspan, name)
        for name, module in public_names().items()
        if (module.startswith("longspan.models.") and name.endswith(("Model", "LM", "Classification", "Choice")))
        or (name.endswith(("Answering", "Prediction", "PreTraining", "Generation"))
        and module.startswith("longspan.models."))
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in model_classes() if "PreTrainedModel" not in name])
def test_models_are_explicit_documented_classes(name):
    cls = model_classes()[name]
    source = inspect.getsource(cls)
    assert source.lstrip("@").split("class ", 1)[1].startswith(name + "(")
    assert ">>>" in (cls.__doc__ or ""), f"{name} has no example"
    # `help` shows a constructor with its docstring, wherever it is inherited from
    assert any("Args:" in (text or "") for text in (cls.__doc__, cls.__init__.__doc__)), f"{name}: no constructor"
    assert cls.__module__.startswith("longspan.models.")
