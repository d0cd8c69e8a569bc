"""Small models of ours and of the reference with equal weights, and batches for every task."""

from __future__ import annotations

from typing import Any

import torch

import longspan

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12], [12, 3, 4, 9, 21, 6, 5, 8]])
SIZES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20},
    "roberta": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20},
    "longformer": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 20,
        "attention_window": 4,
        "max_position_embeddings": 60,
    },
    "longt5": {
        "d_model": 16,
        "d_kv": 8,
        "num_heads": 2,
        "d_ff": 20,
        "num_layers": 2,
        "local_radius": 3,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.0,
    },
    "diffllama": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 20,
    },
    "mega": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "intermediate_size": 20,
        "ema_projection_size": 4,
        "shared_representation_size": 8,
        "use_chunking": False,
    },
}
#: class of each family with a language modelling head
LANGUAGE_MODELS = {
    "bert": "BertForMaskedLM",
    "longformer": "LongformerForMaskedLM",
    "longt5": "LongT5ForConditionalGeneration",
    "diffllama": "DiffLlamaForCausalLM",
    "mega": "MegaForMaskedLM",
}
CLASSIFIERS = {
    family: LANGUAGE_MODELS[family].split("For")[0] + "ForSequenceClassification"
    for family in LANGUAGE_MODELS
    if family != "longt5"
}


def family_of(name: str) -> str:
    return next(family for family in SIZES if name.lower().startswith(family))


def make(name: str, library: Any = longspan, **settings: Any) -> Any:
    """A model of class `name` without dropout; ours and the reference's have equal weights."""
    family = family_of(name)
    known = longspan.AutoConfig.for_model(family)
    off = {setting: 0.0 for setting in known if "dropout" in setting and isinstance(getattr(known, setting), float)}
    if name in ("BertLMHeadModel", "RobertaForCausalLM", "MegaForCausalLM"):
        settings = {"is_decoder": True, **settings}
    if name == "MegaForCausalLM":
        settings = {"bidirectional": False, **settings}
    content = {"vocab_size": 40, "pad_token_id": 0, **off, **SIZES[family], **settings}
    torch.manual_seed(0)
    model = getattr(longspan, name)(getattr(longspan, name).config_class(**content))
    if library is longspan:
        return model
    kind = getattr(library, name)
    theirs = kind(kind.config_class(**content))
    theirs.load_state_dict(model.state_dict())
    return theirs


def batch(name: str) -> dict[str, torch.Tensor]:
    """A batch with labels for a class."""
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    if name.endswith("SequenceClassification"):
        return {**inputs, "labels": torch.tensor([0, 1])}
    if name.endswith("TokenClassification"):
        return {**inputs, "labels": IDS % 2}
    if name.endswith("QuestionAnswering"):
        return {**inputs, "start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([2, 3])}
    return inputs if name.endswith("Model") and "LM" not in name else {**inputs, "labels": IDS}


def inputs_of(model, tokens):
    """A batch of `tokens` tokens, padded in one row."""
    ids = torch.randint(3, 40, (2, tokens), generator=torch.Generator().manual_seed(tokens))
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    return {**inputs, "decoder_input_ids": ids[:, :4]} if model.config.is_encoder_decoder else inputs
