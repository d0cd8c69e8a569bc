"""Longformers made of BERT and RoBERTa checkpoints compute what the originals compute, and load in the reference."""

from __future__ import annotations

import importlib
import inspect
import json

import numpy as np
import pytest
import torch
import transformers
from tests.keras.setting import import_keras
from tests.parity.torch_parity import randomise
from tests.tolerances import assert_close

import longspan
from longspan import AutoTokenizer, BertConfig, lengthen_checkpoint, to_long
from longspan.errors import CheckpointError, ConfigError, InputError

SETTINGS = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 30,
    "num_labels": 3,
}
HEADS = {
    "BertModel": "LongformerModel",
    "BertForMaskedLM": "LongformerForMaskedLM",
    "BertForPreTraining": "LongformerForMaskedLM",
    "BertForSequenceClassification": "LongformerForSequenceClassification",
    "BertForTokenClassification": "LongformerForTokenClassification",
    "BertForMultipleChoice": "LongformerForMultipleChoice",
    "BertForQuestionAnswering": "LongformerForQuestionAnswering",
}


def inputs(shape=(2, 12)):
    torch.manual_seed(3)
    ids = torch.randint(2, 61, shape)
    mask = torch.ones_like(ids)
    mask[0, ..., 9:] = 0
    return {"input_ids": ids.where(mask.bool(), torch.tensor(0)), "attention_mask": mask}


def no_global(batch):
    return {**batch, "global_attention_mask": torch.zeros_like(batch["input_ids"])}


@pytest.mark.parametrize("name", HEADS)
def test_every_head_of_bert_keeps_its_outputs(name, tmp_path):
    short = randomise(getattr(longspan, name)(BertConfig(**SETTINGS, max_position_embeddings=16)))
    short.save_pretrained(tmp_path / "short")
    shape = (2, 2, 12) if "Choice" in name else (2, 12)
    batch = inputs(shape)
    expected = short(**batch)
    lengthen_checkpoint(tmp_path / "short", tmp_path / "long", max_length=64, attention_window=24)
    from_file = getattr(longspan, HEADS[name]).from_pretrained(tmp_path / "long")
    for model in (to_long(short, 64, 24), to_long(tmp_path / "short", 64, 24), from_file):
        assert type(model).__name__ == HEADS[name]
        assert model.config.max_length == 64
        output = model(**no_global(batch))
        keep = batch["attention_mask"].view(-1, 12)
        for field in ("last_hidden_state", "logits", "start_logits", "end_logits", "pooler_output"):
            source = "prediction_logits" if name == "BertForPreTraining" and field == "logits" else field
            if field in output:
                mine, theirs = output[field], expected[source]
                if mine.shape[:2] == keep.shape:
                    mask = keep if mine.dim() == 2 else keep[..., None]
                    mine, theirs = mine * mask, theirs * mask
                assert_close(mine, theirs, what=field)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("prefix", ["Flax", "TF"])
def test_other_frameworks_keep_outputs_too(prefix, tmp_path):
    if prefix == "TF":
        import_keras()
    short = randomise(longspan.BertForTokenClassification(BertConfig(**SETTINGS, max_position_embeddings=16)))
    short.save_pretrained(tmp_path)
    batch = {name: tensor.numpy() for name, tensor in no_global(inputs()).items()}
    expected = short(**inputs()).logits.detach().numpy()
    framework = {"Flax": "flax", "TF": "keras"}[prefix]
    loaded = getattr(longspan, f"{prefix}BertForTokenClassification").from_pretrained(tmp_path)
    for model in (to_long(loaded, 64, 24), to_long(tmp_path, 64, 24, framework=framework)):
        assert type(model).__name__ == f"{prefix}LongformerForTokenClassification"
        assert (model.config.max_length, model.config.name_or_path) == (64, str(tmp_path))
        keep = batch["attention_mask"][..., None]
        assert_close(np.asarray(model(**batch).logits) * keep, expected * keep)
    with pytest.raises(InputError, match="framework must be that of the model"):
        to_long(loaded, 64, 24, framework="torch")


def test_the_result_loads_in_the_reference_and_takes_the_new_length(tmp_path):
    short = randomise(longspan.BertForMaskedLM(BertConfig(**SETTINGS, max_position_embeddings=16)))
    long = to_long(short, 64, 24)
    long.save_pretrained(tmp_path)
    reference = transformers.LongformerForMaskedLM.from_pretrained(tmp_path)
    ids = torch.randint(2, 61, (1, 64))
    assert_close(long(ids).logits, reference(ids).logits)
    with pytest.raises(InputError, match="64"):
        long(torch.randint(2, 61, (1, 65)))


def test_positions_repeat_and_global_projections_are_copies():
    short = randomise(longspan.BertModel(BertConfig(**SETTINGS, max_position_embeddings=16)))
    long = to_long(short, 40, 24)
    table, old = long.embeddings.position_embeddings.weight, short.embeddings.position_embeddings.weight
    assert table.shape[0] == 41  # Longformer counts from pad_token_id + 1
    assert torch.equal(table[1:17], old)
    assert torch.equal(table[17:33], old)
    assert torch.equal(table[33:41], old[:8])
    attention = long.encoder.layer[1].attention.self
    for kind in ("query", "key", "value"):
        copy, local = getattr(attention, f"{kind}_global"), getattr(attention, kind)
        assert torch.equal(copy.weight, local.weight)
        assert copy.weight.data_ptr() != local.weight.data_ptr()


@pytest.mark.parametrize("name", ["RobertaModel", "RobertaForMaskedLM", "RobertaForSequenceClassification"])
def test_roberta_layout_with_its_position_offset(name, tmp_path):
    config = transformers.RobertaConfig(
        **SETTINGS, max_position_embeddings=18, type_vocab_size=1, pad_token_id=1, attn_implementation="eager"
    )
    reference = randomise(getattr(transformers, name)(config))
    reference.save_pretrained(tmp_path)
    batch = inputs()
    batch["input_ids"][batch["attention_mask"] == 0] = 1
    expected = reference(**batch)
    long = to_long(tmp_path, 64, 24)
    assert long.config.max_position_embeddings == 66
    output = long(**no_global(batch))
    field = "last_hidden_state" if name == "RobertaModel" else "logits"
    keep = batch["attention_mask"][..., None] if output[field].dim() == 3 else torch.tensor(1)
    assert_close(output[field] * keep, expected[field] * keep)


def test_a_sentence_encoder_comes_along_whole(minilm_dir, tmp_path):
    plan = lengthen_checkpoint(minilm_dir, tmp_path, max_length=4096)
    assert plan.config.max_length == 4096
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.model_max_length == 4096
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert reference.model_max_length == 4096
    text = "Long documents, read whole."
    assert reference(text)["input_ids"] == tokenizer(text).input_ids
    assert json.loads((tmp_path / "sentence_bert_config.json").read_text())["max_seq_length"] == 4096
    assert (tmp_path / "1_Pooling" / "config.json").exists()
    assert (plan.config.bos_token_id, plan.config.sep_token_id) == (101, 102)


def test_a_lengthened_minilm_equals_minilm_on_200_texts(minilm_dir):
    """Up to half a window away every token sees every other: 256 of them, and no global attention."""
    documents = (inspect.getdoc(value) for name in ("os", "re", "math", "statistics", "logging", "random", "shutil",
                 "datetime", "collections", "functools") for value in vars(importlib.import_module(name)).values()
                 if callable(value) or isinstance(value, type))  # fmt: skip
    texts = sorted(sorted({document for document in documents if document})[:200], key=len)  # of little padding
    assert len(texts) == 200
    tokenizer = AutoTokenizer.from_pretrained(minilm_dir)
    short, long = longspan.BertModel.from_pretrained(minilm_dir), to_long(minilm_dir, 4096, 512)
    longest = 0
    for start in range(0, 200, 25):
        batch = tokenizer(texts[start : start + 25], padding=True, truncation=True, max_length=256, return_tensors="pt")
        longest = max(longest, batch.input_ids.shape[1])
        keep = batch.attention_mask.bool()
        with torch.no_grad():
            expected = short(**batch).last_hidden_state[keep]
            actual = long(**no_global(batch)).last_hidden_state[keep]
        assert_close(actual, expected)
    assert longest > 200


def test_errors(tmp_path):
    short = longspan.BertModel(BertConfig(**SETTINGS, max_position_embeddings=16))
    short.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="max_length must be at least the model's 16 tokens. Received: max_length=8"):
        to_long(short, 8)
    with pytest.raises(ConfigError, match="attention_window must be even and positive. Received: attention_window=7"):
        to_long(short, 32, 7)
    with pytest.raises(ConfigError, match="a model to lengthen must be one of bert, roberta.*'longformer'"):
        to_long(to_long(short, 32, 8), 64)
    with pytest.raises(InputError, match="to_long takes a model of longspan or a directory. Received: Linear"):
        to_long(torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match="framework must be torch, flax or keras. Received: framework='caffe'"):
        to_long(tmp_path, framework="caffe")
    with pytest.raises(InputError, match="the destination must be another directory than the source"):
        lengthen_checkpoint(tmp_path, tmp_path)
    decoder = longspan.BertModel(BertConfig(**SETTINGS, is_decoder=True))
    with pytest.raises(ConfigError, match="a model to lengthen must be an encoder. Received: is_decoder=True"):
        to_long(decoder)
    relative = longspan.BertModel(BertConfig(**SETTINGS, position_embedding_type="relative_key"))
    with pytest.raises(
        ConfigError, match="must have absolute positions. Received: position_embedding_type='relative_key'"
    ):
        to_long(relative)
    silu = longspan.BertForMaskedLM(BertConfig(**SETTINGS, hidden_act="silu"))
    with pytest.raises(ConfigError, match="must have hidden_act='gelu'.*Received: hidden_act='silu'"):
        to_long(silu)
    tagger = longspan.BertForTokenClassification(BertConfig(**SETTINGS))
    tagger.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="must say in 'architectures' what it classifies"):
        to_long(tmp_path)
    state = {k: v for k, v in short.state_dict().items() if "position" not in k}
    short.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(CheckpointError, match="must hold embeddings.position_embeddings.weight"):
        to_long(tmp_path)
