"""Each task learns a rule from long documents, and its output works in the task's pipeline."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest
import torch
from tests.pipelines.planted import QUESTION, filler, plant
from tests.pipelines.task_models import make_task_model
from tests.training.conftest import SETTINGS, documents, read_csv, write_lines
from tests.training.test_classify import gradients, loop

from longspan import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    LongT5Config,
    LongT5ForConditionalGeneration,
    pipeline,
)
from longspan.errors import InputError
from longspan.training import metrics
from longspan.training.options import TrainOptions
from longspan.training.runs import finetune, prepare

FAST = SETTINGS | {"learning_rate": 0.01}


def _with_model(encoder, folder, model):
    shutil.copytree(encoder, folder, ignore=shutil.ignore_patterns("model.safetensors", "config.json"))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def decoder(encoder, tmp_path_factory):
    """A DiffLlama of one layer with the encoder's tokenizer."""
    torch.manual_seed(0)
    size = len(AutoTokenizer.from_pretrained(encoder))
    config = DiffLlamaConfig(vocab_size=size, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
                             num_key_value_heads=2, intermediate_size=48, pad_token_id=0)  # fmt: skip
    return _with_model(encoder, tmp_path_factory.mktemp("decoder") / "model", DiffLlamaForCausalLM(config))


@pytest.fixture(scope="module")
def writer(encoder, tmp_path_factory):
    """A LongT5 of one layer with the encoder's tokenizer."""
    torch.manual_seed(0)
    size = len(AutoTokenizer.from_pretrained(encoder))
    config = LongT5Config(vocab_size=size, d_model=24, d_kv=6, d_ff=32, num_layers=1, num_heads=4, local_radius=5,
                          pad_token_id=0, eos_token_id=3, decoder_start_token_id=0)  # fmt: skip
    return _with_model(encoder, tmp_path_factory.mktemp("writer") / "model", LongT5ForConditionalGeneration(config))


def ready(task, encoder, data, **settings):
    options = TrainOptions.of({**SETTINGS, "validation_split": 0.0, **settings})
    return prepare(task, encoder, data, "unused", validation=None, options=options)


def tagged(count, seed, longest=120):
    """Words, of which `error python` are a BUG."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        words = [word if word != "error" else "the" for word in draw.choices(filler(40, 1), k=draw.randint(8, longest))]
        words = [word.strip() for word in words]
        labels = ["O"] * len(words)
        for place in range(draw.randint(1, 5), len(words) - 1, 9):
            words[place : place + 2] = ["error", "python"]
            labels[place : place + 2] = ["B-BUG", "I-BUG"]
        found.append({"words": words, "labels": labels})
    return found


class TestTag:
    def test_it_learns(self, encoder, tmp_path):
        report = finetune("tag", encoder, tagged(40, 1), tmp_path / "out", validation=tagged(12, 2), epochs=8, **FAST)
        assert report.metrics["f1"] > 0.95
        found = pipeline("token-classification", tmp_path / "out", aggregation_strategy="simple")
        text = "open the file " * 60 + "error python read the data"
        (entity,) = found(text)
        assert (entity["entity_group"], text[entity["start"] : entity["end"]]) == ("BUG", "error python")

    def test_formats_and_windows(self, encoder, tmp_path):
        data = tagged(6, 3)
        prepared = ready("tag", encoder, data)
        assert len(prepared.samples) > 6
        assert prepared.task.labels == ["O", "B-BUG", "I-BUG"]
        counts = [int((sample.targets["labels"] != -100).sum()) for sample in prepared.samples]
        # each token learns once, though windows overlap
        tokens = [
            len(prepared.task.tokenizer(" ".join(one["words"]), add_special_tokens=False)["input_ids"]) for one in data
        ]
        assert sum(counts) == sum(tokens) < sum(sample.length - 2 for sample in prepared.samples)
        conll = "\n\n".join(
            "\n".join(f"{word} NN {label}" for word, label in zip(one["words"], one["labels"], strict=True))
            for one in data
        )
        (tmp_path / "data.conll").write_text(f"-DOCSTART- -X- O\n\n{conll}\n")
        (tmp_path / "data.bio").write_text(conll.replace(" ", "\t"))
        entities = [_with_entities(one) for one in data]
        for other in (
            tmp_path / "data.conll",
            tmp_path / "data.bio",
            write_lines(tmp_path / "a.jsonl", data),
            entities,
        ):
            assert _targets(ready("tag", encoder, other)) == _targets(prepared)

    @pytest.mark.parametrize(
        ("record", "reason"),
        [
            ({"words": ["a", "b"], "labels": ["O"]}, "column 'labels' must have a label for each of the 2 words"),
            ({"words": ["a"], "labels": [3]}, "column 'labels' must hold labels as strings"),
            ({"words": "a b", "labels": ["O"]}, "column 'words' must be a list of words. Received: str"),
            ({"text": "ab", "entities": [{"start": 0, "end": 3, "label": "X"}]}, "must lie in the 2 characters"),
            ({"text": "ab", "entities": [{"start": 0, "label": "X"}]}, "must hold start, end and label"),
        ],
    )
    def test_bad_records(self, encoder, record, reason):
        (problem,) = ready("tag", encoder, [*tagged(2, 1), record]).problems
        assert problem.line == 3
        assert reason in problem.reason

    def test_bad_lines_of_columns(self, encoder, tmp_path):
        (tmp_path / "data.conll").write_text("open O\nerror B-BUG\n\nread O\nlog\n\nfile O\nerror B-BUG\n")
        prepared = ready("tag", encoder, tmp_path / "data.conll")
        assert prepared.num_documents == 2
        assert [(problem.line, problem.reason) for problem in prepared.problems] == [
            (5, "a line must have a word and a label. Received: 'log'")
        ]


def _targets(prepared):
    return sorted((sample.rows[0].ids.tolist(), sample.targets["labels"].tolist()) for sample in prepared.samples)


def _with_entities(one):
    text, entities = "", []
    for word, label in zip(one["words"], one["labels"], strict=True):
        text += " " if text else ""
        if label == "B-BUG":
            entities.append({"start": len(text), "end": 0, "label": "BUG"})
        text += word
        if label == "I-BUG":
            entities[-1]["end"] = len(text)
    return {"text": text, "entities": entities}


def questions(count, seed):
    """A planted phrase in a text of up to three windows is the answer."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        words = filler(draw.randint(10, 80), draw.randrange(1 << 30))
        text, start = plant(words, "Python error", draw.randrange(len(words)))
        found.append(
            {"question": QUESTION, "context": text, "answers": {"text": ["Python error"], "answer_start": [start]}}
        )
    return found


def _squad(data):
    paragraphs = [
        {"context": one["context"], "qas": [{"question": one["question"], "answers": [
            {"text": one["answers"]["text"][0], "answer_start": one["answers"]["answer_start"][0]}]}]} for one in data
    ]  # fmt: skip
    return {"version": "1.1", "data": [{"title": "a", "paragraphs": paragraphs}]}


class TestAnswer:
    def test_it_learns(self, encoder, tmp_path):
        (tmp_path / "train.json").write_text(json.dumps(_squad(questions(60, 1))))
        held_back = write_lines(tmp_path / "held.jsonl", questions(20, 2))
        report = finetune(
            "answer", encoder, tmp_path / "train.json", tmp_path / "out", validation=held_back, epochs=5, **FAST
        )
        assert report.documents == 60
        assert report.metrics["exact_match"] > 0.8
        answer = pipeline("question-answering", tmp_path / "out")
        text = " ".join(filler(300, 5)) + " Python error " + " ".join(filler(30, 6))
        assert answer(question=QUESTION, context=text)["answer"] == "Python error"

    def test_answers_follow_their_windows(self, encoder):
        prepared = ready("answer", encoder, questions(5, 3))
        tokenizer = prepared.task.tokenizer
        found = 0
        for sample in prepared.samples:
            start, end = (int(sample.targets[f"{side}_positions"]) for side in ("start", "end"))
            words = tokenizer.decode(sample.rows[0].ids[start : end + 1].tolist())
            assert words in ("python error", "[CLS]")
            found += words == "python error"
        assert found >= 5
        assert len(prepared.samples) > found
        assert sum(sample.weight for sample in prepared.samples) == pytest.approx(5)

    @pytest.mark.parametrize(
        ("answers", "reason"),
        [
            ({"text": ["log"], "answer_start": [0]}, "must name a place of the context where the text stands"),
            ({"text": ["log"], "answer_start": []}, "must have an answer_start for each text"),
            ([{"text": "open"}], "must hold text and answer_start"),
            ("open", "must hold answers. Received: str"),
        ],
    )
    def test_bad_records(self, encoder, answers, reason):
        data = [*questions(2, 1), {"question": "what?", "context": "open the file", "answers": answers}]
        (problem,) = ready("answer", encoder, data).problems
        assert problem.line == 3
        assert reason in problem.reason

    def test_files_that_are_not_squads(self, encoder, tmp_path):
        (tmp_path / "a.json").write_text("[1]")
        (tmp_path / "b.json").write_text('{"data": [{"paragraphs": [{"context": "x"}, {"context": "y", "qas": [7]}]}]}')
        (tmp_path / "c.json").write_text(json.dumps(_squad(questions(2, 1))))
        problems = ready("answer", encoder, [tmp_path / f"{name}.json" for name in "abc"]).problems
        assert ["no SQuAD JSON" in problems[0].reason, *(problem.reason for problem in problems[1:])] == [
            True, "data[0].paragraphs[0] must have a list qas", "data[0].paragraphs[1].qas[0] must be an object"
        ]  # fmt: skip


def test_choices(encoder, tmp_path):
    data = [
        {
            "prompt": one["text"],
            "choices": ["read the error", "read the python", "read"],
            "label": one["label"] != "broken",
        }
        for one in documents(40, seed=1)
    ]
    data = [one | {"label": int(one["label"])} for one in data]
    assert {one["label"] for one in data} == {0, 1}
    report = finetune("choose", encoder, data, tmp_path / "out", epochs=6, validation_split=0.3, **FAST)
    assert report.metrics["accuracy"] > 0.45  # three choices; the third is never right
    choose = pipeline("multiple-choice", tmp_path / "out")
    assert choose(prompt=data[0]["prompt"], choices=data[0]["choices"])["choice"] != 2
    bad = [data[0] | {"label": 7}, data[0] | {"choices": ["one"]}, data[0] | {"choices": ["a", "b"]}]
    reasons = [problem.reason for problem in ready("choose", encoder, [*data[:2], *bad]).problems]
    assert [reason.partition(" Received")[0] for reason in reasons] == [
        "column 'label' must be an index or a text of the choices.",
        "column 'choices' must hold two texts or more.",
        "column 'choices' must hold 3, as the first record does.",
    ]


def repeated(count, seed):
    """Texts of one word each."""
    draw = random.Random(seed)
    return [{"text": " ".join([draw.choice(["error", "python"])] * draw.randint(9, 150))} for _ in range(count)]


def sentences(count, seed):
    """Texts in which each word says the next."""
    draw = random.Random(seed)
    words = ["open", "the", "file", "read", "error", "log", "write", "data"]
    return [{"text": " ".join((words[draw.randrange(8) :] + words * 20)[: draw.randint(9, 150)])} for _ in range(count)]


def test_masked_words(encoder, tmp_path):
    data = repeated(30, 1)
    report = finetune("fill", encoder, data, tmp_path / "out", epochs=6, validation_split=0.2, **FAST)
    rows = [float(row["perplexity"]) for row in read_csv(tmp_path / "out" / "log.csv") if row["perplexity"]]
    assert report.metrics["perplexity"] == pytest.approx(min(rows))
    assert min(rows) < 1.5  # without looking at the context, two words give 2
    fill = pipeline("fill-mask", tmp_path / "out", top_k=1)
    assert fill("error error [MASK] error error error error error")[0]["token_str"] == "error"
    # masks differ between epochs, their number does not
    task, sample = (prepared := ready("fill", encoder, data)).task, prepared.samples[0]
    found = []
    for epoch in (0, 1, 0):
        task.epoch = epoch
        batch = task.batch([sample], torch.device("cpu"))
        found.append(batch.targets["labels"])
        assert int((found[-1] != -100).sum()) == sample.weight
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_next_words(decoder, tmp_path):
    settings = FAST | {"max_length": 40, "epochs": 5, "batch_tokens": 400, "gradient_checkpointing": True}
    report = finetune("generate", decoder, sentences(60, 1), tmp_path / "out", validation=sentences(10, 2), **settings)
    assert report.metrics["perplexity"] < 2  # of eight words
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    ids = tokenizer("[CLS] open the file read", add_special_tokens=False, return_tensors="pt")["input_ids"]
    written = model.generate(ids, max_new_tokens=3, do_sample=False)
    assert tokenizer.decode(written[0]).endswith("open the file read error log write")
    write = pipeline("text-generation", tmp_path / "out", max_new_tokens=3)
    assert write("open the file")[0]["generated_text"].startswith("open the file")
    # what two windows share is learnt once
    prepared = ready("generate", decoder, sentences(5, 3), max_length=20, stride=5)
    lengths = [len(prepared.task.tokenizer(one["text"], verbose=False)["input_ids"]) for one in sentences(5, 3)]
    assert sum(sample.weight for sample in prepared.samples) == sum(length - 1 for length in lengths)


def test_summaries(writer, tmp_path):
    data = [{"text": one["text"], "summary": "the file error"} for one in documents(24, seed=1)]
    settings = FAST | {
        "epochs": 10,
        "batch_tokens": 500,
        "max_length": 60,
        "max_target_length": 12,
        "validation_split": 0.2,
    }
    report = finetune("summarize", writer, data, tmp_path / "out", **settings)
    assert report.metrics["rougeL"] > 0.9
    summarize = pipeline("summarization", tmp_path / "out", max_new_tokens=12)
    assert summarize(data[0]["text"])[0]["summary_text"].strip() == "the file error"
    reasons = [problem.reason for problem in ready("summarize", writer, [*data[:3], {"text": "open"}]).problems]
    assert reasons == ["column 'summary' is missing; there are text"]
    # LongT5 has no limit of positions: what the tokenizer says is the default, and no bound
    long = [{"text": "open the file " * 700, "summary": "open"}]
    assert [ready("summarize", writer, long, max_length=length).samples[0].length for length in (None, 2000)] == [
        512, 2000
    ]  # fmt: skip


@pytest.mark.parametrize("task", ["tag", "answer", "fill"])
def test_accumulation_equals_one_batch(encoder, task):
    data = {"tag": tagged(8, 4), "answer": questions(8, 4), "fill": sentences(8, 4)}[task]
    whole, parts = (
        loop(encoder, data, task, batch_tokens=10000, micro_tokens=size, class_weights="balanced", validation_split=0.0)
        for size in (10000, 130)
    )
    for one in (whole, parts):
        one.model.eval()  # no dropout, which draws differently
    (step,), (many,) = whole.epoch(0), parts.epoch(0)
    assert len(step.passes) == 1
    assert len(many.passes) > 3
    assert whole.accumulate(step) == pytest.approx(parts.accumulate(many), rel=1e-6)
    expected, found = gradients(whole), gradients(parts)
    largest = max(float(each.abs().max()) for each in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=5e-6 * largest)


def test_longformers_attend_globally_by_task(minilm_dir, tmp_path):
    model = make_task_model(tmp_path / "model", "text-classification", "byte_level", minilm_dir)
    settings = {"class_weights": "balanced", "validation_split": 0.0}
    for task, data in (("classify", documents(4, seed=1)), ("answer", questions(4, 1)), ("tag", tagged(4, 1))):
        one = loop(model, data, task, **settings)
        batch = one.batch(one.epoch(0)[0].passes[0])
        given = batch.inputs.get("global_attention_mask")
        if task == "classify":
            assert given[:, 0].all()
            assert not given[:, 1:].any()
        elif task == "answer":
            length = len(one.task.tokenizer(QUESTION, add_special_tokens=False)["input_ids"])
            assert given[:, : 1 + length].all()
            assert (given.sum(1) == 1 + length).all()
        else:
            assert given is None
        assert np.isfinite(one.accumulate(one.epoch(0)[0]))


class TestMetrics:
    def test_those_of_scikit_learn(self):
        from sklearn.metrics import accuracy_score, f1_score

        draw = np.random.default_rng(0)
        truth, found = draw.integers(4, size=(2, 60))
        ours = metrics.single_label(found, truth)
        assert ours["accuracy"] == pytest.approx(accuracy_score(truth, found))
        assert ours["f1"] == pytest.approx(f1_score(truth, found, average="macro"))
        truth, found = draw.random((2, 60, 3)) > 0.6
        ours = metrics.multi_label(found, truth)
        assert ours["accuracy"] == pytest.approx(accuracy_score(truth, found))
        assert ours["f1"] == pytest.approx(f1_score(truth, found, average="macro"))
        assert ours["f1_micro"] == pytest.approx(f1_score(truth, found, average="micro"))

    def test_entities_and_answers(self):
        right = [{("PER", 0, 3), ("LOC", 5, 9)}, set()]
        found = [{("PER", 0, 3), ("LOC", 5, 8)}, {("PER", 1, 2)}]
        assert metrics.entities(found, right) == pytest.approx({"precision": 1 / 3, "recall": 1 / 2, "f1": 0.4})
        ours = metrics.answers(["The  Eiffel tower!", "in Paris", "", "x"], [["eiffel tower"], ["Paris"], [], [""]])
        assert ours == pytest.approx({"exact_match": 0.5, "f1": (1 + 2 / 3 + 1 + 0) / 4})

    def test_no_metric_divides_by_nothing(self):
        assert metrics.entities([set()], [set()])["f1"] == 0
        assert metrics.regression(np.ones(3), np.ones(3)) == {"mse": 0.0, "pearson": 0.0}


def test_windows_hold_two_tokens(decoder, tmp_path):
    with pytest.raises(InputError, match="max_length must lie in"):
        finetune("generate", decoder, sentences(3, 1), tmp_path / "out", max_length=1)
