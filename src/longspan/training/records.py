"""Records to learn from: tables, JSON lines, folders by label, CoNLL columns, SQuAD JSON, and objects in memory."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longspan.documents.document import Document, Problem, UnreadableError
from longspan.documents.limits import ReadLimits
from longspan.documents.readers import read_documents, read_records
from longspan.documents.streams import read_content
from longspan.documents.walk import Filters, SourceFile, find_files
from longspan.errors import InputError

_TABLES = ("jsonl", "csv", "parquet")
_CONLL_DOCUMENT = "-DOCSTART-"
_IN_MEMORY = "data"


@dataclass(frozen=True)
class Record:
    """One thing to learn from.

    Attributes:
        values: Its columns.
        path: File that it is from.
        line: Line or row there, counted from 1; None for a whole file.
    """

    values: Mapping[str, Any]
    path: str
    line: int | None = None

    def problem(self, error: InputError) -> Problem:
        """The record as one that cannot be used."""
        return Problem(self.path, str(error), self.line)


def records_of(
    data: Any, *, layout: str = "", text_field: str = "text", label_field: str = "label"
) -> Iterator[Record | Problem]:
    """All records of files, folders or an iterable.

    Args:
        data: A path or several; or any iterable of mappings, such as a `datasets.Dataset`.
        layout: What text files are: `"conll"` (columns), `"squad"` (JSON), or documents whose folder is their label.
        text_field: Column that the text of a document goes to.
        label_field: Column that the label of a document goes to.

    Returns:
        A `Record`, or a `Problem` for what cannot be read, in order, each when it is asked for.

    Raises:
        InputError: a path does not exist, or `data` is none of these.
    """
    paths = [data] if isinstance(data, str | os.PathLike) else data
    if isinstance(paths, Sequence) and paths and all(isinstance(path, str | os.PathLike) for path in paths):
        return _of_paths([Path(path) for path in paths], layout, text_field, label_field)
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise InputError(f"data must be paths or an iterable of mappings. Received: {type(data).__name__}")
    return (
        Record(values, _IN_MEMORY, row)
        if isinstance(values, Mapping)
        else Problem(_IN_MEMORY, f"each record must be a mapping. Received: {type(values).__name__}", row)
        for row, values in enumerate(data, start=1)
    )


def _of_paths(paths: list[Path], layout: str, text_field: str, label_field: str) -> Iterator[Record | Problem]:
    for path in paths:
        include = ("*.conll", "*.iob", "*.bio", "*.txt", "*.tsv") if layout == "conll" and path.is_dir() else ()
        found = find_files([path], Filters(include=include, tables=True))
        yield from found.problems
        for source in found.files:
            try:
                if layout == "conll" and source.path.suffix not in (".jsonl", ".csv", ".parquet"):
                    yield from _conll(source)
                elif source.kind in _TABLES:
                    yield from _of_table(source)
                elif layout == "squad":
                    yield from _squad(source)
                else:
                    label = source.path.relative_to(path).parts[0] if source.path.parent != path else ""
                    for document in read_documents(source):
                        yield _of_document(document, source, {label_field: label} if label else {}, text_field)
            except UnreadableError as error:
                yield Problem(source.name, error.reason, error.line)
            except (OSError, EOFError, zlib.error) as error:
                yield Problem(source.name, f"cannot be read: {getattr(error, 'strerror', None) or error}")


def _of_table(source: SourceFile) -> Iterator[Record | Problem]:
    for line, record in read_records(source, ReadLimits()):
        if isinstance(record, UnreadableError):
            yield Problem(source.name, record.reason, line)
        elif not isinstance(record, Mapping):
            yield Problem(source.name, f"a record must be an object. Received: {type(record).__name__}", line)
        else:
            yield Record(record, source.name, line)


def _of_document(
    document: Document | Problem, source: SourceFile, label: dict[str, str], text_field: str
) -> Record | Problem:
    if isinstance(document, Problem):
        return document
    return Record({text_field: document.text, **label}, source.name)


def _text(source: SourceFile) -> str:
    try:
        return read_content(source, ReadLimits().bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"no valid UTF-8 (byte {error.start})") from error


def _conll(source: SourceFile) -> Iterator[Record | Problem]:
    """Columns at white space or tabs, the word first and its label last; a blank line ends a sequence."""
    words: list[str] = []
    labels: list[str] = []
    begin, broken = 1, None
    for line, row in enumerate([*_text(source).splitlines(), ""], start=1):
        columns = row.split("\t") if "\t" in row else row.split()
        if not row.strip() or columns[0] == _CONLL_DOCUMENT:
            if broken is not None:
                yield broken
            elif words:
                yield Record({"words": words, "labels": labels}, source.name, begin)
            words, labels, begin, broken = [], [], line + 1, None
        elif len(columns) < 2 or not columns[0].strip() or not columns[-1].strip():
            broken = broken or Problem(source.name, f"a line must have a word and a label. Received: {row!r}", line)
        else:
            words.append(columns[0])
            labels.append(columns[-1].strip())


def _squad(source: SourceFile) -> Iterator[Record | Problem]:
    """Questions of SQuAD's JSON, versions 1 and 2."""
    try:
        data = json.loads(_text(source))
        articles = data["data"]
        paragraphs = [
            (f"data[{i}].paragraphs[{j}]", paragraph)
            for i, article in enumerate(articles)
            for j, paragraph in enumerate(article["paragraphs"])
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UnreadableError(f'no SQuAD JSON, {{"data": [{{"paragraphs": [...]}}]}} ({reason})') from error
    number = 0
    for place, paragraph in paragraphs:
        questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
        if not isinstance(questions, list):
            yield Problem(source.name, f"{place} must have a list qas")
            continue
        for index, question in enumerate(questions):
            number += 1
            if not isinstance(question, dict):
                yield Problem(source.name, f"{place}.qas[{index}] must be an object", number)
                continue
            answers = [] if question.get("is_impossible") else question.get("answers")
            values = {"question": question.get("question"), "context": paragraph.get("context"), "answers": answers}
            yield Record(values, source.name, number)
