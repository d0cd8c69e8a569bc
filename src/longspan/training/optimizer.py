"""The optimizer, its schedule, and LoRA."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from longspan.errors import InputError
from longspan.training.batches import rate_factor
from longspan.training.options import TrainOptions


def make_optimizer(model: nn.Module, options: TrainOptions) -> AdamW:
    """AdamW, a step in one pass over memory, on what is trained; biases and norms, of one axis, do not decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [each for each in trained if each.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [each for each in trained if each.dim() <= 1], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], lr=options.rate, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, num_steps: int, warmup: float) -> LambdaLR:
    """Linear rise over the first part of the steps, then linear fall to 0 after the last."""
    return LambdaLR(optimizer, lambda step: float(rate_factor(step, num_steps, warmup)))


def with_adapters(model: Any, rank: int, seed: int) -> Any:
    """The model with LoRA adapters beside the projections that PEFT's tables name; its new head is trained too.

    Raises:
        InputError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise InputError(
            f"LoRA needs peft, which is not installed: pip install 'longspan[train]'. Received: lora={rank}"
        ) from error
    from longspan.integrations.peft import register_target_modules

    register_target_modules()
    report = model.load_report  # None for a lengthened model, in which nothing was drawn
    drawn = [] if report is None else [*report.initialised, *(key for key, *_ in report.mismatched)]
    heads = sorted({key.removeprefix(f"{model.base_model_prefix}.").partition(".")[0] for key in drawn})
    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, modules_to_save=heads or None))
