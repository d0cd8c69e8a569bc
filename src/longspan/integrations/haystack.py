"""Haystack: components that embed texts and documents by a `SentenceEncoder` (needs `haystack-ai`)."""

# Haystack reads the annotations of `run` as objects: no `from __future__ import annotations` here

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from haystack import Document, component, default_to_dict

from longspan.embeddings.sentence_encoder import SentenceEncoder
from longspan.errors import InputError


class _Embedder:
    """What both components share: the model, which the first call or `warm_up` loads."""

    def __init__(
        self,
        model: str | None = None,
        *,
        load_options: dict[str, Any] | None = None,
        encode_options: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.load_options = load_options
        self.encode_options = encode_options

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The encoder."""
        return SentenceEncoder(self.model, **self.load_options or {})

    def warm_up(self) -> None:
        """Load the model."""
        _ = self.encoder

    def to_dict(self) -> dict[str, Any]:
        """The component in a file of a pipeline."""
        names = [name for name in vars(self) if not name.startswith("_") and name != "encoder"]
        described: dict[str, Any] = default_to_dict(self, **{name: getattr(self, name) for name in names})
        return described


@component
class LongspanTextEmbedder(_Embedder):
    """Embeds a text, such as a query.

    Args:
        model: Directory or hub repository; default the packaged model.
        load_options: Arguments of `SentenceEncoder`.
        encode_options: Arguments of `SentenceEncoder.encode`.

    Example:
        >>> from longspan.integrations.haystack import LongspanTextEmbedder  # doctest: +SKIP
        >>> LongspanTextEmbedder("./my-encoder").run("a query")["embedding"]  # doctest: +SKIP
    """

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, list[float]]:
        """The vector of a text, with the model's prompt for queries; `InputError` if it is no string."""
        if not isinstance(text, str):
            raise InputError(f"A text embedder takes one string. Received: {type(text).__name__}")
        return {"embedding": self.encoder.encode_query(text, **self.encode_options or {}).tolist()}


@component
class LongspanDocumentEmbedder(_Embedder):
    """Embeds documents of any length, one vector each.

    Args:
        model: Directory or hub repository; default the packaged model.
        meta_fields: Fields of a document's `meta` that are put before its content, a line each.
        load_options: Arguments of `SentenceEncoder`.
        encode_options: Arguments of `SentenceEncoder.encode`.

    Example:
        >>> from longspan.integrations.haystack import LongspanDocumentEmbedder  # doctest: +SKIP
        >>> embedder = LongspanDocumentEmbedder("./my-encoder", meta_fields=["title"])  # doctest: +SKIP
        >>> store.write_documents(embedder.run(documents)["documents"])  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        meta_fields: Sequence[str] = (),
        load_options: dict[str, Any] | None = None,
        encode_options: dict[str, Any] | None = None,
    ) -> None:
        # `component` makes a copy of this class, which `super()` does not know
        _Embedder.__init__(self, model, load_options=load_options, encode_options=encode_options)
        self.meta_fields = list(meta_fields)

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """Copies of the documents with vectors; `InputError` if one has no text."""
        texts = []
        for document in documents:
            if document.content is None:
                raise InputError(f"A document must have text. Received: {document.id}, which has none")
            fields = [str(document.meta[name]) for name in self.meta_fields if document.meta.get(name) is not None]
            texts.append("\n".join([*fields, document.content]))
        vectors = self.encoder.encode_document(texts, **self.encode_options or {}).tolist()
        return {"documents": [replace(one, embedding=vector) for one, vector in zip(documents, vectors, strict=True)]}
