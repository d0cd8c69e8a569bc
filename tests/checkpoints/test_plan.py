"""What loading will do, decided before any parameter is touched."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from longspan.checkpoints.files import open_checkpoint, save_checkpoint
from longspan.checkpoints.names import ParameterNames, Tied
from longspan.checkpoints.report import LoadError, check_sizes, plan_load
from longspan.errors import CheckpointError

NAMES = ParameterNames(
    base_prefix="base", tied=(Tied("head.decoder", "base.table", switch="tie_word_embeddings"),), heads=("head",)
)
TIED = SimpleNamespace(tie_word_embeddings=True)
TABLE = np.arange(6, dtype=np.float32).reshape(2, 3)
WANTED = {"base.table": (2, 3), "head.bias": (2,), "head.decoder": (2, 3)}


@pytest.fixture
def plan(tmp_path):
    def plan(stored, wanted=WANTED, config=TIED, **options):
        save_checkpoint(tmp_path, stored)
        with open_checkpoint(tmp_path) as reader:
            return plan_load(wanted, reader, NAMES, config, **options)

    return plan


def test_sources_and_fresh_keys(plan):
    found = plan({"table": TABLE, "other.bias": np.ones(3)})
    assert found.sources == {"base.table": "table"}
    assert found.fresh == ("head.bias",)
    assert found.report.tied == {"head.decoder": "base.table"}
    assert found.report.ignored == {"other.bias": "part of a head that this model lacks"}


def test_mismatch_raises_or_is_drawn_afresh(plan):
    stored = {"base.table": TABLE.T, "head.bias": np.ones(2)}
    with pytest.raises(LoadError, match=r"base.table: \(3, 2\) in the file, \(2, 3\) in the model") as caught:
        plan(stored)
    assert "strict=False" not in str(caught.value)
    found = plan(stored, ignore_mismatched_sizes=True)
    assert found.sources == {"head.bias": "head.bias"}
    assert found.fresh == ("base.table",)


def test_missing_raises_or_is_drawn_afresh(plan):
    stored = {"head.bias": np.ones(2), "base.extra": np.ones(1)}
    with pytest.raises(LoadError, match=r"missing .*:\n    base.table\n  unexpected .*:\n    base.extra") as caught:
        plan(stored)
    assert "model.safetensors does not fit the model" in str(caught.value)
    found = plan(stored, strict=False)
    assert found.fresh == ("base.table",)
    assert found.report.unexpected == ("base.extra",)


def test_equal_repeat_of_a_tied_parameter_is_passed_over(plan):
    found = plan({"base.table": TABLE, "head.decoder": TABLE, "head.bias": np.ones(2)})
    assert found.sources == {"base.table": "base.table", "head.bias": "head.bias"}
    assert found.report.ignored == {"head.decoder": "tied to base.table"}


@pytest.mark.parametrize("other", [TABLE + 1, TABLE.astype(np.float64), TABLE.T], ids=["values", "type", "shape"])
def test_different_repeat_of_a_tied_parameter_raises(plan, other):
    stored = {"base.table": TABLE, "head.decoder": other, "head.bias": np.ones(2)}
    message = (
        r"tied in the model, different in the checkpoint \(1\):\n    head.decoder and base.table\nA setting such as"
    )
    with pytest.raises(LoadError, match=message):
        plan(stored)
    found = plan(stored, strict=False)
    assert found.sources["base.table"] == "base.table"
    assert "head.decoder and base.table" in str(found.report)


def test_different_values_are_kept_apart_without_the_tie(plan):
    stored = {"base.table": TABLE, "head.decoder": TABLE + 1, "head.bias": np.ones(2)}
    found = plan(stored, config=SimpleNamespace(tie_word_embeddings=False))
    assert found.sources["head.decoder"] == "head.decoder"


def test_keys_that_the_model_only_shares(plan):
    wanted = {key: shape for key, shape in WANTED.items() if key != "head.decoder"}
    found = plan({"base.table": TABLE, "head.bias": np.ones(2)}, wanted, shared=["head.decoder"])
    assert found.report.tied == {"head.decoder": "base.table"}
    assert found.sources.keys() == wanted.keys()


def test_values_of_shared_storages_are_not_read(tmp_path, monkeypatch):
    table = torch.from_numpy(TABLE)
    state = {"base.table": table, "head.decoder": table, "head.bias": torch.ones(2)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as reader:
        monkeypatch.setattr(type(reader), "read_raw", None)
        assert not plan_load(WANTED, reader, NAMES, TIED).report.conflicts


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.bool_])
def test_whole_numbers_are_no_weights(plan, dtype):
    """A header that says I32 where it said F32 gives other numbers; only counters are whole."""
    stored = {"base.table": TABLE.astype(dtype), "head.bias": np.ones(2)}
    name = np.dtype(dtype).name
    with pytest.raises(CheckpointError, match=rf"floating-point numbers as weights. Received: base.table \({name}\)"):
        plan(stored)
    counter = {"base.norm.num_batches_tracked": np.array(3), "head.bias": np.ones(2)}
    assert plan(counter, {"base.norm.num_batches_tracked": (), "head.bias": (2,)}).sources.keys() == counter.keys()


@pytest.mark.parametrize(
    ("settings", "received"),
    [
        ({"layers": 10**9}, "num_layers=1000000000, width=3"),
        ({"layers": 100}, "num_layers=100"),
        ({"words": 2**31 - 1}, "vocab_size=2147483647, width=3"),
        ({"width": 10**9}, "num_layers=2, width=1000000000"),
    ],
)
def test_a_configuration_beyond_its_checkpoint_is_refused_before_anything_is_built(tmp_path, settings, received):
    names = ParameterNames(sizes=(("vocab_size", "width"), ("num_layers", "width", "width")))
    save_checkpoint(tmp_path, {"table": TABLE, "layer": TABLE})

    def config(words=2, width=3, layers=2):
        return SimpleNamespace(vocab_size=words, width=width, num_layers=layers)

    with open_checkpoint(tmp_path) as reader:
        check_sizes(reader, names, config())
        check_sizes(reader, names, config(words=1000, layers=60))
        check_sizes(reader, names, config(**settings), strict=False)
        with pytest.raises(CheckpointError, match=rf"safetensors holds 12 values in 2 .* Received: {received}(\n|$)"):
            check_sizes(reader, names, config(**settings))
