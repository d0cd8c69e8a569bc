"""What every PyTorch model can do: load, save, resize, prune, checkpoint, count."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
import transformers
from tests.parity.torch_parity import compare_gradients, randomise
from tests.tolerances import assert_close
from torch import nn

import longspan
from longspan import AutoModel, AutoModelForTokenClassification, BertConfig, BertForMaskedLM, BertModel
from longspan.checkpoints.report import LoadError
from longspan.errors import CheckpointError, CheckpointNotFoundError, ConfigError, InputError

TINY = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 30}


def tiny(cls=BertModel, **settings):
    return randomise(cls(BertConfig(**{**TINY, "max_position_embeddings": 20, **settings})))


@pytest.fixture
def saved(tmp_path):
    model = tiny(BertForMaskedLM)
    model.save_pretrained(tmp_path)
    return model, tmp_path


IDS = torch.arange(12).view(2, 6)


class TestLoading:
    def test_a_new_head_is_initialised_and_reported(self, saved):
        _, directory = saved
        model, report = AutoModelForTokenClassification.from_pretrained(
            directory, num_labels=7, output_loading_info=True
        )
        assert set(report.initialised) == {"classifier.weight", "classifier.bias"}
        assert report.missing == report.unexpected == ()
        assert any(key.startswith("cls.predictions") for key in report.ignored)
        assert model.load_report is report
        assert model.classifier.weight.shape == (7, 24)
        assert 0 < model.classifier.weight.std() < 0.1
        assert torch.equal(model.classifier.bias, torch.zeros(7))
        assert not model.training

    def test_the_base_loads_into_a_head_model_and_back(self, saved):
        original, directory = saved
        base = AutoModel.from_pretrained(directory, add_pooling_layer=False)
        base.save_pretrained(directory / "base")
        assert json.loads((directory / "base" / "config.json").read_text())["architectures"] == ["BertModel"]
        again = BertForMaskedLM.from_pretrained(directory / "base")
        assert torch.equal(
            again.bert.encoder.layer[1].output.dense.weight, original.bert.encoder.layer[1].output.dense.weight
        )

    def test_tied_weights_are_one_parameter_after_loading(self, saved):
        _, directory = saved
        model = BertForMaskedLM.from_pretrained(directory)
        assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
        assert model.cls.predictions.decoder.bias is model.cls.predictions.bias
        untied = BertForMaskedLM.from_pretrained(directory, tie_word_embeddings=False, strict=False)
        assert untied.cls.predictions.decoder.weight is not untied.bert.embeddings.word_embeddings.weight
        count = 61 * 24
        assert untied.num_parameters() - model.num_parameters() == count
        assert model.num_parameters() - model.num_parameters(exclude_embeddings=True) == (61 + 20 + 2) * 24

    def test_missing_keys_raise_and_are_all_listed(self, saved):
        model, directory = saved
        state = {k: v for k, v in model.state_dict().items() if "layer.1.intermediate" not in k}
        model.save_pretrained(directory, state_dict=state)
        with pytest.raises(LoadError) as caught:
            BertForMaskedLM.from_pretrained(directory)
        for part in ("does not fit the model", "layer.1.intermediate.dense.weight", "layer.1.intermediate.dense.bias"):
            assert part in str(caught.value)
        loose = BertForMaskedLM.from_pretrained(directory, strict=False)
        assert len(loose.load_report.missing) == 2
        assert torch.isfinite(loose(IDS).logits).all()

    def test_unexpected_keys_raise(self, saved):
        model, directory = saved
        model.save_pretrained(directory, state_dict={**model.state_dict(), "bert.encoder.layer.9.x": torch.ones(1)})
        with pytest.raises(CheckpointError, match=r"unexpected in the checkpoint \(1\):\n    bert.encoder.layer.9.x"):
            BertForMaskedLM.from_pretrained(directory)

    def test_other_shapes_raise_or_are_initialised(self, saved):
        _, directory = saved
        with pytest.raises(
            CheckpointError, match=r"word_embeddings.weight: \(61, 24\) in the file, \(70, 24\) in the mod"
        ):
            BertForMaskedLM.from_pretrained(directory, vocab_size=70)
        model = BertForMaskedLM.from_pretrained(directory, vocab_size=70, ignore_mismatched_sizes=True)
        assert len(model.load_report.mismatched) == 2
        assert 0 < model.bert.embeddings.word_embeddings.weight.std() < 0.1

    def test_no_uninitialised_memory_is_left(self, saved):
        _, directory = saved
        torch.use_deterministic_algorithms(True)  # fills uninitialised memory with NaN
        try:
            model = AutoModelForTokenClassification.from_pretrained(directory)
            assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
        finally:
            torch.use_deterministic_algorithms(False)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, "float16", "auto", None])
    def test_dtype(self, saved, dtype):
        model, directory = saved
        model.half().save_pretrained(directory)
        expected = {"float16": torch.float16, "auto": torch.float16, None: torch.float32}.get(dtype, dtype)
        loaded = BertForMaskedLM.from_pretrained(directory, dtype=dtype)
        assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
        assert loaded.dtype == expected
        stored = model.state_dict()["bert.embeddings.LayerNorm.weight"]
        assert torch.equal(loaded.bert.embeddings.LayerNorm.weight, stored.to(expected))

    def test_user_subclasses_with_their_own_layers(self, saved):
        class WithConvolution(longspan.BertPreTrainedModel):
            def __init__(self, config):
                super().__init__(config)
                self.bert = BertModel(config, add_pooling_layer=False)
                self.convolution = nn.Conv1d(24, 3, 1)
                self.scale = nn.Parameter(torch.full((3,), 2.0))
                self.post_init()

        model = WithConvolution.from_pretrained(saved[1])
        assert 0 < model.convolution.weight.std() < 1
        assert torch.equal(model.scale, torch.full((3,), 2.0))

    def test_errors(self, saved, tmp_path):
        _, directory = saved
        (tmp_path / "empty").mkdir()
        with pytest.raises(CheckpointNotFoundError, match="has no file 'config.json'"):
            AutoModel.from_pretrained(tmp_path / "empty")
        BertConfig(**TINY).save_pretrained(tmp_path / "empty")
        with pytest.raises(
            CheckpointNotFoundError, match="must hold its weights in one of the files model.safetensors"
        ):
            AutoModel.from_pretrained(tmp_path / "empty")
        with pytest.raises(ConfigError, match="BertConfig has no such setting to override. Received: no_such=1"):
            AutoModel.from_pretrained(directory, no_such=1)
        with pytest.raises(
            InputError, match="dtype must be a floating-point dtype, its name, or 'auto'. Received: tor"
        ):
            AutoModel.from_pretrained(directory, dtype=torch.int8)
        with pytest.raises(InputError, match="device_map must be a device, a dict .*, balanced.*Received: .*'nowhere'"):
            AutoModel.from_pretrained(directory, device_map="nowhere")
        with pytest.raises(
            InputError, match="must be one of auto, packed, sdpa, eager for BERT attention. Received: 'fl"
        ):
            AutoModel.from_pretrained(directory, attn_implementation="flash_attention_9")
        with pytest.raises(ConfigError, match="BertModel needs a BertConfig. Received: PretrainedConfig"):
            BertModel(longspan.PretrainedConfig())
        with pytest.raises(TypeError, match="use AutoModel.from_pretrained or AutoModel.from_config"):
            AutoModel()

    def test_a_config_object_is_used_and_not_changed(self, saved):
        _, directory = saved
        config = BertConfig.from_pretrained(directory)
        model = AutoModel.from_pretrained(directory, config=config, output_hidden_states=True)
        assert model.config.output_hidden_states
        assert not config.output_hidden_states
        assert model.config.name_or_path == str(directory)


class TestSaving:
    def test_shards_load_here_and_in_the_reference(self, saved):
        model, directory = saved
        model.save_pretrained(directory, max_shard_size="8KB")
        assert not (directory / "model.safetensors").exists()
        assert len(list(directory.glob("model-*.safetensors"))) > 2
        ours = BertForMaskedLM.from_pretrained(directory)
        theirs = transformers.BertForMaskedLM.from_pretrained(directory)
        for key, tensor in model.state_dict().items():
            assert torch.equal(ours.state_dict()[key], tensor)
            assert torch.equal(theirs.state_dict()[key], tensor)

    def test_only_safetensors_and_only_the_main_process(self, tmp_path):
        with pytest.raises(
            InputError, match="checkpoints are written as safetensors only. Received: safe_serialization"
        ):
            tiny().save_pretrained(tmp_path, safe_serialization=False)
        tiny().save_pretrained(tmp_path / "x", is_main_process=False)
        assert not (tmp_path / "x").exists()

    def test_the_models_config_is_not_changed(self, tmp_path):
        model = tiny()
        model.save_pretrained(tmp_path)
        assert model.config.architectures is None

    def test_models_pickle(self):
        model = tiny(BertForMaskedLM)
        back = pickle.loads(pickle.dumps(model))
        assert torch.equal(back(IDS).logits, model(IDS).logits)


class TestResizing:
    def test_new_rows_are_the_mean_and_old_ones_stay(self):
        model = tiny(BertForMaskedLM)
        before = model.get_input_embeddings().weight.detach().clone()
        logits = model(IDS).logits
        embeddings = model.resize_token_embeddings(65, pad_to_multiple_of=8)
        assert embeddings.num_embeddings == model.config.vocab_size == 72
        assert torch.equal(embeddings.weight[:61], before)
        assert_close(embeddings.weight[70], before.mean(dim=0))
        assert model.cls.predictions.decoder.weight is embeddings.weight
        assert model.cls.predictions.bias.shape == (72,)
        assert model.get_output_embeddings().out_features == 72
        assert_close(model(IDS).logits[..., :61], logits)

    def test_shrinking_and_random_rows(self):
        model = tiny(BertForMaskedLM)
        model.resize_token_embeddings(30)
        assert model(IDS).logits.shape[-1] == 30
        model.resize_token_embeddings(40, mean_resizing=False)
        assert 0 < model.get_input_embeddings().weight[30:].std() < 0.1
        assert model.resize_token_embeddings().num_embeddings == 40
        with pytest.raises(
            InputError, match="new_num_tokens must be a positive whole number. Received: new_num_tokens=0"
        ):
            model.resize_token_embeddings(0)

    def test_resized_models_save_and_load_in_the_reference(self, tmp_path):
        model = tiny(BertForMaskedLM)
        model.resize_token_embeddings(64)
        model.save_pretrained(tmp_path)
        reference = transformers.BertForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager")
        assert_close(model(IDS).logits, reference(IDS).logits)


class TestPruning:
    @pytest.mark.parametrize("implementation", ["eager", "sdpa", "packed"])
    def test_pruned_heads_equal_masked_heads(self, implementation):
        model = tiny(attn_implementation=implementation)
        head_mask = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1]]).float()
        expected = model(IDS, head_mask=head_mask).last_hidden_state
        model.prune_heads({0: [1, 3]})
        model.prune_heads({1: [0], 0: [1]})
        assert model.config.pruned_heads == {0: [1, 3], 1: [0]}
        assert model.encoder.layer[0].attention.self.query.weight.shape == (12, 24)
        assert_close(model(IDS).last_hidden_state, expected)
        # a mask counts heads as they were, also those that are gone
        assert_close(model(IDS, head_mask=head_mask).last_hidden_state, expected)
        other = head_mask * torch.tensor([1.0, 1.0, 0.5, 0.0])
        fresh = tiny(attn_implementation=implementation)
        assert_close(model(IDS, head_mask=other).last_hidden_state, fresh(IDS, head_mask=other).last_hidden_state)

    def test_negative_layers_count_from_the_end_as_in_the_reference(self, tmp_path):
        model = tiny(BertForMaskedLM)
        model.prune_heads({0: [2], -1: [0]})
        shapes = [layer.attention.self.query.out_features for layer in model.bert.encoder.layer]
        assert shapes == [18, 18]
        model.save_pretrained(tmp_path)
        expected = model(IDS).logits
        assert_close(BertForMaskedLM.from_pretrained(tmp_path)(IDS).logits, expected)
        reference = transformers.BertForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager")
        assert reference.config.pruned_heads == model.config.pruned_heads == {0: [2], -1: [0]}
        assert_close(reference(IDS).logits, expected)

    def test_pruned_checkpoints_load_here_and_in_the_reference(self, tmp_path):
        model = tiny(BertForMaskedLM)
        model.prune_heads({0: [1, 3]})
        model.save_pretrained(tmp_path)
        expected = model(IDS).logits
        assert_close(BertForMaskedLM.from_pretrained(tmp_path)(IDS).logits, expected)
        reference = transformers.BertForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager")
        assert_close(reference(IDS).logits, expected)

    def test_errors(self):
        model = tiny()
        with pytest.raises(InputError, match=r"heads to prune must lie in \[0, 4\). Received: \[4\]"):
            model.prune_heads({0: [4]})
        with pytest.raises(InputError, match=r"layers to prune must lie in \[0, 2\). Received: 2"):
            model.prune_heads({2: [0]})
        with pytest.raises(InputError, match=r"layers to prune must lie in \[0, 2\). Received: -3"):
            model.prune_heads({-3: [0]})
        with pytest.raises(InputError, match="at least one of 4 attention heads must remain"):
            model.prune_heads({0: [0, 1, 2, 3]})
        assert model.config.pruned_heads == {}


class TestGradientCheckpointing:
    def test_gradients_are_equal_and_layers_are_recomputed(self):
        kept, recomputed = tiny(BertForMaskedLM), tiny(BertForMaskedLM)
        recomputed.gradient_checkpointing_enable()
        assert recomputed.is_gradient_checkpointing
        calls = []
        recomputed.bert.encoder.layer[0].register_forward_pre_hook(lambda *_: calls.append(1))
        for model in (kept, recomputed):
            model.train()
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
            model(IDS, labels=IDS).loss.backward()
        assert len(calls) == 2
        compare_gradients(recomputed, kept)
        recomputed.gradient_checkpointing_disable()
        assert not recomputed.is_gradient_checkpointing

    def test_frozen_embeddings_and_adapters(self):
        model = tiny(BertForMaskedLM).train()
        model.get_input_embeddings().weight.requires_grad_(False)
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
        model(IDS, labels=IDS).loss.backward()
        assert model.bert.encoder.layer[0].output.dense.weight.grad is not None
        model.disable_input_require_grads()

    def test_no_cache_is_kept(self):
        model = tiny(longspan.BertLMHeadModel, is_decoder=True).train()
        model.gradient_checkpointing_enable()
        with pytest.warns(UserWarning, match="use_cache=True cannot be used with gradient checkpointing"):
            assert model(IDS, use_cache=True).past_key_values is None


def test_initialisation_follows_the_range():
    torch.manual_seed(0)
    model = BertForMaskedLM(
        BertConfig(hidden_size=256, num_attention_heads=4, num_hidden_layers=1, initializer_range=0.05)
    )
    weight = model.bert.encoder.layer[0].intermediate.dense.weight
    assert abs(float(weight.detach().std()) - 0.05) < 0.001
    assert abs(float(weight.detach().mean())) < 0.001
    assert torch.equal(model.bert.embeddings.word_embeddings.weight[0], torch.zeros(256))
    assert torch.equal(model.bert.embeddings.LayerNorm.weight, torch.ones(256))
    assert float(model.cls.predictions.bias.detach().abs().max()) == 0.0
    assert model.get_memory_footprint() == model.num_parameters() * 4
    assert model.device.type == "cpu"
