"""Checkpoints of every kind of tokenizer, and each one read by longspan and by the reference."""

from __future__ import annotations

import functools
import io
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.tokenization.corpus import TEXTS
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from longspan import AutoTokenizer

ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


class Pair(NamedTuple):
    """One checkpoint, read by both."""

    name: str
    path: Path
    ours: Any
    theirs: Any


@functools.cache
def training_lines() -> list[str]:
    """Real prose and code: this test suite's corpus and the standard library's sources."""
    folder = Path(functools.__file__).parent
    names = ("argparse", "datetime", "heapq", "statistics")
    lines = [line for name in names for line in (folder / f"{name}.py").read_text("utf-8").splitlines()]
    return [line for line in lines if line.strip()] + list(TEXTS.values()) * 20


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def load_reference(path: Path, **kwargs: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return transformers.AutoTokenizer.from_pretrained(str(path), **kwargs)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> dict[str, Path]:
    """Directories by kind of tokenizer."""
    root = tmp_path_factory.mktemp("tokenizers")
    makers = {
        "bert_json": functools.partial(_copy_bert, minilm_dir, "tokenizer.json", {}),
        "bert_vocab": functools.partial(_copy_bert, minilm_dir, "vocab.txt", {}),
        "bert_cased": functools.partial(
            _copy_bert, minilm_dir, "vocab.txt", {"do_lower_case": False, "tokenize_chinese_chars": False}
        ),
        "bert_accents": functools.partial(_copy_bert, minilm_dir, "tokenizer.json", {"strip_accents": False}),
        "longformer": functools.partial(_make_byte_level, "longformer", {"model_max_length": 64}),
        "longformer_prefix": functools.partial(_make_byte_level, "longformer", {"add_prefix_space": True}),
        "mega_offsets": functools.partial(_make_byte_level, "mega", {"trim_offsets": False}),
        "longt5": functools.partial(_make_unigram, {}),
        "longt5_new": functools.partial(_make_unigram, {"legacy": False, "extra_ids": 10}),
        "llama": _make_llama,
        "generic": _make_generic,
    }
    paths = {}
    for name, make in makers.items():
        paths[name] = root / name
        paths[name].mkdir()
        make(paths[name])
    return paths


def _copy_bert(source: Path, file: str, config: dict[str, Any], path: Path) -> None:
    shutil.copy(source / file, path / file)
    stored = json.loads((source / "tokenizer_config.json").read_text())
    write_json(path / "tokenizer_config.json", stored | config)
    shutil.copy(source / "special_tokens_map.json", path)


@functools.cache
def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=ROBERTA_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(training_lines(), trainer)
    return tokenizer


def _make_byte_level(model_type: str, config: dict[str, Any], path: Path) -> None:
    _byte_level().model.save(str(path))
    write_json(path / "config.json", {"model_type": model_type})
    if model_type == "mega":
        config = config | {"tokenizer_class": "RobertaTokenizer"}
    write_json(path / "tokenizer_config.json", config)


@functools.cache
def spiece_model(model_type: str = "unigram", **kwargs: Any) -> bytes:
    """A genuine SentencePiece model of 600 pieces, with T5's ids and normalization."""
    import sentencepiece

    writer = io.BytesIO()
    settings = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "normalization_rule_name": "nmt_nfkc"} | kwargs
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training_lines()),
        model_writer=writer,
        vocab_size=600,
        model_type=model_type,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **settings,
    )
    return writer.getvalue()


def _make_unigram(config: dict[str, Any], path: Path) -> None:
    (path / "spiece.model").write_bytes(spiece_model(user_defined_symbols="<user>"))
    write_json(path / "config.json", {"model_type": "longt5"})
    if config:
        write_json(path / "tokenizer_config.json", config | {"tokenizer_class": "T5Tokenizer"})


def _make_llama(path: Path) -> None:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False, max_token_length=12)
    tokenizer.train_from_iterator(training_lines(), trainer)
    # bytes are pieces of the vocabulary, not added tokens
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    content["decoder"] = json.loads(
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ).__getstate__()
    )
    write_json(path / "tokenizer.json", content)
    config = {"tokenizer_class": "LlamaTokenizer", "pad_token": "</s>", "add_eos_token": True, "legacy": False}
    write_json(path / "tokenizer_config.json", config)


def _make_generic(path: Path) -> None:
    tokenizer = Tokenizer.from_str(_byte_level().to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("lower_case", single_word=True), AddedToken("<ent>", lstrip=True, rstrip=True)])
    tokenizer.enable_truncation(7, direction="left")
    tokenizer.enable_padding(direction="left", pad_id=1, pad_token="<pad>", pad_type_id=3)
    tokenizer.save(str(path / "tokenizer.json"))
    mask = {"content": "<mask>", "lstrip": True, "normalized": False, "__type": "AddedToken"}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "mask_token": mask,
        "additional_special_tokens": ["<new>", "<ent>"],
        "clean_up_tokenization_spaces": True,
        "my_own_key": {"kept": [1, 2]},
    }
    write_json(path / "tokenizer_config.json", config)


KINDS = (
    "bert_json",
    "bert_vocab",
    "bert_cased",
    "bert_accents",
    "longformer",
    "longformer_prefix",
    "mega_offsets",
    "longt5",
    "longt5_new",
    "llama",
    "generic",
)
MAIN_KINDS = ("bert_json", "longformer", "longt5", "generic")

_pairs: dict[str, Pair] = {}


def make_pair(checkpoints: dict[str, Path], name: str) -> Pair:
    if name not in _pairs:
        path = checkpoints[name]
        _pairs[name] = Pair(name, path, AutoTokenizer.from_pretrained(path), load_reference(path))
    return _pairs[name]


@pytest.fixture(scope="session", params=KINDS)
def pair(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Pair:
    """Every kind of tokenizer, ours and the reference's."""
    return make_pair(checkpoints, request.param)


@pytest.fixture(scope="session", params=MAIN_KINDS)
def main_pair(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Pair:
    """One kind of tokenizer for each way to make one."""
    return make_pair(checkpoints, request.param)


@pytest.fixture(scope="session")
def bert(checkpoints: dict[str, Path]) -> Pair:
    return make_pair(checkpoints, "bert_json")


@pytest.fixture
def fresh_bert(checkpoints: dict[str, Path]) -> Iterator[Any]:
    """A tokenizer of its own for a test that changes it, or counts its warnings."""
    return AutoTokenizer.from_pretrained(checkpoints["bert_json"])
