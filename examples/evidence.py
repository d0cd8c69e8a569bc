"""What the runs behind docs/evidence.md share: times, intervals, a loop of training, the file of results."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DRAWS = 10_000  # resamples of a bootstrap


class Record:
    """Results of a run, in a file that grows with each part.

    Args:
        path: File of results, JSON; parts that it holds stay until they are made again. None for no file.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        is_there = path is not None and path.exists()
        self.values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if is_there else {}

    def has(self, name: str, settings: dict[str, Any]) -> bool:
        """Whether the file holds a part that came from the same settings."""
        return name in self.values and self.values[name]["settings"] == json.loads(json.dumps(settings))

    @contextmanager
    def part(self, name: str, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A part to fill in; it is written with its settings and times when it is complete."""
        wall, process = time.perf_counter(), time.process_time()
        values: dict[str, Any] = {"settings": settings}
        yield values
        values |= {
            "command": shlex.join(["python", "-m", f"examples.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
            "seconds": round(time.perf_counter() - wall, 1),
            "processor_seconds": round(time.process_time() - process, 1),
            "threads": torch.get_num_threads(),
        }
        self.values[name] = values
        if self.path is not None:
            self.path.write_text(json.dumps(self.values, indent=1) + "\n", encoding="utf-8")


def interval(values: np.ndarray, seed: int = 0) -> list[float]:
    """The central 95 % of the mean of resampled values, by the bootstrap (Efron, 1979).

    Args:
        values: One number for each document, (N,).
        seed: Of the resamples.
    """
    drawn = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)), dtype=np.int32)
    return [
        round(float(bound), 4)
        for bound in np.quantile(np.asarray(values, np.float64)[drawn].mean(axis=1), [0.025, 0.975])
    ]


def share(values: np.ndarray) -> dict[str, Any]:
    """The mean of one number for each document, and its interval."""
    return {"mean": round(float(np.mean(values)), 4), "interval": interval(np.asarray(values))}


def fit(model: torch.nn.Module, loss_of: Callable[[int], Tensor], *, steps: int, rate: float, name: str = "") -> float:
    """AdamW; the rate rises over a twentieth of the steps, then falls to zero.

    Args:
        model: What learns.
        loss_of: The loss of a step, from its number.
        steps: Steps of the optimizer.
        rate: Highest learning rate.
        name: What the lines of progress begin with.

    Returns:
        The mean loss of the last tenth of the steps.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    rising = max(steps // 20, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (steps - step) / (steps - rising + 1))
    )
    losses = []
    model.train()
    for step in range(steps):
        loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            print(
                f"  {name} step {step + 1:5}: loss {np.mean(losses[-100:]):.3f}, {time.process_time():.0f} s",
                flush=True,
            )
    model.eval()
    return float(np.mean(losses[-max(steps // 10, 1) :]))
