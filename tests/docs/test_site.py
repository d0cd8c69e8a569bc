"""The built site (`make docs`): links lead somewhere, nothing is fetched, search finds each class in both languages."""

from __future__ import annotations

import json
import posixpath
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image
from tests.contract.test_imports import public_names

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import docs_browser

SITE = ROOT / "build" / "site"
#: classes that the old documentation of the reference describes
OLD = re.findall(r"\w+", """
BertConfig BertForMaskedLM BertForMultipleChoice BertForNextSentencePrediction BertForPreTraining
BertForQuestionAnswering BertForSequenceClassification BertForTokenClassification BertLMHeadModel BertModel
DiffLlamaConfig DiffLlamaForCausalLM DiffLlamaForQuestionAnswering DiffLlamaForSequenceClassification
DiffLlamaForTokenClassification DiffLlamaModel DiffLlamaPreTrainedModel FlaxBertForCausalLM FlaxBertForMaskedLM
FlaxBertForPreTraining FlaxBertModel FlaxBertPreTrainedModel FlaxLongT5ForConditionalGeneration FlaxLongT5Model
FlaxLongT5PreTrainedModel LongT5Config LongT5EncoderModel LongT5ForConditionalGeneration LongT5Model
LongformerConfig LongformerForMaskedLM LongformerForMultipleChoice LongformerForQuestionAnswering
LongformerForSequenceClassification LongformerForTokenClassification LongformerModel MegaConfig MegaForCausalLM
MegaForMaskedLM MegaForMultipleChoice MegaForQuestionAnswering MegaForSequenceClassification
MegaForTokenClassification MegaModel MegaPreTrainedModel TFBertForQuestionAnswering TFBertForTokenClassification
TFLongformerModel
""")  # fmt: skip
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


def test_classes_of_the_old_documentation_are_found_by_their_names(entries):
    """Each has a section of its own on one page of the reference, in both languages."""
    assert len(OLD) == 48
    for name in OLD:
        for folder in ("api/", "zh/api/"):
            found = [one for one in entries if one["title"] == name and one["location"].startswith(folder)]
            assert len(found) == 1, (folder, name)
            assert found[0]["location"].endswith(f"#{name.lower()}")
            assert len(found[0]["text"]) > 40, (folder, name)


@pytest.mark.parametrize("folder", ["gallery", "zh/gallery"])
def test_the_gallery_shows_what_its_code_drew(pages, folder):
    names = sorted(name for name in pages if name.startswith(f"{folder}/") and name != f"{folder}/explained.html")
    assert [Path(name).stem for name in names] == ["1-attention", "2-memory", "3-documents", "4-explain"]
    for name in names:
        text = (SITE / name).read_text(encoding="utf-8")
        assert "Traceback" not in text
        fetched = [posixpath.normpath(posixpath.join(folder, one)) for one in pages[name].fetched]
        drawn = [one for one in fetched if one.endswith(".png") and "/gallery/" in f"/{one}"]
        framed = [one for one in fetched if one.endswith("explained.html")]
        assert len(drawn) + len(framed) == 1, name
        for picture in drawn:
            pixels = np.asarray(Image.open(SITE / picture).convert("L"))
            assert pixels.std() > 5, f"{picture} is blank"
        for page in framed:
            assert "<title>BertModel, feature-extraction<" in (SITE / page).read_text(encoding="utf-8")


def test_it_works_in_a_browser():
    command = docs_browser.installed()
    if command is None:
        pytest.skip("no Chromium or Chrome is installed")
    assert docs_browser.look(command) == []


def test_chinese_is_cut_into_words(entries):
    text = next(entry["text"] for entry in entries if entry["location"].startswith("zh/api/longformer-torch.html#"))
    assert "\u200b" in text


def test_no_break_between_chinese_characters_shows_as_a_space():
    for page in sorted((SITE / "zh").rglob("*.html")):
        text = re.sub(r"<(pre|script|style)\b.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.S)
        assert not re.findall(r"[\u4e00-\u9fff，。；：、]\n *[\u4e00-\u9fff][^\n]*", text), page
