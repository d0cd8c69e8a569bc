"""The gallery: pages whose Python code runs when the site is built, with what it prints and draws below it.

A page is Markdown that Jupytext reads as a notebook. It runs once; the Chinese page has the same code, which a test
holds it to, and takes over the outputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jupytext
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExecutePreprocessor

#: seconds that a page may take, on a slow and busy machine
SECONDS = 600


def build_gallery(folder: Path, languages: dict[str, str]) -> None:
    """Run the pages of a folder and put the outputs in.

    Args:
        folder: Pages `<name><ending>.md`, which are replaced; pictures are written beside them.
        languages: Ending of the pages by language, that of the pages that run first.

    Raises:
        nbclient.exceptions.CellExecutionError: The code of a page fails.
    """
    endings = list(languages.values())
    for page in sorted(folder.glob("*.md")):
        if any(ending and page.stem.endswith(ending) for ending in endings):
            continue
        notebook = jupytext.read(page)
        runner = ExecutePreprocessor(
            timeout=SECONDS, startup_timeout=SECONDS, kernel_name="python3", extra_arguments=["--log-level=ERROR"]
        )
        runner.preprocess(notebook, {"metadata": {"path": str(folder)}})
        outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
        for ending in endings:
            translated = page.with_name(f"{page.stem}{ending}.md")
            _write(translated, page.stem, jupytext.read(translated), outputs, "../../gallery/" if ending else "")


def _write(page: Path, name: str, notebook: Any, outputs: list[Any], up: str) -> None:
    """Replace a page by itself with outputs. Addresses in HTML, which MkDocs leaves alone, begin with `up`."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, found in zip(cells, outputs, strict=True):
        cell.outputs = found
    notebook.metadata.language_info = {"name": "python"}
    text, resources = MarkdownExporter().from_notebook_node(notebook, {"unique_key": name})
    page.write_text(text.replace('src="explained', f'src="{up}explained'), encoding="utf-8")
    for picture, data in resources["outputs"].items():
        page.with_name(picture).write_bytes(data)
