"""Batches of encoders, of models with heads and of models that generate in PyTorch."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from longspan.auto import AutoConfig, AutoModel
from longspan.checkpoints.files import open_checkpoint
from longspan.checkpoints.hub import Source
from longspan.configuration import CONFIG_NAME, SOURCE_ARGUMENTS
from longspan.errors import InputError
from longspan.machine import processor
from longspan.models.registry import Framework
from longspan.nn.torch.int8 import quantize_linears
from longspan.nn.torch.int8_weights import quantize_weights
from longspan.pipelines.backends import base, measured_batches, torch_lanes
from longspan.pipelines.backends.base import INT8, Floats, Ids, Item, Mask, Result
from longspan.pipelines.backends.measured_batches import Batching

logger = logging.getLogger("longspan")
_measuring = threading.Lock()

#: model types whose layers are only called, never looked into, so that others may be in their place
_INT8_FAMILIES = ("bert", "roberta", "xlm-roberta")


def pool(states: Tensor, weights: Tensor, max_mask: Tensor | None) -> Tensor:
    """Pooled states (B, M (+ 1), H) of states (B, S, H); see `base.Encoder.encode_batch`."""
    pooled = torch.bmm(weights, states)
    if max_mask is None:
        return pooled
    greatest = states.masked_fill(~max_mask[:, :, None], float("-inf")).amax(dim=1, keepdim=True)
    return torch.cat([pooled, greatest], dim=1)


class _TorchBackend(base.Backend):
    framework: ClassVar[Framework] = "torch"
    _batching: Batching = measured_batches.DEFAULT
    #: it is known which batches suit this machine, and what was read in bulk before that
    _is_measured: bool = False
    _bulk: int = 0

    def _place(
        self, model: Source | Any, model_class: Any, device: str | None, dtype: str | None, settings: Any
    ) -> None:
        """Load a model, or take the one that is given: where it is, as it is, unless device or dtype are named."""
        if isinstance(model, Source):
            model = base.load(model, model_class, dtype or "float32", settings).to(_device(device))
        else:
            model = model.to(dtype=None if dtype is None else getattr(torch, dtype))
            model = model if device is None else model.to(_device(device))
        self.model = model.eval()
        self.device = next(model.parameters()).device

    @property
    def on_cpu(self) -> bool:
        """Whether the model runs on the CPU."""
        return bool(self.device.type == "cpu")

    @property
    def batch_tokens(self) -> int:
        """Positions of a batch that suit the device."""
        return self._batching.tokens if self.on_cpu else super().batch_tokens

    @property
    def num_lanes(self) -> int:
        """How many batches may run side by side."""
        return min(self._batching.lanes, torch_lanes.most_lanes(self.model)) if self.on_cpu else 1

    def _kind(self) -> dict[str, Any]:
        """What the best batches depend on."""
        base_model = getattr(self.model, "base_model", self.model)
        return {
            "model": type(base_model).__name__,
            "parameters": sum(parameter.numel() for parameter in base_model.parameters()),
            "dtype": self.environment["dtype"],
            "torch": torch.__version__,
            "processor": processor(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        }

    def measure_batches(self, work: int) -> bool:
        """See `base.Backend.measure_batches`; on a CPU alone."""
        if not self.on_cpu or work < measured_batches.IS_BULK or self._is_measured:
            return self._is_measured
        with _measuring:
            if self._is_measured:  # by another thread, meanwhile
                return True
            self._bulk += work
            kind, threads = self._kind(), torch.get_num_threads()
            found = measured_batches.stored(kind)
            if found is None and self._bulk >= measured_batches.WORTH_MEASURING and self._can_be_tried(threads):
                found = measured_batches.choose(threads, self._seconds_of_token)
                measured_batches.store(kind, found)
                logger.info("measured on this machine: %d tokens in %d batches at a time are fastest", *found)
            self._batching, self._is_measured = found or self._batching, found is not None
        return self._is_measured

    def _can_be_tried(self, threads: int) -> bool:
        """True if nobody looks into the model, and ids are all that it needs."""
        return not self.config.is_encoder_decoder and (threads == 1 or torch_lanes.most_lanes(self.model) > 1)

    def _seconds_of_token(self, batching: Batching) -> float:
        length = min(measured_batches.LENGTH, self.max_positions or measured_batches.LENGTH)
        rows = max(batching.tokens // batching.lanes // length, 1)
        ids = torch.full((rows, length), self.config.vocab_size // 2)
        model = getattr(self.model, "base_model", self.model)

        @torch.inference_mode()
        def run(_: int) -> None:
            model(input_ids=ids)

        batches = range(measured_batches.BATCHES * batching.lanes)
        start = time.perf_counter()
        results = map(run, batches) if batching.lanes == 1 else self.side_by_side(run, batches, batching.lanes)
        deque(results, maxlen=0)
        return (time.perf_counter() - start) / (len(batches) * ids.numel())

    def side_by_side(self, run: Callable[[Item], Result], items: Sequence[Item], lanes: int) -> Iterator[Result]:
        """See `torch_lanes.side_by_side`."""
        return torch_lanes.side_by_side(run, items, lanes)

    @property
    def environment(self) -> dict[str, Any]:
        """What numbers depend on besides the checkpoint."""
        return {
            "versions": {"torch": torch.__version__},
            "device": self.device.type,
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "precision": torch.get_float32_matmul_precision(),
        }


class EncoderBackend(_TorchBackend, base.Encoder):
    """An encoder model in PyTorch; see `longspan.pipelines.backends.base.Encoder`.

    Args:
        source: Where the model is.
        device: `"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"`; None takes the first CUDA device, or the CPU.
        dtype: Type of the weights, e.g. `"bfloat16"`; `"int8"` is that of the linear layers of a BERT or RoBERTa.
        attn_implementation: Name of an implementation of attention; None chooses.
        max_length: Longest input wanted. A BERT or RoBERTa with fewer positions becomes a Longformer (see `to_long`).

    Raises:
        InputError: the device does not exist, or the model cannot be had in int8.
    """

    def __init__(
        self,
        source: Source,
        *,
        device: str | None,
        dtype: str | None,
        attn_implementation: str | None,
        max_length: int | None,
    ) -> None:
        is_int8, dtype = dtype == INT8, None if dtype == INT8 else dtype
        self.device = _device("cpu" if is_int8 and device is None else device)
        place = {name: getattr(source, name) for name in SOURCE_ARGUMENTS}
        limit = base.longest_input(AutoConfig.from_pretrained(source.name, **place))
        if max_length is not None and limit is not None and max_length > limit:
            model = _lengthened(source, max_length, dtype)
        else:
            model = base.load(source, AutoModel, dtype or "float32", {"attn_implementation": attn_implementation})
        self.model = model.eval().to(self.device)
        if is_int8:
            if self.config.model_type not in _INT8_FAMILIES:
                raise InputError(f"dtype='int8' serves {', '.join(_INT8_FAMILIES)}. Received: {self.config.model_type}")
            quantize_linears(self.model)
        self._dtype = INT8 if is_int8 else str(self.model.dtype).removeprefix("torch.")

    @property
    def environment(self) -> dict[str, Any]:
        """What numbers depend on besides the checkpoint."""
        return {**super().environment, "dtype": self._dtype}

    @torch.inference_mode()
    def encode_batch(self, input_ids: Ids, attention_mask: Mask, weights: Floats, max_mask: Mask | None) -> Floats:
        """Pooled states (B, M (+ 1), H) of a batch; see `longspan.pipelines.backends.base.Encoder.encode_batch`."""
        is_padded = not attention_mask.all()
        states: Tensor = self.model(
            input_ids=torch.from_numpy(input_ids).to(self.device),
            attention_mask=torch.from_numpy(attention_mask).to(self.device) if is_padded else None,
        ).last_hidden_state.float()
        mask = None if max_mask is None else torch.from_numpy(max_mask).to(self.device)
        vectors: Floats = pool(states, torch.from_numpy(weights).to(self.device), mask).cpu().numpy()
        return vectors


class TaskBackend(_TorchBackend, base.TaskModel):
    """A model with the head of a task in PyTorch; arguments as of `longspan.pipelines.backends.base.LoadedModel`."""

    def _forward(self) -> Callable[..., Any]:
        forward: Callable[..., Any] = self.model.forward
        return forward

    @torch.inference_mode()
    def run(self, inputs: base.Inputs, wanted: Ids | None = None) -> dict[str, Floats]:
        """Outputs of a batch; see `longspan.pipelines.backends.base.TaskModel.run`."""
        tensors: dict[str, Any] = {name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()}
        if inputs["attention_mask"].all():
            del tensors["attention_mask"]
        if self._has_choices:
            tensors = {name: tensor[:, None] for name, tensor in tensors.items()}
        if "use_cache" in self.input_names:
            tensors["use_cache"] = False
        outputs = self.model(**tensors)
        results = {}
        for name in self._outputs:
            values: Tensor = outputs[name]
            if wanted is not None:
                values = values[torch.arange(len(wanted))[:, None], torch.from_numpy(wanted)]
            results[name] = values.float().cpu().numpy()
        return results


class WriterBackend(_TorchBackend, base.Writer):
    """A model that generates in PyTorch; arguments as of `longspan.pipelines.backends.base.LoadedModel`."""

    def _place(
        self, model: Source | Any, model_class: Any, device: str | None, dtype: str | None, settings: Any
    ) -> None:
        """As of other backends; `"int8"` is that of the weights of linear layers, on the CPU."""
        is_int8 = dtype == INT8
        if is_int8 and not isinstance(model, Source):
            raise InputError("dtype='int8' needs the name of a model. Received: a model, which would be changed")
        device = "cpu" if is_int8 and device is None else device
        super()._place(model, model_class, device, "float32" if is_int8 else dtype, settings)
        self._dtype = INT8 if is_int8 else str(next(self.model.parameters()).dtype).removeprefix("torch.")
        if is_int8:
            quantize_weights(self.model)

    @property
    def environment(self) -> dict[str, Any]:
        """What numbers depend on besides the checkpoint."""
        return {**super().environment, "dtype": self._dtype}

    def write(self, rows: Sequence[Sequence[int]], settings: Mapping[str, Any]) -> list[list[int]]:
        """New token ids of each row; see `longspan.pipelines.backends.base.Writer.write`."""
        written: Tensor = self.model.generate([list(row) for row in rows], **settings)
        prompt = 1 if self.model.config.is_encoder_decoder else max(map(len, rows))
        new: list[list[int]] = written[:, prompt:].tolist()
        return new


def _lengthened(source: Source, max_length: int, dtype: str | None) -> Any:
    """The model as a Longformer that reads `max_length` tokens."""
    from longspan.to_long import to_long  # with the Longformer, which few encoders become

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
