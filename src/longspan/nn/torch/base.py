"""The base class of all PyTorch models: loading, saving, resizing, pruning, gradient checkpointing."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from longspan.checkpoints.files import CheckpointReader, open_checkpoint, save_checkpoint
from longspan.checkpoints.hub import Source
from longspan.checkpoints.names import ParameterNames
from longspan.checkpoints.report import LoadReport, check_sizes
from longspan.checkpoints.torch import StateDictReader, fill, is_skipping_init, skip_parameter_init, tie
from longspan.checkpoints.untrusted import naming
from longspan.checkpoints.upload import check_save_arguments
from longspan.configuration import CONFIG_NAME, PretrainedConfig, source_arguments
from longspan.errors import ConfigError, InputError
from longspan.nn.torch.checkpointing import CheckpointedLayers, set_checkpointing
from longspan.nn.torch.loading import LoadRequest, off_meta, state_to_save
from longspan.nn.torch.resizing import pick_layer, resize_embedding, resize_linear
from longspan.nn.torch.tool_support import ToolSupport
from longspan.ops.torch.context import ReadsContext

__all__ = ["CheckpointedLayers", "PreTrainedModel"]


class PreTrainedModel(ReadsContext, ToolSupport):
    """What every PyTorch model of longspan can do.

    Subclasses set `config_class`, `base_model_prefix` and `names`, build their modules in `__init__` under the names of
    the checkpoint keys, call `post_init()` at its end, and say in `_init_weights` what they draw otherwise than here.

    Attributes:
        input_embeddings: Path of the module in a backbone that embeds `input_ids`.
        attention_in: Path of the list of layers in a backbone, and of the attention in a layer whose heads can be
            pruned.

    Args:
        config: Configuration; the model gets random weights.

    Raises:
        ConfigError: the configuration is of another class or breaks a rule.
    """

    config_class: ClassVar[type[PretrainedConfig]]
    base_model_prefix: ClassVar[str] = ""
    names: ClassVar[ParameterNames] = ParameterNames()
    main_input_name: ClassVar[str] = "input_ids"
    supports_gradient_checkpointing: ClassVar[bool] = True
    input_embeddings: ClassVar[str] = ""
    attention_in: ClassVar[tuple[str, str] | None] = None
    config: PretrainedConfig
    #: what became of every key of the checkpoint, after `from_pretrained`
    load_report: LoadReport | None = None

    def __init__(self, config: PretrainedConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__()
        if inputs or kwargs:
            raise TypeError(f"{type(self).__name__} takes a configuration. Received as well: {inputs} {kwargs}")
        if not isinstance(config, self.config_class):
            raise ConfigError(
                f"{type(self).__name__} needs a {self.config_class.__name__}. Received: {type(config).__name__}"
            )
        config.validate()
        self.config = config
        self.check_implementation(config.attn_implementation)

    # -- to be given by families --------------------------------------------------------------------------------

    def _init_weights(self, module: nn.Module) -> None:
        """Draw the parameters that `module` itself holds: normal weights, biases 0, the factors of norms 1."""
        config: Any = self.config
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(mean=0.0, std=config.initializer_range)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight.data[module.padding_idx].zero_()
        if isinstance(module, nn.LayerNorm):
            module.weight.data.fill_(1.0)
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            bias.data.zero_()

    def get_input_embeddings(self) -> nn.Module:
        """The module that embeds `input_ids`."""
        base = self.base_model
        return base.get_submodule(self._embeddings_path()) if base is self else base.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the module that embeds `input_ids`."""
        base = self.base_model
        if base is not self:
            base.set_input_embeddings(value)
            return
        path, _, name = self._embeddings_path().rpartition(".")
        setattr(self.get_submodule(path), name, value)

    def _embeddings_path(self) -> str:
        if not self.input_embeddings:
            raise NotImplementedError(f"{type(self).__name__} must name its input embeddings")
        return self.input_embeddings

    def get_output_embeddings(self) -> nn.Module | None:
        """The projection onto the vocabulary, or None if the model has none."""
        return None

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the projection onto the vocabulary."""
        raise InputError(f"{type(self).__name__} has no output embeddings to set")

    def check_implementation(self, name: str) -> None:
        """Raise `InputError` unless `name` is an attention implementation of this family."""

    def set_attn_implementation(self, attn_implementation: str | Mapping[str, str]) -> None:
        """Take another implementation of attention from the next call on.

        Args:
            attn_implementation: Its name; as the reference's models of several parts take it, also `{"": name}`.

        Raises:
            InputError: the family has no such implementation, or a dict names a part.
        """
        if isinstance(attn_implementation, Mapping):
            if set(attn_implementation) != {""}:
                raise InputError(f"the model is one part, named ''. Received: {dict(attn_implementation)}")
            attn_implementation = attn_implementation[""]
        self.check_implementation(attn_implementation)
        self.config.attn_implementation = attn_implementation

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    def _prune_heads(self, heads_to_prune: Mapping[int, list[int]]) -> None:
        if self.attention_in is None:
            raise InputError(f"{type(self).__name__} cannot prune attention heads")
        layers: Any = self.get_submodule(self.attention_in[0])
        for layer, heads in heads_to_prune.items():
            block: Any = pick_layer(layers, layer)
            block.get_submodule(self.attention_in[1]).prune_heads(list(heads))

    def _load_extra(self, source: Source) -> None:
        """Read what a checkpoint holds for this class besides configuration and weights."""

    def _extra_files(self) -> dict[str, bytes]:
        """The files that this class saves besides configuration and weights, by name."""
        return {}

    @classmethod
    def can_generate(cls) -> bool:
        """True if models of this class have `generate`."""
        return False

    # -- construction ---------------------------------------------------------------------------------------------

    def post_init(self) -> None:
        """Finish construction: draw the weights that were not drawn yet, prune, tie."""
        for module in self.modules():
            if not getattr(module, "_is_initialised", False):
                if not is_skipping_init():
                    self._init_weights(module)
                module._is_initialised = True  # type: ignore[assignment]  # a mark, no tensor
        if self.config.pruned_heads and self.base_model is self:
            self._prune_heads(self.config.pruned_heads)
        self.tie_weights()
        if getattr(self.config, "gradient_checkpointing", False) and self.supports_gradient_checkpointing:
            self.gradient_checkpointing_enable()

    def init_weights(self) -> None:
        """Draw all weights anew."""
        self.apply(self._init_weights)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the parameters of each tied pair one object, as the configuration says."""
        tie(self, self.names, self.config, is_base=self.base_model is self)

    @property
    def base_model(self) -> PreTrainedModel:
        """The model without its head (itself if it has none)."""
        return getattr(self, self.base_model_prefix, self) if self.base_model_prefix else self

    # -- loading and saving ---------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        config: PretrainedConfig | str | os.PathLike[str] | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        strict: bool = True,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a model from a directory or a hub repository; it comes back in evaluation mode.

        Args:
            pretrained_model_name_or_path: Directory or hub repository with `config.json` and weights. None with
                `config` and `state_dict`.
            *model_args: Further positional arguments of the constructor.
            config: Configuration to use instead of the stored one, or where to read it from.
            dtype: Dtype of the weights: a `torch.dtype`, its name, or `"auto"` for the stored one. Default: float32.
            torch_dtype: Older name of `dtype`.
            state_dict: Weights to use instead of the stored ones.
            strict: Raise if a key is missing or unexpected. A head that the checkpoint lacks as a whole is
                initialised and reported either way (see `LoadReport`).
            ignore_mismatched_sizes: Initialise parameters whose shape differs instead of raising.
            output_loading_info: Return `(model, report)`.
            **kwargs: `revision`, `subfolder`, `cache_dir`, `local_files_only`, `force_download`, `token` say where to
                look, `variant`, `use_safetensors`, `from_tf` and `from_flax` which files to read. `device_map` is a
                device or, with accelerate, `"auto"`, `"balanced"`, `"sequential"` or a device for each module;
                `max_memory`, `offload_folder` and `offload_buffers` go with it. Arguments of the constructor
                (`add_pooling_layer=False`) are passed on; all others override settings of the configuration
                (`num_labels=3`, `attn_implementation="eager"`).

        Returns:
            The model, or `(model, LoadReport)`. The report is kept as `model.load_report` too.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint, or it has no weights.
            CheckpointError: the weights are damaged or do not fit the model; every key is listed.
            ConfigError: a keyword is no setting of the configuration, or a value breaks a rule.
            InputError: a keyword asks for what longspan does not do.
        """
        where = source_arguments(kwargs)
        request = LoadRequest.take(kwargs)
        model_kwargs = _constructor_arguments(cls, kwargs)
        resolved = cls._resolve_config(config, pretrained_model_name_or_path, where, kwargs)
        source = None if pretrained_model_name_or_path is None else Source(pretrained_model_name_or_path, **where)
        with _open(source, state_dict, request) as reader, off_meta():
            check_sizes(reader, cls.names, resolved, strict=strict and not ignore_mismatched_sizes)
            target = _target_dtype(dtype if dtype is not None else torch_dtype, resolved, reader)
            with naming(resolved.name_or_path), skip_parameter_init():
                model = cls(resolved, *model_args, **model_kwargs)
            _cast_uninitialised(model, target)
            model.load_report = fill(
                model,
                reader,
                names=cls.names,
                config=resolved,
                initialise=model._initialise_missing,
                strict=strict,
                ignore_mismatched_sizes=ignore_mismatched_sizes,
            )
        model.tie_weights()
        if source is not None:
            model._load_extra(source)
        model.config.dtype = str(target)
        model.eval()
        request.place(model)
        return (model, model.load_report) if output_loading_info else model

    @classmethod
    def _resolve_config(
        cls, config: Any, name: str | os.PathLike[str] | None, source: Mapping[str, Any], overrides: Mapping[str, Any]
    ) -> PretrainedConfig:
        if isinstance(config, PretrainedConfig):
            config = copy.deepcopy(config)
            config.update(overrides)
        else:
            place = name if config is None else config
            if place is None:
                raise InputError("without a name, a model is loaded from config= and state_dict=. Received: neither")
            config = cls.config_class.from_pretrained(place, **source, **overrides)
        config.name_or_path = "" if name is None else str(name)
        return config

    def _initialise_missing(self, module: nn.Module) -> None:
        """Give one module random values, whether or not its family knows its kind."""
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
        self._init_weights(module)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write `config.json` and `model.safetensors` (in shards if large) into a directory.

        The files load here, in the other frameworks and in `transformers`. A save that is killed leaves either the
        whole old checkpoint or the whole new one.

        Args:
            save_directory: Directory; made if need be.
            is_main_process: False does nothing, for all but one process of a distributed run.
            state_dict: Tensors to save instead of the model's own, under the model's keys.
            max_shard_size: Largest size of one file, in bytes or as `"5GB"`.
            safe_serialization: Must be True: only safetensors are written.
            push_to_hub: Upload the model as well, to `repo_id` (default: the name of the directory).
            **kwargs: `save_function`, `variant=None` and `save_peft_format` of the reference have no effect; the
                others go to `push_to_hub`.

        Raises:
            InputError: `safe_serialization` is False, or there is no such keyword.
        """
        for name in ("save_function", "save_peft_format"):
            kwargs.pop(name, None)
        check_save_arguments(safe_serialization, push_to_hub, kwargs)
        if not is_main_process:
            return
        config = copy.deepcopy(self.config)
        config.architectures = [type(self).__name__]
        config.dtype = str(self.dtype)
        save_checkpoint(
            Path(save_directory),
            self._tensors_to_save(state_dict),
            files={CONFIG_NAME: config.to_json_string().encode(), **self._extra_files()},
            max_shard_size=max_shard_size,
        )
        if push_to_hub:
            self._push_saved(save_directory, state_dict=state_dict, max_shard_size=max_shard_size, **kwargs)

    def _tensors_to_save(self, state_dict: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The model's tensors by key, each tied parameter once, under the key that owns it."""
        tensors = dict(state_to_save(self) if state_dict is None else state_dict)
        for target, source in self.tied_keys():
            if source in tensors:
                tensors.pop(target, None)
        return tensors

    # -- vocabulary ---------------------------------------------------------------------------------------------

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """Change the size of the vocabulary in the input and output embeddings.

        Args:
            new_num_tokens: New size; None keeps the present one.
            pad_to_multiple_of: Round the size up to a multiple of this.
            mean_resizing: New rows are the mean of the old ones, which keeps the model's predictions close to what
                they were (Hewitt, 2021). False draws them as at initialisation.

        Returns:
            The input embeddings.

        Raises:
            InputError: a size is no whole number above 0.
        """
        embeddings = self.get_input_embeddings()
        if not isinstance(embeddings, nn.Embedding):
            raise InputError(f"only nn.Embedding can be resized. Received: {type(embeddings).__name__}")
        size = embeddings.num_embeddings if new_num_tokens is None else new_num_tokens
        for name, value in (("new_num_tokens", size), ("pad_to_multiple_of", pad_to_multiple_of)):
            if value is not None and (value <= 0 or not isinstance(value, Integral)):
                raise InputError(f"{name} must be a positive whole number. Received: {name}={value}")
        if pad_to_multiple_of is not None:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if size != embeddings.num_embeddings:
            self.set_input_embeddings(
                resize_embedding(embeddings, size, initialise=self._init_weights, mean_resizing=mean_resizing)
            )
            output = self.get_output_embeddings()
            if isinstance(output, nn.Linear):
                self.set_output_embeddings(
                    resize_linear(output, size, initialise=self._init_weights, mean_resizing=mean_resizing)
                )
            self.config.vocab_size = size
            self.tie_weights()
        return self.get_input_embeddings()

    # -- heads --------------------------------------------------------------------------------------------------

    def prune_heads(self, heads_to_prune: Mapping[int, list[int]]) -> None:
        """Remove attention heads for good.

        Args:
            heads_to_prune: Heads to remove from each layer, `{layer: [heads]}`, by their original numbers.

        Raises:
            InputError: a layer or head does not exist, or no head would be left.
        """
        self.base_model._prune_heads(heads_to_prune)
        pruned = {layer: set(heads) for layer, heads in self.config.pruned_heads.items()}
        for layer, heads in heads_to_prune.items():
            pruned.setdefault(layer, set()).update(heads)
        self.config.pruned_heads = {layer: sorted(heads) for layer, heads in pruned.items()}

    # -- gradient checkpointing -----------------------------------------------------------------------------------

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, every_n_layers: int = 1
    ) -> None:
        """Recompute the layers' activations in the backward pass: less memory, about a third more time.

        Args:
            gradient_checkpointing_kwargs: Arguments of `torch.utils.checkpoint.checkpoint`; default
                `{"use_reentrant": False}`.
            every_n_layers: Recompute one layer of so many, counted over all stacks, and keep the others' activations.

        Raises:
            InputError: the model does not support it, or `every_n_layers` is not positive.
        """
        if not self.supports_gradient_checkpointing:
            raise InputError(f"{type(self).__name__} does not support gradient checkpointing")
        if every_n_layers < 1:
            raise InputError(f"every_n_layers must be positive. Received: {every_n_layers}")
        set_checkpointing(self, {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}, every_n_layers)

    def gradient_checkpointing_disable(self) -> None:
        """Keep the activations again."""
        set_checkpointing(self, None)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """The newest name of `gradient_checkpointing_enable`.

        Raises:
            InputError: `offload` is True.
        """
        if offload:
            raise InputError(
                "activations are recomputed, not moved: use torch.autograd.graph.save_on_cpu for that. "
                "Received: offload=True"
            )
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers)

    def activation_checkpointing_disable(self) -> None:
        """The newest name of `gradient_checkpointing_disable`."""
        self.gradient_checkpointing_disable()

    @property
    def is_gradient_checkpointing(self) -> bool:
        """True if the layers' activations are recomputed."""
        return any(isinstance(m, CheckpointedLayers) and m.gradient_checkpointing for m in self.modules())

    @property
    def is_activation_checkpointing(self) -> bool:
        """The newest name of `is_gradient_checkpointing`."""
        return self.is_gradient_checkpointing

    def enable_input_require_grads(self) -> None:
        """Let gradients reach the embeddings' output although the embeddings are frozen (adapters need that)."""
        self._require_grads_hook = self.get_input_embeddings().register_forward_hook(
            lambda _module, _inputs, output: output.requires_grad_(True)
        )

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        self._require_grads_hook.remove()


def _open(source: Source | None, state_dict: Mapping[str, Tensor] | None, request: LoadRequest) -> CheckpointReader:
    if state_dict is not None:
        return StateDictReader(state_dict)
    if source is None:
        raise InputError("without a name, a model is loaded from config= and state_dict=. Received: state_dict=None")
    return open_checkpoint(source, formats=request.formats, variant=request.variant)


def _constructor_arguments(cls: type[nn.Module], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take from `kwargs` what the constructor of `cls` names."""
    names = set(inspect.signature(cls.__init__).parameters) - {"self", "config", "inputs", "kwargs"}
    return {name: kwargs.pop(name) for name in list(kwargs) if name in names}


def _target_dtype(dtype: torch.dtype | str | None, config: PretrainedConfig, reader: Any) -> torch.dtype:
    if dtype is None:
        return torch.float32
    if isinstance(dtype, str):
        name = config.dtype or reader.float_dtype if dtype == "auto" else dtype
        dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype must be a floating-point dtype, its name, or 'auto'. Received: {dtype!r}")
    return dtype


def _cast_uninitialised(model: nn.Module, dtype: torch.dtype) -> None:
    """Change the dtype of parameters without reading their memory, which the operating system has not given yet."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point() and parameter.dtype != dtype:
                parameter.data = torch.empty_like(parameter.data, dtype=dtype)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and name not in module._non_persistent_buffers_set:
                setattr(module, name, buffer.to(dtype))
