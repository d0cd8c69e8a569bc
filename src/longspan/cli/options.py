"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="NAME", help="Model directory or hub repository.", rich_help_panel="Model"),
]
Framework = Annotated[
    str, typer.Option(help="Framework that runs the model: torch, flax or keras.", rich_help_panel="Model")
]
Device = Annotated[
    str | None,
    typer.Option(help="Device, such as cpu or cuda; default the first accelerator.", rich_help_panel="Model"),
]
Dtype = Annotated[str, typer.Option(help="Type of the weights: float32, bfloat16 ...", rich_help_panel="Model")]
Limit = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=NUMBER",
        help="What a file may cost: bytes, record_bytes, expansion, cells, pages, seconds, memory (bytes=256M).",
        rich_help_panel="Files",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Write nothing but errors and results.")]
Json = Annotated[bool, typer.Option("--json", help="Write results, and errors, as JSON.")]
