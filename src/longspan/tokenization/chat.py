"""Chat templates: Jinja programs from a checkpoint that lay a conversation out as text, run in a sandbox.

A template comes from a file that nobody checked. The sandbox of Jinja keeps it from attributes and from changing its
arguments; here it has budgets as well: steps of `range`, sizes of products, characters of output.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from longspan.errors import ConfigError, InputError, LongspanError, MissingFrameworkError

#: most steps of all `range` of a run, and most items or characters that a product makes
_MAX_STEPS = 1_000_000
#: longest text, in characters
_MAX_OUTPUT = 50_000_000


def choose_template(stored: Any, name: str | None, *, has_tools: bool) -> str:
    """The template to use: a text given by the caller, or one of those that the checkpoint has.

    Args:
        stored: `chat_template` of the tokenizer: a text, or several by name.
        name: Name of one of them, or a template itself; None takes `"tool_use"` with tools, else `"default"`.
        has_tools: The call has tools.

    Raises:
        InputError: there is none.
    """
    if isinstance(stored, list | tuple):
        stored = {entry["name"]: entry["template"] for entry in stored}
    if isinstance(stored, Mapping):
        if name is None:
            name = "tool_use" if has_tools and "tool_use" in stored else "default"
        template = stored.get(name, name if "{" in name else None)
        if template is None:
            raise InputError(f"chat_template must be one of {', '.join(stored)}. Received: {name!r}")
        return str(template)
    if name is None and stored is None:
        raise InputError("apply_chat_template needs a template: the tokenizer has none, and chat_template is None")
    return str(stored if name is None else name)


def render(template: str, messages: Sequence[Any], **variables: Any) -> str:
    """Lay out one conversation.

    Args:
        template: The Jinja template.
        messages: The conversation.
        **variables: Further variables of the template.

    Raises:
        ConfigError: the template is no Jinja template, fails, or passes a budget.
        InputError: the template refuses the conversation.
        MissingFrameworkError: jinja2 is not installed.
    """
    parts, length = [], 0
    try:
        for part in _compile(template).generate(messages=messages, range=_Range(), **variables):
            length += len(part)
            if length > _MAX_OUTPUT:
                raise ConfigError(f"A chat template may write at most {_MAX_OUTPUT} characters.")
            parts.append(part)
    except LongspanError:
        raise
    except Exception as error:
        raise ConfigError(f"The chat template cannot be used: {type(error).__name__}: {str(error)[:300]}") from error
    return "".join(parts)


@functools.lru_cache(maxsize=32)
def _compile(template: str) -> Any:
    try:
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as error:
        raise MissingFrameworkError(
            "Chat templates need jinja2, which is not installed: pip install 'longspan[chat]'"
        ) from error

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**", "%"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_product(operator, left, right)
            return super().call_binop(context, operator, left, right)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)


class _Range:
    """`range` with a budget of steps for the whole run."""

    def __init__(self) -> None:
        self._left = _MAX_STEPS

    def __call__(self, *bounds: int) -> range:
        made = range(*bounds)
        self._left -= len(made)
        if self._left < 0:
            raise ConfigError(f"A chat template may take at most {_MAX_STEPS} steps of range.")
        return made


def _check_product(operator: str, left: Any, right: Any) -> None:
    """Refuse a product, a power or a format that may be far larger than its parts."""
    if operator == "%":
        is_large = isinstance(left, str)
    elif isinstance(left, int | float) and isinstance(right, int | float):
        is_large = (operator == "**" and abs(right) > 64) or abs(left) + abs(right) > 2**64
    else:
        is_large = _size(left) * _size(right) > _MAX_STEPS
    if is_large:
        raise ConfigError(f"A chat template may not compute {type(left).__name__} {operator} {type(right).__name__}.")


def _size(value: Any) -> int | float:
    return abs(value) if isinstance(value, int | float) else len(value)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> None:
    raise InputError(f"The chat template refuses the conversation: {message}")


def conversations(conversation: Any) -> tuple[list[Sequence[Any]], bool]:
    """The conversations of a call, and whether there are several."""
    if isinstance(conversation, str) or not isinstance(conversation, list | tuple):
        raise InputError(f"A conversation is a list of messages. Received: {type(conversation).__name__}")
    is_batch = bool(conversation) and not isinstance(conversation[0], Mapping)
    return (list(conversation), True) if is_batch else ([conversation], False)


def without_end(text: str, messages: Sequence[Any]) -> str:
    """The text up to the end of its last message, so that a model goes on with it.

    Raises:
        InputError: the template does not write the last message as it is.
    """
    content = messages[-1]["content"]
    final = content if isinstance(content, str) else content[-1]["text"]
    start = text.rfind(final.strip())
    if start < 0:
        raise InputError("continue_final_message needs a template that writes the last message as it is")
    end = start + len(final.lstrip())
    return text[:end] if text[start:end] == final.lstrip() else text[: start + len(final.strip())]
