"""MEGA in PyTorch against the last public code of the reference."""

from __future__ import annotations

from typing import Any

from benchmarks.cases.longformer import growth
from benchmarks.harness import Work, case

#: layers four times as wide as the default ones
WIDE = {"hidden_size": 512, "intermediate_size": 1024, "shared_representation_size": 128, "nffn_hidden_size": 1024}

NO_DROPOUT = {
    "dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "nffn_activation_dropout_prob": 0.0,
}


def models(dtype: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    """The reference and ours on equal random weights; default settings but for `settings`."""
    import torch
    import transformers

    import longspan

    torch.manual_seed(0)
    settings = {"vocab_size": 1000, "use_chunking": "chunk_size" in settings, **settings}
    kind = getattr(torch, dtype)
    peer = transformers.MegaModel(transformers.MegaConfig(**settings), add_pooling_layer=False).to(kind).eval()
    ours = longspan.MegaModel(longspan.MegaConfig(**settings), add_pooling_layer=False).to(kind).eval()
    # the reference's files hold an empty buffer beside the weights
    ours.load_state_dict({name: t for name, t in peer.state_dict().items() if not name.endswith("_float_tensor")})
    return peer, ours


def inputs(batch: int, length: int) -> dict[str, Any]:
    """Ids without padding."""
    import torch

    return {"input_ids": torch.randint(2, 1000, (batch, length))}


def forward(dtype: str, length: int, **settings: Any) -> Work:
    """One forward pass in evaluation mode."""
    import torch

    peer, ours = models(dtype, settings)
    arguments = inputs(1, length)

    def run(model: Any) -> Any:
        with torch.no_grad():
            return model(**arguments).last_hidden_state

    return Work(
        peer=lambda: run(peer),
        ours=lambda: run(ours),
        difference=lambda a, b: float((a.float() - b.float()).abs().max() / a.float().abs().max()),
        # bfloat16: the reference rounds the decay of its averages, ours keeps it in float32
        tolerance={"float32": 1e-5, "bfloat16": 1e-1}[dtype],
        floor_dtype=dtype,
    )


def train(length: int, **settings: Any) -> Work:
    """One forward and backward pass."""
    import torch

    peer, ours = models("float32", settings | NO_DROPOUT)
    arguments = inputs(1, length)
    weight = torch.linspace(-1, 1, ours.config.hidden_size)

    def run(model: Any) -> Any:
        model.train()
        model.zero_grad(set_to_none=True)
        (model(**arguments).last_hidden_state @ weight).square().mean().backward()
        return model.layers[0].mega_layer.mx_proj.weight.grad

    return Work(
        peer=lambda: run(peer),
        ours=lambda: run(ours),
        difference=lambda a, b: float((a - b).norm() / a.norm()),
        tolerance=1e-4,
    )


@case("mega/4096/float32", "MEGA, default settings, 4096", at_least=2.0)
def full_float32() -> Work:
    return forward("float32", 4096)


@case("mega/4096/bfloat16", "MEGA, default settings, 4096", at_least={"avx512-bf16": 2.0})
def full_bfloat16() -> Work:
    return forward("bfloat16", 4096)


@case("mega/chunked/4096/float32", "MEGA, chunks of 128, 4096", at_least=2.5)
def chunked_float32() -> Work:
    return forward("float32", 4096, chunk_size=128)


@case("mega/chunked/4096/bfloat16", "MEGA, chunks of 128, 4096", at_least={"avx512-bf16": 2.5})
def chunked_bfloat16() -> Work:
    return forward("bfloat16", 4096, chunk_size=128)


@case("mega/wide/8192/float32", "MEGA, 512 wide, chunks of 128, 8192", at_least=2.5)
def wide_float32() -> Work:
    return forward("float32", 8192, chunk_size=128, **WIDE)


@case("mega/train/float32", "MEGA, default settings, training step, 4096")
def train_float32() -> Work:
    return train(4096)


@case("mega/chunked/train/float32", "MEGA, chunks of 128, training step, 4096", at_least={"avx512-bf16": 2.0})
def chunked_train_float32() -> Work:
    return train(4096, chunk_size=128)


@case(
    "mega/growth/float32",
    "chunks of 128, 1 × 65536 against 16 × 4096 tokens, both longspan",
    at_least=16 / 17,
    rounds=5,
    memory=False,
)
def growth_float32() -> Work:
    _, ours = models("float32", {"chunk_size": 128})
    return growth(ours, inputs, length=65536)


@case(
    "mega/262144/float32",
    "chunks of 128, 1 × 262144 against 64 × 4096 tokens, both longspan",
    rounds=1,
)
def longest_float32() -> Work:
    _, ours = models("float32", {"chunk_size": 128})
    return growth(ours, inputs, length=262144)
