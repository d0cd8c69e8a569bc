"""Small models of every family to be explained, and their attention as whole maps, made in the plainest way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.pipelines.task_models import POSITIONS, make_task_model, make_tokenizer, randomize
from torch import Tensor

import longspan
from longspan.models.longt5.torch_encoder import blocked_attentions_to_dense

FAMILIES = ("bert", "longformer", "mega", "mega-chunks", "diffllama", "diffllama-lm", "longt5", "longt5-global")


def make_model(folder: Path, family: str, minilm: Path) -> Path:
    """A folder with a model and tokenizer."""
    if family == "bert":
        return make_task_model(folder, "text-classification", "wordpiece", minilm)
    if family == "longformer":
        return make_task_model(folder, "text-classification", "byte_level", minilm)
    tokenizer = make_tokenizer(folder, "unigram" if "longt5" in family else "wordpiece", minilm)
    model = _MAKERS[family.partition("-")[0]](family, len(tokenizer))
    randomize(model, 1.0 if "diffllama" in family else 0.3)  # so that differences have both signs
    model.save_pretrained(folder)
    return folder


def _mega(family: str, vocab_size: int) -> Any:
    config = longspan.MegaConfig(
        vocab_size=vocab_size, hidden_size=24, num_hidden_layers=2, intermediate_size=32, ema_projection_size=4,
        shared_representation_size=12, use_chunking="chunks" in family, chunk_size=8, max_positions=POSITIONS,
        pad_token_id=0,
    )  # fmt: skip
    return longspan.MegaForSequenceClassification(config)


def _diffllama(family: str, vocab_size: int) -> Any:
    config = longspan.DiffLlamaConfig(
        vocab_size=vocab_size, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, max_position_embeddings=POSITIONS, pad_token_id=0,
    )  # fmt: skip
    kind = longspan.DiffLlamaForCausalLM if "lm" in family else longspan.DiffLlamaForSequenceClassification
    return kind(config)


def _longt5(family: str, vocab_size: int) -> Any:
    config = longspan.LongT5Config(
        vocab_size=vocab_size, d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4, local_radius=5,
        global_block_size=4, encoder_attention_type="transient-global" if "global" in family else "local",
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    return longspan.LongT5ForConditionalGeneration(config)


_MAKERS = {"mega": _mega, "diffllama": _diffllama, "longt5": _longt5}


def whole_maps(model: Any, ids: Tensor) -> Tensor:
    """(L, A, S, S): how strongly each token of (1, S) looks at each; summaries are spread over their tokens."""
    length = ids.shape[1]
    if model.config.model_type == "diffllama":
        return _stack(model(ids, output_differential_attentions=True).differential_attentions)
    if model.config.model_type == "longt5":
        return _stack([_spread(blocked_attentions_to_dense(layer, length), length)
                       for layer in model.encoder(ids, output_attentions=True).attentions])  # fmt: skip
    if model.config.model_type == "longformer":
        is_global = torch.zeros_like(ids).index_fill(1, torch.tensor([0]), 1)
        output = model(ids, global_attention_mask=is_global, output_attentions=True)
        return _stack([_from_window(*pair) for pair in zip(output.attentions, output.global_attentions, strict=True)])
    layers = model(ids, output_attentions=True).attentions
    if model.config.model_type == "mega":
        return _stack([torch.block_diag(*layer[0])[None, None, :length, :length] for layer in layers])
    return _stack(layers)


def _stack(layers: Any) -> Tensor:
    return torch.stack([layer[0] for layer in layers]).detach()


def _spread(weights: Tensor, length: int) -> Tensor:
    whole = weights[..., :length].clone()
    num_summaries = weights.shape[-1] - length
    for summary in range(num_summaries):
        stop = length if summary == num_summaries - 1 else 4 * summary + 4
        whole[..., 4 * summary : stop] += weights[..., length + summary, None] / (stop - 4 * summary)
    return whole


def _from_window(weights: Tensor, of_global: Tensor) -> Tensor:
    """The first token is global."""
    _, num_heads, length, columns = weights.shape
    radius = (columns - 2) // 2
    whole = torch.zeros(1, num_heads, length, length)
    for query in range(length):
        for key in range(max(0, query - radius), min(length, query + radius + 1)):
            whole[:, :, query, key] += weights[:, :, query, 1 + key - query + radius]
        whole[:, :, query, 0] += weights[:, :, query, 0]
    whole[:, :, 0] = of_global[..., 0]
    return whole
