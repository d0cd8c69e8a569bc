"""The same task and weights give equal results in all three frameworks, in batches of few shapes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from tests.pipelines.task_models import HEADS, TEXTS, make_task_model, make_tokenizer, randomize

import longspan
from longspan import pipeline
from longspan.errors import InputError
from longspan.pipelines.run.progress import Progress

LONG = " ".join(TEXTS * 8)
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "text-classification": ([*TEXTS, LONG, {"text": LONG, "text_pair": TEXTS[0]}], {"top_k": None}),
    "token-classification": ([*TEXTS, LONG], {"aggregation_strategy": "average"}),
    "question-answering": ([{"question": "Who wrote it?", "context": text} for text in (TEXTS[0], LONG)], {"top_k": 3}),
    "fill-mask": (["The [MASK] program.", LONG + " [MASK] and [MASK]"], {"top_k": 3}),
    "multiple-choice": ([{"prompt": TEXTS[0], "choices": ["Yes, she did.", "No."]},
                         {"prompt": LONG, "choices": ["a", "b", "in London"]}], {}),
    "feature-extraction": ([*TEXTS[:2], LONG], {}),
}  # fmt: skip

#: the head and its task do as with BERT, and the family as with another task
wide = pytest.mark.wide


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("frameworks")
    return {task: make_task_model(root / task, task, "wordpiece", minilm_dir) for task in CASES}


def close(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            close(ours[key], theirs[key])
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            close(mine, other)
    elif isinstance(theirs, float):
        assert abs(ours - theirs) <= 1e-5 * max(1.0, abs(theirs))
    else:
        assert ours == theirs


@pytest.mark.parametrize("framework", ["flax", "keras"])
@pytest.mark.parametrize("task", CASES)
def test_equal_results(folders: dict[str, Path], task: str, framework: str) -> None:
    inputs, settings = CASES[task]
    expected = pipeline(task, folders[task])(inputs, **settings)
    other = pipeline(task, folders[task], framework=framework)
    assert other.framework == framework
    close(other(inputs, **settings), expected)
    close(other(inputs, **settings, batch_tokens=400), expected)


@pytest.mark.parametrize("framework", ["flax", "keras"])
@pytest.mark.parametrize("task", ["question-answering", pytest.param("text-classification", marks=wide)])
def test_a_longformer(tmp_path: Path, task: str, framework: str, minilm_dir: Path) -> None:
    """Its question attends globally: the values of the ids tell how many tokens that are."""
    folder = make_task_model(tmp_path, task, "byte_level", minilm_dir, num_global_slots=2)
    inputs, settings = CASES[task]
    expected = pipeline(task, folder)(inputs, **settings)
    close(pipeline(task, folder, framework=framework)(inputs, **settings), expected)


@pytest.mark.parametrize(
    "task",
    [
        "text-classification",  # reads the last token
        "question-answering",
        pytest.param("token-classification", marks=wide),
        pytest.param("feature-extraction", marks=wide),
    ],
)
def test_a_causal_model_with_a_head(tmp_path: Path, task: str, minilm_dir: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, "wordpiece", minilm_dir)
    config = longspan.DiffLlamaConfig(
        vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id, num_labels=3,
    )  # fmt: skip
    model = getattr(longspan, f"DiffLlama{HEADS[task]}")(config)
    randomize(model, 0.4)
    model.save_pretrained(tmp_path)
    inputs, settings = CASES[task]
    expected = pipeline(task, tmp_path)(inputs, **settings)
    close(pipeline(task, tmp_path, framework="keras")(inputs, **settings), expected)


@pytest.mark.parametrize(
    ("task", "framework"),
    [
        ("fill-mask", "flax"),
        ("text-classification", "keras"),
        pytest.param("fill-mask", "keras", marks=wide),
        pytest.param("text-classification", "flax", marks=wide),
    ],
)
def test_a_mega(tmp_path: Path, task: str, framework: str, minilm_dir: Path) -> None:
    """With chunks, of a text that is many times longer."""
    tokenizer = make_tokenizer(tmp_path, "wordpiece", minilm_dir)
    config = longspan.MegaConfig(
        vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=1, intermediate_size=40, use_chunking=True,
        chunk_size=16, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = getattr(longspan, f"Mega{HEADS[task]}")(config)
    randomize(model, 0.4)
    model.save_pretrained(tmp_path)
    inputs, settings = CASES[task]
    expected = pipeline(task, tmp_path)(inputs, **settings)
    close(pipeline(task, tmp_path, framework=framework)(inputs, **settings), expected)


def test_few_programs_are_compiled(folders: dict[str, Path]) -> None:
    run = pipeline("text-classification", folders["text-classification"], framework="flax")
    texts = ["word " * count for count in range(1, 100)]
    run(texts)
    first = run.model.num_programs
    assert first <= 10, "one of few lengths, and batches of 8, 1 or full ones"
    run(texts[3:50])
    assert run.model.num_programs <= first + 4


def test_one_graph_serves_every_shape_in_tensorflow(folders: dict[str, Path]) -> None:
    run = pipeline("token-classification", folders["token-classification"], framework="keras")
    for count in (1, 7, 40):
        run(["word " * (number + 1) for number in range(count)])
    assert run.model.num_programs == 1


def test_texts_are_tokenized_while_the_model_runs(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """When the model runs a block, the thread that tokenizes is at work on the next one."""
    run = pipeline("text-classification", folders["text-classification"], batch_tokens=128)
    begun, forward, prepare = threading.Semaphore(0), run.model.run, run.prepare_block
    blocks: list[int] = []

    def tokenize(items: Any, options: Any) -> Any:
        blocks.append(len(items))
        begun.release()
        return prepare(items, options)

    def first_batch(inputs: Any, wanted: Any = None) -> Any:
        for _ in range(2):
            assert begun.acquire(timeout=30), "the second block must be tokenized before the first has run"
        monkeypatch.setattr(run.model, "run", forward)
        return forward(inputs, wanted)

    monkeypatch.setattr(run, "prepare_block", tokenize)
    monkeypatch.setattr(run.model, "run", first_batch)
    assert len(run(["a few words of text " * 100] * 60)) == 60
    assert len(blocks) > 2


@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_progress_counts_documents_and_tokens(folders: dict[str, Path], framework: str) -> None:
    class Counter(Progress):
        documents = tokens = 0

        def advance(self, amount: int, num_tokens: int) -> None:
            self.tokens += num_tokens

        def finish_documents(self, count: int) -> None:
            self.documents += count

    run = pipeline("text-classification", folders["text-classification"], framework=framework)
    counter = Counter()
    list(run.run([*TEXTS, LONG], options=run.options.updated({"stride": 0}, run.task), progress=counter))
    lengths = [len(run.tokenizer(text, verbose=False).input_ids) for text in [*TEXTS, LONG]]
    windows = -(-(lengths[-1] - 2) // 126)
    assert counter.documents == len(TEXTS) + 1
    assert counter.tokens == sum(lengths) + 2 * (windows - 1), "special tokens of each window, no padding"


@pytest.mark.parametrize("name", ["pt", "tf", "jax"])
def test_the_references_names_of_frameworks(folders: dict[str, Path], name: str) -> None:
    run = pipeline("text-classification", folders["text-classification"], framework=name)
    assert run.framework == {"pt": "torch", "tf": "keras", "jax": "flax"}[name]


def test_loaded_models(folders: dict[str, Path]) -> None:
    from longspan import AutoTokenizer, BertForSequenceClassification

    folder = folders["text-classification"]
    model = BertForSequenceClassification.from_pretrained(folder)
    loaded = pipeline(model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    assert loaded(TEXTS) == pipeline("sentiment-analysis", folder)(TEXTS)
    with pytest.raises(InputError, match="tokenizer must be given with a loaded model. Received: tokenizer=None"):
        pipeline("text-classification", model)
    with pytest.raises(InputError, match="framework must be that of the model, 'torch'. Received: framework='flax'"):
        pipeline("text-classification", model, folder, framework="flax")
    with pytest.raises(InputError, match="model must be a directory, a hub repository or a model of longspan"):
        pipeline("text-classification", object())
