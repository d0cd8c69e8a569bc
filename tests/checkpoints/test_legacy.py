"""Reading the reference's TensorFlow and Flax files, written by its own classes, without either framework."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import msgpack
import numpy as np
import pytest
import safetensors.numpy
import torch
from tests.checkpoints.conftest import same
from tests.grid import grid
from tests.keras.alone import LEAN

import longspan
from longspan.checkpoints import formats_flax, formats_tf
from longspan.checkpoints.files import open_checkpoint
from longspan.checkpoints.formats_flax import FlaxReader
from longspan.checkpoints.formats_tf import TFReader
from longspan.checkpoints.names import ParameterNames, match_keys
from longspan.checkpoints.reader import Canonical
from longspan.errors import CheckpointError, MissingFrameworkError, UnsafeCheckpointError

TASKS = ["ForPreTraining", "ForMaskedLM", "ForSequenceClassification"]
#: their files have the layers of those above, and a head of one dense layer
FURTHER = ["ForNextSentencePrediction", "ForMultipleChoice", "ForTokenClassification", "ForQuestionAnswering"]
BERT = {
    "tf": [f"TFBert{task}" for task in ["Model", "LMHeadModel", *TASKS, *FURTHER]],
    "flax": [f"FlaxBert{task}" for task in ["Model", "ForCausalLM", *TASKS, *FURTHER]],
}
OTHERS = {
    "tf": ["TFBertForMaskedLMSharded", "TFLongformerForMaskedLM", "TFLongformerForSequenceClassification"],
    "flax": ["FlaxBertForMaskedLMSharded", "FlaxLongT5ForConditionalGeneration"],
}
FRAMEWORKS = ["tf", "flax"]


def cases(*tables):
    found = [(framework, name) for framework in FRAMEWORKS for table in tables for name in table[framework]]
    return grid(found, wide=[case for case in found if case[1].endswith(tuple(FURTHER))])


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Directory of a file that a framework's class wrote; one process writes those of `make test`, once."""
    folders = {}

    def folder(name):
        is_further = name.endswith(tuple(FURTHER))
        if is_further not in folders:
            names = [each for table in BERT.values() for each in table if each.endswith(tuple(FURTHER)) == is_further]
            names += [] if is_further else [each for table in OTHERS.values() for each in table]
            target = tmp_path_factory.mktemp("written")
            script = Path(__file__).with_name("write_reference.py")
            environment = {key: value for key, value in os.environ.items() if not key.startswith("USE_")}
            command = [sys.executable, LEAN, script, target, *names]
            done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
            folders[is_further] = target
        return folders[is_further] / name

    return folder


@pytest.mark.parametrize(("framework", "name"), cases(BERT, OTHERS))
def test_every_tensor_equals_the_reference_conversion(written, framework, name):
    directory = written(name)
    expected = safetensors.numpy.load_file(directory / "expected" / "model.safetensors")
    prefix = "longformer" if "Longformer" in name else "" if "LongT5" in name else "bert"
    with open_checkpoint(directory) as reader:
        assert reader.format == framework
        match = match_keys(expected, reader.keys(), ParameterNames(base_prefix=prefix))
        assert match.sources.keys() == expected.keys()
        assert set(match.sources.values()) == set(reader)
        for key, stored in match.sources.items():
            assert reader.shape(stored) == expected[key].shape
            assert same(reader.read(stored), expected[key]), key
            assert torch.equal(reader.read_torch(stored), torch.from_numpy(expected[key])), key


@pytest.mark.parametrize(("framework", "name"), cases(BERT))
def test_outputs_equal_those_of_the_class_that_wrote_the_file(written, framework, name):
    directory = written(name)
    ours = name.removeprefix("TF").removeprefix("Flax").replace("ForCausalLM", "LMHeadModel")
    model = getattr(longspan, ours).from_pretrained(directory).eval()
    stored = np.load(directory / "outputs.npz")
    arguments = {key: torch.from_numpy(stored[key]) for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        outputs = model(**arguments)
    compared = [key for key in stored.files if key.startswith("out_")]
    assert compared
    real = stored["attention_mask"] > 0
    for key in compared:
        expected, value = stored[key], outputs[key.removeprefix("out_")].numpy()
        assert value.shape == expected.shape
        if value.shape[:2] == real.shape:  # one value a token: those of padding are free
            value, expected = value[real], expected[real]
        np.testing.assert_allclose(value, expected, atol=1e-5, rtol=1e-5)


def test_repeats_of_shared_layers_are_known(written):
    with TFReader(written("TFBertForMaskedLM") / "tf_model.h5") as reader:
        word_embeddings = "/tf_bert_for_masked_lm/bert/embeddings/word_embeddings/weight:0"
        assert reader.repeats["/mlm___cls" + word_embeddings] == "/bert" + word_embeddings
        assert reader.native_name("bert.embeddings.word_embeddings.weight") == "/bert" + word_embeddings
        assert len(reader.repeats) == 5
        reader.check_repeats()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_no_framework_is_imported(written, framework):
    directory = written(BERT[framework][0])
    script = (
        "import sys; from longspan.checkpoints.files import open_checkpoint\n"
        f"with open_checkpoint({str(directory)!r}) as reader:\n"
        "    assert all(reader.read(key).size for key in reader)\n"
        "assert not {'torch', 'jax', 'flax', 'tensorflow', 'keras', 'tf_keras', 'msgpack'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("classifier/kernel", Canonical("classifier.weight", True)),
        ("encoder/final_layer_norm/weight", Canonical("encoder.final_layer_norm.weight", False)),
        ("embeddings/LayerNorm/scale", Canonical("embeddings.LayerNorm.weight", False)),
        ("shared/embedding", Canonical("shared.weight", False)),
        ("cls/predictions/bias", Canonical("cls.predictions.bias", False)),
    ],
)
def test_flax_names(name, canonical):
    assert formats_flax.canonical_name(name) == canonical


@pytest.mark.parametrize(
    ("layer", "name", "key", "transposed"),
    [
        ("bert", "tf_bert_model_7/bert/encoder/layer_._11/dense/kernel:0", "bert.encoder.layer.11.dense.weight", True),
        ("bert", "bert/pooler/dense/bias:0", "bert.pooler.dense.bias", False),
        ("bert", "bert/bert/embeddings/LayerNorm/gamma:0", "bert.embeddings.LayerNorm.weight", False),
        ("nsp___cls", "tf_x/nsp___cls/seq_relationship/kernel:0", "cls.seq_relationship.weight", True),
        ("mlm___cls", "tf_x/mlm___cls/predictions/LayerNorm/beta:0", "cls.predictions.LayerNorm.bias", False),
        (
            "longformer",
            "tf_x/longformer/embeddings/position/embeddings:0",
            "longformer.embeddings.position.weight",
            False,
        ),
    ],
)
def test_tf_names(layer, name, key, transposed):
    assert formats_tf.canonical_name(formats_tf.without_scope(name, layer)) == Canonical(key, transposed)


@pytest.mark.parametrize(("name", "axes"), [("norm/running_mean", 1), ("conv/kernel", 3), ("lora_a", 2)])
def test_parameter_without_a_rule(name, axes):
    with pytest.raises(CheckpointError, match=f"A Flax parameter must be .* Received: {name} with {axes} axes"):
        formats_flax.canonical_name(name, axes)
    with pytest.raises(CheckpointError, match=f"A TensorFlow variable must be .* Received: {name}:0 with {axes} axes"):
        formats_tf.canonical_name(name + ":0", axes)


class TestMsgpack:
    """The decoder against the `msgpack` and `flax` packages, and damaged files."""

    @pytest.fixture
    def write(self, tmp_path):
        def write(content):
            path = tmp_path / "flax_model.msgpack"
            path.write_bytes(content)
            return path

        return write

    @staticmethod
    def array(value, kind=1):
        packed = msgpack.packb((value.shape, value.dtype.name, value.tobytes()), use_bin_type=True)
        return msgpack.ExtType(kind, packed)

    def test_types_equal_flax(self, write):
        import jax.numpy as jnp
        from flax import serialization

        tree = {
            "f32": {"kernel": jnp.arange(6.0).reshape(2, 3)},
            "bf16": {"kernel": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3), "bias": jnp.ones(300, jnp.bfloat16)},
            "f16": {"bias": np.arange(70_000, dtype=np.float16)},
            "scalar": {"scale": np.float32(3)},
            "many" * 20: {f"x{i}": {"bias": np.full(2, i)} for i in range(20)},
        }
        path = write(serialization.to_bytes(tree))
        with FlaxReader(path) as reader:
            assert np.array_equal(reader.read("f32.weight"), tree["f32"]["kernel"].T)
            assert np.array_equal(reader.read("bf16.weight"), np.asarray(tree["bf16"]["kernel"]).T)
            assert torch.equal(reader.read_torch("bf16.bias"), torch.ones(300, dtype=torch.bfloat16))
            assert same(reader.read("f16.bias"), tree["f16"]["bias"])
            assert same(reader.read("scalar.weight"), np.array(3, np.float32))
            assert same(reader.read("many" * 20 + ".x19.bias"), np.full(2, 19))
            assert reader.native_name("f32.weight") == "f32/kernel"

    def test_array_in_chunks(self, write, monkeypatch):
        from flax import serialization

        monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 16)
        tree = {"layer": {"kernel": np.arange(35, dtype=np.float32).reshape(5, 7), "bias": np.arange(9.0)}}
        content = serialization.to_bytes(tree)
        assert content.count(b"__msgpack_chunked_array__") == 2
        with FlaxReader(write(content)) as reader:
            assert same(reader.read("layer.weight"), tree["layer"]["kernel"].T.copy())
            assert same(reader.read("layer.bias"), tree["layer"]["bias"])

    @pytest.mark.parametrize("chunk", [12, 16, 1000])
    @pytest.mark.parametrize("slab", [1, 30, 60, 1000])
    def test_transposed_in_slabs(self, write, monkeypatch, slab, chunk):
        from flax import serialization

        monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", chunk)
        monkeypatch.setattr("longspan.checkpoints.reader._SLAB", slab)
        kernel = np.arange(35, dtype=np.float32).reshape(5, 7)
        with FlaxReader(write(serialization.to_bytes({"layer": {"kernel": kernel}}))) as reader:
            assert same(reader.read("layer.weight"), kernel.T.copy())

    def test_params_at_the_top_are_dropped(self, write):
        content = msgpack.packb({"params": {"x": {"bias": self.array(np.ones(2))}}})
        with FlaxReader(write(content)) as reader:
            assert reader.keys() == ["x.bias"]

    @pytest.mark.parametrize(
        "value", [1, -1, 200, -200, 70_000, -70_000, 1 << 40, -(1 << 40), 1.5, None, True, "text", [1]]
    )
    def test_leaf_that_is_no_array(self, write, value):
        kind = type(value).__name__
        with pytest.raises(CheckpointError, match=f"may hold only arrays in maps. Received: a/step, a {kind}"):
            FlaxReader(write(msgpack.packb({"a": {"step": value}})))

    def test_two_names_for_one_key(self, write):
        tree = {"x": {"scale": self.array(np.ones(2)), "weight": self.array(np.ones(2))}}
        with pytest.raises(CheckpointError, match="holds x.weight twice, as x/scale and x/weight"):
            FlaxReader(write(msgpack.packb(tree)))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "It looks like empty"),
            (b"<html>", "which is one map. It looks like an HTML page"),
            (b"PK\x03\x04", "which is one map. It looks like a zip archive"),
            (b"version https://git-lfs.github.com/spec/v1", "It looks like a Git LFS pointer"),
            (b"\x81\xa1a\xc1", "byte 0xc1 starts no value"),
            (b"\x81\x01\x02", "a map needs texts as keys, each once, not 1"),
            (b"\x82\xa1a\xc0\xa1a\xc0", "a map needs texts as keys, each once, not 'a'"),
            (b"\x81\xa1a\xd4\x09\x00", "extension type 9 is no array"),
            (b"\x81\xa1a\xc0\xc0", "which is one map"),
            (b"\x81\xa1a" * 70 + b"\xc0", "nests maps more than 64 deep"),
            (b"\x81\xa1a\xc6\xff\xff\xff\xff", "is cut short: an array reaches beyond its end"),
            (b"\xdf\xff\xff\xff\xff", "is cut short"),
        ],
    )
    def test_damaged(self, write, content, message):
        path = write(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            FlaxReader(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize(
        "inside",
        [([3], "float32", bytes(8)), ([-2], "float32", bytes(8)), ([2], "float32", bytes(8), 1), (["a"], "int8", b"a")],
    )
    def test_array_that_does_not_fit_its_bytes(self, write, inside):
        content = msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(inside))})
        with pytest.raises(CheckpointError, match="no whole msgpack file of Flax: "):
            FlaxReader(write(content))

    def test_unknown_type(self, write):
        content = msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(([1], "V2", bytes(2))))})
        with pytest.raises(CheckpointError, match="must have one of the types .* Received: V2"):
            FlaxReader(write(content))

    def test_chunks_that_do_not_add_up(self, write):
        chunk = {"0": self.array(np.ones(2))}
        tree = {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": chunk}}
        with pytest.raises(CheckpointError, match=r"chunks of an array of shape \(3,\) do not add up"):
            FlaxReader(write(msgpack.packb(tree)))

    def test_truncation_anywhere_is_noticed(self, write):
        whole = msgpack.packb({"x": {"kernel": self.array(np.ones((2, 3))), "bias": self.array(np.ones(3))}})
        for length in range(len(whole)):
            with pytest.raises(CheckpointError):
                FlaxReader(write(whole[:length]))


class TestH5:
    """Damaged and dangerous HDF5 files."""

    @pytest.fixture
    def file(self, tmp_path):
        with h5py.File(tmp_path / "tf_model.h5", "w") as file:
            yield file

    @staticmethod
    def layer(file, name):
        group = file.create_group(name)
        group.attrs["weight_names"] = []
        return group

    def opened(self, file):
        path = Path(file.filename)
        file.close()
        return TFReader(path)

    def test_types_and_shapes(self, file):
        group = self.layer(file, "bert")
        values = {
            "a/kernel:0": np.arange(6, dtype=">f8").reshape(2, 3),
            "b/bias:0": np.float16(2),
            "c/bias:0": np.ones((0, 2)),
        }
        for name, value in values.items():
            group.create_dataset(f"tf/bert/{name}", data=value)
        with self.opened(file) as reader:
            assert reader.read("bert.a.weight").tolist() == values["a/kernel:0"].T.tolist()
            assert reader.dtype("bert.a.weight") == "float64"
            assert same(reader.read("bert.b.bias"), np.array(2, np.float16))
            assert reader.shape("bert.c.bias") == (0, 2)
            assert reader.read("bert.c.bias").size == 0

    @pytest.mark.parametrize("slab", [1, 30, 60, 1000])
    def test_transposed_in_slabs(self, file, monkeypatch, slab):
        monkeypatch.setattr("longspan.checkpoints.reader._SLAB", slab)
        kernel = np.arange(35, dtype=np.float32).reshape(5, 7)
        self.layer(file, "bert").create_dataset("tf/bert/kernel:0", data=kernel)
        with self.opened(file) as reader:
            assert same(reader.read("bert.weight"), kernel.T.copy())

    def test_copies_that_differ(self, file):
        self.layer(file, "bert").create_dataset("tf/bert/bias:0", data=np.ones(2))
        self.layer(file, "mlm___cls").create_dataset("tf/bert/bias:0", data=np.zeros(2))
        with self.opened(file) as reader:
            assert reader.read("bert.bias").tolist() == [1, 1]
            message = "equal copies of a shared tensor. /mlm___cls/tf/bert/bias:0 differs from /bert/tf/bert/bias:0"
            with pytest.raises(CheckpointError, match=message):
                reader.check_repeats()

    def test_two_variables_for_one_key(self, file):
        group = self.layer(file, "bert")
        group.create_dataset("tf/bert/x/gamma:0", data=np.ones(2))
        group.create_dataset("tf/bert/x/weight:0", data=np.ones(2))
        with pytest.raises(CheckpointError, match="holds bert.x.weight twice, as "):
            self.opened(file)

    def test_no_variables(self, file):
        file.create_group("empty")
        with pytest.raises(CheckpointError, match="holds no variables of a Keras model"):
            self.opened(file)

    def test_link_to_another_file(self, file, tmp_path):
        with h5py.File(tmp_path / "other.h5", "w") as other:
            other["x"] = np.ones(2)
        file["bert"] = h5py.ExternalLink("other.h5", "/x")
        with pytest.raises(UnsafeCheckpointError, match="anything outside itself. Received: the link 'bert'"):
            self.opened(file)

    def test_values_in_another_file(self, file, tmp_path):
        (tmp_path / "secret").write_bytes(bytes(8))
        self.layer(file, "bert").create_dataset(
            "x/bias:0", shape=(1,), dtype="f8", external=[(str(tmp_path / "secret"), 0, 8)]
        )
        with pytest.raises(
            UnsafeCheckpointError, match="anything outside itself. Received: '/bert/x/bias:0' in other files"
        ):
            self.opened(file)

    def test_virtual_dataset(self, file):
        layout = h5py.VirtualLayout(shape=(2,), dtype="f4")
        layout[:] = h5py.VirtualSource("other.h5", "x", shape=(2,))
        self.layer(file, "bert").create_virtual_dataset("bias:0", layout)
        with pytest.raises(UnsafeCheckpointError, match="in other files"):
            self.opened(file)

    @pytest.mark.parametrize(
        ("content", "kind"), [(b"", "empty"), (b"<html>", "an HTML page"), (b"PK\x03\x04", "a zip archive")]
    )
    def test_file_of_another_kind(self, tmp_path, content, kind):
        path = tmp_path / "tf_model.h5"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"is no whole HDF5 file: .* It looks like {kind}"):
            TFReader(path)

    def test_truncated(self, file, tmp_path):
        self.layer(file, "bert").create_dataset("x/bias:0", data=np.arange(5000.0))
        path = Path(file.filename)
        file.close()
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(CheckpointError, match="is no whole HDF5 file: .*truncated"):
            TFReader(path)

    def test_damaged_values(self, file):
        """With HDF5's own checksums, damage shows when the values are read."""
        values = np.arange(1000.0)
        self.layer(file, "bert").create_dataset("bert/bias:0", data=values, chunks=(1000,), fletcher32=True)
        path = Path(file.filename)
        file.close()
        content = bytearray(path.read_bytes())
        content[content.find(values[500:510].tobytes())] ^= 1
        path.write_bytes(content)
        with TFReader(path) as reader, pytest.raises(CheckpointError, match="is damaged: .* cannot be read"):
            reader.read(reader.keys()[0])

    def test_without_h5py_the_extra_is_named(self, tmp_path, monkeypatch):
        (tmp_path / "tf_model.h5").touch()
        monkeypatch.setitem(sys.modules, "h5py", None)
        message = r"tf_model.h5 needs h5py, which is not installed: pip install 'longspan\[convert\]'"
        with pytest.raises(MissingFrameworkError, match=message):
            open_checkpoint(tmp_path)
