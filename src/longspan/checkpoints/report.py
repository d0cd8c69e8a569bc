"""What loading a checkpoint into a model will do, for every framework: a plan with a report, or one error.

The rule. Every parameter of the model must come from the checkpoint, and every tensor of the checkpoint must go into
the model, with these exceptions, each listed in the report:

- A head (or pooler) that the checkpoint lacks *as a whole* starts afresh: a classifier on a pretrained base.
- A head that the model lacks *as a whole* stays in the file: a masked-language-model checkpoint in a classifier.
- Entries that hold no parameter (position id buffers), older names of a parameter that is also stored under its
  present name, and equal repeats of a tied parameter are passed over.

Anything else — a layer too few or too many, half a head, a parameter of another shape, two values for one tied
parameter — raises unless the caller says `strict=False` (keys) or `ignore_mismatched_sizes=True` (shapes).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longspan.checkpoints.names import KeyMatch, ParameterNames, match_keys
from longspan.checkpoints.reader import CheckpointReader, equal_tensors
from longspan.errors import CheckpointError

#: lists longer than this are shown with runs of numbers folded, `layer.{0..11}.output.dense.weight`
_FOLD_ABOVE = 20
#: a model may have so many times the parameters of its checkpoint, and so many parameters and layers more
_SPARE_RATIO, _SPARE, _SPARE_LAYERS = 4, 1 << 24, 64
#: keys whose values are whole numbers: counters of batch normalisation
_COUNTER = re.compile(r"(^|\.)num_batches_tracked$")
_OTHER_HEAD = "part of a head that this model lacks"
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")

Mismatch = tuple[str, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class LoadReport(Mapping[str, Any]):
    """What became of every key of a checkpoint and of a model.

    It reads as the reference's dict too: `report["missing_keys"]`, and `unexpected_keys`, `mismatched_keys`.

    Attributes:
        loaded: Keys of the model that took their values from the checkpoint.
        missing: Keys of the model that should have been in the checkpoint and were not; initialised if not strict.
        unexpected: Keys of the checkpoint that should have had a place in the model and had none.
        mismatched: (key of the model, shape in the file, shape in the model), initialised if allowed.
        tied: Key of the model to the key of the model whose parameter it shares.
        initialised: Keys of new heads, which start afresh.
        ignored: Keys of the checkpoint that were passed over for a good reason, with that reason.
        conflicts: Pairs of keys of the checkpoint that the model ties and that hold different values; the second of
            a pair is the one that is loaded if not strict.
    """

    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    initialised: tuple[str, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)
    conflicts: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_match(
        cls, match: KeyMatch, mismatched: Sequence[Mismatch] = (), conflicts: Sequence[tuple[str, str]] = ()
    ) -> LoadReport:
        """Make the report of a key match.

        Args:
            match: Result of `match_keys`.
            mismatched: Matched keys whose shapes differ; they do not count as loaded.
            conflicts: Pairs of tied stored keys whose values differ.
        """
        wrong = {key for key, _, _ in mismatched}
        ignored = dict.fromkeys(match.other_heads, _OTHER_HEAD)
        ignored |= dict.fromkeys(match.ignorable, "holds no parameter")
        ignored |= {key: f"older name of {kept}" for key, kept in match.shadowed.items()}
        ignored |= {key: f"tied to {kept}" for key, kept in match.repeated.items()}
        return cls(
            loaded=tuple(key for key in match.sources if key not in wrong),
            missing=match.missing,
            unexpected=match.unexpected,
            mismatched=tuple(mismatched),
            tied=dict(match.tied),
            initialised=match.initialised,
            ignored=ignored,
            conflicts=tuple(conflicts),
        )

    def raise_if_broken(self, *, strict: bool = True, ignore_mismatched_sizes: bool = False, name: str = "") -> None:
        """Raise one error that lists every defect.

        Args:
            strict: Missing, unexpected and conflicting keys are defects.
            ignore_mismatched_sizes: Shapes that differ are no defect.
            name: Name of the checkpoint, for the message.

        Raises:
            CheckpointError: if there is a defect; its `report` attribute holds this report.
        """
        missing = self.missing if strict else ()
        unexpected = self.unexpected if strict else ()
        mismatched = () if ignore_mismatched_sizes else self.mismatched
        conflicts = self.conflicts if strict else ()
        if not (missing or unexpected or mismatched or conflicts):
            return
        lines = [f"The checkpoint{f' {name}' if name else ''} does not fit the model."]
        lines += _section("missing from the checkpoint", missing)
        lines += _section("unexpected in the checkpoint", unexpected)
        lines += _section("of another shape", _describe_mismatches(mismatched))
        lines += _section("tied in the model, different in the checkpoint", _describe_conflicts(conflicts))
        if missing or unexpected:
            lines.append("strict=False loads what fits and initialises the rest.")
        if mismatched:
            lines.append("ignore_mismatched_sizes=True initialises parameters of another shape afresh.")
        if conflicts:
            lines.append("A setting such as tie_word_embeddings=False keeps both; strict=False loads the second only.")
        raise LoadError("\n".join(lines), report=self)

    def as_dict(self) -> dict[str, Any]:
        """The report as the reference gives it: keys of new heads are missing, those of other heads unexpected."""
        other_heads = [key for key, why in self.ignored.items() if why == _OTHER_HEAD]
        return {
            "missing_keys": [*self.missing, *self.initialised],
            "unexpected_keys": [*self.unexpected, *other_heads],
            "mismatched_keys": list(self.mismatched),
            "error_msgs": [],
        }

    def __getitem__(self, name: str) -> Any:
        return self.as_dict()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.as_dict())

    def __len__(self) -> int:
        return len(self.as_dict())

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} parameters loaded"]
        lines += _section("tied", [f"{key} = {source}" for key, source in self.tied.items()])
        lines += _section("initialised afresh (new head)", self.initialised)
        lines += _section("missing from the checkpoint", self.missing)
        lines += _section("unexpected in the checkpoint", self.unexpected)
        lines += _section("of another shape", _describe_mismatches(self.mismatched))
        lines += _section("tied in the model, different in the checkpoint", _describe_conflicts(self.conflicts))
        for reason in dict.fromkeys(self.ignored.values()):
            lines += _section(f"ignored, {reason}", [key for key, why in self.ignored.items() if why == reason])
        return "\n".join(lines)


class LoadError(CheckpointError, RuntimeError):
    """A checkpoint does not fit the model. `report` is the `LoadReport`."""

    def __init__(self, message: str, *, report: LoadReport) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[object, ...]:
        return _load_error, (str(self), self.report)


def _load_error(message: str, report: LoadReport) -> LoadError:
    return LoadError(message, report=report)


def _describe_mismatches(mismatched: Iterable[Mismatch]) -> list[str]:
    return [f"{key}: {_shape(filed)} in the file, {_shape(own)} in the model" for key, filed, own in mismatched]


def _describe_conflicts(conflicts: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{key} and {kept}" for key, kept in conflicts]


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def _section(title: str, entries: Iterable[str]) -> list[str]:
    entries = list(entries)
    if not entries:
        return []
    shown = entries if len(entries) <= _FOLD_ABOVE else fold_numbers(entries)
    return [f"  {title} ({len(entries)}):", *(f"    {entry}" for entry in shown)]


def fold_numbers(entries: Iterable[str]) -> list[str]:
    """Join entries that differ only in numbers between dots, so that every key is listed and the list stays short.

    Example:
        >>> fold_numbers(["layer.0.bias", "layer.1.bias", "pooler.bias"])
        ['layer.{0..1}.bias', 'pooler.bias']
    """
    groups: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    for entry in entries:
        texts = tuple(_NUMBER.split(entry))
        groups.setdefault(texts, []).append(tuple(int(number) for number in _NUMBER.findall(entry)))
    folded = []
    for texts, found in groups.items():
        columns = [sorted(set(column)) for column in zip(*found, strict=True)]
        if math.prod(len(column) for column in columns) == len(found):
            folded.append(_weave(texts, [_ranges(column) for column in columns]))
        else:
            folded += [_weave(texts, [str(number) for number in numbers]) for numbers in found]
    return folded


def _weave(texts: Sequence[str], numbers: Sequence[str]) -> str:
    return "".join(text + number for text, number in zip(texts, [*numbers, ""], strict=True))


def _ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers as `3`, `{0..11}` or `{0,2..4}`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)
    return text if text.isdigit() else "{" + text + "}"


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


def check_sizes(reader: CheckpointReader, names: ParameterNames, config: object, *, strict: bool = True) -> None:
    """Compare a configuration with a checkpoint before the model is built.

    A file of a few bytes may ask for 10^9 layers or words. Whatever fits the checkpoint passes here; models up to a few
    times its size do too, so that `plan_load` can list every key that differs.

    Args:
        reader: The open checkpoint.
        names: Facts about the family, among them `sizes`.
        config: The configuration.
        strict: False, if the caller asked for a model that the checkpoint does not fit, checks nothing.

    Raises:
        CheckpointError: if the model would have many times the parameters or layers of the checkpoint.
    """
    if not strict:
        return
    held = sum(math.prod(entry.shape) for entry in reader.entries.values())
    largest: dict[tuple[str, ...], int] = {
        settings: math.prod(getattr(config, name) or 0 for name in settings) for settings in names.sizes
    }
    layers = {name for settings in names.sizes for name in settings if name.endswith("_layers")}
    odd: list[str] = [name for name in layers if getattr(config, name) > len(reader.entries) + _SPARE_LAYERS]
    if sum(largest.values()) > _SPARE_RATIO * held + _SPARE:
        odd.extend(max(largest.items(), key=lambda item: item[1])[0])
    if odd:
        asked = ", ".join(f"{name}={getattr(config, name)}" for name in dict.fromkeys(odd))
        raise CheckpointError(
            f"The configuration must describe the model in the checkpoint. {reader.name} holds {held} values in "
            f"{len(reader.entries)} tensors. Received: {asked}"
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
