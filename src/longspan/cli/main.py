"""The command `longspan`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from longspan.cli import (
    answer,
    choose,
    classify,
    convert,
    doctor,
    embed,
    explain,
    fill,
    generate,
    info,
    lengthen,
    merge,
    search,
    tag,
    train,
)
from longspan.cli.running import run
from longspan.machine import share_cores

_HELP = """Long-document transformers on the command line.

[bold]Examples[/bold]

  longspan embed docs/ notes.md --output index.parquet

  longspan search index.parquet "how do I rotate log files?"

[bold]Exit codes[/bold]

  0  done
  1  failed: one line on the standard error stream says why
  2  the command was not understood
  3  done, but something could not be read and was left out (each is named)
  130  interrupted (143 by SIGTERM, 129 by SIGHUP): finished work is kept, the same command goes on
"""

app = typer.Typer(
    name="longspan",
    help=_HELP,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("embed", epilog=embed.EPILOG)(embed.embed)
app.command("merge", epilog=merge.EPILOG)(merge.merge)
app.command("search", epilog=search.EPILOG)(search.search)
app.command("classify", epilog=classify.EPILOG)(classify.classify)
app.command("tag", epilog=tag.EPILOG)(tag.tag)
app.command("answer", epilog=answer.EPILOG)(answer.answer)
app.command("choose", epilog=choose.EPILOG)(choose.choose)
app.command("fill", epilog=fill.EPILOG)(fill.fill)
app.command("explain", epilog=explain.EPILOG)(explain.explain)
app.command("convert", epilog=convert.EPILOG)(convert.convert)
app.command("info", epilog=info.INFO_EPILOG)(info.info)
app.command("verify", epilog=info.VERIFY_EPILOG)(info.verify)
app.command("doctor", epilog=doctor.EPILOG)(doctor.doctor)
app.command("lengthen", epilog=lengthen.EPILOG)(lengthen.lengthen)
app.command("generate", epilog=generate.GENERATE_EPILOG)(generate.generate)
app.command("train", epilog=train.EPILOG)(train.train)
app.command("summarize", epilog=generate.SUMMARIZE_EPILOG)(generate.summarize)


def _print_version(wanted: bool) -> None:
    if wanted:
        from longspan import __version__

        typer.echo(f"longspan {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options before the command; each acts by itself (`--debug` in `run`)."""


def main() -> None:
    """Run the command line and leave with its exit code."""
    share_cores()
    sys.exit(run(app, sys.argv[1:]))
