"""Batches side by side: the same results, in their order, and none where somebody looks on."""

import contextlib
import contextvars
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import longspan
from longspan import SentenceEncoder
from longspan.pipelines.backends.torch_lanes import most_lanes, side_by_side
from longspan.pipelines.run.batching import plan_for, run_plan

TEXTS = [f"Line {i} of a long log, with a few words more. " * (1 + i % 7) for i in range(150)]


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model():
    config = longspan.BertConfig(vocab_size=50, hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
    return longspan.BertModel(config).eval()


def backend(lanes, calls=None):
    return SimpleNamespace(
        batch_tokens=100,
        fixed_shapes=False,
        max_positions=None,
        num_lanes=lanes,
        measure_batches=lambda work: False,
        side_by_side=lambda run, batches, number: (calls.append(number), map(run, batches))[1],
    )


def test_results_come_in_order_from_threads_of_their_own():
    where = []

    def run(number):
        time.sleep(0.002 * (number % 3))
        where.append((threading.current_thread().name, torch.get_num_threads()))
        return number**2

    assert list(side_by_side(run, range(7), 2)) == [number**2 for number in range(7)]
    lanes, (name, threads) = where[:6], where[6]
    assert {each for each, _ in lanes} == {"longspan-lane_0", "longspan-lane_1"}
    assert {each for _, each in lanes} == {1}
    assert (name, threads) == (threading.current_thread().name, 2)  # the last one has no neighbour


def test_threads_to_come_have_all_of_pytorch():
    """PyTorch keeps for them what a thread has set for itself."""
    list(side_by_side(lambda _: None, range(4), 2))
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [2]
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are told of as Linux does")
def test_whoever_forks_afterwards_meets_no_thread_on_its_way_out():
    left = torch.ones(64, 64)
    for _ in range(50):
        native_ids = set(side_by_side(lambda _: (left @ left, threading.get_native_id())[1], range(4), 2))
        assert not native_ids & {int(each.name) for each in Path("/proc/self/task").iterdir()}


def test_an_error_ends_the_run():
    begun = []

    def run(number):
        begun.append(number)
        if number == 1:
            raise KeyError("broken")
        time.sleep(0.05)

    with pytest.raises(KeyError, match="broken"):
        list(side_by_side(run, range(100), 2))
    assert len(begun) < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("longspan-lane")]


def test_whoever_stops_reading_stops_the_lanes():
    begun = []
    results = side_by_side(begun.append, range(100), 2)
    next(results)
    results.close()
    assert len(begun) < 10


def test_lanes_see_the_callers_variables():
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(5)
    assert list(side_by_side(lambda _: variable.get(), range(4), 2)) == [5] * 4


def test_a_model_that_somebody_looks_into_has_one_lane(model):
    assert most_lanes(model) == 2
    for watch in (
        longspan.plain(),
        torch.autocast("cpu"),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
        torch.utils.flop_counter.FlopCounterMode(display=False),
    ):
        with watch:
            assert most_lanes(model) == 1
    with contextlib.closing(SimpleNamespace(close=model.pooler.register_forward_hook(lambda *_: None).remove)):
        assert most_lanes(model) == 1
    assert most_lanes(model) == 2
    torch.set_num_threads(1)
    assert most_lanes(model) == 1


@pytest.mark.parametrize(
    ("lengths", "budget", "lanes"),
    [([10] * 20, None, 2), ([10] * 19, None, 1), ([60] * 10, None, 1), ([10] * 20, 200, 1), ([], None, 1)],
    ids=["work enough", "too little", "too long for a share", "a larger budget", "none"],
)
def test_lanes_share_the_budget(lengths, budget, lanes):
    calls = []
    found = backend(2, calls)
    plan = plan_for(found, lengths, budget)
    assert plan.lanes == lanes
    assert all(rows * length <= (budget or 100) // lanes for rows, length in (batch.shape for batch in plan.batches))
    results = list(run_plan(found, plan, lambda batch: len(batch.indices)))
    assert sum(number for _, number in results) == len(lengths)
    assert calls == ([2] if lanes == 2 else [])


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_vectors_are_the_same(dtype, monkeypatch):
    encoder = SentenceEncoder(dtype=dtype)
    used = []
    original = type(encoder._backend).side_by_side
    monkeypatch.setattr(
        type(encoder._backend), "side_by_side", lambda self, *given: used.append(1) or original(self, *given)
    )
    vectors = encoder.encode(TEXTS)
    assert used == [1]
    torch.set_num_threads(1)
    np.testing.assert_allclose(vectors, encoder.encode(TEXTS), atol={"float32": 1e-6, "int8": 1e-2}[dtype])
    assert used == [1]


def test_labels_are_the_same(tmp_path):
    config = longspan.BertConfig(
        vocab_size=30522, hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64, num_labels=3
    )
    torch.manual_seed(0)
    longspan.BertForSequenceClassification(config).save_pretrained(tmp_path)
    SentenceEncoder().tokenizer.save_pretrained(tmp_path)
    classifier = longspan.pipeline("text-classification", str(tmp_path), top_k=None)
    together = classifier(TEXTS)
    torch.set_num_threads(1)
    for one, other in zip(together, classifier(TEXTS), strict=True):
        assert [each["label"] for each in one] == [each["label"] for each in other]
        np.testing.assert_allclose([each["score"] for each in one], [each["score"] for each in other], atol=1e-6)
