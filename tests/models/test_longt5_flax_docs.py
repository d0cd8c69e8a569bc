"""The Python of docs/flax.md runs, one block after the other."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "flax.md").read_text(encoding="utf-8")


def test_blocks_run():
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert names["logits"].shape == (2, 1, 32128)
    assert names["summaries"].shape[0] == names["samples"].shape[0] == 2
    assert names["value"] > 0
