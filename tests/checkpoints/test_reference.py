"""Checkpoints go to the reference and come back, byte for byte."""

import json

import pytest
import torch
import transformers

from longspan.checkpoints.files import open_checkpoint, save_checkpoint
from longspan.checkpoints.report import plan_load
from longspan.models.bert.names import NAMES

CONFIG = transformers.BertConfig(
    vocab_size=40,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=16,
)


@pytest.fixture
def model():
    model = transformers.BertForPreTraining(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def equal(state, other):
    assert state.keys() == other.keys()
    return all(state[key].dtype == other[key].dtype and torch.equal(state[key], other[key]) for key in state)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("max_shard_size", ["5GB", "2KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_reference_writes_is_read(tmp_path, model, safe, max_shard_size, dtype):
    model = model.to(dtype)
    model.save_pretrained(tmp_path, safe_serialization=safe, max_shard_size=max_shard_size)
    state = model.state_dict()
    with open_checkpoint(tmp_path) as reader:
        assert reader.format == ("safetensors" if safe else "pytorch")
        assert reader.path.name.endswith(".index.json") == (max_shard_size == "2KB")
        plan = plan_load({key: tuple(value.shape) for key, value in state.items()}, reader, NAMES, CONFIG)
        assert plan.fresh == ()
        assert plan.report.tied.keys() == {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
        loaded = {key: reader.read_torch(stored) for key, stored in plan.sources.items()}
    loaded |= {key: loaded[owner] for key, owner in plan.report.tied.items()}
    assert equal(loaded, state)


@pytest.mark.parametrize("max_shard_size", ["5GB", "2KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_we_write_the_reference_reads(tmp_path, model, max_shard_size, dtype):
    model = model.to(dtype)
    state = {key: value for key, value in model.state_dict().items() if ".decoder." not in key}
    files = {"config.json": json.dumps(CONFIG.to_dict()).encode()}
    save_checkpoint(tmp_path, state, files=files, max_shard_size=max_shard_size)
    loaded, info = transformers.BertForPreTraining.from_pretrained(tmp_path, dtype=dtype, output_loading_info=True)
    assert not any(info.values()), info
    assert equal(loaded.state_dict(), model.state_dict())


def test_there_and_back_is_the_identity(tmp_path, model):
    first, second = tmp_path / "first", tmp_path / "second"
    state = {key: value for key, value in model.state_dict().items() if ".decoder." not in key}
    save_checkpoint(first, state, files={"config.json": json.dumps(CONFIG.to_dict()).encode()})
    transformers.BertForPreTraining.from_pretrained(first).save_pretrained(second)
    with open_checkpoint(first) as ours, open_checkpoint(second) as theirs:
        assert set(ours) == set(theirs)
        assert all(ours.read_raw(key).tobytes() == theirs.read_raw(key).tobytes() for key in ours)
