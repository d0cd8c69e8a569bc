"""FastAPI: one pipeline serves eight clients at once, each with the result that it has alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

import longspan

pytestmark = [pytest.mark.ecosystem, pytest.mark.filterwarnings("ignore")]  # its test client prefers another httpx


def test_eight_clients(minilm_dir):
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    encoder = longspan.SentenceEncoder(minilm_dir)
    app = FastAPI()

    @app.get("/embed")
    def embed(text: str) -> list[float]:
        return encoder.encode([text])[0].tolist()

    texts = [f"document {number} " + "word " * number for number in range(24)]
    alone = [encoder.encode([text])[0].tolist() for text in texts]
    with TestClient(app) as client, ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda text: client.get("/embed", params={"text": text}).json(), texts))
    for answer, expected in zip(answers, alone, strict=True):
        assert answer == pytest.approx(expected, abs=1e-5)
