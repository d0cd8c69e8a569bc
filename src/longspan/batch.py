"""Tasks on batches of columns, for engines that run them on many machines.

Each class is a callable, batch in, batch out, that Ray `Dataset.map_batches(Embed, fn_constructor_args=…)`,
`datasets.Dataset.map(…, batched=True)` and Spark's `mapInPandas` take as it is. A batch is a dict of columns, a pandas
DataFrame or an Arrow table; the result is of the same kind, with columns added. What is pickled are the arguments: each
process loads the model when the first batch arrives, and keeps it. `datasets` takes the types of columns from the first
batch, in which `error` may be empty: there `with_format("arrow")` comes before `map`, as columns of Arrow have types.

One bad record never costs the others: its results are empty and the column `error` says why.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from longspan.errors import InputError

Columns = dict[str, Any]
#: Types of added columns, which a batch without a good record does not tell.
_ARROW_TYPES = {
    "label": "string", "score": "float64", "answer": "string", "start": "int64", "end": "int64", "summary": "string"
}  # fmt: skip


class BatchTask(ABC):
    """A task on batches of columns.

    Args:
        model: Directory or hub repository; a loaded model cannot travel.
        column: Column with the texts.
        error: Column that is added to say what is wrong with a record, else null; None adds none, and the first bad
            record raises.
        **options: Arguments of what runs the task.

    Raises:
        InputError: `model` is no name or path; a batch lacks a column, or `error` is None and a record breaks a rule.
    """

    #: Columns that are added; a bad record has None there.
    adds: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        column: str = "text",
        error: str | None = "error",
        **options: Any,
    ) -> None:
        if not isinstance(model, str | os.PathLike):
            raise InputError(
                "model must be a directory or a hub repository, which each process loads. "
                f"Received: {type(model).__name__}"
            )
        self.model = os.fspath(model)
        self.column = column
        self.error = error
        self.options = options
        self._prepare()

    def _prepare(self) -> None:
        self._loading = threading.Lock()
        self._loaded: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare()

    @property
    def runner(self) -> Any:
        """What runs the task in this process; loaded once."""
        with self._loading:
            if self._loaded is None:
                self._loaded = self.load()
            return self._loaded

    @abstractmethod
    def load(self) -> Any:
        """Load what runs the task."""

    @abstractmethod
    def results(self, records: Sequence[Any]) -> Iterable[Any]:
        """For each record the values of the columns that are added, by name, or the `InputError` that it raised."""

    def columns_read(self) -> tuple[str, ...]:
        """Names of the columns that the task reads."""
        return (self.column,)

    def record(self, *values: Any) -> Any:
        """The input of one row, from its values in `columns_read`."""
        return values[0]

    def __call__(self, batch: Any) -> Any:
        """Run the task.

        Args:
            batch: A dict of columns of equal length, a pandas DataFrame or an Arrow table.

        Returns:
            A batch of the same kind with the columns of `adds` and the one that `error` names.
        """
        read = [_column(batch, name) for name in self.columns_read()]
        records = [self.record(*values) for values in zip(*read, strict=True)]
        added: dict[str, list[Any]] = {name: [] for name in self.adds}
        errors: list[str | None] = []
        for result in self.results(records) if records else ():
            if isinstance(result, InputError) and self.error is None:
                raise result
            is_bad = isinstance(result, InputError)
            errors.append(str(result) if is_bad else None)
            for name, values in added.items():
                values.append(None if is_bad else result[name])
        columns: Columns = {name: self.finished(name, values) for name, values in added.items()}
        if self.error is not None:
            columns[self.error] = errors
        return _with_columns(batch, columns, {**_ARROW_TYPES, str(self.error): "string"})

    def finished(self, name: str, values: list[Any]) -> Any:
        """An added column, from its values."""
        return values


class Embed(BatchTask):
    """Adds the vector of each text, `embedding`, float32 of length D; a bad record has NaN.

    Args:
        model: A sentence encoder; see `SentenceEncoder` for it and for the options of `encode`.
        column: Column with the texts.
        error: Column that says what is wrong with a record; None raises instead.
        load_options: Arguments of `SentenceEncoder`, e.g. `{"dtype": "bfloat16"}`.
        **options: Arguments of `SentenceEncoder.encode`, e.g. `normalize=True`.

    Example:
        >>> from longspan.batch import Embed
        >>> embed = Embed("./all-MiniLM-L6-v2")  # doctest: +SKIP
        >>> embed({"text": ["one", "two"]})["embedding"].shape  # doctest: +SKIP
        (2, 384)
        >>> dataset.map_batches(Embed, fn_constructor_args=["./all-MiniLM-L6-v2"], concurrency=2)  # doctest: +SKIP
    """

    adds = ("embedding",)

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        column: str = "text",
        error: str | None = "error",
        load_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.load_options = dict(load_options or {})
        super().__init__(model, column=column, error=error, **options)

    def load(self) -> Any:
        """The encoder."""
        from longspan.embeddings.sentence_encoder import SentenceEncoder

        return SentenceEncoder(self.model, **self.load_options)

    def results(self, records: Sequence[Any]) -> Iterable[Any]:
        """A vector for each text."""
        vectors = each(lambda texts: self.runner.encode(texts, **self.options), records)
        return (value if isinstance(value, InputError) else {"embedding": value} for value in vectors)

    def finished(self, name: str, values: list[Any]) -> Any:
        """Vectors in one array (N, D)."""
        empty = np.full(self.runner.dimension, np.nan, np.float32)
        rows = [empty if value is None else np.asarray(value) for value in values]
        return np.stack(rows) if rows else np.zeros((0, len(empty)), np.float32)


class PipelineTask(BatchTask):
    """A task that `longspan.pipeline` runs; options are those of its pipeline.

    Attributes:
        task: Name of the task.
    """

    task: ClassVar[str]

    def load(self) -> Any:
        """The pipeline."""
        from longspan.pipelines.pipeline import pipeline

        return pipeline(self.task, self.model, **self.options)

    def results(self, records: Sequence[Any]) -> Iterable[Any]:
        """Results in the order of the records."""
        for result in self.runner.run(records):
            yield result if isinstance(result, InputError) else self.values(result)

    def values(self, result: Any) -> Any:
        """The values of the columns that are added, from what the pipeline gave."""
        return {name: result[name] for name in self.adds}


class Classify(PipelineTask):
    """Adds the best label of each text, `label`, and its `score`.

    Example:
        >>> from longspan.batch import Classify
        >>> classify = Classify("./my-longformer", column="body")  # doctest: +SKIP
        >>> classify({"body": ["A whole book ..."]})["label"]  # doctest: +SKIP
        ['POSITIVE']
    """

    task = "text-classification"
    adds = ("label", "score")


class Tag(PipelineTask):
    """Adds the entities of each text, `entities`: lists of dicts as of the token-classification pipeline.

    Example:
        >>> from longspan.batch import Tag
        >>> tag = Tag("./my-tagger", aggregation_strategy="simple")  # doctest: +SKIP
        >>> tag({"text": ["Ada was born in London"]})["entities"][0][0]["word"]  # doctest: +SKIP
        'Ada'
    """

    task = "token-classification"
    adds = ("entities",)

    def values(self, result: Any) -> Any:
        """Entities, with plain Python numbers, which every engine stores."""
        return {"entities": [{name: _plain(value) for name, value in entity.items()} for entity in result]}


class Answer(PipelineTask):
    """Adds the answer to a question about each text: `answer`, `score`, and its characters `start` to `end`.

    Args:
        model: A question-answering model.
        column: Column with the texts.
        question: The question about every text, or
        question_column: the column with a question for each.
        error: Column that says what is wrong with a record; None raises instead.
        **options: Arguments of the pipeline.

    Raises:
        InputError: not exactly one of `question` and `question_column` is given.

    Example:
        >>> from longspan.batch import Answer
        >>> answer = Answer("./my-longformer", question="Where was she born?")  # doctest: +SKIP
        >>> answer({"text": ["A whole book ..."]})["answer"]  # doctest: +SKIP
        ['London']
    """

    task = "question-answering"
    adds = ("answer", "score", "start", "end")

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        column: str = "text",
        question: str | None = None,
        question_column: str | None = None,
        error: str | None = "error",
        **options: Any,
    ) -> None:
        if (question is None) == (question_column is None):
            raise InputError(
                "Either question or question_column must be given. "
                f"Received: question={question!r}, question_column={question_column!r}"
            )
        self.question = question
        self.question_column = question_column
        super().__init__(model, column=column, error=error, **options)

    def columns_read(self) -> tuple[str, ...]:
        """The texts and, where each has its own, the questions."""
        return (self.column,) if self.question_column is None else (self.column, self.question_column)

    def record(self, *values: Any) -> Any:
        """A question and its context."""
        return {"context": values[0], "question": self.question if self.question_column is None else values[1]}


class Summarize(PipelineTask):
    """Adds a summary of each text, `summary`.

    Example:
        >>> from longspan.batch import Summarize
        >>> summarize = Summarize("./my-longt5", max_new_tokens=60)  # doctest: +SKIP
        >>> summarize({"text": ["A whole book ..."]})["summary"]  # doctest: +SKIP
        ['A girl follows a rabbit ...']
    """

    task = "summarization"
    adds = ("summary",)

    def results(self, records: Sequence[Any]) -> Iterable[Any]:
        """A summary of each text."""
        for result in each(self.runner, records):
            yield result if isinstance(result, InputError) else {"summary": result["summary_text"]}


def each(run: Callable[[list[Any]], Iterable[Any]], items: Sequence[Any]) -> list[Any]:
    """Results of all items in one go; if one of them breaks a rule, of each, with its `InputError` in its place."""
    try:
        return list(run(list(items)))
    except InputError as error:
        return [error] if len(items) == 1 else [result for item in items for result in each(run, [item])]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _names(batch: Any) -> list[str]:
    return list(batch) if isinstance(batch, Mapping) else [str(name) for name in _frame_columns(batch)]


def _frame_columns(batch: Any) -> Iterable[Any]:
    """Names of the columns of an Arrow table (`column_names`) or a DataFrame (`columns`)."""
    found = getattr(batch, "column_names", None)
    if found is None:
        found = getattr(batch, "columns", None)
    if found is None:
        raise InputError(
            f"A batch must be a dict of columns, a DataFrame or an Arrow table. Received: {type(batch).__name__}"
        )
    return list(found)


def _column(batch: Any, name: str) -> list[Any]:
    """A column as a list."""
    if name not in _names(batch):
        raise InputError(f"A batch must have the column {name!r}. Received: {_names(batch)}")
    column = batch[name]
    if hasattr(batch, "assign"):  # a DataFrame, where what is missing may be NaN
        column = column.astype(object).where(column.notna(), None)
    for method in ("to_pylist", "tolist"):
        if hasattr(column, method):
            return list(getattr(column, method)())
    return list(column)


def _with_columns(batch: Any, columns: Columns, arrow_types: Mapping[str, str]) -> Any:
    """The batch with further columns, of the kind that it is."""
    if isinstance(batch, Mapping):
        return {**batch, **columns}
    listed = {name: list(column) if isinstance(column, np.ndarray) else column for name, column in columns.items()}
    if hasattr(batch, "assign"):  # a DataFrame
        return batch.assign(**listed)
    for name, values in listed.items():
        batch = _set_column(batch, name, values, arrow_types.get(name))
    return batch


def _set_column(table: Any, name: str, values: list[Any], kind: str | None) -> Any:
    """An Arrow table with a column set, of the type that is named `kind`."""
    import pyarrow as pa

    column = pa.array(values) if kind is None else pa.array(values, getattr(pa, kind)())
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)
