"""BERT in Flax against the reference's FlaxBert, both under `jax.jit`; compilation is timed apart."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks.cases.bert import BESIDE_FLOAT32, HEADS, INNER, RAGGED, WIDTH, encoder_flops
from benchmarks.floor import Operations
from benchmarks.harness import Work, case, halved

LAYERS = 12


def models(dtype: str, layers: int) -> tuple[Any, Any, Any]:
    """The reference, ours, and parameters of both, BERT-base."""
    os.environ |= {"USE_FLAX": "1", "JAX_PLATFORMS": "cpu"}  # the peer is the reference's Flax half
    import jax
    import transformers

    from longspan import BertConfig, FlaxBertModel

    config = BertConfig(
        vocab_size=1000,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        num_hidden_layers=layers,
    )
    kind = jax.numpy.dtype(dtype)
    ours = FlaxBertModel(config, dtype=kind, add_pooling_layer=False)
    peer = transformers.FlaxBertModel(
        transformers.BertConfig(**config.to_diff_dict()), dtype=kind, add_pooling_layer=False, _do_init=False
    )
    params = ours.params if dtype == "float32" else ours.to_bf16(ours.params)
    return peer, ours, params


def batch(lengths: tuple[int, ...]) -> tuple[Any, Any]:
    """Ids and mask, (B, S)."""
    import numpy as np

    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype("int32")
    return np.random.default_rng(0).integers(0, 1000, mask.shape).astype("int32"), mask


def work(peer: Callable[[], Any], ours: Callable[[], Any], mask: Any, dtype: str, flops: Operations | None) -> Work:
    """Both sides, with the time of their first calls, which compile."""
    import numpy as np

    def first_seconds(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def difference(a: Any, b: Any) -> float:
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        keep = mask[..., None] if a.ndim == 3 else 1.0
        return float(np.abs((a - b) * keep).max() / np.abs(a).max())

    return Work(
        peer=peer,
        ours=ours,
        difference=difference,
        tolerance={"float32": 1e-5, "bfloat16": 5e-2}[dtype],
        flops=flops,
        floor_dtype=dtype,
        extra={"peer_first_call_seconds": first_seconds(peer), "ours_first_call_seconds": first_seconds(ours)},
    )


def forward(dtype: str, lengths: tuple[int, ...], *, traced: bool) -> Work:
    """One forward pass. A plain call of ours is compiled too, and packs the batch, because it may read the mask.

    With `traced` it runs inside the caller's `jax.jit`, where the mask cannot be read.
    """
    import jax

    peer, ours, params = models(dtype, LAYERS)
    ids, mask = batch(lengths)

    def compiled(model: Any) -> Any:
        return jax.jit(lambda params, ids, mask: model(ids, mask, params=params).last_hidden_state)

    peer_program, our_program = compiled(peer), compiled(ours)
    return work(
        peer=lambda: peer_program(params, ids, mask).block_until_ready(),
        ours=(
            (lambda: our_program(params, ids, mask).block_until_ready())
            if traced
            else (lambda: ours(ids, mask, params=params).last_hidden_state.block_until_ready())
        ),
        mask=mask,
        dtype=dtype,
        flops=encoder_flops(lengths, LAYERS),
    )


def gradients(lengths: tuple[int, ...]) -> Work:
    """Gradients of a mean over the real states, without dropout, inside the caller's `jax.jit`."""
    import jax
    import jax.numpy as jnp

    peer, ours, params = models("float32", layers=4)
    ids, mask = batch(lengths)
    weight = jnp.linspace(-1, 1, WIDTH)

    def compiled(model: Any) -> Any:
        def loss(params: Any, ids: Any, mask: Any) -> Any:
            return jnp.square(model(ids, mask, params=params).last_hidden_state * mask[..., None] * weight).mean()

        def one_gradient(params: Any, ids: Any, mask: Any) -> Any:
            every = jax.grad(loss)(params, ids, mask)
            return every["encoder"]["layer"]["0"]["attention"]["self"]["value"]["kernel"], every

        return jax.jit(one_gradient)

    peer_program, our_program = compiled(peer), compiled(ours)
    return work(
        peer=lambda: jax.block_until_ready(peer_program(params, ids, mask))[0],
        ours=lambda: jax.block_until_ready(our_program(params, ids, mask))[0],
        mask=mask,
        dtype="float32",
        flops=None,
    )


@case("bert/flax/ragged/float32", "FlaxBert-base, jit, lengths 512…32", at_least=1.5, rounds=5)
def ragged_float32() -> Work:
    return forward("float32", RAGGED, traced=False)


@case("bert/flax/ragged/bfloat16", "FlaxBert-base, jit, lengths 512…32", at_least=1.5, rounds=5, memory=False)
def ragged_bfloat16() -> Work:
    return forward("bfloat16", RAGGED, traced=False)


@case("bert/flax/traced/float32", "FlaxBert-base inside the caller's jit, lengths 512…32", rounds=5, memory=False)
def traced_float32() -> Work:
    return forward("float32", RAGGED, traced=True)


@case("bert/flax/full/float32", "FlaxBert-base, jit, 2 × 512, no padding", rounds=5, memory=False)
def full_float32() -> Work:
    return forward("float32", (512,) * 2, traced=False)


@case(
    "bert/flax/full/bfloat16-float32",
    "FlaxBert-base, jit, 2 × 512, bfloat16 against float32, both longspan",
    at_least=BESIDE_FLOAT32,
    memory=False,
)
def full_halved() -> Work:
    return halved(lambda dtype: forward(dtype, (512,) * 2, traced=False))


@case("bert/flax/gradients/float32", "FlaxBert, 4 layers, gradients, 4 × 256, no padding", rounds=5, memory=False)
def gradients_float32() -> Work:
    return gradients((256,) * 4)
