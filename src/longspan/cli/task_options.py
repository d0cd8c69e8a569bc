"""Options and the run that the commands of tasks share."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longspan.cli.options import Device, Dtype, Framework, Json, Limit, Quiet, Ray, RayActors, RayAddress, ray_options
from longspan.cli.running import SOMETHING_LEFT_OUT

if TYPE_CHECKING:
    from longspan.documents.document import Problem
    from longspan.documents.walk import SourceFile
    from longspan.pipelines.run.ray_pool import RayOptions
    from longspan.pipelines.run.task_run import RunReport

EXIT_CODES = """
Without --output the rows go to the standard output as JSON lines. Run the same command again to go on after an
interruption. Exit codes: 0 done, 1 failed, 2 not understood, 3 done but something was left out, 130 interrupted
(143 by SIGTERM, 129 by SIGHUP). In csv, text that begins with = + - @ has an apostrophe before it, so that no
program for tables takes it for a formula.
"""
_FILES = "Files"
_MODEL = "Model"
_LONG = "Long documents"

Paths = Annotated[
    list[Path],
    typer.Argument(
        metavar="PATHS",
        help="Files and folders: txt, md, html, pdf, jsonl, csv, parquet and other text; also .gz. - is the standard "
        "input.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="A .jsonl, .csv or .parquet file."),
]
TaskModelName = Annotated[
    str,
    typer.Option("--model", "-m", metavar="NAME", help="Model directory or hub repository.", rich_help_panel=_MODEL),
]
BatchTokens = Annotated[
    int | None, typer.Option(help="Most positions of a batch; default by device.", rich_help_panel=_MODEL)
]
OnLong = Annotated[
    str, typer.Option(help="Texts longer than the model: window, truncate or error.", rich_help_panel=_LONG)
]
Stride = Annotated[
    int | None,
    typer.Option(help="Tokens that neighbouring windows share; default an eighth.", rich_help_panel=_LONG),
]
MaxLength = Annotated[
    int | None,
    typer.Option(help="Most tokens of a window; default as the model says.", rich_help_panel=_LONG),
]
Include = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="Take only such files of folders.", rich_help_panel=_FILES)
]
Exclude = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="Leave out such files and folders.", rich_help_panel=_FILES)
]
TextField = Annotated[
    str, typer.Option(help="Field of records (jsonl, csv, parquet) that holds the text.", rich_help_panel=_FILES)
]
InputFormat = Annotated[
    str,
    typer.Option(help="What the standard input is: txt, html, pdf, jsonl, csv or parquet.", rich_help_panel=_FILES),
]
Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Go on where an interrupted run stopped, or start over.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first thing that cannot be read or used.")]


@dataclass(frozen=True)
class Asked:
    """What the own options of a command say.

    Attributes:
        task: A name that `longspan.pipelines.file_tasks.open_task` knows.
        settings: Options of the task.
        extra: What the task is told for every document.
    """

    task: str
    settings: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)


def task_command(own: Callable[..., Asked]) -> Callable[..., None]:
    """Make a command of a task: to the options of the task come those that all tasks share.

    Args:
        own: Says what is asked for, given its own options. Its name, its documentation and its options are the
            command's; an option of it that has the name of a shared one stands in for that, and both get the value.

    Returns:
        The command.
    """
    return _command(own, lambda call, options: call.run(own(**options)))


def call_command(*, without: Sequence[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command that may run the task or do something else; otherwise as `task_command`.

    Args:
        without: Shared options that the command does not have.

    Returns:
        Makes the command of a function that is given, before its own options, the call.
    """
    return lambda own: _command(own, lambda call, options: own(call, **options), without=without, num_given=1)


def _command(
    own: Callable[..., Any],
    act: Callable[[TaskCall, dict[str, Any]], None],
    *,
    without: Sequence[str] = (),
    num_given: int = 0,
) -> Callable[..., None]:
    """A command with the options of `own`, but for the first `num_given`, and the shared ones; it calls `act`."""
    options = dict(list(inspect.signature(own, eval_str=True).parameters.items())[num_given:])
    shared = dict(inspect.signature(_shared, eval_str=True).parameters)
    head = {name: options.get(name, shared[name]) for name in ("paths", "model", "output")}
    tail = {name: one for name, one in shared.items() if name not in (*options, *without)}
    parameters = list({**head, **options, **tail}.values())

    @functools.wraps(own)
    def command(**given: Any) -> None:
        call = _shared(**{name: value for name, value in given.items() if name in shared})
        settings = {name: value for name, value in call.settings.items() if name not in without}
        act(replace(call, settings=settings), {name: given[name] for name in options})

    del command.__wrapped__
    keyword = inspect.Parameter.KEYWORD_ONLY
    vars(command)["__signature__"] = inspect.Signature([one.replace(kind=keyword) for one in parameters])
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _shared(
    paths: Paths,
    model: TaskModelName,
    output: Output = None,
    framework: Framework = "torch",
    device: Device = None,
    dtype: Dtype = "float32",
    batch_tokens: BatchTokens = None,
    on_long: OnLong = "window",
    stride: Stride = None,
    max_length: MaxLength = None,
    include: Include = None,
    exclude: Exclude = None,
    text_field: TextField = "text",
    input_format: InputFormat = "txt",
    limit: Limit = None,
    ray: Ray = False,
    ray_address: RayAddress = None,
    ray_actors: RayActors = None,
    resume: Resume = True,
    overwrite: Overwrite = False,
    strict: Strict = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> TaskCall:
    """The options that all tasks share."""
    return TaskCall(
        paths or [Path("-")],
        output,
        model={"model": model, "framework": framework, "device": device, "dtype": dtype},
        settings={"batch_tokens": batch_tokens, "on_long": on_long, "stride": stride, "max_length": max_length},
        files={
            "include": include,
            "exclude": exclude,
            "text_field": text_field,
            "input_format": input_format,
            "limit": limit or (),
        },
        ray=ray_options(ray, ray_address, ray_actors),
        resume=resume,
        overwrite=overwrite,
        strict=strict,
        quiet=quiet,
        as_json=as_json,
    )


@dataclass(frozen=True)
class TaskCall:
    """One call of a command.

    Attributes:
        paths: Files and folders.
        output: File to write, or None for the standard output.
        model: Arguments of the pipeline.
        settings: Options of every task.
        files: `include`, `exclude`, `text_field`, `input_format` and `limit`.
        ray: The Ray cluster that runs the task, if one does.
        resume: Go on where an interrupted run stopped.
        overwrite: Replace an output that exists.
        strict: Stop at the first problem.
        quiet: Write nothing but errors and results.
        as_json: Write the summary as JSON.
    """

    paths: list[Path]
    output: Path | None
    model: dict[str, Any]
    settings: dict[str, Any]
    files: dict[str, Any]
    ray: RayOptions | None
    resume: bool
    overwrite: bool
    strict: bool
    quiet: bool
    as_json: bool

    def run(self, asked: Asked) -> None:
        """Do it, print what was done, and leave with exit code 3 if something was left out."""
        from longspan.documents.limits import parse_limits
        from longspan.documents.readers import ReadOptions
        from longspan.documents.walk import Filters
        from longspan.pipelines.file_tasks import open_task
        from longspan.pipelines.run.progress import progress_bar
        from longspan.pipelines.run.tables import check_table_name
        from longspan.pipelines.run.task_run import RunOptions, TaskRun

        if self.output is not None:
            check_table_name(self.output)
        filters = Filters(tuple(self.files["include"] or ()), tuple(self.files["exclude"] or ()), tables=True)
        options = RunOptions(
            filters=filters,
            read=ReadOptions(self.files["text_field"], parse_limits(self.files["limit"])),
            extra=asked.extra,
            resume=self.resume,
            overwrite=self.overwrite,
            strict=self.strict,
        )
        with ExitStack() as stack:
            sources, problems = self._sources(stack, filters)
            task, run = open_task(asked.task, self.model, {**self.settings, **asked.settings}, self.ray)
            if self.ray is not None:
                stack.callback(run.close)
            progress = stack.enter_context(progress_bar(not self.quiet and not self.as_json))
            work = TaskRun(task, run, options=options, progress=progress)
            for problem in problems:
                work.report_problem(problem)
            if self.output is None:
                work.stream(sources, _print_rows)
                self._summarize(work.report)
            else:
                work.write(sources, self.output, done=lambda: self._summarize(work.report))
        if work.report.problems:
            raise typer.Exit(SOMETHING_LEFT_OUT)

    def _sources(self, stack: ExitStack, filters: Any) -> tuple[list[SourceFile], list[Problem]]:
        from longspan.documents.kinds import kind_of
        from longspan.documents.walk import SourceFile
        from longspan.pipelines.run.task_run import find_sources

        if [str(path) for path in self.paths] != ["-"]:
            return find_sources(self.paths, filters, self.output)
        kind = kind_of(f"stdin.{self.files['input_format']}", tables=True)
        if kind is None:
            raise typer.BadParameter(f"{self.files['input_format']!r} is unknown", param_hint="--input-format")
        path = Path(stack.enter_context(TemporaryDirectory(prefix="longspan-")), f"stdin.{self.files['input_format']}")
        path.write_bytes(sys.stdin.buffer.read())
        return [SourceFile(path, "-", kind, path.stat().st_size)], []

    def _summarize(self, report: RunReport) -> None:
        from longspan.pipelines.run.progress import printable

        notes = [printable(f"{path}: {note}") for path, found in report.notes.items() for note in found]
        problems = [{"path": p.path, "line": p.line, "reason": p.reason} for p in report.problems]
        if self.as_json:
            values = {
                "output": None if self.output is None else str(self.output),
                "documents": report.num_documents,
                "rows": report.num_rows,
                "problems": problems,
                "notes": report.notes,
                "was_complete": report.was_complete,
            }
            typer.echo(json.dumps(values), err=self.output is None)
        elif not self.quiet and self.output is None:
            typer.echo("".join(f"{note}\n" for note in notes), err=True, nl=False)
        elif not self.quiet and self.output is not None:
            counts = f"{report.num_documents:,} documents, {report.num_rows:,} rows"
            complete = "an earlier run had completed it" if report.was_complete else counts
            typer.echo(printable(f"{self.output}: {complete}"))
            if problems:
                typer.echo(f"{len(problems):,} left out (named above)")
            typer.echo("".join(f"{note}\n" for note in notes), nl=False)


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from longspan.pipelines.run.tables import json_line

    for row in rows:
        typer.echo(json_line(row))
