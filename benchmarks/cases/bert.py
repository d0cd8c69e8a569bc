"""BERT in PyTorch against the reference's sdpa attention."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import floor
from benchmarks.floor import Operations, linear
from benchmarks.harness import Work, case, halved
from benchmarks.runtimes import INPUTS, States, onnx_file, onnxruntime_states, openvino_states, temporary_folder

RAGGED = (512, 400, 300, 220, 150, 100, 64, 32)
WIDTH, HEADS, INNER, LAYERS = 768, 12, 3072, 6
RAGGED_WANTED = {"avx2": 2.2, "avx512": 2.5}
#: what a training step may take of the time of its products
TRAINING = {"avx2": 1.3, "avx512": 1.4}
#: how fast bfloat16 must be beside float32 where the processor has no instructions for it
BESIDE_FLOAT32 = {"avx2": 1 / 1.3}


def encoder_flops(lengths: Any, layers: int = LAYERS) -> Operations:
    """Matrix products of the layers on the real tokens: four projections, two feed-forwards, scores and values."""
    tokens = sum(lengths)
    layer = 4 * linear(tokens, WIDTH, WIDTH) + linear(tokens, WIDTH, INNER) + linear(tokens, INNER, WIDTH)
    for length in lengths:
        layer += floor.attention(HEADS, length, length, WIDTH // HEADS, pairs=length**2)
    return layers * layer


def models(dtype: str, attention: str = "sdpa") -> tuple[Any, Any]:
    """The reference, with an attention of its own, and ours, BERT-base layers on equal random weights."""
    import torch
    import transformers

    import longspan

    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=1000, num_hidden_layers=LAYERS, attn_implementation=attention)
    peer = transformers.BertModel(config, add_pooling_layer=False).to(getattr(torch, dtype)).eval()
    with tempfile.TemporaryDirectory() as directory:
        peer.save_pretrained(directory)
        ours = longspan.BertModel.from_pretrained(directory, dtype=dtype, add_pooling_layer=False)
    return peer, ours


def forward(dtype: str, lengths: tuple[int, ...], *, compiled: bool = False) -> Work:
    """One forward pass in evaluation mode; `compiled`: the peer as `torch.compile` makes it, given time."""
    import torch

    peer, ours = models(dtype)
    peer = torch.compile(peer, mode="max-autotune") if compiled else peer
    ids = torch.randint(0, 1000, (len(lengths), max(lengths)))
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1

    def run(model: Any) -> Any:
        with torch.no_grad():
            return model(ids, attention_mask=mask).last_hidden_state

    def difference(a: Any, b: Any) -> float:
        return float(((a - b).float() * mask[..., None]).abs().max() / (a.float().abs().max()))

    return Work(
        peer=lambda: run(peer),
        ours=lambda: run(ours),
        difference=difference,
        tolerance={"float32": 1e-5, "bfloat16": 5e-2}[dtype],
        flops=encoder_flops(lengths),
        floor_dtype=dtype,
    )


@case("bert/ragged/float32", "BERT-base, 6 layers, lengths 512…32", at_least=RAGGED_WANTED)
def ragged_float32() -> Work:
    return forward("float32", RAGGED)


@case("bert/ragged/bfloat16", "BERT-base, 6 layers, lengths 512…32", at_least={"avx512-bf16": 2.5})
def ragged_bfloat16() -> Work:
    return forward("bfloat16", RAGGED)


@case("bert/full/float32", "BERT-base, 6 layers, 4 × 512, no padding", at_least={"avx2": 1.0, "avx512": 1.05})
def full_float32() -> Work:
    return forward("float32", (512,) * 4)


@case("bert/full/bfloat16", "BERT-base, 6 layers, 4 × 512, no padding")
def full_bfloat16() -> Work:
    return forward("bfloat16", (512,) * 4)


@case("bert/single/float32", "BERT-base, 6 layers, 1 × 128", at_least=1.0, rounds=15)
def single_float32() -> Work:
    return forward("float32", (128,))


@case(
    "bert/full/bfloat16-float32",
    "BERT-base, 6 layers, 4 × 512, bfloat16 against float32, both longspan",
    at_least=BESIDE_FLOAT32,
    memory=False,
)
def full_halved() -> Work:
    return halved(lambda dtype: forward(dtype, (512,) * 4))


def against_runtime(states: Callable[[Path, Any], States]) -> Work:
    """A runtime that reads one row at a time, which needs no padding, beside the batch in longspan."""
    import numpy as np
    import torch

    peer, ours = models("float32", "eager")
    run = states(temporary_folder(), peer)
    rows = [np.random.default_rng(length).integers(0, 1000, (1, length)) for length in RAGGED]
    ids = torch.zeros(len(RAGGED), max(RAGGED), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : row.shape[1]], mask[index, : row.shape[1]] = torch.from_numpy(row[0]), 1

    def run_peer() -> Any:
        return [run(dict(zip(INPUTS, (row, np.ones_like(row), np.zeros_like(row)), strict=True))) for row in rows]

    def run_ours() -> Any:
        with torch.no_grad():
            return ours(ids, attention_mask=mask).last_hidden_state

    return Work(
        peer=run_peer,
        ours=run_ours,
        difference=lambda a, b: max(
            float(np.abs(x[0] - y[: x.shape[1]].numpy()).max() / np.abs(x).max()) for x, y in zip(a, b, strict=True)
        ),
        tolerance=1e-5,
    )


@case("bert/ragged/onnxruntime/float32", "BERT-base, 6 layers, lengths 512…32; ONNX Runtime, row by row")
def ragged_onnxruntime() -> Work:
    return against_runtime(lambda folder, model: onnxruntime_states(onnx_file(folder, model)))


@case("bert/ragged/openvino/float32", "BERT-base, 6 layers, lengths 512…32; OpenVINO in float32, row by row")
def ragged_openvino() -> Work:
    return against_runtime(lambda folder, model: openvino_states(model, "f32"))


@case("bert/train/float32", "BERT-base, 6 layers, training step, lengths 512…32", floor_at_most=TRAINING)
def train_float32() -> Work:
    import torch

    peer, ours = models("float32")
    ids = torch.randint(0, 1000, (len(RAGGED), max(RAGGED)))
    mask = (torch.arange(max(RAGGED))[None] < torch.tensor(RAGGED)[:, None]).long()
    weight = torch.randn(WIDTH)

    def run(model: Any) -> float:
        model.zero_grad(set_to_none=True)
        states = model(ids, attention_mask=mask).last_hidden_state
        ((states * mask[..., None]) @ weight).square().mean().backward()
        return float(model.encoder.layer[0].attention.self.value.weight.grad.norm())

    return Work(
        peer=lambda: run(peer),
        ours=lambda: run(ours),
        difference=lambda a, b: abs(a - b) / a,
        tolerance=1e-4,
        flops=3 * encoder_flops(RAGGED),
    )


@case("bert/load/float32", "from_pretrained of BERT-base (one file, 420 MiB)", rounds=3)
def load_float32() -> Work:
    import torch
    import transformers

    import longspan

    directory = tempfile.TemporaryDirectory()
    size = 0
    transformers.BertModel(transformers.BertConfig()).save_pretrained(directory.name)
    size = (Path(directory.name) / "model.safetensors").stat().st_size

    def touch(model: Any) -> Any:
        """Read every weight, so that a memory-mapped one is really loaded."""
        _ = directory
        with torch.no_grad():
            return [float(parameter.sum()) for parameter in model.parameters()], model

    return Work(
        peer=lambda: touch(transformers.BertModel.from_pretrained(directory.name)),
        ours=lambda: touch(longspan.BertModel.from_pretrained(directory.name)),
        difference=lambda a, b: max(abs(x - y) for x, y in zip(a[0], b[0], strict=True)),
        tolerance=0.0,
        extra={"checkpoint_bytes": size},
    )
