"""Work on a Ray cluster (extra `ray`): actors that hold what runs it, and results in the order of the work."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from longspan.errors import InputError, LongspanError, MissingFrameworkError
from longspan.pipelines.run.identity import differences
from longspan.pipelines.run.progress import Stopwatch

#: Pieces of work that an actor has before it at most: while one is slow, the others need not wait for it.
_AHEAD = 3
#: How often a piece of work is tried again after its actor died.
_RETRIES = 3


@dataclass(frozen=True)
class RayOptions:
    """Where work runs on a Ray cluster.

    Attributes:
        address: Address of the cluster; default the environment's `RAY_ADDRESS`, else a cluster on this machine that
            lasts as long as the work.
        actors: Processes, each with the model; default one a GPU, else two a machine. They share the CPUs and GPUs.

    Raises:
        InputError: `actors` is not positive.
    """

    address: str | None = None
    actors: int | None = None

    def __post_init__(self) -> None:
        if self.actors is not None and self.actors < 1:
            raise InputError(f"There must be at least 1 actor. Received: {self.actors}")


class ClusterError(LongspanError, RuntimeError):
    """A Ray cluster cannot do the work."""


class _Actor:
    """Runs calls on what `load` gives, which is loaded by the first one (again, after the actor was restarted)."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load
        self._loaded: Any = None

    def call(self, act: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if self._loaded is None:
            self._loaded = self._load()
        return act(self._loaded, *arguments)


class _Stdout:
    """The standard output, which is for results: what Ray's threads print goes to the standard error stream."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        is_of_ray = threading.current_thread().name.startswith("ray_")
        return int((sys.stderr if is_of_ray else self.stream).write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class RayPool:
    """Actors of a Ray cluster. An actor that dies is started again, and what it had not finished is done again.

    A context manager; it ends the actors, and the cluster, if it began that.

    Args:
        load: Gives what runs the work; called in each actor. It and the work are pickled.
        options: Where.

    Raises:
        MissingFrameworkError: ray is not installed.
        ClusterError: there is no such cluster.
    """

    def __init__(self, load: Callable[[], Any], options: RayOptions) -> None:
        self._ray = _import_ray()
        self._began = not self._ray.is_initialized()
        if self._began:
            _connect(self._ray, options.address or os.environ.get("RAY_ADDRESS") or "local")
        self._real_stdout = sys.stdout
        self._stdout: Any = _Stdout(sys.stdout)
        sys.stdout = self._stdout
        resources, count = _resources(self._ray.nodes(), options.actors)
        kind = self._ray.remote(_Actor).options(max_restarts=-1, max_task_retries=_RETRIES, **resources)
        self._actors = [kind.remote(load) for _ in range(count)]
        self._busy: list[list[Any]] = [[] for _ in self._actors]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, act: Callable[[Any], Any]) -> list[Any]:
        """What `act` gives in each actor, for what it has loaded."""
        return [self._result(reference) for reference in [one.call.remote(act, ()) for one in self._actors]]

    def map(
        self, act: Callable[..., Any], work: Iterable[tuple[Any, ...]], watch: Stopwatch | None = None
    ) -> Iterator[Any]:
        """Results of pieces of work, in their order; a bounded number of them is under way.

        Args:
            act: Function of what an actor has loaded and the arguments of a piece.
            work: Arguments of each piece.
            watch: Gets the stage `model`: the time that is waited for results.

        Raises:
            LongspanError: a piece raised it.
            ClusterError: its actor died each time that it was tried.
        """
        watch = watch or Stopwatch()
        waiting: deque[Any] = deque()

        def first() -> Any:
            with watch.time("model"):
                return self._result(waiting.popleft())

        for arguments in work:
            while len(waiting) >= _AHEAD * len(self._actors):
                yield first()
            waiting.append(self._submit(act, arguments))
            while waiting and self._is_done(waiting[0]):
                yield first()
        while waiting:
            yield first()

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        if self._began:
            self._ray.shutdown()
        if sys.stdout is self._stdout:
            sys.stdout = self._real_stdout

    def _submit(self, act: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Give a piece of work to the actor that has the least before it."""
        for references in self._busy:
            references[:] = [reference for reference in references if not self._is_done(reference)]
        number = min(range(len(self._actors)), key=lambda one: len(self._busy[one]))
        reference = self._actors[number].call.remote(act, arguments)
        self._busy[number].append(reference)
        return reference

    def _is_done(self, reference: Any) -> bool:
        return bool(self._ray.wait([reference], timeout=0)[0])

    def _result(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, LongspanError):
                raise error.cause from error
            raise
        except self._ray.exceptions.RayError as error:
            raise ClusterError(
                f"An actor must live to the end of a piece of work. Received: one that died {1 + _RETRIES} times at "
                f"the same (what was done before is kept: run again to go on): {error}"
            ) from error


def one_answer(answers: list[tuple[Any, dict[str, Any]]]) -> tuple[Any, dict[str, Any]]:
    """The first of the actors' answers, each with what its results depend on, which must be the same for all."""
    first, *others = answers
    for _, identity in others:
        if differing := differences(first[1], identity):
            raise ClusterError(f"Actors must be alike. Received: actors that differ in {', '.join(differing)}")
    return first


def _connect(ray: Any, address: str) -> None:
    """Join or begin a cluster, quietly; signals stay with those who handle them."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do, and warns of until then
    settings = {"include_dashboard": False} if address == "local" else {}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, configure_logging=False, log_to_driver=False, **settings)
    except Exception as error:  # ray raises bare ones, such as for a start that takes too long
        raise ClusterError(f"A Ray cluster must answer at its address. Received: {address} ({error})") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _resources(nodes: list[dict[str, Any]], actors: int | None) -> tuple[dict[str, float], int]:
    """CPUs and GPUs of an actor, so that all find room, and their number."""
    found = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU")]
    num_gpus = int(sum(one.get("GPU", 0) for one in found))
    count = actors or num_gpus or 2 * len(found)
    cpus = min(one["CPU"] for one in found) / -(-count // len(found))
    gpus = num_gpus / count
    whole = {"num_cpus": cpus, "num_gpus": gpus}
    return {name: float(int(value)) if value >= 1 else int(100 * value) / 100 for name, value in whole.items()}, count


def _import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ModuleNotFoundError as error:
        raise MissingFrameworkError(
            "Work on a cluster needs ray, which is not installed: pip install 'longspan[ray]'"
        ) from error
    return ray
