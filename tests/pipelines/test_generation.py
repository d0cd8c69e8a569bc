"""Tasks that write: equal to the reference's, and summaries of documents of any length within a budget."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from tests.pipelines.task_models import TEXTS, make_tokenizer, randomize

import longspan
from longspan import pipeline
from longspan.errors import ConfigError, InputError

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("causal")
    tokenizer = make_tokenizer(folder, "unigram", minilm_dir)
    config = longspan.DiffLlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, pad_token_id=0, bos_token_id=None, eos_token_id=1, **SMALL
    )
    model = longspan.DiffLlamaForCausalLM(config)
    randomize(model, 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("seq2seq")
    tokenizer = make_tokenizer(folder, "unigram", minilm_dir)
    config = longspan.LongT5Config(
        vocab_size=len(tokenizer), d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4, local_radius=7,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    model = longspan.LongT5ForConditionalGeneration(config)
    randomize(model, 0.3)
    model.save_pretrained(folder)
    return folder


def reference(task: str, folder: Path, *inputs: Any, **settings: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.pipeline(task, str(folder), device="cpu")(*inputs, **settings)


def test_text2text_generation(seq2seq: Path) -> None:
    ours = pipeline("text2text-generation", seq2seq, max_new_tokens=6)
    for inputs in (TEXTS[0], TEXTS[:3]):
        assert ours(inputs) == reference("text2text-generation", seq2seq, inputs, max_new_tokens=6)
    beams = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 5}
    assert ours(TEXTS[:2], **beams) == reference("text2text-generation", seq2seq, TEXTS[:2], **beams)
    assert pipeline(model=seq2seq).task == "text2text-generation"


def test_summaries_of_short_texts(seq2seq: Path) -> None:
    ours = pipeline("summarization", seq2seq, max_new_tokens=6)
    assert ours(TEXTS[0]) == reference("summarization", seq2seq, TEXTS[0], max_new_tokens=6)
    assert ours(iter(TEXTS[:1])).__next__() == ours(TEXTS[0])


def test_summaries_of_long_texts_keep_within_the_budget(seq2seq: Path) -> None:
    summarize = pipeline("summarization", seq2seq, max_input_length=40)
    text = " ".join(TEXTS * 12)
    whole = summarize(text, max_new_tokens=12)[0]["summary_text"]
    written = summarize.tokenizer(whole, add_special_tokens=False).input_ids
    assert 0 < len(written) <= 13, "12, and the blank that this tokenizer puts before a text"
    start = summarize(text, max_new_tokens=12, on_long="truncate")[0]["summary_text"]
    assert start != whole
    with pytest.raises(InputError, match="must leave at least two new tokens to a window of 39. Received: stride=38"):
        summarize(text, stride=38)
    with pytest.raises(InputError, match=r"must fit max_input_length=40 tokens with on_long='error'. Received: \d+ to"):
        summarize(text, on_long="error")
    with pytest.raises(InputError, match=r"max_input_length must lie in \[1, 128\]. Received: max_input_length=200"):
        summarize(text, max_input_length=200)
    with pytest.raises(InputError, match="need max_new_tokens or max_length. Received: neither"):
        summarize(text, max_new_tokens=None)


def test_text_generation(causal: Path) -> None:
    ours = pipeline("text-generation", causal, max_new_tokens=6)
    prompts = [TEXTS[0], "def main"]
    alone = ours(prompts, return_full_text=False)
    for prompt, full, new in zip(prompts, ours(prompts), alone, strict=True):
        assert full[0]["generated_text"] == prompt + new[0]["generated_text"]
        assert ours(prompt) == full, "batches change nothing"
        settings = {"max_new_tokens": 6, "do_sample": False}
        assert ours(prompt) == reference("text-generation", causal, prompt, add_special_tokens=False, **settings)


def test_options_of_writing(causal: Path, seq2seq: Path) -> None:
    write = pipeline("text2text-generation", seq2seq, max_new_tokens=8, num_beams=1)
    ids = write(TEXTS[0], return_tensors=True)[0]["generated_token_ids"]
    theirs = reference("text2text-generation", seq2seq, TEXTS[0], max_new_tokens=8, num_beams=1, return_tensors=True)
    assert ids == theirs[0]["generated_token_ids"].tolist()[1:], "the reference's begin with the start token"
    stop = write.tokenizer.convert_ids_to_tokens(ids[0]).replace("▁", " ")
    assert write(TEXTS[0], stop_sequence=stop, return_tensors=True)[0]["generated_token_ids"] == ids[:1]
    assert write("Lovelace", prefix="Ada ") == write("Ada Lovelace")
    long = " ".join(TEXTS * 10)
    assert write(long, truncation=True) == write(long, on_long="truncate")
    assert write(long, truncation=True) == reference(
        "text2text-generation", seq2seq, long, truncation=True, max_new_tokens=8, num_beams=1
    )
    go_on = pipeline("text-generation", causal, max_new_tokens=4)
    settings = {"max_new_tokens": 4, "do_sample": False, "return_tensors": True, "add_special_tokens": False}
    assert go_on(TEXTS[0], return_tensors=True) == reference("text-generation", causal, TEXTS[0], **settings)
    assert go_on("program", prefix="The ", return_full_text=False) == go_on("The program", return_full_text=False)


@pytest.mark.parametrize("framework", ["flax", "keras"])
def test_a_causal_model_writes_the_same(causal: Path, framework: str) -> None:
    settings = {"max_new_tokens": 4, "return_full_text": False}
    texts = TEXTS[:2]
    expected = pipeline("text-generation", causal, **settings)(texts)
    assert pipeline("text-generation", causal, framework=framework, **settings)(texts) == expected


def test_errors(causal: Path, seq2seq: Path) -> None:
    with pytest.raises(ConfigError, match="'diffllama' must have a class for the task 'text2text-generation'"):
        pipeline("summarization", causal)
    with pytest.raises(InputError, match="inputs must be one text or an iterable of texts. Received: int"):
        pipeline("text-generation", causal)(3)
    with pytest.raises(InputError, match="batch_size must be at least 1. Received: batch_size=0"):
        pipeline("text-generation", causal, batch_size=0)
    with pytest.raises(InputError, match="on_long must be one of truncate, error. Received: on_long='window'"):
        pipeline("text2text-generation", seq2seq, on_long="window")
    with pytest.raises(InputError, match="text must be a string. Received: int"):
        pipeline("text-generation", causal)([3])
    with pytest.raises(InputError, match="model must be a directory, a hub repository or a model of longspan"):
        pipeline("summarization", object())
    model = longspan.LongT5ForConditionalGeneration.from_pretrained(seq2seq)
    with pytest.raises(InputError, match="tokenizer must be given with a loaded model"):
        pipeline("summarization", model)
    with pytest.raises(InputError, match="text-generation needs a model without an encoder. Received: LongT5ForCond"):
        pipeline("text-generation", model, seq2seq)
    with pytest.raises(InputError, match="model must be one that writes: one with generate. Received: LongT5Model"):
        pipeline("summarization", longspan.LongT5Model(model.config), seq2seq)
    with pytest.raises(InputError, match="stop_sequence must have a token. Received: stop_sequence=''"):
        pipeline("summarization", seq2seq)(TEXTS[0], stop_sequence="")
    assert isinstance(pipeline("summarization", model, seq2seq)(TEXTS[0], max_length=4), list)
