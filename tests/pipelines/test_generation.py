"""Tasks that write: equal to the reference's, and summaries of documents of any length within a budget."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from tests.pipelines.task_models import TEXTS, make_tokenizer, randomize

import longspan
from longspan import pipeline
from longspan.errors import InputError

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
    summarize = pipeline("summarization", seq2seq, max_length=40)
    text = " ".join(TEXTS * 12)
    whole = summarize(text, max_new_tokens=12)[0]["summary_text"]
    written = summarize.tokenizer(whole, add_special_tokens=False).input_ids
    assert 0 < len(written) <= 13, "12, and the blank that this tokenizer puts before a text"
    start = summarize(text, max_new_tokens=12, on_long="truncate")[0]["summary_text"]
    assert start != whole
    with pytest.raises(InputError, match="max_new_tokens must be below the 35 new tokens.*Received: max_new_tokens=40"):
        summarize(text, max_new_tokens=40)
    with pytest.raises(InputError, match=r"must fit max_length=40 tokens with on_long='error'. Received: \d+ tokens"):
        summarize(text, on_long="error")
    with pytest.raises(InputError, match=r"max_length must lie in \[1, 128\]. Received: max_length=200"):
        summarize(text, max_length=200)


def test_text_generation(causal: Path) -> None:
    ours = pipeline("text-generation", causal, max_new_tokens=6)
    prompts = [TEXTS[0], "def main"]
    alone = ours(prompts, return_full_text=False)
    for prompt, full, new in zip(prompts, ours(prompts), alone, strict=True):
        assert full[0]["generated_text"] == prompt + new[0]["generated_text"]
        assert ours(prompt) == full, "batches change nothing"
        settings = {"max_new_tokens": 6, "do_sample": False}
        assert ours(prompt) == reference("text-generation", causal, prompt, add_special_tokens=False, **settings)


def test_errors(causal: Path, seq2seq: Path) -> None:
    with pytest.raises(InputError, match="text-generation runs with framework='torch'. Received: framework='keras'"):
        pipeline("text-generation", causal, framework="keras")
    with pytest.raises(InputError, match="text must be a string. Received: int"):
        pipeline("text-generation", causal)([3])
    with pytest.raises(InputError, match="model must be a directory, a hub repository or a torch model of longspan"):
        pipeline("summarization", object())
    model = longspan.LongT5ForConditionalGeneration.from_pretrained(seq2seq)
    with pytest.raises(InputError, match="tokenizer must be given with a loaded model"):
        pipeline("summarization", model)
