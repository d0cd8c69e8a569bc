"""The newest transformers beside longspan; ModernBERT's shape, which it brings, and plain windows beside Longformer."""

from __future__ import annotations

from typing import Any

from benchmarks.cases import bert, diffllama, longformer, longt5
from benchmarks.harness import Work, case

#: half of the layers of ModernBERT-base and of Longformer-base
MODERN_LAYERS, LONGFORMER_LAYERS = 11, 6
#: windows that cover 4,096 tokens, each with 64 tokens of the one before
WINDOWS = (512,) * 9


@case("newest/bert/ragged/float32", "BERT-base, 6 layers, lengths 512…32", at_least=bert.RAGGED_WANTED, newest=True)
def bert_ragged() -> Work:
    return bert.forward("float32", bert.RAGGED)


@case("newest/bert/full/float32", "BERT-base, 6 layers, 4 × 512, no padding", at_least=1.0, newest=True)
def bert_full() -> Work:
    return bert.forward("float32", (512,) * 4)


@case(
    "newest/bert/full/compiled/float32",
    "BERT-base, 6 layers, 4 × 512, no padding; the peer in torch.compile, max-autotune",
    newest=True,
    memory=False,
)
def bert_compiled() -> Work:
    return bert.forward("float32", (512,) * 4, compiled=True)


@case("newest/longformer/4096/float32", "Longformer-base, 4 layers, 1 × 4096", newest=True)
def longformer_long() -> Work:
    return longformer.forward("float32", 1, 4096)


@case("newest/longt5/local/4096/float32", "LongT5-base encoder, 4 layers, 4096", newest=True)
def longt5_local() -> Work:
    return longt5.forward("float32", "local", 4096)


@case("newest/longt5/global/4096/float32", "LongT5-base encoder, 4 layers, 4096", newest=True)
def longt5_global() -> Work:
    return longt5.forward("float32", "transient-global", 4096)


@case("newest/diffllama/forward/float32", diffllama.ABOUT, newest=True)
def diffllama_forward() -> Work:
    return diffllama.forward("float32")


def modern_bert(dtype: str) -> Work:
    """What many would take in Longformer's place: half of the layers of both, other weights, the same tokens."""
    import torch
    import transformers

    config = transformers.ModernBertConfig(
        vocab_size=1000, num_hidden_layers=MODERN_LAYERS, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        cls_token_id=1, sep_token_id=2, attn_implementation="sdpa",
    )  # fmt: skip
    peer = transformers.ModernBertModel(config).to(getattr(torch, dtype)).eval()
    ours = longformer.forward(dtype, 1, 4096, layers=LONGFORMER_LAYERS).ours
    ids = longformer.inputs(1, 4096)["input_ids"]

    def run_peer() -> Any:
        with torch.no_grad():
            return peer(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state

    return Work(
        peer=run_peer,
        ours=ours,
        difference=None,
        extra={"peer_layers": MODERN_LAYERS, "ours_layers": LONGFORMER_LAYERS},
    )


@case(
    "newest/modernbert/4096/float32",
    "ModernBERT-base's shape, 11 of 22 layers, beside 6 of 12 of Longformer-base, 1 × 4096",
    newest=True,
)
def modern_bert_float32() -> Work:
    return modern_bert("float32")


@case(
    "newest/windows/4096/float32",
    "BERT-base in 9 windows of 512, which overlap by 64, beside Longformer-base, both 6 of 12 layers, 1 × 4096",
    newest=True,
)
def windows_float32() -> Work:
    """What a document costs in windows, which see no further than their ends, and what in one piece."""
    peer = bert.forward("float32", WINDOWS).peer
    ours = longformer.forward("float32", 1, 4096, layers=LONGFORMER_LAYERS).ours
    layers = {"peer_layers": bert.LAYERS, "ours_layers": LONGFORMER_LAYERS}
    return Work(peer=peer, ours=ours, difference=None, extra=layers)
