"""Facts about MEGA's parameter names."""

from __future__ import annotations

from longspan.checkpoints.names import ParameterNames, Tied

_EMBEDDING = "mega.embedding_layer.word_embeddings.weight"

NAMES = ParameterNames(
    base_prefix="mega",
    tied=(
        Tied("lm_head.weight", _EMBEDDING, switch="tie_word_embeddings"),
        Tied("mlm_head.weight", _EMBEDDING, switch="tie_word_embeddings"),
    ),
    ignorable=(r"\.embedding_layer\.token_type_ids$", r"\.rel_pos_bias\._float_tensor$"),
    heads=("mega.pooler", "mega.layers.*.cross_attn"),
    sizes=(
        ("vocab_size", "hidden_size"),
        ("num_hidden_layers", "hidden_size", "intermediate_size"),
        ("num_hidden_layers", "hidden_size", "shared_representation_size"),
        ("num_hidden_layers", "hidden_size", "ema_projection_size"),
    ),
)
