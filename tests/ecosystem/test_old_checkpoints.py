"""Three trained BERTs of 2019 (PyPI package rxnfp): weights in the first format, configurations that name no family."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from tests.tolerances import assert_close

import longspan
from longspan.errors import ConfigError

pytestmark = pytest.mark.ecosystem
FOLDER = Path(sys.prefix) / "rxnfp" / "rxnfp" / "models" / "transformers"
REACTIONS = ["CC(=O)O.OCC>>CC(=O)OCC", "c1ccccc1Br.OB(O)c1ccccc1>>c1ccc(-c2ccccc2)cc1"]


@pytest.mark.parametrize("name", ["bert_ft", "bert_ft_10k_25s", "bert_pretrained"])
@pytest.mark.filterwarnings("ignore:num_labels=50 gives way to id2label:UserWarning")
def test_states_equal_the_references(name):
    directory = FOLDER / name
    assert type(longspan.AutoConfig.from_pretrained(directory)) is longspan.BertConfig
    ours = longspan.AutoModel.from_pretrained(directory)
    assert type(ours) is longspan.BertModel
    theirs = transformers.BertModel.from_pretrained(directory, attn_implementation="eager").eval()
    tokenizer = longspan.AutoTokenizer.from_pretrained(directory, do_lower_case=False)
    inputs = tokenizer([" ".join(reaction) for reaction in REACTIONS], padding=True, return_tensors="pt")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = theirs(**inputs).last_hidden_state[real]
        assert_close(ours(**inputs).last_hidden_state[real], expected)
    assert expected.std() > 0.1


def test_a_checkpoint_that_tells_no_family_takes_model_type(tmp_path):
    settings = json.loads((FOLDER / "bert_pretrained" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="names no model_type in its config.json.*: pass model_type=, one of bert"):
        longspan.AutoConfig.from_pretrained(tmp_path)
    assert longspan.AutoConfig.from_pretrained(tmp_path, model_type="bert").hidden_size == 256
    for setting, family in (("attention_window", "longformer"), ("ema_projection_size", "mega")):
        (tmp_path / "config.json").write_text(json.dumps({**settings, "num_attention_heads": 1, setting: 8}))
        assert longspan.AutoConfig.from_pretrained(tmp_path).model_type == family
    (tmp_path / "config.json").write_text(json.dumps({**settings, "architectures": ["BertForMaskedLM"]}))
    assert longspan.AutoConfig.from_pretrained(tmp_path).model_type == "bert"
