"""Which Longformer a BERT or RoBERTa checkpoint becomes: its configuration and where each of its tensors comes from.

The recipe is the one that made the published Longformers (Beltagy et al., 2020, section 5): the position table is
repeated to the new length, and the projections of global attention start as copies of the local ones. Nothing else
changes, so that on texts which the window covers the result computes what the original computes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longspan.configuration import require
from longspan.errors import CheckpointError, ConfigError
from longspan.models.longformer.config import LongformerConfig

#: model types whose parameters are laid out like BERT's, and how many rows their position tables begin with unused
_BERT_LAYOUT = ("bert",)
_ROBERTA_LAYOUT = ("roberta", "xlm-roberta", "camembert")
#: settings that Longformer lacks or that are worked out anew
_REPLACED_SETTINGS = (
    "model_type",
    "architectures",
    "position_embedding_type",
    "use_cache",
    "classifier_dropout",
    "is_decoder",
    "add_cross_attention",
    "max_position_embeddings",
    "transformers_version",
    "gradient_checkpointing",
    "onnx_export",
    "attn_implementation",
    "attention_window",
)
_HEADS = {
    "ForPreTraining": "ForMaskedLM",
    "LMHeadModel": "ForMaskedLM",
    "ForMaskedLM": "ForMaskedLM",
    "ForSequenceClassification": "ForSequenceClassification",
    "ForTokenClassification": "ForTokenClassification",
    "ForMultipleChoice": "ForMultipleChoice",
    "ForQuestionAnswering": "ForQuestionAnswering",
}
_PROJECTION = re.compile(r"(.*\.attention\.self\.)(query|key|value)(\.(?:weight|bias))")
_POSITIONS = "embeddings.position_embeddings.weight"
_NO_PARAMETER = re.compile(r"embeddings\.(position_ids|token_type_ids)$")


@dataclass(frozen=True)
class Origin:
    """Where a tensor of the Longformer comes from.

    Attributes:
        key: Key of the original.
        rows: Rows of the original to take, or None for all as they are.
    """

    key: str
    rows: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Lengthened:
    """The Longformer that a checkpoint becomes.

    Attributes:
        config: Its configuration.
        class_name: Name of its class, e.g. `"LongformerForMaskedLM"`.
        origins: Key of each tensor to where it comes from.
        dropped: Keys of the original that Longformer has no place for (next sentence prediction, and repeats of tied
            weights).
    """

    config: LongformerConfig
    class_name: str
    origins: dict[str, Origin]
    dropped: tuple[str, ...]


def lengthen(
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    max_length: int,
    attention_window: int | list[int],
    special_tokens: Mapping[str, int | None] | None = None,
) -> Lengthened:
    """Plan the Longformer of a BERT or RoBERTa checkpoint.

    Args:
        config: Content of its `config.json`.
        shapes: Shape of each stored tensor by key.
        max_length: Longest input of the result, in tokens.
        attention_window: Width of the attention window, as in `LongformerConfig`.
        special_tokens: `bos_token_id`, `sep_token_id`, `eos_token_id` of its tokenizer, where the configuration lacks
            them.

    Raises:
        ConfigError: the model is of another kind, or is not longer than the original.
        CheckpointError: the checkpoint lacks the position table.
    """
    roberta = config.get("model_type") in _ROBERTA_LAYOUT
    _check_kind(config)
    names = {stored: _canonical(stored) for stored in shapes}
    positions = next((stored for stored, name in names.items() if name == _POSITIONS), None)
    if positions is None:
        raise CheckpointError(f"a checkpoint to lengthen must hold {_POSITIONS}. Received: {len(shapes)} other tensors")
    target = _config(config, max_length, attention_window, special_tokens or {})
    rows = _position_rows(shapes[positions][0], target, roberta=roberta)
    head = _head(config, names.values(), shapes)
    origins: dict[str, Origin] = {}
    dropped = []
    for stored, name in names.items():
        keys = _targets(name, head, tied=target.tie_word_embeddings, roberta=roberta)
        if not keys:
            dropped.append(stored)
        for key in keys:
            origins[key] = Origin(stored, rows if name == _POSITIONS else None)
    return Lengthened(target, f"Longformer{head}", origins, tuple(dropped))


def _check_kind(config: Mapping[str, Any]) -> None:
    kinds = (*_BERT_LAYOUT, *_ROBERTA_LAYOUT)
    model_type = config.get("model_type")
    require(model_type in kinds, f"a model to lengthen must be one of {', '.join(kinds)}", model_type=model_type)
    position_type = config.get("position_embedding_type", "absolute")
    require(
        position_type == "absolute",
        "a model to lengthen must have absolute positions",
        position_embedding_type=position_type,
    )
    is_decoder = config.get("is_decoder", False)
    require(not is_decoder, "a model to lengthen must be an encoder", is_decoder=is_decoder)


def _config(
    config: Mapping[str, Any],
    max_length: int,
    attention_window: int | list[int],
    special_tokens: Mapping[str, int | None],
) -> LongformerConfig:
    kept = {name: value for name, value in config.items() if name not in _REPLACED_SETTINGS}
    tokens = {name: special_tokens.get(name) for name in ("bos_token_id", "sep_token_id", "eos_token_id")}
    pad = kept.setdefault("pad_token_id", 1 if config.get("model_type") in _ROBERTA_LAYOUT else 0)
    require(isinstance(pad, int), "a model to lengthen must have a pad_token_id", pad_token_id=pad)
    old = config.get("max_position_embeddings", 512)
    old_length = old - pad - 1 if config.get("model_type") in _ROBERTA_LAYOUT else old
    require(
        max_length >= old_length,
        f"max_length must be at least the model's {old_length} tokens",
        max_length=max_length,
    )
    return LongformerConfig(
        **{**tokens, **kept},
        attention_window=attention_window,
        max_position_embeddings=max_length + pad + 1,
    )


def _position_rows(num_old: int, config: LongformerConfig, *, roberta: bool) -> npt.NDArray[np.int64]:
    """Row of the old table for each row of the new one.

    Longformer counts positions from `pad_token_id + 1`, as RoBERTa does; BERT counts from 0. Rows before the first
    position are never read as positions and keep what is there.
    """
    first = (config.pad_token_id or 0) + 1
    skipped = first if roberta else 0
    repeated = skipped + np.arange(config.max_length) % (num_old - skipped)
    return np.concatenate([np.minimum(np.arange(first), num_old - 1), repeated])


def _canonical(key: str) -> str:
    """The key without the base prefix and with today's names."""
    for prefix in ("bert.", "roberta."):
        key = key.removeprefix(prefix)
    return re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", key))


def _head(config: Mapping[str, Any], names: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The end of the class name: from the architecture that the checkpoint names, or from the tensors it holds."""
    held = set(names)
    for architecture in config.get("architectures") or ():
        for end, head in _HEADS.items():
            if architecture.endswith(end):
                _check_head(head, config)
                return head
    if any(name.startswith(("cls.predictions.", "lm_head.")) for name in held):
        _check_head("ForMaskedLM", config)
        return "ForMaskedLM"
    if "qa_outputs.weight" in held:
        return "ForQuestionAnswering"
    if "classifier.out_proj.weight" in held:
        return "ForSequenceClassification"
    if "classifier.weight" in held:
        raise ConfigError(
            "a checkpoint with a classifier must say in 'architectures' what it classifies, e.g. "
            f"['BertForTokenClassification']. Received: architectures={config.get('architectures')!r}"
        )
    return "Model"


def _check_head(head: str, config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "gelu")
    require(
        head != "ForMaskedLM" or activation == "gelu",
        "a masked language model to lengthen must have hidden_act='gelu', which Longformer's head uses always",
        hidden_act=activation,
    )


def _targets(name: str, head: str, *, tied: bool, roberta: bool) -> list[str]:
    """Keys of the Longformer that take a tensor of the original."""
    if _NO_PARAMETER.search(name):
        return []
    projection = _PROJECTION.fullmatch(name)
    if projection:
        before, which, after = projection.groups()
        return [f"longformer.{name}", f"longformer.{before}{which}_global{after}"]
    if name.startswith(("embeddings.", "encoder.")):
        return [f"longformer.{name}"]
    if name.startswith("pooler."):
        return _pooler_targets(name, head, roberta=roberta)
    if head == "ForMaskedLM":
        return _language_model_targets(name, tied=tied)
    if head == "ForSequenceClassification" and not roberta and name.startswith("classifier."):
        return [name.replace("classifier.", "classifier.out_proj.")]
    return [name] if name.startswith(("classifier.", "qa_outputs.")) else []


def _pooler_targets(name: str, head: str, *, roberta: bool) -> list[str]:
    """BERT's classifier reads the pooler; Longformer's holds the same dense layer and tanh itself."""
    if head == "ForSequenceClassification" and not roberta:
        return [name.replace("pooler.dense.", "classifier.dense.")]
    return [f"longformer.{name}"] if head in ("Model", "ForMultipleChoice") else []


def _language_model_targets(name: str, *, tied: bool) -> list[str]:
    name = name.replace("cls.predictions.transform.dense.", "lm_head.dense.")
    name = name.replace("cls.predictions.transform.LayerNorm.", "lm_head.layer_norm.")
    name = name.replace("cls.predictions.", "lm_head.")
    repeats = name == "lm_head.decoder.bias" or (tied and name == "lm_head.decoder.weight")
    return [name] if name.startswith("lm_head.") and not repeats else []
