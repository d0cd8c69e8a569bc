"""Walks a PyTorch model's own tree and fills it from a checkpoint."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from longspan.checkpoints.dtypes import dtype_of
from longspan.checkpoints.names import ParameterNames
from longspan.checkpoints.reader import Bytes, CheckpointReader, Entry
from longspan.checkpoints.report import LoadReport, plan_load

#: threads that read a file, at most, and bytes that are worth starting them
_READERS = 4
_WORTH_THREADS = 16 << 20
_IN_PLACE = {Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_}


class _SkipParameterInit(TorchFunctionMode):
    """Leaves parameters uninitialised: their values come from a file, so drawing random ones is wasted time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        is_init = getattr(func, "__module__", None) == "torch.nn.init" or func in _IN_PLACE
        if is_init and isinstance(target, nn.Parameter):
            return target
        return func(*args, **kwargs)


_skipping: ContextVar[bool] = ContextVar("longspan_skipping_init", default=False)


@contextmanager
def skip_parameter_init() -> Iterator[None]:
    """Build modules without initialising their parameters; buffers are computed as usual."""
    token = _skipping.set(True)
    try:
        with _SkipParameterInit():
            yield
    finally:
        _skipping.reset(token)


def is_skipping_init() -> bool:
    """True inside `skip_parameter_init`."""
    return _skipping.get()


class StateDictReader(CheckpointReader):
    """Reads a state dict as if it were a file.

    Args:
        state_dict: Tensors by key; they are copied when they are read.
    """

    format = "state_dict"

    def __init__(self, state_dict: Mapping[str, Tensor]) -> None:
        super().__init__(Path("state_dict"))
        self._tensors = dict(state_dict)
        self.entries = {
            key: Entry(tuple(tensor.shape), dtype_of(str(tensor.dtype).removeprefix("torch.")))
            for key, tensor in self._tensors.items()
        }

    def read_torch(self, key: str) -> Tensor:
        """The tensor itself."""
        self._entry(key)
        return self._tensors[key]

    def _fill(self, key: str, out: Bytes) -> None:
        tensor = self._tensors[key].detach().cpu().contiguous()
        out[:] = tensor.reshape(-1).view(torch.uint8).numpy()

    def close(self) -> None:
        """Nothing is open."""


def fill(
    model: nn.Module,
    reader: CheckpointReader,
    *,
    names: ParameterNames,
    config: object,
    initialise: Callable[[nn.Module], None],
    strict: bool = True,
    ignore_mismatched_sizes: bool = False,
) -> LoadReport:
    """Fill every parameter and persistent buffer of `model` from a checkpoint.

    Tensors are copied into the model's own memory and cast to its dtype, those that must be cast one at a time, so that
    the peak is the size of the model plus one tensor, and later changes of the file cannot reach the model.

    Args:
        model: Model whose parameters may be uninitialised.
        reader: The open checkpoint.
        names: Facts about the family's parameter names.
        config: Configuration of the model; it switches ties on and off.
        initialise: Gives a module that lacks values in the checkpoint its random ones.
        strict: Missing and unexpected keys raise.
        ignore_mismatched_sizes: Tensors of another shape are initialised instead of raising.

    Returns:
        What became of every key.

    Raises:
        CheckpointError: listing every key that is missing, unexpected or of another shape.
    """
    targets = model.state_dict(keep_vars=True)
    plan = plan_load(
        {key: tuple(target.shape) for key, target in targets.items()},
        reader,
        names,
        config,
        strict=strict,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
    )
    for module in _owners(model, set(plan.fresh)):
        initialise(module)
    _read_values(reader, [(stored, targets[key].data) for key, stored in plan.sources.items()])
    return plan.report


def _read_values(reader: CheckpointReader, pairs: Sequence[tuple[str, Tensor]]) -> None:
    """Fill tensors by key, large ones in several threads: reading a file and its checksums both let others run."""
    threads = min(_READERS, torch.get_num_threads())
    direct = [pair for pair in pairs if reader.is_concurrent and reader.is_direct(*pair)]
    if threads > 1 and sum(reader.nbytes(key) for key, _ in direct) >= _WORTH_THREADS:
        _read_side_by_side(reader, direct, threads)
        pairs = [pair for pair in pairs if not reader.is_direct(*pair)]
    for key, tensor in pairs:
        reader.fill_torch(key, tensor)


def _read_side_by_side(reader: CheckpointReader, pairs: Sequence[tuple[str, Tensor]], threads: int) -> None:
    """Each thread, this one among them, takes the next tensor of one queue: none waits for another's."""
    queue, errors = deque(enumerate(pairs)), dict[int, BaseException]()

    def read() -> None:
        while True:
            try:
                index, pair = queue.popleft()
            except IndexError:
                return
            try:
                reader.fill_torch(*pair)
            except BaseException as error:
                errors[index] = error
                queue.clear()

    with ThreadPoolExecutor(threads - 1, thread_name_prefix="longspan-read") as pool:
        others = [pool.submit(read) for _ in range(threads - 1)]
        read()
        for other in others:
            other.result()
    if errors:
        # tensors before a damaged one have been taken by then, so that the first damaged one is always found
        raise errors[min(errors)]


def _owners(model: nn.Module, keys: set[str]) -> list[nn.Module]:
    """The modules that directly hold one of the named parameters."""
    paths = {key.rpartition(".")[0] for key in keys}
    return [module for path, module in model.named_modules(remove_duplicate=False) if path in paths]


def tie(model: nn.Module, names: ParameterNames, config: object, *, is_base: bool) -> None:
    """Make the parameters of each tied pair one object.

    Args:
        model: The model.
        names: Facts about the family's parameter names.
        config: Configuration; it switches ties on and off.
        is_base: The model is the bare base, whose keys lack the base prefix.
    """
    prefix = f"{names.base_prefix}." if is_base and names.base_prefix else ""
    for pair in names.active_ties(config):
        source = _lookup(model, pair.source.removeprefix(prefix))
        parent_path, _, attribute = pair.target.removeprefix(prefix).rpartition(".")
        if source is None or _lookup(model, pair.target.removeprefix(prefix)) is None:
            continue
        setattr(model.get_submodule(parent_path), attribute, source)


def _lookup(model: nn.Module, key: str) -> nn.Parameter | None:
    try:
        return model.get_parameter(key)
    except AttributeError:
        return None
