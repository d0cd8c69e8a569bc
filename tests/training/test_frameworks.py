"""Training in Flax and Keras: the steps of PyTorch, from end to end, after interruptions, on several devices."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.keras.alone import LEAN
from tests.training import frameworks
from tests.training.conftest import SETTINGS, documents, read_csv, write_lines
from tests.training.test_tasks import FAST, questions, tagged

from longspan import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    LongT5Config,
    LongT5ForConditionalGeneration,
    pipeline,
)
from longspan.errors import InputError
from longspan.training.backends import load_backend
from longspan.training.run_loop import RunLoop
from longspan.training.runs import finetune, plan_run

ROOT = Path(__file__).parents[2]
ENCODER_TASKS = ("classify", "tag", "answer", "choose", "fill")
TASKS = (*ENCODER_TASKS, "generate", "summarize")
#: all tasks and real kills, which take minutes: `LONGSPAN_HARDENING=long`
IS_LONG = os.environ.get("LONGSPAN_HARDENING") == "long"
HELD_BACK = frameworks.even(12, seed=2)


def data_of(task):
    """Some records of a task."""
    texts = frameworks.even(4, seed=3)
    return {
        "classify": lambda: [one | {"label": "ab"[number > 2]} for number, one in enumerate(texts)],
        "tag": lambda: tagged(4, 4, longest=60),
        "answer": lambda: questions(4, 4),
        "embed": lambda: [
            {"anchor": one["text"], "positive": other["text"]} for one, other in itertools.pairwise(texts)
        ],
        "choose": lambda: [{"prompt": one["text"], "choices": ["read", "write", "open"], "label": 1} for one in texts],
        "summarize": lambda: [one | {"summary": "the file error " * (1 + number)} for number, one in enumerate(texts)],
    }.get(task, lambda: texts)()


@pytest.fixture(scope="module")
def plain(encoder, tmp_path_factory):
    """A small encoder without dropout."""
    return frameworks.without_dropout(encoder, tmp_path_factory.mktemp("plain") / "encoder")


@pytest.fixture(scope="module")
def models(plain, tmp_path_factory):
    """A model for each task, without dropout."""
    folder = tmp_path_factory.mktemp("writers")
    size = len(AutoTokenizer.from_pretrained(plain))
    decoder = DiffLlamaConfig(vocab_size=size, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
                              num_key_value_heads=2, intermediate_size=48, pad_token_id=0)  # fmt: skip
    writer = LongT5Config(vocab_size=size, d_model=24, d_kv=6, d_ff=32, num_layers=1, num_heads=4, local_radius=5,
                          pad_token_id=0, eos_token_id=3, decoder_start_token_id=0, dropout_rate=0.0)  # fmt: skip
    return dict.fromkeys([*ENCODER_TASKS, "embed"], plain) | {
        "generate": frameworks.with_model(plain, folder / "decoder", DiffLlamaForCausalLM(decoder)),
        "summarize": frameworks.with_model(plain, folder / "writer", LongT5ForConditionalGeneration(writer)),
    }


@pytest.mark.skipif(not IS_LONG, reason="takes minutes")
@pytest.mark.parametrize("task", TASKS)
def test_a_step_is_that_of_pytorch(models, tmp_path, task):
    settings = {"class_weights": "balanced"} if task in ("classify", "tag") else {}
    settings |= {} if task == "answer" else frameworks.TWO_WINDOWS
    data = data_of(task)
    model = frameworks.with_head(task, models[task], data, tmp_path / "model", **settings)
    expected = frameworks.step_of_torch(frameworks.make("torch", task, model, data, **settings))
    for framework, step in frameworks.STEPS.items():
        frameworks.assert_same_step(step(frameworks.make(framework, task, model, data, **settings)), expected)


@pytest.mark.parametrize("framework", ["flax", "keras"])
def test_terms_of_losses_are_those_of_pytorch(framework):
    import torch

    ours, torchs = load_backend(framework), load_backend("torch")
    draw = np.random.default_rng(0)
    logits, marks = (9 * draw.normal(size=(5, 3))).astype(np.float32), (draw.random((5, 3)) > 0.5).astype(np.float32)
    labels, weights, mask = np.array([0, 2, -100, 1, 2]), np.array([0.5, 2.0, 1.5]), marks > 0
    calls = {
        "cross_entropy": [(logits, labels), (logits, labels, weights)],
        "binary_cross_entropy": [(logits, marks, weights)],
        "squared_error": [(logits[:, :1], marks[:, 0])],
        "hide": [(logits, mask), (logits, None)],
        "cosines": [(logits.reshape(1, 5, 3),), (np.stack([logits, marks]),)],
        "cosines_of_pairs": [(np.stack([logits, marks]),)],
        "total": [(logits,), (logits[:, 0], marks[:, 0])],
    }
    for name, arguments in calls.items():
        for given in arguments:
            tensors = [torch.from_numpy(one) if one is not None and one is not weights else one for one in given]
            expected, found = getattr(torchs, name)(*tensors), np.asarray(getattr(ours, name)(*given))
            np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


class _KilledError(Exception):
    pass


def killed_at(monkeypatch, step):
    """Let runs of Flax and Keras end behind so many steps and one that nothing remembers."""
    after_step = RunLoop.after_step

    def killed(loop, loss):
        if loop.position.step == step:
            raise _KilledError
        after_step(loop, loss)

    monkeypatch.setattr(RunLoop, "after_step", killed)


@pytest.fixture(scope="module")
def logs(plain, tmp_path_factory):
    """Rows of the log of three steps in each framework, from the same weights; Flax and Keras were interrupted."""
    folder = tmp_path_factory.mktemp("logs")
    data = frameworks.even(9, seed=5)
    settings = FAST | {"epochs": 2, "max_steps": 3, "batch_tokens": 200, "micro_tokens": 100, "log_steps": 1}
    settings |= {"validation_split": 0.0, "save_steps": 1, **frameworks.TWO_WINDOWS}
    model = frameworks.with_head("classify", plain, data, folder / "model", **settings)
    for framework in ("torch", "flax", "keras"):
        run = ("classify", model, data, folder / framework)
        if framework != "torch":
            with pytest.MonkeyPatch.context() as patch:
                killed_at(patch, 2)
                with pytest.raises(_KilledError):
                    finetune(*run, framework=framework, **settings)
        finetune(*run, framework=framework, **settings)
    return {framework: read_csv(folder / framework / "log.csv") for framework in ("torch", "flax", "keras")}


@pytest.mark.parametrize("framework", ["flax", "keras"])
def test_the_optimizer_is_that_of_pytorch(logs, framework):
    for name in ("step", "epoch", "tokens", "loss", "learning_rate"):
        found, expected = ([float(row[name]) for row in logs[which]] for which in (framework, "torch"))
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)
    losses = [float(row["loss"]) for row in logs["torch"]]
    assert abs(losses[2] - losses[0]) > 1e-3  # the optimizer has done something


@pytest.mark.skipif(not IS_LONG, reason="takes minutes")
@pytest.mark.parametrize("framework", ["flax", "keras"])
def test_it_learns_and_resumes_to_the_same_bits(encoder, tmp_path, monkeypatch, framework):
    sizes = {"batch_tokens": 200, "micro_tokens": 100, **frameworks.TWO_WINDOWS}
    settings = FAST | {"framework": framework, "epochs": 3, "save_steps": 2, **sizes}
    run = ("classify", encoder, frameworks.even(30, seed=1))
    report = finetune(*run, tmp_path / "whole", validation=HELD_BACK, **settings)
    assert report.metrics["accuracy"] > 0.9
    classify = pipeline("text-classification", tmp_path / "whole", **frameworks.TWO_WINDOWS)  # in PyTorch
    found = [result["label"] for result in classify([record["text"] for record in HELD_BACK])]
    right = np.mean([label == record["label"] for label, record in zip(found, HELD_BACK, strict=True)])
    assert right == pytest.approx(report.metrics["accuracy"])

    killed_at(monkeypatch, 4)  # the step behind the checkpoint is lost
    with pytest.raises(_KilledError):
        finetune(*run, tmp_path / "killed", validation=HELD_BACK, **settings)
    monkeypatch.undo()
    assert (tmp_path / "killed" / ".longspan-train").exists()
    again = finetune(*run, tmp_path / "killed", validation=HELD_BACK, **settings)
    assert again.metrics == report.metrics
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = [
        [(row["step"], row["loss"]) for row in read_csv(tmp_path / name / "log.csv")] for name in ("whole", "killed")
    ]
    assert rows[0] == rows[1]
    assert not list((tmp_path / "killed").glob(".*"))


#: task -> the pipeline that its output serves, and what that is asked
SERVED = {
    "classify": ("text-classification", lambda one: (one["text"],)),
    "tag": ("token-classification", lambda one: (" ".join(one["words"]),)),
    "fill": ("fill-mask", lambda one: (f"{one['text'][:80]} [MASK]",)),
    "generate": ("text-generation", lambda one: (one["text"][:40],)),
    "summarize": ("summarization", lambda one: (one["text"],)),
}


@pytest.mark.skipif(not IS_LONG, reason="takes minutes")
@pytest.mark.parametrize("task", [*TASKS, "embed"])
@pytest.mark.parametrize("framework", ["flax", "keras"])
def test_a_whole_run_of_each_task(models, tmp_path, task, framework):
    data, sizes = data_of(task), {} if task == "answer" else frameworks.TWO_WINDOWS
    settings = FAST | {"framework": framework, "epochs": 3, "log_steps": 1, **sizes}
    report = finetune(task, models[task], data, tmp_path / "out", validation=data, tensorboard=True, **settings)
    assert report.metrics
    losses = [float(row["loss"]) for row in read_csv(tmp_path / "out" / "log.csv") if row["loss"]]
    assert losses[-1] < losses[0]
    assert list((tmp_path / "out" / "tensorboard").glob("events.*"))
    if task in SERVED:
        kind, asked = SERVED[task]
        short = {"max_new_tokens": 4} if task in ("generate", "summarize") else frameworks.TWO_WINDOWS
        results = [
            pipeline(kind, tmp_path / "out", framework=one)(*asked(data[0]), **short) for one in ("torch", framework)
        ]
        assert_alike(*results)


def assert_alike(found, expected) -> None:
    """Results of two frameworks: numbers to 1e-4, all else equal."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-4)
    else:
        assert found == expected


def test_keras_takes_a_single_pass_for_what_it_is(plain):
    from longspan.training.keras_loop import Passes

    data = data_of("classify")
    loop = frameworks.make("keras", "classify", plain, data, micro_tokens=10000)
    passes = Passes(loop, loop.epoch(0))
    peeked = passes[0]  # as TensorFlow does for the shapes of all
    passes.on_epoch_begin()
    assert len(passes) == 1
    assert {name: each.shape for name, each in peeked[0].items()} == {
        name: each.shape for name, each in passes[0][0].items()
    }


def test_layers_of_keras_are_computed_again_with_the_same_dropout():
    frameworks.assert_recomputed_dropout_is_the_same()


@pytest.mark.parametrize("framework", ["flax", "keras"])
def test_adapters_are_those_of_peft(plain, tmp_path, framework):
    """A step of adapters, and the plain model that is written; in Keras with layers that are computed again."""
    import jax
    import torch

    data, settings = data_of("classify"), {**frameworks.TWO_WINDOWS, "lora": 2}
    new_head = [frameworks.make(one, "classify", plain, data, **settings) for one in ("torch", framework)]
    sizes = sum(number for number, _, is_trained in new_head[1].parameter_sizes() if is_trained)
    assert sizes == sum(each.numel() for each in new_head[0].base.parameters() if each.requires_grad)
    model = frameworks.with_head("classify", plain, data, tmp_path / "model", **frameworks.TWO_WINDOWS)
    torchs = frameworks.make("torch", "classify", model, data, **settings)
    ours = frameworks.make(framework, "classify", model, data, gradient_checkpointing=framework == "keras", **settings)
    trained = {name: each for name, each in torchs.base.named_parameters() if each.requires_grad}
    draw = torch.Generator().manual_seed(1)
    for each in trained.values():
        each.data = torch.randn(each.shape, generator=draw) * 0.3
    assert frameworks.take_adapters(ours, trained) == len(trained) == 4
    loss, moved, largest = frameworks.step_of_torch(torchs)
    step = frameworks.loss_of_keras_step if framework == "keras" else lambda one: frameworks.step_of_flax(one)[0]
    assert abs(step(ours) - loss) < 1e-5 * loss
    for name, each in trained.items():
        each.data = torch.from_numpy(moved[name])
    merged = torchs.model.merge_and_unload().state_dict()
    ours.folder.path = tmp_path
    if framework == "flax":
        kept = ours._state
        ours.save()
        ours.params, ours.moments = (jax.tree.map(np.zeros_like, each) for each in (ours.params, ours.moments))
        ours.restore(ours.folder.newest())
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, ours._state, kept)))
    ours.save_best()
    ours.write_best(tmp_path / "out")
    written = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").state_dict()
    assert written.keys() == merged.keys()
    for name, weight in merged.items():
        np.testing.assert_allclose(written[name], weight, rtol=0, atol=1e-5 * max(1, largest), err_msg=name)


@pytest.mark.skipif(not IS_LONG, reason="takes minutes")
@pytest.mark.parametrize("framework", ["flax", "keras"])
def test_killed_runs_resume_to_the_same_bits(encoder, tmp_path, framework):
    data = write_lines(tmp_path / "data.jsonl", frameworks.even(16, seed=9))
    (tmp_path / "runs").mkdir()
    moments = [("call", part / 10) for part in (2, 5, 9)]
    line = [sys.executable, "-m", "tests.hardening.train_kill_worker", tmp_path / "runs", encoder, data]
    line = [*map(str, line), json.dumps(moments), framework]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"code"')]
    assert found == [{"code": 137, "again": 0, "unequal": [], "left": []}] * len(moments)


@pytest.mark.parametrize("framework", ["flax", "keras"])
def test_the_plan_states_memory_and_time(plain, tmp_path, framework):
    run = ("classify", plain, frameworks.even(4, seed=8), tmp_path / "out")
    plan, torch_plan = (plan_run(*run, framework=one, **SETTINGS) for one in (framework, "torch"))
    assert (plan.parameters, plan.weights_bytes, plan.steps) == (
        torch_plan.parameters, torch_plan.weights_bytes, torch_plan.steps
    )  # fmt: skip
    assert plan.seconds > 0
    assert framework == "keras" or plan.activations_bytes > 0
    assert not (tmp_path / "out").exists()


def test_devices_and_backends(plain, tmp_path):
    """A step of classify, and in Keras one of embed, of the Longformer that longer windows make of the model."""
    data = data_of("classify")
    model = frameworks.with_head("classify", plain, data, tmp_path / "model", **frameworks.TWO_WINDOWS)
    runs = {
        "classify": (str(model), data, frameworks.TWO_WINDOWS),
        "embed": (str(plain), data_of("embed"), {"max_length": 72, "stride": 0, "micro_tokens": 300}),
    }
    expected = {}
    for task, (source, records, settings) in runs.items():
        loss, weights, largest = frameworks.step_of_torch(frameworks.make("torch", task, source, records, **settings))
        np.savez(tmp_path / f"{task}.npz", **weights)
        expected[task] = loss, largest
    (tmp_path / "runs.json").write_text(json.dumps([runs, expected]))
    worker = Path(__file__).with_name("framework_worker.py")
    line = [sys.executable, str(LEAN), str(worker), str(tmp_path)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == ["mesh", "keras", "embed"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"framework": "flax", "shard": True}, "shard needs framework='torch'. Received: framework='flax'"),
        ({"framework": "keras", "shard": True}, "shard needs framework='torch'. Received: framework='keras'"),
        ({"framework": "jax", "precision": "float16"}, "float16 needs framework='torch', or precision='bfloat16'"),
        ({"framework": "tf", "devices": 2}, "devices needs KERAS_BACKEND=jax, framework='flax' or the processes"),
        ({"devices": 2}, "devices needs framework='flax' or 'keras', or the processes of accelerate launch"),
        ({"framework": "flax", "devices": 99}, "devices must be at most the 1 that JAX finds. Received: devices=99"),
        ({"framework": "mxnet"}, "framework must be one of torch, flax, keras. Received: framework='mxnet'"),
    ],
)
def test_what_a_framework_lacks_is_said(encoder, tmp_path, settings, reason):
    with pytest.raises(InputError) as error:
        finetune("classify", encoder, documents(4, seed=1, longest=20), tmp_path / "out", **settings)
    assert reason in str(error.value)
