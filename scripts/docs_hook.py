"""What `mkdocs build` adds to docs/: the reference of the API, figures, pages for files that pages link to.

On a code host the links of the pages lead to those files themselves; in the site to `source/<path>.html`, with the
lines numbered, so that everything can be read offline.
"""

from __future__ import annotations

import functools
import html
import posixpath
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import markdown
from markdown.extensions.toc import slugify, unique
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound

sys.path.insert(0, str(Path(__file__).parent))
import docs_api
import docs_gallery

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(?:#L(\d+))?\)")
BLOCK = re.compile(r"^```.*?^```$", flags=re.M | re.S)
LANGUAGES = {"en": "", "zh": ".zh"}
#: characters and marks of Chinese
_CHINESE = "\u3000-\u303f\u4e00-\u9fff\uff00-\uffef"
#: files outside docs/ that pages link to
_linked: set[str] = set()
#: public name -> page of the reference
_pages = {name: page for page, names in docs_api.page_names().items() for name in names}


@functools.cache
def make_copy() -> Path:
    """A copy of docs/ with the reference of the API and the gallery; once, though each language is a build."""
    copy = ROOT / "build" / "docs"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(DOCS, copy)
    (copy / "api").mkdir()
    for language, end in LANGUAGES.items():
        for page, text in docs_api.pages(language).items():
            (copy / "api" / f"{page}{end}.md").write_text(text, encoding="utf-8")
    docs_gallery.build_gallery(copy / "gallery", LANGUAGES)
    for page in copy.rglob("*.zh.md"):
        if page.parent.name != "api":  # these name their anchors themselves
            original = page.with_name(page.name.replace(".zh.md", ".md"))
            texts = [one.read_text(encoding="utf-8") for one in (page, original)]
            page.write_text(without_breaks(with_anchors(*texts)), encoding="utf-8")
    return copy


def on_config(config: Any) -> Any:
    """Build from the copy, and list the pages of folders."""
    config.docs_dir = str(make_copy())
    listed = {
        "Guides": [f"guides/{path.name}" for path in sorted((DOCS / "guides").glob("*.md"))],
        "Examples": [f"examples/{path.name}" for path in sorted((DOCS / "examples").glob("*.md"))],
        "Gallery": [f"gallery/{path.name}" for path in sorted((DOCS / "gallery").glob("*.md"))],
        "Reference": ["api/index.md", *(f"api/{page}.md" for page in docs_api.page_names())],
    }
    for entry in config.nav:
        for name, pages in listed.items():
            if isinstance(entry, dict) and name in entry:
                entry[name] = [page for page in pages if ".zh." not in page]
    config.nav = [entry for entry in config.nav if isinstance(entry, str) or all(entry.values())]
    return config


def on_page_markdown(text: str, page: Any, config: Any, files: Any) -> str:
    """Mark links that leave docs/, which MkDocs cannot follow."""
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def mark(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link.group(1)))
        if path.startswith(("docs/", "..")):
            return link.group()
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {path}, which does not exist")
        _linked.add(path)
        return f"](source:{path}{f'#L-{link.group(2)}' if link.group(2) else ''})"

    return LINK.sub(mark, text)


def with_anchors(text: str, original: str) -> str:
    """A translation whose headings, one for one those of the original, have the anchors of those."""
    used: set[str] = set()
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", original), flags=re.M)
    anchors = iter([unique(slugify(re.sub(r"[`*]", "", heading), "-"), used) for heading in headings])
    pattern = re.compile(f"{BLOCK.pattern}|^(#+ [^\n]*)$", flags=re.M | re.S)
    return pattern.sub(lambda one: f"{one.group(1)} {{: #{next(anchors)} }}" if one.group(1) else one.group(), text)


def without_breaks(text: str) -> str:
    """Chinese whose lines are joined: a browser shows a break between two characters as a space."""
    pattern = re.compile(f"{BLOCK.pattern}|(?<=[{_CHINESE}])\n *(?=[{_CHINESE}])", flags=re.M | re.S)
    return pattern.sub(lambda one: one.group() if one.group().startswith("```") else "", text)


def on_page_content(text: str, page: Any, config: Any, files: Any) -> str:
    """Turn marked links into relative ones, and names into links to the reference."""
    up = "../" * page.url.count("/")
    text = re.sub(r'href="source:([^"#]+)', lambda link: f'href="{up}source/{link.group(1)}.html', text)
    root = up + ("zh/" if page.url.startswith("zh/") else "")

    def to_reference(match: re.Match[str]) -> str:
        name = match.group(1)
        return f'<a href="{root}api/{_pages[name]}.html#{name.lower()}">{match.group()}</a>' if name in _pages else (
            match.group()
        )  # fmt: skip

    # not in headings, links and tables of contents
    return re.sub(r"(?<=[\s>(（，、。：])(?<!\">)<code>(\w+)</code>(?!</a>|</h)", to_reference, text)


def on_post_build(config: Any) -> None:
    """Write the pages of linked files."""
    for path in sorted(_linked):
        target = Path(config.site_dir) / "source" / f"{path}.html"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source_page(ROOT / path, path), encoding="utf-8")


def source_page(file: Path, title: str) -> str:
    """A file or folder as a page."""
    if file.is_dir():
        body = "<ul>" + "".join(f"<li>{html.escape(one.name)}</li>" for one in sorted(file.iterdir())) + "</ul>"
    elif file.suffix == ".md":
        body = markdown.markdown(file.read_text(encoding="utf-8"), extensions=["tables", "fenced_code"])
    else:
        try:
            lexer = get_lexer_for_filename(file.name)
        except ClassNotFound:
            lexer = TextLexer()
        formatter = HtmlFormatter(linenos="inline", lineanchors="L", anchorlinenos=True)
        body = highlight(file.read_text(encoding="utf-8"), lexer, formatter)
    light, dark = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("default", "monokai"))
    return (
        f'<!doctype html><html><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width"><style>:root{color-scheme:light dark}'
        "body{max-width:75rem;margin:1rem auto;padding:0 1rem;font-family:sans-serif;overflow-x:auto}"
        "table{border-collapse:collapse}td,th{border:1px solid #8888;padding:.2rem .5rem}"
        f"{light}@media(prefers-color-scheme:dark){{{dark}}}</style></head>"
        f"<body><h1>{html.escape(title)}</h1>{body}</body></html>"
    )
