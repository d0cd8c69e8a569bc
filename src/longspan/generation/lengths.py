"""How long rows may become, for every framework."""

from __future__ import annotations

import warnings

from longspan.errors import InputError
from longspan.generation.config import GenerationConfig

#: tokens that are generated if nothing is said about lengths
DEFAULT_NEW_TOKENS = 20


def greatest_length(config: GenerationConfig, *, prompt: int, limit: int | None) -> int:
    """Tokens of a row at most, prompt included.

    Args:
        config: Settings.
        prompt: Tokens of the prompt.
        limit: Positions of the model; None if it has no limit.

    Raises:
        InputError: nothing can be generated.
    """
    if limit is not None and prompt >= limit:
        raise InputError(
            f"the prompt must be shorter than the model's {limit} positions, so that something can be generated. "
            f"Received: {prompt} tokens"
        )
    if config.max_new_tokens is not None:
        length = prompt + config.max_new_tokens
    elif config.was_given("max_length"):
        length = config.max_length
        if prompt >= length:
            raise InputError(
                "max_length counts the prompt and must exceed it; use max_new_tokens to count new tokens only. "
                f"Received: max_length={length}, a prompt of {prompt} tokens"
            )
    else:
        length = prompt + DEFAULT_NEW_TOKENS
        length = length if limit is None else min(length, limit)
    if limit is not None and length > limit:
        warnings.warn(
            f"the model has {limit} positions: after a prompt of {prompt} tokens it can generate {limit - prompt}, not "
            f"{length - prompt}",
            stacklevel=5,  # the caller of `generate`
        )
        length = limit
    return length


def least_length(config: GenerationConfig, *, prompt: int, greatest: int) -> int:
    """Tokens of a row at least, prompt included.

    Raises:
        InputError: the greatest length is less.
    """
    least = config.min_length if config.min_new_tokens is None else prompt + config.min_new_tokens
    if least > greatest:
        raise InputError(
            "the least length must not exceed the greatest. Received: "
            f"min_length={config.min_length}, min_new_tokens={config.min_new_tokens}, but at most {greatest} tokens "
            f"with a prompt of {prompt}"
        )
    return least
