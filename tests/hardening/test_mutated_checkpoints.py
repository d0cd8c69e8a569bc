"""Mutated checkpoints: every load equals the original's or ends in an error that names the file.

`LONGSPAN_HARDENING=long` runs 10,000 mutants instead of some 600.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np
import pytest
import safetensors.numpy
import torch
from tests.hardening import mutations
from tests.hardening.mutations import ReportedError, Subject, Tally

from longspan import AutoTokenizer, BertConfig, BertModel, BertTokenizer, GenerationConfig
from longspan.checkpoints.files import open_checkpoint, save_checkpoint
from longspan.checkpoints.report import check_sizes, plan_load
from longspan.errors import InputError, LongspanError
from longspan.models.bert.names import NAMES
from longspan.models.registry import FAMILIES, get_config_class

SCALE = 16 if os.environ.get("LONGSPAN_HARDENING") == "long" else 1
SHAPES = {
    "bert.embeddings.word_embeddings.weight": (7, 4),
    "bert.encoder.layer.0.attention.self.query.weight": (4, 4),
    "bert.encoder.layer.0.attention.self.query.bias": (4,),
    "bert.encoder.layer.0.intermediate.dense.weight": (6, 4),
    "bert.pooler.dense.bias": (4,),
}
CONFIG = BertConfig(vocab_size=7, hidden_size=4, num_attention_heads=2, num_hidden_layers=1, intermediate_size=6)
RNG = np.random.default_rng(11)
TENSORS = {key: RNG.normal(size=shape).astype(np.float32) for key, shape in SHAPES.items()}


def load(directory: Path) -> dict[str, Any]:
    """What a model is filled with: the plan for these parameters, and the values."""
    with open_checkpoint(directory) as reader:
        check_sizes(reader, NAMES, CONFIG)
        plan = plan_load(SHAPES, reader, NAMES, CONFIG)
        if plan.fresh:
            raise ReportedError(f"{directory}: drawn afresh: {plan.fresh}")
        return {key: reader.read(stored) for key, stored in plan.sources.items()}


def whole(content: bytes) -> tuple[tuple[int, int], ...]:
    return ((0, len(content)),)


def without_values(content: bytes) -> tuple[tuple[int, int], ...]:
    """The ranges of a file that hold no values of `TENSORS`."""
    taken = []
    for key, value in TENSORS.items():
        for form in (value, value.T):
            at = content.find(np.ascontiguousarray(form).tobytes())
            if at >= 0:
                taken.append((at, at + value.nbytes))
                break
        else:
            raise AssertionError(key)
    ranges, start = [], 0
    for begin, end in sorted(taken):
        ranges.append((start, begin))
        start = end
    return tuple((begin, end) for begin, end in [*ranges, (start, len(content))] if end > begin)


def ours(directory: Path) -> Path:
    save_checkpoint(directory, TENSORS)
    return directory / "model.safetensors"


def others(directory: Path) -> Path:
    safetensors.numpy.save_file(TENSORS, directory / "model.safetensors")
    return directory / "model.safetensors"


def zipped(directory: Path, new: bool = True) -> Path:
    path = directory / "pytorch_model.bin"
    state = {key: torch.from_numpy(value) for key, value in TENSORS.items()}
    torch.save(state, path, _use_new_zipfile_serialization=new)
    return path


def legacy(directory: Path) -> Path:
    return zipped(directory, new=False)


def flax(directory: Path) -> Path:
    tree: dict[str, Any] = {}
    for key, value in TENSORS.items():
        *parts, leaf = key.split(".")
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
        name = "embedding" if "embeddings" in key else "kernel" if leaf == "weight" else leaf
        stored = np.ascontiguousarray(value.T) if name == "kernel" else value
        node[name] = msgpack.ExtType(1, msgpack.packb((stored.shape, "float32", stored.tobytes())))
    path = directory / "flax_model.msgpack"
    path.write_bytes(msgpack.packb(tree))
    return path


def tf(directory: Path) -> Path:
    path = directory / "tf_model.h5"
    with h5py.File(path, "w") as file:
        for key, value in TENSORS.items():
            *parts, leaf = key.split(".")
            layer = file.require_group(parts[0])
            layer.attrs["weight_names"] = []
            name = "embeddings" if "embeddings" in key else "kernel" if leaf == "weight" else leaf
            stored = value.T if name == "kernel" else value
            layer.create_dataset(f"tf_bert/{'/'.join(parts)}/{name}:0", data=stored)
    return path


def sharded(directory: Path) -> Path:
    save_checkpoint(directory, TENSORS, max_shard_size=120)
    return directory / "model.safetensors.index.json"


#: format -> (what writes it, whether checksums cover the values, mutants, byte strings put in)
FORMATS: dict[str, tuple[Callable[[Path], Path], bool, int, tuple[bytes, ...]]] = {
    "safetensors": (ours, True, 110, (b'"I32"', b'"BF16"', b"[4,7]", b"[28]", b"-1", b"1e9", b"NaN", b"{", b"\\ud800")),
    "safetensors of others": (others, False, 60, (b'"I32"', b'"F64"', b"-1", b"99999999999999999999", b"[", b'"')),
    "zip": (zipped, True, 80, (b"R", b"tQ", b"q\x00", b"\x85", b"h\x00", b"cos\nsystem\n", b"PK\x01\x02")),
    "legacy": (legacy, False, 80, (b"R", b"tQ", b"q\x00", b"\x85", b"h\x00", b"J\xff\xff\xff\xff", b"cos\nsystem\n")),
    "msgpack": (flax, False, 80, (b"\xc7\x00\x01", b"\xdf\xff\xff\xff\xff", b"\x91", b"\xc0", b"\xd3", b"\xca")),
    "hdf5": (tf, False, 60, (b"TREE", b"HEAP", b"SNOD", b"\xff" * 8)),
    "index": (sharded, True, 40, (b"..", b"/", b"null", b"[", b"model.safetensors.index.json")),
}  # fmt: skip
TALLIES: dict[str, Tally] = {}


@pytest.fixture(scope="module", autouse=True)
def count(figures):
    """Hand the figures to the battery's report."""
    yield
    tallies = TALLIES.values()
    totals = {name: sum(getattr(tally, name) for tally in tallies) for name in ("equal", "refused", "reported")}
    slowest = round(max((tally.slowest for tally in tallies), default=0.0), 2)
    figures |= {"cases": sum(totals.values()), "held": sum(totals.values()), "slowest_seconds": slowest, **totals}


@pytest.mark.parametrize("name", FORMATS)
def test_weights(tmp_path, name):
    write, is_summed, count, seeds = FORMATS[name]
    path = write(tmp_path)
    content = path.read_bytes()
    regions = whole(content) if is_summed else without_values(content)
    subject = Subject(name, path, content, load, regions, seeds)
    tally = TALLIES.setdefault(name, Tally())
    mutations.run(subject, mutations.mutants(subject, count * SCALE, seed=1), tally)
    assert tally.refused > 0.3 * count


def test_settings_of_generation(tmp_path):
    content = GenerationConfig(num_beams=2, eos_token_id=[1, 2], bad_words_ids=[[3]]).to_dict()
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(content))

    def read(directory: Path) -> str:
        GenerationConfig.from_pretrained(directory)
        return "sound"

    subject = Subject("generation", path, path.read_bytes(), read, ())
    tally = TALLIES.setdefault("generation_config.json", Tally())
    mutations.run(subject, mutations.json_mutants(content, 60 * SCALE, seed=3, extra=("forced_decoder_ids",)), tally)


TEXT = "The tower is 324 metres [MASK] tall, tower"


def encode(directory: Path) -> str:
    """Load a tokenizer and use it: other settings may give other ids, but no crash."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    try:
        tokenizer.decode(tokenizer(TEXT, TEXT, truncation=True, max_length=12, padding="max_length")["input_ids"])
    except LongspanError as error:  # a call knows no file
        raise InputError(f"{directory}: {error}") from error
    return "sound"


WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the tower is 324 metres tall , t ##ow ##er"


def bert_tokenizer(directory: Path) -> None:
    (directory / "vocab.txt").write_text(WORDS.replace(" ", "\n"))
    BertTokenizer(vocab_file=directory / "vocab.txt").save_pretrained(directory)
    (directory / "added_tokens.json").write_text('{"<new>": 15}')


@pytest.mark.parametrize(
    ("file", "extra"),
    [
        ("tokenizer.json", ()),
        ("tokenizer_config.json", ("never_split", "added_tokens_decoder", "extra_special_tokens", "strip_accents")),
        ("special_tokens_map.json", ("additional_special_tokens",)),
        ("added_tokens.json", ("a",)),
    ],
)
def test_tokenizers(tmp_path, file, extra):
    bert_tokenizer(tmp_path)
    path = tmp_path / file
    if file in ("special_tokens_map.json", "added_tokens.json"):  # read only where this has no `added_tokens_decoder`
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        config.pop("added_tokens_decoder", None)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if not path.exists():
        path.write_text('{"unk_token": "[UNK]"}')
    content = json.loads(path.read_text())
    subject = Subject(file, path, path.read_bytes(), encode, ())
    tally = TALLIES.setdefault(file, Tally())
    mutations.run(subject, mutations.json_mutants(content, 40 * SCALE, seed=4, extra=extra), tally)


@pytest.mark.parametrize("family", FAMILIES)
def test_configurations(tmp_path, family):
    """Settings of other kinds and sizes: refused, or a configuration that says what the file says."""
    config_class = get_config_class(family)
    content = config_class().to_dict()
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))

    def read(directory: Path) -> str:
        config_class.from_pretrained(directory)
        return "sound"

    subject = Subject(f"config of {family}", path, path.read_bytes(), read, ())
    tally = TALLIES.setdefault("config.json", Tally())
    mutations.run(subject, mutations.json_mutants(content, 40 * SCALE, seed=2), tally)


def test_a_model_of_mutated_settings(tmp_path):
    """Whatever `config.json` says, a model that loads computes finite numbers; the others are refused at once."""
    model = BertModel(CONFIG)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    ids = torch.tensor([[1, 2, 3, 4]])

    def run(directory: Path) -> str:
        loaded = BertModel.from_pretrained(directory)
        with torch.no_grad():
            output = loaded(ids, return_dict=True).last_hidden_state
        assert output.isfinite().all()
        return "sound"

    content = CONFIG.to_dict()
    subject = Subject("model", path, path.read_bytes(), run, ())
    tally = TALLIES.setdefault("config.json of a model", Tally())
    mutations.run(subject, mutations.json_mutants(content, 60 * SCALE, seed=6), tally)
