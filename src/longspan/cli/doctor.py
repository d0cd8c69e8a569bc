"""`longspan doctor`: what is there to run models with, and what is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from longspan.cli.options import Json
from longspan.cli.running import FAILED
from longspan.errors import InputError

EPILOG = """[bold]Example[/bold]

  longspan doctor

  longspan doctor --error "input_ids must lie in [0, vocab_size=30522). Received: 30530 at position (0, 7)"

Exit codes: 0 a framework works, 1 none does.
"""


def doctor(
    error: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What an error said, or its topic: say what to do about it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show frameworks, instructions, threads, allocator, devices and caches, and the commands that install the rest."""
    from longspan.machine import examine

    if error is not None:
        _advise(error, as_json)
        return
    found = examine()
    if as_json:
        typer.echo(json.dumps(found))
    else:
        for line in _lines(found):
            typer.echo(line)
    if not found["works"]:
        raise typer.Exit(FAILED)


def _advise(error: str, as_json: bool) -> None:
    """Print the section about an error, given by its topic or its text, with the class before a colon or without."""
    from longspan.remedies import find_remedy, remedies

    topics = {remedy.topic: remedy for remedy in remedies()}
    *kind, text = re.split(r"\b(\w+Error): ", error)[-2:]
    found = topics.get(error) or find_remedy(text, tuple(kind)) or find_remedy(text)
    if found is None:
        raise InputError(
            f"--error takes what an error said, or its topic. Received: {error!r}, none of {', '.join(topics)}"
        )
    if as_json:
        typer.echo(json.dumps({"topic": found.topic, "heading": found.heading, "advice": found.advice}))
    else:
        typer.echo(f"{found.heading}\n\n{found.advice}\n\nMore: docs/guides/10-troubleshooting.md#{found.topic}")


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What is found, a line for each thing."""
    from longspan.machine import EXTRAS

    yield f"longspan {found['longspan']}, Python {found['python']}, {found['system']}"
    sizes = ", ".join(f"{level} {size}" for level, size in found["caches"].items())
    yield f"processor: {found['processor']}, {found['cores']} cores, {found['memory_gib']} GiB, caches {sizes}"
    if found["instructions"] is not None:
        yield f"instructions that PyTorch uses: {found['instructions']}"
    advice = " (tcmalloc or MALLOC_ variables keep freed memory, which helps on a CPU)"
    yield f"allocator: {found['allocator']}{advice * (found['allocator'] == 'glibc')}"
    for name, value in found["settings"].items():
        yield f"set: {name}={value}"
    for extra, packages in found["extras"].items():
        told = found["frameworks"].get(extra, {})
        versions = ", ".join(f"{package} {number or 'missing'}" for package, number in packages.items())
        more = [f"{key} {', '.join(value) if isinstance(value, list) else value}" for key, value in told.items()]
        yield f"{extra} ({EXTRAS[extra]}): " + "; ".join([versions, *more])
    cache = found["hub_cache"]
    offline = ", offline: HF_HUB_OFFLINE is set" if cache["offline"] else ""
    yield f"hub cache: {cache['path']}, {cache['checkpoints']} checkpoints{offline}"
    for command in found["missing"].values():
        yield f"missing: {command}"
