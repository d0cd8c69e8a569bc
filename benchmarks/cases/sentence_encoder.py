"""The main job end to end: text in, vectors out, against sentence-transformers."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import Work, case

#: texts of a batch of ONNX Runtime
ONNX_BATCH = 16


def encode(dtype: str, tolerance: float) -> Work:
    import sentence_transformers

    from benchmarks.corpus import docstrings
    from longspan import SentenceEncoder
    from longspan.embeddings.modules import default_model_folder

    texts = docstrings(2000)
    folder = str(default_model_folder())
    peer = sentence_transformers.SentenceTransformer(folder, device="cpu", model_kwargs={"torch_dtype": dtype})
    ours = SentenceEncoder(folder, dtype=dtype)

    def run_peer() -> Any:
        return peer.encode(texts, show_progress_bar=False)

    return Work(
        peer=run_peer,
        ours=lambda: ours.encode(texts, on_long="truncate"),  # as the peer does
        difference=lambda a, b: float(abs(a - b).max()),
        tolerance=tolerance,
        extra={"texts": len(texts)},
        after=lambda p, o: {"peer_texts_per_second": len(texts) / p, "ours_texts_per_second": len(texts) / o},
    )


@case("embed/minilm/float32", "MiniLM, 2,000 documentation strings, text to vectors", rounds=3)
def minilm_float32() -> Work:
    return encode("float32", 1e-5)


@case("embed/minilm/bfloat16", "MiniLM, 2,000 documentation strings, text to vectors", rounds=3)
def minilm_bfloat16() -> Work:
    return encode("bfloat16", 3e-2)


def rounded() -> Work:
    """Float32 beside 8 bits, both longspan, with what the rounding changes."""
    import numpy as np

    from benchmarks.corpus import docstrings
    from longspan import SentenceEncoder

    texts = docstrings(2000)
    exact, small = SentenceEncoder(), SentenceEncoder(dtype="int8")
    cosines, kept = [], []

    def difference(a: Any, b: Any) -> float:
        cosines.append((a * b).sum(1))
        nearest = [np.argsort(-(vectors @ vectors.T), axis=1)[:, 1:11] for vectors in (a, b)]
        kept.append([len(set(x) & set(y)) for x, y in zip(*nearest, strict=True)])
        return float(1 - cosines[0].min())

    return Work(
        peer=lambda: exact.encode(texts),
        ours=lambda: small.encode(texts),
        difference=difference,
        tolerance=0.02,
        after=lambda p, o: {
            "float32_texts_per_second": len(texts) / p,
            "int8_texts_per_second": len(texts) / o,
            "mean_cosine": float(cosines[0].mean()),
            "of_ten_nearest_the_same": float(np.mean(kept[0])),
        },
    )


@case("embed/minilm/int8", "MiniLM, 2,000 documentation strings, int8 against float32, both longspan", rounds=3)
def minilm_int8() -> Work:
    return rounded()


def onnxruntime_vectors(folder: Path, *, int8: bool) -> Callable[[list[str]], Any]:
    """What ONNX Runtime makes of the reference's MiniLM: batches of texts of like length, mean over tokens, length 1.

    Raises:
        ModuleNotFoundError: a package of the peer is not installed.
    """
    import numpy as np
    import onnxruntime
    import torch
    import transformers
    from onnxruntime.quantization import quantize_dynamic

    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager", add_pooling_layer=False).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    where = Path(tempfile.mkdtemp(prefix="longspan-onnx-"))
    atexit.register(shutil.rmtree, where, ignore_errors=True)
    names, axes = ["input_ids", "attention_mask", "token_type_ids"], {0: "batch", 1: "tokens"}
    example = tokenizer(["a text", "another, longer text"], padding=True, return_tensors="pt")
    torch.onnx.export(
        model, tuple(example[name] for name in names), str(where / "model.onnx"), input_names=names,
        output_names=["states"], dynamic_axes=dict.fromkeys([*names, "states"], axes), dynamo=False,
    )  # fmt: skip
    if int8:
        quantize_dynamic(where / "model.onnx", where / "int8.onnx", per_channel=True, reduce_range=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        str(where / ("int8.onnx" if int8 else "model.onnx")), options, providers=["CPUExecutionProvider"]
    )

    def encode(texts: list[str]) -> Any:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = np.empty((len(texts), model.config.hidden_size), np.float32)
        for start in range(0, len(texts), ONNX_BATCH):
            rows = order[start : start + ONNX_BATCH]
            batch = tokenizer(
                [texts[i] for i in rows], padding=True, truncation=True, max_length=256, return_tensors="np"
            )
            (states,) = session.run(None, {name: batch[name].astype(np.int64) for name in names})
            mask = batch["attention_mask"][..., None]
            sums = (states * mask).sum(1)
            vectors[rows] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return vectors

    return encode


def against_onnxruntime(dtype: str) -> Work:
    """ONNX Runtime beside longspan in the same type."""
    from benchmarks.corpus import docstrings
    from longspan import SentenceEncoder
    from longspan.embeddings.modules import default_model_folder

    texts, ours = docstrings(2000), SentenceEncoder(dtype=dtype)
    encode = onnxruntime_vectors(Path(default_model_folder()), int8=dtype == "int8")
    return Work(
        peer=lambda: encode(texts),
        ours=lambda: ours.encode(texts, on_long="truncate"),
        difference=lambda a, b: float(1 - (a * b).sum(1).min()),
        tolerance={"float32": 1e-5, "int8": 0.1}[dtype],  # the two round to other levels
        after=lambda p, o: {"peer_texts_per_second": len(texts) / p, "ours_texts_per_second": len(texts) / o},
    )


@case("embed/minilm/onnxruntime/float32", "MiniLM, 2,000 strings, ONNX Runtime, sorted, batches of 16", rounds=3)
def onnxruntime_float32() -> Work:
    return against_onnxruntime("float32")


@case("embed/minilm/onnxruntime/int8", "MiniLM, 2,000 strings, ONNX Runtime, sorted, int8 on both sides", rounds=3)
def onnxruntime_int8() -> Work:
    return against_onnxruntime("int8")
