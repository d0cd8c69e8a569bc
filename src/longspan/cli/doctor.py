"""`longspan doctor`: what is there to run models with, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import typer

from longspan.cli.options import Json
from longspan.cli.running import FAILED

EPILOG = """[bold]Example[/bold]

  longspan doctor

Exit codes: 0 a framework works, 1 none does.
"""


def doctor(as_json: Json = False) -> None:
    """Show frameworks, instructions, threads, allocator, devices and caches, and the commands that install the rest."""
    from longspan.machine import examine

    found = examine()
    if as_json:
        typer.echo(json.dumps(found))
    else:
        for line in _lines(found):
            typer.echo(line)
    if not found["works"]:
        raise typer.Exit(FAILED)


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
