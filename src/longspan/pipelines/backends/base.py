"""What the backends of all frameworks share: which model is loaded, what it can take, how large batches are."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from longspan.checkpoints.hub import Source
from longspan.configuration import SOURCE_ARGUMENTS, PretrainedConfig
from longspan.inputs import longest_input as longest_input
from longspan.models.registry import Framework, get_model_class
from longspan.pipelines.backends.measured_batches import DEFAULT
from longspan.tasks import TASKS

#: Positions of a batch that fill an accelerator.
_ACCELERATOR_BATCH_TOKENS = 65536

#: a dtype of encoders alone: linear layers in 8 bits
INT8 = "int8"

Inputs = Mapping[str, npt.NDArray[Any]]
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Item = TypeVar("Item")
Result = TypeVar("Result")


class Backend(ABC):
    """A model on a device.

    Attributes:
        framework: Name of the framework.
        fixed_shapes: Whether every new shape costs a compilation, so that batches should come in few shapes.
        model: The model.
        device: The device in the framework's words.
        on_cpu: Whether that is the CPU.
    """

    framework: ClassVar[Framework]
    fixed_shapes: ClassVar[bool] = False
    model: Any
    device: Any

    @property
    @abstractmethod
    def on_cpu(self) -> bool:
        """Whether the model runs on the CPU."""

    @property
    @abstractmethod
    def environment(self) -> dict[str, Any]:
        """What numbers depend on besides the checkpoint: versions, kind of device, types, precision of products."""

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    @property
    def max_positions(self) -> int | None:
        """Most tokens the model reads at once, special tokens included; None if it has no limit."""
        return longest_input(self.config)

    @property
    def batch_tokens(self) -> int:
        """Positions of a batch that suit the device."""
        return DEFAULT.tokens if self.on_cpu else _ACCELERATOR_BATCH_TOKENS

    @property
    def num_lanes(self) -> int:
        """How many batches may run side by side."""
        return 1

    def measure_batches(self, work: int) -> bool:
        """Find out which batches suit this machine, if that pays.

        A framework that compiles a program for each shape keeps the default: compiling takes longer than is saved.

        Args:
            work: Tokens that are about to be read.

        Returns:
            Whether it is now known.
        """
        return False

    def side_by_side(self, run: Callable[[Item], Result], items: Sequence[Item], lanes: int) -> Iterator[Result]:
        """run(item) for each item, in their order, `lanes` of them at a time; `lanes` is at most `num_lanes`."""
        return map(run, items)


class Encoder(Backend):
    """An encoder model on a device."""

    @property
    def hidden_size(self) -> int:
        """Length H of a token's state."""
        return int(self.config.hidden_size)

    @abstractmethod
    def encode_batch(self, input_ids: Ids, attention_mask: Mask, weights: Floats, max_mask: Mask | None) -> Floats:
        """Pooled states of a batch.

        Args:
            input_ids: (B, S) token ids, padded on the right.
            attention_mask: (B, S), True at real tokens; rows without any fill a batch up.
            weights: (B, M, S) weight of each token for each vector that is wanted.
            max_mask: (B, S), True at the tokens whose greatest value is wanted as one more vector; None for none.

        Returns:
            (B, M (+ 1), H) float32: the weighted sums, and the maximum last.
        """


class LoadedModel(Backend):
    """A model for a task on a device, loaded or given.

    Args:
        model: Where the model is, or a model.
        task: A key of `longspan.tasks.TASKS`.
        device: As the encoder's backend says; None chooses, or leaves a model that is given where it is.
        dtype: Type of weights or computation; None is float32, or that of a model that is given.
        settings: Further arguments of `from_pretrained`.

    Raises:
        ConfigError: the family has no class for the task.
        InputError: the device does not exist.
    """

    def __init__(
        self, model: Source | Any, *, task: str, device: str | None, dtype: str | None, settings: Mapping[str, Any]
    ) -> None:
        model_class = class_for(model, task, self.framework) if isinstance(model, Source) else None
        self._place(model, model_class, device, dtype, settings)

    @abstractmethod
    def _place(
        self, model: Source | Any, model_class: Any, device: str | None, dtype: str | None, settings: Mapping[str, Any]
    ) -> None:
        """Load a model, or take the one that is given, and put it where it is to run."""


class TaskModel(LoadedModel):
    """A model with the head of a task on a device; arguments as of `LoadedModel`.

    Attributes:
        input_names: Names of the inputs that the model takes.
    """

    input_names: frozenset[str]

    def __init__(self, model: Source | Any, *, task: str, **arguments: Any) -> None:
        super().__init__(model, task=task, **arguments)
        self._outputs = tuple(TASKS[task].outputs)
        self._has_choices = task == "multiple-choice"
        self.input_names = frozenset(inspect.signature(self._forward()).parameters)

    def _forward(self) -> Callable[..., Any]:
        """What the model is called by, with its arguments."""
        model: Callable[..., Any] = type(self.model).__call__
        return model

    @abstractmethod
    def run(self, inputs: Inputs, wanted: Ids | None = None) -> dict[str, Floats]:
        """Outputs of a batch.

        Args:
            inputs: (B, S) arrays by name: `input_ids` and `attention_mask` (True at real tokens; rows without any fill
                a batch up) always, others as `input_names` allows.
            wanted: (B, P) tokens whose outputs are wanted; None for all.

        Returns:
            float32 arrays under the names that `longspan.tasks.TASKS` lists, `(B, ...)`.
        """


class Writer(LoadedModel):
    """A model that generates, on a device; arguments as of `LoadedModel`."""

    @abstractmethod
    def write(self, rows: Sequence[Sequence[int]], settings: Mapping[str, Any]) -> list[list[int]]:
        """What the model writes for a batch.

        Args:
            rows: Token ids of each prompt, or of each input of the encoder.
            settings: Settings of `generate`; also `seed`, which makes sampling repeat exactly.

        Returns:
            New token ids, prompts not included, of each row; for `num_return_sequences` above 1 of so many rows for
            each prompt.
        """


class BatchWriter(Writer):
    """A writer in batches of few shapes; a framework says how it generates."""

    @abstractmethod
    def _generate(self, ids: Any, mask: Any, settings: Mapping[str, Any]) -> Any:
        """Ids (R, L) that the model writes for prompts (B, P), a power of two of them, padded on the right."""

    def write(self, rows: Sequence[Sequence[int]], settings: Mapping[str, Any]) -> list[list[int]]:
        """New token ids of each row; see `Writer.write`."""
        width = max(map(len, rows))
        num_rows = 1 << (len(rows) - 1).bit_length()  # few programs: `generate` itself rounds lengths
        ids, mask = np.zeros((2, num_rows, width), np.int32)
        for place, row in enumerate([*rows, *[rows[0]] * (num_rows - len(rows))]):  # copies fill the batch up
            ids[place, : len(row)] = row
            mask[place, : len(row)] = 1
        written = np.asarray(self._generate(ids, mask, settings))
        prompt = 1 if self.model.config.is_encoder_decoder else width
        each = len(written) // num_rows
        new: list[list[int]] = written[: each * len(rows), prompt:].tolist()
        return new


def load(source: Source, model_class: Any, dtype: Any, settings: Mapping[str, Any]) -> Any:
    """The model of a checkpoint; `settings` are further arguments of `from_pretrained`, but for those that are None."""
    place = {name: getattr(source, name) for name in SOURCE_ARGUMENTS}
    given = {name: value for name, value in settings.items() if value is not None}
    return model_class.from_pretrained(source.name, dtype=dtype, **place, **given)


def lengthened(model: Any, max_length: int | None) -> Any:
    """A BERT or RoBERTa with fewer positions as a Longformer that reads `max_length` tokens; any other as it is."""
    limit = longest_input(model.config)
    if max_length is None or limit is None or max_length <= limit:
        return model
    from longspan.to_long import to_long  # with the Longformer, which few encoders become

    return to_long(model, max_length=max_length)


def class_for(source: Source, task: str, framework: Framework) -> Any:
    """The class that a checkpoint's family has for a task.

    Raises:
        ConfigError: it has none in this framework.
    """
    place = {name: getattr(source, name) for name in SOURCE_ARGUMENTS}
    return get_model_class(PretrainedConfig.get_config_dict(source.name, **place).get("model_type"), task, framework)
