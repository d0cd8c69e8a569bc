"""The tasks that commands do on files: what of a document a task reads, and the rows that its results become.

`open_task` gives what `longspan.pipelines.run.task_run.TaskRun` needs for every command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from longspan.documents.document import Document
from longspan.errors import InputError
from longspan.pipelines.options import check_at_least
from longspan.pipelines.pipeline import pipeline
from longspan.pipelines.run.progress import Progress
from longspan.pipelines.run.ray_pool import RayOptions, RayPool, one_answer
from longspan.pipelines.run.tables import FileTask
from longspan.pipelines.text_generation import GenerationPipeline

_WRITERS = ("summarization", "text2text-generation", "text-generation")
_RANKED = {"rank": "int64", "label": "string", "score": "double"}


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


def _labels(result: dict[str, Any]) -> list[dict[str, Any]]:
    pairs = zip(result["labels"], result["scores"], strict=True)
    return [{"rank": rank, "label": label, "score": score} for rank, (label, score) in enumerate(pairs, start=1)]


def _windows(result: Any) -> list[dict[str, Any]]:
    """A row for each label and window."""
    labels = result if isinstance(result, list) else [result]
    return [
        {"rank": rank, "label": label["label"], "score": label["score"], "window": number, "start": window["start"],
         "end": window["end"], "window_score": window["score"]}
        for rank, label in enumerate(labels, start=1)
        for number, window in enumerate(label["windows"])
    ]  # fmt: skip


def _written(key: str) -> Callable[[Any], list[dict[str, Any]]]:
    return lambda result: [{"rank": rank, "written": each[key]} for rank, each in enumerate(result, start=1)]


_WRITTEN = {"rank": "int64", "written": "string"}
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
    "zero-shot": FileTask("zero-shot-classification", _RANKED, _text, _labels),
    "windows": FileTask(
        "text-classification",
        {**_RANKED, "window": "int64", "start": "int64", "end": "int64", "window_score": "double"},
        _text,
        _windows,
    ),
    "summarize": FileTask("summarization", _WRITTEN, _text, _written("summary_text")),
    "answer-text": FileTask("text2text-generation", _WRITTEN, _text, _written("generated_text")),
    "continue": FileTask("text-generation", _WRITTEN, _text, _written("generated_text")),
}


def open_task(
    name: str, model: dict[str, Any], settings: dict[str, Any], ray: RayOptions | None = None
) -> tuple[FileTask, Any]:
    """The task of a command, and what runs it.

    Args:
        name: A key of `FILE_TASKS`.
        model: Arguments of `pipeline` that name the model.
        settings: Options of the task.
        ray: Run it on this Ray cluster; what is returned is then to be closed.

    Raises:
        InputError: an argument breaks a rule.
        CheckpointNotFoundError: there is no such model.
        ConfigError: the model's family has no class for the task.
    """
    task = FILE_TASKS[name]
    if ray is not None:
        return task, RayRun(name, model, settings, ray)
    if task.task in ("zero-shot-classification", *_WRITERS):
        settings = {key: value for key, value in settings.items() if value is not None}
    if task.task == "zero-shot-classification":
        return task, _open_zero_shot(model, settings)
    if task.task in _WRITERS and "max_length" in settings:  # there this is the length of what is written
        settings["max_input_length"] = settings.pop("max_length")
    run = pipeline(task.task, **model, **settings)
    if not isinstance(run, GenerationPipeline):
        if "ignore_labels" in settings:
            _check_labels(settings["ignore_labels"], run.model.config.id2label)
        return task, run
    return task, TextRun(run, settings, _listed)


def _check_labels(asked: Iterable[str], id2label: dict[int, str]) -> None:
    """Raise `InputError` for a label that no token can get, with or without its mark, such as `B-`."""
    known = {"O", *id2label.values(), *(label[2:] for label in id2label.values() if label[1:2] == "-")}
    unknown = [label for label in asked if label not in known]
    if unknown:
        raise InputError(f"Labels to leave out must be among {', '.join(sorted(known))}. Received: {unknown[0]}")


def _open_zero_shot(model: dict[str, Any], settings: dict[str, Any]) -> TextRun:
    if "stride" in settings:
        raise InputError(f"Zero-shot classification knows no stride. Received: stride={settings['stride']}")
    check_at_least("top_k", settings["top_k"], 1)
    others = {key: value for key, value in settings.items() if key != "top_k"}
    run = pipeline("zero-shot-classification", **model, **others)
    return TextRun(run, settings, lambda found: _top(found, settings["top_k"]))


def _top(found: dict[str, Any], count: int) -> dict[str, Any]:
    return {**found, "labels": found["labels"][:count], "scores": found["scores"][:count]}


def _listed(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found]


class TextRun:
    """What `TaskRun` needs of a pipeline, for one that is called with a list of texts.

    Args:
        call: The pipeline.
        settings: What its results depend on besides.
        finish: Makes of a result what the rows are made of.
    """

    def __init__(self, call: Any, settings: dict[str, Any], finish: Callable[[Any], Any]) -> None:
        self.identity: Callable[[], dict[str, Any]] = call.identity
        self.options = SimpleNamespace(**settings)
        self._call = call
        self._finish = finish

    def run_blocks(
        self, blocks: Iterable[list[Any]], *, options: Any = None, progress: Progress | None = None
    ) -> Iterator[Iterator[Any]]:
        """See `longspan.pipelines.base.Pipeline.run_blocks`."""
        progress = progress or Progress()
        for block in blocks:
            yield iter(self._run(block))
            progress.finish_documents(len(block))

    def _run(self, texts: list[str]) -> list[Any]:
        """Results of texts; if one of them cannot be used, each is tried by itself."""
        if not texts:
            return []
        try:
            return [self._finish(found) for found in self._call(texts)]
        except InputError as error:
            return [error] if len(texts) == 1 else [found for text in texts for found in self._run([text])]


class RayRun:
    """What `TaskRun` needs of a pipeline, for one that runs in the actors of a Ray cluster.

    Blocks go to the actors whole, as they would run in one process: so results are the same, and come in order.

    Args:
        name: A key of `FILE_TASKS`.
        model: Arguments of `pipeline` that name the model; a directory must be there on every machine.
        settings: Options of the task.
        ray: Which cluster, and how many actors.

    Raises:
        LongspanError: what opening the task raises.
        ClusterError: there is no such cluster, or its machines would give different results.
    """

    def __init__(self, name: str, model: dict[str, Any], settings: dict[str, Any], ray: RayOptions) -> None:
        if Path(model["model"] or "").is_dir():
            model = {**model, "model": str(Path(model["model"]).absolute())}
        self._pool = RayPool(partial(_open_run, name, model, settings), ray)
        try:
            (self.options, identity) = one_answer(self._pool.ask(_describe))
        except BaseException:
            self.close()
            raise
        self.identity: Callable[[], dict[str, Any]] = lambda: identity

    def run_blocks(
        self, blocks: Iterable[list[Any]], *, options: Any = None, progress: Progress | None = None
    ) -> Iterator[Iterator[Any]]:
        """See `longspan.pipelines.base.Pipeline.run_blocks`; blocks are read ahead."""
        progress = progress or Progress()
        for results in self._pool.map(_run_block, ((block,) for block in blocks)):
            yield iter(results)
            progress.finish_documents(len(results))

    def close(self) -> None:
        """End the actors."""
        self._pool.close()


def _open_run(name: str, model: dict[str, Any], settings: dict[str, Any]) -> Any:
    return open_task(name, model, settings)[1]


def _describe(run: Any) -> tuple[Any, dict[str, Any]]:
    return run.options, run.identity()


def _run_block(run: Any, block: list[Any]) -> list[Any]:
    return list(next(run.run_blocks([block])))
