"""Tasks that write give the same texts in PyTorch, in Flax and in Keras, from the same folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.pipelines.task_models import POSITIONS, TEXTS, make_tokenizer, randomize

import longspan
from longspan import pipeline
from longspan.errors import InputError

LONG = " ".join(TEXTS * 4)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    """A BERT that is a decoder."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = make_tokenizer(folder, "wordpiece", minilm_dir)
    config = longspan.BertConfig(
        vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=POSITIONS, is_decoder=True, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = longspan.BertLMHeadModel(config)
    randomize(model, 0.4)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def longt5(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    """A LongT5 with transient-global attention."""
    folder = tmp_path_factory.mktemp("longt5")
    tokenizer = make_tokenizer(folder, "unigram", minilm_dir)
    config = longspan.LongT5Config(
        vocab_size=len(tokenizer), d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4, local_radius=7,
        global_block_size=4, encoder_attention_type="transient-global", pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = longspan.LongT5ForConditionalGeneration(config)
    randomize(model, 0.6)
    model.save_pretrained(folder)
    return folder


CASES: list[tuple[str, str, Any, dict[str, Any]]] = [
    ("text-generation", "bert", TEXTS, {"max_new_tokens": 5}),
    ("text-generation", "bert", TEXTS[3], {"max_length": 18, "num_beams": 2, "num_return_sequences": 2}),
    ("text2text-generation", "longt5", TEXTS, {"max_new_tokens": 5, "num_beams": 1}),
    ("text2text-generation", "longt5", TEXTS[0], {"max_length": 6, "num_beams": 3, "num_return_sequences": 2}),
    (
        "summarization",
        "longt5",
        [TEXTS[0], LONG, TEXTS[1]],
        {"max_new_tokens": 8, "max_input_length": 60, "num_beams": 1, "repetition_penalty": 1.5},
    ),
]


@pytest.mark.parametrize(("task", "family", "inputs", "settings"), CASES)
def test_equal_texts(
    request: pytest.FixtureRequest, task: str, family: str, inputs: Any, settings: dict[str, Any]
) -> None:
    folder = request.getfixturevalue(family)
    expected = pipeline(task, folder)(inputs, **settings)
    run = pipeline(task, folder, framework="jax")
    assert run.framework == "flax"
    assert type(run.model).__name__.startswith("Flax")
    assert run(inputs, **settings) == expected
    if isinstance(inputs, str):
        return
    if task == "text2text-generation":
        small = pipeline(task, folder, framework="flax", batch_tokens=64, device="cpu", **settings)
        assert small(inputs) == expected, "batches change nothing"
    assert len({str(text) for text in expected}) > len(expected) // 2, "the model must write different things"


def test_loaded_flax_models_and_seeds(longt5: Path) -> None:
    model = longspan.FlaxLongT5ForConditionalGeneration.from_pretrained(longt5)
    run = pipeline("text2text-generation", model, longt5, max_new_tokens=6, num_beams=1, do_sample=True)
    assert run.framework == "flax"
    first, again, other = (run(TEXTS[0], seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    with pytest.raises(InputError, match="framework must be that of the model, 'flax'. Received: framework='torch'"):
        pipeline("text2text-generation", model, longt5, framework="torch")


@pytest.mark.parametrize(("task", "family", "inputs", "settings"), [CASES[0], CASES[4]])
def test_equal_texts_in_keras(
    request: pytest.FixtureRequest, task: str, family: str, inputs: Any, settings: dict[str, Any]
) -> None:
    folder = request.getfixturevalue(family)
    run = pipeline(task, folder, framework="keras")
    assert type(run.model).__name__.startswith("TF")
    assert run(inputs, **settings) == pipeline(task, folder)(inputs, **settings)


def test_keras_models_and_seeds(bert: Path) -> None:
    model = longspan.TFBertLMHeadModel.from_pretrained(bert)
    run = pipeline("text-generation", model, bert, max_new_tokens=6, do_sample=True)
    assert run.framework == "keras"
    first, again, other = (run(TEXTS[0], seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    with pytest.raises(InputError, match="stop_strings needs to look at every step, which Keras models"):
        run(TEXTS[0], stop_strings=".")
