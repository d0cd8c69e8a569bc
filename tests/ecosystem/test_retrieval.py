"""LangChain, Haystack and LlamaIndex: their own stores find by our vectors, which are those of the encoder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tiny_encoder import make_sentence_model

pytestmark = pytest.mark.ecosystem
RAG = Path(sys.prefix) / "rag"
TEXTS = ["the log file is open", "the window is closed", "the server was started", "the data model " * 300]
WORKER = f"""
import asyncio
import sys
import numpy as np
import longspan
from longspan.errors import InputError

model = sys.argv[1]
texts, query = {TEXTS!r}, "log file"
encoder = longspan.SentenceEncoder(model)
expected, of_query = encoder.encode_document(texts), encoder.encode_query(query)
best = texts[int(np.argmax(expected @ of_query))]


def same(one, other):
    np.testing.assert_allclose(np.array(one), other, rtol=0, atol=1e-5)


def raises(call, words):
    try:
        call()
    except InputError as error:
        assert words in str(error), error
    else:
        raise AssertionError("nothing was raised")


from langchain_core.vectorstores import InMemoryVectorStore
from longspan.integrations.langchain import LongspanEmbeddings

embeddings = LongspanEmbeddings(model)
same(embeddings.embed_documents(texts), expected)
same(embeddings.embed_query(query), of_query)
same(asyncio.run(embeddings.aembed_documents(texts[:2])), expected[:2])
store = InMemoryVectorStore.from_texts(texts, LongspanEmbeddings(encoder, encode_options={{"normalize": True}}))
assert store.similarity_search(query, k=1)[0].page_content == best
assert embeddings.embed_documents([]) == []
print("langchain ok")

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from longspan.integrations.haystack import LongspanDocumentEmbedder, LongspanTextEmbedder

documents = [Document(content=text, meta={{"title": "a title"}}) for text in texts]
embedded = LongspanDocumentEmbedder(model).run(documents)["documents"]
same([document.embedding for document in embedded], expected)
assert documents[0].embedding is None
titled = LongspanDocumentEmbedder(model, meta_fields=["title", "none"]).run(documents[:1])["documents"]
same(titled[0].embedding, encoder.encode_document("a title\\n" + texts[0]))
raises(lambda: LongspanDocumentEmbedder(model).run([Document()]), "A document must have text")
raises(lambda: LongspanTextEmbedder(model).run(documents), "A text embedder takes one string. Received: list")
haystack_store = InMemoryDocumentStore()
haystack_store.write_documents(embedded)
pipeline = Pipeline()
pipeline.add_component("text", LongspanTextEmbedder(model, load_options={{"dtype": "float32"}}))
pipeline.add_component("retriever", InMemoryEmbeddingRetriever(haystack_store, top_k=1))
pipeline.connect("text.embedding", "retriever.query_embedding")
found = Pipeline.loads(pipeline.dumps(), allowed_modules=["longspan.integrations.haystack"]).get_component("text")
assert (found.model, found.load_options) == (model, {{"dtype": "float32"}})
assert pipeline.run({{"text": {{"text": query}}}})["retriever"]["documents"][0].content == best
print("haystack ok")

from llama_index.core.indices.vector_store import VectorStoreIndex
from llama_index.core.schema import TextNode
from longspan.integrations.llama_index import LongspanEmbedding

embedding = LongspanEmbedding(model, embed_batch_size=3)
same(embedding.get_text_embedding_batch(texts), expected)
same(embedding.get_query_embedding(query), of_query)
same(embedding.get_text_embedding(texts[3]), expected[3])
same(asyncio.run(embedding.aget_text_embedding_batch(texts)), expected)
index = VectorStoreIndex([TextNode(text=text) for text in texts], embed_model=embedding)
assert index.as_retriever(similarity_top_k=1).retrieve(query)[0].get_content().strip() == best.strip()
print("llama index ok")
"""


@pytest.mark.skipif(not RAG.exists(), reason="make ecosystem installs what tests/ecosystem/rag.txt names in .venv/rag")
def test_stores_find_by_our_vectors(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(WORKER)
    path = os.pathsep.join([str(RAG), *filter(None, [os.environ.get("PYTHONPATH")])])
    quiet = {"HAYSTACK_TELEMETRY_ENABLED": "False", "HF_HUB_OFFLINE": "1", "NLTK_DATA": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(script), str(make_sentence_model(tmp_path / "model"))],
        env={**os.environ, "PYTHONPATH": path, **quiet},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line for line in done.stdout.splitlines() if line.endswith("ok")] == [
        "langchain ok",
        "haystack ok",
        "llama index ok",
    ]
