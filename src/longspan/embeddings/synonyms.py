"""What sentence-transformers calls the things that a `SentenceEncoder` does, so that code moves over."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from longspan.checkpoints.update import DirectoryUpdate
from longspan.checkpoints.writer import remove_weights
from longspan.embeddings.modules import SentenceModules, write_sentence_modules
from longspan.embeddings.pooling import Floats
from longspan.embeddings.pooling import normalize as to_unit_length
from longspan.errors import InputError
from longspan.products import product

if TYPE_CHECKING:
    from longspan.pipelines.backends.base import Encoder

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
_OUTPUTS = ("sentence_embedding", "token_embeddings")
#: framework -> module and function that make a tensor of an array
_TENSORS = {"torch": ("torch", "from_numpy"), "flax": ("jax.numpy", "asarray"), "keras": ("keras.ops", "array")}


class SentenceTransformerNames:
    """The names of sentence-transformers, each for what `SentenceEncoder` has under another name."""

    framework: str
    max_length: int
    similarity_fn_name: str
    tokenizer: Any
    prompts: dict[str, str]
    default_prompt_name: str | None
    _modules: SentenceModules
    _backend: Encoder

    @property
    def max_seq_length(self) -> int:
        """Most tokens of a window, `max_length`; may be set to what the model reads."""
        return self.max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self.max_length = self._resolve_max_length(value)

    def _resolve_max_length(self, asked: int | None) -> int:
        raise NotImplementedError("A class with these names must say which length is meant: _resolve_max_length")

    def get_max_seq_length(self) -> int:
        """See `max_seq_length`."""
        return self.max_length

    def tokenize(self, texts: list[str]) -> dict[str, Any]:
        """Token ids and mask of texts, padded, and cut off at `max_length`, as tensors (NumPy but for PyTorch)."""
        given = [text.lower() for text in texts] if self._modules.lower_case else list(texts)
        kind = "pt" if self.framework == "torch" else "np"
        found = self.tokenizer(given, padding=True, truncation=True, max_length=self.max_length, return_tensors=kind)
        return dict(found)

    def similarity(self, vectors: Any, others: Any) -> Any:
        """Similarity of each of N vectors to each of M others.

        Args:
            vectors: (N, D) or (D,).
            others: (M, D) or (D,).

        Returns:
            (N, M): the cosine, or what the folder names (`similarity_fn_name`): the `"dot"` product, or the negative
            `"euclidean"` or `"manhattan"` distance. A tensor if `vectors` is one of PyTorch, else an array.
        """
        left, right = _rows(vectors), _rows(others)
        if self.similarity_fn_name == "cosine":
            found = product(to_unit_length(left), to_unit_length(right))
        elif self.similarity_fn_name == "dot":
            found = product(left, right)
        else:
            order = 2 if self.similarity_fn_name == "euclidean" else 1
            found = -np.stack([np.linalg.norm(right - one, ord=order, axis=1) for one in left])
        return as_tensor(np.asarray(found, np.float32), "torch") if hasattr(vectors, "detach") else found

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write a folder that sentence-transformers and `SentenceEncoder` read: model, tokenizer, pooling, prompts.

        Args:
            path: The folder; made if it does not exist.
        """
        with DirectoryUpdate(path) as update:
            remove_weights(update)
            self._backend.model.save_pretrained(update.staging)
            self.tokenizer.save_pretrained(update.staging)
            write_sentence_modules(
                self._modules,
                update.staging,
                max_length=self.max_length,
                prompts=self.prompts,
                default_prompt_name=self.default_prompt_name,
                similarity=self.similarity_fn_name,
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """See `save_pretrained`."""
        self.save_pretrained(path)


def check_output(output_value: str, precision: str, truncate_dim: int | None) -> None:
    """Raise `InputError` unless vectors can be given as asked."""
    if output_value not in _OUTPUTS:
        raise InputError(f"output_value must be one of {', '.join(_OUTPUTS)}. Received: output_value={output_value!r}")
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}. Received: precision={precision!r}")
    if truncate_dim is not None and truncate_dim < 1:
        raise InputError(f"truncate_dim must be at least 1. Received: truncate_dim={truncate_dim}")


def quantize(vectors: Floats, precision: str) -> npt.NDArray[Any]:
    """Vectors (N, D) in fewer bits.

    `uint8` is `floor(255 (x - least) / (greatest - least))`, least and greatest of each dimension among the N vectors,
    and `int8` that less 128. `ubinary` is whether `x > 0`, eight dimensions a byte, and `binary` that less 128.
    """
    if precision == "float32" or not len(vectors):
        return vectors
    if precision.endswith("binary"):
        bits: npt.NDArray[Any] = np.packbits(vectors > 0, axis=1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    least = vectors.min(axis=0)
    steps = (vectors.max(axis=0) - least) / 255
    values: npt.NDArray[Any] = np.clip(np.floor((vectors - least) / np.where(steps == 0, 1, steps)), 0, 255)
    return values.astype(np.uint8) if precision == "uint8" else (values - 128).astype(np.int8)


def as_tensor(values: npt.NDArray[Any], framework: str) -> Any:
    """A tensor of a framework."""
    module, function = _TENSORS[framework]
    return getattr(importlib.import_module(module), function)(values)


def _rows(vectors: Any) -> Floats:
    array = np.asarray(vectors.detach().cpu() if hasattr(vectors, "detach") else vectors, np.float32)
    rows: Floats = array[None] if array.ndim == 1 else array
    return rows
