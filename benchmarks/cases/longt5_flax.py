"""LongT5 in Flax against longspan's own LongT5 in PyTorch, on the same weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.cases.longt5 import BLOCK, HEAD_SIZE, HEADS, INNER, RADIUS, WIDTH, encoder_flops
from benchmarks.harness import Work, case

SIZES = {"d_model": WIDTH, "d_kv": HEAD_SIZE, "d_ff": INNER, "num_heads": HEADS}
#: T5-small's, with the gated feed-forward layers of LongT5
SMALL = {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_heads": 6, "num_layers": 8}


def models(name: str, kind: str, **settings: Any) -> tuple[Any, Any]:
    """A class of longspan in PyTorch and in Flax, on equal random weights."""
    import torch

    import longspan

    torch.manual_seed(0)
    config = longspan.LongT5Config(
        vocab_size=1000, local_radius=RADIUS, global_block_size=BLOCK, feed_forward_proj="gated-gelu",
        encoder_attention_type=kind, decoder_start_token_id=0, **settings,
    )  # fmt: skip
    peer = getattr(longspan, name)(config).eval()
    with tempfile.TemporaryDirectory() as directory:
        peer.save_pretrained(directory)
        ours = getattr(longspan, f"Flax{name}").from_pretrained(directory)
    return peer, ours


def ids_of(batch: int, length: int) -> Any:
    """Ids without padding."""
    import numpy as np

    return np.random.default_rng(0).integers(2, 1000, (batch, length))


def error(one: Any, other: Any) -> float:
    """Largest difference relative to the largest value."""
    import numpy as np

    one, other = np.asarray(one), np.asarray(other)
    return float(np.abs(one - other).max() / np.abs(one).max())


def encoder(kind: str, *, layers: int = 4) -> Work:
    """One forward pass of 4096 tokens."""
    import torch

    peer, ours = models("LongT5EncoderModel", kind, num_layers=layers, **SIZES)
    ids = ids_of(1, 4096)
    tensor = torch.from_numpy(ids)

    def run_peer() -> Any:
        with torch.no_grad():
            return peer(tensor).last_hidden_state

    return Work(
        peer=run_peer,
        ours=lambda: ours(ids).last_hidden_state.block_until_ready(),
        difference=error,
        tolerance=1e-5,
        flops=encoder_flops(kind, 4096, layers),
    )


def train(kind: str, *, layers: int = 2) -> Work:
    """Forward and backward of 4096 tokens, without dropout, which differs by chance."""
    import jax
    import jax.numpy as jnp
    import torch

    peer, ours = models("LongT5EncoderModel", kind, num_layers=layers, dropout_rate=0.0, **SIZES)
    ids, weight = ids_of(1, 4096), torch.randn(WIDTH)
    tensor = torch.from_numpy(ids)

    def run_peer() -> float:
        peer.zero_grad(set_to_none=True)
        (peer(tensor).last_hidden_state @ weight).square().mean().backward()
        return float(peer.shared.weight.grad.norm())

    @jax.jit
    def gradients(params: Any) -> Any:
        def loss(params: Any) -> Any:
            return jnp.square(ours(ids, params=params).last_hidden_state @ weight.numpy()).mean()

        every = jax.grad(loss)(params)
        return jnp.linalg.norm(every["shared"]["embedding"]), every

    return Work(
        peer=run_peer,
        ours=lambda: float(jax.block_until_ready(gradients(ours.params))[0]),
        difference=lambda a, b: abs(a - b) / a,
        tolerance=1e-4,
        flops=3 * encoder_flops(kind, 4096, layers),
    )


def generation(source: int, **settings: Any) -> Work:
    """Generate 64 tokens of 4 rows."""
    import numpy as np
    import torch

    peer, ours = models("LongT5ForConditionalGeneration", "transient-global", **SMALL)
    ids, new = ids_of(4, source), {"max_new_tokens": 64, "min_new_tokens": 64, **settings}
    tensor = torch.from_numpy(ids)

    def tokens(one: float, other: float) -> dict[str, Any]:
        return {"peer_tokens_per_second": 4 * 64 / one, "ours_tokens_per_second": 4 * 64 / other}

    return Work(
        peer=lambda: peer.generate(tensor, **new).numpy(),
        ours=lambda: np.asarray(ours.generate(ids, **new).sequences),
        difference=lambda a, b: float((a != b).mean()),
        tolerance=0.0,
        after=tokens,
    )


def growth() -> Work:
    """8 documents of 4096 tokens, one after the other, against one of 32768: as many tokens."""
    _, ours = models("LongT5EncoderModel", "local", num_layers=1, **SIZES)
    long = ids_of(1, 32768)
    short = long[:, :4096]

    def memory(ids: Any) -> int:
        """Temporary bytes of the program, as XLA plans them."""
        import jax

        program: Callable[..., Any] = jax.jit(lambda params, ids: ours(ids, params=params).last_hidden_state)
        analysis = program.lower(ours.params, ids).compile().memory_analysis()  # type: ignore[attr-defined]  # may be None
        return int(analysis.temp_size_in_bytes)

    def one_after_the_other() -> Any:
        for _ in range(8):
            states = ours(short).last_hidden_state.block_until_ready()
        return states

    bytes_short, bytes_long = memory(short), memory(long)
    return Work(
        peer=one_after_the_other,
        ours=lambda: ours(long).last_hidden_state.block_until_ready(),
        difference=lambda a, b: error(a[:, :2048], b[:, :2048]),  # far enough from where the short one ends
        tolerance=1e-5,
        extra={"temporary_bytes_4096": bytes_short, "temporary_bytes_32768": bytes_long},
    )


@case("longt5/flax/local/4096/float32", "Flax against PyTorch, encoder, 4 layers, 4096", at_least=1 / 1.4, rounds=5)
def local_float32() -> Work:
    return encoder("local")


@case("longt5/flax/global/4096/float32", "Flax against PyTorch, encoder, 4 layers, 4096", at_least=1 / 1.4, rounds=5)
def global_float32() -> Work:
    return encoder("transient-global")


@case("longt5/flax/local/train/float32", "Flax against PyTorch, encoder, 2 layers, gradients, 4096", rounds=3)
def local_train() -> Work:
    return train("local")


@case("longt5/flax/greedy/float32", "Flax against PyTorch, 64 tokens of 4 rows, source 512", at_least=1.0, memory=False)
def greedy() -> Work:
    return generation(512)


@case("longt5/flax/beams/float32", "Flax against PyTorch, 64 tokens of 4 rows, 4 beams", at_least=1.0, memory=False)
def beams() -> Work:
    return generation(512, num_beams=4)


@case(
    "longt5/flax/growth/float32",
    "Flax, local, 1 × 32768 against 8 × 4096 tokens, 1 layer",
    at_least=8 / 9,
    rounds=3,
    memory=False,
)
def local_growth() -> Work:
    return growth()
