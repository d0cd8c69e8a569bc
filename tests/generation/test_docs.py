"""The example of docs/generation.md runs."""

from __future__ import annotations

from pathlib import Path


def test_the_example_runs():
    page = (Path(__file__).parents[2] / "docs" / "generation.md").read_text(encoding="utf-8")
    (code,) = (block.split("```")[0] for block in page.split("```python\n")[1:])
    names = {}
    exec(compile(code, "docs/generation.md", "exec"), names)
    assert names["output"].sequences.shape[0] == 2
    assert names["output"].sequences_scores.shape == (2,)
