"""DiffLlama in PyTorch against the better of the reference's eager and sdpa attention."""

from __future__ import annotations

import atexit
import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.cases.bert import BESIDE_FLOAT32, TRAINING
from benchmarks.cases.longformer import FLOOR, HALF_FLOOR
from benchmarks.floor import Operations, attention, floor_seconds, linear
from benchmarks.harness import Work, case, halved

WIDTH, INNER, MAPS, KV_HEADS, HEAD_DIM, LAYERS, LENGTH = 1024, 4096, 16, 8, 64, 2, 2048
#: queries of a block, which meets half of the keys on average
QUERIES = 256
ABOUT = f"{LAYERS} layers 1024 wide, 16/8 heads, {LENGTH} tokens"
PREPACKED = f"{ABOUT}, inside prepacked_weights"


def attention_flops(length: int) -> Operations:
    """Products of the attention of a layer: a query meets the keys before it, a pair of maps its values once."""
    return attention(MAPS, QUERIES, length // 2, HEAD_DIM, pairs=length * (length + 1) / 2)


def feed_forward_flops(length: int) -> Operations:
    """Products of the feed-forward block of a layer."""
    return 2 * linear(length, WIDTH, INNER) + linear(length, INNER, WIDTH)


def decoder_flops(length: int) -> Operations:
    """Matrix products of the layers."""
    projections = 2 * linear(length, WIDTH, MAPS * HEAD_DIM) + 2 * linear(length, WIDTH, KV_HEADS * HEAD_DIM)
    return LAYERS * (projections + feed_forward_flops(length) + attention_flops(length))


def models(dtype: str) -> tuple[dict[str, Any], Any]:
    """The reference with either attention, and ours, on equal random weights."""
    import torch
    import transformers

    import longspan

    torch.manual_seed(0)
    settings = {
        "vocab_size": 256,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": MAPS,
        "num_key_value_heads": KV_HEADS,
        "use_cache": False,
    }
    kind = getattr(torch, dtype)
    peers = {}
    for name in ("sdpa", "eager"):
        config = transformers.DiffLlamaConfig(**settings, attn_implementation=name)
        peers[name] = transformers.DiffLlamaModel(config).to(kind).eval()
    peers["eager"].load_state_dict(peers["sdpa"].state_dict())
    ours = longspan.DiffLlamaModel(longspan.DiffLlamaConfig(**settings)).to(kind).eval()
    ours.load_state_dict(peers["sdpa"].state_dict())
    return peers, ours


def better(peers: dict[str, Any], run: Callable[[Any], Any]) -> tuple[str, Any]:
    """The reference's faster attention on this machine."""
    seconds = {}
    for name, peer in peers.items():
        run(peer)
        start = time.perf_counter()
        run(peer)
        seconds[name] = time.perf_counter() - start
    name = min(seconds, key=lambda name: seconds[name])
    return name, peers[name]


def parts_to_floor(model: Any, dtype: str) -> dict[str, float]:
    """Times of the attention and of a feed-forward block, as multiples of the time that their products must take."""
    import torch

    from longspan.ops.torch.differential import differential_attention

    kind = getattr(torch, dtype)
    heads = (torch.randn(1, LENGTH, number, HEAD_DIM).to(kind) for number in (MAPS, KV_HEADS, KV_HEADS))
    query, key, value = (states.transpose(1, 2) for states in heads)  # as the model has them
    lam, states = torch.tensor(0.5), torch.randn(1, LENGTH, WIDTH).to(kind)
    works = {
        "attention_to_floor": (lambda: differential_attention(query, key, value, lam), attention_flops(LENGTH)),
        "feed_forward_to_floor": (lambda: model.layers[0].mlp(states), feed_forward_flops(LENGTH)),
    }
    ratios: dict[str, list[float]] = {name: [] for name in works}
    with torch.no_grad():
        for _ in range(3):
            for name, (run, flops) in works.items():
                run()
                start = time.perf_counter()
                run()
                seconds = time.perf_counter() - start
                ratios[name].append(seconds / floor_seconds(flops, dtype))
    return {name: statistics.median(values) for name, values in ratios.items()}


def forward(dtype: str, *, prepacked: bool = False) -> Work:
    """One forward pass in evaluation mode; `prepacked`: with our weights laid out beforehand."""
    import torch

    import longspan

    peers, ours = models(dtype)
    if prepacked:
        held = contextlib.ExitStack()
        held.enter_context(longspan.prepacked_weights(ours))
        atexit.register(held.close)  # each case has a process of its own
    states = torch.randn(1, LENGTH, WIDTH).to(getattr(torch, dtype))

    def run(model: Any) -> Any:
        with torch.no_grad():
            return model(inputs_embeds=states).last_hidden_state

    name, peer = better(peers, run)
    return Work(
        peer=lambda: run(peer),
        ours=lambda: run(ours),
        difference=lambda a, b: float((a.float() - b.float()).abs().max() / a.float().abs().max()),
        # bfloat16: the reference rounds λ and each map, its own two implementations differ by as much
        tolerance={"float32": 1e-5, "bfloat16": 5e-2}[dtype],
        flops=decoder_flops(LENGTH),
        floor_dtype=dtype,
        extra={"peer_attention": name, **parts_to_floor(ours, dtype)},
    )


def train(dtype: str) -> Work:
    """One forward and backward pass."""
    import torch

    peers, ours = models(dtype)
    states = torch.randn(1, LENGTH, WIDTH).to(getattr(torch, dtype))
    weight = torch.linspace(-1, 1, WIDTH)

    def run(model: Any) -> float:
        model.train()
        model.zero_grad(set_to_none=True)
        (model(inputs_embeds=states).last_hidden_state.float() @ weight).square().mean().backward()
        return float(model.layers[0].self_attn.q_proj.weight.grad.float().norm())

    name, peer = better(peers, run)
    return Work(
        peer=lambda: run(peer),
        ours=lambda: run(ours),
        difference=lambda a, b: abs(a - b) / a,
        tolerance={"float32": 1e-4, "bfloat16": 5e-2}[dtype],
        flops=3 * decoder_flops(LENGTH),
        floor_dtype=dtype,
        extra={"peer_attention": name},
    )


def decode(dtype: str) -> Work:
    """One token after a cached prompt."""
    import torch

    peers, ours = models(dtype)
    states = torch.randn(1, LENGTH, WIDTH).to(getattr(torch, dtype))

    def make_step(model: Any) -> Callable[[], Any]:
        with torch.no_grad():
            cache = model(inputs_embeds=states, use_cache=True).past_key_values

        def step() -> Any:
            with torch.no_grad():
                result = model(inputs_embeds=states[:, :1], past_key_values=cache, use_cache=True).last_hidden_state
                cache.crop(LENGTH)
            return result

        return step

    steps = {name: make_step(peer) for name, peer in peers.items()}
    name, peer = better(steps, lambda step: step())
    return Work(
        peer=peer,
        ours=make_step(ours),
        difference=lambda a, b: float((a.float() - b.float()).abs().max() / a.float().abs().max()),
        tolerance={"float32": 1e-5, "bfloat16": 5e-2}[dtype],
        extra={"peer_attention": name},
    )


@case("diffllama/forward/float32", ABOUT, floor_at_most=FLOOR)
def forward_float32() -> Work:
    return forward("float32")


@case("diffllama/forward/bfloat16", ABOUT, floor_at_most=HALF_FLOOR)
def forward_bfloat16() -> Work:
    return forward("bfloat16")


@case(
    "diffllama/forward/bfloat16-float32",
    f"{ABOUT}, bfloat16 against float32, both longspan",
    at_least=BESIDE_FLOAT32,
    memory=False,
)
def forward_halved() -> Work:
    return halved(forward)


@case("diffllama/prepacked/float32", PREPACKED, floor_at_most=FLOOR)
def prepacked_float32() -> Work:
    return forward("float32", prepacked=True)


@case("diffllama/prepacked/bfloat16", PREPACKED, floor_at_most=HALF_FLOOR)
def prepacked_bfloat16() -> Work:
    return forward("bfloat16", prepacked=True)


@case("diffllama/train/float32", f"{ABOUT}, training step", floor_at_most=TRAINING)
def train_float32() -> Work:
    return train("float32")


@case("diffllama/train/bfloat16", f"{ABOUT}, training step")
def train_bfloat16() -> Work:
    return train("bfloat16")


@case("diffllama/decode/float32", f"{LAYERS} layers 1024 wide, one token after {LENGTH}", at_least=1.0, rounds=15)
def decode_float32() -> Work:
    return decode("float32")


@case("diffllama/decode/bfloat16", f"{LAYERS} layers 1024 wide, one token after {LENGTH}", at_least=1.0, rounds=15)
def decode_bfloat16() -> Work:
    return decode("bfloat16")
