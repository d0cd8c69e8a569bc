"""What a training run can be told. Each field says what it is; the command line and the documentation read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Self

from longspan.errors import InputError

PRECISIONS = ("float32", "bfloat16", "float16")
PROBLEMS = ("auto", "single", "multi", "regression")
CLASS_WEIGHTS = ("none", "balanced")
ON_LONG = ("window", "truncate", "error")
#: framework -> option that it lacks -> what has it
_LACKING: dict[str, dict[str, str]] = {
    "torch": {"devices": "framework='flax' or 'keras', or the processes of accelerate launch"},
    "flax": {
        "shard": "framework='torch'",
        "float16": "framework='torch', or precision='bfloat16'",
    },
    "keras": {
        "shard": "framework='torch'",
        "float16": "framework='torch', or precision='bfloat16'",
    },
}
_LEARNING_RATE, _LORA_LEARNING_RATE = 5e-5, 2e-4


@dataclass(frozen=True)
class TrainOptions:
    """Settings of a training run.

    Raises:
        InputError: a value breaks a rule.
    """

    epochs: Annotated[int, "Times that all documents are read."] = 3
    max_steps: Annotated[int | None, "End after so many steps."] = None
    batch_tokens: Annotated[int, "Tokens of a step, of all its documents and processes together."] = 8192
    micro_tokens: Annotated[int, "Most positions of a forward pass; a step takes as many passes as it needs."] = 8192
    learning_rate: Annotated[float | None, "Highest learning rate; default 5e-5, with LoRA 2e-4."] = None
    weight_decay: Annotated[float, "Decay of weights, biases and norms excepted."] = 0.01
    warmup: Annotated[float, "Part of the steps in which the rate rises; then it falls to 0."] = 0.06
    max_grad_norm: Annotated[float, "Gradients are scaled down to this norm."] = 1.0
    seed: Annotated[int, "Of the split, the order, dropout and new heads."] = 0
    precision: Annotated[str, "Type of the products: float32, bfloat16 or float16."] = "float32"
    gradient_checkpointing: Annotated[bool, "Compute activations again in the backward pass, to save memory."] = False
    shard: Annotated[bool, "Split weights, gradients and moments over the processes (FSDP2)."] = False
    lora: Annotated[int, "Rank of LoRA adapters, which are trained in place of the weights; 0 for none."] = 0
    validation_split: Annotated[float, "Part of the documents held back if there is no validation data."] = 0.1
    eval_steps: Annotated[int | None, "Evaluate every so many steps; default after each epoch."] = None
    save_steps: Annotated[int | None, "Save the run every so many steps as well as after each epoch."] = None
    log_steps: Annotated[int, "Write a line of the log every so many steps."] = 10
    tensorboard: Annotated[bool, "Write curves for TensorBoard too, to tensorboard/ in the output."] = False
    patience: Annotated[int, "Stop after so many evaluations without a better one; 0 never."] = 0
    metric: Annotated[str | None, "Metric that says which model is best; default the task's own."] = None
    problem: Annotated[str, "What classify learns: single, multi (several labels), regression or auto."] = "auto"
    class_weights: Annotated[str, "Weights of classes in the loss: none, or balanced (by their number)."] = "none"
    text_field: Annotated[str | None, "Column with the text; default as the task says."] = None
    label_field: Annotated[str | None, "Column with the label or target; default as the task says."] = None
    label_separator: Annotated[str, "What stands between the labels of a cell."] = "|"
    on_long: Annotated[str, "Documents longer than the model: window, truncate or error."] = "window"
    stride: Annotated[int | None, "Tokens that neighbouring windows share; default an eighth."] = None
    max_length: Annotated[int | None, "Most tokens of a window; default as the model says."] = None
    max_target_length: Annotated[int, "Most tokens of a summary."] = 256
    mask_rate: Annotated[float, "Part of the tokens that fill masks."] = 0.15
    framework: Annotated[str, "What trains: torch, flax or keras."] = "torch"
    memory: Annotated[int, "MiB of documents, and of windows, to hold in memory; more go to the output's disk."] = 1024
    device: Annotated[str | None, "cpu; default what the framework finds."] = None
    devices: Annotated[int, "Devices of this machine that share each forward pass, in flax, and in keras on JAX."] = 1
    strict: Annotated[bool, "Stop at the first record that cannot be used."] = False
    resume: Annotated[bool, "Go on where an interrupted run stopped, or start over."] = True
    overwrite: Annotated[bool, "Replace an output that exists."] = False

    def __post_init__(self) -> None:
        from longspan.pipelines.options import check_at_least, check_choice  # `longspan --help` needs none of it

        sizes = ("batch_tokens", "micro_tokens", "devices", "memory")
        for name in ("epochs", "max_steps", "eval_steps", "save_steps", "log_steps", *sizes):
            check_at_least(name, getattr(self, name), 1)
        for name in ("lora", "patience"):
            check_at_least(name, getattr(self, name), 0)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("problem", self.problem, PROBLEMS)
        check_choice("class_weights", self.class_weights, CLASS_WEIGHTS)
        check_choice("on_long", self.on_long, ON_LONG)
        check_choice("device", str(self.device), ("None", "cpu"))
        self._check_framework()
        for name in ("validation_split", "warmup", "mask_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must lie in [0, 1). Received: {name}={getattr(self, name)}")

    def _check_framework(self) -> None:
        from longspan.models.registry import resolve_framework
        from longspan.pipelines.options import check_choice

        object.__setattr__(self, "framework", resolve_framework(self.framework, ""))  # by its one name
        check_choice("framework", self.framework, tuple(_LACKING))
        asked = {"shard": self.shard, "lora": self.lora > 0, "gradient_checkpointing": self.gradient_checkpointing,
                 "float16": self.precision == "float16", "devices": self.devices > 1}  # fmt: skip
        for name, where in _LACKING[self.framework].items():
            if asked[name]:
                raise InputError(f"{name} needs {where}. Received: framework={self.framework!r}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Options by name.

        Raises:
            InputError: there is no such option, or its value breaks a rule.
        """
        known = [field.name for field in fields(cls)]
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise InputError(
                f"The options of training are {', '.join(known)}. Received: {unknown[0]}={settings[unknown[0]]!r}"
            )
        return cls(**settings)

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        default = _LORA_LEARNING_RATE if self.lora else _LEARNING_RATE
        return default if self.learning_rate is None else self.learning_rate

    def windows(self) -> dict[str, Any]:
        """Options of windows, as pipelines take them."""
        return {"on_long": self.on_long, "stride": self.stride, "max_length": self.max_length}

    def identity(self) -> dict[str, Any]:
        """What weights depend on, by name."""
        free = ("strict", "resume", "overwrite", "log_steps", "save_steps", "device", "devices", "shard", "tensorboard",
                "memory")  # fmt: skip
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in free}
