"""What the calls of a pipeline can be told, and how arguments are checked."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self, get_args

from longspan.checkpoints.hub import Source
from longspan.configuration import SOURCE_ARGUMENTS
from longspan.errors import InputError
from longspan.pipelines.long.splitter import OnLong
from longspan.tokenization.auto import AutoTokenizer

#: Arguments that say where a model is.
_PLACE = ("revision", "cache_dir", "local_files_only", "token")
#: Arguments of the reference for which there is nothing here but None.
_ABSENT = ("device_map", "feature_extractor", "image_processor", "processor", "pipeline_class")
_PADDINGS = ("True", "False", "longest", "max_length", "do_not_pad")


@dataclass(frozen=True)
class Options:
    """Settings of every task.

    Attributes:
        on_long: What to do with a text longer than `max_length`: `"window"` reads all of it in overlapping windows,
            `"truncate"` reads its beginning, `"error"` raises.
        stride: Tokens that a window shares with the one before it (as in the reference's tokenizers); default an eighth
            of a window.
        max_length: Most tokens of a window, special tokens included; default what model and tokenizer allow.
        batch_tokens: Most positions of a batch, padding included; default what suits the device.
        batch_size: Most rows of a batch; default what `batch_tokens` allows.
        show_progress: Draw a bar with documents and tokens on the standard error stream.
    """

    on_long: OnLong = "window"
    stride: int | None = None
    max_length: int | None = None
    batch_tokens: int | None = None
    batch_size: int | None = None
    show_progress: bool = False

    def __post_init__(self) -> None:
        if self.on_long not in get_args(OnLong):
            raise InputError(
                f"on_long must be one of {', '.join(get_args(OnLong))}. Received: on_long={self.on_long!r}"
            )

    def updated(self, settings: Mapping[str, Any], task: str) -> Self:
        """These options with some changed.

        Args:
            settings: Options by name. The reference's words are understood too: `truncation=True` for
                `on_long="truncate"`, `tokenizer_kwargs` and `tokenize_kwargs` with such words in them, and `padding`
                and `num_workers`, which change no result.
            task: Name of the task, for errors.

        Raises:
            InputError: there is no such option, or its value breaks a rule.
        """
        settings = dict(settings)
        for name in ("tokenizer_kwargs", "tokenize_kwargs"):
            settings = {**(settings.pop(name, None) or {}), **settings}
        check_choice("padding", str(settings.pop("padding", False)), _PADDINGS)
        settings.pop("num_workers", None)
        settings = self._renamed(settings)
        if "truncation" in settings:
            settings["on_long"] = _on_long(settings.pop("truncation"), settings.get("on_long", self.on_long))
        known = [field.name for field in fields(self)]
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise InputError(
                f"The options of {task} are {', '.join(known)}. Received: {unknown[0]}={settings[unknown[0]]!r}"
            )
        return replace(self, **settings)

    def _renamed(self, settings: dict[str, Any]) -> dict[str, Any]:
        """`settings` with the reference's old words for options of the task put as those of today."""
        return settings


def warn_of_old_word(word: str, today: str) -> None:
    """Warn, as the reference does, that `word` is an old one, and say what it is read as."""
    warnings.warn(f"{word} is deprecated: it is read as {today}", UserWarning, stacklevel=2)


def _on_long(truncation: Any, otherwise: OnLong) -> OnLong:
    if truncation in (True, "longest_first", "only_first"):
        return "truncate"
    if truncation in (False, None, "do_not_truncate"):
        return otherwise
    raise InputError(f"truncation must be True or False (see on_long for more). Received: truncation={truncation!r}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `InputError` unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}. Received: {name}={value!r}")


def check_at_least(name: str, value: int | None, least: int) -> None:
    """Raise `InputError` if `value` is a number below `least`."""
    if value is not None and value < least:
        raise InputError(f"{name} must be at least {least}. Received: {name}={value}")


def source_of(model: Any, **place: Any) -> Source | Any:
    """Where a model is, by a directory or a hub repository and arguments of `Source`; a loaded model as it is."""
    return Source(model, **place) if isinstance(model, str | os.PathLike) else model


def device_name(device: str | int | None) -> str | None:
    """A device in words; a number is that CUDA device, -1 the CPU."""
    if isinstance(device, int):
        return "cpu" if device < 0 else f"cuda:{device}"
    return None if device is None else str(device)


def dtype_name(dtype: Any) -> str | None:
    """A dtype in words: `torch.bfloat16` is `"bfloat16"`."""
    return None if dtype is None else str(getattr(dtype, "name", dtype)).removeprefix("torch.")


def reference_words(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a writing task without those of the reference that change nothing here.

    Texts are returned unless `return_tensors` is True; `return_text` may say so too.

    Raises:
        InputError: nothing would be returned.
    """
    rest = dict(given)
    rest.pop("num_workers", None)
    return_text = rest.pop("return_text", None)
    if return_text is False and not rest.get("return_tensors"):
        raise InputError("return_text=False needs return_tensors=True. Received: return_text=False alone")
    return rest


def constructor_words(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a pipeline with those words of the reference that mean an argument of longspan put as that.

    `torch_dtype` is `dtype`; `model_kwargs` may hold arguments of the pipeline; `num_workers` and `use_fast` change
    nothing, for texts are tokenized beside the model by the Rust tokenizer always; nor do a `device_map` of `"auto"`,
    which means the first accelerator, and words for what longspan has not, where they are None.

    Raises:
        InputError: `trust_remote_code` is True, or `num_workers` is no number.
    """
    given = dict(arguments)
    kwargs = dict(given.pop("model_kwargs", None) or {})
    for name in ("dtype", "torch_dtype", "attn_implementation", *_PLACE):
        if name in kwargs:
            given.setdefault(name, kwargs.pop(name))
    if kwargs:
        given["model_kwargs"] = kwargs
    if "torch_dtype" in given:
        given.setdefault("dtype", given.pop("torch_dtype"))
        given.pop("torch_dtype", None)
    if given.pop("trust_remote_code", None):
        raise InputError(
            "longspan has every model's code in itself and runs none of a checkpoint. Received: trust_remote_code=True"
        )
    workers = given.pop("num_workers", None)
    if workers is not None and not (isinstance(workers, int) and workers >= 0):
        raise InputError(f"num_workers must be a whole number, at least 0. Received: num_workers={workers!r}")
    given.pop("use_fast", None)
    if given.get("device_map") == "auto":
        del given["device_map"]
    return {name: value for name, value in given.items() if value is not None or name not in _ABSENT}


def model_settings(
    config: Any, overrides: Mapping[str, Any] | None, attn_implementation: str | None, model: Any
) -> dict[str, Any]:
    """Further arguments of `from_pretrained`: a configuration, settings that win over the stored ones, attention.

    Raises:
        InputError: they are given with a loaded model, which they would not change.
    """
    named = {"config": config, "attn_implementation": attn_implementation}
    given = {**{name: value for name, value in named.items() if value is not None}, **(overrides or {})}
    if given and not isinstance(model, str | os.PathLike):
        raise InputError(f"{next(iter(given))} goes with the name of a model. Received: a {type(model).__name__}")
    return given


def load_tokenizer(source: Source | Any, tokenizer: Any) -> Any:
    """The tokenizer that is given, or named (also as `(name, options)`), or that of the checkpoint `source`."""
    if isinstance(tokenizer, tuple):
        if len(tokenizer) != 2 or not isinstance(tokenizer[1], Mapping):
            raise InputError(f"A tokenizer may be given as (name, options). Received: tokenizer={tokenizer!r}")
        return AutoTokenizer.from_pretrained(tokenizer[0], **tokenizer[1])
    if isinstance(tokenizer, str | os.PathLike):
        return AutoTokenizer.from_pretrained(tokenizer)
    if tokenizer is not None:
        return tokenizer
    if not isinstance(source, Source):
        raise InputError("tokenizer must be given with a loaded model. Received: tokenizer=None")
    settings: dict[str, Any] = {name: getattr(source, name) for name in SOURCE_ARGUMENTS}
    return AutoTokenizer.from_pretrained(source.name, **settings)
