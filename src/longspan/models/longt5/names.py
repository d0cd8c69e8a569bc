"""Facts about LongT5's parameter names."""

from __future__ import annotations

from longspan.checkpoints.names import ParameterNames, Tied

NAMES = ParameterNames(
    tied=(
        Tied("encoder.embed_tokens.weight", "shared.weight"),
        Tied("decoder.embed_tokens.weight", "shared.weight"),
        Tied("lm_head.weight", "shared.weight", switch="tie_word_embeddings"),
        Tied("encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight", switch="tie_encoder_decoder"),
    ),
    ignorable=(r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",),
    heads=("lm_head",),
    optional=("decoder",),
    sizes=(
        ("vocab_size", "d_model"),
        ("num_layers", "d_model", "num_heads", "d_kv"),
        ("num_layers", "d_model", "d_ff"),
        ("relative_attention_num_buckets", "num_heads"),
    ),
)
