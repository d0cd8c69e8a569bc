"""The page of `longspan explain`, as text and in headless Chromium: 4,096 tokens, 12 layers, 12 heads."""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.grid import grid
from tests.pipelines import chromium

from longspan.pipelines.explain.explanation import Explanation
from longspan.pipelines.explain.page import page_of, write_page

LAYERS, HEADS, TOKENS, LINKS = 12, 12, 4096, 2
LAYER, HEAD, CHOSEN = 7, 3, 5
CHOOSE = """
const set = (id, value) => { const e = document.getElementById(id); e.value = value; e.onchange(); };
"""


def make_explanation(num_tokens: int = TOKENS, *, signed: bool = False, tail: str = "") -> Explanation:
    """Random values; all differ, and so do layers and heads."""
    draw = np.random.default_rng(3)
    words = [f"word{number % 97}" for number in range(num_tokens)]
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    shape = (LAYERS, HEADS, num_tokens)
    shift = 0.5 if signed else 0.0

    def values(*more: int) -> Any:
        return (draw.random((*shape, *more)) ** 3 - shift).astype(np.float32)

    return Explanation(
        text=" ".join(words) + tail,
        starts=np.concatenate([[0], ends[:-1] + 1]),
        ends=ends,
        received=values(),
        from_anchor=values(),
        anchor="last" if signed else "first",
        linked=draw.integers(0, num_tokens, (*shape, LINKS)),
        links=values(LINKS),
        gradient=draw.standard_normal(num_tokens).astype(np.float32),
        model="Model<b>",
        task="fill-mask",
        num_windows=1,
        note="Orange & blue.",
    )


def data_of(page: str) -> Any:
    found = re.search(r'id="data">(.*?)</script>', page, flags=re.S)
    assert found is not None
    return json.loads(found[1])


def unpack(packed: dict[str, Any], shape: tuple[int, ...]) -> Any:
    flat = np.frombuffer(base64.b64decode(packed["values"]), np.uint8).astype(float) - 128 * packed["signed"]
    scaled = flat.reshape(packed["layers"] * packed["heads"], -1) * np.array(packed["scales"])[:, None]
    return scaled.reshape(shape)


@pytest.mark.parametrize("signed", [False, True])
def test_the_page_holds_every_token_and_value(signed: bool) -> None:
    found = make_explanation(50, signed=signed, tail=" </script><b>&amp;")
    page = page_of(found)
    assert page.count("</script>") == 2, "the document cannot end the script"
    assert not re.search(r"https?://|src=|href=|@import|url\(", page), "self-contained"
    assert "<title>Model&lt;b&gt;, fill-mask</title>" in page
    assert "50 tokens, 1 window<" in page
    assert "Orange &amp; blue." in page
    data = data_of(page)
    assert "".join(data["characters"]) == found.text
    anchor = "attention of the last token" if signed else "attention of the first token"
    for name, values in (("attention received", found.received), (anchor, found.from_anchor),
                         ("gradient × input", found.gradient[None, None])):  # fmt: skip
        assert np.abs(unpack(data["maps"][name], values.shape) - values).max() <= np.abs(values).max() / 127
    assert np.abs(unpack(data["links"], found.links.shape) - found.links).max() <= np.abs(found.links).max() / 127
    keys = np.frombuffer(base64.b64decode(data["links"]["keys"]), "<u2")
    assert (keys.reshape(found.linked.shape) == found.linked).all()


def test_tokens_beyond_16_bits_have_wide_links() -> None:
    num_tokens = (1 << 16) + 2
    shape = (1, 1, num_tokens)
    linked = np.full((*shape, 1), num_tokens - 1)
    ones = np.ones(shape, np.float32)
    starts = np.arange(num_tokens)
    found = Explanation("a" * num_tokens, starts, starts + 1, ones, ones, "first", linked, ones[..., None],
                        ones[0, 0], "M", "t", 1, "")  # fmt: skip
    links = data_of(page_of(found))["links"]
    assert links["wide"] is True
    assert (np.frombuffer(base64.b64decode(links["keys"]), "<u4") == num_tokens - 1).all()


def backgrounds(dom: str) -> list[tuple[str, str, float]]:
    """Class, title and signed strength of each token."""
    spans = re.findall(r"<span([^>]*)>word\d+</span>", dom)
    found = []
    for attributes in spans:
        values = dict(re.findall(r'(\w+)="([^"]*)"', html.unescape(attributes)))
        color = re.search(r"rgba?\(([^)]*)\)", values["style"])
        assert color is not None
        red, _, _, alpha = (float(part) for part in (color[1] + ", 1").split(",")[:4])
        found.append((values.get("class", ""), values["title"], alpha if red > 100 else -alpha))
    return found


def shares(pixels: Any) -> tuple[float, float]:
    """Shares of the picture that are orange and blue."""
    red, blue = pixels[..., 0].astype(int), pixels[..., 2].astype(int)
    return float((red - blue > 20).mean()), float((blue - red > 20).mean())


def expected_strengths(values: Any, top: float) -> Any:
    return np.clip(values / top, -1, 1) * 0.85


@pytest.mark.parametrize("browser", grid(chromium.browsers(), wide=chromium.browsers()[1:]))
def test_a_layer_and_head_at_4096_tokens_in_chromium(tmp_path: Path, browser: str) -> None:
    found = make_explanation()
    write_page(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(page) < 15e6
    (tmp_path / "all").mkdir()
    (tmp_path / "one").mkdir()
    mean = chromium.show(browser, page, "", tmp_path / "all")
    one = chromium.show(browser, page, CHOOSE + f'set("layer", {LAYER}); set("head", {HEAD});', tmp_path / "one")
    for shown, values in ((mean, found.received.mean(axis=(0, 1))), (one, found.received[LAYER, HEAD])):
        assert f'data-ready="{TOKENS}"' in shown.dom
        tokens = backgrounds(shown.dom)
        assert len(tokens) == TOKENS
        top = np.sort(np.abs(values))[int(0.995 * (TOKENS - 1))]
        assert np.abs(np.array([strength for _, _, strength in tokens]) - expected_strengths(values, top)).max() < 0.02
        number, shown_value = re.fullmatch(r"token (\d+): (\S+)", tokens[9][1]).groups()  # type: ignore[union-attr]
        assert int(number) == 10
        assert float(shown_value) == pytest.approx(values[9], abs=float(np.abs(values).max()) / 100)
        orange, blue = shares(shown.pixels)
        assert orange > 0.04, "shaded"
        assert blue < 0.001
        assert (shown.pixels.min(axis=-1) > 250).mean() > 0.1, "on white"
        assert (shown.pixels.max(axis=-1) < 90).mean() > 0.02, "with black text"
    assert (mean.pixels != one.pixels).any(axis=-1).mean() > 0.03, "another head is another picture"
    assert one.dom.count("<option") == 4 + 13 + 13


@pytest.mark.parametrize("browser", grid(chromium.browsers(), wide=chromium.browsers()[1:]))
def test_a_clicked_token_shows_its_links_and_signs_have_colors(tmp_path: Path, browser: str) -> None:
    found = make_explanation(400, signed=True)
    page = page_of(found)
    click = f'document.querySelectorAll("#text span")[{CHOSEN}].click();'
    script = CHOOSE + click + f'set("layer", {LAYER}); set("head", {HEAD});'
    (tmp_path / "links").mkdir()
    tokens = backgrounds(chromium.show(browser, page, script, tmp_path / "links").dom)
    assert [index for index, (name, _, _) in enumerate(tokens) if name == "chosen"] == [CHOSEN]
    values = np.zeros(400)
    np.add.at(values, found.linked[LAYER, HEAD, CHOSEN], found.links[LAYER, HEAD, CHOSEN])
    strengths = np.array([strength for _, _, strength in tokens])
    assert np.abs(strengths - expected_strengths(values, np.abs(values).max())).max() < 0.02
    assert 1 <= (np.abs(strengths) > 0.01).sum() <= LINKS
    (tmp_path / "signed").mkdir()
    _, blue = shares(chromium.show(browser, page, "", tmp_path / "signed").pixels)
    assert blue > 0.02
    (tmp_path / "gradient").mkdir()
    shown = chromium.show(browser, page, CHOOSE + 'set("what", "gradient × input");', tmp_path / "gradient")
    assert all(share > 0.02 for share in shares(shown.pixels)), "orange adds, blue takes away"
    assert len(re.findall(r"<label hidden", shown.dom)) == 2, "gradients have no layers and heads"
