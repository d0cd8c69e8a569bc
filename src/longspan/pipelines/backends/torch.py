"""Batches of encoders and of models with heads in PyTorch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from longspan.auto import AutoConfig, AutoModel
from longspan.checkpoints.files import open_checkpoint
from longspan.checkpoints.hub import Source
from longspan.configuration import CONFIG_NAME, SOURCE_ARGUMENTS, PretrainedConfig
from longspan.errors import InputError
from longspan.models.registry import get_model_class
from longspan.nn.torch.prepacking import MOST_BYTES, prepacked_weights
from longspan.pipelines.backends import Inputs, longest_input
from longspan.tasks import TASKS
from longspan.to_long import to_long

#: Positions of a batch: on a CPU small enough for its caches, on an accelerator large enough to fill it.
_CPU_BATCH_TOKENS = 2048
_ACCELERATOR_BATCH_TOKENS = 65536
#: Tokens from which on laying out the weights for them repays.
_WORTH_PREPACKING = 2**16


class EncoderBackend:
    """An encoder model in PyTorch; see `longspan.pipelines.backends.Encoder`.

    Args:
        source: Where the model is.
        device: `"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"`; None takes the first CUDA device, or the CPU.
        dtype: Type of the weights, e.g. `"bfloat16"`.
        attn_implementation: Name of an implementation of attention; None chooses.
        max_length: Longest input wanted. A BERT or RoBERTa with fewer positions becomes a Longformer (see `to_long`).

    Attributes:
        fixed_shapes: False: any shape will do.

    Raises:
        InputError: the device does not exist.
    """

    fixed_shapes: ClassVar[bool] = False

    def __init__(
        self,
        source: Source,
        *,
        device: str | None,
        dtype: str | None,
        attn_implementation: str | None,
        max_length: int | None,
    ) -> None:
        self._device = _device(device)
        settings = _source_settings(source)
        limit = longest_input(AutoConfig.from_pretrained(source.name, **settings))
        if max_length is not None and limit is not None and max_length > limit:
            model = _lengthened(source, max_length, dtype)
        else:
            if attn_implementation is not None:
                settings["attn_implementation"] = attn_implementation
            model = AutoModel.from_pretrained(source.name, **settings, dtype=dtype or "float32")
        self._model = model.eval().to(self._device)

    @property
    def max_positions(self) -> int | None:
        """Most tokens the model reads at once, special tokens included; None if it has no limit."""
        return longest_input(self._model.config)

    @property
    def hidden_size(self) -> int:
        """Length H of a token's state."""
        return int(self._model.config.hidden_size)

    @property
    def batch_tokens(self) -> int:
        """Positions of a batch that suit the device."""
        return _CPU_BATCH_TOKENS if self._device.type == "cpu" else _ACCELERATOR_BATCH_TOKENS

    def reading(self, num_tokens: int) -> AbstractContextManager[object]:
        """Weights laid out beforehand, if so many tokens repay it."""
        return _prepacked(self._model, self._device, num_tokens)

    @torch.inference_mode()
    def encode_batch(
        self,
        input_ids: npt.NDArray[np.int64],
        attention_mask: npt.NDArray[np.bool_],
        weights: npt.NDArray[np.float32],
        max_mask: npt.NDArray[np.bool_] | None,
    ) -> npt.NDArray[np.float32]:
        """Pooled states (B, M (+ 1), H) of a batch; see `longspan.pipelines.backends.Encoder.encode_batch`."""
        is_padded = not attention_mask.all()
        states: Tensor = self._model(
            input_ids=torch.from_numpy(input_ids).to(self._device),
            attention_mask=torch.from_numpy(attention_mask).to(self._device) if is_padded else None,
        ).last_hidden_state.float()
        pooled = torch.bmm(torch.from_numpy(weights).to(self._device), states)
        if max_mask is not None:
            left_out = torch.from_numpy(~max_mask).to(self._device)[:, :, None]
            greatest = states.masked_fill(left_out, float("-inf")).amax(dim=1, keepdim=True)
            pooled = torch.cat([pooled, greatest], dim=1)
        vectors: npt.NDArray[np.float32] = pooled.cpu().numpy()
        return vectors


class TaskBackend:
    """A model with the head of a task in PyTorch; see `longspan.pipelines.backends.TaskModel`.

    Args:
        model: Where the model is, or a model, which is then moved to `device` if that is given, and evaluated.
        task: A key of `longspan.tasks.TASKS`.
        device: As in `EncoderBackend`; None leaves a model that is given where it is.
        dtype: Type of the weights, e.g. `"bfloat16"`; None leaves that of a model that is given.
        attn_implementation: Name of an implementation of attention; None chooses.

    Attributes:
        fixed_shapes: False: any shape will do.

    Raises:
        InputError: the device does not exist.
    """

    fixed_shapes: ClassVar[bool] = False

    def __init__(
        self,
        model: Source | Any,
        *,
        task: str,
        device: str | None,
        dtype: str | None,
        attn_implementation: str | None,
    ) -> None:
        if isinstance(model, Source):
            settings = _source_settings(model)
            if attn_implementation is not None:
                settings["attn_implementation"] = attn_implementation
            config = PretrainedConfig.get_config_dict(model.name, **_source_settings(model))
            model_class = get_model_class(config.get("model_type"), task, "torch")
            model = model_class.from_pretrained(model.name, **settings, dtype=dtype or "float32").to(_device(device))
        else:
            model = model.to(dtype=None if dtype is None else getattr(torch, dtype))
            model = model if device is None else model.to(_device(device))
        self._model = model.eval()
        self._device = next(model.parameters()).device
        self._outputs = tuple(TASKS[task].outputs)
        self._has_choices = task == "multiple-choice"
        self.input_names = frozenset(inspect.signature(model.forward).parameters)

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self._model.config

    @property
    def model(self) -> Any:
        """The model itself."""
        return self._model

    @property
    def max_positions(self) -> int | None:
        """Most tokens the model reads at once, special tokens included; None if it has no limit."""
        return longest_input(self._model.config)

    @property
    def batch_tokens(self) -> int:
        """Positions of a batch that suit the device."""
        return _CPU_BATCH_TOKENS if self._device.type == "cpu" else _ACCELERATOR_BATCH_TOKENS

    def reading(self, num_tokens: int) -> AbstractContextManager[object]:
        """Weights laid out beforehand, if so many tokens repay it."""
        return _prepacked(self._model, self._device, num_tokens)

    @torch.inference_mode()
    def run(self, inputs: Inputs, wanted: npt.NDArray[np.int64] | None = None) -> dict[str, npt.NDArray[np.float32]]:
        """Outputs of a batch; see `longspan.pipelines.backends.TaskModel.run`."""
        tensors: dict[str, Any] = {name: torch.from_numpy(array).to(self._device) for name, array in inputs.items()}
        if inputs["attention_mask"].all():
            del tensors["attention_mask"]
        if self._has_choices:
            tensors = {name: tensor[:, None] for name, tensor in tensors.items()}
        if "use_cache" in self.input_names:
            tensors["use_cache"] = False
        outputs = self._model(**tensors)
        results = {}
        for name in self._outputs:
            values: Tensor = outputs[name]
            if wanted is not None:
                values = values[torch.arange(len(wanted))[:, None], torch.from_numpy(wanted)]
            results[name] = values.float().cpu().numpy()
        return results


class WriterBackend:
    """A model that generates in PyTorch; see `longspan.pipelines.backends.Writer`.

    Args:
        model: Where the model is, or a model, which is then moved to `device` if that is given.
        task: `"text-generation"` or `"text2text-generation"`.
        device: As in `EncoderBackend`; None leaves a model that is given where it is.
        dtype: Type of the weights, e.g. `"bfloat16"`; None leaves that of a model that is given.

    Attributes:
        model: The model.

    Raises:
        InputError: the device does not exist.
    """

    def __init__(self, model: Source | Any, *, task: str, device: str | None, dtype: str | None) -> None:
        if isinstance(model, Source):
            settings = _source_settings(model)
            config = PretrainedConfig.get_config_dict(model.name, **settings)
            model_class = get_model_class(config.get("model_type"), task, "torch")
            model = model_class.from_pretrained(model.name, **settings, dtype=dtype or "float32").to(_device(device))
        else:
            model = model.to(dtype=None if dtype is None else getattr(torch, dtype))
            model = model if device is None else model.to(_device(device))
        self.model = model.eval()

    def write(self, rows: Sequence[Sequence[int]], settings: Mapping[str, Any]) -> list[list[int]]:
        """New token ids of each row; see `longspan.pipelines.backends.Writer.write`."""
        written: Tensor = self.model.generate([list(row) for row in rows], **settings)
        prompt = 1 if self.model.config.is_encoder_decoder else max(map(len, rows))
        new: list[list[int]] = written[:, prompt:].tolist()
        return new


def _source_settings(source: Source) -> dict[str, Any]:
    return {name: getattr(source, name) for name in SOURCE_ARGUMENTS}


def _lengthened(source: Source, max_length: int, dtype: str | None) -> Any:
    """The model as a Longformer that reads `max_length` tokens."""
    with open_checkpoint(source):  # brings the weights of a hub repository to this machine
        folder = source.require(CONFIG_NAME).parent
    return to_long(folder, max_length=max_length).to(getattr(torch, dtype or "float32"))


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"device must exist on this machine. Received: device={name!r} ({reason})") from error
    return device


def _prepacked(model: Any, device: torch.device, num_tokens: int) -> AbstractContextManager[object]:
    if device.type != "cpu" or num_tokens < _WORTH_PREPACKING:
        return nullcontext()
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return prepacked_weights(model) if size <= MOST_BYTES else nullcontext()
