"""TensorBoard shows what the log holds, whatever interrupted the run."""

from __future__ import annotations

import sys

import pytest
from tests.training.conftest import SETTINGS, documents, read_csv
from tests.training.test_classify import loop

from longspan.errors import InputError
from longspan.training.checkpoints import RunFolder
from longspan.training.runs import finetune

DATA = documents(16, seed=4)
WANTED = {**SETTINGS, "epochs": 2, "save_steps": 2, "eval_steps": 2, "log_steps": 1, "batch_tokens": 300}


class _StoppedError(Exception):
    """Ends a run after three saves and a step."""


def interrupted(monkeypatch, *arguments, **settings):
    """Begin a run that is stopped when it has logged more than it has saved."""
    usual, saves = RunFolder.save, []

    def save(self, one):
        saves.append(one.position.step)
        if len(saves) == 3:
            raise _StoppedError
        usual(self, one)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", save)
        with pytest.raises(_StoppedError):
            finetune(*arguments, **settings)


def test_the_curves_are_those_of_the_log(encoder, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = ("classify", encoder, DATA, tmp_path / "out")
    interrupted(monkeypatch, *run, tensorboard=True, **WANTED)
    assert len(read_csv(tmp_path / "out" / "log.csv")) > 6
    finetune(*run, tensorboard=True, **WANTED)
    rows = read_csv(tmp_path / "out" / "log.csv")
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    curves = {"loss": "train", "learning_rate": "train", "tokens_per_second": "train", "accuracy": "eval", "f1": "eval"}
    assert set(events.Tags()["scalars"]) == {f"{kind}/{name}" for name, kind in curves.items()}
    for name, kind in curves.items():
        shown = [(event.step, event.value) for event in events.Scalars(f"{kind}/{name}")]
        expected = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        assert len(expected) > 3
        assert [step for step, _ in shown] == [step for step, _ in expected]
        assert [value for _, value in shown] == pytest.approx([value for _, value in expected], rel=1e-6)


def test_without_tensorboard(encoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        InputError, match=r"need tensorboard, .* pip install 'longspan\[train\]'. Received: tensorboard=True"
    ):
        loop(encoder, tensorboard=True)
