"""Each page has a Chinese one beside it, which is in step: headings, code, tables, lists, links, names in code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```.*?^```$", flags=re.M | re.S)
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if ".zh." not in page.name)]


def translation(page):
    return page.with_suffix(".zh.md")


def outline(page):
    """What a page and its translation have in common, by name."""
    whole = page.read_text(encoding="utf-8")
    text = BLOCK.sub("", whole)
    rows = re.findall(r"^\|.*\|$", text, flags=re.M)
    return {
        "code blocks": BLOCK.findall(whole),
        "levels of headings": re.findall(r"^(#+) ", text, flags=re.M),
        "paragraphs": len(re.split(r"\n\s*\n", text.strip())),
        "list items": len(re.findall(r"^\s*(?:[-*]|\d+\.) ", text, flags=re.M)),
        "cells of tables": [row.count("|") for row in rows],
        "figures in tables": [sorted(re.findall(r"\d+(?:[.,]\d+)*", row)) for row in rows],
        "links": sorted(link.replace(".zh.md", ".md") for link in re.findall(r"\]\(([^)\s]+)\)", text)),
        "names in code": sorted({" ".join(name.split()) for name in re.findall(r"`([^`]+)`", text)}),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_has_a_chinese_one_in_step(page):
    assert translation(page).exists(), f"{page.name} lacks a Chinese page, {translation(page).name}"
    original, chinese = outline(page), outline(translation(page))
    for part in original:
        assert chinese[part] == original[part], part


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_chinese_page_is_in_chinese(page):
    """Outside of code most words are Chinese: no page is a copy."""
    text = BLOCK.sub("", translation(page).read_text(encoding="utf-8"))
    text = re.sub(r"`[^`]+`|\]\([^)]+\)|https?:\S+", "", text)
    assert len(re.findall(r"[\u4e00-\u9fff]", text)) > len(re.findall(r"[A-Za-z]{2,}", text))
