"""The base class of all Flax models: parameters, loading, saving, resizing, gradient checkpointing."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from longspan.checkpoints.files import LazyTensor, open_checkpoint, save_checkpoint
from longspan.checkpoints.flax import Params, fill, flatten, tensors_to_save, unflatten
from longspan.checkpoints.hub import Source
from longspan.checkpoints.names import ParameterNames
from longspan.checkpoints.report import LoadReport, check_sizes
from longspan.checkpoints.untrusted import naming
from longspan.checkpoints.upload import HubSupport, check_save_arguments
from longspan.configuration import CONFIG_NAME, PretrainedConfig, source_arguments
from longspan.errors import ConfigError, InputError
from longspan.nn.flax.casting import cast_floating, narrow, resize_axis, thaw
from longspan.nn.flax.checks import is_intercepted
from longspan.nn.flax.parameters import Path as ParameterPath
from longspan.nn.flax.parameters import Recipe, draw, recipes
from longspan.nn.flax.sharding import on_auto_axes
from longspan.ops.fast_paths import is_off, widens
from longspan.ops.flax.context import shared_axis

#: the modules' own fields, which `from_pretrained` does not pass on from its keywords
_MODULE_FIELDS = {"config", "dtype", "gradient_checkpointing", "parent", "name"}


class FlaxPreTrainedModel(HubSupport):
    """What every Flax model of longspan can do.

    It wraps a `linen.Module` (`model.module`) and keeps its parameters (`model.params`), unless it is made with
    `_do_init=False`. Calling it is a pure function of parameters, inputs and random key, so that `jax.jit`, `grad`,
    `vmap`, `pmap` and sharding apply. A call outside of them is compiled once for each set of shapes.

    Subclasses set `config_class`, `base_model_prefix`, `names` and `module_class`.
    """

    config_class: ClassVar[type[PretrainedConfig]]
    base_model_prefix: ClassVar[str] = ""
    names: ClassVar[ParameterNames] = ParameterNames()
    #: leaves of the parameters and running statistics that keep name and orientation in checkpoints, besides `weight`
    #: and `bias`
    raw_parameters: ClassVar[frozenset[str]] = frozenset()
    main_input_name: ClassVar[str] = "input_ids"
    module_class: ClassVar[type[nn.Module]]
    #: axes of `input_ids`
    input_axes: ClassVar[tuple[str, ...]] = ("batch", "tokens")
    #: name of the PyTorch class, written to `config.json`; default: this class without "Flax"
    architecture: ClassVar[str] = ""
    #: what became of every key of the checkpoint, after `from_pretrained`
    load_report: LoadReport | None = None

    def __init__(
        self,
        config: PretrainedConfig,
        input_shape: tuple[int, ...] = (1, 1),
        seed: int = 0,
        dtype: Any = jnp.float32,
        _do_init: bool = True,
        gradient_checkpointing: bool = False,
        **kwargs: Any,
    ) -> None:
        """Make the module, and draw its parameters.

        Args:
            config: Settings of the model; the weights are random.
            input_shape: (batch, tokens) of the input that shapes the parameters.
            seed: Seed of the random weights.
            dtype: Dtype of the computation: float32, float16 or bfloat16. The parameters stay float32; see `to_bf16`.
            _do_init: Draw weights and keep them in `params`. False keeps none: every call needs `params`.
            gradient_checkpointing: Recompute the layers' activations in the backward pass.
            **kwargs: Further fields of the module, as the class says.

        Raises:
            ConfigError: the configuration is of another class or breaks a rule.
            InputError: `dtype` is another one.
        """
        if not isinstance(config, self.config_class):
            raise ConfigError(
                f"{type(self).__name__} needs a {self.config_class.__name__}. Received: {type(config).__name__}"
            )
        config.validate()
        self.check_implementation(config.attn_implementation)
        self._config = config
        self._check_use()
        self.dtype = as_float_dtype(dtype)
        self._module = self.module_class(
            config=config, dtype=self.dtype, gradient_checkpointing=gradient_checkpointing, **kwargs
        )
        self.input_shape = input_shape
        self.key = jax.random.PRNGKey(seed)
        self._is_initialized = _do_init
        self._params: Params | None = None
        self._known_caches: dict[Any, Any] = {}
        self._make_programs()
        self._batch_stats: Params = unflatten(draw(self._statistics, self._statistics, self.key))
        if _do_init:
            self._params = self.init_weights(self.key, input_shape)

    # -- to be given by families --------------------------------------------------------------------------------

    def dummy_inputs(self, input_shape: tuple[int, ...]) -> dict[str, Any]:
        """Arguments of the module that reach all of its parameters."""
        raise NotImplementedError(f"{type(self).__name__} must say which inputs shape its parameters")

    def check_implementation(self, name: str) -> None:
        """Raise `InputError` unless `name` is an attention implementation of this family."""

    def _check_use(self) -> None:
        """Warn if the configuration is hardly meant for this class; the constructor's caller is three frames up."""

    def program_settings(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a call that follow from the values of its inputs, which a program of the caller cannot see."""
        return {}

    def _load_extra(self, source: Source) -> None:
        """Load what a class keeps beside weights and configuration."""

    def _extra_files(self) -> dict[str, bytes]:
        """Files that a class keeps beside weights and configuration, by name."""
        return {}

    @classmethod
    def can_generate(cls) -> bool:
        """True if models of this class have `generate`."""
        return False

    @classmethod
    def _from_config(cls, config: PretrainedConfig, **kwargs: Any) -> Self:
        """A model with random weights, as the constructor makes it."""
        return cls(config, **kwargs)

    # -- parameters -----------------------------------------------------------------------------------------------

    @property
    def config(self) -> PretrainedConfig:
        """The configuration."""
        return self._config

    @property
    def module(self) -> nn.Module:
        """The `linen.Module`."""
        return self._module

    @property
    def framework(self) -> str:
        """`"flax"`."""
        return "flax"

    @property
    def params(self) -> Params:
        """The parameters as nested dicts.

        Raises:
            InputError: the model keeps none.
        """
        if self._params is None:
            raise InputError(
                f"this {type(self).__name__} keeps no parameters, because it was made with _do_init=False: pass "
                "params=... to every call. Received: params=None"
            )
        return self._params

    @params.setter
    def params(self, params: Mapping[str, Any]) -> None:
        if not self._is_initialized:
            raise InputError(
                f"this {type(self).__name__} keeps no parameters, because it was made with _do_init=False: pass "
                "params=... to every call instead of setting model.params"
            )
        tree = thaw(params)
        given = {".".join(path) for path in flatten(tree)}
        missing = sorted({".".join(path) for path in self.required_params} - given)
        if missing:
            raise InputError(f"params must hold every parameter of the model. Missing: {', '.join(missing)}")
        self._params = tree

    @property
    def batch_stats(self) -> Params:
        """The running statistics of batch normalisation as nested dicts; empty for a model without.

        They are no parameters: no gradient moves them, and a model made with `_do_init=False` keeps them too.
        """
        return self._batch_stats

    @batch_stats.setter
    def batch_stats(self, batch_stats: Mapping[str, Any]) -> None:
        tree = thaw(batch_stats)
        differing = sorted(".".join(path) for path in set(flatten(tree)) ^ set(self._statistics))
        if differing:
            raise InputError(f"batch_stats must hold the model's running statistics. Differing: {', '.join(differing)}")
        self._batch_stats = tree

    @property
    def params_shape_tree(self) -> Params:
        """Shapes and dtypes of the parameters, as `jax.ShapeDtypeStruct`."""
        return _shapes(self._recipes)

    @property
    def required_params(self) -> set[ParameterPath]:
        """Paths of all parameters."""
        return set(self._recipes)

    def init_weights(
        self, rng: Array, input_shape: tuple[int, ...] | None = None, params: Mapping[str, Any] | None = None
    ) -> Params:
        """Draw random parameters.

        Args:
            rng: Random key.
            input_shape: Has no effect, because no parameter depends on the input.
            params: Parameters to keep; only those that are missing here are drawn.

        Returns:
            A new parameter tree; the model's own parameters stay as they are.
        """
        kept = {} if params is None else flatten(thaw(params))
        missing = [path for path in self._recipes if path not in kept]
        return unflatten({**kept, **draw(self._recipes, missing, rng)})

    def _init_module(self, rng: Array) -> Any:
        return self.module.init(rng, **self.dummy_inputs(self.input_shape))

    # -- calling ----------------------------------------------------------------------------------------------------

    def _run(
        self,
        inputs: dict[str, Any],
        settings: dict[str, Any],
        *,
        params: Mapping[str, Any] | None,
        dropout_rng: Array | None,
        batch_stats: Mapping[str, Any] | None = None,
        cache: Mapping[str, Any] | None = None,
        method: str = "__call__",
    ) -> tuple[Any, Params | None]:
        """Apply the module.

        Args:
            inputs: Arguments of the module that are arrays, or None.
            settings: Arguments of the module that shape the program, hashable.
            params: Parameters; None takes the model's own.
            dropout_rng: Random key of dropout.
            batch_stats: Running statistics; None takes the model's own.
            cache: Cache of earlier tokens.
            method: Method of the module.

        Returns:
            What the module returns, with `past_key_values` if it was given a cache; and the running statistics that
            training moved, or None.
        """
        program = self._apply if is_intercepted() else self._compiled
        output, changed = program(
            self._variables(params, batch_stats),
            cache,
            dropout_rng,
            inputs,
            settings=tuple(settings.items()),
            method=method,
            fingerprint=self._fingerprint(),
        )
        if cache is not None:
            output["past_key_values"] = changed["cache"]
        return output, changed.get("batch_stats")

    def _variables(
        self, params: Mapping[str, Any] | None, batch_stats: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Linen's variables but for the cache; None takes the model's own."""
        variables: dict[str, Any] = {"params": self.params if params is None else params}
        if self._statistics:
            variables["batch_stats"] = self.batch_stats if batch_stats is None else batch_stats
        return variables

    def _fingerprint(self) -> tuple[str, bool, str | None, bool, bool]:
        """What tells programs apart besides the arguments: the configuration may be changed between calls."""
        return repr(vars(self.config)), self.is_gradient_checkpointing, shared_axis(), self._is_widened(), is_off()

    def _is_widened(self) -> bool:
        """True if the module computes in float32 although `dtype` is half precision; see `fast_paths.widens`."""
        return jax.default_backend() == "cpu" and not is_intercepted() and widens(str(self.dtype))

    @property
    def computing_module(self) -> nn.Module:
        """The module that computes: in float32 where the CPU lacks products of the dtype that was asked for."""
        return self.module.clone(dtype=jnp.float32) if self._is_widened() else self.module

    def _apply(
        self,
        variables: dict[str, Any],
        cache: Any,
        dropout_rng: Array | None,
        inputs: dict[str, Any],
        *,
        settings: tuple[tuple[str, Any], ...],
        method: str,
        fingerprint: Any,
    ) -> tuple[Any, dict[str, Any]]:
        del fingerprint
        fixed = dict(settings)
        rows = next(value for value in inputs.values() if value is not None)

        def apply(module: nn.Module, variables: dict[str, Any], cache: Any, key: Any, inputs: dict[str, Any]) -> Any:
            arguments = {**inputs, **fixed, "rngs": {} if key is None else {"dropout": key}}
            mutable = [] if cache is None else ["cache"]
            if "batch_stats" in variables and not fixed["deterministic"]:
                mutable.append("batch_stats")
            if not mutable:
                return module.apply(variables, **arguments, method=method), {}
            given = variables if cache is None else {**variables, "cache": cache}
            output, changed = module.apply(given, **arguments, method=method, mutable=mutable)
            return output, thaw(changed)

        def as_asked(*arguments: Any) -> Any:
            if not self._is_widened():
                return apply(self.module, *arguments)
            asked = jax.eval_shape(functools.partial(apply, self.module), *arguments)
            wide = apply(self.computing_module, *arguments)
            return jax.tree_util.tree_map(narrow, wide, asked)

        found = on_auto_axes(as_asked, variables, cache, dropout_rng, inputs, rows=rows)
        return cast("tuple[Any, dict[str, Any]]", found)

    def __getstate__(self) -> dict[str, Any]:
        programs = ("_compiled", "_compiled_generation", "_recipes", "_statistics")
        return {name: value for name, value in vars(self).items() if name not in programs}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_programs()

    def _make_programs(self) -> None:
        """What follows from the module and cannot be pickled: the compiled call, and how parameters are drawn."""
        self._compiled = jax.jit(self._apply, static_argnames=("settings", "method", "fingerprint"))
        self._find_recipes()

    def _find_recipes(self) -> None:
        found = recipes(self._init_module)
        self._recipes = {path: recipe for path, recipe in found.items() if recipe.collection == "params"}
        self._statistics = {path: recipe for path, recipe in found.items() if path not in self._recipes}

    # -- the cache --------------------------------------------------------------------------------------------------

    def _cache_shapes(self, batch_size: int, max_length: int) -> Any:
        """Tree of the shapes of a cache for so many tokens of each row."""
        return self._shapes_of_cache((batch_size, max_length), lambda: self.dummy_inputs((batch_size, max_length)))

    def _shapes_of_cache(self, size: tuple[int, ...], make_inputs: Callable[[], dict[str, Any]], **options: Any) -> Any:
        """Tree of the shapes of the cache that the module makes; found out once for each size.

        Args:
            size: Tells caches apart.
            make_inputs: Arguments of the module that shape it.
            **options: Other arguments of `module.init`.
        """
        known = (size, self._fingerprint())
        if known not in self._known_caches:
            self._known_caches[known] = jax.eval_shape(
                lambda: self.module.init(self.key, **make_inputs(), **options, init_cache=True)["cache"]
            )
        return self._known_caches[known]

    # -- dtypes -----------------------------------------------------------------------------------------------------

    def to_bf16(self, params: Mapping[str, Any], mask: Mapping[str, Any] | None = None) -> Params:
        """Parameters in bfloat16, in a new tree.

        Args:
            params: Parameter tree.
            mask: Tree of the same structure with True at the leaves to cast; None casts all floating-point ones.

        Raises:
            InputError: `mask` has another structure.

        Example:
            >>> from longspan import BertConfig, FlaxBertModel
            >>> model = FlaxBertModel(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
            >>> model.params = model.to_bf16(model.params)
            >>> model.params["pooler"]["dense"]["bias"].dtype
            dtype(bfloat16)
        """
        return cast_floating(params, jnp.bfloat16, mask)

    def to_fp16(self, params: Mapping[str, Any], mask: Mapping[str, Any] | None = None) -> Params:
        """Parameters in float16, in a new tree; arguments as in `to_bf16`."""
        return cast_floating(params, jnp.float16, mask)

    def to_fp32(self, params: Mapping[str, Any], mask: Mapping[str, Any] | None = None) -> Params:
        """Parameters in float32, in a new tree; arguments as in `to_bf16`."""
        return cast_floating(params, jnp.float32, mask)

    # -- loading and saving ---------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        dtype: Any = jnp.float32,
        *model_args: Any,
        config: PretrainedConfig | str | os.PathLike[str] | None = None,
        param_dtype: Any = jnp.float32,
        strict: bool = True,
        ignore_mismatched_sizes: bool = False,
        from_pt: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a model from a directory or a hub repository.

        Args:
            pretrained_model_name_or_path: Directory or hub repository with `config.json` and weights:
                `model.safetensors`, `pytorch_model.bin`, `flax_model.msgpack` or `tf_model.h5`.
            dtype: Dtype of the computation; parameters keep theirs.
            *model_args: Further positional arguments of the constructor.
            config: Configuration to use instead of the stored one, or where to read it from.
            param_dtype: Dtype of the parameters, or `"auto"` for the stored one.
            strict: Raise if a key is missing or unexpected. A head that the checkpoint lacks as a whole is
                initialised and reported either way (see `LoadReport`).
            ignore_mismatched_sizes: Initialise parameters whose shape differs instead of raising.
            from_pt: Take PyTorch weights although the directory holds Flax ones too.
            **kwargs: `revision`, `subfolder`, `cache_dir`, `local_files_only`, `force_download`, `token` say where to
                look; arguments of the constructor (`_do_init=False`, `seed=1`, `add_pooling_layer=False`) are passed
                on; all others override settings of the configuration (`num_labels=3`).

        Returns:
            The model, or `(model, params)` with `_do_init=False`. `model.load_report` tells of every key.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint, or it has no weights.
            CheckpointError: the weights are damaged or do not fit the model; every key is listed.
            ConfigError: a keyword is no setting of the configuration, or a value breaks a rule.
        """
        where = source_arguments(kwargs)
        do_init = kwargs.pop("_do_init", True)
        model_kwargs = _constructor_arguments(cls, kwargs)
        resolved = cls._resolve_config(config, pretrained_model_name_or_path, where, kwargs)
        source = Source(pretrained_model_name_or_path, **where)
        with open_checkpoint(source, formats=("safetensors", "pytorch") if from_pt else None) as reader:
            check_sizes(reader, cls.names, resolved, strict=strict and not ignore_mismatched_sizes)
            with naming(resolved.name_or_path):
                model = cls(resolved, *model_args, **{"dtype": dtype, "_do_init": False, **model_kwargs})
            every = {**model._recipes, **model._statistics}
            filled, model.load_report = fill(
                _shapes(every),
                reader,
                names=cls.names,
                config=resolved,
                initialise=lambda paths: draw(every, paths, model.key),
                raw=cls.raw_parameters,
                strict=strict,
                ignore_mismatched_sizes=ignore_mismatched_sizes,
                dtype=None if param_dtype == "auto" else as_float_dtype(param_dtype),
            )
        flat = flatten(filled)
        model._batch_stats = unflatten(
            {path: flat.pop(path).astype(recipe.dtype) for path, recipe in model._statistics.items()}
        )
        params = unflatten(flat)
        model._load_extra(source)
        if not do_init:
            return model, params
        model._is_initialized, model._params = True, params
        return model

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
        params: Mapping[str, Any] | None = None,
        *,
        is_main_process: bool = True,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write `config.json` and `model.safetensors` (in shards if large) into a directory.

        The files load here, in the other frameworks and in `transformers`. Running statistics are the model's own
        (`batch_stats`). A save that is killed leaves either the whole old checkpoint or the whole new one.

        Args:
            save_directory: Directory; made if need be.
            params: Parameters to save instead of the model's own; needed with `_do_init=False`.
            is_main_process: False does nothing, for all but one process of a distributed run.
            max_shard_size: Largest size of one file, in bytes or as `"5GB"`.
            safe_serialization: Must be True: only safetensors are written.
            push_to_hub: Upload the model as well, to `repo_id` (default: the name of the directory).
            **kwargs: Of `push_to_hub`.

        Raises:
            InputError: `safe_serialization` is False, there are no parameters, or there is no such keyword.
        """
        check_save_arguments(safe_serialization, push_to_hub, kwargs)
        if not is_main_process:
            return
        tree = self.params if params is None else thaw(params)
        config = copy.deepcopy(self.config)
        config.architectures = [self.architecture or type(self).__name__.removeprefix("Flax")]
        config.dtype = _dtype_of(tree)
        save_checkpoint(
            Path(save_directory),
            self._tensors_to_save(tree),
            files={CONFIG_NAME: config.to_json_string().encode(), **self._extra_files()},
            max_shard_size=max_shard_size,
        )
        if push_to_hub:
            self._push_saved(save_directory, params=params, max_shard_size=max_shard_size, **kwargs)

    def _tensors_to_save(self, params: Mapping[str, Any]) -> dict[str, LazyTensor]:
        """What `save_pretrained` writes, by canonical key."""
        every = unflatten({**flatten(params), **flatten(self.batch_stats)})
        return tensors_to_save(every, self.raw_parameters)

    # -- vocabulary ---------------------------------------------------------------------------------------------

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
        params: Mapping[str, Any] | None = None,
    ) -> Params:
        """Change the size of the vocabulary in the input and output embeddings.

        Args:
            new_num_tokens: New size; None keeps the present one.
            pad_to_multiple_of: Round the size up to a multiple of this.
            mean_resizing: New rows are the mean of the old ones, which keeps the model's predictions close to what
                they were (Hewitt, 2021). False draws them as at initialisation.
            params: Parameters to resize instead of the model's own; needed with `_do_init=False`.

        Returns:
            The new parameters; they replace the model's own unless `params` was given.

        Raises:
            InputError: a size is not positive.
        """
        size = self.config.vocab_size if new_num_tokens is None else new_num_tokens
        for name, value in (("new_num_tokens", size), ("pad_to_multiple_of", pad_to_multiple_of)):
            if value is not None and value <= 0:
                raise InputError(f"{name} must be positive. Received: {name}={value}")
        if pad_to_multiple_of is not None:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        flat = flatten(self.params if params is None else thaw(params))
        before = self._recipes
        self.config.vocab_size = size
        self._find_recipes()
        changed = {path: new.shape for path, new in self._recipes.items() if new.shape != before[path].shape}
        drawn = {} if mean_resizing else draw(self._recipes, changed, self.key)
        for path, shape in changed.items():
            axis = next(axis for axis, length in enumerate(shape) if length != before[path].shape[axis])
            flat[path] = resize_axis(flat[path], axis, size, drawn.get(path))
        tree = unflatten(flat)
        if params is None:
            self._params = tree
        return tree

    # -- gradient checkpointing -----------------------------------------------------------------------------------

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the layers' activations in the backward pass: less memory, about a third more time."""
        self._module = self._module.clone(gradient_checkpointing=True)

    def disable_gradient_checkpointing(self) -> None:
        """Keep the activations again."""
        self._module = self._module.clone(gradient_checkpointing=False)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """True if the layers' activations are recomputed."""
        return bool(getattr(self._module, "gradient_checkpointing", False))


def as_float_dtype(dtype: Any) -> Any:
    """A NumPy dtype from a dtype or its name.

    Raises:
        InputError: it is not float32, float16 or bfloat16.
    """
    known = [jnp.dtype(name) for name in ("float32", "float16", "bfloat16")]
    try:
        return known[known.index(jnp.dtype(dtype))]
    except (TypeError, ValueError):
        raise InputError(f"dtype must be float32, float16 or bfloat16. Received: {dtype!r}") from None


def _constructor_arguments(cls: type[FlaxPreTrainedModel], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take from `kwargs` what the constructor of `cls` names, and the fields of its module."""
    names = set(inspect.signature(cls.__init__).parameters) - {"self", "config", "dtype", "kwargs"}
    names |= {field.name for field in dataclasses.fields(cls.module_class)} - _MODULE_FIELDS
    return {name: kwargs.pop(name) for name in list(kwargs) if name in names}


def _shapes(chosen: Mapping[ParameterPath, Recipe]) -> Params:
    """Tree of the shapes and dtypes that recipes have."""
    return unflatten({path: jax.ShapeDtypeStruct(recipe.shape, recipe.dtype) for path, recipe in chosen.items()})


def _dtype_of(params: Mapping[str, Any]) -> str:
    """Name of the dtype of the first floating-point parameter."""
    leaves = jax.tree_util.tree_leaves(params)
    return next(str(leaf.dtype) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating))
