"""Fine-tuning: documents with labels, windows with targets, the loop, what it writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lazy_loader

if TYPE_CHECKING:
    from longspan.training.runs import TrainReport as TrainReport
    from longspan.training.runs import finetune as finetune
    from longspan.training.runs import plan_run as plan_run

__getattr__: Callable[[str], Any]
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"runs": ["TrainReport", "finetune", "plan_run"]}
)
