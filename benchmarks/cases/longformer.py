"""Longformer in PyTorch against the reference."""

from __future__ import annotations

import tempfile
from typing import Any

from benchmarks.cases.bert import BESIDE_FLOAT32, TRAINING
from benchmarks.floor import Operations, attention, linear
from benchmarks.harness import Work, case, halved

WIDTH, HEADS, INNER, WINDOW = 768, 12, 3072, 512
#: what a float32 and a bfloat16 pass may take of the time of its products
FLOOR, HALF_FLOOR = {"avx2": 1.12, "avx512": 1.2}, {"avx512-bf16": 1.45}


def band_pairs(length: int, radius: int) -> int:
    """Number of (query, key) pairs that windows hold."""
    return sum(min(length, i + radius + 1) - max(0, i - radius) for i in range(length))


def band(length: int, radius: int, *, heads: int, size: int) -> Operations:
    """Scores and values of windows, at the rate of blocks of as many queries as the radius and the keys they see."""
    blocks = -(-length // radius)
    return attention(heads * blocks, radius, 3 * radius, size, pairs=band_pairs(length, radius) / blocks)


def encoder_flops(batch: int, length: int, layers: int) -> Operations:
    """Matrix products of the layers: four projections, two feed-forwards, scores and values of the windows.

    The two global projections of all tokens, which the reference computes, are not necessary and not counted.
    """
    tokens = batch * length
    products = 4 * linear(tokens, WIDTH, WIDTH) + linear(tokens, WIDTH, INNER) + linear(tokens, INNER, WIDTH)
    return layers * (products + batch * band(length, WINDOW // 2, heads=HEADS, size=WIDTH // HEADS))


def models(dtype: str, layers: int, length: int) -> tuple[Any, Any]:
    """The reference and ours, Longformer-base layers on equal random weights."""
    import torch
    import transformers

    import longspan

    torch.manual_seed(0)
    config = transformers.LongformerConfig(
        vocab_size=1000, num_hidden_layers=layers, attention_window=WINDOW, max_position_embeddings=length + 2
    )
    peer = transformers.LongformerModel(config, add_pooling_layer=False).to(getattr(torch, dtype)).eval()
    with tempfile.TemporaryDirectory() as directory:
        peer.save_pretrained(directory)
        ours = longspan.LongformerModel.from_pretrained(directory, dtype=dtype, add_pooling_layer=False)
    return peer, ours


def inputs(batch: int, length: int) -> dict[str, Any]:
    """Ids without padding; the first token is global, as in classification."""
    import torch

    ids = torch.randint(3, 1000, (batch, length))
    chosen = torch.zeros_like(ids)
    chosen[:, 0] = 1
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "global_attention_mask": chosen}


def forward(dtype: str, batch: int, length: int, *, layers: int = 4) -> Work:
    """One forward pass in evaluation mode."""
    import torch

    peer, ours = models(dtype, layers, length)
    arguments = inputs(batch, length)

    def run(model: Any) -> Any:
        with torch.no_grad():
            return model(**arguments).last_hidden_state

    return Work(
        peer=lambda: run(peer),
        ours=lambda: run(ours),
        difference=lambda a, b: float((a - b).float().abs().max() / a.float().abs().max()),
        tolerance={"float32": 1e-5, "bfloat16": 5e-2}[dtype],
        flops=encoder_flops(batch, length, layers),
        floor_dtype=dtype,
    )


def train(dtype: str, length: int, *, layers: int = 2) -> Work:
    """Forward and backward in training mode, without dropout, which differs by chance."""
    import torch

    peer, ours = models(dtype, layers, length)
    arguments = inputs(1, length)
    weight = torch.randn(WIDTH).to(getattr(torch, dtype))
    for model in (peer, ours):
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    for layer in peer.encoder.layer:
        layer.attention.self.dropout = 0.0

    def run(model: Any) -> float:
        model.zero_grad(set_to_none=True)
        (model(**arguments).last_hidden_state @ weight).float().square().mean().backward()
        return float(model.encoder.layer[0].attention.self.value.weight.grad.float().norm())

    return Work(
        peer=lambda: run(peer),
        ours=lambda: run(ours),
        difference=lambda a, b: abs(a - b) / a,
        tolerance={"float32": 1e-4, "bfloat16": 5e-2}[dtype],
        flops=3 * encoder_flops(1, length, layers),
        floor_dtype=dtype,
    )


@case("longformer/4096/float32", "Longformer-base, 4 layers, 1 × 4096", floor_at_most=FLOOR)
def long_float32() -> Work:
    return forward("float32", 1, 4096)


@case("longformer/4096/bfloat16", "Longformer-base, 4 layers, 1 × 4096", floor_at_most=HALF_FLOOR)
def long_bfloat16() -> Work:
    return forward("bfloat16", 1, 4096)


@case(
    "longformer/4096/bfloat16-float32",
    "Longformer-base, 4 layers, 1 × 4096, bfloat16 against float32, both longspan",
    at_least=BESIDE_FLOAT32,
    memory=False,
)
def long_halved() -> Work:
    return halved(lambda dtype: forward(dtype, 1, 4096))


@case("longformer/1024/float32", "Longformer-base, 4 layers, 1 × 1024")
def middle_float32() -> Work:
    return forward("float32", 1, 1024)


@case("longformer/1024/bfloat16", "Longformer-base, 4 layers, 1 × 1024")
def middle_bfloat16() -> Work:
    return forward("bfloat16", 1, 1024)


@case("longformer/short/float32", "Longformer-base, 4 layers, 8 × 64")
def short_float32() -> Work:
    return forward("float32", 8, 64)


@case("longformer/train/float32", "Longformer-base, 2 layers, training step, 1 × 4096", floor_at_most=TRAINING)
def train_float32() -> Work:
    return train("float32", 4096)


@case("longformer/train/bfloat16", "Longformer-base, 2 layers, training step, 1 × 4096")
def train_bfloat16() -> Work:
    return train("bfloat16", 4096)


def growth(model: Any, arguments: Any, *, length: int = 32768, short: int = 4096) -> Work:
    """One long document against as many tokens in short ones, both in longspan: 1 would be perfectly linear.

    Time that grows at most 9 times from 4096 to 32768 tokens is a ratio of 8/9 or more.
    """
    import torch

    def run(batch: int, tokens: int) -> Any:
        with torch.no_grad():
            return model(**arguments(batch, tokens)).last_hidden_state[:, :1, :1]

    return Work(
        peer=lambda: run(length // short, short),
        ours=lambda: run(1, length),
        difference=lambda a, b: 0.0,  # different inputs: nothing to compare
        tolerance=0.0,
    )


@case(
    "longformer/growth/float32",
    "1 × 32768 against 8 × 4096 tokens, both longspan, 1 layer",
    at_least=8 / 9,
    rounds=3,
    memory=False,
)
def growth_float32() -> Work:
    _, ours = models("float32", 1, 32768)
    return growth(ours, inputs)


@case("longformer/65536/float32", "1 × 65536 against 16 × 4096 tokens, both longspan, 1 layer", rounds=1)
def longest_float32() -> Work:
    _, ours = models("float32", 1, 65536)
    return growth(ours, inputs, length=65536)
