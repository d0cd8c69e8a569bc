"""Turning BERT and RoBERTa checkpoints into Longformers: a model in memory, or a directory into a directory."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from longspan.checkpoints.files import LazyTensor, open_checkpoint, save_checkpoint
from longspan.checkpoints.hub import Source
from longspan.checkpoints.reader import CheckpointReader
from longspan.checkpoints.untrusted import parse_json, reading
from longspan.configuration import CONFIG_NAME, PretrainedConfig, read_json
from longspan.errors import CheckpointError, InputError
from longspan.models.longformer.lengthen import Lengthened, Origin, lengthen
from longspan.models.registry import resolve_framework

#: files of a tokenizer or a sentence encoder, copied as they are unless they state a length
_TOKENIZER_FILES = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "modules.json",
    "config_sentence_transformers.json",
)
#: file -> path of keys to the length that it states
_LENGTHS = {
    "tokenizer_config.json": ("model_max_length",),
    "tokenizer.json": ("truncation", "max_length"),
    "sentence_bert_config.json": ("max_seq_length",),
}
_TOKENIZER_CLASSES = {
    "bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
}
#: what class names begin with in the frameworks whose models are made by way of files
_PREFIXES = {"keras": "TF", "flax": "Flax"}
_SPECIAL = {"bos_token_id": "cls_token_id", "sep_token_id": "sep_token_id", "eos_token_id": "sep_token_id"}


def to_long(
    model_or_dir: Any,
    max_length: int = 4096,
    attention_window: int | list[int] = 512,
    framework: str | None = None,
) -> Any:
    """Make a Longformer of a BERT or RoBERTa model.

    The position table is repeated up to `max_length`, and global attention starts with copies of the local
    projections (Beltagy et al., 2020, section 5). Up to `attention_window // 2 + 1` tokens every token sees every
    other, and without global attention the outputs are the original's; longer texts work at once and get better with
    further training.

    Args:
        model_or_dir: A BERT or RoBERTa of longspan, or the directory or hub repository of such a checkpoint. Of a Keras
            or Flax model a copy lies on the disk meanwhile.
        max_length: Longest input of the result, in tokens.
        attention_window: Width of the attention window, even; one number or one per layer.
        framework: `"torch"`, `"flax"` or `"keras"`; default that of the model, of a checkpoint PyTorch.

    Returns:
        The Longformer class that matches: `LongformerModel`, `LongformerForSequenceClassification`, ...; `TF` or `Flax`
        before it in those frameworks. In PyTorch in evaluation mode if it was read from a checkpoint.

    Raises:
        InputError: `framework` is unknown, or not that of the model.
        ConfigError: the model is of another kind, or longer than `max_length` already.
        CheckpointNotFoundError: there is no such checkpoint.

    Example:
        >>> from longspan import BertConfig, BertModel, to_long
        >>> short = BertModel(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> to_long(short, max_length=1024, attention_window=64).config.max_length
        1024
    """
    is_place = isinstance(model_or_dir, str | os.PathLike)
    if not is_place and not isinstance(getattr(model_or_dir, "config", None), PretrainedConfig):
        raise InputError(f"to_long takes a model of longspan or a directory. Received: {type(model_or_dir).__name__}")
    chosen = resolve_framework(framework, model_or_dir)
    if chosen in _PREFIXES:
        return _by_files(model_or_dir, max_length, attention_window, chosen)
    if chosen != "torch":
        raise InputError(f"framework must be torch, flax or keras. Received: framework={framework!r}")
    return (
        _read(model_or_dir, max_length, attention_window)
        if is_place
        else _from_model(model_or_dir, max_length, attention_window)
    )


def _by_files(model: Any, max_length: int, attention_window: int | list[int], framework: str) -> Any:
    """A Longformer of Keras or Flax, loaded from a checkpoint that is written for it."""
    models = importlib.import_module(f"longspan.models.longformer.{framework}_model")
    settings = {}
    with TemporaryDirectory(prefix="longspan-") as folder:
        origin, name = model, str(model)
        if not isinstance(model, str | os.PathLike):
            origin, name = f"{folder}/short", model.config.name_or_path
            model.save_pretrained(origin)
            settings["dtype"] = model.dtype_policy if framework == "keras" else model.dtype
        tokenizer = Source(name) if name else None
        plan = _write(Source(origin), Path(folder, "long"), max_length, attention_window, tokenizer)
        made = getattr(models, _PREFIXES[framework] + plan.class_name).from_pretrained(f"{folder}/long", **settings)
    made.config.name_or_path = name
    return made


def _read(model_or_dir: str | os.PathLike[str], max_length: int, attention_window: int | list[int]) -> Any:
    """A Longformer of PyTorch, read from a checkpoint."""
    import torch

    source = Source(model_or_dir)
    config = read_json(source.require(CONFIG_NAME))
    with open_checkpoint(source) as reader:
        plan = _plan(reader, config, source, max_length, attention_window)
        model = _make(plan)
        own = _parameters(model)
        for key, origin in plan.origins.items():
            values = reader.read_torch(origin.key)
            own[key].data.copy_(values if origin.rows is None else values[torch.from_numpy(origin.rows)])
    _check_complete(plan, own)
    model.config.name_or_path = str(model_or_dir)
    model.eval()
    return model


def _from_model(model: Any, max_length: int, attention_window: int | list[int]) -> Any:
    import torch

    tensors = model.state_dict()
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    plan = lengthen(
        config,
        {key: tuple(tensor.shape) for key, tensor in tensors.items()},
        max_length=max_length,
        attention_window=attention_window,
        special_tokens=_special_tokens(Source(model.config.name_or_path) if model.config.name_or_path else None),
    )
    result = _make(plan).to(device=model.device, dtype=model.dtype)
    own = _parameters(result)
    with torch.no_grad():
        for key, origin in plan.origins.items():
            values = tensors[origin.key]
            own[key].copy_(values if origin.rows is None else values[torch.from_numpy(origin.rows).to(values.device)])
    _check_complete(plan, own)
    return result.train(model.training)


def _make(plan: Lengthened) -> Any:
    """The model with random weights."""
    import longspan.models.longformer.torch_model as models

    return getattr(models, plan.class_name)(plan.config)


def _parameters(model: Any) -> dict[str, Any]:
    """The model's parameters by full key."""
    prefix = f"{model.base_model_prefix}." if model.base_model is model else ""
    return {prefix + key: parameter for key, parameter in model.state_dict(keep_vars=True).items()}


def _check_complete(plan: Lengthened, own: Any) -> None:
    """Everything but a pooler that the original lacks and tied repeats must have got its values."""
    tied = {"lm_head.decoder.weight", "lm_head.decoder.bias"}
    missing = [key for key in own if key not in plan.origins and key not in tied and ".pooler." not in key]
    if missing:
        raise CheckpointError(f"the checkpoint to lengthen lacks tensors for: {', '.join(missing)}")


def _plan(
    reader: CheckpointReader, config: Any, tokenizer: Source | None, max_length: int, attention_window: int | list[int]
) -> Lengthened:
    return lengthen(
        config,
        {key: reader.shape(key) for key in reader.keys()},  # noqa: SIM118 - a reader is no mapping
        max_length=max_length,
        attention_window=attention_window,
        special_tokens=_special_tokens(tokenizer),
    )


def _special_tokens(source: Source | None) -> dict[str, int | None]:
    """Ids of the special tokens, from the tokenizer beside the checkpoint if there is one."""
    from longspan.tokenization.auto import AutoTokenizer

    has_tokenizer = source is not None and source.is_local and any(map(source.find, ("tokenizer.json", "vocab.txt")))
    if source is None or not (has_tokenizer or not source.is_local):
        return {}
    tokenizer = AutoTokenizer.from_pretrained(source.name, subfolder=source.subfolder)
    return {name: getattr(tokenizer, attribute) for name, attribute in _SPECIAL.items()}


def lengthen_checkpoint(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    max_length: int = 4096,
    attention_window: int | list[int] = 512,
) -> Lengthened:
    """Write the Longformer of a BERT or RoBERTa checkpoint into a directory; PyTorch is not needed.

    The tokenizer and the settings of a sentence encoder come along, with their lengths updated. The result loads here
    and in `transformers`.

    Args:
        source: Directory or hub repository.
        destination: Directory to write; must not be the source.
        max_length: Longest input of the result, in tokens.
        attention_window: Width of the attention window, even.

    Returns:
        What each tensor came from, and what was dropped.

    Raises:
        InputError: source and destination are the same directory.
        ConfigError: the model is of another kind, or longer than `max_length` already.
        CheckpointNotFoundError: there is no such checkpoint.
    """
    if Path(source).exists() and Path(source).resolve() == Path(destination).resolve():
        raise InputError(f"the destination must be another directory than the source. Received: {source} twice")
    origin = Source(source)
    return _write(origin, Path(destination), max_length, attention_window, origin)


def _write(
    origin: Source, destination: Path, max_length: int, attention_window: int | list[int], tokenizer: Source | None
) -> Lengthened:
    """Write the Longformer of a checkpoint; the tokenizer there tells the ids of special tokens."""
    config = read_json(origin.require(CONFIG_NAME))
    with open_checkpoint(origin) as reader:
        plan = _plan(reader, config, tokenizer, max_length, attention_window)
        target = plan.config
        target.architectures = [plan.class_name]
        tensors = {key: _lazy(reader, where) for key, where in plan.origins.items()}
        files = {
            CONFIG_NAME: target.to_json_string().encode(),
            **_other_files(origin, config["model_type"], max_length),
            **_pooling_files(origin),
        }
        save_checkpoint(destination, tensors, files=files)
    return plan


def _lazy(reader: CheckpointReader, origin: Origin) -> LazyTensor:
    """A tensor of the result, read when it is written."""
    shape = reader.shape(origin.key)
    if origin.rows is None:
        return LazyTensor(shape, reader.dtype(origin.key), lambda: reader.read_raw(origin.key))
    rows = origin.rows
    return LazyTensor((len(rows), *shape[1:]), reader.dtype(origin.key), lambda: reader.read_raw(origin.key)[rows])


def _other_files(source: Source, model_type: str, max_length: int) -> dict[str, bytes]:
    files = {}
    for name in (*_TOKENIZER_FILES, *_LENGTHS):
        path = source.find(name)
        if path is not None:
            files[name] = path.read_bytes() if name not in _LENGTHS else _with_length(path, _LENGTHS[name], max_length)
    if any(name in files for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
        # the family of the model changes, that of its tokenizer does not: the file must name it
        content = parse_json(files.get("tokenizer_config.json", b"{}"))
        named = {"tokenizer_class": _TOKENIZER_CLASSES[model_type], "model_max_length": max_length}
        files["tokenizer_config.json"] = _dump({**named, **content})
    return files


def _with_length(path: Path, keys: tuple[str, ...], max_length: int) -> bytes:
    """A JSON file with the length that it states replaced; a file that states none stays as it is."""
    content = read_json(path)
    place = content
    for key in keys[:-1]:
        place = place.get(key) or {}
    if place.get(keys[-1]) is None and path.name != "tokenizer_config.json":
        return path.read_bytes()
    place[keys[-1]] = max_length
    return _dump(content)


def _dump(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _pooling_files(source: Source) -> dict[str, bytes]:
    """What the modules after the transformer are made of (pooling, normalisation, dense layers)."""
    modules = source.find("modules.json")
    if modules is None:
        return {}
    with reading(modules, "the list of modules"):
        folders = [str(module["path"]) for module in parse_json(modules.read_bytes()) if module.get("path")]
    names = [f"{folder}/{name}" for folder in folders for name in ("config.json", "model.safetensors")]
    return {name: path.read_bytes() for name in names if (path := source.find(name)) is not None}
