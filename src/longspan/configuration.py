"""Model configurations: the Hugging Face keys verbatim, unknown keys kept, checked when made.

A family declares its settings once, as annotated class attributes:

    class BertConfig(PretrainedConfig):
        model_type: ClassVar[str] = "bert"
        vocab_size: int = 30522

The keyword-only constructor, its signature, the JSON round trip and the type checks follow from that declaration.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import os
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self, dataclass_transform

from longspan.checkpoints.hub import Source
from longspan.checkpoints.untrusted import read_json as read_json  # importers find it here
from longspan.checkpoints.untrusted import reading
from longspan.checkpoints.update import DirectoryUpdate
from longspan.errors import ConfigError
from longspan.ranges import Count, Number, Range, TokenId, ranges_in

CONFIG_NAME = "config.json"
#: the reference's names of attributes that are public here
_REFERENCE_NAMES = {"_name_or_path": "name_or_path", "_attn_implementation": "attn_implementation"}
#: most classes of a head
MAX_LABELS = 1_000_000
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

#: keyword arguments of `from_pretrained` that say where the file is
SOURCE_ARGUMENTS = ("revision", "subfolder", "cache_dir", "local_files_only", "force_download", "token")


#: keywords of the reference's `from_pretrained` that change nothing here
_WITHOUT_EFFECT = ("resume_download", "proxies", "mirror", "user_agent", "_commit_hash", "_from_auto", "_from_pipeline")


def source_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take what says where files are out of the keywords of a `from_pretrained`.

    Raises:
        ConfigError: `trust_remote_code=True`.
    """
    require(
        not kwargs.pop("trust_remote_code", None),
        "trust_remote_code is not supported: checkpoints hold no code that could be trusted, longspan has its classes",
        trust_remote_code=True,
    )
    older = kwargs.pop("use_auth_token", None)
    if older is not None:
        kwargs.setdefault("token", older)
    for name in _WITHOUT_EFFECT:
        kwargs.pop(name, None)
    return {name: kwargs.pop(name) for name in SOURCE_ARGUMENTS if name in kwargs}


def require(condition: bool, rule: str, **received: Any) -> None:
    """Raise `ConfigError` unless `condition` holds.

    Args:
        condition: What must be true.
        rule: The rule as a sentence without a full stop, e.g. `"hidden_size must be positive"`.
        **received: The values that came, by name.

    Raises:
        ConfigError: "<rule>. Received: name=value, ...".
    """
    if not condition:
        values = ", ".join(f"{name}={value!r}" for name, value in received.items())
        raise ConfigError(f"{rule}. Received: {values}")


@dataclass_transform(kw_only_default=True)
class Declared:
    """Collects annotated class attributes of the subclasses as settings."""

    #: setting -> default, over the whole inheritance line
    _defaults: ClassVar[dict[str, Any]] = {}
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = {
            name: getattr(cls, name)
            for name, annotation in inspect.get_annotations(cls).items()
            if not name.startswith("_") and "ClassVar" not in str(annotation)
        }
        inherited = {name: default for name, default in cls._defaults.items() if name not in own}
        cls._defaults = own | inherited
        parameters = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for name, default in cls._defaults.items()
        ]
        extra = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
        cls.__signature__ = inspect.Signature([*parameters, extra])


class PretrainedConfig(Declared):
    """Settings that every family shares; the base class of all configurations.

    Building a model from a configuration gives random weights; weights come from `from_pretrained` of the model.
    All arguments are keyword-only. Unknown keys are kept as attributes and written back. Attributes may be changed
    (`config.is_decoder = True`); a model checks the configuration again when it is built.

    Args:
        output_hidden_states: Return the hidden states of all layers.
        output_attentions: Return the attention weights of all layers.
        return_dict: Return a `ModelOutput` rather than a plain tuple.
        dtype: Name of the dtype of the stored weights, e.g. `"float32"` (`torch_dtype` is accepted as well).
        pruned_heads: Heads removed from each layer, `{layer: [heads]}`.
        tie_word_embeddings: Share the input embedding with the output projection.
        chunk_size_feed_forward: Tokens that a feed-forward layer takes at a time; 0 takes all.
        is_encoder_decoder: The model has an encoder and a decoder.
        is_decoder: The model attends causally and may keep a cache.
        cross_attention_hidden_size: Width of the encoder states in cross-attention, if it differs.
        add_cross_attention: Add cross-attention layers (needs `is_decoder`).
        tie_encoder_decoder: Share the weights of encoder and decoder.
        architectures: Class names that this checkpoint was saved from.
        finetuning_task: Name of the task of fine-tuning.
        id2label: Label of each class index, `{0: "O", 1: "PER"}`; its length is `num_labels`.
        label2id: The inverse; derived from `id2label` if not given.
        task_specific_params: Settings by task, kept as they are.
        problem_type: `"regression"`, `"single_label_classification"`, `"multi_label_classification"`, or None, which
            infers it from the labels.
        tokenizer_class: Name of the tokenizer class of the checkpoint.
        prefix: Text put before each input, kept as it is.
        bos_token_id: Id of the beginning-of-sequence token.
        pad_token_id: Id of the padding token.
        eos_token_id: Id of the end-of-sequence token.
        sep_token_id: Id of the separator token.
        decoder_start_token_id: First id that the decoder is fed.
        **kwargs: `num_labels` (makes `LABEL_0`, ... ), `attn_implementation` (`"auto"` or the name of an
            implementation), and any other key, which is kept.

    Raises:
        ConfigError: a value breaks a rule; the message names the rule and the value.

    Example:
        >>> from longspan import BertConfig
        >>> config = BertConfig(num_hidden_layers=2, num_labels=3)
        >>> config.num_labels, config.id2label[2]
        (3, 'LABEL_2')
    """

    model_type: ClassVar[str] = ""
    #: other names of settings: alias -> setting
    attribute_map: ClassVar[dict[str, str]] = {}
    # what tools of the reference look up
    sub_configs: ClassVar[dict[str, Any]] = {}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    _auto_class: ClassVar[str | None] = None
    _commit_hash: str | None = None
    #: settings of longspan that the reference does not know; files leave them out at their default
    own_settings: ClassVar[frozenset[str]] = frozenset()

    output_hidden_states: bool = False
    output_attentions: bool = False
    return_dict: bool = True
    dtype: str | None = None
    pruned_heads: dict[int, list[int]] = {}  # noqa: RUF012 - copied for each instance
    tie_word_embeddings: bool = True
    chunk_size_feed_forward: Number = 0
    is_encoder_decoder: bool = False
    is_decoder: bool = False
    cross_attention_hidden_size: Count | None = None
    add_cross_attention: bool = False
    tie_encoder_decoder: bool = False
    architectures: list[str] | None = None
    finetuning_task: str | None = None
    id2label: dict[int, str] | None = None
    label2id: dict[str, int] | None = None
    task_specific_params: dict[str, Any] | None = None
    problem_type: str | None = None
    tokenizer_class: str | None = None
    prefix: str | None = None
    bos_token_id: TokenId | None = None
    pad_token_id: TokenId | None = None
    eos_token_id: TokenId | list[TokenId] | None = None
    sep_token_id: TokenId | None = None
    decoder_start_token_id: TokenId | None = None

    if typing.TYPE_CHECKING:  # type checkers derive the constructor from the declared settings
        num_labels: int = 2
        attn_implementation: str = "auto"
    else:

        def __init__(self, **kwargs: Any) -> None:
            kwargs = {self.attribute_map.get(name, name): value for name, value in kwargs.items()}
            kwargs.pop("model_type", None)
            own_name = kwargs.pop("_name_or_path", "")
            self.name_or_path = str(kwargs.pop("name_or_path", own_name))
            implementation = kwargs.pop("_attn_implementation", None)
            self.attn_implementation = kwargs.pop("attn_implementation", implementation) or "auto"
            torch_dtype = kwargs.pop("torch_dtype", None)
            num_labels = kwargs.pop("num_labels", None)
            for name, default in self._defaults.items():
                setattr(self, name, kwargs.pop(name) if name in kwargs else copy.deepcopy(default))
            for name, value in kwargs.items():
                setattr(self, name, value)
            if self.dtype is None and torch_dtype is not None:
                self.dtype = torch_dtype
            self._complete_labels(num_labels)
            with _as("pruned_heads", "layers to lists of heads", self.pruned_heads):
                self.pruned_heads = {int(layer): list(heads) for layer, heads in self.pruned_heads.items()}
            self.validate()

        @property
        def num_labels(self) -> int:
            """Number of classes of a classification head: the length of `id2label`."""
            return len(self.id2label or {})

    def __setattr__(self, name: str, value: Any) -> None:
        name = self.attribute_map.get(name, name)
        name = _REFERENCE_NAMES.get(name, name)
        if name in ("dtype", "torch_dtype"):
            name, value = "dtype", _dtype_name(value)
        if name == "num_labels":
            self._set_num_labels(value)
            return
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:  # only called for names that are not stored
        if name == "torch_dtype":
            return self.dtype
        target = type(self).attribute_map.get(name, _REFERENCE_NAMES.get(name))
        if target is None:
            raise AttributeError(f"{type(self).__name__} has no setting {name!r}")
        return getattr(self, target)

    @property
    def use_return_dict(self) -> bool:
        """The reference's name for `return_dict`."""
        return self.return_dict

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Self:
        """This configuration: there are no others inside it."""
        return self

    def __iter__(self) -> Iterator[str]:
        """The names of all settings, so that `"num_labels" in config` can be asked."""
        return iter(self.to_dict())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self.to_dict() or name in _REFERENCE_NAMES)

    def validate(self) -> None:
        """Check every rule of the settings; families extend it.

        Raises:
            ConfigError: naming the rule and the value.
        """
        check_types(self)
        vocab_size = vars(self).get("vocab_size")
        require(
            vocab_size is None or self.pad_token_id is None or self.pad_token_id < vocab_size,
            "pad_token_id must lie in the vocabulary",
            pad_token_id=self.pad_token_id,
            vocab_size=vocab_size,
        )
        num_layers, num_heads = getattr(self, "num_hidden_layers", None), getattr(self, "num_attention_heads", None)
        if num_layers is not None and num_heads is not None:
            require(
                all(
                    -num_layers <= layer < num_layers
                    and all(isinstance(head, int) and 0 <= head < num_heads for head in heads)
                    for layer, heads in self.pruned_heads.items()
                ),
                "pruned_heads must name layers and heads of the model",
                pruned_heads=self.pruned_heads,
            )
        require(
            self.problem_type is None or self.problem_type in PROBLEM_TYPES,
            f"problem_type must be one of {', '.join(PROBLEM_TYPES)}",
            problem_type=self.problem_type,
        )
        require(
            self.chunk_size_feed_forward >= 0,
            "chunk_size_feed_forward must be 0 (no chunks) or positive",
            chunk_size_feed_forward=self.chunk_size_feed_forward,
        )

    def _set_num_labels(self, num_labels: int) -> None:
        require(
            isinstance(num_labels, int) and num_labels > 0,
            "num_labels must be a positive integer",
            num_labels=num_labels,
        )
        require(num_labels <= MAX_LABELS, f"num_labels must be at most {MAX_LABELS}", num_labels=num_labels)
        if self.num_labels != num_labels:
            self.id2label = {index: f"LABEL_{index}" for index in range(num_labels)}
            self.label2id = {label: index for index, label in self.id2label.items()}

    def _complete_labels(self, num_labels: int | None) -> None:
        if self.id2label is None and self.label2id is not None and num_labels is None:
            with _as("label2id", "labels to ids", self.label2id):
                self.id2label = {index: label for label, index in self.label2id.items()}
        if self.id2label is None:
            self._set_num_labels(2 if num_labels is None else num_labels)
            return
        require(isinstance(self.id2label, Mapping), "id2label must be a dict", id2label=self.id2label)
        try:
            self.id2label = {int(index): label for index, label in self.id2label.items()}
        except ValueError:
            require(False, "id2label must have integer keys", id2label=self.id2label)
        if num_labels not in (None, len(self.id2label)):
            warnings.warn(
                f"num_labels={num_labels} gives way to id2label, which has {len(self.id2label)} labels", stacklevel=4
            )
        if self.label2id is None:
            with _as("id2label", "ids to labels", self.id2label):
                self.label2id = {label: index for index, label in self.id2label.items()}

    # -- JSON -----------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """All settings, `model_type` included, as plain data that `json` can write."""
        hidden = ("name_or_path", "attn_implementation")
        content = {
            name: copy.deepcopy(value)
            for name, value in vars(self).items()
            if name not in hidden and not name.startswith("_")  # private ones are notes of tools
        }
        return {**content, "model_type": self.model_type}

    def to_diff_dict(self) -> dict[str, Any]:
        """The settings that a `config.json` holds: all of the family's own, shared ones unless at their default."""
        base, own = PretrainedConfig._defaults, type(self)._defaults
        labels = {"id2label": _default_labels(), "label2id": {v: k for k, v in _default_labels().items()}}
        base, own = base | labels, own | labels
        base = base | {name: own[name] for name in self.own_settings}
        return {
            name: value
            for name, value in self.to_dict().items()
            if name not in base or value != base[name] or value != own[name]
        }

    def to_json_string(self, use_diff: bool = True) -> str:
        """The text of `config.json`: sorted keys, two spaces of indentation, a newline at the end."""
        content = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(content, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write `to_json_string` to a file, replacing it in one step."""
        path = Path(json_file_path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(self.to_json_string(use_diff), encoding="utf-8")
        temporary.replace(path)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write `config.json` into a directory, which is made if need be."""
        with DirectoryUpdate(save_directory) as update:
            update.write(CONFIG_NAME, self.to_json_string().encode("utf-8"))

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **overrides: Any) -> Self:
        """Make a configuration from plain data.

        Args:
            config_dict: Content of a `config.json`.
            **overrides: Settings to change, e.g. `num_labels=3`. Each must exist.

        Raises:
            ConfigError: the data belong to another model type, a value breaks a rule, or an override does not exist.
        """
        stored = config_dict.get("model_type", cls.model_type)
        if cls.model_type and stored != cls.model_type:
            raise ConfigError(
                f"{cls.__name__} reads configurations of model_type {cls.model_type!r}. Received: model_type={stored!r}"
            )
        config = cls(**config_dict)
        config.update(overrides)
        return config

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Self:
        """Read one JSON file."""
        path = Path(json_file)
        with reading(path, "its settings"):
            return cls.from_dict(read_json(path))

    @classmethod
    def get_config_dict(cls, name: str | os.PathLike[str], **source: Any) -> dict[str, Any]:
        """Content of the `config.json` of a directory, a hub repository, or of one JSON file."""
        return read_json(_config_file(name, source))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a configuration.

        Args:
            pretrained_model_name_or_path: Directory with a `config.json`, the file itself, or a hub repository.
            return_unused_kwargs: Return `(config, unused)` instead of raising for keys that are no settings.
            **kwargs: `revision`, `subfolder`, `cache_dir`, `local_files_only`, `force_download`, `token` say where
                to look (see `longspan.checkpoints.hub.Source`); all others override settings.

        Returns:
            The configuration, or `(config, unused)`.

        Raises:
            CheckpointNotFoundError: there is no such directory, repository or file.
            ConfigError: the file belongs to another family, or an override is no setting.
        """
        source = source_arguments(kwargs)
        path = _config_file(pretrained_model_name_or_path, source)
        with reading(path, "its settings"):
            config = cls.from_dict(read_json(path))
        config.name_or_path = str(pretrained_model_name_or_path)
        unused = {name: value for name, value in kwargs.items() if not config.has(name)}
        config.update({name: value for name, value in kwargs.items() if name not in unused})
        if return_unused_kwargs:
            return config, unused
        require(not unused, f"{cls.__name__} has no such setting to override", **unused)
        return config

    def has(self, name: str) -> bool:
        """True if `name` is a setting of this configuration (or an alias of one)."""
        return name in ("num_labels", "torch_dtype", "gradient_checkpointing") or hasattr(self, name)

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Change several settings at once; each must exist.

        Raises:
            ConfigError: a name is no setting, or a value breaks a rule.
        """
        for name, value in config_dict.items():
            require(self.has(name), f"{type(self).__name__} has no such setting to override", **{name: value})
        # id2label first: num_labels and label2id follow from it unless they are given as well
        for name in sorted(config_dict, key=lambda name: name != "id2label"):
            setattr(self, name, copy.deepcopy(config_dict[name]))
        if "id2label" in config_dict:
            if "label2id" not in config_dict:
                self.label2id = None
            self._complete_labels(config_dict.get("num_labels"))
        self.validate()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, PretrainedConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


@contextmanager
def _as(name: str, what: str, value: Any) -> Iterator[None]:
    """Say which mapping a setting must be if it cannot be read as that."""
    try:
        yield
    except (TypeError, ValueError, AttributeError):
        require(False, f"{name} must map {what}", **{name: value})


def _config_file(name: str | os.PathLike[str], source: Mapping[str, Any]) -> Path:
    return Path(name) if Path(name).is_file() else Source(name, **source).require(CONFIG_NAME)


def _default_labels() -> dict[int, str]:
    return {0: "LABEL_0", 1: "LABEL_1"}


def _dtype_name(dtype: Any) -> str | None:
    """`torch.float16`, `numpy.float16`, `"torch.float16"` and `"float16"` all give `"float16"`."""
    if dtype is None:
        return None
    name = getattr(dtype, "__name__", None) or getattr(dtype, "name", None) or str(dtype)
    return str(name).rpartition(".")[2]


def check_types(settings: Declared) -> None:
    """Check that every declared setting is of its annotated type and in its annotated ranges.

    Raises:
        ConfigError: naming the setting, its type and the value.
    """
    for name, expected in _field_types(typing.cast(Any, type(settings))).items():
        value = getattr(settings, name)
        require(_fits(value, expected), f"{name} must be {_type_name(expected)}", **{name: value})
    for name, bounds in _field_ranges(typing.cast(Any, type(settings))).items():
        value = getattr(settings, name)
        for number in value if isinstance(value, list | tuple) else (value,):
            for bound in bounds if isinstance(number, int | float) and not isinstance(number, bool) else ():
                rule = bound.broken_by(number)
                require(rule is None, f"{name} {rule}", **{name: value})


@functools.cache
def _field_ranges(cls: Any) -> dict[str, tuple[Range, ...]]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: found for name in cls._defaults if (found := tuple(ranges_in(hints[name])))}


@functools.cache
def _field_types(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {name: hints[name] for name in cls._defaults}


def _fits(value: Any, expected: Any) -> bool:
    """True if `value` is of the annotated type; element types of lists and dicts are left to the rules of a family."""
    origin = typing.get_origin(expected)
    if expected is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(expected))
    if origin is typing.Literal:
        return value in typing.get_args(expected)
    if origin is Callable or expected is Callable:
        return callable(value)
    if origin is not None:
        return isinstance(value, list | tuple if origin is list else origin)
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected)


def _type_name(expected: Any) -> str:
    """How a person says the type: `int`, `float or None`, `one of 'a', 'b'`."""
    origin = typing.get_origin(expected)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(option) for option in typing.get_args(expected))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(expected)))
    if expected is type(None):
        return "None"
    return getattr(origin or expected, "__name__", str(expected))


def classifier_dropout(config: Any) -> float:
    """Probability of the dropout before a classifier: its own setting, else that of the layers."""
    own: float | None = config.classifier_dropout
    return float(config.hidden_dropout_prob) if own is None else own
