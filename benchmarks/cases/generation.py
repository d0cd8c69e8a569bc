"""`generate` in PyTorch against the reference's, on equal weights; MEGA against itself at two lengths."""

from __future__ import annotations

import dataclasses
import statistics
import time
import warnings
from typing import Any

from benchmarks.floor import READ, Operations
from benchmarks.harness import Work, case
from benchmarks.runtimes import temporary_folder

DECODER = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
SMALL_DECODER = {
    "vocab_size": 8000,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
LONGT5 = {
    "vocab_size": 32128,
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 12,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}


#: one over the share of the bandwidth at which weights are read, batch 1
BANDWIDTH = 1 / 0.75
#: bytes of weights that no cache holds from token to token
LARGEST_CACHE = 1 << 27


def pair(name: str, config: str, settings: dict[str, Any], dtype: str) -> tuple[Any, Any]:
    """The reference and ours on equal random weights; nothing ends a row."""
    import torch
    import transformers

    import longspan

    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    settings = {**settings, "eos_token_id": None, "pad_token_id": 0}
    peer = getattr(transformers, name)(getattr(transformers, config)(**settings)).to(kind).eval()
    ours = getattr(longspan, name)(getattr(longspan, config)(**settings)).to(kind).eval()
    ours.load_state_dict(peer.state_dict(), strict=False)
    ours.tie_weights()
    return peer, ours


def generation(models: tuple[Any, Any], *, batch: int, prompt: int, new: int, exact: bool, **settings: Any) -> Work:
    """Continue random prompts by a fixed number of tokens; the difference is the share of unequal ids."""
    import torch

    ids = torch.randint(3, 8000, (batch, prompt), generator=torch.Generator().manual_seed(1))

    def run(model: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, **settings)

    peer, ours = models
    return Work(
        peer=lambda: run(peer),
        ours=lambda: run(ours),
        difference=lambda a, b: float((a != b).float().mean()),
        # in bfloat16 the two round apart, and random models soon go separate ways
        tolerance=0.0 if exact else 1.0,
        after=lambda p, o: {"peer_tokens_per_s": batch * new / p, "tokens_per_s": batch * new / o},
    )


def decoder(settings: dict[str, Any], dtype: str, batch: int, new: int) -> Work:
    """A DiffLlama."""
    models = pair("DiffLlamaForCausalLM", "DiffLlamaConfig", settings, dtype)
    work = generation(models, batch=batch, prompt=64, new=new, exact=dtype == "float32")
    weights = [p for name, p in models[1].named_parameters() if "embed_tokens" not in name]
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    if size > LARGEST_CACHE:
        work.flops, work.floor_dtype = Operations({READ: float(new * size)}), dtype
    return work


def int8_decoder(settings: dict[str, Any], new: int) -> Work:
    """A DiffLlama beside itself with weights in 8 bits; the difference is that of their logits, by norm."""
    import copy

    import torch

    from longspan.nn.torch.int8_weights import quantize_weights

    exact = pair("DiffLlamaForCausalLM", "DiffLlamaConfig", settings, "float32")[1]
    small = copy.deepcopy(exact)
    quantize_weights(small)

    def difference(a: Any, b: Any) -> float:
        with torch.no_grad():  # of what the second wrote: random models soon go separate ways
            expected, mine = exact(b).logits, small(b).logits
        return float((mine - expected).norm() / expected.norm())

    work = generation((exact, small), batch=1, prompt=64, new=new, exact=False)
    return dataclasses.replace(work, difference=difference, tolerance=0.05)


def longt5(dtype: str, num_beams: int) -> Work:
    """A LongT5 that reads 4,096 tokens and writes 128."""
    models = pair("LongT5ForConditionalGeneration", "LongT5Config", LONGT5, dtype)
    return generation(models, batch=1, prompt=4096, new=128, exact=dtype == "float32", num_beams=num_beams)


def longt5_onnxruntime(source: int = 4096) -> Work:
    """The same by ONNX Runtime, from the export of its own tools; what both encoders give must agree as well."""
    import optimum.onnxruntime
    import torch

    peer, ours = pair("LongT5ForConditionalGeneration", "LongT5Config", LONGT5, "float32")
    folder = temporary_folder()
    peer.save_pretrained(folder)
    exported = optimum.onnxruntime.ORTModelForSeq2SeqLM.from_pretrained(folder, export=True, use_cache=True)
    work = generation((exported, ours), batch=1, prompt=source, new=128, exact=True)
    ids = torch.randint(3, 8000, (1, source), generator=torch.Generator().manual_seed(2))

    def difference(a: Any, b: Any) -> float:
        with torch.no_grad():
            states = ours.get_encoder()(ids).last_hidden_state
        theirs = exported.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return float((a != b).float().mean()) + float((states - theirs).abs().max() / states.abs().max())

    return dataclasses.replace(work, difference=difference, tolerance=1e-5)


ABOUT = "DiffLlama 4 layers 1024 wide, 64 tokens in, 128 out"
ABOUT_SMALL = "DiffLlama 4 layers 256 wide, generate"
ABOUT_LONGT5 = "LongT5 2+2 layers 768 wide, 4096 tokens in, 128 out"


@case("generation/diffllama-b1/float32", f"{ABOUT}, batch 1", at_least=1.5, floor_at_most=BANDWIDTH, rounds=3)
def diffllama_one() -> Work:
    return decoder(DECODER, "float32", 1, 128)


@case("generation/diffllama-b8/float32", f"{ABOUT}, batch 8", at_least=1.5, rounds=3)
def diffllama_eight() -> Work:
    return decoder(DECODER, "float32", 8, 128)


@case("generation/diffllama-b1/bfloat16", f"{ABOUT}, batch 1", at_least=2.0, rounds=3)
def diffllama_one_half() -> Work:
    return decoder(DECODER, "bfloat16", 1, 128)


@case(
    "generation/diffllama-b1/int8-float32",
    f"{ABOUT}, batch 1; weights in int8 against float32, both longspan",
    at_least=1.0,
    rounds=5,
)
def diffllama_one_int8() -> Work:
    return int8_decoder(DECODER, 128)


@case("generation/diffllama-b8/bfloat16", f"{ABOUT}, batch 8", at_least=2.0, rounds=3)
def diffllama_eight_half() -> Work:
    return decoder(DECODER, "bfloat16", 8, 128)


@case("generation/diffllama-small/float32", f"{ABOUT_SMALL}, batch 1", at_least=2.5, rounds=5)
def diffllama_small() -> Work:
    return decoder(SMALL_DECODER, "float32", 1, 100)


@case("generation/longt5/float32", f"{ABOUT_LONGT5}, greedy", at_least=1.5, rounds=3)
def longt5_greedy() -> Work:
    return longt5("float32", 1)


@case("generation/longt5-beams/float32", f"{ABOUT_LONGT5}, 4 beams", at_least=1.5, rounds=3)
def longt5_beams() -> Work:
    return longt5("float32", 4)


@case("generation/longt5/onnxruntime/float32", f"{ABOUT_LONGT5}, greedy; ONNX Runtime", rounds=3, memory=False)
def longt5_greedy_onnxruntime() -> Work:
    return longt5_onnxruntime()


@case("generation/longt5/bfloat16", f"{ABOUT_LONGT5}, greedy", at_least=2.0, rounds=3)
def longt5_greedy_half() -> Work:
    return longt5("bfloat16", 1)


@case("generation/longt5-beams/bfloat16", f"{ABOUT_LONGT5}, 4 beams", at_least=2.0, rounds=3)
def longt5_beams_half() -> Work:
    return longt5("bfloat16", 4)


@case(
    "generation/mega-flat/float32",
    "MEGA 2 layers, seconds per 512 tokens: behind 1k, and behind 64k",
    at_least=0.8,
    rounds=1,
)
def mega_flat() -> Work:
    import torch

    import longspan

    torch.manual_seed(0)
    settings = {
        "is_decoder": True,
        "bidirectional": False,
        "use_chunking": True,
        "chunk_size": 128,
        "eos_token_id": None,
    }
    model = longspan.MegaForCausalLM(longspan.MegaConfig(vocab_size=2000, num_hidden_layers=2, **settings)).eval()

    class Clock(longspan.BaseStreamer):
        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: Any) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def seconds_behind(count: int) -> float:
        """Of 512 tokens behind `count` others, which are read as a prompt: the state is the same as if generated."""
        clock = Clock()
        ids = torch.randint(3, 2000, (1, count), generator=torch.Generator().manual_seed(2))
        model.generate(ids, max_new_tokens=513, streamer=clock)
        return clock.times[-1] - clock.times[1]  # the prompt comes first, then the token that reading it gave

    seconds_behind(1024)
    rounds = [(seconds_behind(1024), seconds_behind(65_536)) for _ in range(5)]
    early, late = (statistics.median(column) for column in zip(*rounds, strict=True))
    extra = {"tokens_per_s_at_1k": 512 / early, "tokens_per_s_at_64k": 512 / late}
    return Work(
        peer=lambda: time.sleep(early),
        ours=lambda: time.sleep(late),
        difference=lambda a, b: 0.0,
        tolerance=0.0,
        extra=extra,
    )
