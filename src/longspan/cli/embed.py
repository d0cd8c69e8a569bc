"""`longspan embed`."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from longspan.cli.options import Device, Framework, Json, Limit, Model, Quiet, Ray, RayActors, RayAddress, ray_options
from longspan.cli.running import SOMETHING_LEFT_OUT

if TYPE_CHECKING:
    from longspan.embeddings.embed_files import EmbedReport, Others
    from longspan.embeddings.sentence_encoder import SentenceEncoder
    from longspan.pipelines.long.splitter import OnLong
    from longspan.pipelines.run.ray_pool import RayOptions

EPILOG = """[bold]Examples[/bold]

  longspan embed docs/ --output index.parquet

  longspan embed src/ README.md -o code.index --exclude 'tests/*'

  longspan embed records.jsonl.gz -o records.npz --text-field body --device cuda --dtype bfloat16

  longspan embed docs/ -o part-2.parquet --shard 2/3  (longspan merge joins the parts)

  longspan embed docs/ -o index.parquet --ray --ray-address 10.0.0.1:6379 --ray-actors 8

Run the same command again to go on after an interruption, or to embed only what changed.
Exit codes: 0 done, 1 failed, 2 not understood, 3 done but something was left out, 130 interrupted.
"""

_FILES = "Files"
_MODEL = "Model"


def embed(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATHS",
            help="Files and folders: txt, md, rst, html, pdf, jsonl, source code and other text; also .gz of these.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="INDEX", help="A .parquet or .npz file, or a folder.")
    ],
    model: Model = None,
    framework: Framework = "torch",
    device: Device = None,
    dtype: Annotated[
        str, typer.Option(help="Type of the weights: float32, bfloat16, int8 ...", rich_help_panel=_MODEL)
    ] = "float32",
    max_length: Annotated[
        int | None,
        typer.Option(help="Most tokens of a window; default as the model says.", rich_help_panel=_MODEL),
    ] = None,
    on_long: Annotated[
        str,
        typer.Option(
            help="Documents longer than the model: window (a passage for each), truncate (one of the beginning) or "
            "error (left out).",
            rich_help_panel=_MODEL,
        ),
    ] = "window",
    overlap: Annotated[
        int | None,
        typer.Option(help="Tokens that neighbouring windows share; default an eighth.", rich_help_panel=_MODEL),
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(help="Most positions of a batch; default by device.", rich_help_panel=_MODEL)
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Scale vectors to length 1.", rich_help_panel=_MODEL)
    ] = True,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB", help="Take only such files of folders, whatever they are.", rich_help_panel=_FILES
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Leave out such files and folders.", rich_help_panel=_FILES),
    ] = None,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Enter linked folders.", rich_help_panel=_FILES)
    ] = False,
    text_field: Annotated[
        str, typer.Option(help="Field of jsonl records that holds the text.", rich_help_panel=_FILES)
    ] = "text",
    limit: Limit = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Reuse what earlier runs finished, or start over.")
    ] = True,
    others: Annotated[
        str,
        typer.Option(help="Files of INDEX that exist but PATHS leaves out: refuse, keep or drop.", metavar="WHAT"),
    ] = "refuse",
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Embed share I of N of the files; longspan merge joins the N indexes."),
    ] = None,
    ray: Ray = False,
    ray_address: RayAddress = None,
    ray_actors: RayActors = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first thing that cannot be read.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Embed the text of files and folders into an index for [bold]longspan search[/bold].

    Texts longer than the model are cut into overlapping windows of tokens; nothing is cut off unless --on-long says so.
    The index keeps each window's vector, text, characters and lines.
    """
    from longspan.documents.file_shards import FileShard
    from longspan.documents.limits import parse_limits
    from longspan.documents.readers import ReadOptions
    from longspan.documents.walk import Filters
    from longspan.embeddings.embed_files import EmbedOptions, embed_files
    from longspan.embeddings.sentence_encoder import SentenceEncoder
    from longspan.pipelines.run.progress import Stopwatch, printable, progress_bar
    from longspan.search.index import check_output

    check_output(output)
    options = EmbedOptions(
        filters=Filters(tuple(include or ()), tuple(exclude or ()), follow_links),
        read=ReadOptions(text_field, parse_limits(limit or ())),
        on_long=cast("OnLong", on_long),
        overlap=overlap,
        normalize=normalize,
        batch_tokens=batch_tokens,
        resume=resume,
        strict=strict,
        others=cast("Others", others),
        shard=None if shard is None else FileShard.parse(shard),
    )
    watch = Stopwatch()
    cluster = ray_options(ray, ray_address, ray_actors)
    settings: dict[str, Any] = {"framework": framework, "device": device, "dtype": dtype, "max_length": max_length}
    with ExitStack() as stack:
        with watch.time("load"):
            encoder = (
                SentenceEncoder(model, **settings) if cluster is None else _on_ray(model, cluster, settings, stack)
            )
        progress = stack.enter_context(progress_bar(not quiet and not as_json, unit="files"))
        report = embed_files(paths, output, encoder=encoder, options=options, progress=progress)
    report.seconds = {**watch.seconds, **report.seconds}
    if as_json:
        typer.echo(json.dumps(_as_json(report)))
    elif not quiet:
        typer.echo("\n".join(map(printable, _summary(report))))
    if report.problems:
        raise typer.Exit(SOMETHING_LEFT_OUT)


def _on_ray(model: str | None, cluster: RayOptions, settings: dict[str, Any], stack: ExitStack) -> SentenceEncoder:
    from longspan.embeddings.ray_encoder import RayEncoder

    return stack.enter_context(closing(RayEncoder(model, options=cluster, **settings)))


def _summary(report: EmbedReport) -> list[str]:
    lines = [
        f"{report.output}: {report.num_files:,} files, {report.num_passages:,} passages, {report.num_tokens:,} tokens",
        f"files: {report.num_new_files:,} embedded, {report.num_reused_files:,} unchanged, "
        f"{report.num_dropped_files:,} dropped",
    ]
    if report.problems:
        lines.append(f"{len(report.problems):,} left out, as they could not be read (named above)")
    if report.ignored:
        kinds = ", ".join(f"{suffix} {count:,}" for suffix, count in report.ignored.most_common(6))
        more = ", ..." if len(report.ignored) > 6 else ""
        lines.append(f"{report.ignored.total():,} files of folders ignored, no text by their names ({kinds}{more})")
    lines += [f"{path}: {note}" for path, notes in report.notes.items() for note in notes]
    stages = {stage: value for stage, value in report.seconds.items() if stage != "total"}
    took = ", ".join(f"{stage} {value:.1f}" for stage, value in stages.items())
    rate = f" ({report.num_new_tokens / stages['model']:,.0f} tokens/s in the model)" if stages.get("model") else ""
    lines.append(f"{stages['load'] + report.seconds['total']:.1f} s: {took}{rate}")
    return lines


def _as_json(report: EmbedReport) -> dict[str, Any]:
    problems = [{"path": p.path, "line": p.line, "reason": p.reason} for p in report.problems]
    return {**vars(report), "output": str(report.output), "problems": problems}
