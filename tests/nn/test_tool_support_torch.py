"""What tools for the reference's models look up: keywords, attributes, forms of results; beside the reference's own."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from tests.tolerances import assert_close

import longspan
from longspan.checkpoints.report import LoadError
from longspan.errors import CheckpointNotFoundError, ConfigError, InputError
from longspan.nn.torch import checks

SMALL = {
    "bert": {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 20,
    },
    "longformer": {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 20,
        "attention_window": 4,
        "max_position_embeddings": 40,
    },
    "longt5": {
        "vocab_size": 40,
        "d_model": 16,
        "d_kv": 8,
        "num_heads": 2,
        "d_ff": 20,
        "num_layers": 2,
        "local_radius": 3,
    },
    "diffllama": {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 20,
        "pad_token_id": 0,
    },
    "mega": {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "intermediate_size": 20,
        "ema_projection_size": 4,
        "shared_representation_size": 8,
        "use_chunking": False,
    },
}
LM = {
    "bert": "BertForMaskedLM",
    "longformer": "LongformerForMaskedLM",
    "longt5": "LongT5ForConditionalGeneration",
    "diffllama": "DiffLlamaForCausalLM",
    "mega": "MegaForMaskedLM",
}
FAMILIES = list(LM)
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12], [12, 3, 4, 9, 21, 6, 5, 8]])


def tiny(family, **settings):
    torch.manual_seed(0)
    return getattr(longspan, LM[family])(longspan.AutoConfig.for_model(family, **{**SMALL[family], **settings}))


def loss_of(model):
    return model(input_ids=IDS, labels=IDS).loss


@pytest.fixture
def saved(tmp_path):
    model = tiny("bert")
    model.save_pretrained(tmp_path)
    return model, tmp_path


@pytest.mark.parametrize("family", FAMILIES)
def test_facts_and_names(family):
    model = tiny(family)
    kind = type(model)
    assert kind.can_generate() == (family in ("longt5", "diffllama"))
    assert model._no_split_modules
    classes = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= classes
    for target, source in (model._tied_weights_keys or {}).items():
        assert model.get_parameter(target) is model.get_parameter(source)
    theirs = getattr(transformers, LM[family], None)
    if theirs is not None:
        stored = theirs(theirs.config_class(**SMALL[family]))
        batch = {"input_ids": IDS}
        assert model.floating_point_ops(batch) == stored.floating_point_ops(batch)
        assert model.estimate_tokens(batch) == stored.estimate_tokens(batch)
    for name in ("name_or_path", "warnings_issued", "model_tags", "_keys_to_ignore_on_save", "_supports_sdpa"):
        getattr(model, name)
    model.add_model_tags("a")
    model.add_model_tags(["a", "b"])
    assert model.model_tags == ["a", "b"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(family, reentrant):
    settings = {name: 0.0 for name in longspan.AutoConfig.for_model(family) if "dropout" in name and "use" not in name}
    model = tiny(family, use_cache=False, **settings).train()
    loss_of(model).backward()
    expected = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.gradient_checkpointing_enable({"use_reentrant": reentrant}, every_n_layers=2)
    assert model.is_gradient_checkpointing
    model.zero_grad()
    loss_of(model).backward()
    got = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(got[name], gradient)


@pytest.mark.parametrize("family", FAMILIES)
def test_from_config_leaves_the_configuration_as_it_is(family):
    config = longspan.AutoConfig.for_model(family, **SMALL[family])
    kind = getattr(longspan, LM[family])
    model = kind._from_config(config, attn_implementation="eager", dtype=torch.bfloat16)
    assert type(model) is kind
    model.resize_token_embeddings(45)
    assert (model.vocab_size, config.vocab_size) == (45, 40)
    assert (model.config.attn_implementation, config.attn_implementation) == ("eager", "auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="no_such"):
        kind._from_config(config, no_such=1)
    model.set_attn_implementation("auto")
    assert model.config.attn_implementation == "auto"
    model.set_attn_implementation({"": "eager"})
    assert model.config.attn_implementation == "eager"
    with pytest.raises(InputError, match="the model is one part"):
        model.set_attn_implementation({"encoder": "eager"})
    with pytest.raises(InputError, match="no_such"):
        model.set_attn_implementation("no_such")
    with pytest.raises(InputError, match="pad_to_multiple_of must be a positive whole number. Received: .*1.5"):
        model.resize_token_embeddings(40, pad_to_multiple_of=1.5)


@pytest.mark.parametrize("family", ["bert", "longformer", "mega"])
def test_padding_without_a_mask_is_said_once(family, caplog):
    """In the families whose reference says it."""
    checks._say_unmasked.cache_clear()
    model = tiny(family).eval()
    padded = torch.cat((IDS, torch.full_like(IDS[:, :1], model.config.pad_token_id)), dim=1)
    model(IDS)
    model(padded, attention_mask=torch.ones_like(padded))
    assert not caplog.messages
    model(padded)
    model(padded)
    assert len(caplog.messages) == 1
    assert "there is no attention_mask: padding is read as text" in caplog.text


def test_an_epsilon_of_one_is_taken():
    """The reference's own tests calm random models with it."""
    assert longspan.BertConfig(layer_norm_eps=1.0).layer_norm_eps == 1.0
    with pytest.raises(ValueError, match=r"layer_norm_eps must be at most 1\. Received: layer_norm_eps=1.5"):
        longspan.BertConfig(layer_norm_eps=1.5)


@pytest.mark.parametrize("attention", ["local", "transient-global"])
def test_gradients_of_what_longt5_returns(attention):
    """Hidden states and attentions are part of the graph, whose gradients are the reference's."""
    settings = {"encoder_attention_type": attention, "global_block_size": 3, "dropout_rate": 0.0}
    model = tiny("longt5", decoder_start_token_id=0, **settings)
    theirs = transformers.LongT5ForConditionalGeneration(transformers.LongT5Config(**model.config.to_dict()))
    theirs.load_state_dict(model.state_dict())
    inputs = {"input_ids": IDS, "labels": IDS, "head_mask": torch.tensor([[0.5, 1.0]] * 2)}
    gradients = []
    for each in (model, theirs):
        output = each.eval()(
            **inputs, decoder_head_mask=torch.ones(2, 2), output_attentions=True, output_hidden_states=True
        )
        kept = [tensor for name, value in output.items() if isinstance(value, tuple) for tensor in value]
        kept = [tensor for tensor in kept if isinstance(tensor, torch.Tensor)]
        for tensor in kept:
            tensor.retain_grad()
        output.loss.backward()
        gradients.append([tensor.grad for tensor in kept])
    assert len(gradients[0]) == 3 + 3 + 2 + 2 + 2
    for got, expected in zip(*gradients, strict=True):
        assert_close(got, expected)


@pytest.mark.parametrize("chunks", [False, True])
def test_gradients_reach_the_attentions_that_mega_returns(chunks):
    model = tiny("mega")
    model.config.use_chunking, model.config.chunk_size = chunks, 4
    output = model.eval()(IDS, labels=IDS, output_attentions=True)
    assert output.attentions[0].shape == ((2, 2, 4, 4) if chunks else (2, 1, 8, 8))
    for weights in output.attentions:
        weights.retain_grad()
    output.loss.backward()
    assert all(weights.grad.abs().sum() > 0 for weights in output.attentions)


def test_gradients_reach_what_longformer_returns():
    """The gradient of a head's factor is the sum over its weights, local and global ones, of weight times gradient."""
    model = tiny("longformer", max_position_embeddings=80).eval()
    ids, head_mask = torch.arange(3, 38).repeat(2, 2), torch.ones(2, 2, requires_grad=True)
    mask = torch.ones_like(ids)
    mask[1, 66:] = 2 * torch.tensor([1, 0, 0, 0])  # a global token, then padding; 70 tokens are two blocks
    inputs = {"input_ids": ids, "labels": ids.masked_fill(mask == 0, -100), "attention_mask": mask}
    model(**inputs, head_mask=head_mask).loss.backward()
    output = model(**inputs, output_attentions=True, output_hidden_states=True)
    kept = (*output.attentions, *output.global_attentions, *output.hidden_states)
    for tensor in kept:
        tensor.retain_grad()
    output.loss.backward()
    products = [(weights * weights.grad).sum(dim=(0, 2, 3)) for weights in kept[:4]]
    assert_close(torch.stack(products).view(2, 2, 2).sum(dim=0), head_mask.grad)
    assert all(states.grad.any() for states in output.hidden_states)


def test_tie_encoder_decoder(tmp_path):
    """The reference shares the modules that have the same place in both stacks: embeddings and the last norm."""
    model = tiny("longt5", tie_encoder_decoder=True, decoder_start_token_id=0)
    theirs = transformers.LongT5ForConditionalGeneration(transformers.LongT5Config(**model.config.to_dict()))
    for each in (model, theirs):
        state = each.state_dict()
        places = [value.data_ptr() for value in state.values()]
        tied = {name for name, value in state.items() if places.count(value.data_ptr()) > 1}
        norms = {f"{stack}.final_layer_norm.weight" for stack in ("encoder", "decoder")}
        words = {"shared.weight", "lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
        assert tied == norms | words
    with torch.no_grad():
        model.decoder.final_layer_norm.weight.copy_(torch.linspace(0.5, 1.5, 16))
    expected = loss_of(model.eval())
    model.save_pretrained(tmp_path)
    for kind in (longspan.LongT5ForConditionalGeneration, transformers.LongT5ForConditionalGeneration):
        assert_close(loss_of(kind.from_pretrained(tmp_path).eval()), expected)
    encoder = longspan.LongT5EncoderModel.from_pretrained(tmp_path)
    assert torch.equal(encoder.encoder.final_layer_norm.weight, model.decoder.final_layer_norm.weight)
    assert torch.equal(encoder._shift_right(IDS), theirs._shift_right(IDS))


def test_every_n_layers_recomputes_one_of_n():
    model = tiny("bert", gradient_checkpointing=True).train()
    assert model.is_gradient_checkpointing
    calls = []
    for index, layer in enumerate(model.bert.encoder.layer):
        layer.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    for every, expected in ((1, [0, 0, 1, 1]), (2, [0, 0, 1])):
        model.activation_checkpointing_enable(every_n_layers=every)
        calls.clear()
        loss_of(model).backward()
        assert sorted(calls) == expected
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing
    with pytest.raises(InputError, match="every_n_layers must be positive. Received: 0"):
        model.gradient_checkpointing_enable(every_n_layers=0)
    with pytest.raises(InputError, match="activations are recomputed, not moved"):
        model.activation_checkpointing_enable(offload=True)


def test_loss_function():
    logits = torch.randn(2, 8, 40)
    labels = IDS.masked_fill(IDS == 5, -100)
    for family in ("bert", "diffllama"):
        model = tiny(family)
        reference = getattr(transformers, LM[family])
        theirs = reference(reference.config_class(**SMALL[family]))
        for total in (None, torch.tensor(7)):
            assert_close(
                model.loss_function(logits, labels, vocab_size=40, num_items_in_batch=total),
                theirs.loss_function(logits, labels, vocab_size=40, num_items_in_batch=total),
            )


class TestKeywords:
    def test_those_without_effect_are_taken(self, saved):
        model, directory = saved
        back = longspan.AutoModelForMaskedLM.from_pretrained(
            directory,
            low_cpu_mem_usage=True,
            trust_remote_code=False,
            use_safetensors=True,
            quantization_config=None,
            max_memory=None,
            offload_folder=None,
            use_flash_attention_2=False,
            from_tf=False,
            from_flax=False,
            weights_only=True,
            attn_implementation="flash_attention_2",
        )
        assert torch.equal(back(IDS).logits, model.eval()(IDS).logits)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_references_names_of_implementations_give_the_same(self, family):
        expected = None
        for name in ("auto", "eager", "sdpa", "flash_attention_2"):
            loss = loss_of(tiny(family, attn_implementation=name).eval())
            expected = loss if expected is None else expected
            assert_close(loss, expected)

    @pytest.mark.parametrize(
        ("keywords", "message"),
        [
            (
                {"quantization_config": {"bits": 8}},
                "quantization_config is not supported: load the model, then quantise",
            ),
            (
                {"load_in_8bit": True},
                "load_in_8bit is not supported.*torchao.quantization.quantize_. Received: load_in",
            ),
            ({"tp_plan": "auto"}, "tp_plan is not supported.*parallelize_module"),
            ({"device_map": {"bert": "disk", "cls": "cpu"}}, "modules on the disk need offload_folder"),
        ],
    )
    def test_others_say_what_to_do(self, saved, keywords, message):
        with pytest.raises(InputError, match=message):
            longspan.AutoModel.from_pretrained(saved[1], **keywords)

    def test_formats_are_those_asked_for(self, saved):
        with pytest.raises(CheckpointNotFoundError, match="must hold its weights in one of the files tf_model.h5"):
            longspan.AutoModel.from_pretrained(saved[1], from_tf=True)

    def test_code_of_a_checkpoint_is_refused(self, saved):
        _, directory = saved
        settings = json.loads((directory / "config.json").read_text())
        settings["auto_map"] = {"AutoModel": "code.Model", "AutoConfig": "code.Config"}
        (directory / "config.json").write_text(json.dumps(settings))
        (directory / "code.py").write_text("raise SystemExit('run')")
        with pytest.raises(ConfigError, match="trust_remote_code is not supported"):
            longspan.AutoModel.from_pretrained(directory, trust_remote_code=True)
        loaded = longspan.AutoModel.from_pretrained(directory)
        assert type(loaded).__module__.startswith("longspan.")


class TestLoading:
    def test_a_state_dict_without_files(self):
        model = tiny("bert")
        back = longspan.BertForMaskedLM.from_pretrained(None, config=model.config, state_dict=model.state_dict())
        assert torch.equal(back(IDS).logits, model.eval()(IDS).logits)
        with torch.no_grad():
            model.cls.predictions.bias.fill_(7)
        assert not torch.equal(back.cls.predictions.bias, model.cls.predictions.bias)
        with pytest.raises(InputError, match="without a name, a model is loaded from config= and state_dict="):
            longspan.BertForMaskedLM.from_pretrained(None, config=model.config)

    def test_the_report_reads_as_the_references_dict(self, saved):
        kinds = (longspan.BertForTokenClassification, transformers.BertForTokenClassification)
        infos = [kind.from_pretrained(saved[1], output_loading_info=True)[1] for kind in kinds]
        ours, theirs = infos
        for name in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            assert set(ours[name]) == set(theirs[name]), name
        assert set(ours) == {"missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"}

    def test_errors_are_runtime_errors_too_and_every_auto_class_takes_strict(self, saved):
        model, directory = saved
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes=True"):
            longspan.AutoModel.from_pretrained(directory, hidden_size=8)
        with pytest.raises(LoadError, match="strict=False loads what fits"):
            longspan.AutoModelForMaskedLM.from_pretrained(directory, num_hidden_layers=3)
        back = longspan.AutoModelForMaskedLM.from_pretrained(directory, num_hidden_layers=3, strict=False)
        assert len(back.load_report["missing_keys"]) == len(list(model.bert.encoder.layer[0].state_dict()))

    def test_inside_a_meta_device_context(self, saved):
        model, directory = saved
        with torch.device("meta"):
            empty = longspan.BertForMaskedLM(model.config)
            back = longspan.BertForMaskedLM.from_pretrained(directory)
        assert empty.device.type == "meta"
        assert torch.equal(back(IDS).logits, model.eval()(IDS).logits)
        with pytest.raises(ValueError, match="a model on the meta device has no weights to save"):
            empty.save_pretrained(directory / "empty")

    def test_settings_of_generation_are_saved_with_what_generates(self, saved, tmp_path):
        assert not (saved[1] / "generation_config.json").exists()
        model = tiny("longt5", decoder_start_token_id=0, eos_token_id=1)
        assert model.generation_config is model.generation_config
        model.generation_config.max_new_tokens = 3
        assert model.generation_config.max_new_tokens == 3
        model.save_pretrained(tmp_path / "t5")
        assert json.loads((tmp_path / "t5" / "generation_config.json").read_text())["max_new_tokens"] == 3
        theirs = transformers.LongT5ForConditionalGeneration.from_pretrained(tmp_path / "t5")
        assert theirs.generation_config.max_new_tokens == 3

    def test_keywords_of_saving_scripts(self, saved, tmp_path):
        model, _ = saved
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.save_pretrained(tmp_path / "x", is_main_process=True, save_function=torch.save, state_dict=state)
        assert (tmp_path / "x" / "config.json").exists()
        with pytest.raises(InputError, match="save_pretrained has no such keywords. Received: no_such"):
            model.save_pretrained(tmp_path / "y", no_such=1)


def test_push_to_hub_uploads_what_is_saved(monkeypatch):
    seen = {}

    def upload(**arguments):
        folder = arguments.pop("folder_path")
        seen.update(arguments, files=sorted(path.name for path in folder.iterdir()))
        return "commit"

    class Repo:
        repo_id = "me/model"

    monkeypatch.setattr("huggingface_hub.create_repo", lambda *_, **__: Repo)
    monkeypatch.setattr("huggingface_hub.upload_folder", upload)
    assert tiny("bert").push_to_hub("model", private=True, commit_message="first") == "commit"
    assert seen == {
        "repo_id": "me/model",
        "token": None,
        "commit_message": "first",
        "files": ["config.json", "model.safetensors"],
    }
