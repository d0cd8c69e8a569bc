"""The keywords of the reference's `from_pretrained`: what each means here, or why it cannot be served."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from longspan.errors import CheckpointError, InputError

#: keywords that change nothing here, whatever their value
_WITHOUT_EFFECT = (
    "low_cpu_mem_usage",
    "weights_only",
    "offload_state_dict",
    "use_flash_attention_2",
    "use_kernels",
    "_fast_init",
)
#: keywords that are accepted at a value that asks for nothing, and what to do otherwise
_REFUSED = {
    "quantization_config": "load the model, then quantise it, e.g. with torchao.quantization.quantize_",
    "load_in_8bit": "load the model, then quantise it, e.g. with torchao.quantization.quantize_",
    "load_in_4bit": "load the model, then quantise it, e.g. with torchao.quantization.quantize_",
    "gguf_file": "convert the file to safetensors first",
    "tp_plan": "load the model, then call torch.distributed.tensor.parallel.parallelize_module",
    "tp_size": "load the model, then call torch.distributed.tensor.parallel.parallelize_module",
    "device_mesh": "load the model, then call torch.distributed.tensor.parallel.parallelize_module",
    "key_mapping": "rename the keys of a state dict and pass it as state_dict=",
    "adapter_name": "load the model, then call peft.PeftModel.from_pretrained",
    "adapter_kwargs": "load the model, then call peft.PeftModel.from_pretrained",
}
#: keyword that asks for weights of one format -> that format
_FORMATS = {"from_tf": "tf", "from_flax": "flax"}
_STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True)
class LoadRequest:
    """How a checkpoint is to be read and where the model goes.

    Attributes:
        formats: Formats of weights to look for; None looks for all.
        variant: Infix of the names of the files.
        device_map: A device, a strategy of accelerate, or a device for each module; None leaves the model on the CPU.
        placement: `max_memory`, `offload_folder`, `offload_buffers`.
    """

    formats: tuple[str, ...] | None = None
    variant: str | None = None
    device_map: Any = None
    placement: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def take(cls, kwargs: dict[str, Any]) -> LoadRequest:
        """Take the reference's keywords out of `kwargs`.

        Raises:
            InputError: one asks for what cannot be served; the message says what to do.
        """
        for name in _WITHOUT_EFFECT:
            kwargs.pop(name, None)
        for name, advice in _REFUSED.items():
            value = kwargs.pop(name, None)
            if value:
                raise InputError(f"{name} is not supported: {advice}. Received: {name}={value!r}")
        formats = [kind for name, kind in _FORMATS.items() if kwargs.pop(name, False)]
        if kwargs.pop("use_safetensors", None):
            formats.append("safetensors")
        placement = {name: kwargs.pop(name, None) for name in ("max_memory", "offload_folder", "offload_buffers")}
        return cls(tuple(formats) or None, kwargs.pop("variant", None), kwargs.pop("device_map", None), placement)

    def place(self, model: Any) -> None:
        """Move the model to its device, or spread it with accelerate.

        Raises:
            InputError: the device map is none, or accelerate is not installed.
        """
        device_map = self.device_map
        if device_map is None:
            return
        if isinstance(device_map, Mapping) and set(device_map) == {""} and device_map[""] != "disk":
            device_map = device_map[""]
        if isinstance(device_map, Mapping) or device_map in _STRATEGIES:
            _spread(model, device_map, **self.placement)
        else:
            model.to(_device(device_map))
            model.hf_device_map = {"": device_map}


def _device(value: Any) -> torch.device:
    try:
        return torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"device_map must be a device, a dict from modules to devices, or one of {', '.join(_STRATEGIES)}. "
            f"Received: device_map={value!r}"
        ) from error


def _spread(
    model: Any, device_map: Any, *, max_memory: Any = None, offload_folder: Any = None, offload_buffers: Any = None
) -> None:
    """Put the parts of a model on several devices; accelerate's hooks then move inputs and offloaded weights."""
    try:
        from accelerate import dispatch_model, infer_auto_device_map
        from accelerate.utils import get_balanced_memory
    except ModuleNotFoundError as error:
        raise InputError(
            "device_map of several devices needs accelerate, which is not installed: pip install 'longspan[train]'. "
            f"Received: device_map={device_map!r}"
        ) from error
    if not isinstance(device_map, Mapping):
        kept = model._no_split_modules
        if device_map != "sequential":
            low = device_map == "balanced_low_0"
            max_memory = get_balanced_memory(model, max_memory, kept, dtype=model.dtype, low_zero=low)
        device_map = infer_auto_device_map(model, max_memory, kept, dtype=model.dtype)
    if set(device_map.values()) == {"cpu"}:
        model.hf_device_map = dict(device_map)
        return
    if "disk" in device_map.values() and offload_folder is None:
        raise InputError(f"modules on the disk need offload_folder. Received: device_map={device_map!r}")
    dispatch_model(
        model,
        dict(device_map),
        offload_dir=offload_folder,
        offload_buffers=bool(offload_buffers),
        skip_keys=model._skip_keys_device_placement,
    )


@contextmanager
def off_meta() -> Iterator[None]:
    """Build on the CPU inside a context that builds on the meta device: weights are about to be read."""
    if torch.get_default_device().type == "meta":
        with torch.device("cpu"):
            yield
    else:
        yield


def state_to_save(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a model, whose offloaded weights are fetched from where accelerate keeps them.

    Raises:
        CheckpointError: a weight is on the meta device, that is, nowhere.
    """
    state = model.state_dict()
    if any(tensor.is_meta for tensor in state.values()):
        if not hasattr(model, "hf_device_map") and not any(hasattr(module, "_hf_hook") for module in model.modules()):
            missing = next(key for key, tensor in state.items() if tensor.is_meta)
            raise CheckpointError(f"a model on the meta device has no weights to save. Received: {missing}")
        from accelerate.utils.modeling import get_state_dict_offloaded_model

        state = get_state_dict_offloaded_model(model)
    return state
