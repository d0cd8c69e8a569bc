"""What `torch.compile` gains on a CPU: longspan as it is called, and compiled, on equal weights and inputs."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.harness import Work, case


def compiled(name: str, config: str, batch: int, length: int, **settings: Any) -> Work:
    """A forward pass without padding; the time of the first call, which compiles, stands apart."""
    import torch

    import longspan

    torch.manual_seed(0)
    model: Any = getattr(longspan, name)(getattr(longspan, config)(vocab_size=1000, **settings)).eval()
    program = torch.compile(model, dynamic=True)
    inputs = {"input_ids": torch.randint(3, 1000, (batch, length))}
    if name == "LongformerModel":
        inputs["global_attention_mask"] = (torch.arange(length) == 0).long()[None]

    def run(function: Any) -> Any:
        with torch.inference_mode():
            return function(**inputs).last_hidden_state

    start = time.perf_counter()
    run(program)
    return Work(
        peer=lambda: run(model),
        ours=lambda: run(program),
        difference=lambda a, b: float((a - b).abs().max() / a.abs().max()),
        tolerance=1e-5,
        extra={"first_call_seconds": time.perf_counter() - start},
    )


@case("compiled/minilm/float32", "MiniLM, 6 layers, 16 × 128; as called against torch.compile", memory=False)
def minilm() -> Work:
    return compiled(
        "BertModel", "BertConfig", 16, 128,
        hidden_size=384, num_attention_heads=12, intermediate_size=1536, num_hidden_layers=6,
    )  # fmt: skip


@case("compiled/bert/float32", "BERT-base, 3 layers, 4 × 512; as called against torch.compile", memory=False)
def bert() -> Work:
    return compiled("BertModel", "BertConfig", 4, 512, num_hidden_layers=3)


@case(
    "compiled/longformer/float32", "Longformer-base, 2 layers, 1 × 4096; as called against torch.compile", memory=False
)
def longformer() -> Work:
    return compiled("LongformerModel", "LongformerConfig", 1, 4096, num_hidden_layers=2, max_position_embeddings=4098)


@case(
    "compiled/longt5/float32", "LongT5-base encoder, 2 layers, 1 × 4096; as called against torch.compile", memory=False
)
def longt5() -> Work:
    return compiled(
        "LongT5EncoderModel", "LongT5Config", 1, 4096,
        d_model=768, d_kv=64, d_ff=2048, num_heads=12, num_layers=2, feed_forward_proj="gated-gelu",
    )  # fmt: skip
