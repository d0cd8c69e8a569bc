"""Models and batches that several processes compute together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

import longspan
from longspan.errors import InputError

TOKENS = 48


@dataclass
class Case:
    """A model, a batch, and which axis of which output counts tokens."""

    make: Callable[[], Any]
    inputs: dict[str, Any]
    outputs: dict[str, int | None] = field(default_factory=lambda: {"logits": 1})

    def real(self, output, axis):
        """1 where an output stands for a real token: states at padding are unspecified."""
        mask = self.inputs.get("attention_mask")
        if mask is None or axis is None:
            return 1.0
        return (mask != 0).reshape(*mask.shape, *[1] * (output.dim() - 2)).to(output.dtype)


def make(name: str, **settings: Any) -> Callable[[], Any]:
    """A model without dropout whose weights, norms and biases are random."""

    def build():
        cls = getattr(longspan, name)
        torch.manual_seed(0)
        model = cls(cls.config_class(vocab_size=40, **settings)).train()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    return build


def ids(rows: int = 2, tokens: int = TOKENS) -> torch.Tensor:
    return torch.randint(5, 40, (rows, tokens), generator=torch.Generator().manual_seed(1))


def padded(rows: int = 2, tokens: int = TOKENS) -> dict[str, torch.Tensor]:
    """Ids with padding behind: the second row ends before the third of four shares."""
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[0, tokens - 5 :] = 0
    mask[1, 20:] = 0
    return {"input_ids": ids(rows, tokens).masked_fill(mask == 0, 1), "attention_mask": mask}


def labelled(values: torch.Tensor) -> torch.Tensor:
    """Every third label does not count, and none of the first quarter: some processes have none."""
    labels = values.clone()
    labels[:, ::3] = -100
    labels[:, : values.shape[1] // 4] = -100
    return labels


def marked(*places: tuple[int, int]) -> torch.Tensor:
    mask = torch.zeros(2, TOKENS, dtype=torch.long)
    for row, token in places:
        mask[row, token] = 1
    return mask


LONGFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "attention_window": [4, 8],
    "max_position_embeddings": 60,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 1,
    "num_labels": 3,
}
GLOBAL = marked((0, 0), (0, 13), (0, 14), (0, 40), (1, 3))
LONGT5 = {
    "d_model": 16,
    "d_kv": 8,
    "num_heads": 2,
    "d_ff": 20,
    "num_layers": 2,
    "local_radius": 3,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
MEGA = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "nffn_hidden_size": 24,
    "ema_projection_size": 4,
    "shared_representation_size": 8,
    "max_positions": 64,
    "dropout_prob": 0.0,
    "nffn_activation_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 1,
}
CASES = {
    "longformer_fill": Case(
        make("LongformerForMaskedLM", **LONGFORMER), {"input_ids": ids(), "labels": labelled(ids())}
    ),
    "longformer_fill_global": Case(
        make("LongformerForMaskedLM", **LONGFORMER),
        {**padded(), "global_attention_mask": GLOBAL, "labels": labelled(ids())},
    ),
    "longformer_tag": Case(
        make("LongformerForTokenClassification", **LONGFORMER),
        {**padded(), "global_attention_mask": marked((1, 1)), "labels": labelled(ids() % 3)},
    ),
    "longformer_classify": Case(
        make("LongformerForSequenceClassification", **LONGFORMER),
        {**padded(), "labels": torch.tensor([2, 0])},
        {"logits": None},
    ),
    "longformer_answer": Case(
        make("LongformerForQuestionAnswering", **LONGFORMER, sep_token_id=2),
        {
            "input_ids": ids().index_fill(1, torch.tensor([15, 16]), 2),
            "start_positions": torch.tensor([14, 400]),
            "end_positions": torch.tensor([30, 47]),
        },
        {"start_logits": 1, "end_logits": 1},
    ),
    "longformer_choose": Case(
        make("LongformerForMultipleChoice", **LONGFORMER, sep_token_id=2),
        {"input_ids": ids(4).index_fill(1, torch.tensor([11, 12]), 2).view(2, 2, -1), "labels": torch.tensor([1, 0])},
        {"logits": None},
    ),
    "longt5_local": Case(
        make("LongT5ForConditionalGeneration", **LONGT5),
        {**padded(), "labels": ids(tokens=7), "use_cache": False},
        {"logits": None, "encoder_last_hidden_state": 1},
    ),
    "longt5_transient": Case(
        make(
            "LongT5ForConditionalGeneration", **LONGT5, encoder_attention_type="transient-global", global_block_size=7
        ),
        {**padded(), "labels": ids(tokens=7), "use_cache": False},
        {"logits": None, "encoder_last_hidden_state": 1},
    ),
    "mega_fill": Case(make("MegaForMaskedLM", **MEGA), {**padded(), "labels": labelled(ids())}),
    "mega_fill_chunks": Case(
        make("MegaForMaskedLM", **MEGA, use_chunking=True, chunk_size=4, attention_activation="laplace"),
        {**padded(), "labels": labelled(ids())},
    ),
    "mega_generate": Case(
        make("MegaForCausalLM", **MEGA, is_decoder=True, bidirectional=False, attention_activation="relu2"),
        {"input_ids": ids(), "labels": labelled(ids())},
    ),
    "mega_generate_chunks": Case(
        make("MegaForCausalLM", **MEGA, is_decoder=True, bidirectional=False, use_chunking=True, chunk_size=6),
        {"input_ids": ids(), "labels": labelled(ids())},
    ),
    "mega_truncated": Case(
        make("MegaForTokenClassification", **MEGA, truncation=9, relative_positional_bias="simple"),
        {"input_ids": ids(), "labels": labelled(ids() % 2)},
    ),
    "mega_classify": Case(
        make("MegaForSequenceClassification", **MEGA), {**padded(), "labels": torch.tensor([1, 0])}, {"logits": None}
    ),
}


def long_case(name: str, tokens: int, width: int = 8) -> Case:
    """One narrow layer over very many tokens."""
    sizes = {"hidden_size": width, "num_hidden_layers": 1, "intermediate_size": width}
    longformer = {**LONGFORMER, **sizes, "max_position_embeddings": tokens + 2, "attention_window": 16}
    mega = {**MEGA, **sizes, "nffn_hidden_size": width, "use_chunking": True, "chunk_size": 64}
    settings = longformer if name.startswith("Longformer") else mega
    inputs = {"input_ids": ids(1, tokens), "labels": ids(1, tokens) % 2}
    if name.startswith("Longformer"):
        inputs["global_attention_mask"] = torch.zeros(1, tokens).index_fill(1, torch.tensor([0, tokens - 7]), 1)
    if name.startswith("LongT5"):
        settings = {**LONGT5, "d_model": width, "d_ff": width, "num_layers": 1, "num_decoder_layers": 1}
        inputs["labels"] = ids(1, 5)
    return Case(make(name, **settings), inputs)


def message(call):
    """What a call says that must not be."""
    try:
        call()
    except InputError as problem:
        return str(problem)
    return "no error"
