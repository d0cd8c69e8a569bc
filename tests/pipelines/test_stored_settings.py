"""Settings of generation that a checkpoint's files hold: every task and command that writes takes them."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from tests.pipelines.task_models import TEXTS, edit_json, make_tokenizer, randomize

import longspan
from longspan import pipeline
from longspan.checkpoints.report import LoadError
from longspan.cli.main import app
from longspan.cli.running import run
from longspan.errors import InputError


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    """A LongT5 whose files say nothing of writing."""
    folder = tmp_path_factory.mktemp("plain")
    tokenizer = make_tokenizer(folder, "unigram", minilm_dir)
    config = longspan.LongT5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=2, local_radius=7,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    model = longspan.LongT5ForConditionalGeneration(config)
    randomize(model, 0.3)
    model.lm_head.weight.data[1] = 0  # so that texts do not end at once
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


def changed(plain: Path, folder: Path, *, config: dict[str, Any] | None = None, generation: Any = None) -> Path:
    """A copy of the model whose files say more."""
    shutil.copytree(plain, folder)
    edit_json(folder / "config.json", **(config or {}))
    if generation is not None:
        ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
        (folder / "generation_config.json").write_text(json.dumps(ids | generation))
    return folder


def call(words: list[str]) -> int:
    """A command, whose warnings are no errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        return run(app, words)


SETTINGS = {"max_length": 7, "num_beams": 2, "no_repeat_ngram_size": 2}
PLACES = {
    "generation_config.json": ("generation_config.json", {"generation": SETTINGS}),
    "config.json": ("config.json", {"config": SETTINGS}),
    "task_specific_params": (
        "task_specific_params in config.json",
        {
            "config": {"task_specific_params": {"summarization": {**SETTINGS, "prefix": "sum: ", "unknown": 1}}},
            "generation": {"max_length": 90, "num_beams": 3},
        },
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_read_and_named(plain: Path, tmp_path: Path, place: str) -> None:
    named, files = PLACES[place]
    folder = changed(plain, tmp_path / "model", **files)
    summarize = pipeline("summarization", folder)
    prefix = {"prefix": "sum: "} if place == "task_specific_params" else {}
    expected = pipeline("summarization", plain)(TEXTS[:2], **SETTINGS, **prefix)
    with pytest.warns(UserWarning, match=f"2 texts end at max_length=7 of {named}; give max_new_tokens for more"):
        assert summarize(TEXTS[:2]) == expected
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.pipeline("summarization", str(folder), device="cpu")
        # the reference lets its own default of four beams win over those of the model's files
        extra = {} if place == "task_specific_params" else {"num_beams": 2}
        assert theirs(TEXTS[0], **extra)[0] == expected[0]
    longer = summarize(TEXTS[:2], max_new_tokens=12, num_beams=1)
    assert longer == pipeline("summarization", plain)(
        TEXTS[:2], max_new_tokens=12, num_beams=1, no_repeat_ngram_size=2, **prefix
    ), "an argument wins"
    made = pipeline("summarization", folder, max_new_tokens=12, num_beams=1)
    assert made(TEXTS[:2]) == longer, "also one of the constructor"
    assert summarize(TEXTS[0], max_length=5, num_beams=1) == made(TEXTS[0], max_length=5)


def test_prompts_take_them_too(minilm_dir: Path, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, "unigram", minilm_dir)
    config = longspan.DiffLlamaConfig(
        vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=None, eos_token_id=1,
        task_specific_params={"text-generation": {"do_sample": False, "max_new_tokens": 3}},
    )  # fmt: skip
    model = longspan.DiffLlamaForCausalLM(config)
    randomize(model, 0.3)
    model.lm_head.weight.data[1] = 0  # so that texts do not end at once
    model.save_pretrained(tmp_path)
    write = pipeline("text-generation", tmp_path)
    with pytest.warns(UserWarning, match="1 text ends at max_new_tokens=3 of task_specific_params in config.json"):
        found = write(TEXTS[0])
    assert found == write(TEXTS[0], max_new_tokens=3)
    assert write(TEXTS[0], max_length=60) != found, "a length of either kind wins over a stored one"


def test_a_stored_least_length_gives_way(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, files in enumerate((
        {"generation": {"min_length": 30}},
        {"config": {"task_specific_params": {"summarization": {"min_length": 30}}}},
    )):  # fmt: skip
        folder = changed(plain, tmp_path / str(number), **files)
        with pytest.warns(UserWarning, match="min_length=30 of .*config.json.* is above the greatest length"):
            found = pipeline("summarization", folder)(TEXTS[:3], max_new_tokens=4, num_beams=1)
        assert found == pipeline("summarization", plain)(TEXTS[:3], max_new_tokens=4, min_length=5, num_beams=1)
        text = tmp_path / f"{number}.txt"
        text.write_text(TEXTS[0])
        for more in ((), ("-o", str(tmp_path / f"{number}.csv"))):
            code = call(["summarize", str(text), "-m", str(folder), "--max-new-tokens", "4", *more])
            assert (code, "min_length=30 of" in capsys.readouterr().err) == (0, True)


def test_commands_take_them(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed(plain, tmp_path / "model", **PLACES["task_specific_params"][1])
    text = tmp_path / "a.txt"
    text.write_text(TEXTS[0])
    expected = pipeline("summarization", plain)(TEXTS[0], prefix="sum: ", **SETTINGS)[0]["summary_text"]
    assert call(["summarize", str(text), "-m", str(folder)]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == expected.strip()
    assert "1 text ends at max_length=7 of task_specific_params in config.json" in shown.err
    output = tmp_path / "out.jsonl"
    assert call(["summarize", str(text), "-m", str(folder), "-o", str(output)]) == 0
    assert json.loads(output.read_text())["written"] == expected
    assert call(["summarize", str(text), "-m", str(folder), "--max-new-tokens", "3", "--prefix", ""]) == 0
    one = pipeline("summarization", plain)(TEXTS[0], **{**SETTINGS, "max_length": 4})
    assert capsys.readouterr().out.strip().endswith(one[0]["summary_text"].strip())


def test_words_of_the_reference(plain: Path) -> None:
    expected = pipeline("summarization", plain, max_new_tokens=4)(TEXTS[:2])
    moved = pipeline(
        "summarization",
        str(plain),
        tokenizer=(str(plain), {"use_fast": True}),
        config=longspan.AutoConfig.from_pretrained(plain),
        torch_dtype="float32",
        model_kwargs={"dropout_rate": 0.0, "local_files_only": True, "attn_implementation": "blocked"},
        num_workers=0,
        trust_remote_code=False,
        device_map="auto",
        feature_extractor=None,
        use_fast=True,
        max_new_tokens=4,
    )
    assert (moved.model.config.dropout_rate, moved.model.config.attn_implementation) == (0.0, "blocked")
    assert (
        moved(TEXTS[:2], batch_size=2, clean_up_tokenization_spaces=False, return_text=True, num_workers=1) == expected
    )
    with pytest.raises(LoadError, match="strict=False loads what fits"):
        pipeline("summarization", plain, model_kwargs={"num_layers": 2})
    deeper = pipeline("summarization", plain, model_kwargs={"num_layers": 2, "strict": False})
    assert len(deeper.model.encoder.block) == 2
    with pytest.raises(InputError, match="runs none of a checkpoint. Received: trust_remote_code=True"):
        pipeline("summarization", plain, trust_remote_code=True)
    with pytest.raises(InputError, match="num_workers must be a whole number, at least 0. Received: num_workers=-1"):
        pipeline("summarization", plain, num_workers=-1)
    with pytest.raises(InputError, match=r"may be given as \(name, options\). Received: tokenizer=\('a',\)"):
        pipeline("summarization", plain, tokenizer=("a",))
    with pytest.raises(InputError, match="config goes with the name of a model. Received: a LongT5ForConditional"):
        pipeline("summarization", moved.model, moved.tokenizer, config=moved.model.config)
    with pytest.raises(InputError, match="attn_implementation goes with the name of a model. Received: a LongT5For"):
        pipeline("summarization", moved.model, moved.tokenizer, attn_implementation="blocked")
    with pytest.raises(InputError, match="call model.generate for these. Received: return_dict_in_generate=True"):
        moved(TEXTS[0], return_dict_in_generate=True)
    with pytest.raises(InputError, match="return_text=False needs return_tensors=True. Received: return_text=False"):
        moved(TEXTS[0], return_text=False)
    with pytest.raises(InputError, match="batch_size must be at least 1. Received: batch_size=0"):
        moved(TEXTS[0], batch_size=0)


def test_the_stored_dtype(plain: Path, tmp_path: Path) -> None:
    """`"auto"` is the dtype that the settings name, else that of the weights, as in the reference."""
    folder = tmp_path / "half"
    shutil.copytree(plain, folder)
    longspan.LongT5ForConditionalGeneration.from_pretrained(plain, dtype="bfloat16").save_pretrained(folder)
    for named in ("bfloat16", None):
        edit_json(folder / "config.json", dtype=named, torch_dtype=named)
        assert str(pipeline("summarization", folder, torch_dtype="auto").model.dtype) == "torch.bfloat16"
    edit_json(folder / "config.json", dtype="float16")
    assert str(pipeline("feature-extraction", folder, dtype="auto").model.model.dtype) == "torch.float16"
    assert str(pipeline("summarization", plain, dtype="auto").model.dtype) == "torch.float32"
