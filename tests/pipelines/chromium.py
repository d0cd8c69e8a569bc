"""Pages in headless Chromium: what their scripts make of them, and how they look.

The package `kaleido` brings a Chromium that needs nothing of the machine; it is made for drawing plots, but runs any
script that it finds in the folder it is started in. A Chromium or Chrome that is installed is used as well.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 1000, 1400
_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
_SECONDS = 60
#: Loads a page, runs a script in it, and returns the document and a picture of it.
_SCOPE = """
window.kaleido_scopes = {plotly: async spec => {
  const frame = document.createElement("iframe");
  [frame.width, frame.height] = [spec.width, spec.height];
  document.body.append(frame);
  const page = frame.contentDocument;
  page.open(); page.write(spec.html); page.close();
  frame.contentWindow.eval(spec.script);
  const copy = page.documentElement.cloneNode(true);
  copy.querySelectorAll("script").forEach(script => script.remove());
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${spec.width}" height="${spec.height}">`
    + `<foreignObject width="100%" height="100%">${new XMLSerializer().serializeToString(copy)}</foreignObject></svg>`;
  const image = new Image();
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(svg);
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [spec.width, spec.height];
  canvas.getContext("2d").drawImage(image, 0, 0);
  const result = {dom: page.documentElement.outerHTML, picture: canvas.toDataURL("image/png").split(",")[1]};
  return {code: 0, message: null, result: JSON.stringify(result), format: "svg", pdfBgColor: null};
}};
"""


@dataclass(frozen=True, eq=False)
class Shown:
    """A page after a script.

    Attributes:
        dom: The document as HTML.
        pixels: (height, width, 3) 8-bit red, green and blue.
    """

    dom: str
    pixels: np.ndarray[Any, Any]


def browsers() -> list[str]:
    """Chromiums of this machine: that of `kaleido`, and the path of an installed one."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return ["kaleido", *[path for path in found if path is not None][:1]]


def show(browser: str, page: str, script: str, folder: Path) -> Shown:
    """Load a page, then run a script in it.

    Args:
        browser: One of `browsers()`.
        page: The page.
        script: JavaScript.
        folder: An empty folder to work in.
    """
    return _show_in_kaleido(page, script, folder) if browser == "kaleido" else _show_in(browser, page, script, folder)


def _show_in_kaleido(page: str, script: str, folder: Path) -> Shown:
    spec = importlib.util.find_spec("kaleido")
    assert spec is not None
    assert spec.origin is not None
    home = Path(spec.origin).parent / "executable"
    (folder / "js").mkdir()
    (folder / "js" / "kaleido_scopes.js").write_text(_SCOPE)
    places = {"LD_LIBRARY_PATH": home / "lib", "FONTCONFIG_PATH": home / "etc" / "fonts", "XDG_DATA_HOME": home / "xdg"}
    done = subprocess.run(
        [home / "bin" / "kaleido", "plotly", *_FLAGS, "--disable-breakpad", "--allow-file-access-from-files"],
        input=json.dumps({"html": page, "script": script, "width": WIDTH, "height": HEIGHT}) + "\n",
        env={**os.environ, **{name: str(path) for name, path in places.items()}},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=True,
    )
    answer = json.loads(done.stdout.splitlines()[1])
    assert answer["code"] == 0, answer
    result = json.loads(answer["result"])
    return Shown(result["dom"], _pixels(base64.b64decode(result["picture"])))


def _show_in(browser: str, page: str, script: str, folder: Path) -> Shown:
    """Two runs, for one run gives either the document or a screenshot."""
    (folder / "page.html").write_text(page + f"<script>{script}</script>", encoding="utf-8")
    picture = folder / "picture.png"
    address = (folder / "page.html").as_uri()
    common = [
        browser,
        "--headless",
        *_FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={WIDTH},{HEIGHT}",
    ]
    runs = [
        subprocess.run([*common, *flags, address], capture_output=True, text=True, timeout=_SECONDS, check=True)
        for flags in (["--dump-dom"], [f"--screenshot={picture}"])
    ]
    return Shown(runs[0].stdout, _pixels(picture.read_bytes()))


def _pixels(png: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
