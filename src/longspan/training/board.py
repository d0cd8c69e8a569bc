"""Curves for TensorBoard beside the log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longspan.errors import InputError

FOLDER = "tensorboard"


def writer_class() -> Any:
    """PyTorch's writer of TensorBoard's files; raises `InputError` if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise InputError(
            "The files of TensorBoard need tensorboard, which is not installed: pip install 'longspan[train]'. "
            "Received: tensorboard=True"
        ) from error
    return SummaryWriter


class Board:
    """What the log holds, as curves over the steps.

    Args:
        output: Folder of the result; the files go to `tensorboard/` in it.
        step: Steps that are done; what an interrupted run wrote after them is not shown.
    """

    def __init__(self, output: Path, step: int) -> None:
        self._writer = writer_class()(str(output / FOLDER), purge_step=step + 1)

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Add a point to the curves `kind/name`."""
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """Finish the files."""
        self._writer.close()
