"""Lightning: training in float32 and in bfloat16 by autocast, checkpoints, restoring."""

from __future__ import annotations

import lightning
import pytest
import torch
from tests.ecosystem.models import CLASSIFIERS, LANGUAGE_MODELS, batch, make
from torch.utils.data import DataLoader

pytestmark = [pytest.mark.ecosystem, pytest.mark.filterwarnings("ignore")]  # Lightning advises on workers
NAMES = [*CLASSIFIERS.values(), LANGUAGE_MODELS["longt5"], LANGUAGE_MODELS["diffllama"]]


class Task(lightning.LightningModule):
    def __init__(self, name):
        super().__init__()
        self.model = make(name)
        self.losses = []

    def training_step(self, inputs, _):
        loss = self.model(**inputs).loss
        self.losses.append(loss.detach().float())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_trains_in_both_precisions_and_restores(name, tmp_path):
    whole = batch(name)
    rows = [{key: value[index % 2] for key, value in whole.items()} for index in range(4)]
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        trainer = lightning.Trainer(
            max_epochs=1,
            precision=precision,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        task = Task(name)
        trainer.fit(task, DataLoader(rows, batch_size=2))
        losses[precision] = torch.stack(task.losses)
    assert torch.isfinite(losses["32-true"]).all()
    assert torch.allclose(losses["bf16-mixed"], losses["32-true"], rtol=0.02, atol=0.02)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    back = Task.load_from_checkpoint(tmp_path / "run.ckpt", name=name)
    for key, value in task.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key
