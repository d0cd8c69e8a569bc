"""What loading a checkpoint into a model will do, decided before any parameter is touched. Shared by all frameworks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from longspan.checkpoints.names import KeyMatch, ParameterNames, match_keys
from longspan.checkpoints.reader import CheckpointReader, equal_tensors
from longspan.checkpoints.report import LoadReport
from longspan.errors import CheckpointError

#: keys whose values are whole numbers: counters of batch normalisation
_COUNTER = re.compile(r"(^|\.)num_batches_tracked$")


@dataclass(frozen=True)
class LoadPlan:
    """Which parameter takes its values from where.

    Attributes:
        sources: Key of the model to the key of the checkpoint that it is read from.
        fresh: Keys of the model that draw new values.
        report: What becomes of every key.
    """

    sources: Mapping[str, str]
    fresh: tuple[str, ...]
    report: LoadReport


def plan_load(
    wanted: Mapping[str, tuple[int, ...]],
    reader: CheckpointReader,
    names: ParameterNames,
    config: object | None = None,
    *,
    shared: Iterable[str] = (),
    strict: bool = True,
    ignore_mismatched_sizes: bool = False,
) -> LoadPlan:
    """Match a model with a checkpoint, and raise if they do not fit.

    Args:
        wanted: Canonical key and canonical shape of every parameter of the model.
        reader: The open checkpoint.
        names: Facts about the family's parameter names.
        config: Configuration of the model; it switches ties on and off.
        shared: Further keys that the model has only as another name of a parameter in `wanted`.
        strict: Missing, unexpected and conflicting keys raise.
        ignore_mismatched_sizes: Parameters of another shape are drawn afresh instead of raising.

    Returns:
        The plan.

    Raises:
        CheckpointError: listing every key that is missing, unexpected, conflicting or of another shape, or that should
            hold floating-point numbers and does not.
    """
    match = match_keys([*wanted, *shared], reader.keys(), names, config)
    mismatched = [
        (key, reader.shape(stored), tuple(wanted[key]))
        for key, stored in match.sources.items()
        if reader.shape(stored) != tuple(wanted[key])
    ]
    report = LoadReport.from_match(match, mismatched, _conflicts(match, reader))
    report.raise_if_broken(strict=strict, ignore_mismatched_sizes=ignore_mismatched_sizes, name=reader.name)
    _check_types({key: match.sources[key] for key in report.loaded}, reader)
    return LoadPlan(
        sources={key: match.sources[key] for key in report.loaded},
        fresh=(*report.missing, *report.initialised, *(key for key, _, _ in mismatched)),
        report=report,
    )


def _conflicts(match: KeyMatch, reader: CheckpointReader) -> list[tuple[str, str]]:
    """Pairs of stored keys that the model ties and that hold different values."""
    return [(key, kept) for key, kept in match.repeated.items() if not equal_tensors(reader, key, reader, kept)]


def _check_types(sources: Mapping[str, str], reader: CheckpointReader) -> None:
    """Refuse whole numbers for weights: they come of a damaged header or of a quantisation that is not undone."""
    odd = [
        f"{stored} ({reader.dtype(stored)})"
        for key, stored in sources.items()
        if not reader.dtype(stored).startswith(("float", "bfloat")) and not _COUNTER.search(key)
    ]
    if odd:
        raise CheckpointError(f"{reader.name} must hold floating-point numbers as weights. Received: {', '.join(odd)}")
