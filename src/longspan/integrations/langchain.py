"""LangChain: embeddings by a `SentenceEncoder` (needs `langchain-core`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.embeddings import Embeddings

from longspan.embeddings.sentence_encoder import SentenceEncoder


class LongspanEmbeddings(Embeddings):
    """Vectors of texts of any length for LangChain's stores and retrievers.

    Args:
        model: Directory or hub repository; default the packaged model. Or a `SentenceEncoder`.
        encode_options: Arguments of `SentenceEncoder.encode`, e.g. `{"normalize": True}`.
        **settings: Arguments of `SentenceEncoder`.

    Attributes:
        encoder: The encoder.

    Example:
        >>> from longspan.integrations.langchain import LongspanEmbeddings  # doctest: +SKIP
        >>> store = InMemoryVectorStore(LongspanEmbeddings("./my-encoder"))  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | SentenceEncoder | None = None,
        *,
        encode_options: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.encoder = model if isinstance(model, SentenceEncoder) else SentenceEncoder(model, **settings)
        self._options = dict(encode_options or {})

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector for each text, with the model's prompt for documents."""
        vectors: list[list[float]] = self.encoder.encode_document(list(texts), **self._options).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """A vector, with the model's prompt for queries."""
        vector: list[float] = self.encoder.encode_query(text, **self._options).tolist()
        return vector
