"""Every task of the command line on every family that has it: `--framework flax` and `keras` give PyTorch's rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.keras.setting import import_keras
from tests.pipelines.task_models import HEADS, LABELS, POSITIONS, TEXTS, make_tokenizer, randomize

import longspan
from longspan.cli.main import app
from longspan.cli.running import run

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.* is no sentence-transformers model:UserWarning"),
]
WIDTH = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
#: family -> the settings that are its own
FAMILIES: dict[str, dict[str, Any]] = {
    "Bert": WIDTH | {"max_position_embeddings": POSITIONS},
    "Roberta": WIDTH | {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1},
    "Longformer": WIDTH | {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1, "attention_window": 16},
    "DiffLlama": WIDTH | {"max_position_embeddings": POSITIONS, "num_key_value_heads": 2},
    "Mega": {
        "hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 32, "nffn_hidden_size": 32,
        "shared_representation_size": 8, "ema_projection_size": 4, "use_chunking": True, "chunk_size": 16,
    },
    "LongT5": {
        "d_model": 24, "d_kv": 6, "d_ff": 32, "num_layers": 1, "num_heads": 4, "local_radius": 7,
        "encoder_attention_type": "transient-global", "global_block_size": 4, "decoder_start_token_id": 0,
    },
}  # fmt: skip
#: command -> what a model for it is called, and the words behind the command
COMMANDS: dict[str, tuple[str, list[str]]] = {
    "classify": (HEADS["text-classification"], ["--top-k", "3"]),
    "tag": (HEADS["token-classification"], ["--strategy", "first"]),
    "answer": (HEADS["question-answering"], ["--question", "Who wrote it?", "--top-k", "2"]),
    "choose": (HEADS["multiple-choice"], ["--choice", "in London", "--choice", "no"]),
    "fill": (HEADS["fill-mask"], ["--top-k", "2"]),
    "embed": (HEADS["feature-extraction"], []),
    "generate": ("ForCausalLM", ["--max-new-tokens", "4"]),
    "summarize": ("ForConditionalGeneration", ["--max-new-tokens", "4"]),
}
TOKENIZERS = {"Bert": "wordpiece", "DiffLlama": "wordpiece", "LongT5": "unigram"}
_NAMES = {"BertForCausalLM": "BertLMHeadModel", "LongT5ForCausalLM": "LongT5ForConditionalGeneration"}
LONG = " ".join(TEXTS * 4)


def class_name(family: str, command: str) -> str:
    name = family + COMMANDS[command][0]
    return _NAMES.get(name, name)


#: the new families: every task that they have a class for. Of BERT, tests/pipelines/test_frameworks.py has the rest
CASES = [
    (command, family)
    for command in COMMANDS
    for family in ("Longformer", "DiffLlama", "Mega")
    if hasattr(longspan, class_name(family, command))
] + [("generate", "LongT5"), ("summarize", "LongT5"), ("generate", "Bert"), ("fill", "Roberta")]
#: a case of every command, and of every new family at least one; the others take as long again, twice
NARROW = {
    ("classify", "Mega"), ("tag", "DiffLlama"), ("answer", "Longformer"), ("choose", "Mega"), ("fill", "Longformer"),
    ("embed", "DiffLlama"), ("generate", "Mega"), ("summarize", "LongT5"),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """The texts, and of each case the model's folder and PyTorch's rows, made when they are first asked for."""
    texts = tmp_path_factory.mktemp("frameworks") / "texts"
    texts.mkdir()
    (texts / "one.txt").write_text(f"{TEXTS[0]} [MASK] <mask>")
    (texts / "two.txt").write_text(f"{LONG} [MASK] [MASK] and <mask> <mask>")
    return {"texts": texts}


@pytest.fixture
def framework(request: pytest.FixtureRequest) -> Iterator[str]:
    """A framework; Keras runs as plain calls, since tests/pipelines/test_frameworks.py runs its graphs."""
    if request.param != "keras":
        yield request.param
        return
    import_keras()
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield "keras"
    tf.config.run_functions_eagerly(False)


def make_model(folder: Path, command: str, family: str, minilm: Path) -> Path:
    tokenizer = make_tokenizer(folder, TOKENIZERS.get(family, "byte_level"), minilm)
    special = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id")
    settings = FAMILIES[family] | {name: getattr(tokenizer, name) for name in special}
    if command == "tag":
        settings["id2label"] = dict(enumerate(LABELS))
    if command == "generate":
        settings |= {"Bert": {"is_decoder": True}, "Mega": {"is_decoder": True, "bidirectional": False}}.get(family, {})
    config = getattr(longspan, f"{family}Config")(vocab_size=len(tokenizer), **settings)
    model = getattr(longspan, class_name(family, command))(config)
    randomize(model, 0.4)
    model.save_pretrained(folder)
    return folder


def rows_of(command: str, made: dict[Any, Any], case: tuple[str, str], framework: str, output: Path) -> Any:
    """What a command writes with a framework for two texts, one longer than the model; generate reads the other."""
    paths = ["--file", made["texts"] / "one.txt"] if command == "generate" else [made["texts"]]
    words = [command, *paths, "-m", made[case], "--framework", framework, "-o", output, *COMMANDS[command][1]]
    assert run(app, [str(word) for word in [*words, "--quiet"]]) == 0
    return pq.read_table(output).to_pylist()


def assert_alike(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict | list):
        assert len(ours) == len(theirs)
        for key in theirs if isinstance(theirs, dict) else range(len(theirs)):
            assert_alike(ours[key], theirs[key])
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    else:
        assert ours == theirs


@pytest.mark.parametrize("framework", ["flax", "keras"], indirect=True)
@pytest.mark.parametrize(
    ("command", "family"),
    [pytest.param(*case, marks=() if case in NARROW else pytest.mark.wide) for case in CASES],
)
def test_rows_equal_pytorchs(
    made: dict[Any, Any], command: str, family: str, framework: str, tmp_path: Path, minilm_dir: Path
) -> None:
    case = command, family
    if case not in made:
        made[case] = make_model(made["texts"].with_name("-".join(case)), command, family, minilm_dir)
        made["torch", *case] = rows_of(command, made, case, "torch", tmp_path / "torch.parquet")
    expected = made["torch", *case]
    assert len({row["path"] for row in expected}) == (1 if command == "generate" else 2)
    assert_alike(rows_of(command, made, case, framework, tmp_path / "ours.parquet"), expected)
