"""Tasks on files: what of a document a task reads, and the rows of a table that its results become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from longspan.documents.document import Document

#: Where a row is from: its file, record of the file (from 0), and line or page of the file.
PLACE_COLUMNS = {"path": "string", "record": "int64", "line": "int64", "page": "int64"}


@dataclass(frozen=True)
class FileTask:
    """How a task works on files.

    Attributes:
        task: Name of the task.
        columns: Columns of its rows after those of the place, with their types.
        item: Makes an input of the pipeline of a document and the extra arguments of the run.
        rows: Makes rows of a result.
    """

    task: str
    columns: dict[str, str]
    item: Callable[[Document, Mapping[str, Any]], Any]
    rows: Callable[[Any], list[dict[str, Any]]]

    def table(self, document: Document, path: str, record: int, result: Any) -> list[dict[str, Any]]:
        """The rows of one document, with their places: that of a span where it begins, else of the document."""
        rows = []
        for values in self.rows(result):
            character = np.array([values.get("start", 0)], np.int64)
            number = int(document.lines.numbers_at(character)[0])
            place = {"path": path, "record": record, document.unit: number}
            if "start" in values and "text" in self.columns:
                values = {**values, "text": document.text[values["start"] : values["end"]]}
            rows.append(place | {name: values[name] for name in self.columns})
        return rows


def _text(document: Document, extra: Mapping[str, Any]) -> str:
    return document.text


def _question(document: Document, extra: Mapping[str, Any]) -> dict[str, Any]:
    return {"question": _given(document, extra, "question"), "context": document.text}


def _choices(document: Document, extra: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": document.text, "choices": _given(document, extra, "choices")}


def _given(document: Document, extra: Mapping[str, Any], name: str) -> Any:
    """What the run says, else what the record says."""
    return (document.record or {}).get(name) if extra.get(name) is None else extra[name]


def _ranked(result: Any) -> list[dict[str, Any]]:
    results = result if isinstance(result, list) else [result]
    return [{"rank": rank, **values} for rank, values in enumerate(results, start=1)]


def _entities(result: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"label": entity.get("entity_group", entity.get("entity")), **entity} for entity in result]


def _proposals(result: Any) -> list[dict[str, Any]]:
    of_masks = result if result and isinstance(result[0], list) else [result]
    return [{"mask": mask, **row} for mask, proposals in enumerate(of_masks) for row in _ranked(proposals)]


FILE_TASKS = {
    "classify": FileTask(
        "text-classification", {"rank": "int64", "label": "string", "score": "double"}, _text, _ranked
    ),
    "tag": FileTask(
        "token-classification",
        {"label": "string", "score": "double", "text": "string", "start": "int64", "end": "int64"},
        _text,
        _entities,
    ),
    "answer": FileTask(
        "question-answering",
        {"rank": "int64", "answer": "string", "score": "double", "start": "int64", "end": "int64"},
        _question,
        _ranked,
    ),
    "choose": FileTask(
        "multiple-choice", {"choice": "int64", "answer": "string", "score": "double"}, _choices, lambda result: [result]
    ),
    "fill": FileTask(
        "fill-mask",
        {"mask": "int64", "rank": "int64", "token": "int64", "token_str": "string", "score": "double"},
        _text,
        _proposals,
    ),
}
