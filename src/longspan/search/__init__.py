"""Embeddings on disk and exact search in them: passages, shards, journal, file formats, ranking."""
