"""LlamaIndex: embeddings by a `SentenceEncoder` (needs `llama-index-core`)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from pydantic import PrivateAttr

from longspan.embeddings.sentence_encoder import SentenceEncoder


class LongspanEmbedding(BaseEmbedding):
    """Vectors of texts of any length for the indexes of LlamaIndex.

    Args:
        model: Directory or hub repository; default the packaged model. Or a `SentenceEncoder`.
        encode_options: Arguments of `SentenceEncoder.encode`, e.g. `{"normalize": True}`.
        embed_batch_size: Texts that LlamaIndex hands over at once.
        **settings: Arguments of `SentenceEncoder`.

    Example:
        >>> from longspan.integrations.llama_index import LongspanEmbedding  # doctest: +SKIP
        >>> Settings.embed_model = LongspanEmbedding("./my-encoder")  # doctest: +SKIP
    """

    _encoder: SentenceEncoder = PrivateAttr()
    _options: dict[str, Any] = PrivateAttr()

    def __init__(
        self,
        model: str | os.PathLike[str] | SentenceEncoder | None = None,
        *,
        encode_options: Mapping[str, Any] | None = None,
        embed_batch_size: int = 256,
        **settings: Any,
    ) -> None:
        encoder = model if isinstance(model, SentenceEncoder) else SentenceEncoder(model, **settings)
        super().__init__(model_name=encoder.name, embed_batch_size=embed_batch_size)
        self._encoder = encoder
        self._options = dict(encode_options or {})

    @classmethod
    def class_name(cls) -> str:
        """Name in the files of LlamaIndex."""
        return "LongspanEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = self._encoder.encode_query(query, **self._options).tolist()
        return vector

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._encoder.encode_document(texts, **self._options).tolist()
        return vectors

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
