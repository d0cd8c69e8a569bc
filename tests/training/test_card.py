"""Names in a model card are text: they close no field, add no markup and break no table."""

from __future__ import annotations

import html

import pytest

from longspan.training.card import model_card

NAMES = [
    "a: b\n---\nevil: 1",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "a|b`c`\\",
    "\x1b[31m",
    "é: #",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_text(name: str) -> None:
    card = model_card("classify", name, {"pipeline": "text-classification", "model": name, "data": name},
                      {f"f1 of {name}": 0.5}, {"labels": [name], "seed": 1})  # fmt: skip
    lines = card.splitlines()
    assert [index for index, line in enumerate(lines) if line == "---"] == [0, 4]
    yaml = pytest.importorskip("yaml")
    fields = yaml.safe_load("\n".join(lines[1:4]))
    plain = "".join(character if character.isprintable() else " " for character in name)
    assert fields == {"library_name": "longspan", "pipeline_tag": "text-classification", "base_model": plain}
    fence = lines.index("```console")
    assert lines[fence + 2] == "```"
    text = [line for number, line in enumerate(lines[5:], start=5) if number not in range(fence, fence + 3)]
    assert not any(mark in line for line in text for mark in ("<", "](", "\x1b"))
    assert f"- data: {plain}" in [html.unescape(line) for line in text]
    assert all(line.count("|") == 3 for line in lines if line.startswith("|"))
