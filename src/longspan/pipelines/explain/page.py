"""An explanation as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import html
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longspan.pipelines.explain.explanation import Explanation
from longspan.search.shards import atomic_write

Floats = npt.NDArray[np.float32]
_LINKS = "attention of the chosen token"
_GRADIENT = "gradient × input"

_STYLE = """
:root{color-scheme:light}
body{margin:0;font:15px/1.7 system-ui,sans-serif;color:#1b1b1b;background:#fff}
header{position:sticky;top:0;background:#fff;border-bottom:1px solid #ddd;padding:.6rem 1.2rem}
h1{font-size:1rem;margin:0 0 .3rem}
label{margin-right:1rem}
select{font:inherit}
#bar{display:inline-block;width:7rem;height:.8rem;vertical-align:middle;border:1px solid #bbb}
#note{margin:.3rem 0 0;color:#555;font-size:.85rem}
#text{max-width:62rem;margin:1rem auto;padding:0 1.2rem;white-space:pre-wrap;overflow-wrap:anywhere}
#text span{border-radius:2px}
#text span:hover{outline:1px solid #333;cursor:pointer}
#text span.chosen{outline:2px solid #333}
#top{max-width:62rem;margin:0 auto;padding:0 1.2rem 2rem;color:#444}
"""
_SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const LINKS = "attention of the chosen token", links = data.links;
const keys = links.wide ? new Uint32Array(bytes(links.keys).buffer) : new Uint16Array(bytes(links.keys).buffer);
const maps = Object.fromEntries(Object.keys(data.maps).map(name => [name, bytes(data.maps[name].values)]));
maps[LINKS] = bytes(links.values);
data.maps[LINKS] = links;
let chosen = 0;
const place = document.getElementById("text"), spans = [];
let at = 0;
const plain = end => { if (end > at) { place.append(data.characters.slice(at, end).join("")); at = end; } };
data.starts.forEach((start, i) => {
  plain(start);
  const span = document.createElement("span");
  span.textContent = data.characters.slice(Math.max(at, start), data.ends[i]).join("");
  at = Math.max(at, data.ends[i]);
  span.onclick = () => { chosen = i; pick("what").value = LINKS; change(); };
  place.append(span);
  spans.push(span);
});
plain(data.characters.length);
const pick = id => document.getElementById(id);
const fill = (id, count, word) => {
  const old = pick(id).value, options = Array.from({length: count}, (_, i) => new Option(word + " " + (i + 1), i));
  pick(id).replaceChildren(new Option("mean of all", -1), ...options);
  pick(id).value = old !== "" && old < count ? old : -1;
  pick(id).parentElement.hidden = count < 2;
};
const color = (value, signed) => signed && value < 0
  ? `rgba(33,102,172,${-value})` : `rgba(214,96,10,${value})`;
const range = (id, count) => pick(id).value < 0 ? [...Array(count).keys()] : [+pick(id).value];
function values() {
  const name = pick("what").value, map = data.maps[name], all = maps[name], n = spans.length, sum = new Float64Array(n);
  const layers = range("layer", map.layers), heads = range("head", map.heads), zero = map.signed ? 128 : 0;
  for (const l of layers) for (const h of heads) {
    const row = l * map.heads + h, scale = map.scales[row];
    if (name === LINKS) {
      const base = (row * n + chosen) * map.count;
      for (let i = base; i < base + map.count; i++) sum[keys[i]] += (all[i] - zero) * scale;
    } else {
      for (let i = 0; i < n; i++) sum[i] += (all[row * n + i] - zero) * scale;
    }
  }
  return sum.map(v => v / (layers.length * heads.length));
}
function draw() {
  const name = pick("what").value, map = data.maps[name], v = values();
  const sorted = [...v].map(Math.abs).sort((a, b) => a - b);
  const top = (name === LINKS ? sorted[sorted.length - 1] : sorted[Math.floor(0.995 * (sorted.length - 1))]) || 1e-30;
  spans.forEach((span, i) => {
    span.style.background = color(Math.max(-1, Math.min(1, v[i] / top)) * 0.85, map.signed);
    span.title = `token ${i + 1}: ${v[i].toExponential(2)}`;
    span.className = name === LINKS && i === chosen ? "chosen" : "";
  });
  const best = [...v.keys()].sort((a, b) => Math.abs(v[b]) - Math.abs(v[a])).slice(0, 12).filter(i => v[i] !== 0);
  pick("top").textContent = "Strongest: " + best.map(i => spans[i].textContent.trim() || "(blank)").join(" · ");
  const ends = [color(map.signed ? -0.85 : 0, true), "#fff0", color(0.85)];
  pick("bar").style.background = `linear-gradient(to right,${ends.join()})`;
  pick("low").textContent = map.signed ? (-top).toExponential(1) : "0";
  pick("high").textContent = "≥ " + top.toExponential(1);
}
function change() {
  const map = data.maps[pick("what").value];
  fill("layer", map.layers, "layer");
  fill("head", map.heads, "head");
  draw();
}
pick("what").onchange = change;
pick("layer").onchange = pick("head").onchange = draw;
change();
document.body.dataset.ready = spans.length;
"""


def write_page(explanation: Explanation, output: Path) -> None:
    """Write the page, atomically.

    Args:
        explanation: What to show.
        output: The HTML file.
    """
    with atomic_write(output, output.with_name(f".{output.name}.{os.getpid()}.partial")) as file:
        file.write(page_of(explanation).encode("utf-8"))


def page_of(explanation: Explanation) -> str:
    """The page: the document with its tokens shaded, and a choice of what shades them, by layer and head.

    Values are kept as 8 bits, scaled for each layer and head: 4,096 tokens of 12 layers and 12 heads take 6.5 MB, of
    which 4.7 are the links that a click on a token shows.
    """
    received, anchored = explanation.received, explanation.from_anchor
    data = {
        "characters": list(explanation.text),
        "starts": explanation.starts.tolist(),
        "ends": explanation.ends.tolist(),
        "maps": {
            "attention received": _packed(received, signed=bool((received < 0).any())),
            f"attention of the {explanation.anchor} token": _packed(anchored, signed=bool((anchored < 0).any())),
            _GRADIENT: _packed(explanation.gradient[None, None], signed=True),
        },
        "links": _packed_links(explanation),
    }
    content = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    names = sorted(data["maps"], key=lambda name: explanation.query == "" or name != _GRADIENT)  # a query: that first
    choices = "".join(f"<option>{html.escape(name)}</option>" for name in (*names, _LINKS))
    title = html.escape(f"{explanation.model}, {explanation.task}")
    num_windows = explanation.num_windows
    count = f"{len(explanation.starts):,} tokens, {num_windows} {'window' if num_windows == 1 else 'windows'}"
    asked = f"What matches: {explanation.query!r}." if explanation.query else explanation.note
    note = html.escape(f"{asked} Click a token to see what it looks at most.".strip())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>
<body><header><h1>{title} — {count}</h1>
<label>Shade by <select id="what">{choices}</select></label><label>Layer <select id="layer"></select></label>
<label>Head <select id="head"></select></label>
<span id="low"></span> <span id="bar"></span> <span id="high"></span><p id="note">{note}</p></header>
<main id="text"></main><p id="top"></p>
<script type="application/json" id="data">{content}</script><script>{_SCRIPT}</script></body></html>
"""


def _packed(values: Floats, *, signed: bool) -> dict[str, Any]:
    """(L, A, ...) values as bytes with a scale for each layer and head."""
    num_layers, num_heads = values.shape[:2]
    flat = values.reshape(num_layers * num_heads, -1).astype(np.float64)
    steps = 127 if signed else 255
    scales = np.maximum(np.abs(flat).max(axis=1, initial=0.0), 1e-30) / steps
    quantized = np.rint(flat / scales[:, None]) + (128 if signed else 0)
    encoded = _encode(np.clip(quantized, 0, 255).astype(np.uint8))
    return {"layers": num_layers, "heads": num_heads, "signed": signed, "scales": scales.tolist(), "values": encoded}


def _packed_links(explanation: Explanation) -> dict[str, Any]:
    """Links like values, with the tokens that they lead to as numbers of 16 or 32 bits."""
    is_wide = len(explanation.starts) > 1 << 16
    keys = explanation.linked.astype(np.uint32 if is_wide else np.uint16)
    packed = _packed(explanation.links, signed=bool((explanation.links < 0).any()))
    return {**packed, "count": keys.shape[-1], "wide": is_wide, "keys": _encode(keys)}


def _encode(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode("ascii")
