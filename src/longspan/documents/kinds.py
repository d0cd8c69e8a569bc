"""Which files are read, and as what, by the ends of their names."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

#: How a file is read.
Kind = Literal["text", "python", "html", "pdf", "jsonl", "csv", "parquet"]

_PROSE = "txt text md markdown mdx rst adoc asciidoc org tex bib log srt vtt po pot"
_CODE = (
    "c h cc cpp cxx hpp hh hxx cu cuh m mm java kt kts scala groovy clj cljs cs fs fsx vb go rs swift dart zig nim d "
    "js mjs cjs jsx ts tsx vue svelte css scss sass less php rb pl pm lua r jl ex exs erl hrl hs lhs ml mli lisp el "
    "scm sql sh bash zsh fish ps1 bat cmd tcl awk f f90 f95 for pas adb ads asm s v sv vhd vhdl proto thrift graphql "
    "cmake mk gradle bazel bzl nix tf"
)
_DATA = "json yaml yml toml ini cfg conf properties csv tsv xml xsd xsl plist"
_PYTHON = "py pyi pyw pyx pxd"
_HTML = "html htm xhtml"

_KINDS: dict[str, Kind] = {
    **dict.fromkeys(f"{_PROSE} {_CODE} {_DATA}".split(), "text"),
    **dict.fromkeys(_PYTHON.split(), "python"),
    **dict.fromkeys(_HTML.split(), "html"),
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "pdf": "pdf",
}

#: Files that are tables of records, if they are asked for as such.
_TABLES: dict[str, Kind] = {"csv": "csv", "tsv": "csv", "parquet": "parquet"}

#: Names without a suffix that are text in practice.
_PLAIN_NAMES = (
    "readme license licence copying authors contributors changelog changes news notice install todo history "
    "makefile dockerfile jenkinsfile rakefile gemfile vagrantfile procfile"
)
_TEXT_NAMES = frozenset(_PLAIN_NAMES.split())


def kind_of(name: str, *, tables: bool = False) -> Kind | None:
    """How to read a file of this name, or None if the name does not say that it is text.

    A last suffix `.gz` is taken off first: `notes.txt.gz` is read as `notes.txt`.

    Args:
        name: Name or path of the file.
        tables: Read csv, tsv and parquet files as tables of records; else csv and tsv are plain text.
    """
    path = PurePath(name)
    if path.suffix.lower() == ".gz":
        path = path.with_suffix("")
    if tables and path.suffix[1:].lower() in _TABLES:
        return _TABLES[path.suffix[1:].lower()]
    if path.suffix:
        return _KINDS.get(path.suffix[1:].lower())
    return "text" if path.name.lower() in _TEXT_NAMES else None
