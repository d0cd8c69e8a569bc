"""The main job end to end: text in, vectors out, against sentence-transformers with each of its backends, and against
the runtimes by themselves, given texts of like length in batches of the size that suits them best."""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import Work, case, say
from benchmarks.runtimes import (
    INPUTS,
    States,
    ctranslate2_states,
    onnx_file,
    onnxruntime_states,
    openvino_states,
    temporary_folder,
)

#: every tenth of the first 2,000 documentation strings
TEXTS = 200
#: texts of a batch that are tried
BATCHES = (4, 16, 32)
ABOUT = f"MiniLM, {TEXTS} documentation strings, text to vectors"
#: what is wanted beside the best of ONNX Runtime and OpenVINO
WANTED = {"float32": 1.2, "int8": 1.0}

#: texts and the size of a batch -> vectors
Encoder = Callable[[list[str], int], Any]


def documents() -> list[str]:
    """The texts."""
    from benchmarks.corpus import docstrings

    return docstrings(10 * TEXTS)[::10]


@functools.cache
def minilm() -> Path:
    """Weights and tokenizer."""
    from longspan.embeddings.modules import default_model_folder

    return Path(default_model_folder())


def beside(peer: Encoder, dtype: str, tolerance: float, **extra: Any) -> Work:
    """A peer, in batches of the size that suits it, beside longspan in a dtype; errors are those of the cosine."""
    from longspan import SentenceEncoder

    texts, ours = documents(), SentenceEncoder(minilm(), dtype=dtype)
    some = texts[:: max(len(texts) // 32, 1)]
    seconds = {}
    for batch in BATCHES:
        peer(some, batch)
        start = time.perf_counter()
        peer(some, batch)
        seconds[batch] = time.perf_counter() - start
    best = min(seconds, key=lambda batch: seconds[batch])
    say(f"batches of {best} suit the peer best")
    return Work(
        peer=lambda: peer(texts, best),
        ours=lambda: ours.encode(texts, on_long="truncate"),  # as the peers do
        difference=lambda a, b: float(1 - (a * b).sum(1).min()),
        tolerance=tolerance,
        extra={"peer_batch": best, **extra},
        after=lambda p, o: {"peer_texts_per_second": len(texts) / p, "ours_texts_per_second": len(texts) / o},
    )


# -- sentence-transformers --------------------------------------------------------------------------------------------


def sentence_transformer(folder: Path, **settings: Any) -> Encoder:
    """It sorts the texts by itself."""
    import sentence_transformers

    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu", **settings)
    return lambda texts, batch: model.encode(texts, batch_size=batch, show_progress_bar=False)


def exported(backend: str, *, int8: bool = False) -> Encoder:
    """With a backend of its own export; 8 bits as its `export_dynamic_quantized_onnx_model` makes them."""
    import sentence_transformers

    from longspan.machine import label, probe

    folder = temporary_folder() / "minilm"
    shutil.copytree(minilm(), folder)
    if backend == "openvino":  # which by itself takes bfloat16 where the processor has it
        return sentence_transformer(
            folder, backend=backend, model_kwargs={"export": True, "ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}
        )
    if int8:
        model = sentence_transformers.SentenceTransformer(
            str(folder), backend=backend, device="cpu", model_kwargs={"export": True}
        )
        kind = "avx2" if label(probe(dict(os.environ))).startswith("avx2") else "avx512_vnni"
        sentence_transformers.export_dynamic_quantized_onnx_model(model, kind, str(folder))
        (name,) = (path.name for path in (folder / "onnx").glob("*int8*.onnx"))
        return sentence_transformer(folder, backend=backend, model_kwargs={"file_name": f"onnx/{name}"})
    return sentence_transformer(folder, backend=backend, model_kwargs={"export": True})


@case("embed/minilm/sentence-transformers/float32", f"{ABOUT}; sentence-transformers, PyTorch")
def sentence_transformers_float32() -> Work:
    return beside(sentence_transformer(minilm()), "float32", 1e-5)


@case("embed/minilm/sentence-transformers/bfloat16", f"{ABOUT}; sentence-transformers, PyTorch", rounds=3)
def sentence_transformers_bfloat16() -> Work:
    peer = sentence_transformer(minilm(), model_kwargs={"torch_dtype": "bfloat16"})
    return beside(peer, "bfloat16", 3e-2)


@case("embed/minilm/sentence-transformers-onnx/float32", f"{ABOUT}; sentence-transformers, ONNX", at_least=1.2)
def sentence_transformers_onnx() -> Work:
    return beside(exported("onnx"), "float32", 1e-5)


@case("embed/minilm/sentence-transformers-onnx/int8", f"{ABOUT}; sentence-transformers, ONNX qint8", at_least=1.0)
def sentence_transformers_onnx_int8() -> Work:
    return beside(exported("onnx", int8=True), "int8", 0.1)  # the two round to other levels


@case("embed/minilm/sentence-transformers-openvino/float32", f"{ABOUT}; sentence-transformers, OpenVINO", at_least=1.2)
def sentence_transformers_openvino() -> Work:
    return beside(exported("openvino"), "float32", 1e-5)


# -- the runtimes by themselves ---------------------------------------------------------------------------------------


@functools.cache
def tokenizer() -> Any:
    """The reference's."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(minilm())


def tokenized(texts: list[str]) -> dict[str, Any]:
    """Ids, mask and types of texts, (B, S), padded to the longest."""
    import numpy as np

    batch = tokenizer()(texts, padding=True, truncation=True, max_length=256, return_tensors="np")
    return {name: batch[name].astype(np.int64) for name in INPUTS}


def of_states(states: States) -> Encoder:
    """Texts of like length at a time; the mean over tokens, of length 1."""
    import numpy as np

    def encode(texts: list[str], size: int) -> Any:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = np.empty((len(texts), 384), np.float32)
        for start in range(0, len(texts), size):
            rows = order[start : start + size]
            batch = tokenized([texts[i] for i in rows])
            sums = (states(batch) * batch["attention_mask"][..., None]).sum(1)
            vectors[rows] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return vectors

    return encode


def reference() -> Any:
    """The reference's BERT as the exporters take it."""
    import transformers

    return transformers.BertModel.from_pretrained(minilm(), attn_implementation="eager", add_pooling_layer=False).eval()


def against_onnxruntime(dtype: str) -> Work:
    """8 bits: weights a channel, activations as they come."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    path = onnx_file(temporary_folder(), reference())
    if dtype == "int8":
        small = path.with_name("int8.onnx")
        kind = {"DefaultTensorType": onnx.TensorProto.FLOAT}  # of what the fused nodes give
        quantize_dynamic(path, small, per_channel=True, reduce_range=True, extra_options=kind)
        path = small
    return beside(of_states(onnxruntime_states(path)), dtype, {"float32": 1e-5, "int8": 0.1}[dtype])


@case("embed/minilm/onnxruntime/float32", f"{ABOUT}; ONNX Runtime", at_least=WANTED["float32"])
def onnxruntime_float32() -> Work:
    return against_onnxruntime("float32")


@case("embed/minilm/onnxruntime/int8", f"{ABOUT}; ONNX Runtime, int8 on both sides", at_least=WANTED["int8"])
def onnxruntime_int8() -> Work:
    return against_onnxruntime("int8")


@case("embed/minilm/openvino/float32", f"{ABOUT}; OpenVINO, float32", at_least=WANTED["float32"])
def openvino_float32() -> Work:
    return beside(of_states(openvino_states(reference(), "f32")), "float32", 1e-5)


@case("embed/minilm/openvino/bfloat16", f"{ABOUT}; OpenVINO, bfloat16 on both sides", rounds=3)
def openvino_bfloat16() -> Work:
    return beside(of_states(openvino_states(reference(), "bf16")), "bfloat16", 3e-2)


@case("embed/minilm/openvino/int8", f"{ABOUT}; OpenVINO, int8 on both sides", at_least=WANTED["int8"])
def openvino_int8() -> Work:
    calibration = [tokenized([text]) for text in documents()[::4]]
    return beside(of_states(openvino_states(reference(), "f32", calibration)), "int8", 0.1)


@case("embed/minilm/ctranslate2/float32", f"{ABOUT}; CTranslate2")
def ctranslate2_float32() -> Work:
    return beside(of_states(ctranslate2_states(minilm(), "float32")), "float32", 1e-5)


@case("embed/minilm/ctranslate2/int8", f"{ABOUT}; CTranslate2, int8 on both sides")
def ctranslate2_int8() -> Work:
    return beside(of_states(ctranslate2_states(minilm(), "int8")), "int8", 0.1)


# -- queries --------------------------------------------------------------------------------------------------------


@case("search/queries/float32", "MiniLM, 40 queries in a row, each against 50,000 vectors; BLAS against NumPy's loops")
def queries() -> Work:
    """A query's vector by PyTorch, its scores by NumPy: OpenBLAS' threads spin on the cores of the next query."""
    import numpy as np

    from longspan import SentenceEncoder
    from longspan.products import product

    encoder = SentenceEncoder()
    texts = [" ".join(text.split()[:12]) for text in documents()[::5]]
    vectors = np.random.default_rng(0).standard_normal((50_000, 384)).astype(np.float32)

    def run(scores: Callable[[Any], Any]) -> Any:
        return np.concatenate([scores(encoder.encode([text])) for text in texts])

    return Work(
        peer=lambda: run(lambda query: query @ vectors.T),
        ours=lambda: run(lambda query: product(query, vectors)),
        difference=lambda a, b: float(np.abs(a - b).max() / np.abs(a).max()),
        tolerance=1e-5,
        after=lambda p, o: {"blas_milliseconds_per_query": 25 * p, "loops_milliseconds_per_query": 25 * o},
    )


# -- rounding ---------------------------------------------------------------------------------------------------------


@case("embed/minilm/int8", f"{ABOUT}; int8 against float32, both longspan")
def rounded() -> Work:
    """Float32 beside 8 bits, both longspan, with what the rounding changes."""
    import numpy as np

    from longspan import SentenceEncoder

    texts = documents()
    exact, small = SentenceEncoder(), SentenceEncoder(dtype="int8")
    figures: dict[str, Any] = {}

    def difference(a: Any, b: Any) -> float:
        nearest = [np.argsort(-(vectors @ vectors.T), axis=1)[:, 1:11] for vectors in (a, b)]
        kept = [len(set(x) & set(y)) for x, y in zip(*nearest, strict=True)]
        figures.update(mean_cosine=float((a * b).sum(1).mean()), of_ten_nearest_the_same=float(np.mean(kept)))
        return float(1 - (a * b).sum(1).min())

    return Work(
        peer=lambda: exact.encode(texts),
        ours=lambda: small.encode(texts),
        difference=difference,
        tolerance=0.02,
        after=lambda p, o: {
            "float32_texts_per_second": len(texts) / p,
            "int8_texts_per_second": len(texts) / o,
            **figures,
        },
    )
