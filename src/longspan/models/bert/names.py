"""Facts about BERT's parameter names."""

from __future__ import annotations

from longspan.checkpoints.names import ParameterNames, Tied

NAMES = ParameterNames(
    base_prefix="bert",
    tied=(
        Tied("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight", switch="tie_word_embeddings"),
        Tied("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    legacy=((r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
    ignorable=(r"\.embeddings\.(position_ids|token_type_ids)$",),
    heads=("bert.pooler", "bert.encoder.layer.*.crossattention", "cls.predictions", "cls.seq_relationship"),
    sizes=(
        ("vocab_size", "hidden_size"),
        ("max_position_embeddings", "hidden_size"),
        ("type_vocab_size", "hidden_size"),
        ("num_hidden_layers", "hidden_size", "hidden_size"),
        ("num_hidden_layers", "intermediate_size", "hidden_size"),
    ),
)
