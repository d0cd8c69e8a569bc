"""Flax models to files and back: the other frameworks, the reference, older formats, strict loading."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from tests.parity.torch_parity import randomise

import longspan
from longspan import BertConfig
from longspan.checkpoints.flax import flatten
from longspan.errors import CheckpointError, CheckpointNotFoundError, ConfigError, InputError

SETTINGS = {
    "vocab_size": 53,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 14,
}
#: suffix in Flax -> class in PyTorch
CLASSES = {
    "Model": "BertModel",
    "ForPreTraining": "BertForPreTraining",
    "ForCausalLM": "BertLMHeadModel",
    "ForMaskedLM": "BertForMaskedLM",
    "ForNextSentencePrediction": "BertForNextSentencePrediction",
    "ForSequenceClassification": "BertForSequenceClassification",
    "ForMultipleChoice": "BertForMultipleChoice",
    "ForTokenClassification": "BertForTokenClassification",
    "ForQuestionAnswering": "BertForQuestionAnswering",
}
IDS = np.arange(10).reshape(2, 5)


def torch_model(name="BertModel", **settings):
    extra = {"is_decoder": True} if name == "BertLMHeadModel" else {}
    return randomise(getattr(longspan, name)(BertConfig(**{**SETTINGS, **extra, **settings})))


def equal(first, second):
    jax.tree_util.tree_map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize(
    ("suffix", "tied"),
    [
        *((suffix, True) for suffix in CLASSES),
        *((f"For{task}", False) for task in ("PreTraining", "MaskedLM", "CausalLM")),
    ],
)
def test_a_directory_passes_through_unchanged(tmp_path, suffix, tied):
    """PyTorch -> Flax -> Flax -> PyTorch, and the reference: equal files, equal bytes of every tensor."""
    name = CLASSES[suffix]
    first = torch_model(name, tie_word_embeddings=tied, num_labels=2)
    first.save_pretrained(tmp_path / "torch")
    flax_class = getattr(longspan, f"Flax{'Bert' + suffix}")
    flax_class.from_pretrained(tmp_path / "torch").save_pretrained(tmp_path / "flax")
    model, params = flax_class.from_pretrained(tmp_path / "flax", _do_init=False)
    model.save_pretrained(tmp_path / "again", params)
    for file in ("config.json", "model.safetensors"):
        for directory in ("flax", "again"):
            assert (tmp_path / directory / file).read_bytes() == (tmp_path / "torch" / file).read_bytes()
    back, info = getattr(transformers, name).from_pretrained(tmp_path / "flax", output_loading_info=True)
    assert (info["missing_keys"], info["unexpected_keys"]) == ([], [])
    for key, tensor in getattr(longspan, name).from_pretrained(tmp_path / "again").state_dict().items():
        assert torch.equal(tensor, first.state_dict()[key]), key
        assert torch.equal(tensor, back.state_dict()[key]), key


class TestFormats:
    def test_pytorch_bin_with_old_names(self, tmp_path):
        model = torch_model("BertForMaskedLM")
        renamed = {
            key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for key, tensor in model.state_dict().items()
        }
        torch.save(renamed, tmp_path / "pytorch_model.bin")
        model.config.save_pretrained(tmp_path)
        model.save_pretrained(tmp_path / "new")
        old = longspan.FlaxBertForMaskedLM.from_pretrained(tmp_path)
        equal(old.params, longspan.FlaxBertForMaskedLM.from_pretrained(tmp_path / "new").params)
        assert all("gamma" not in key for key in old.load_report.loaded)

    def test_from_pt_prefers_pytorch_weights(self, tmp_path):
        torch_model().save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").rename(tmp_path / "hidden")
        (tmp_path / "flax_model.msgpack").write_bytes(b"not msgpack")
        with pytest.raises(
            CheckpointNotFoundError, match="must hold its weights in one of the files model.safetensors"
        ):
            longspan.FlaxBertModel.from_pretrained(tmp_path, from_pt=True)
        with pytest.raises(CheckpointError, match="flax_model.msgpack"):
            longspan.FlaxBertModel.from_pretrained(tmp_path)

    def test_shards(self, tmp_path):
        torch_model().save_pretrained(tmp_path / "one")
        model = longspan.FlaxBertModel.from_pretrained(tmp_path / "one")
        model.save_pretrained(tmp_path / "many", max_shard_size="4KB")
        assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 3
        equal(longspan.FlaxBertModel.from_pretrained(tmp_path / "many").params, model.params)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_half_precision_files(self, tmp_path, dtype):
        torch_model().save_pretrained(tmp_path / "whole")
        model = longspan.FlaxBertModel.from_pretrained(tmp_path / "whole")
        cast = model.to_bf16 if dtype == "bfloat16" else model.to_fp16
        model.params = cast(model.params)
        model.save_pretrained(tmp_path / "half")
        assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == dtype
        stored = longspan.FlaxBertModel.from_pretrained(tmp_path / "half", param_dtype="auto")
        equal(stored.params, model.params)
        widened = longspan.FlaxBertModel.from_pretrained(tmp_path / "half")
        assert {str(leaf.dtype) for leaf in jax.tree_util.tree_leaves(widened.params)} == {"float32"}
        theirs = longspan.BertModel.from_pretrained(tmp_path / "half", dtype="auto")
        assert str(theirs.dtype) == f"torch.{dtype}"
        bias = flatten(stored.params)["pooler", "dense", "bias"]
        np.testing.assert_array_equal(np.asarray(bias, np.float32), theirs.pooler.dense.bias.detach().float().numpy())

    def test_only_safetensors_are_written(self, tmp_path):
        model = longspan.FlaxBertModel(BertConfig(**SETTINGS))
        with pytest.raises(InputError, match="written as safetensors only. Received: safe_serialization=False"):
            model.save_pretrained(tmp_path, safe_serialization=False)
        model.save_pretrained(tmp_path, is_main_process=False)
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(InputError, match="keeps no parameters"):
            longspan.FlaxBertModel(BertConfig(**SETTINGS), _do_init=False).save_pretrained(tmp_path)


class TestStrictness:
    @pytest.fixture
    def saved(self, tmp_path):
        """A pre-training checkpoint."""
        torch_model("BertForPreTraining").save_pretrained(tmp_path)
        return tmp_path

    def test_a_new_head_is_reported_and_follows_the_seed(self, saved):
        load = longspan.FlaxBertForTokenClassification.from_pretrained
        one, same, other = (load(saved, num_labels=7, seed=seed) for seed in (0, 0, 1))
        assert set(one.load_report.initialised) == {"classifier.weight", "classifier.bias"}
        assert one.params["classifier"]["kernel"].shape == (16, 7)
        equal(one.params, same.params)
        assert not np.array_equal(one.params["classifier"]["kernel"], other.params["classifier"]["kernel"])
        equal(one.params["bert"], other.params["bert"])
        ignored = one.load_report.ignored
        assert ignored["cls.predictions.bias"] == "part of a head that this model lacks"

    def test_a_bare_base_loads_from_a_model_with_heads_and_back(self, saved, tmp_path):
        base = longspan.FlaxBertModel.from_pretrained(saved)
        assert base.load_report.initialised == ()
        base.save_pretrained(tmp_path / "base")
        headed = longspan.FlaxBertForPreTraining.from_pretrained(tmp_path / "base")
        equal(headed.params["bert"], base.params)

    def test_too_few_layers_raise_and_strict_false_initialises(self, saved):
        with pytest.raises(CheckpointError, match=r"missing from the checkpoint \(16\)"):
            longspan.FlaxBertModel.from_pretrained(saved, num_hidden_layers=3)
        model = longspan.FlaxBertModel.from_pretrained(saved, num_hidden_layers=3, strict=False)
        assert len(model.load_report.missing) == 16
        fresh = model.params["encoder"]["layer"]["2"]
        assert bool((fresh["output"]["LayerNorm"]["scale"] == 1).all())
        assert 0.01 < float(fresh["intermediate"]["dense"]["kernel"].std()) < 0.03
        assert model(IDS).pooler_output.shape == (2, 16)

    def test_too_many_layers_raise(self, saved):
        with pytest.raises(CheckpointError, match=r"unexpected in the checkpoint \(16\)"):
            longspan.FlaxBertModel.from_pretrained(saved, num_hidden_layers=1)

    def test_other_shapes(self, saved):
        with pytest.raises(
            CheckpointError, match=r"intermediate.dense.weight: \(20, 16\) in the file, \(24, 16\) in the"
        ):
            longspan.FlaxBertModel.from_pretrained(saved, intermediate_size=24)
        model = longspan.FlaxBertModel.from_pretrained(saved, intermediate_size=24, ignore_mismatched_sizes=True)
        assert len(model.load_report.mismatched) == 6
        assert model.params["encoder"]["layer"]["0"]["intermediate"]["dense"]["kernel"].shape == (16, 24)

    def test_keywords(self, saved):
        with pytest.raises(ConfigError, match="BertConfig has no such setting to override. Received: hidden=3"):
            longspan.FlaxBertModel.from_pretrained(saved, hidden=3)
        with pytest.raises(InputError, match="dtype must be float32, float16 or bfloat16. Received: 'int32'"):
            longspan.FlaxBertModel.from_pretrained(saved, param_dtype="int32")
        model = longspan.FlaxBertModel.from_pretrained(
            saved, jnp.bfloat16, gradient_checkpointing=True, add_pooling_layer=False, output_hidden_states=True
        )
        assert model.is_gradient_checkpointing
        assert "pooler" not in model.params
        assert model.dtype == jnp.bfloat16
        output = model(IDS)
        assert list(output) == ["last_hidden_state", "hidden_states"]
        assert output.last_hidden_state.dtype == jnp.bfloat16

    def test_a_given_configuration_is_not_changed(self, saved):
        config = BertConfig.from_pretrained(saved)
        model = longspan.FlaxBertForSequenceClassification.from_pretrained(saved, config=config, num_labels=4)
        assert (model.config.num_labels, config.num_labels) == (4, 2)


def test_both_of_a_tied_pair_get_the_value(tmp_path):
    """LongT5's last norms are two parameters in Flax; `tie_encoder_decoder` makes a file hold one of them."""
    sizes = {"vocab_size": 53, "d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 20, "num_layers": 1}
    first = randomise(longspan.LongT5Model(longspan.LongT5Config(tie_encoder_decoder=True, **sizes)))
    first.save_pretrained(tmp_path)
    params = longspan.FlaxLongT5Model.from_pretrained(tmp_path).params
    for stack in ("encoder", "decoder"):
        norm = params[stack]["final_layer_norm"]["weight"]
        np.testing.assert_array_equal(norm, first.decoder.final_layer_norm.weight.detach())


def test_auto_classes_choose_by_task(tmp_path):
    torch_model("BertForPreTraining", is_decoder=True).save_pretrained(tmp_path)
    for suffix in CLASSES:
        auto = getattr(longspan, f"FlaxAutoModel{suffix.removeprefix('Model')}")
        is_decoder = suffix == "ForCausalLM"
        model, params = auto.from_pretrained(tmp_path, _do_init=False, is_decoder=is_decoder)
        assert type(model) is getattr(longspan, f"FlaxBert{suffix}")
        assert flatten(params).keys() == model.required_params
        assert type(auto.from_config(model.config, _do_init=False)) is type(model)
    with pytest.raises(ConfigError, match="must have a class for the task"):
        longspan.FlaxAutoModelForSeq2SeqLM.from_pretrained(tmp_path)


def test_the_packaged_sentence_encoder_gives_the_same_states(minilm_dir):
    """Real weights, a real vocabulary: PyTorch and Flax agree."""
    ours = longspan.FlaxAutoModel.from_pretrained(minilm_dir)
    theirs = longspan.AutoModel.from_pretrained(minilm_dir)
    tokenizer = longspan.AutoTokenizer.from_pretrained(minilm_dir)
    batch = tokenizer(["How tall is the tower?", "The tower is 324 metres tall."], padding=True, return_tensors="np")
    states = ours(**batch).last_hidden_state
    with torch.no_grad():
        expected = theirs(**{name: torch.from_numpy(array) for name, array in batch.items()}).last_hidden_state
    keep = batch["attention_mask"][..., None]
    assert np.abs((np.asarray(states) - expected.numpy()) * keep).max() < 1e-5
