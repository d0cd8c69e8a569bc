"""The main job end to end: text in, vectors out, against sentence-transformers."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import Work, case


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
