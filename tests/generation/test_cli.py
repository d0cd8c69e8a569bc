"""`longspan generate` and `longspan summarize`."""

from __future__ import annotations

import io
import json
import sys

import pytest
import torch
from tests.generation.conftest import LONGT5
from tests.parity.torch_parity import randomise
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import longspan
from longspan.cli.main import app
from longspan.cli.running import run

TEXT = "def read(path): return open(path).read() # the whole of a file, as one text\n"


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Checkpoints of a causal model and of one with an encoder, with a tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    causal = longspan.DiffLlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=50, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    made = {}
    for kind, model in (
        ("causal", randomise(longspan.DiffLlamaForCausalLM(causal))),
        (
            "seq2seq",
            randomise(longspan.LongT5ForConditionalGeneration(longspan.LongT5Config(**{**LONGT5, "vocab_size": 300}))),
        ),
    ):
        made[kind] = tmp_path_factory.mktemp(kind)
        model.save_pretrained(made[kind])
        longspan.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(made[kind])
    return made


def call(capsys, *arguments):
    """Exit code, standard output and standard error of a command line."""
    code = run(app, [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def expected(directory, kind, text, **settings):
    model = getattr(longspan, kind).from_pretrained(directory)
    tokenizer = longspan.AutoTokenizer.from_pretrained(directory)
    ids = tokenizer(text)["input_ids"]
    rows = model.generate(torch.tensor([ids]), **settings)
    start = 1 if "Seq2Seq" in kind else len(ids)
    return tokenizer.decode(rows[0, start:].tolist(), skip_special_tokens=True)


def test_a_prompt_streams(directories, capsys):
    directory = directories["causal"]
    code, out, _ = call(capsys, "generate", "def read", "-m", directory, "--max-new-tokens", 12)
    assert code == 0
    assert out == expected(directory, "AutoModelForCausalLM", "def read", max_new_tokens=12) + "\n"


def test_a_file_samples_and_answers_in_json(directories, capsys, tmp_path):
    directory = directories["causal"]
    (tmp_path / "prompt.txt").write_text("def read")
    command = ["generate", "--file", tmp_path / "prompt.txt", "-m", directory, "--temperature", "0.9", "--seed", "3"]
    code, out, _ = call(capsys, *command, "--max-new-tokens", 12, "--json")
    settings = {"do_sample": True, "temperature": 0.9, "seed": 3, "max_new_tokens": 12}
    answer = json.loads(out)
    assert code == 0
    assert answer["text"] == expected(directory, "AutoModelForCausalLM", "def read", **settings)
    assert answer["num_new_tokens"] <= 12


@pytest.mark.parametrize("num_beams", [1, 3])
def test_summaries_of_a_file_and_of_standard_input(directories, capsys, monkeypatch, tmp_path, num_beams):
    directory = directories["seq2seq"]
    (tmp_path / "text.txt").write_text(TEXT * 20)
    options = ["-m", directory, "--max-new-tokens", 9, "--num-beams", num_beams]
    code, from_file, _ = call(capsys, "summarize", tmp_path / "text.txt", *options)
    monkeypatch.setattr(sys, "stdin", io.StringIO(TEXT * 20))
    assert call(capsys, "summarize", *options) == (code, from_file, "")
    settings = {"max_new_tokens": 9, "num_beams": num_beams}
    assert from_file.rstrip("\n") == expected(directory, "AutoModelForSeq2SeqLM", TEXT * 20, **settings).rstrip("\n")


def test_clear_errors(directories, capsys, tmp_path):
    causal = directories["causal"]
    code, _, error = call(capsys, "summarize", tmp_path / "none.txt", "-m", causal)
    assert (code, "No such file" in error) == (1, True)
    (tmp_path / "a.txt").write_text("a")
    code, _, error = call(capsys, "summarize", tmp_path / "a.txt", "-m", causal)
    assert code == 1
    assert "summarize needs a model with an encoder and a decoder, such as LongT5" in error
    code, _, error = call(capsys, "generate", "x", "--file", tmp_path / "a.txt", "-m", causal)
    assert "give a prompt or a file, not both" in error
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    code, _, error = call(capsys, "generate", "--file", tmp_path / "b.txt", "-m", causal)
    assert "a text file must be UTF-8" in error
    code, _, error = call(capsys, "generate", "x", "-m", causal, "--top-p", "2")
    assert "top_p must lie in (0, 1]. Received: top_p=2.0" in error


@pytest.mark.parametrize("framework", ["flax", "keras"])
@pytest.mark.parametrize(("command", "kind"), [("generate", "causal"), ("summarize", "seq2seq")])
def test_one_text_in_every_framework(directories, capsys, tmp_path, command, kind, framework):
    (tmp_path / "one.txt").write_text(TEXT * 3)
    text = ["def read"] if command == "generate" else [tmp_path / "one.txt"]
    words = [command, *text, "-m", directories[kind], "--max-new-tokens", 6]
    assert call(capsys, *words, "--framework", framework) == call(capsys, *words)
    words += ["--framework", framework, "--json"]
    code, out, _ = call(capsys, *words)
    assert (code, json.loads(out)["num_new_tokens"]) == (0, 6)
    if command == "generate":
        code, _, error = call(capsys, *words, "--stop", "x")
        assert (code, "--stop needs --framework torch" in error) == (1, True)
