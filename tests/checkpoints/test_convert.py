"""Turning checkpoints of every format into safetensors: an account of every key, and a proof."""

import importlib.util
import json
import subprocess
import sys

import msgpack
import numpy as np
import pytest
import safetensors.numpy
import torch
import typer
from typer.testing import CliRunner

import longspan
from longspan import fingerprint
from longspan.checkpoints import convert as convert_module
from longspan.checkpoints.convert import convert
from longspan.checkpoints.files import open_checkpoint, save_checkpoint
from longspan.checkpoints.hub import Source
from longspan.cli.convert import convert as command
from longspan.errors import CheckpointError, CheckpointNotFoundError, UnsafeCheckpointError

CONFIG = longspan.BertConfig(
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=16,
)


@pytest.fixture
def bert():
    """A BERT with random weights, norms and biases too."""
    model = longspan.BertForMaskedLM(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model.eval()


@pytest.fixture
def pickled(bert, tmp_path):
    """A directory as old versions of the reference wrote it."""
    directory = tmp_path / "pickled"
    directory.mkdir()
    bert.config.architectures = ["BertForMaskedLM"]
    bert.config.save_pretrained(directory)
    torch.save(bert.state_dict(), directory / "pytorch_model.bin")
    (directory / "vocab.txt").write_text("[PAD]\n")
    (directory / "README.md").write_text("read me")
    return directory


def flax_file(directory, state):
    """A msgpack file from a PyTorch state dict of BERT."""
    tree = {}
    for key, value in state.items():
        *path, leaf = key.split(".")
        array = value.numpy()
        if leaf == "weight":
            is_table, is_norm = path[-1].endswith("_embeddings"), "LayerNorm" in path[-1]
            leaf = "embedding" if is_table else "scale" if is_norm else "kernel"
            array = array.T.copy() if leaf == "kernel" else array
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        packed = msgpack.packb((array.shape, array.dtype.name, array.tobytes()))
        node[leaf] = msgpack.ExtType(1, packed)
    directory.mkdir(exist_ok=True)
    (directory / "flax_model.msgpack").write_bytes(msgpack.packb(tree))


@pytest.fixture
def flax_directory(bert, tmp_path):
    directory = tmp_path / "flax"
    ties = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    flax_file(directory, {key: value for key, value in bert.state_dict().items() if key not in ties})
    bert.config.architectures = ["BertForMaskedLM"]
    bert.config.save_pretrained(directory)
    return directory


def test_pickles(pickled, bert, tmp_path):
    report = convert(pickled, tmp_path / "out")
    written = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    expected = {key: value.numpy() for key, value in bert.state_dict().items()}
    assert written.keys() == expected.keys()
    assert all(written[key].tobytes() == value.tobytes() for key, value in expected.items())
    assert report.format == "pytorch"
    assert {(tensor.key, tensor.name) for tensor in report.tensors} == {(key, key) for key in expected}
    assert report.copied == ("config.json", "vocab.txt")
    assert report.left == ("README.md",)
    assert (tmp_path / "out" / "vocab.txt").read_text() == "[PAD]\n"
    assert (pickled / "pytorch_model.bin").exists()


def test_flax(flax_directory, bert, tmp_path):
    report = convert(flax_directory, tmp_path / "out")
    names = {tensor.key: tensor.name for tensor in report.tensors}
    query = "bert.encoder.layer.0.attention.self.query"
    assert names[f"{query}.weight"] == f"{query}.kernel".replace(".", "/")
    model = longspan.BertForMaskedLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(value, bert.state_dict()[key]) for key, value in model.state_dict().items())


def test_report_lists_everything(pickled, tmp_path):
    text = str(convert(pickled, tmp_path / "out"))
    assert text.startswith(f"{pickled} (pytorch) -> {tmp_path / 'out'}: ")
    assert "\n  bert.pooler" not in text
    assert "\n  cls.predictions.bias float32 [30]\n" in text
    assert "\ncopied: config.json, vocab.txt\nnot copied: README.md" in text


def test_shards_and_pooling_folder(pickled, tmp_path):
    (pickled / "1_Pooling").mkdir()
    (pickled / "1_Pooling" / "config.json").write_text("{}")
    report = convert(pickled, tmp_path / "out", max_shard_size="4KB")
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    assert (tmp_path / "out" / "1_Pooling" / "config.json").read_text() == "{}"
    assert report.copied[-1] == "1_Pooling/config.json"
    with open_checkpoint(tmp_path / "out") as reader:
        assert len(reader.keys()) == len(report.tensors)


def test_a_checkpoint_of_several_formats_is_read_as_asked(pickled, tmp_path):
    save_checkpoint(tmp_path / "both", {"x": np.ones(1)})
    torch.save({"y": torch.ones(1)}, tmp_path / "both" / "pytorch_model.bin")
    assert [tensor.key for tensor in convert(tmp_path / "both", tmp_path / "one").tensors] == ["x"]
    report = convert(tmp_path / "both", tmp_path / "two", formats=["pytorch"])
    assert [tensor.key for tensor in report.tensors] == ["y"]
    assert report.left == ("model.safetensors",)


def test_destination_is_another_directory(pickled):
    with pytest.raises(CheckpointError, match="is converted into another directory. Received twice: "):
        convert(pickled, pickled / ".." / "pickled")
    assert sorted(path.name for path in pickled.glob("*model*")) == ["pytorch_model.bin"]


def test_weights_are_replaced_only_if_asked(pickled, tmp_path):
    out = tmp_path / "out"
    save_checkpoint(out, {"old": np.ones(1)})
    with pytest.raises(
        CheckpointError, match="replaced only by a conversion that may overwrite.* holds model.safetensors(\n|$)"
    ):
        convert(pickled, out)
    assert safetensors.numpy.load_file(out / "model.safetensors").keys() == {"old"}
    convert(pickled, out, overwrite=True)
    assert "old" not in safetensors.numpy.load_file(out / "model.safetensors")


def test_nothing_is_written_for_a_source_that_is_refused(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    with pytest.raises(CheckpointNotFoundError, match="must hold its weights in one of the files"):
        convert(source, out)
    torch.save({"x": torch.ones(1), "optimizer": {"lr": 0.1}}, source / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="Received also: 'optimizer': dict"):
        convert(source, out)
    torch.save({"x": torch.nn.ReLU()}, source / "pytorch_model.bin")
    with pytest.raises(UnsafeCheckpointError, match=r"Received: torch\.nn\.modules\.activation\.ReLU"):
        convert(source, out)
    (source / "pytorch_model.bin").unlink()
    flax_file(source, {"layer.running_mean": torch.ones(2)})
    with pytest.raises(CheckpointError, match="A Flax parameter must be .* Received: layer/running_mean"):
        convert(source, out)
    assert not out.exists()


def test_written_tensors_that_differ_are_noticed(pickled, tmp_path, monkeypatch):
    def damaged(directory, tensors, **options):
        changed = {key: np.asarray(tensor.read()) for key, tensor in tensors.items()}
        changed["cls.predictions.bias"] = changed["cls.predictions.bias"] + 1
        changed.pop("bert.embeddings.LayerNorm.bias")
        save_checkpoint(directory, changed, **options)

    monkeypatch.setattr(convert_module, "save_checkpoint", damaged)
    message = "do not use it. Different: bert.embeddings.LayerNorm.bias, cls.predictions.bias(\n|$)"
    with pytest.raises(CheckpointError, match=message):
        convert(pickled, tmp_path / "out")


class TestOutputs:
    """Comparing what the model makes of both checkpoints."""

    @pytest.fixture(autouse=True)
    def only_torch(self, monkeypatch):
        """Answer as if PyTorch were the only framework, so that these tests are quick."""
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: find(name) if name == "torch" else None)

    def test_equal(self, pickled, tmp_path):
        report = convert(pickled, tmp_path / "out")
        text = fingerprint.compare_outputs(Source(pickled), tmp_path / "out", report.format)
        assert text == "equal, BertForMaskedLM on the source against BertForMaskedLM on the result: logits 0.0e+00"

    def test_different(self, pickled, tmp_path, bert):
        with torch.no_grad():
            bert.cls.predictions.bias[3] += 1
        bert.save_pretrained(tmp_path / "out")
        message = "must give the outputs of its source, .* at most 0.0001. Received: BertForMaskedLM .*: logits "
        with pytest.raises(CheckpointError, match=message):
            fingerprint.compare_outputs(Source(pickled), tmp_path / "out", "pytorch")

    def test_source_is_read_in_the_format_that_was_converted(self, pickled, tmp_path):
        """Other weights beside it must not stand in for it."""
        convert(pickled, tmp_path / "out")
        other = longspan.BertForMaskedLM(CONFIG)
        save_checkpoint(tmp_path / "beside", other.state_dict())
        (tmp_path / "beside" / "model.safetensors").rename(pickled / "model.safetensors")
        assert fingerprint.compare_outputs(Source(pickled), tmp_path / "out", "pytorch").startswith("equal, ")

    def test_multiple_choice(self, tmp_path):
        model = longspan.BertForMultipleChoice(CONFIG)
        (tmp_path / "in").mkdir()
        model.save_pretrained(tmp_path / "in")
        torch.save(model.state_dict(), tmp_path / "in" / "pytorch_model.bin")
        convert(tmp_path / "in", tmp_path / "out", formats=["pytorch"])
        text = fingerprint.compare_outputs(Source(tmp_path / "in"), tmp_path / "out", "pytorch")
        assert text.startswith("equal, BertForMultipleChoice")

    @pytest.mark.parametrize(
        ("origin", "message"),
        [
            ("safetensors", "not compared: the source is safetensors, too"),
            ("flax", "not compared: Flax is not installed"),
            ("tf", "not compared: Keras is not installed"),
        ],
    )
    def test_nothing_to_compare_with(self, pickled, tmp_path, origin, message):
        assert fingerprint.compare_outputs(Source(pickled), tmp_path, origin) == message

    @pytest.mark.parametrize("config", [None, {"model_type": "gpt2"}, {}])
    def test_no_class_for_it(self, pickled, tmp_path, config):
        if config is not None:
            (tmp_path / "config.json").write_text(json.dumps(config))
        text = fingerprint.compare_outputs(Source(pickled), tmp_path, "pytorch")
        kind = (config or {}).get("model_type")
        assert text == f"not compared: longspan has no PyTorch class for model_type={kind!r}"

    def test_config_that_the_class_refuses(self, pickled, tmp_path):
        convert(pickled, tmp_path / "out")
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        (tmp_path / "out" / "config.json").write_text(json.dumps(config | {"hidden_act": "none such"}))
        text = fingerprint.compare_outputs(Source(pickled), tmp_path / "out", "pytorch")
        assert text.startswith("not compared: ")
        assert "Received: 'none such'" in text


def test_flax_source_against_torch_result(flax_directory, tmp_path):
    report = convert(flax_directory, tmp_path / "out")
    text = fingerprint.compare_outputs(Source(flax_directory), tmp_path / "out", report.format)
    assert text.startswith("equal, FlaxBertForMaskedLM on the source against BertForMaskedLM on the result: logits ")


class TestCommand:
    @pytest.fixture
    def run(self):
        app = typer.Typer()
        app.command()(command)
        return lambda *words: CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)

    def test_report_and_proof(self, run, pickled, tmp_path):
        result = run(pickled, tmp_path / "out")
        assert result.exit_code == 0
        assert "\n  cls.predictions.bias float32 [30]\n" in result.stdout
        assert result.stdout.endswith("result: logits 0.0e+00\n")

    def test_json(self, run, pickled, tmp_path):
        result = json.loads(run(pickled, tmp_path / "out", "--json").stdout)
        assert result["format"] == "pytorch"
        assert result["outputs"].startswith("equal, ")
        assert len(result["tensors"]) == len(safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors"))

    def test_options(self, run, pickled, tmp_path):
        out = tmp_path / "out"
        save_checkpoint(out, {"old": np.ones(1)})
        result = run(pickled, out, "--from", "pytorch", "--overwrite", "--quiet", "--max-shard-size", "4KB")
        assert result.stdout == ""
        assert (out / "model.safetensors.index.json").exists()
        with pytest.raises(CheckpointNotFoundError, match="files flax_model.msgpack"):
            run(pickled, tmp_path / "other", "--from", "flax")


def test_no_framework_is_imported(pickled, tmp_path):
    script = (
        "import sys; from longspan.checkpoints.convert import convert\n"
        f"convert({str(pickled)!r}, {str(tmp_path / 'out')!r})\n"
        "assert not {'torch', 'jax', 'flax', 'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (tmp_path / "out" / "model.safetensors").exists()
