"""Every PyTorch class at a small size, with inputs."""

from __future__ import annotations

import re

import torch
from tests.parity.torch_parity import randomise

import longspan

_NAME = re.compile(r"(Bert|Longformer|LongT5|DiffLlama|Mega|Roberta)(Model|EncoderModel|LMHeadModel|For\w+)")
TORCH = {name: getattr(longspan, name) for name in dir(longspan) if _NAME.fullmatch(name)}

SIZES = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2}
LONGT5 = {"vocab_size": 60, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "local_radius": 6}
SETTINGS = {
    "Bert": (longspan.BertConfig, {**SIZES, **HEADS}),
    "Longformer": (longspan.LongformerConfig, {**SIZES, **HEADS, "attention_window": [8], "sep_token_id": 2}),
    "LongT5": (longspan.LongT5Config, {**LONGT5, "global_block_size": 8, "encoder_attention_type": "transient-global"}),
    "DiffLlama": (longspan.DiffLlamaConfig, {**SIZES, **HEADS, "pad_token_id": 0}),
    "Mega": (longspan.MegaConfig, {**SIZES, "use_chunking": True, "chunk_size": 16}),
    "Roberta": (longspan.RobertaConfig, {**SIZES, **HEADS}),
}
#: what makes a class whole: a decoder, or parts that are not there by default
MORE = {
    "BertModel": {"is_decoder": True, "position_embedding_type": "relative_key_query"},
    "BertLMHeadModel": {"is_decoder": True},
    "LongT5ForConditionalGeneration": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "RobertaForCausalLM": {"is_decoder": True},
    "MegaForCausalLM": {"is_decoder": True, "bidirectional": False, "normalization_type": "rmsnorm"},
    "MegaForMaskedLM": {"add_lm_hidden_dense_layer": True, "add_token_type_embeddings": True},
    "MegaModel": {"use_normalized_ffn": True, "normalization_type": "layernorm"},
}


def make(name):
    torch.manual_seed(0)
    family = next(family for family in SETTINGS if name.startswith(family))
    kind, settings = SETTINGS[family]
    settings = {**settings, **MORE.get(name, {}), "output_hidden_states": True}
    model = randomise(TORCH[name](kind(**settings)), scale=0.1 if family == "LongT5" else 0.2)
    ids = torch.randint(3, 60, (2, 40))
    inputs = {"input_ids": ids}
    if family == "Longformer":
        inputs["global_attention_mask"] = torch.zeros_like(ids).index_fill(1, torch.tensor([0, 17]), 1)
    if family == "LongT5" and "Encoder" not in name:
        inputs["decoder_input_ids"] = ids[:, :35]
    if name.endswith("MultipleChoice"):
        inputs = {key: value.unflatten(0, (1, 2)) for key, value in inputs.items()}
    return model, inputs
