"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from longspan.pipelines.run.ray_pool import RayOptions

_RAY = "Many machines"

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
Ray = Annotated[bool, typer.Option("--ray", help="Run the model on a Ray cluster.", rich_help_panel=_RAY)]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="The cluster; default $RAY_ADDRESS, else one on this machine.", rich_help_panel=_RAY
    ),
]
RayActors = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Processes with the model; default one a GPU, else two a machine.", rich_help_panel=_RAY
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Write nothing but errors and results.")]
Json = Annotated[bool, typer.Option("--json", help="Write results, and errors, as JSON.")]


def ray_options(ray: bool, address: str | None, actors: int | None) -> RayOptions | None:
    """Which cluster is asked for, if one is."""
    if not ray:
        if address is not None or actors is not None:
            raise typer.BadParameter("give --ray too", param_hint="--ray-address, --ray-actors")
        return None
    from longspan.pipelines.run.ray_pool import RayOptions

    return RayOptions(address, actors)
