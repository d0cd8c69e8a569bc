"""Training for classification from end to end: it learns, loads, resumes, and refuses what it cannot use."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests.training.conftest import SETTINGS, documents, read_csv, write_lines
from typer.testing import CliRunner

from longspan import AutoModelForSequenceClassification, pipeline
from longspan.cli.main import app
from longspan.cli.running import run
from longspan.errors import InputError
from longspan.training.batches import plan_epoch
from longspan.training.loop import Loop
from longspan.training.options import TrainOptions
from longspan.training.runs import finetune, plan_run, prepare

HELD_BACK = documents(40, seed=2)


def loop(encoder, data=None, task="classify", **settings):
    options = TrainOptions.of({**SETTINGS, **settings})
    return Loop(
        prepare(task, encoder, data or documents(12, seed=3), "unused", validation=[], options=options),
        show_progress=False,
    )


def gradients(one):
    return {
        name: parameter.grad.clone() for name, parameter in one.base.named_parameters() if parameter.grad is not None
    }


@pytest.fixture(scope="module")
def trained(encoder, tmp_path_factory):
    """A folder with a model that has learnt the documents, and the report."""
    output = tmp_path_factory.mktemp("trained") / "out"
    report = finetune("classify", encoder, documents(80, seed=1), output, validation=HELD_BACK, epochs=4, **SETTINGS)
    return output, report


class TestResult:
    def test_it_learns(self, trained):
        output, report = trained
        # by luck 36 of 40 are right in one of 10^7 tries
        assert report.metrics["accuracy"] > 0.9
        assert report.documents == 80
        assert report.validated == 40
        classify = pipeline("text-classification", output)
        found = [result["label"] for result in classify([record["text"] for record in HELD_BACK])]
        right = np.mean([label == record["label"] for label, record in zip(found, HELD_BACK, strict=True)])
        assert right == pytest.approx(report.metrics["accuracy"])

    def test_the_folder_is_whole(self, trained):
        output, report = trained
        assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "training.json", "log.csv"} <= {
            path.name for path in output.iterdir()
        }
        assert not list(output.glob(".*"))
        model = AutoModelForSequenceClassification.from_pretrained(output)
        assert model.config.id2label == {0: "broken", 1: "fine"}
        assert "longspan classify" in (output / "README.md").read_text()
        rows = read_csv(output / "log.csv")
        assert sum(bool(row["accuracy"]) for row in rows) == 4
        assert int(rows[-1]["step"]) == report.steps
        assert float(rows[0]["loss"]) > float([row for row in rows if row["loss"]][-1]["loss"])

    def test_the_command_classifies_with_it(self, trained, tmp_path, capsys):
        output, _ = trained
        data = write_lines(tmp_path / "new.jsonl", HELD_BACK[:4])
        assert run(app, ["classify", str(data), "--model", str(output), "--output", str(tmp_path / "out.csv")]) == 0
        labels = [row["label"] for row in read_csv(tmp_path / "out.csv")]
        assert labels == [record["label"] for record in HELD_BACK[:4]]

    def test_the_same_call_has_nothing_left_to_do(self, encoder, trained):
        output, report = trained
        again = {"validation": HELD_BACK, "epochs": 4, **SETTINGS}
        (output / ".longspan-train").mkdir()  # as if it had been killed at the very end
        assert finetune("classify", encoder, documents(80, seed=1), output, **again).was_complete
        assert not list(output.glob(".*"))
        with pytest.raises(InputError, match="output must be a new folder, or be given with overwrite"):
            finetune("classify", encoder, documents(80, seed=1), output, **again | {"epochs": 5})
        assert json.loads((output / "training.json").read_text())["metrics"] == report.metrics


class TestSteps:
    def test_every_sample_is_read_once_an_epoch(self):
        lengths = np.random.default_rng(0).integers(1, 900, 500).tolist()
        for epoch in range(2):
            steps = plan_epoch(lengths, lengths, epoch=epoch, seed=1, batch_tokens=2000, micro_tokens=500)
            read = [index for step in steps for indices in step.passes for index in indices]
            assert sorted(read) == list(range(500))
            assert max(sum(lengths[i] for one in step.passes for i in one) for step in steps) <= 2000
            passes = [[lengths[i] for i in one] for step in steps for one in step.passes]
            assert all(max(one) * len(one) <= 500 or len(one) == 1 for one in passes)
            # grouped by length, little of what is read is padding
            assert sum(max(one) * len(one) for one in passes) < 1.1 * sum(lengths)

    @pytest.mark.parametrize("problem", ["single", "regression", "multi"])
    def test_accumulation_equals_one_batch(self, encoder, problem):
        labels = {"single": ["a", "a", "b"], "regression": [1.5, -2, 0.25], "multi": ["a|b", "b", "a"]}[problem]
        data = [record | {"label": labels[index % 3]} for index, record in enumerate(documents(9, seed=3))]
        settings = {"problem": problem, "class_weights": "balanced", "batch_tokens": 10000}
        whole = loop(encoder, data, micro_tokens=10000, **settings)
        parts = loop(encoder, data, micro_tokens=130, **settings)
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

    def test_a_document_counts_once_however_long_it_is(self, encoder):
        one = loop(encoder, validation_split=0.0)
        samples = one._prepared.samples
        assert len(samples) > 12
        assert sum(sample.weight for sample in samples) == pytest.approx(12)

    def test_weighted_classes_are_those_of_torch(self, encoder):
        data = [record | {"label": "ab"[index > 8]} for index, record in enumerate(documents(12, seed=4, longest=30))]
        one = loop(encoder, data, class_weights="balanced", validation_split=0.0, batch_tokens=10000)
        one.model.eval()
        (step,) = one.epoch(0)
        batch = one.batch(step.passes[0])
        with torch.no_grad():
            logits = one.model(**batch.inputs).logits
        weights = torch.tensor([12 / (2 * 9), 12 / (2 * 3)])
        expected = torch.nn.functional.cross_entropy(logits, batch.targets["labels"], weight=weights)
        assert one.accumulate(step) == pytest.approx(float(expected), rel=1e-5)

    def test_checkpointed_activations_change_nothing(self, encoder):
        losses = []
        for settings in ({}, {"gradient_checkpointing": True}):
            one = loop(encoder, **settings)
            losses.append(([one.accumulate(step) for step in one.epoch(0)], gradients(one)))
        assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-6)
        for name, gradient in losses[0][1].items():
            torch.testing.assert_close(losses[1][1][name], gradient, rtol=1e-4, atol=1e-6)


class TestVariants:
    def test_several_labels(self, encoder, tmp_path):
        data = [record | {"label": [record["label"], "text"] if index % 3 else [record["label"]]}
                for index, record in enumerate(documents(40, seed=5, longest=40))]  # fmt: skip
        report = finetune("classify", encoder, data, tmp_path / "out", epochs=3, **SETTINGS)
        assert set(report.metrics) == {"accuracy", "f1", "f1_micro", "step"}
        config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config
        assert config.problem_type == "multi_label_classification"
        assert config.num_labels == 3

    def test_numbers(self, encoder, tmp_path):
        data = [record | {"label": -1.0 if record["label"] == "fine" else 1.0} for record in documents(60, seed=6)]
        settings = {"problem": "regression", "epochs": 5, "patience": 2, "precision": "bfloat16", **SETTINGS}
        report = finetune("classify", encoder, data, tmp_path / "out", validation_split=0.3, **settings)
        assert report.metrics["mse"] < 0.5  # guessing the mean gives 1
        score = pipeline("text-classification", tmp_path / "out")(data[0]["text"])[0]["score"]
        assert abs(score - data[0]["label"]) < abs(score + data[0]["label"])

    def test_adapters(self, encoder, tmp_path):
        settings = {**SETTINGS, "lora": 4, "learning_rate": 0.02, "epochs": 4}
        report = finetune(
            "classify", encoder, documents(60, seed=1), tmp_path / "out", validation=HELD_BACK, **settings
        )
        assert report.metrics["accuracy"] > 0.9
        classify = pipeline("text-classification", tmp_path / "out")
        found = [result["label"] for result in classify([record["text"] for record in HELD_BACK])]
        right = np.mean([label == record["label"] for label, record in zip(found, HELD_BACK, strict=True)])
        assert right == pytest.approx(report.metrics["accuracy"])
        one = loop(encoder, lora=4)
        trained = {name for name, parameter in one.model.named_parameters() if parameter.requires_grad}
        assert all("lora_" in name or "classifier" in name or "pooler" in name for name in trained)

    def test_it_stops_early_and_keeps_the_best(self, encoder, tmp_path):
        draws = [
            record | {"label": "ab"[index % 7 < 3]} for index, record in enumerate(documents(30, seed=7, longest=20))
        ]
        report = finetune("classify", encoder, draws, tmp_path / "out", epochs=50, patience=2, **SETTINGS)
        rows = [row for row in read_csv(tmp_path / "out" / "log.csv") if row["accuracy"]]
        assert len(rows) < 50
        best = max(float(row["accuracy"]) for row in rows)
        assert report.metrics["accuracy"] == pytest.approx(best)
        assert [float(row["accuracy"]) < best or int(row["step"]) > report.metrics["step"] for row in rows][-2:] == [
            True
        ] * 2


def test_the_plan_states_memory_and_time(encoder, tmp_path):
    data = write_lines(tmp_path / "data.jsonl", documents(20, seed=8))
    plan = plan_run("classify", encoder, str(data), tmp_path / "out", **SETTINGS)
    counted = sum(each.numel() for each in AutoModelForSequenceClassification.from_pretrained(encoder).parameters())
    assert plan.parameters == plan.trained == counted
    assert plan.weights_bytes == 4 * counted
    assert plan.bytes > 16 * counted
    assert plan.seconds > 0
    small = plan_run("classify", encoder, str(data), tmp_path / "out", micro_tokens=64, lora=2, **SETTINGS)
    assert small.activations_bytes < plan.activations_bytes
    assert small.optimizer_bytes < plan.optimizer_bytes / 5
    line = ["train", "classify", str(data), "--model", str(encoder), "--output", str(tmp_path / "out"), "--plan"]
    said = CliRunner().invoke(app, line)
    assert "memory:" in said.output
    assert "minutes" in said.output
    assert not (tmp_path / "out").exists()
