"""Zero-shot classification by a model of entailment: the reference's results, windows for longer texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from tests.tiny_encoder import make_plain_model

import longspan
from longspan import pipeline

LABELS = ["python", "search", "open file"]
TEXTS = ["read the file line", "the model window token index", "log"]


@pytest.fixture(scope="module", params=[("contradiction", "neutral", "entailment"), ("ENTAILMENT", "not_entailment")])
def judge_dir(request, tmp_path_factory):
    folder = make_plain_model(tmp_path_factory.mktemp("judge") / "model")
    torch.manual_seed(0)
    model = longspan.BertForSequenceClassification.from_pretrained(
        folder, id2label=dict(enumerate(request.param)), ignore_mismatched_sizes=True
    )
    model.classifier.weight.data.normal_()
    model.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")  # of the reference
@pytest.mark.parametrize("multi_label", [False, True])
def test_results_equal_the_references(judge_dir, multi_label):
    ours = pipeline("zero-shot-classification", str(judge_dir))
    theirs = transformers.pipeline("zero-shot-classification", model=str(judge_dir), device="cpu")
    for labels, settings in ((LABELS, {}), ("python", {}), (LABELS, {"hypothesis_template": "the {} line"})):
        got, expected = (run(TEXTS, labels, multi_label=multi_label, **settings) for run in (ours, theirs))
        for mine, other in zip(got, expected, strict=True):
            assert (mine["sequence"], mine["labels"]) == (other["sequence"], other["labels"])
            np.testing.assert_allclose(mine["scores"], other["scores"], atol=1e-5)
    assert ours(TEXTS[0], LABELS)["labels"] == theirs(TEXTS[0], LABELS)["labels"]


def test_a_text_of_several_windows_has_the_mean_of_their_scores(judge_dir):
    model = longspan.BertForSequenceClassification.from_pretrained(judge_dir)
    classify = pipeline("zero-shot-classification", model, str(judge_dir), candidate_labels=LABELS)
    text = " ".join(TEXTS * 30)
    whole, beginning = classify(text), classify(text, on_long="truncate")
    pairs = [{"text": text, "text_pair": f"This example is {label}."} for label in LABELS]
    judge = pipeline("text-classification", model, str(judge_dir))
    index = next(index for index, name in model.config.id2label.items() if name.lower().startswith("entail"))
    logits = [
        next(row["score"] for row in rows if row["label"] == model.config.id2label[index])
        for rows in judge(pairs, top_k=None, function_to_apply="none")
    ]
    expected = np.exp(logits) / np.exp(logits).sum()
    got = dict(zip(whole["labels"], whole["scores"], strict=True))
    np.testing.assert_allclose([got[name] for name in LABELS], expected, rtol=1e-6)  # computed in float32, 6e-8 a step
    assert whole["scores"] != beginning["scores"]
    for mine, other in zip(classify(iter([text, TEXTS[0]])), (whole, classify(TEXTS[0])), strict=True):
        assert (mine["sequence"], mine["labels"]) == (other["sequence"], other["labels"])
        np.testing.assert_allclose(mine["scores"], other["scores"], atol=1e-5)  # batches differ
