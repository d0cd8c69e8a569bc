"""Facts about DiffLlama's parameter names."""

from __future__ import annotations

import dataclasses

from longspan.checkpoints.names import ParameterNames, Tied

NAMES = ParameterNames(
    base_prefix="model",
    tied=(Tied("lm_head.weight", "model.embed_tokens.weight", switch="tie_word_embeddings"),),
    ignorable=(r"rotary_emb\.inv_freq$",),
    base_aliases=("transformer",),
    sizes=(
        ("vocab_size", "hidden_size"),
        ("num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim"),
        ("num_hidden_layers", "hidden_size", "intermediate_size"),
    ),
)

#: the question answering class stores its backbone under another name
QUESTION_ANSWERING_NAMES = dataclasses.replace(NAMES, base_prefix="transformer", tied=(), base_aliases=("model",))
