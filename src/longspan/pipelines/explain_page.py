"""An explanation as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from longspan.pipelines.explain import Explanation
from longspan.search.shards import atomic_write

_STYLE = """
:root{color-scheme:light}
body{margin:0;font:15px/1.7 system-ui,sans-serif;color:#1b1b1b;background:#fff}
header{position:sticky;top:0;background:#fff;border-bottom:1px solid #ddd;padding:.6rem 1.2rem}
h1{font-size:1rem;margin:0 0 .3rem}
label{margin-right:1rem}
select{font:inherit}
#legend{display:inline-block;width:9rem;height:.8rem;vertical-align:middle;border:1px solid #bbb}
#text{max-width:62rem;margin:1rem auto;padding:0 1.2rem;white-space:pre-wrap;overflow-wrap:anywhere}
#text span{border-radius:2px}
#text span:hover{outline:1px solid #333}
#top{max-width:62rem;margin:0 auto;padding:0 1.2rem 2rem;color:#444}
"""
_SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
const bytes = name => Uint8Array.from(atob(data.maps[name].values), c => c.charCodeAt(0));
const maps = Object.fromEntries(Object.keys(data.maps).map(name => [name, bytes(name)]));
const place = document.getElementById("text"), spans = [];
let at = 0;
const plain = end => { if (end > at) { place.append(data.characters.slice(at, end).join("")); at = end; } };
data.starts.forEach((start, i) => {
  plain(start);
  const span = document.createElement("span");
  span.textContent = data.characters.slice(Math.max(at, start), data.ends[i]).join("");
  at = Math.max(at, data.ends[i]);
  place.append(span);
  spans.push(span);
});
plain(data.characters.length);
const pick = id => document.getElementById(id);
const fill = (id, count, word) => {
  const options = Array.from({length: count}, (_, i) => new Option(word + " " + (i + 1), i));
  pick(id).replaceChildren(new Option("mean of all", -1), ...options);
};
const color = (value, signed) => signed && value < 0
  ? `rgba(33,102,172,${-value})` : `rgba(214,96,10,${value})`;
function values() {
  const name = pick("what").value, map = data.maps[name], all = maps[name], n = spans.length, sum = new Float64Array(n);
  const layers = pick("layer").value < 0 ? [...Array(map.layers).keys()] : [+pick("layer").value];
  const heads = pick("head").value < 0 ? [...Array(map.heads).keys()] : [+pick("head").value];
  for (const l of layers) for (const h of heads) {
    const base = (l * map.heads + h) * n, scale = map.scales[l * map.heads + h];
    for (let i = 0; i < n; i++) sum[i] += (all[base + i] - (map.signed ? 128 : 0)) * scale;
  }
  return sum.map(v => v / (layers.length * heads.length));
}
function draw() {
  const map = data.maps[pick("what").value], v = values();
  const sorted = [...v].map(Math.abs).sort((a, b) => a - b), top = sorted[Math.floor(0.995 * (sorted.length - 1))] || 1;
  spans.forEach((span, i) => {
    const strength = Math.max(-1, Math.min(1, v[i] / top));
    span.style.background = color(strength * 0.85, map.signed);
    span.title = `token ${i + 1}: ${v[i].toExponential(2)}`;
  });
  const best = [...v.keys()].sort((a, b) => Math.abs(v[b]) - Math.abs(v[a])).slice(0, 12);
  pick("top").textContent = "Strongest: " + best.map(i => spans[i].textContent.trim() || "(blank)").join(" · ");
}
function change() {
  const map = data.maps[pick("what").value];
  fill("layer", map.layers > 1 ? map.layers : 0, "layer");
  fill("head", map.heads > 1 ? map.heads : 0, "head");
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
    with atomic_write(output, output.with_name(f".{output.name}.partial")) as file:
        file.write(page_of(explanation).encode("utf-8"))


def page_of(explanation: Explanation) -> str:
    """The page: the document with its tokens shaded, and a choice of what shades them, by layer and head.

    Values are kept as 8 bits, scaled for each layer and head: 4,096 tokens of 12 layers and 12 heads take 1.6 MB.
    """
    data = {
        "characters": list(explanation.text),
        "starts": explanation.starts.tolist(),
        "ends": explanation.ends.tolist(),
        "maps": {
            "attention received": _packed(explanation.received, signed=bool((explanation.received < 0).any())),
            "attention of the first token": _packed(explanation.from_first, signed=False),
            "gradient × input": _packed(explanation.gradient[None, None], signed=True),
        },
    }
    content = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    choices = "".join(f"<option>{html.escape(name)}</option>" for name in data["maps"])
    title = html.escape(f"{explanation.model}, {explanation.task}")
    count = f"{len(explanation.starts):,} tokens, {explanation.num_windows} window(s)"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>
<body><header><h1>{title} — {count}</h1>
<label>Shade by <select id="what">{choices}</select></label><label>Layer <select id="layer"></select></label>
<label>Head <select id="head"></select></label></header>
<main id="text"></main><p id="top"></p>
<script type="application/json" id="data">{content}</script><script>{_SCRIPT}</script></body></html>
"""


def _packed(values: npt.NDArray[np.float32], *, signed: bool) -> dict[str, object]:
    """(L, A, T) values as bytes with a scale for each layer and head."""
    num_layers, num_heads, num_tokens = values.shape
    flat = values.reshape(-1, num_tokens).astype(np.float64)
    steps = 127 if signed else 255
    scales = np.maximum(np.abs(flat).max(axis=1, initial=0.0), 1e-30) / steps
    quantized = np.rint(flat / scales[:, None]) + (128 if signed else 0)
    encoded = base64.b64encode(np.clip(quantized, 0, 255).astype(np.uint8).tobytes()).decode("ascii")
    return {"layers": num_layers, "heads": num_heads, "signed": signed, "scales": scales.tolist(), "values": encoded}
