from __future__ import annotations

from tests.pipelines.conftest import corpus, tiny, tiny_dir

__all__ = ["corpus", "tiny", "tiny_dir"]
