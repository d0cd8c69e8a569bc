"""The Python of docs/flax.md runs, one block after the other, and that of other pages that is about Flax."""

from __future__ import annotations

import re
from pathlib import Path

from tests.tolerances import assert_close

DOCS = Path(__file__).parents[2] / "docs"


def blocks_of(page):
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), flags=re.M | re.S)


def test_blocks_run():
    names: dict[str, object] = {}
    blocks = blocks_of("flax.md")
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert names["logits"].shape == (2, 1, 32128)
    assert names["summaries"].shape[0] == names["samples"].shape[0] == 2
    assert names["value"] > 0


def test_a_module_of_nnx_learns_and_gives_its_weights_back():
    names: dict[str, object] = {}
    (block,) = blocks_of("linen_and_nnx.md")
    exec(block, names)
    losses, ids, first = names["losses"], names["ids"], names["first"]
    assert losses[-1] < 0.9 * losses[0]
    mine = names["loaded"](ids, global_attention_mask=first).last_hidden_state
    assert_close(names["scorer"].backbone(ids, global_attention_mask=first).last_hidden_state, mine)


def test_running_statistics_of_mega():
    names: dict[str, object] = {}
    (block,) = (block for block in blocks_of("mega.md") if "batch_stats" in block)
    exec(block, names)
    assert names["output"].logits.shape == (1, 6, 30522)
    norm = names["model"].batch_stats["mega"]["layers"]["0"]["mega_layer"]["norm"]["norm"]
    assert int(norm["num_batches_tracked"]) == 1
