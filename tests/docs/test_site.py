"""The built site (`make docs`): links lead somewhere, nothing is fetched, search finds each class in both languages."""

from __future__ import annotations

import json
import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from tests.contract.test_imports import public_names

SITE = Path(__file__).parents[2] / "build" / "site"
pytestmark = pytest.mark.site


class Page(HTMLParser):
    """Links, anchors and what a browser would fetch."""

    def __init__(self, path):
        super().__init__()
        self.links, self.fetched, self.anchors = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        self.fetched += [found[key] for key in ("src",) if found.get(key)]
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.fetched.append(found.get("href") or "")


@pytest.fixture(scope="module")
def pages():
    assert SITE.is_dir(), "`make docs` builds the site"
    return {path.relative_to(SITE).as_posix(): Page(path) for path in sorted(SITE.rglob("*.html"))}


@pytest.fixture(scope="module")
def entries():
    return json.loads((SITE / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]


def test_links_lead_to_pages_and_places(pages):
    broken = []
    for name, page in pages.items():
        if name == "404.html":  # is served from any path
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("javascript:"):
                continue
            target = (
                posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path))) if parts.path else name
            )
            if target not in pages:
                broken += [(name, link)] * (not (SITE / target).is_file())
            elif parts.fragment and unquote(parts.fragment) not in pages[target].anchors:
                broken.append((name, link))
    assert not broken


def test_nothing_comes_from_elsewhere(pages):
    for name, page in pages.items():
        assert not [one for one in page.fetched if re.match(r"(https?:)?//", one)], name
    for sheet in SITE.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import\s*)[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_search_knows_each_name_in_both_languages(entries):
    titles = {(entry["location"].startswith("zh/"), entry["title"]) for entry in entries}
    for name in public_names():
        assert (False, name) in titles, name
        assert (True, name) in titles, name


def test_chinese_is_cut_into_words(entries):
    text = next(entry["text"] for entry in entries if entry["location"].startswith("zh/api/longformer-torch.html#"))
    assert "\u200b" in text
