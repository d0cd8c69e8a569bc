"""Parameter names: what is true of a family's keys in every framework, as data, and how stored keys meet wanted ones.

The canonical key is the Hugging Face PyTorch state-dict key. A checkpoint may hold the same parameters under other
keys: with or without the base prefix (`bert.`), under older names (`gamma`), or only one of two tied names.
`match_keys` resolves all of that for all three frameworks; it reads no tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

#: prefixes that training wrappers (DataParallel, torch.compile) put before every key
_WRAPPERS = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Tied:
    """Two keys that hold one parameter.

    Attributes:
        target: Full key that repeats the parameter, e.g. `"cls.predictions.decoder.weight"`.
        source: Full key that owns it, e.g. `"bert.embeddings.word_embeddings.weight"`.
        switch: Config attribute that must be true for the tie, e.g. `"tie_word_embeddings"`; None means always.
    """

    target: str
    source: str
    switch: str | None = None

    def active(self, config: object | None) -> bool:
        """True if the tie holds under `config`. A tie with a switch is off if there is no config."""
        return self.switch is None or bool(getattr(config, self.switch, False))


@dataclass(frozen=True)
class ParameterNames:
    """Facts about the parameter names of a family.

    Full keys are the keys of a model with a head, so they start with the base prefix. A module path covers the key
    itself and everything below it; `*` in it stands for one component, as in `"bert.encoder.layer.*.crossattention"`.

    Attributes:
        base_prefix: Name of the base model inside a model with a head, e.g. `"bert"`; empty if there is none.
        tied: Pairs of full keys that hold one parameter.
        legacy: Pairs (regular expression, replacement) that turn older checkpoint keys into today's.
        ignorable: Regular expressions, searched in full keys, of checkpoint entries that hold no parameter.
        heads: Module paths that come and go as a whole from class to class, each a unit: a class may start one afresh
            when the file lacks it, and may leave one in the file. Every top-level module outside the base is such a
            unit already; name those inside the base (`"bert.pooler"`), and the parts of a module that holds
            several (`"cls.predictions"`, `"cls.seq_relationship"`).
        optional: Module paths that some classes lack, such as `"decoder"` for an encoder-only class. Unlike a head,
            they are never started afresh: a class that has one needs it in the file.
        base_aliases: Other prefixes under which classes of the family store the same base model.
        sizes: Settings whose product is a number of parameters that every model of the family has; together no more
            than all. Those that end in `_layers` count layers.
    """

    base_prefix: str = ""
    tied: tuple[Tied, ...] = ()
    legacy: tuple[tuple[str, str], ...] = ()
    ignorable: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    base_aliases: tuple[str, ...] = ()
    sizes: tuple[tuple[str, ...], ...] = ()

    def active_ties(self, config: object | None) -> tuple[Tied, ...]:
        """The ties that hold under `config`."""
        return tuple(tie for tie in self.tied if tie.active(config))


@dataclass(frozen=True)
class KeyMatch:
    """How the keys of a model and the keys of a checkpoint meet.

    Attributes:
        sources: Wanted key to the stored key that feeds it. A tied parameter appears once, under the key that owns it.
        tied: Wanted key to the wanted key whose parameter it shares.
        missing: Wanted keys that nothing feeds although the model cannot do without the file's values.
        initialised: Wanted keys of heads that the checkpoint lacks as a whole.
        unexpected: Stored keys that the model should have but has not.
        other_heads: Stored keys of heads or optional parts that the model lacks as a whole.
        ignorable: Stored keys that hold no parameter, such as position id buffers.
        shadowed: Stored key to the stored key that was preferred to it for the same parameter (an older name).
        repeated: Stored key of a tied parameter to the stored key that feeds it; both should hold equal values.
    """

    sources: dict[str, str] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    initialised: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    other_heads: tuple[str, ...] = ()
    ignorable: tuple[str, ...] = ()
    shadowed: dict[str, str] = field(default_factory=dict)
    repeated: dict[str, str] = field(default_factory=dict)


def match_keys(
    wanted: Iterable[str], stored: Iterable[str], names: ParameterNames, config: object | None = None
) -> KeyMatch:
    r"""Say which stored key feeds which parameter of a model, and what is left over on either side.

    Args:
        wanted: Keys of the model: full keys, or without the base prefix for a bare base model.
        stored: Keys of the checkpoint.
        names: Facts about the family.
        config: Config of the model, asked for the switches of ties.

    Returns:
        The match. Orders follow `wanted` and `stored`.

    Example:
        >>> names = ParameterNames(base_prefix="bert", legacy=((r"\.gamma$", ".weight"),))
        >>> match = match_keys(["bert.norm.weight", "classifier.weight"], ["norm.gamma"], names)
        >>> match.sources, match.initialised
        ({'bert.norm.weight': 'norm.gamma'}, ('classifier.weight',))
    """
    units = _Units(names)
    by_full = _full_keys_of_model(wanted, names.base_prefix)
    filed = _File.place(stored, names, units, by_full)
    match = KeyMatch(ignorable=filed.ignorable, shadowed=filed.shadowed)
    groups = _tie_groups(names.active_ties(config))
    for group in groups:
        _resolve_group(group, by_full, filed.feeds, match)
    grouped = {key for group in groups for key in group}
    for full, key in by_full.items():
        if full not in grouped and full in filed.feeds:
            match.sources[key] = filed.feeds[full]
    return _classify(match, by_full, filed.feeds, grouped, units)


class _Units:
    """Which head or optional part a full key belongs to."""

    def __init__(self, names: ParameterNames) -> None:
        self._base = names.base_prefix
        paths = [(path, False) for path in names.heads] + [(path, True) for path in names.optional]
        paths.sort(key=lambda item: -item[0].count("."))
        self._patterns = [(_path_pattern(path), needed) for path, needed in paths]
        self.base_modules = {
            path.split(".")[1] for path, _ in paths if self._base and path.startswith(self._base + ".")
        }

    def of(self, full: str) -> tuple[str, bool] | None:
        """Return (unit, whether a model that has it needs it in the file), or None inside the base."""
        for pattern, needed in self._patterns:
            found = pattern.match(full)
            if found:
                return found.group(), needed
        top = full.partition(".")[0]
        return (top, False) if self._base and top != self._base else None


def _path_pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.escape(path).replace(r"\*", r"[^.]+") + r"(?=\.|$)")


def _full_keys_of_model(wanted: Iterable[str], prefix: str) -> dict[str, str]:
    """Map full key -> key of the model; a model without any prefixed key is the bare base."""
    keys = list(wanted)
    bare = prefix and not any(key.startswith(prefix + ".") for key in keys)
    return {f"{prefix}.{key}" if bare else key: key for key in keys}


@dataclass(frozen=True)
class _File:
    """The stored keys under their full names; of two for one parameter, the one that needed less renaming feeds it."""

    feeds: dict[str, str]
    shadowed: dict[str, str]
    ignorable: tuple[str, ...]

    @classmethod
    def place(cls, stored: Iterable[str], names: ParameterNames, units: _Units, by_full: Mapping[str, str]) -> _File:
        raw_keys = list(stored)
        current = _unwrap(raw_keys)
        for pattern, replacement in names.legacy:
            rule = re.compile(pattern)
            current = [rule.sub(replacement, key) for key in current]
        full_name = _full_namer(current, names, units, by_full)
        ignorable = [re.compile(pattern) for pattern in names.ignorable]
        rivals: dict[str, list[tuple[int, str]]] = {}
        skipped = []
        for raw, key in zip(raw_keys, current, strict=True):
            full = full_name(key)
            if full not in by_full and any(pattern.search(full) for pattern in ignorable):
                skipped.append(raw)
            else:
                renamings = 0 if raw == full else 1 if raw == key else 2
                rivals.setdefault(full, []).append((renamings, raw))
        return cls(
            feeds={full: min(found)[1] for full, found in rivals.items()},
            shadowed={raw: min(found)[1] for found in rivals.values() for _, raw in sorted(found)[1:]},
            ignorable=tuple(skipped),
        )


def _unwrap(keys: Sequence[str]) -> list[str]:
    """Drop a wrapper's prefix if every key carries it."""
    unwrapped = list(keys)
    for wrapper in _WRAPPERS:
        if unwrapped and all(key.startswith(wrapper) for key in unwrapped):
            unwrapped = [key.removeprefix(wrapper) for key in unwrapped]
    return unwrapped


def _full_namer(
    keys: Sequence[str], names: ParameterNames, units: _Units, by_full: Mapping[str, str]
) -> Callable[[str], str]:
    """Make the function that adds or exchanges the base prefix of stored keys."""
    prefix = names.base_prefix
    if not prefix:
        return lambda key: key
    has_prefix = any(key.startswith(prefix + ".") for key in keys)
    aliases = () if has_prefix else tuple(alias + "." for alias in names.base_aliases)
    bare_file = not has_prefix and not any(key.startswith(aliases) for key in keys if aliases)
    inside = {full.split(".")[1] for full in by_full if full.startswith(prefix + ".")} | units.base_modules

    def full_name(key: str) -> str:
        if key.startswith(prefix + "."):
            return key
        for alias in aliases:
            if key.startswith(alias):
                return f"{prefix}.{key.removeprefix(alias)}"
        if key not in by_full and f"{prefix}.{key}" in by_full:
            return f"{prefix}.{key}"
        belongs = bare_file and key not in by_full and key.partition(".")[0] in inside
        return f"{prefix}.{key}" if belongs else key

    return full_name


def _tie_groups(ties: Sequence[Tied]) -> list[list[str]]:
    """Gather ties into groups of full keys that hold one parameter, the owner first."""
    owner = {tie.target: tie.source for tie in ties}
    groups: dict[str, list[str]] = {}
    for target in owner:
        root, seen = owner[target], {target}
        while root in owner and root not in seen:
            seen.add(root)
            root = owner[root]
        groups.setdefault(root, [root]).append(target)
    return list(groups.values())


def _resolve_group(group: Sequence[str], by_full: Mapping[str, str], feeds: Mapping[str, str], match: KeyMatch) -> None:
    """Feed the first wanted key of a tied group from the first stored one; the others share it."""
    wanted = [by_full[full] for full in group if full in by_full]
    present = [feeds[full] for full in group if full in feeds]
    if wanted and present:
        match.sources[wanted[0]] = present[0]
        match.repeated.update(dict.fromkeys(present[1:], present[0]))
    if wanted:
        match.tied.update(dict.fromkeys(wanted[1:], wanted[0]))


def _classify(
    match: KeyMatch, by_full: Mapping[str, str], feeds: Mapping[str, str], grouped: set[str], units: _Units
) -> KeyMatch:
    """Sort what was not matched into heads that come or go as a whole, and real defects."""
    met = {units.of(full) for full, key in by_full.items() if full in feeds and key in match.sources}
    missing: list[str] = []
    initialised: list[str] = []
    unexpected: list[str] = []
    other_heads: list[str] = []
    for full, key in by_full.items():
        if key in match.sources or key in match.tied:
            continue
        unit = units.of(full)
        fresh = unit is not None and unit not in met and not unit[1]
        (initialised if fresh else missing).append(key)
    accounted = set(match.sources.values()) | set(match.repeated)
    for full, raw in feeds.items():
        if raw in accounted:
            continue
        unit = units.of(full)
        (other_heads if unit is not None and unit not in met else unexpected).append(raw)
    return KeyMatch(
        sources={key: match.sources[key] for key in by_full.values() if key in match.sources},
        tied=match.tied,
        missing=tuple(missing),
        initialised=tuple(initialised),
        unexpected=tuple(unexpected),
        other_heads=tuple(other_heads),
        ignorable=match.ignorable,
        shadowed=match.shadowed,
        repeated=match.repeated,
    )
