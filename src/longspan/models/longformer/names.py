"""Facts about Longformer's parameter names."""

from __future__ import annotations

from longspan.checkpoints.names import ParameterNames, Tied

NAMES = ParameterNames(
    base_prefix="longformer",
    tied=(
        Tied("lm_head.decoder.weight", "longformer.embeddings.word_embeddings.weight", switch="tie_word_embeddings"),
        Tied("lm_head.decoder.bias", "lm_head.bias"),
    ),
    ignorable=(r"\.embeddings\.(position_ids|token_type_ids)$",),
    heads=("longformer.pooler",),
    sizes=(
        ("vocab_size", "hidden_size"),
        ("max_position_embeddings", "hidden_size"),
        ("type_vocab_size", "hidden_size"),
        ("num_hidden_layers", "hidden_size", "hidden_size"),
        ("num_hidden_layers", "intermediate_size", "hidden_size"),
    ),
)
