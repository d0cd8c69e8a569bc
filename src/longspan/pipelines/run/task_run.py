"""A task on files and folders, resumably: what is done is in a journal, and becomes the output at the end."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longspan.documents.document import Document, Problem, UnreadableError
from longspan.documents.readers import ReadOptions, file_digest, read_documents
from longspan.documents.walk import Filters, SourceFile, absolute_path, find_files
from longspan.errors import InputError
from longspan.pipelines.run.journal import TaskJournal
from longspan.pipelines.run.progress import ProblemError, Progress
from longspan.pipelines.run.tables import FileTask, check_table_name, write_table
from longspan.search.shards import sync_folder
from longspan.search.writer import lock_file

if TYPE_CHECKING:
    from longspan.pipelines.base import Pipeline
    from longspan.pipelines.options import Options

_JOURNAL = "journal.jsonl"
#: A block, the unit of work that a crash can lose, ends at so many documents or characters.
_BLOCK_DOCUMENTS = 64
_BLOCK_CHARACTERS = 1 << 18

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class RunOptions:
    """How a run works.

    Attributes:
        filters: Which files of folders are taken.
        read: How files are read.
        extra: What the task is told for every document, such as the question.
        resume: Go on where an interrupted run stopped.
        overwrite: Replace an output that exists.
        strict: Stop at the first thing that cannot be read or used instead of leaving it out.
        block_documents: Documents of a block, the unit of work that a crash can lose.
    """

    filters: Filters = field(default_factory=lambda: Filters(tables=True))
    read: ReadOptions = field(default_factory=ReadOptions)
    extra: dict[str, Any] = field(default_factory=dict)
    resume: bool = True
    overwrite: bool = False
    strict: bool = False
    block_documents: int = _BLOCK_DOCUMENTS


@dataclass
class RunReport:
    """What a run did.

    Attributes:
        num_documents: Documents with a result, those of earlier runs included.
        num_rows: Rows of the output.
        problems: What was left out.
        notes: Remarks by file, such as an encoding that was assumed.
        was_complete: Nothing was left to do: an earlier run had finished the output and was stopped just then.
    """

    num_documents: int = 0
    num_rows: int = 0
    was_complete: bool = False
    problems: list[Problem] = field(default_factory=list)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Entry:
    """A document or problem, and where it is: which file, which entry of it, which document of it."""

    source: SourceFile
    place: tuple[int, int]
    record: int
    item: Document | Problem


class TaskRun:
    """Runs a task on the documents of files.

    Args:
        task: What is done.
        pipeline: What does it.
        options: How to work.
        settings: Options of the pipeline for this run.
        progress: Told how far the run is.

    Attributes:
        report: What was done.
    """

    def __init__(
        self,
        task: FileTask,
        pipeline: Pipeline,
        *,
        options: RunOptions | None = None,
        settings: Options | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.report = RunReport()
        self._task = task
        self._pipeline = pipeline
        self._options = options or RunOptions()
        self._settings = settings or pipeline.options
        self._progress = progress or Progress()

    def write(self, sources: Sequence[SourceFile], output: Path, *, done: Callable[[], None] | None = None) -> None:
        """Run on files and write the rows to a file.

        The rows appear all at once, under their name, when all is done; what is done so far is beside it meanwhile.

        Args:
            sources: The files.
            output: A `.jsonl`, `.csv` or `.parquet` file.
            done: Called when the output is whole, before what a killed run would need to know that is removed.

        Raises:
            InputError: the output has another ending, exists, or is being written by another run; or what an
                interrupted run left is of other inputs or settings.
            ProblemError: something cannot be used, and `strict` is set.
        """
        check_table_name(output)
        folder = work_folder(output)
        exists = output.exists() and not self._options.overwrite
        if exists and not (folder / _JOURNAL).exists():
            if not folder.exists():
                raise InputError(f"The output must not exist yet (or give --overwrite). Received: {output}")
            self.report.was_complete = True  # a run was killed while it removed its folder
        else:
            folder.mkdir(parents=True, exist_ok=True)
            with lock_file(folder / "lock", output):
                self._write(sources, output, folder, exists=exists)
        if done is not None:
            done()
        _remove(folder)
        sync_folder(output.parent)

    def _write(self, sources: Sequence[SourceFile], output: Path, folder: Path, *, exists: bool) -> None:
        readable, digests = self._digests(sources)
        header = {"inputs": digests, "settings": self.identity()}
        journal = TaskJournal(folder / _JOURNAL, header, resume=self._options.resume)
        begin = self._begin(journal)
        if journal.finished is not None and exists:  # a run was killed just after it had finished
            self.report.was_complete = True
            self.report.num_rows = journal.finished["rows"]
            return
        for rows, problems, entry in self._blocks(readable, begin):
            step = {"rows": rows, "problems": [vars(problem) for problem in problems], "place": list(entry.place)}
            journal.append(step | {"documents": self.report.num_documents})
        self.report.num_rows = write_table(output, folder / "finished.partial", self._task.columns, journal.rows)
        journal.finish({"documents": self.report.num_documents, "rows": self.report.num_rows})

    def stream(self, sources: Sequence[SourceFile], emit: Callable[[Rows], None]) -> None:
        """Run on files and hand the rows on as they come.

        Args:
            sources: The files.
            emit: Takes the rows of each block.
        """
        for rows, _, _ in self._blocks(sources, (0, 0)):
            emit(rows)
            self.report.num_rows += len(rows)

    def _digests(self, sources: Sequence[SourceFile]) -> tuple[list[SourceFile], list[list[str]]]:
        """Files that can be read, and their names and digests."""
        readable, digests = [], []
        for source in sources:
            try:
                digests.append([source.name, file_digest(source)])
            except UnreadableError as error:
                self.report_problem(Problem(source.name, error.reason))
            else:
                readable.append(source)
        return readable, digests

    def _begin(self, journal: TaskJournal) -> tuple[int, int]:
        """Place to begin at, `(file, entry)`: that after the last step of the journal."""
        place = (0, 0)
        for step in journal.steps:
            place = (step["place"][0], step["place"][1])
            self.report.num_documents = step["documents"]
            for problem in step["problems"]:
                self.report_problem(Problem(**problem))
        return place

    def identity(self) -> dict[str, Any]:
        """Everything that results depend on, besides the inputs."""
        options = {name: value for name, value in vars(self._settings).items() if name != "show_progress"}
        values = {
            "task": self._task.task,
            **self._pipeline.identity(),
            "options": options,
            "extra": self._options.extra,
            "read": vars(self._options.read),
            "block": self._options.block_documents,
        }
        parsed: dict[str, Any] = json.loads(json.dumps(values, default=repr))
        return parsed

    def _blocks(
        self, sources: Sequence[SourceFile], begin: tuple[int, int]
    ) -> Iterator[tuple[Rows, list[Problem], _Entry]]:
        """Rows and problems of each block, and its last entry."""
        waiting: deque[list[_Entry]] = deque()

        def items() -> Iterator[list[Any]]:
            for block in self._entries(sources, begin):
                waiting.append(block)
                documents = [entry.item for entry in block if isinstance(entry.item, Document)]
                yield [self._task.item(document, self._options.extra) for document in documents]

        self._progress.start(None, None)
        for results in self._pipeline.run_blocks(items(), options=self._settings, progress=self._progress):
            block = waiting.popleft()
            rows: Rows = []
            problems: list[Problem] = []
            for entry in block:
                item, source = entry.item, entry.source.name
                if isinstance(item, Document):
                    result = next(results)
                    if not isinstance(result, InputError):
                        self.report.num_documents += 1
                        rows += self._task.table(item, source, entry.record, result)
                        continue
                    item = Problem(source, str(result), _line(item))
                problems.append(item)
                self.report_problem(item)
            yield rows, problems, block[-1]

    def _entries(self, sources: Sequence[SourceFile], begin: tuple[int, int]) -> Iterator[list[_Entry]]:
        """Documents and problems from `begin` on, in blocks that depend on what comes after `begin` only."""
        block: list[_Entry] = []
        num_characters = 0
        for number, source in enumerate(sources):
            if number < begin[0]:
                continue
            record = 0
            for index, item in enumerate(read_documents(source, self._options.read)):
                found = _refuse_empty(item, source)
                entry = _Entry(source, (number, index + 1), record, found)
                record += isinstance(item, Document)
                if isinstance(item, Document) and item.notes:
                    self.report.notes[source.name] = item.notes
                if (number, index) < begin:
                    continue
                block.append(entry)
                num_characters += len(item.text) if isinstance(item, Document) else 0
                if len(block) >= self._options.block_documents or num_characters >= _BLOCK_CHARACTERS:
                    yield block
                    block, num_characters = [], 0
        if block:
            yield block

    def report_problem(self, problem: Problem) -> None:
        """Note that something is left out; with `strict` raise `ProblemError`."""
        if self._options.strict:
            raise ProblemError(f"With --strict everything must be usable. Received: {problem}")
        self.report.problems.append(problem)
        self._progress.report(problem)


def find_sources(
    paths: Sequence[Path], filters: Filters, output: Path | None
) -> tuple[list[SourceFile], list[Problem]]:
    """The files to read, and what cannot be read; the output itself is never read."""
    own = set() if output is None else {absolute_path(output), absolute_path(work_folder(output))}
    found = find_files(paths, replace(filters, skip=filters.skip | own))
    return found.files, found.problems


def _refuse_empty(item: Document | Problem, source: SourceFile) -> Document | Problem:
    if isinstance(item, Problem) or item.text.strip():
        return item
    return Problem(source.name, "no text", _line(item))


def _line(document: Document) -> int | None:
    """Line of a record in its file; None for a whole file."""
    return int(document.lines.numbers[0]) if document.record is not None else None


def work_folder(output: Path) -> Path:
    """Where the work on `output` goes."""
    return output.with_name(f".{output.name}.work")


def _remove(folder: Path) -> None:
    for name in ("lock", "finished.partial", _JOURNAL):
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()
