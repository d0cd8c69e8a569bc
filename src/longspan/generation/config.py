"""Settings of text generation: names and defaults of the reference, for what longspan does; all else is refused."""

from __future__ import annotations

import copy
import functools
import json
import logging
import os
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from longspan.checkpoints.hub import Source
from longspan.checkpoints.untrusted import reading
from longspan.checkpoints.update import DirectoryUpdate
from longspan.configuration import SOURCE_ARGUMENTS, Declared, PretrainedConfig, check_types, read_json, require

logger = logging.getLogger("longspan")

GENERATION_CONFIG_NAME = "generation_config.json"

#: settings that only have a meaning while sampling
SAMPLING_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")

#: settings of the reference that longspan does not have, with the value that switches each off
_ABSENT: dict[str, Any] = {
    "assistant_early_exit": None,
    "constraints": None,
    "diversity_penalty": 0.0,
    "dola_layers": None,
    "force_words_ids": None,
    "guidance_scale": None,
    "num_beam_groups": 1,
    "penalty_alpha": None,
    "prompt_lookup_num_tokens": None,
    "return_legacy_cache": None,
    "token_healing": False,
    "watermarking_config": None,
}
#: settings of the reference that change how its tokens are computed and not which: any value is taken
_WITHOUT_EFFECT = (
    *("assistant_confidence_threshold", "assistant_lookbehind", "cache_config", "compile_config", "disable_compile"),
    *("is_assistant", "low_memory", "max_matching_ngram_size", "num_assistant_tokens"),
    *("num_assistant_tokens_schedule", "prefill_chunk_size", "target_lookbehind"),
)
_METADATA = ("transformers_version", "_from_model_config", "_commit_hash", "_original_object_hash")


_PENALTIES = ("repetition_penalty", "encoder_repetition_penalty")
#: settings, the rule that a number keeps, and whether it does
_RANGES: tuple[tuple[tuple[str, ...], str, Callable[[float], bool]], ...] = (
    (
        ("max_length", "max_new_tokens", "num_beams", "num_return_sequences", "max_time", *_PENALTIES),
        "must be positive",
        lambda value: value > 0,
    ),
    (
        ("min_length", "min_new_tokens", "top_k", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
        "must not be negative",
        lambda value: value >= 0,
    ),
    (("top_p", "typical_p"), "must lie in (0, 1]", lambda value: 0 < value <= 1),
    (("min_p", "epsilon_cutoff", "eta_cutoff"), "must lie in [0, 1)", lambda value: 0 <= value < 1),
)


class GenerationConfig(Declared):
    """How `generate` continues a prompt.

    All arguments are keyword-only. The strategy follows from two of them: greedy search by default, sampling with
    `do_sample=True`, beam search with `num_beams > 1`, and beam sampling with both.

    Args:
        max_length: Most tokens of a row, prompt included. Without this and `max_new_tokens`, 20 tokens are generated.
        max_new_tokens: Most tokens to generate; wins over `max_length`.
        min_length: Fewest tokens of a row, prompt included; the end token is impossible before.
        min_new_tokens: Fewest tokens to generate; wins over `min_length`.
        early_stopping: When beam search ends: True as soon as there are `num_beams` finished candidates; False when a
            better one is unlikely; `"never"` when a better one is impossible.
        max_time: Seconds after which generation stops, at the end of the step that is running.
        stop_strings: Text, or texts, that end a row once it has been generated; needs `tokenizer=`.
        do_sample: Draw the next token rather than take the likeliest.
        num_beams: Candidates that beam search keeps; 1 for none.
        use_cache: Keep what earlier tokens computed. False computes every token again in every step.
        cache_implementation: `"dynamic"` (default), which grows, or `"static"`, of a fixed size.
        temperature: Divides the scores before sampling; above 1 evens out, below 1 sharpens.
        top_k: Sample among that many likeliest tokens; 0 for all.
        top_p: Sample among the likeliest tokens that together reach this probability.
        min_p: Sample among tokens at least this likely, relative to the likeliest.
        typical_p: Sample among the tokens nearest the expected surprise that together reach this probability (Meister
            et al., 2022).
        epsilon_cutoff: Sample among tokens at least this likely (Hewitt et al., 2022); 0 for all.
        eta_cutoff: The same with a bound that falls where the distribution is even (same paper); 0 for all.
        repetition_penalty: Divides positive and multiplies negative scores of tokens that are there already (Keskar et
            al., 2019).
        encoder_repetition_penalty: The inverse, for tokens of the source (or of the prompt, without an encoder).
        length_penalty: Exponent of the length by which the score of a finished beam is divided; above 0 favours long
            rows.
        no_repeat_ngram_size: No sequence of that many tokens occurs twice; 0 for no such rule.
        encoder_no_repeat_ngram_size: No sequence of that many tokens of the source occurs; 0 for no such rule.
        bad_words_ids: Sequences of ids that must not be generated.
        renormalize_logits: Make the processed scores log-probabilities again.
        forced_bos_token_id: First generated token of a model whose prompt is one start token.
        forced_eos_token_id: Last token, or any of several, of a row that reaches its greatest length.
        remove_invalid_values: Replace NaN and infinite scores.
        exponential_decay_length_penalty: (start, factor): from `start` generated tokens on, the score of the end token
            grows by this factor per token.
        suppress_tokens: Ids that are never generated.
        begin_suppress_tokens: Ids that are not the first to be generated.
        sequence_bias: Added to the score of the last id of a sequence where the others precede it:
            `[[[ids], bias], ...]`, or `{(ids): bias}`.
        num_return_sequences: Rows to return for each prompt.
        output_attentions: Return attention weights of each step.
        output_hidden_states: Return hidden states of each step.
        output_scores: Return the processed scores of each step.
        output_logits: Return the unprocessed scores of each step.
        return_dict_in_generate: Return an output with fields rather than only the ids. Needed for the four above.
        pad_token_id: Id that fills rows that ended; default the end token.
        bos_token_id: Id to start from without a prompt.
        eos_token_id: Id, or ids, that end a row.
        decoder_start_token_id: First id of a decoder with an encoder, or a list with one for each row of the batch.
        **kwargs: Settings of the reference that longspan does not have, at the value that switches them off; those that
            only say how its tokens are computed, such as `disable_compile`, at any.

    Raises:
        ConfigError: a value breaks a rule, or a setting does not exist.

    Example:
        >>> from longspan import GenerationConfig
        >>> config = GenerationConfig(max_new_tokens=64, num_beams=4)
        >>> config.mode, config.temperature
        ('beam_search', 1.0)
    """

    max_length: int = 20
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    early_stopping: bool | Literal["never"] = False
    max_time: float | None = None
    stop_strings: str | list[str] | None = None
    do_sample: bool = False
    num_beams: int = 1
    use_cache: bool = True
    cache_implementation: Literal["dynamic", "static"] | None = None
    temperature: float | None = 1.0
    top_k: int | None = 50
    top_p: float | None = 1.0
    min_p: float | None = None
    typical_p: float | None = 1.0
    epsilon_cutoff: float | None = 0.0
    eta_cutoff: float | None = 0.0
    repetition_penalty: float | None = 1.0
    encoder_repetition_penalty: float | None = 1.0
    length_penalty: float = 1.0
    no_repeat_ngram_size: int | None = 0
    encoder_no_repeat_ngram_size: int | None = 0
    bad_words_ids: list[list[int]] | None = None
    renormalize_logits: bool = False
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    remove_invalid_values: bool = False
    exponential_decay_length_penalty: list[float] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    sequence_bias: dict[tuple[int, ...], float] | list[list[Any]] | None = None
    num_return_sequences: int = 1
    output_attentions: bool = False
    output_hidden_states: bool = False
    output_scores: bool = False
    output_logits: bool | None = None
    return_dict_in_generate: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | list[int] | None = None

    if not typing.TYPE_CHECKING:

        def __init__(self, **kwargs: Any) -> None:
            self._given = set()
            self._extra = {}
            for name, default in self._defaults.items():
                object.__setattr__(self, name, copy.deepcopy(default))
            self._assign(kwargs)

    #: settings that somebody chose, be it at their default; the others give way to a model's
    _given: set[str]
    #: a mark that the reference's training loops ask for and change
    _from_model_config: bool = False
    #: settings that the caller of `generate` chose
    _asked: frozenset[str] = frozenset()
    #: keys of a file that are no settings
    _extra: dict[str, Any]
    EXTRA_OUTPUTS: ClassVar[tuple[str, ...]] = (
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "output_logits",
    )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._defaults:
            self._given.add(name)
        elif not name.startswith("_"):
            require(False, _no_such_setting(name), **{name: value})
        super().__setattr__(name, value)

    def _assign(self, settings: Mapping[str, Any]) -> None:
        for name, value in settings.items():
            if name in _METADATA or name in _WITHOUT_EFFECT:
                continue
            if name in _ABSENT:
                require(
                    value == _ABSENT[name],
                    f"{name} is not supported by longspan, except at {_ABSENT[name]!r}, which switches it off",
                    **{name: value},
                )
                continue
            setattr(self, name, copy.deepcopy(value))
        self.validate()

    @property
    def mode(self) -> str:
        """`"greedy_search"`, `"sample"`, `"beam_search"` or `"beam_sample"`."""
        if self.num_beams > 1:
            return "beam_sample" if self.do_sample else "beam_search"
        return "sample" if self.do_sample else "greedy_search"

    @property
    def eos_token_ids(self) -> list[int]:
        """The ids that end a row, as a list."""
        eos = self.eos_token_id
        return [] if eos is None else list(eos) if isinstance(eos, list | tuple) else [eos]

    def validate(self) -> None:
        """Check every rule that does not depend on a model or a prompt.

        Raises:
            ConfigError: naming the rule and the value.
        """
        check_types(self)
        self._check_numbers()
        self._check_sequences()
        rows, beams = self.num_return_sequences, self.num_beams
        require(
            rows == 1 or self.do_sample or beams > 1,
            "greedy search gives one row per prompt: num_return_sequences > 1 needs do_sample=True or num_beams > 1",
            num_return_sequences=rows,
        )
        require(
            beams == 1 or rows <= beams,
            "num_return_sequences must not exceed num_beams",
            num_return_sequences=rows,
            num_beams=beams,
        )

    def _check_numbers(self) -> None:
        require(
            self.temperature is None or self.temperature > 0 or not self.do_sample,
            "temperature must be positive; for the likeliest token each time, use do_sample=False",
            temperature=self.temperature,
        )
        for names, rule, holds in _RANGES:
            for name in names:
                value = getattr(self, name)
                require(value is None or holds(value), f"{name} {rule}", **{name: value})
        decay = self.exponential_decay_length_penalty
        require(
            decay is None or (len(decay) == 2 and int(decay[0]) == decay[0] and decay[0] >= 0 and decay[1] > 0),
            "exponential_decay_length_penalty must be (start, factor), a count of tokens and a positive number",
            exponential_decay_length_penalty=decay,
        )

    def _check_sequences(self) -> None:
        words = self.bad_words_ids
        require(
            words is None or (len(words) > 0 and all(_is_sequence(word) for word in words)),
            "bad_words_ids must be a list of lists of ids, none of them empty",
            bad_words_ids=words,
        )
        bias = self.sequence_bias
        pairs = list(bias.items()) if isinstance(bias, dict) else bias
        require(
            pairs is None or (len(pairs) > 0 and all(len(p) == 2 and _is_sequence(p[0]) for p in pairs)),
            "sequence_bias must be [[[ids], bias], ...] or {(ids): bias}, without empty sequences",
            sequence_bias=bias,
        )
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            ids = getattr(self, name)
            require(ids is None or _is_sequence(ids) or ids == [], f"{name} must be a list of ids", **{name: ids})
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
            value = getattr(self, name)
            ids = value if isinstance(value, list | tuple) else [value]
            ok = value is None or (len(ids) > 0 and all(isinstance(i, int) and i >= 0 for i in ids))
            require(ok, f"{name} must not be negative", **{name: value})

    # -- combining ------------------------------------------------------------------------------------------------

    def ask(self, settings: Mapping[str, Any]) -> None:
        """Change what a caller of `generate` asks for, and remember that: files may be wrong where callers may not.

        Raises:
            ConfigError: a setting does not exist or a value breaks a rule.
        """
        self._assign(settings)
        self._asked = frozenset(settings)

    def was_asked(self, name: str) -> bool:
        """True if this setting was an argument of the present call of `generate`."""
        return name in self._asked

    def update(self, *, defaults_only: bool = False, **kwargs: Any) -> None:
        """Change several settings at once; with `defaults_only`, those that are None.

        Raises:
            ConfigError: a setting does not exist or a value breaks a rule.
        """
        self._assign({n: v for n, v in kwargs.items() if not defaults_only or getattr(self, n, None) is None})

    def _get_default_generation_params(self) -> dict[str, Any]:
        """What the newest training loops of the reference fill up unset values with; here, none is unset."""
        return {}

    def over(self, defaults: GenerationConfig) -> GenerationConfig:
        """A copy in which the settings that nobody chose are those of `defaults`."""
        combined = copy.deepcopy(defaults)
        if self is not defaults:
            combined._assign({name: getattr(self, name) for name in self._given})
        return combined

    def was_given(self, name: str) -> bool:
        """True if somebody chose this setting, be it at its default."""
        return name in self._given

    @classmethod
    def is_setting(cls, name: str) -> bool:
        """True for a setting of this class, or one of the reference that longspan lacks."""
        return name in cls._defaults or name in _ABSENT or name in _WITHOUT_EFFECT

    # -- plain data -----------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain data."""
        return {name: copy.deepcopy(getattr(self, name)) for name in self._defaults}

    def to_diff_dict(self) -> dict[str, Any]:
        """The settings that are not at their default, as a file holds them."""
        content = {name: value for name, value in self.to_dict().items() if value != self._defaults[name]}
        if isinstance(self.sequence_bias, dict):
            content["sequence_bias"] = [[list(ids), bias] for ids, bias in self.sequence_bias.items()]
        return self._extra | content

    def to_json_string(self) -> str:
        """The text of `generation_config.json`."""
        return json.dumps(self.to_diff_dict(), indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write `generation_config.json` into a directory, which is made if need be."""
        with DirectoryUpdate(save_directory) as update:
            update.write(GENERATION_CONFIG_NAME, self.to_json_string().encode("utf-8"))

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **overrides: Any) -> Self:
        """Make settings from plain data, with some of them changed."""
        return cls(**{**config_dict, **overrides})

    @classmethod
    def from_stored(cls, content: Mapping[str, Any], path: Path, **overrides: Any) -> Self:
        """Make settings from the content of a file, which is read more leniently than arguments.

        Null stands for the default where a setting cannot be None, and for the absence of one that longspan lacks. Keys
        that are no settings are kept, written back, and logged once.

        Args:
            content: Content of the file.
            path: The file, for messages.
            **overrides: Settings to change.

        Raises:
            ConfigError: naming the file, if it asks for something that longspan does not do or a value breaks a rule.
        """
        hints = typing.get_type_hints(cls)
        stored = {name: value for name, value in content.items() if name not in _METADATA}
        known = {
            name: value
            for name, value in stored.items()
            if cls.is_setting(name) and (value is not None or type(None) in typing.get_args(hints.get(name)))
        }
        with reading(path, "its settings of generation"):
            config = cls.from_dict(known, **overrides)
        config._extra = {n: value for n, value in stored.items() if value is not None and not cls.is_setting(n)}
        if config._extra:
            _log_unknown(str(path), ", ".join(sorted(config._extra))[:500])
        return config

    @classmethod
    def from_pretrained(cls, pretrained_model_name: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load the settings of a model.

        Args:
            pretrained_model_name: Directory with a `generation_config.json`, the file itself, or a hub repository.
            **kwargs: `revision`, `subfolder`, `cache_dir`, `local_files_only`, `force_download`, `token` say where
                to look; all others override settings.

        Raises:
            CheckpointNotFoundError: there is no such file.
            ConfigError: the file asks for something that longspan does not do, or a value breaks a rule.
        """
        source = {name: kwargs.pop(name) for name in SOURCE_ARGUMENTS if name in kwargs}
        path = Path(pretrained_model_name)
        file = path if path.is_file() else Source(pretrained_model_name, **source).require(GENERATION_CONFIG_NAME)
        return cls.from_stored(read_json(file), file, **kwargs)

    @classmethod
    def from_model_config(cls, model_config: PretrainedConfig) -> Self:
        """Take the settings that older checkpoints keep in `config.json`, such as `eos_token_id` and `num_beams`.

        Raises:
            ConfigError: one of them asks for something that longspan does not do.
        """
        return cls(**cls.found_in(model_config))

    @classmethod
    def found_in(cls, model_config: PretrainedConfig) -> dict[str, Any]:
        """The settings of generation that a model's `config.json` holds."""
        shared = ("use_cache", "output_attentions", "output_hidden_states")
        return {
            name: value
            for name, value in model_config.to_dict().items()
            if cls.is_setting(name) and value is not None and name not in shared
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


@functools.cache
def _log_unknown(path: str, names: str) -> None:
    logger.warning(
        "%s holds keys that are no settings of generation; they are kept and have no effect: %s", path, names
    )


def _is_sequence(ids: Any) -> bool:
    return (
        isinstance(ids, list | tuple)
        and len(ids) > 0
        and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids)
    )


def _no_such_setting(name: str) -> str:
    if name in ("logits_processor", "stopping_criteria", "streamer", "prefix_allowed_tokens_fn", "tokenizer"):
        return f"{name} is an argument of generate, not a setting of GenerationConfig"
    return f"generation has no setting {name!r}"
