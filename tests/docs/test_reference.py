"""Every public name has a place in the reference of the API in both languages; the vocabulary is translated whole."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest
import yaml

from longspan.inputs import INPUTS
from longspan.tasks import TASKS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import docs_api


def test_all_names_are_on_one_page():
    from tests.contract.test_imports import public_names

    found = [name for names in docs_api.page_names().values() for name in names]
    assert sorted(found) == sorted(public_names())
    assert docs_api.public_names() == public_names()


def test_nothing_lacks_a_translation():
    assert docs_api.untranslated() == []


def test_tables_hold_nothing_else():
    """Entries that no name, argument or field has any more are removed."""
    assert set(docs_api.table("inputs")) == set(INPUTS)
    assert set(docs_api.table("tasks")) >= {suffix for task in TASKS.values() for suffix in task.suffixes}
    assert set(docs_api.table("names")) <= set(docs_api.public_names())
    for path in (ROOT / "docs" / "zh").glob("*.yml"):
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        texts = [entry[1] if isinstance(entry, list) else entry for entry in entries.values()]
        assert all(isinstance(text, str) and text for text in texts), path.name


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_section_says_what_a_model_takes_and_returns(language):
    page = docs_api.Writer(language).page("longformer-torch", ["LongformerForSequenceClassification"])
    cls = docs_api.get("LongformerForSequenceClassification")
    for argument in list(inspect.signature(cls.forward).parameters)[1:]:
        assert f"\n| `{argument}` |" in page, argument
    for field in ("loss", "logits", "hidden_states", "attentions", "global_attentions"):
        assert f"\n| `{field}` |" in page, field
    assert ">>> from longspan import LongformerConfig" in page
    assert "(../../src/longspan/models/longformer/torch_model.py#L" in page
    says_so = "带序列分类／回归头" in page
    assert says_so == (language == "zh")


def test_derived_signatures_show():
    """Keras classes that inherit `call`, and Flax classes that inherit `__call__`, are shown with all arguments."""
    assert "labels" in [item.name for item in docs_api.signature(docs_api.call_of("TFBertForMaskedLM")[1])]
    assert [item.name for item in docs_api.signature(docs_api.call_of("FlaxBertForCausalLM")[1])][:2] == [
        "input_ids", "attention_mask",
    ]  # fmt: skip
