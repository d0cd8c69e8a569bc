"""LongT5's encoder in PyTorch against the reference."""

from __future__ import annotations

import tempfile
from typing import Any

from benchmarks.cases.bert import BESIDE_FLOAT32, TRAINING
from benchmarks.cases.longformer import FLOOR, HALF_FLOOR, band, growth
from benchmarks.floor import Operations, attention, linear
from benchmarks.harness import Work, case, halved

WIDTH, HEADS, HEAD_SIZE, INNER, RADIUS, BLOCK = 768, 12, 64, 2048, 127, 16


def encoder_flops(kind: str, length: int, layers: int) -> Operations:
    """Matrix products of the layers: four projections, three of the gated feed-forward, scores and values."""
    layer = 4 * linear(length, WIDTH, HEADS * HEAD_SIZE) + 2 * linear(length, WIDTH, INNER)
    layer += linear(length, INNER, WIDTH) + band(length, RADIUS, heads=HEADS, size=HEAD_SIZE)
    if kind == "transient-global":
        blocks = length // BLOCK
        layer += attention(HEADS, length, blocks, HEAD_SIZE, pairs=length * blocks)
        layer += 2 * linear(blocks, WIDTH, HEADS * HEAD_SIZE)
    return layers * layer


def models(dtype: str, kind: str, layers: int) -> tuple[Any, Any]:
    """The reference and ours, LongT5-base encoder layers on equal random weights."""
    import torch
    import transformers

    import longspan

    torch.manual_seed(0)
    config = transformers.LongT5Config(
        vocab_size=1000, d_model=WIDTH, d_kv=HEAD_SIZE, d_ff=INNER, num_heads=HEADS, num_layers=layers,
        local_radius=RADIUS, global_block_size=BLOCK, feed_forward_proj="gated-gelu", encoder_attention_type=kind,
    )  # fmt: skip
    peer = transformers.LongT5EncoderModel(config).to(getattr(torch, dtype)).eval()
    with tempfile.TemporaryDirectory() as directory:
        peer.save_pretrained(directory)
        ours = longspan.LongT5EncoderModel.from_pretrained(directory, dtype=dtype)
    return peer, ours


def inputs(batch: int, length: int) -> dict[str, Any]:
    """Ids without padding."""
    import torch

    ids = torch.randint(2, 1000, (batch, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def forward(dtype: str, kind: str, length: int, *, layers: int = 4) -> Work:
    """One forward pass in evaluation mode."""
    import torch

    peer, ours = models(dtype, kind, layers)
    arguments = inputs(1, length)

    def run(model: Any) -> Any:
        with torch.no_grad():
            return model(**arguments).last_hidden_state

    return Work(
        peer=lambda: run(peer),
        ours=lambda: run(ours),
        difference=lambda a, b: float((a - b).float().abs().max() / a.float().abs().max()),
        # the reference's bfloat16 scores, unscaled and rounded before the bias is added, differ from themselves
        # in float32 by as much
        tolerance={"float32": 1e-5, "bfloat16": 1e-1}[dtype],
        flops=encoder_flops(kind, length, layers),
        floor_dtype=dtype,
    )


def train(kind: str, length: int, *, layers: int = 2) -> Work:
    """Forward and backward in training mode, without dropout, which differs by chance."""
    import torch

    peer, ours = models("float32", kind, layers)
    arguments = inputs(1, length)
    weight = torch.randn(WIDTH)
    for model in (peer, ours):
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    for block in peer.encoder.block:
        for module in block.layer[0].children():
            module.dropout = 0.0
    for block in ours.encoder.block:
        block.layer[0].attention.dropout_rate = 0.0

    def run(model: Any) -> float:
        model.zero_grad(set_to_none=True)
        (model(**arguments).last_hidden_state @ weight).square().mean().backward()
        return float(next(p.grad for n, p in model.named_parameters() if n.endswith("SelfAttention.v.weight")).norm())

    return Work(
        peer=lambda: run(peer),
        ours=lambda: run(ours),
        difference=lambda a, b: abs(a - b) / a,
        tolerance=1e-4,
        flops=3 * encoder_flops(kind, length, layers),
    )


@case("longt5/local/4096/float32", "LongT5-base encoder, 4 layers, 4096", floor_at_most=FLOOR)
def local_float32() -> Work:
    return forward("float32", "local", 4096)


@case("longt5/local/4096/bfloat16", "LongT5-base encoder, 4 layers, 4096", floor_at_most=HALF_FLOOR)
def local_bfloat16() -> Work:
    return forward("bfloat16", "local", 4096)


@case("longt5/global/4096/float32", "LongT5-base encoder, 4 layers, 4096", floor_at_most=FLOOR)
def global_float32() -> Work:
    return forward("float32", "transient-global", 4096)


@case("longt5/global/4096/bfloat16", "LongT5-base encoder, 4 layers, 4096", floor_at_most=HALF_FLOOR)
def global_bfloat16() -> Work:
    return forward("bfloat16", "transient-global", 4096)


@case(
    "longt5/local/4096/bfloat16-float32",
    "LongT5-base encoder, 4 layers, 4096, bfloat16 against float32, both longspan",
    at_least=BESIDE_FLOAT32,
    memory=False,
)
def local_halved() -> Work:
    return halved(lambda dtype: forward(dtype, "local", 4096))


@case("longt5/global/16384/float32", "LongT5-base encoder, 1 layer, 16384", at_least=3.0, rounds=3)
def global_long_float32() -> Work:
    return forward("float32", "transient-global", 16384, layers=1)


@case("longt5/local/train/float32", "LongT5-base encoder, 2 layers, training step, 4096", floor_at_most=TRAINING)
def local_train() -> Work:
    return train("local", 4096)


@case("longt5/global/train/float32", "LongT5-base encoder, 2 layers, training step, 4096", floor_at_most=TRAINING)
def global_train() -> Work:
    return train("transient-global", 4096)


@case(
    "longt5/growth/float32",
    "local, 1 × 32768 against 8 × 4096 tokens, both longspan, 1 layer",
    at_least=8 / 9,
    rounds=3,
    memory=False,
)
def local_growth() -> Work:
    _, ours = models("float32", "local", 1)
    return growth(ours, inputs)
