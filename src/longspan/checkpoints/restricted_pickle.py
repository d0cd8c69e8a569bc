"""A reader of pickles that runs nothing: it understands plain data and the few calls that describe tensors.

A pickle is a program for a small stack machine. Python's own machine imports and calls what the file names; this one
has no import and no call. Names stay names, and a call is carried out only if its name is in a table of functions
given by the caller. `pickletools` from the standard library splits the program into its instructions.

A short program can describe a huge object: tuples that hold an earlier tuple ten times, and that one again. Nothing
here walks through what was read: keys are texts or numbers, messages are cut, and instructions, what they gather and
the digits of numbers have a budget.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from longspan.checkpoints.untrusted import MAX_TENSORS, shown
from longspan.errors import CheckpointError, UnsafeCheckpointError

_MARK = object()
#: most instructions of all pickles of a file, and most items that its calls gather; a tensor takes about 30 of them
_MAX_WORK = 10 * MAX_TENSORS
#: longest whole number, in bits
_MAX_BITS = 128

#: instructions whose argument is the value they push
_CONSTANTS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    )
)
_SINGLETONS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: Mapping[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class Name:
    """A global that a pickle refers to, such as `torch.FloatStorage`; nothing was imported."""

    path: str


class PlainUnpickler:
    """Reads one pickle after another from a stream.

    Args:
        stream: Open binary file.
        title: Name of the file, for messages.
        names: Globals that the pickle may refer to: dotted name to the function that carries out a call of it, or
            None if it may only be named.
        persistent: Makes the object for a persistent id.
    """

    def __init__(
        self,
        stream: BinaryIO,
        *,
        title: str,
        names: Mapping[str, Callable[..., Any] | None],
        persistent: Callable[[Any], Any],
    ) -> None:
        self._stream = stream
        self._title = title
        self._names = names
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._left = _MAX_WORK

    def load(self) -> Any:
        """Read one pickle.

        Returns:
            The object it describes.

        Raises:
            UnsafeCheckpointError: if it refers to anything outside the table of names.
            CheckpointError: if it is damaged.
        """
        self._stack, self._memo = [], {}
        try:
            for opcode, argument, _ in pickletools.genops(self._stream):
                self._spend(1)
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"{self._title} holds a damaged pickle: {type(error).__name__}({str(error)[:200]})"
            ) from error
        raise CheckpointError(f"{self._title} holds a damaged pickle: it ends without a STOP.")

    def _spend(self, work: int) -> None:
        self._left -= work
        if self._left < 0:
            raise CheckpointError(f"{self._title} holds a pickle of more than {_MAX_WORK} instructions and items.")

    def _step(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            if type(argument) is int and argument.bit_length() > _MAX_BITS:
                raise ValueError(f"a whole number of {argument.bit_length()} bits")
            self._stack.append(argument)
        elif name in _SINGLETONS:
            self._stack.append(_SINGLETONS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            self._stack[-_TUPLES[name] :] = [tuple(self._stack[-_TUPLES[name] :])]
        else:
            handler = getattr(self, f"_do_{name.lower()}", None)
            if handler is None:
                raise self._refuse(f"the instruction {name}")
            handler(argument)

    def _refuse(self, what: str) -> UnsafeCheckpointError:
        return UnsafeCheckpointError(
            f"{self._title} may hold nothing but tensors and plain data, and nothing in it is run. Received: {what}"
        )

    def _since_mark(self) -> list[Any]:
        """Take everything above the topmost mark off the stack."""
        position = len(self._stack) - 1
        while self._stack[position] is not _MARK:
            position -= 1
            if position < 0:
                raise ValueError("no mark on the stack")
        items = self._stack[position + 1 :]
        del self._stack[position:]
        return items

    def _do_proto(self, argument: int) -> None:
        if argument > 5:
            raise CheckpointError(f"{self._title} holds a pickle of an unknown protocol, {argument}.")

    def _do_frame(self, argument: int) -> None:
        """A frame only groups instructions."""

    def _do_mark(self, argument: None) -> None:
        self._stack.append(_MARK)

    def _do_pop(self, argument: None) -> None:
        self._stack.pop()

    def _do_pop_mark(self, argument: None) -> None:
        self._since_mark()

    def _do_tuple(self, argument: None) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _do_list(self, argument: None) -> None:
        self._stack.append(self._since_mark())

    def _do_append(self, argument: None) -> None:
        item = self._stack.pop()
        self._container(list).append(item)

    def _do_appends(self, argument: None) -> None:
        items = self._since_mark()
        self._container(list).extend(items)

    def _do_dict(self, argument: None) -> None:
        items = self._since_mark()
        self._stack.append(_mapping(zip(items[::2], items[1::2], strict=True)))

    def _do_setitem(self, argument: None) -> None:
        key, value = self._stack[-2:]
        del self._stack[-2:]
        self._container(dict).update(_mapping([(key, value)]))

    def _do_setitems(self, argument: None) -> None:
        items = self._since_mark()
        self._container(dict).update(_mapping(zip(items[::2], items[1::2], strict=True)))

    def _container(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise ValueError(f"items for something that is no {kind.__name__}")
        return self._stack[-1]

    def _do_put(self, argument: int) -> None:
        self._memo[int(argument)] = self._stack[-1]

    _do_binput = _do_long_binput = _do_put

    def _do_memoize(self, argument: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _do_get(self, argument: int) -> None:
        self._stack.append(self._memo[int(argument)])

    _do_binget = _do_long_binget = _do_get

    def _do_global(self, argument: str) -> None:
        self._push_name(argument.replace(" ", "."))

    def _do_stack_global(self, argument: None) -> None:
        module, attribute = self._stack[-2:]
        del self._stack[-2:]
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise ValueError("a name that is no text")
        self._push_name(f"{module}.{attribute}")

    def _push_name(self, path: str) -> None:
        if path not in self._names:
            raise self._refuse(path[:200])
        self._stack.append(Name(path))

    def _do_reduce(self, argument: None) -> None:
        function, arguments = self._stack[-2:]
        del self._stack[-2:]
        call = self._names[function.path] if isinstance(function, Name) else None
        if call is None or not isinstance(arguments, tuple):
            raise self._refuse(f"a call of {getattr(function, 'path', type(function).__name__)}")
        self._spend(sum(len(part) if isinstance(part, tuple | list) else 1 for part in arguments))
        self._stack.append(call(*arguments))

    def _do_build(self, argument: None) -> None:
        """Drop the attributes of a mapping, such as the version numbers that PyTorch hangs on a state dict."""
        self._stack.pop()
        if not isinstance(self._stack[-1], dict):
            raise self._refuse(f"attributes for a {type(self._stack[-1]).__name__}")

    def _do_binpersid(self, argument: None) -> None:
        self._stack.append(self._persistent(self._stack.pop()))


def _mapping(pairs: Iterable[tuple[Any, Any]]) -> dict[str | int, Any]:
    """A dict whose keys are texts or numbers: others would be hashed, however deep they nest."""
    found: dict[str | int, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str | int):
            raise ValueError(f"a key that is neither text nor number: {shown(key)}")
        found[key] = value
    return found


def ordered_dict(items: Any = ()) -> dict[str | int, Any]:
    """What a call of `collections.OrderedDict` in a pickle gives: a plain dict."""
    return _mapping(items.items() if isinstance(items, dict) else items)
