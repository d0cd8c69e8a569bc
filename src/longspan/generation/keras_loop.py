"""Models at work in a loop over tokens, in Keras: each step is a program of XLA, the search runs on the host in NumPy.

Axes: B prompts, K rows or beams of each, R = B·K rows, P tokens of a prompt, L room for ids, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from longspan.checkpoints.keras import to_numpy
from longspan.generation.array_rules import LoopArrays
from longspan.nn.keras.runtime import compile_program

Array = NDArray[Any]


def _log_softmax(scores: Array) -> Array:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _unsort(marks: Array, order: Array) -> Array:
    unsorted = np.empty_like(marks)
    np.put_along_axis(unsorted, order, marks, axis=1)
    return unsorted


def _write(values: Array, start: int, columns: Array) -> Array:
    written = values.copy()
    written[..., start : start + columns.shape[-1]] = columns
    return written


def _present(ids: Array, there: Array, vocabulary: int) -> Array:
    present = np.zeros((len(ids), vocabulary), np.bool_)
    np.logical_or.at(present, (np.arange(len(ids))[:, None], ids), there)
    return present


def _top(values: Array, number: int) -> tuple[Array, Array]:
    places = np.argpartition(-values, min(number, values.shape[1] - 1), axis=1)[:, :number]
    places = np.take_along_axis(places, np.argsort(-np.take_along_axis(values, places, 1), axis=1, kind="stable"), 1)
    return np.take_along_axis(values, places, axis=1), places


def _gumbel(key: np.random.Generator, step: int, shape: tuple[int, ...]) -> Array:
    return key.gumbel(size=shape).astype(np.float32)


def _loop(goes_on: Callable[[Any], Any], advance: Callable[[Any], Any], state: Any) -> Any:
    while goes_on(state):
        state = advance(state)
    return state


ARRAYS = LoopArrays(
    xp=np,
    softmax=lambda scores: np.exp(_log_softmax(scores)),
    log_softmax=_log_softmax,
    take=lambda values, index: np.take_along_axis(values, index, axis=1),
    unsort=_unsort,
    largest=lambda values, number: _top(values, number)[0],
    places=lambda number, where: np.arange(number),
    smallest=lambda values: float(np.finfo(values.dtype).min),
    read=lambda values, start, number: values[..., start : start + number],
    write=_write,
    present=_present,
    top=_top,
    draw=lambda key, step, scores: (scores + _gumbel(key, step, scores.shape)).argmax(axis=-1),
    gumbel=_gumbel,
    loop=_loop,
    number=float,
)


class Programs:
    """The compiled programs of one model: reading prompts, one for each number of rows and room, and one step.

    Args:
        model: Has `begin_generation` and `continue_generation`.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._begin: dict[tuple[int, int], Any] = {}
        self._step = compile_program(model, self._continue)

    def begin(self, inputs: Mapping[str, Array], *, rows: int, room: int) -> tuple[Any, Any, Any]:
        """Read prompts: logits (R, V) of what follows, the cache of R rows, and what rows of a prompt share."""
        if (rows, room) not in self._begin:
            function = partial(self._read, rows=rows, room=room)
            self._begin[rows, room] = compile_program(self._model, function)
        results: tuple[Any, Any, Any] = self._begin[rows, room](
            {name: ops.convert_to_tensor(part) for name, part in inputs.items()}
        )
        return results

    def step(self, tokens: Array, cache: Any, shared: Any, write_at: int, origin: Array | None) -> tuple[Any, Any]:
        """Logits (R, V) that follow the tokens (R,), and the cache; rows go on from those at `origin` (R,)."""
        places = None if origin is None else ops.convert_to_tensor(origin.astype(np.int32))
        column = ops.convert_to_tensor(tokens[:, None].astype(np.int32))
        at = ops.convert_to_tensor(np.asarray(write_at, np.int32))
        results: tuple[Any, Any] = self._step(column, cache, shared, at, places)
        return results

    def _read(self, inputs: Mapping[str, Any], *, rows: int, room: int) -> tuple[Any, Any, Any]:
        logits, cache, shared = self._model.begin_generation(inputs, room)
        logits, cache = keras.tree.map_structure(lambda part: ops.repeat(part, rows, axis=0), (logits, cache))
        return ops.cast(logits, "float32"), cache, shared

    def _continue(self, tokens: Any, cache: Any, shared: Any, write_at: Any, origin: Any) -> tuple[Any, Any]:
        if origin is not None:
            cache = keras.tree.map_structure(lambda part: ops.take(part, origin, axis=0), cache)
        logits, cache = self._model.continue_generation(tokens, cache, shared, write_at)
        return ops.cast(logits, "float32"), cache


@dataclass
class Stepper:
    """A model that has read its prompts.

    Attributes:
        programs: Its programs.
        shared: What rows of a prompt share.
    """

    programs: Programs
    shared: Any

    def step(self, cache: Any, tokens: Array, position: int, origin: Array | None) -> tuple[Array, Any]:
        """See `longspan.generation.array_loop.Step`."""
        logits, cache = self.programs.step(tokens, cache, self.shared, position, origin)
        return to_numpy(logits), cache
