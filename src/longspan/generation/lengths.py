"""What a call of `generate` settles before its loop, for every framework: settings, first ids, how long rows may be."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from longspan.errors import InputError
from longspan.generation.config import SAMPLING_SETTINGS, GenerationConfig

#: tokens that are generated if nothing is said about lengths
DEFAULT_NEW_TOKENS = 20


def combine(stored: GenerationConfig, given: GenerationConfig | None, own: Mapping[str, Any]) -> GenerationConfig:
    """The settings of a call: keywords win over an object, and that over what the model has.

    Args:
        stored: What the model has; stays as it is.
        given: An object that the caller passed.
        own: Keywords of the caller.
    """
    config = (stored if given is None else given).over(stored)
    config.ask(own)
    useless = [name for name in SAMPLING_SETTINGS if own.get(name) is not None]
    if useless and not config.do_sample:
        warnings.warn(f"{', '.join(useless)} have no effect without do_sample=True", stacklevel=5)
    return config


def start_tokens(config: GenerationConfig, *, batch: int) -> list[int]:
    """First id of each row of a decoder with an encoder.

    Raises:
        InputError: there is none, or the list of them has another length.
    """
    candidates = (config.decoder_start_token_id, config.bos_token_id, config.pad_token_id)
    start = next((token for token in candidates if token is not None), None)
    if start is None:
        raise InputError("a decoder with an encoder needs decoder_start_token_id. Received: None")
    if isinstance(start, int):
        return [start] * batch
    if len(start) != batch:
        raise InputError(
            f"decoder_start_token_id must be one id, or one for each of the {batch} rows. Received: {len(start)} ids"
        )
    return list(start)


def filling(config: GenerationConfig) -> int:
    """What fills rows that ended: padding, else the end token; 0 where rows only end together."""
    return config.pad_token_id if config.pad_token_id is not None else next(iter(config.eos_token_ids), 0)


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
    """Tokens of a row at least, prompt included; with a warning no more than at most, where files ask for more.

    Raises:
        InputError: the caller asked for more than the greatest length.
    """
    name = "min_length" if config.min_new_tokens is None else "min_new_tokens"
    least = config.min_length if config.min_new_tokens is None else prompt + config.min_new_tokens
    if least > greatest and not config.was_asked(name):
        warnings.warn(
            f"{name}={getattr(config, name)}, which is stored with the model, exceeds the greatest length: rows have "
            f"{greatest} tokens, with a prompt of {prompt}",
            stacklevel=5,  # the caller of `generate`
        )
        return greatest
    if least > greatest:
        raise InputError(
            "the least length must not exceed the greatest. Received: "
            f"min_length={config.min_length}, min_new_tokens={config.min_new_tokens}, but at most {greatest} tokens "
            f"with a prompt of {prompt}"
        )
    return least
