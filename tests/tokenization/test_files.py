"""Where a tokenizer comes from and where it goes: files, settings, save and load."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.tokenization.conftest import Pair, load_reference, write_json
from tests.tokenization.corpus import TEXTS
from tokenizers import AddedToken, Tokenizer

import longspan
from longspan import AutoTokenizer, BertTokenizer, LongformerTokenizerFast, PreTrainedTokenizerFast
from longspan.errors import CheckpointError, CheckpointNotFoundError, ConfigError

TEXT_LIST = list(TEXTS.values())
ATTRIBUTES = (
    "model_max_length",
    "padding_side",
    "truncation_side",
    "model_input_names",
    "clean_up_tokenization_spaces",
    "special_tokens_map",
    "all_special_tokens",
    "all_special_ids",
    "additional_special_tokens",
    "vocab_size",
    "pad_token_id",
    "mask_token_id",
    "pad_token_type_id",
    "is_fast",
)


def ids(tokenizer: Any) -> list[list[int]]:
    return tokenizer(TEXT_LIST, TEXT_LIST[::-1], verbose=False)["input_ids"]


def describe(tokenizer: Any) -> dict[str, Any]:
    return {name: getattr(tokenizer, name) for name in ATTRIBUTES} | {
        "length": len(tokenizer),
        "added": {index: repr(token) for index, token in sorted(tokenizer.added_tokens_decoder.items())},
        "special": [tokenizer.num_special_tokens_to_add(), tokenizer.num_special_tokens_to_add(pair=True)],
    }


def test_settings_equal_the_references(pair: Pair) -> None:
    ours, theirs = describe(pair.ours), describe(pair.theirs)
    assert ours == theirs
    assert pair.ours.get_vocab() == pair.theirs.get_vocab()
    assert pair.ours.get_added_vocab() == pair.theirs.get_added_vocab()
    assert type(pair.ours).saved_class_name.removesuffix("Fast") == type(pair.theirs).__name__.removesuffix("Fast")


def test_ours_loads_in_the_reference(pair: Pair, tmp_path: Path) -> None:
    written = pair.ours.save_pretrained(tmp_path / "new" / "folder")
    assert {Path(path).name for path in written} >= {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }
    assert all(Path(path).is_file() for path in written)
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(
        Path(path).name for path in written
    )
    theirs = load_reference(tmp_path / "new" / "folder")
    assert type(theirs) is type(pair.theirs)
    assert describe(theirs) == describe(pair.ours)
    assert ids(theirs) == ids(pair.ours)


def test_the_references_loads_in_ours(pair: Pair, tmp_path: Path) -> None:
    pair.theirs.backend_tokenizer.no_padding()  # it writes, and reads for its settings, how it was last called
    pair.theirs.backend_tokenizer.no_truncation()
    pair.theirs.save_pretrained(str(tmp_path))
    ours = AutoTokenizer.from_pretrained(tmp_path)
    assert type(ours) is type(pair.ours)
    assert describe(ours) == describe(pair.theirs)
    assert ids(ours) == ids(pair.theirs)


def test_saving_again_writes_the_same_bytes(pair: Pair, tmp_path: Path) -> None:
    first = pair.ours.save_pretrained(tmp_path / "first")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "first")
    second = loaded.save_pretrained(tmp_path / "second")
    assert describe(loaded) == describe(pair.ours)
    for one, other in zip(first, second, strict=True):
        assert rounded(Path(one)) == rounded(Path(other)), one


def rounded(path: Path) -> str:
    """The file's text; scores of pieces rounded, because the tokenizers library reads them with an error of 1e-16."""
    return re.sub(r"-\d+\.\d+", lambda number: f"{float(number[0]):.9f}", path.read_text())


def test_vocabulary_files_are_saved_too(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    for name, files in {"bert_json": ["vocab.txt"], "longformer": ["vocab.json", "merges.txt"], "generic": []}.items():
        AutoTokenizer.from_pretrained(checkpoints[name]).save_pretrained(tmp_path / name)
        saved = {path.name for path in (tmp_path / name).iterdir()}
        assert saved == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", *files}
    (tmp_path / "longformer" / "tokenizer.json").unlink()
    again = AutoTokenizer.from_pretrained(tmp_path / "longformer")
    assert ids(again) == ids(AutoTokenizer.from_pretrained(checkpoints["longformer"]))


def test_added_tokens_survive(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    text = "new_tok1 and ab_new-tok2 <role> [MASK] x<role>y"
    for name in ("bert_json", "longformer", "longt5", "llama"):
        ours, theirs = AutoTokenizer.from_pretrained(checkpoints[name]), load_reference(checkpoints[name])
        size = len(ours)
        for tokenizer in (ours, theirs):
            added = [
                tokenizer.add_tokens(["new_tok1", AddedToken("new-tok2", single_word=True), "new_tok1"]),
                tokenizer.add_special_tokens(
                    {"additional_special_tokens": ["<role>"], "sep_token": "<sep>"},
                    replace_additional_special_tokens=name != "longt5",
                ),
                tokenizer.add_tokens([]),
                tokenizer.add_tokens("the", special_tokens=True),
            ]
        assert added[:3] == [2, 2, 0]
        assert len(ours) == len(theirs) >= size + 4
        assert ours(text).input_ids == theirs(text).input_ids
        assert describe(ours) == describe(theirs)
        ours.save_pretrained(tmp_path / name)
        assert ids(AutoTokenizer.from_pretrained(tmp_path / name)) == ids(ours)
        assert describe(load_reference(tmp_path / name)) == describe(ours)


def test_attributes_set_later_are_saved(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["longt5"])
    tokenizer.padding_side, tokenizer.model_max_length, tokenizer.mask_token = "left", 77, "<extra_id_0>"
    tokenizer.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_reference(tmp_path)):
        assert (loaded.padding_side, loaded.model_max_length) == ("left", 77)
        assert loaded.mask_token_id == tokenizer.convert_tokens_to_ids("<extra_id_0>")


def test_keys_that_nothing_reads_are_kept(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["generic"], another_key=[1])
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert saved["my_own_key"] == {"kept": [1, 2]}
    assert saved["another_key"] == [1]
    assert not {"name_or_path", "vocab_file", "tokenizer_file"} & saved.keys()


def test_chat_template_is_kept(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoints["llama"], source)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    tokenizer = AutoTokenizer.from_pretrained(source)
    assert tokenizer.chat_template == "{{ messages }}"
    tokenizer.chat_template = "{{ other }}"
    tokenizer.save_pretrained(source)
    assert AutoTokenizer.from_pretrained(source).chat_template == "{{ other }}"
    assert load_reference(source).chat_template == "{{ other }}"


def test_special_tokens_of_the_models_own(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["llama"], extra_special_tokens={"image_token": "<image>"})
    assert tokenizer.image_token == "<image>"
    assert tokenizer.image_token_id == len(tokenizer) - 1 == tokenizer("<image>").input_ids[-2]
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).image_token == "<image>"
    assert load_reference(tmp_path).image_token_id == tokenizer.image_token_id
    with pytest.raises(AttributeError, match="LlamaTokenizer has no attribute 'video_token'"):
        _ = tokenizer.video_token


def test_overrides_win(checkpoints: dict[str, Path]) -> None:
    for name, kwargs in {
        "bert_json": {"do_lower_case": False, "strip_accents": True, "model_max_length": 99, "mask_token": "[unused1]"},
        "bert_vocab": {"tokenize_chinese_chars": False, "padding_side": "left"},
        "longformer": {"add_prefix_space": True, "trim_offsets": False},
        "longt5": {"extra_ids": 3, "truncation_side": "left"},
        "generic": {"add_prefix_space": True, "unk_token": AddedToken("<unk>", lstrip=True)},
    }.items():
        ours = AutoTokenizer.from_pretrained(checkpoints[name], **kwargs)
        theirs = load_reference(checkpoints[name], **kwargs)
        assert describe(ours) == describe(theirs), name
        assert ids(ours) == ids(theirs), name
        offsets = [t(TEXT_LIST, return_offsets_mapping=True, verbose=False).offset_mapping for t in (ours, theirs)]
        assert offsets[0] == offsets[1], name


def test_blank_before_text(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """`add_prefix_space` of LongT5, from `spiece.model` and from `tokenizer.json`."""
    AutoTokenizer.from_pretrained(checkpoints["longt5"]).save_pretrained(tmp_path)
    for value, first in {True: "▁a", False: "a"}.items():
        theirs = load_reference(checkpoints["longt5"], add_prefix_space=value)
        for path in (checkpoints["longt5"], tmp_path):
            ours = AutoTokenizer.from_pretrained(path, add_prefix_space=value)
            assert ids(ours) == ids(theirs)
            assert ours.tokenize("a b")[0] == first


def test_older_files(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Without `added_tokens_decoder`, `special_tokens_map.json` and `added_tokens.json` count."""
    (tmp_path / "vocab.txt").write_bytes((checkpoints["bert_vocab"] / "vocab.txt").read_bytes())
    write_json(tmp_path / "config.json", {"model_type": "bert"})
    write_json(tmp_path / "added_tokens.json", {"NewWord": 30522, "<role>": 30523})
    cls = {"content": "[CLS]", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    write_json(
        tmp_path / "special_tokens_map.json",
        {"cls_token": cls, "mask_token": "[unused2]", "additional_special_tokens": ["<role>", "[unused5]"]},
    )
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path), load_reference(tmp_path)
    assert isinstance(ours, BertTokenizer)
    assert describe(ours) == describe(theirs)
    text = "a NewWord newword <role>[unused5] [unused2]"
    assert ours(text).input_ids == theirs(text).input_ids
    assert ours.convert_tokens_to_ids("<role>") == 30523
    ours = AutoTokenizer.from_pretrained(tmp_path, mask_token="[MASK]")
    assert ours.mask_token_id == 103


@pytest.mark.parametrize("name", ["bert_json", "longformer", "longt5", "llama", "generic"])
def test_class_from_its_own_files(checkpoints: dict[str, Path], name: str) -> None:
    """The classes that users import load a directory, and their files."""
    found = AutoTokenizer.from_pretrained(checkpoints[name])
    cls = type(found)
    fast = getattr(longspan, cls.__name__.removesuffix("Fast") + "Fast")
    assert ids(cls.from_pretrained(checkpoints[name])) == ids(found)
    assert type(fast.from_pretrained(checkpoints[name])) is fast


def test_constructors(checkpoints: dict[str, Path]) -> None:
    bert, longformer = checkpoints["bert_vocab"], checkpoints["longformer"]
    assert BertTokenizer(vocab_file=bert / "vocab.txt")("Hello").input_ids == [101, 7592, 102]
    assert BertTokenizer(vocab_file=bert / "vocab.txt", do_lower_case=False).tokenize("Hello") == ["[UNK]"]
    made = LongformerTokenizerFast(vocab_file=longformer / "vocab.json", merges_file=str(longformer / "merges.txt"))
    assert ids(made) == ids(AutoTokenizer.from_pretrained(longformer))
    backend = Tokenizer.from_file(str(checkpoints["generic"] / "tokenizer.json"))
    generic = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert generic.truncation_side == generic.padding_side == "left"
    assert generic.pad_token == "<pad>"
    assert backend.truncation is not None, "the object that was passed is not changed"
    assert len(generic("a " * 50).input_ids) > 7, "truncation of the file is not applied unasked"


def test_class_by_name_type_or_file(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(checkpoints["bert_json"] / "tokenizer.json", tmp_path)
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is PreTrainedTokenizerFast
    write_json(tmp_path / "config.json", {"model_type": "bert"})
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is BertTokenizer
    write_json(tmp_path / "config.json", {"model_type": "bert", "tokenizer_class": "LongformerTokenizerFast"})
    assert type(AutoTokenizer.from_pretrained(tmp_path)).__name__ == "LongformerTokenizer"
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "SomebodysTokenizer"})
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is PreTrainedTokenizerFast
    for path in tmp_path.iterdir():
        path.unlink()
    for name in ("vocab.txt", "vocab.json", "merges.txt", "spiece.model"):
        for folder in ("bert_vocab", "longformer", "longt5"):
            if (checkpoints[folder] / name).exists():
                shutil.copy(checkpoints[folder] / name, tmp_path)
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is BertTokenizer
    (tmp_path / "vocab.txt").unlink()
    assert type(AutoTokenizer.from_pretrained(tmp_path)).__name__ == "RobertaTokenizer"
    (tmp_path / "vocab.json").unlink()
    assert type(AutoTokenizer.from_pretrained(tmp_path)).__name__ == "T5Tokenizer"

    class Config:
        tokenizer_class = None
        model_type = "longt5"

    assert type(AutoTokenizer.from_pretrained(tmp_path, config=Config())).__name__ == "T5Tokenizer"


def test_subfolder(checkpoints: dict[str, Path]) -> None:
    path = checkpoints["bert_json"]
    assert AutoTokenizer.from_pretrained(path.parent, subfolder=path.name).mask_token_id == 103


def test_hub_cache(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--somebody--something"
    shutil.copytree(checkpoints["bert_json"], repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "v2").write_text(commit)
    kwargs = {"cache_dir": tmp_path, "local_files_only": True, "use_fast": True}
    tokenizer = AutoTokenizer.from_pretrained("somebody/something", revision="v2", **kwargs)
    assert tokenizer.mask_token_id == 103
    assert tokenizer.name_or_path == "somebody/something"
    with pytest.raises(CheckpointNotFoundError, match="somebody/nothing"):
        AutoTokenizer.from_pretrained("somebody/nothing", **kwargs)


def test_a_pickled_tokenizer_is_the_same(pair: Pair) -> None:
    again = pickle.loads(pickle.dumps(pair.ours))
    assert describe(again) == describe(pair.ours)
    assert again(TEXT_LIST, truncation=True, max_length=9).input_ids == (
        pair.ours(TEXT_LIST, truncation=True, max_length=9).input_ids
    )


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("bert_json", "tokenizer.json", b"{", "tokenizer.json must be a file of the tokenizers library"),
        ("bert_json", "tokenizer.json", b'{"model": {"type": "What"}}', "tokenizer.json must be a file of the tok"),
        ("bert_json", "tokenizer.json", b"\xff\xfe", "tokenizer.json must be UTF-8 text. Received: byte 0"),
        ("bert_json", "tokenizer_config.json", b"[1]", "tokenizer_config.json must hold a JSON object. Received: list"),
        ("bert_json", "tokenizer_config.json", b'{"a": ', "tokenizer_config.json is not valid JSON: Expecting"),
        ("bert_json", "special_tokens_map.json", b"nope", "special_tokens_map.json is not valid JSON"),
        (
            "bert_json",
            "added_tokens.json",
            b'{"a": "b"}',
            "added_tokens.json must give each token an id. Received: 'a'",
        ),
        ("bert_json", "tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "a"}}}', "must map ids to"),
        ("bert_json", "tokenizer_config.json", b'{"added_tokens_decoder": [1]}', "must map ids to tokens"),
        ("bert_json", "tokenizer_config.json", b'{"cls_token": {"content": "a", "lstrip": "x"}}', "content and flags"),
        ("bert_json", "tokenizer_config.json", b'{"cls_token": 3}', "cls_token must be a string or AddedToken"),
        ("bert_json", "tokenizer_config.json", b'{"padding_side": "up"}', "padding_side must be 'right' or 'left'"),
        ("bert_json", "tokenizer_config.json", b'{"model_max_length": "x"}', "model_max_length must be a number"),
        (
            "bert_json",
            "tokenizer_config.json",
            b'{"model_max_length": 0}',
            "model_max_length must be a number of tokens",
        ),
        ("bert_json", "tokenizer_config.json", b'{"model_max_length": NaN}', "model_max_length must be a number"),
        ("bert_vocab", "tokenizer_config.json", b'{"cls_token": null}', "cls_token must be set to lay out rows"),
        ("longt5", "tokenizer_config.json", b'{"extra_ids": "many"}', "extra_ids must be the number of sentinels"),
        ("bert_vocab", "vocab.txt", b"", "vocab.txt must hold one token a line. Received: an empty file"),
        ("bert_vocab", "vocab.txt", b"a\nb\xff\n", "vocab.txt must be UTF-8 text. Received: byte 3"),
        ("bert_vocab", "vocab.txt", b"[CLS]\n[SEP]\n", r"\(vocab.txt\) must hold the token '\[UNK\]'. It has 2 others"),
        ("longformer", "vocab.json", b'{"a": "b"}', "vocab.json must give each token an id. Received: 'a': 'b'"),
        ("longformer", "vocab.json", b'{"a": 0}', r"\(vocab.json\) must hold the token '<s>'. It has 1 others"),
        ("longformer", "merges.txt", b"#version\na b\na\n", "merges.txt must hold two tokens a line. Received: line 3"),
        (
            "longformer",
            "merges.txt",
            b"a qqqq\n",
            "merges.txt must hold pairs of tokens of vocab.json. Received: Error while",
        ),
        ("longt5", "spiece.model", b"", "spiece.model must be a SentencePiece model. Received: no pieces"),
        ("longt5", "spiece.model", b"not a model", "spiece.model must be a SentencePiece model. Received: "),
    ],
)
def test_damaged_files(
    checkpoints: dict[str, Path], tmp_path: Path, name: str, file: str, content: bytes, message: str
) -> None:
    path = tmp_path / "damaged"
    shutil.copytree(checkpoints[name], path)
    (path / "special_tokens_map.json").unlink(missing_ok=True)
    (path / file).write_bytes(content)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        AutoTokenizer.from_pretrained(path)


def test_missing_files(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"has no tokenizer files: one of tokenizer.json, vocab.txt"):
        AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="'nowhere'"):
        AutoTokenizer.from_pretrained("nowhere", local_files_only=True)
    shutil.copy(checkpoints["longformer"] / "vocab.json", tmp_path)
    with pytest.raises(
        CheckpointNotFoundError, match=r"needs tokenizer.json or vocab.json and merges.txt .*merges.txt"
    ):
        AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match=r"BertTokenizer needs tokenizer.json or vocab.txt"):
        BertTokenizer.from_pretrained(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "SomebodysTokenizer"})
    with pytest.raises(CheckpointError, match=r"Without tokenizer.json, the tokenizer must be one of .*'SomebodysTok"):
        AutoTokenizer.from_pretrained(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    with pytest.raises(CheckpointNotFoundError, match=r"LlamaTokenizer needs tokenizer.json or tokenizer.model in"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_wrong_arguments(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="BertTokenizer needs vocab_file, or tokenizer_file. Received: vocab_file=None"
    ):
        BertTokenizer()
    with pytest.raises(ConfigError, match="needs tokenizer_file or tokenizer_object"):
        PreTrainedTokenizerFast(unk_token="a")
    with pytest.raises(TypeError, match=r"AutoTokenizer.from_pretrained"):
        AutoTokenizer()
    with pytest.raises(ConfigError, match="as many as extra_ids says. Received: 1 sentinels, extra_ids=100"):
        AutoTokenizer.from_pretrained(checkpoints["longt5"], additional_special_tokens=["<extra_id_0>"])
    with pytest.raises(ConfigError, match="add_bos_token=True needs bos_token. Received: bos_token=None"):
        AutoTokenizer.from_pretrained(checkpoints["llama"], bos_token=None)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="into a directory"):
        AutoTokenizer.from_pretrained(checkpoints["bert_json"]).save_pretrained(tmp_path / "file")


def test_failed_save_leaves_the_old_files(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["bert_json"])
    tokenizer.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    tokenizer.add_tokens("another")

    def fail(*_: Any) -> tuple[str, ...]:
        raise OSError("disk full")

    monkeypatch.setattr(type(tokenizer), "save_vocabulary", fail)
    with pytest.raises(OSError, match="disk full"):
        tokenizer.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


_SAVE_FOREVER = """
import sys
from longspan import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
print("ready", flush=True)
while True:
    tokenizer.add_tokens(f"<token {len(tokenizer)}>")
    tokenizer.save_pretrained(sys.argv[1])
"""


def test_killed_save_leaves_a_whole_tokenizer(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "saved"
    shutil.copytree(checkpoints["longt5"], path)
    sizes = []
    for round_ in range(4):
        command = [sys.executable, "-c", _SAVE_FOREVER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": ""}) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline().strip() == b"ready"
            time.sleep(0.15 + 0.037 * round_)
            worker.send_signal(signal.SIGKILL)
        loaded = AutoTokenizer.from_pretrained(path)
        sizes.append(len(loaded))
        assert loaded.convert_ids_to_tokens(len(loaded) - 1) == f"<token {len(loaded) - 1}>"
        config = json.loads((path / "tokenizer_config.json").read_text())
        assert config["tokenizer_class"] == "T5Tokenizer"
    assert sizes == sorted(set(sizes)), "every round saved at least once"


@pytest.mark.parametrize(
    ("kind", "settings"), [("longformer", {"errors": "strict"}), ("generic", {"spaces_between_special_tokens": False})]
)
def test_settings_of_decoding_in_python_are_kept_and_change_nothing(checkpoints, tmp_path, kind, settings):
    """As in the reference's fast tokenizers."""
    plain = AutoTokenizer.from_pretrained(checkpoints[kind])
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[kind], **settings)
    ids = tokenizer("one two three")["input_ids"]
    assert ids == plain("one two three")["input_ids"]
    assert tokenizer.decode(ids) == plain.decode(ids)
    tokenizer.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings.items() <= stored.items()


@pytest.mark.parametrize(
    ("kind", "settings", "harmless"),
    [
        ("bert_vocab", {"never_split": ["tower"]}, {"never_split": None}),
        ("bert_json", {"do_basic_tokenize": False}, {"do_basic_tokenize": True}),
        ("longt5", {"sp_model_kwargs": {"enable_sampling": True}}, {"sp_model_kwargs": {}}),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(checkpoints, tmp_path, kind, settings, harmless):
    """As an argument and in `tokenizer_config.json`: only the reference's Python tokenizers act on them."""
    path = tmp_path / "tokenizer"
    shutil.copytree(checkpoints[kind], path)
    name = next(iter(settings))
    message = rf"{name} is not supported by \w+, except at .* Received: {name}="
    AutoTokenizer.from_pretrained(path, **harmless)
    with pytest.raises(ConfigError, match=message):
        AutoTokenizer.from_pretrained(path, **settings)
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | settings))
    with pytest.raises(ConfigError, match=f"{file}: {message}"):
        AutoTokenizer.from_pretrained(path)
