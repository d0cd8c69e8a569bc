"""Facts about RoBERTa's parameter names."""

from __future__ import annotations

from longspan.checkpoints.names import ParameterNames, Tied

NAMES = ParameterNames(
    base_prefix="roberta",
    tied=(
        Tied("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight", switch="tie_word_embeddings"),
        Tied("lm_head.decoder.bias", "lm_head.bias"),
    ),
    legacy=((r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
    ignorable=(r"\.embeddings\.(position_ids|token_type_ids)$",),
    heads=("roberta.pooler", "roberta.encoder.layer.*.crossattention"),
)
