"""Batches side by side on a CPU, each on a share of PyTorch's threads.

Two threads that share every small step of a batch wait for each other after each; two batches do not.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from longspan.nn.torch.apply import may_replace
from longspan.ops.torch.modes import is_bound_to_thread

Item = TypeVar("Item")
Result = TypeVar("Result")

#: batches that are begun or done for each lane before the first result is taken
_AHEAD = 2
#: seconds in which the system ends a thread, at most
_ENDING = 1.0


def most_lanes(model: nn.Module) -> int:
    """How many batches of a model may run side by side: 1 if somebody looks into it, or for this thread alone."""
    is_free = may_replace(model) and not is_bound_to_thread()
    return torch.get_num_threads() if is_free else 1


def side_by_side(run: Callable[[Item], Result], items: Sequence[Item], lanes: int) -> Iterator[Result]:
    """run(item) for each item, in their order; the last ones, too few for all lanes, one by one on all threads.

    Args:
        run: What is called in threads of their own, with the context variables of the caller.
        items: What it is called with.
        lanes: How many at a time.

    Raises:
        Exception: what `run` raised; those that had begun are waited for, and no others begin.
    """
    num_shared = len(items) - len(items) % lanes
    if num_shared:
        yield from _in_lanes(run, items[:num_shared], lanes)
    yield from map(run, items[num_shared:])


def _in_lanes(run: Callable[[Item], Result], items: Sequence[Item], lanes: int) -> Iterator[Result]:
    num_threads, started = torch.get_num_threads(), threading.Barrier(lanes + 1)
    native_ids: list[int] = []

    def enter() -> None:
        native_ids.append(threading.get_native_id())
        torch.get_num_threads()  # a thread's first question sets it to the number of all threads
        torch.set_num_threads(max(num_threads // lanes, 1))
        started.wait()

    pool = ThreadPoolExecutor(lanes, thread_name_prefix="longspan-lane", initializer=enter)
    waiting: deque[Future[Result]] = deque()
    rest = iter(items)

    def submit(count: int) -> None:
        waiting.extend(pool.submit(contextvars.copy_context().run, run, item) for item in islice(rest, count))

    try:
        try:
            submit(lanes)
            started.wait()
        except BaseException:
            started.abort()
            raise
        torch.set_num_threads(num_threads)  # what a lane set for itself, PyTorch keeps for threads to come
        submit((_AHEAD - 1) * lanes)
        while waiting:
            yield waiting.popleft().result()
            submit(1)
    finally:
        pool.shutdown(cancel_futures=True)
        _await_ends(native_ids)


def _await_ends(native_ids: Iterable[int]) -> None:
    """Wait until the system has ended threads that Python has.

    On its way out a thread gives back what MKL kept for it, under a lock: a process that is forked meanwhile keeps
    the lock, and its first product waits for ever.
    """
    latest = time.monotonic() + _ENDING
    for each in native_ids:
        while Path(f"/proc/self/task/{each}").exists() and time.monotonic() < latest:
            time.sleep(0)
