"""The base class of all Keras models: input forms, loading, saving, resizing, pruning."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import keras
from keras import ops

from longspan.checkpoints.files import open_checkpoint, save_checkpoint
from longspan.checkpoints.hub import Source
from longspan.checkpoints.keras import fill, tensors_to_save
from longspan.checkpoints.names import ParameterNames
from longspan.checkpoints.report import LoadReport, check_sizes
from longspan.checkpoints.untrusted import naming
from longspan.checkpoints.upload import check_save_arguments
from longspan.checkpoints.writer import LazyTensor
from longspan.configuration import CONFIG_NAME, PretrainedConfig, source_arguments
from longspan.errors import ConfigError, InputError
from longspan.inputs import shape_of
from longspan.nn.keras.initializers import skip_initialisation
from longspan.nn.keras.inputs import check_dense, input_names, plain, split_options
from longspan.nn.keras.layers import build_all
from longspan.nn.keras.onnx import teach_tf2onnx
from longspan.nn.keras.outputs import TFModelOutput, flatten_names, resolve
from longspan.nn.keras.policy import WidenedPolicy, asked_dtype, narrow, widened
from longspan.nn.keras.resizing import resize_embedding
from longspan.nn.keras.runtime import is_tensorflow, is_traced_by_tensorflow
from longspan.nn.keras.tool_support import ToolSupport
from longspan.nn.keras.training import TaskTraining
from longspan.ops.fast_paths import plain as by_definition

#: class decorator: `keras.saving` finds the class by its name
register = keras.saving.register_keras_serializable(package="longspan")


class TFPreTrainedModel(ToolSupport, TaskTraining, keras.Model):
    """What every Keras model of longspan can do. It is a `keras.Model` and works wherever one does.

    All inputs may be keywords, or gathered in the first argument: one tensor (`input_ids`), a list or tuple in the
    order of the arguments, or a dict, such as a tokenizer returns. TensorFlow is the tested backend; the classes also
    run on Keras' JAX and PyTorch backends (`KERAS_BACKEND`).

    Subclasses set `config_class`, `base_model_prefix` and `names`, make their layers in `__init__` under the names of
    the checkpoint keys, and call `self.build()` at its end.

    Args:
        config: Configuration; the model gets random weights.
        **kwargs: `name`, `dtype` (a dtype policy such as `"mixed_bfloat16"`), `trainable`.

    Raises:
        ConfigError: the configuration is of another class or breaks a rule.
    """

    config_class: ClassVar[type[PretrainedConfig]]
    base_model_prefix: ClassVar[str] = ""
    names: ClassVar[ParameterNames] = ParameterNames()
    main_input_name: ClassVar[str] = "input_ids"
    #: inputs have an axis of choices
    has_choices: ClassVar[bool] = False
    #: fields of the output whose dtype does not follow that of the computation
    kept_fields: ClassVar[frozenset[str]] = frozenset({"loss"})
    #: tf2onnx converts the model's graph
    converts_to_onnx: ClassVar[bool] = False
    config: Any
    #: what became of every key of the checkpoint, after `from_pretrained`
    load_report: LoadReport | None = None

    def __init__(self, config: PretrainedConfig, *inputs: Any, **kwargs: Any) -> None:
        if inputs:
            raise TypeError(f"{type(self).__name__} takes a configuration. Received as well: {inputs}")
        if not isinstance(config, self.config_class):
            raise ConfigError(
                f"{type(self).__name__} needs a {self.config_class.__name__}. Received: {type(config).__name__}"
            )
        config.validate()
        self.check_implementation(config.attn_implementation)
        super().__init__(**kwargs)
        self.dtype_policy = widened(super().dtype_policy)
        self.autocast = False  # labels keep their precision; the layers cast what they compute with
        self.config = config

    # -- to be given by families ------------------------------------------------------------------------------------

    def build(self, input_shape: Any = None) -> None:
        """Make the weights. Every model does so when it is made."""
        if not self.built:
            build_all(self, self.config.hidden_size)

    def get_input_embeddings(self) -> keras.layers.Embedding:
        """The layer that embeds `input_ids`."""
        base = self.get_base_model()
        if base is self:
            raise NotImplementedError(f"{type(self).__name__} must name its input embeddings")
        return base.get_input_embeddings()

    def set_input_embeddings(self, value: keras.layers.Embedding) -> None:
        """Replace the layer that embeds `input_ids` by another that is built."""
        base = self.get_base_model()
        if base is self:
            raise NotImplementedError(f"{type(self).__name__} must name its input embeddings")
        base.set_input_embeddings(value)

    @classmethod
    def check_implementation(cls, name: str) -> None:
        """Raise `InputError` unless `name` is an attention implementation of this family."""

    def tensors_to_save(self) -> dict[str, LazyTensor]:
        """The weights by key, as a checkpoint holds them."""
        return tensors_to_save(self)

    def _prune_heads(self, heads_to_prune: Mapping[int, list[int]]) -> None:
        raise InputError(f"{type(self).__name__} cannot prune attention heads")

    @property
    def compute_dtype(self) -> str:
        """The dtype of outputs, that of the policy's name, though the layers may compute in float32 instead."""
        return asked_dtype(self.dtype_policy)

    # -- calls ------------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; arguments as in `call`, positional or by keyword."""
        names = input_names(type(self).call)
        if len(args) > len(names):
            raise TypeError(f"{type(self).__name__} takes at most {len(names)} inputs. Received: {len(args)}")
        twice = [name for name in names[: len(args)] if name in kwargs]
        if twice:
            raise TypeError(f"each input must come once. Received {', '.join(twice)} by place and by keyword")
        # Keras takes tensors by place and everything else by keyword
        arguments = {name: value for name, value in zip(names, args, strict=False) if value is not None}
        arguments.update(kwargs)
        for name, value in arguments.items():
            check_dense(value, name)
        first, options = split_options(arguments.pop(names[0], None), names)
        twice = [name for name in options if arguments.get(name) is not None]
        if twice:
            raise InputError(f"each input must come once. Received in the first argument and again: {', '.join(twice)}")
        arguments.update(options)
        call = super().__call__
        in_bucket = self._call_in_bucket(call, first, arguments)
        if in_bucket is not None:
            return in_bucket
        return call(**arguments) if first is None else call(plain(first), **arguments)

    def finish(self, output: TFModelOutput, return_dict: bool | None) -> Any:
        """The output itself, or its present fields as a tuple: as asked, or else as configured.

        A TensorFlow graph that does not ask always gets the output itself, because `fit` needs its names.
        """
        output = narrow(output, self.dtype_policy, self.kept_fields)
        default = self.config.return_dict or is_traced_by_tensorflow()
        return output if resolve(return_dict, default) else output.to_tuple()

    def get_base_model(self) -> TFPreTrainedModel:
        """The model without its head (itself if it has none)."""
        # no property: Keras saves what the attributes of a model hold, and would save the base twice
        base: Any = getattr(self, self.base_model_prefix, self) if self.base_model_prefix else self
        return base

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Count the parameters; shared ones count once.

        Args:
            only_trainable: Leave out those that take no gradient.
        """
        weights = self.trainable_weights if only_trainable else self.weights
        return sum(int(ops.size(weight)) for weight in weights)

    # -- Keras serialisation ------------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Everything that `from_config` needs to make the same model, without weights."""
        settings = {**self.config.to_dict(), "attn_implementation": self.config.attn_implementation}
        kept = {**super().get_config(), "config": settings}
        if isinstance(self.dtype_policy, WidenedPolicy):
            kept["dtype"] = keras.dtype_policies.serialize(keras.DTypePolicy(self.dtype_policy.name))
        return kept

    @classmethod
    def from_config(cls, config: PretrainedConfig | dict[str, Any], custom_objects: Any = None) -> Self:
        """Make a model from a configuration, or from what `get_config` returned."""
        if isinstance(config, PretrainedConfig):
            return cls(config)
        settings = cls.config_class.from_dict(config["config"])
        model: Self = super().from_config({**config, "config": settings}, custom_objects)
        return model

    @by_definition()  # other machines run the graph
    def export(
        self,
        filepath: str | os.PathLike[str],
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> None:
        """Write the forward pass as a SavedModel or another format; see `keras.Model.export`.

        The endpoint `serve` of a SavedModel returns a dict of the output's fields; tensors of a tuple are numbered
        (`hidden_states_0`).

        Args:
            filepath: Where to write.
            format: `"tf_saved_model"`, `"onnx"`, ...
            verbose: Print what was written; default not for a SavedModel.
            input_signature: Shapes and dtypes of the inputs. Default: a dict of int32 `input_ids`, `attention_mask`,
                `token_type_ids` and `decoder_input_ids`, as the model has them, of any batch size and length.
            **kwargs: Further arguments of the format.

        Raises:
            InputError: the family's graph becomes no ONNX on TensorFlow; BERT's and RoBERTa's do, by tf2onnx.
            MissingFrameworkError: ONNX is asked for on TensorFlow without tf2onnx.
        """
        if input_signature is None:
            input_signature = [self.get_input_signature()]
        if format == "onnx" and is_tensorflow():
            if not self.converts_to_onnx:
                raise InputError(
                    "ONNX on TensorFlow is for BERT and RoBERTa: tf2onnx gets shapes of other families wrong. Export a "
                    f"SavedModel, or ONNX from {type(self).__name__.removeprefix('TF')}, the PyTorch class. "
                    f"Received: {type(self).__name__}"
                )
            teach_tf2onnx()
        if format != "tf_saved_model":
            super().export(filepath, format=format, verbose=verbose, input_signature=input_signature, **kwargs)
            return
        archive = keras.export.ExportArchive()
        archive.track(self)
        # the signature of a SavedModel returns a flat dict of tensors
        serve = lambda inputs: flatten_names(self(inputs, training=False, return_dict=True))  # noqa: E731
        archive.add_endpoint("serve", serve, input_signature, **kwargs)
        archive.write_out(os.fspath(filepath), verbose=bool(verbose))

    def get_input_signature(self) -> dict[str, keras.InputSpec]:
        """Shapes and dtypes of the usual inputs: ids, mask, segments, target, (B, S), of multiple choice (B, C, S)."""
        usual = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids")
        names = [name for name in usual if name in self.call_signature_parameters]
        shapes = {name: shape_of(name, {}, choices=self.has_choices) for name in names}
        return {name: keras.InputSpec(shape=shape, dtype="int32", name=name) for name, shape in shapes.items()}

    # -- loading and saving -----------------------------------------------------------------------------------------

    def _load_extra(self, source: Source) -> None:
        """Take what else a checkpoint holds."""

    def _extra_files(self) -> dict[str, bytes]:
        """Further files of a checkpoint by name."""
        return {}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        config: PretrainedConfig | str | os.PathLike[str] | None = None,
        dtype: Any = None,
        strict: bool = True,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a model from a directory or a hub repository.

        Args:
            pretrained_model_name_or_path: Directory or hub repository with `config.json` and weights.
            *model_args: Further positional arguments of the constructor.
            config: Configuration to use instead of the stored one, or where to read it from.
            dtype: Dtype policy (`"float32"`, `"bfloat16"`, `"mixed_bfloat16"`, a `keras.DTypePolicy`), or `"auto"` for
                the dtype of the stored weights. Default: Keras' global policy, which is float32 unless you set it.
            strict: Raise if a key is missing or unexpected. A head that the checkpoint lacks as a whole is
                initialised and reported either way (see `LoadReport`).
            ignore_mismatched_sizes: Initialise parameters whose shape differs instead of raising.
            output_loading_info: Return `(model, report)`.
            **kwargs: `revision`, `subfolder`, `cache_dir`, `local_files_only`, `force_download`, `token` say where to
                look; arguments of the constructor (`add_pooling_layer=False`, `name=`) are passed on; `from_pt`,
                `from_tf` and `from_flax` have no effect, because every format is found; all others override settings
                of the configuration (`num_labels=3`, `attn_implementation="eager"`).

        Returns:
            The model, or `(model, LoadReport)`. The report is kept as `model.load_report` too.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint, or it has no weights.
            CheckpointError: the weights are damaged or do not fit the model; every key is listed.
            ConfigError: a keyword is no setting of the configuration, or a value breaks a rule.
        """
        where = source_arguments(kwargs)
        source = Source(pretrained_model_name_or_path, **where)
        for name in ("from_pt", "from_tf", "from_flax"):
            kwargs.pop(name, None)
        model_kwargs = _constructor_arguments(cls, kwargs)
        resolved = cls._resolve_config(config, pretrained_model_name_or_path, where, kwargs)
        with open_checkpoint(source) as reader:
            check_sizes(reader, cls.names, resolved, strict=strict and not ignore_mismatched_sizes)
            policy = _dtype_policy(dtype, resolved, reader)
            with naming(resolved.name_or_path), skip_initialisation():
                model = cls(resolved, *model_args, dtype=policy, **model_kwargs)
            model._load_extra(source)
            model.load_report = fill(
                model,
                reader,
                names=cls.names,
                config=resolved,
                strict=strict,
                ignore_mismatched_sizes=ignore_mismatched_sizes,
            )
        model.config.dtype = model.variable_dtype
        return (model, model.load_report) if output_loading_info else model

    @classmethod
    def _resolve_config(
        cls, config: Any, name: str | os.PathLike[str], source: Mapping[str, Any], overrides: Mapping[str, Any]
    ) -> PretrainedConfig:
        if isinstance(config, PretrainedConfig):
            config = copy.deepcopy(config)
            config.update(overrides)
        else:
            config = cls.config_class.from_pretrained(config if config is not None else name, **source, **overrides)
        config.name_or_path = str(name)
        return config

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        saved_model: bool = False,
        version: int = 1,
        push_to_hub: bool = False,
        *,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write `config.json` and `model.safetensors` (in shards if large) into a directory.

        The files load here, in the other frameworks and in `transformers`. A save that is killed leaves either the
        whole old checkpoint or the whole new one.

        Args:
            save_directory: Directory; made if need be.
            saved_model: Write a SavedModel to `saved_model/<version>` as well (see `export`).
            version: Its number.
            push_to_hub: Upload the model as well, to `repo_id` (default: the name of the directory).
            max_shard_size: Largest size of one file, in bytes or as `"5GB"`.
            safe_serialization: Must be True: only safetensors are written.
            **kwargs: `is_main_process=False` does nothing, for all but one process of a distributed run; `signatures`
                has no effect; the others go to `push_to_hub`.

        Raises:
            InputError: `safe_serialization` is False, or there is no such keyword.
        """
        kwargs.pop("signatures", None)
        is_main_process = kwargs.pop("is_main_process", True)
        check_save_arguments(safe_serialization, push_to_hub, kwargs)
        if not is_main_process:
            return
        config = copy.deepcopy(self.config)
        config.architectures = [type(self).__name__.removeprefix("TF")]
        config.dtype = self.variable_dtype
        save_checkpoint(
            Path(save_directory),
            self.tensors_to_save(),
            files={CONFIG_NAME: config.to_json_string().encode(), **self._extra_files()},
            max_shard_size=max_shard_size,
        )
        if saved_model:
            self.export(Path(save_directory, "saved_model", str(version)))
        if push_to_hub:
            self._push_saved(save_directory, max_shard_size=max_shard_size, **kwargs)

    # -- vocabulary and heads ---------------------------------------------------------------------------------------

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> keras.layers.Embedding:
        """Change the size of the vocabulary in the input and output embeddings. Compile the model again afterwards.

        Args:
            new_num_tokens: New size; None keeps the present one.
            pad_to_multiple_of: Round the size up to a multiple of this.
            mean_resizing: New rows are the mean of the old ones, which keeps the model's predictions close to what
                they were (Hewitt, 2021). False draws them as at initialisation.

        Returns:
            The input embeddings.

        Raises:
            InputError: a size is not positive.
        """
        embeddings = self.get_input_embeddings()
        size = embeddings.input_dim if new_num_tokens is None else new_num_tokens
        for name, value in (("new_num_tokens", size), ("pad_to_multiple_of", pad_to_multiple_of)):
            if value is not None and value <= 0:
                raise InputError(f"{name} must be positive. Received: {name}={value}")
        if pad_to_multiple_of is not None:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if size != embeddings.input_dim:
            self.set_input_embeddings(resize_embedding(embeddings, size, mean_resizing=mean_resizing))
            self.resize_output_embeddings(size, mean_resizing=mean_resizing)
            self.config.vocab_size = size
            self._forget_compilation()
        return self.get_input_embeddings()

    def prune_heads(self, heads_to_prune: Mapping[int, list[int]]) -> None:
        """Remove attention heads for good. Compile the model again afterwards.

        Args:
            heads_to_prune: Heads to remove from each layer, `{layer: [heads]}`, by their original numbers.

        Raises:
            InputError: a layer or head does not exist, or no head would be left.
        """
        self.get_base_model()._prune_heads(heads_to_prune)
        pruned = {layer: set(heads) for layer, heads in self.config.pruned_heads.items()}
        for layer, heads in heads_to_prune.items():
            pruned.setdefault(layer, set()).update(heads)
        self.config.pruned_heads = {layer: sorted(heads) for layer, heads in pruned.items()}
        self._forget_compilation()

    def _forget_compilation(self) -> None:
        """The optimiser and the traced functions know weights that are gone: make `fit` ask for `compile`."""
        self.compiled = False
        self.train_function = self.test_function = self.predict_function = None


def _constructor_arguments(cls: type[keras.Model], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take from `kwargs` what the constructor of `cls` or of a Keras model names."""
    names = (set(inspect.signature(cls.__init__).parameters) - {"self", "config", "inputs", "kwargs"}) | {
        "name",
        "trainable",
    }
    return {name: kwargs.pop(name) for name in list(kwargs) if name in names}


def _dtype_policy(dtype: Any, config: PretrainedConfig, reader: Any) -> Any:
    return config.dtype or reader.float_dtype if dtype == "auto" else dtype
