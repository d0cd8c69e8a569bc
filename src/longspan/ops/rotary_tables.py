"""Frequencies of rotary position embeddings, and the rules of their settings. NumPy only.

A head of size D turns its i-th pair of coordinates by position · ω_i, with ω_i = θ^(−2i/D) (Su et al., 2021).
The kinds of scaling change ω to reach beyond the positions of pre-training:

- linear: ω / factor (Chen et al., 2023, "Extending Context Window of LLMs via Positional Interpolation").
- dynamic: θ grows with the input (NTK-aware scaling).
- yarn: slow pairs are interpolated, fast ones kept, a ramp in between (Peng et al., 2023, "YaRN").
- longrope: each pair has a factor of its own, one list for short and one for long inputs (Ding et al., 2024).
- llama3: slow pairs are interpolated, fast ones kept, blended by wavelength (Llama 3.1).

Frequencies are computed in float32, step by step as published checkpoints were trained: an error of one unit in
the last place turns a pair at position 2,000 by 1e-4.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longspan.configuration import require

Frequencies = NDArray[np.float32]

#: other names of a kind
ALIASES = {"diffllama3": "llama3"}


@dataclass(frozen=True)
class Kind:
    """The keys that a kind of scaling takes besides `rope_type`."""

    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()


KINDS: dict[str, Kind] = {
    "default": Kind(),
    "linear": Kind(frozenset({"factor"})),
    "dynamic": Kind(frozenset({"factor"}), frozenset({"original_max_position_embeddings"})),
    "yarn": Kind(
        frozenset({"factor"}),
        frozenset(
            {
                "attention_factor",
                "beta_fast",
                "beta_slow",
                "mscale",
                "mscale_all_dim",
                "original_max_position_embeddings",
                "truncate",
            }
        ),
    ),
    "longrope": Kind(
        frozenset({"short_factor", "long_factor"}),
        frozenset({"factor", "attention_factor", "original_max_position_embeddings"}),
    ),
    "llama3": Kind(frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"})),
}


@dataclass(frozen=True)
class RotaryTable:
    """Frequencies of one model.

    Attributes:
        frequencies: ω of inputs up to `limit` tokens, (D/2,) float32.
        attention_factor: Factor of cos and sin, which scales the attention scores by its square.
        limit: Length above which other frequencies hold; None if there is none.
        long_frequencies: ω of longer inputs, (D/2,) float32; None if they depend on the length.
        theta: Base θ, for frequencies that depend on the length.
        factor: Scaling factor, for frequencies that depend on the length.
    """

    frequencies: Frequencies
    attention_factor: float = 1.0
    limit: int | None = None
    long_frequencies: Frequencies | None = None
    theta: float = 10000.0
    factor: float = 1.0


def normalise(scaling: Mapping[str, Any] | None, *, head_dim: int) -> dict[str, Any] | None:
    """Check the settings of a scaling and give its kind the canonical name.

    Args:
        scaling: `rope_scaling` of a configuration; the kind under `rope_type` or the older `type`.
        head_dim: D.

    Returns:
        A copy with `rope_type`, or None for None.

    Raises:
        ConfigError: the kind is unknown, a key is missing, or a value breaks a rule. A key that the kind does not
            have is a warning, as in the reference.
    """
    if scaling is None:
        return None
    require(isinstance(scaling, Mapping), "rope_scaling must be a dict", rope_scaling=scaling)
    content = dict(scaling)
    spellings = {ALIASES.get(content[key], content[key]) for key in ("rope_type", "type") if key in content}
    require(
        len(spellings) == 1 and spellings <= set(KINDS),
        f"rope_scaling must name one rope_type (or type) of {', '.join([*KINDS, *ALIASES])}",
        rope_scaling=scaling,
    )
    content["rope_type"] = spellings.pop()
    if "type" in content:
        content["type"] = content["rope_type"]
    _check_keys(content)
    _check_values(content, head_dim)
    return content


def _check_keys(content: Mapping[str, Any]) -> None:
    kind = content["rope_type"]
    given = {key for key in content if key not in ("rope_type", "type")}
    required, allowed = KINDS[kind].required, KINDS[kind].required | KINDS[kind].optional
    missing, unknown = sorted(required - given), sorted(given - allowed)
    require(not missing, f"rope_scaling of rope_type {kind!r} needs {', '.join(sorted(required))}", missing=missing)
    if unknown:
        warnings.warn(
            f"rope_scaling of rope_type {kind!r} takes {', '.join(sorted(allowed)) or 'no other key'}; "
            f"these have no effect: {', '.join(unknown)}",
            stacklevel=4,
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


#: key -> (test, rule); None is allowed for an optional key and means "not given"
_VALUE_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "factor": (lambda value: _is_number(value) and value >= 1, "a number of at least 1"),
    "truncate": (lambda value: isinstance(value, bool), "True or False"),
    "original_max_position_embeddings": (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0,
        "a positive integer",
    ),
    **{
        key: (lambda value: _is_number(value) and value > 0, "a positive number")
        for key in (
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "low_freq_factor",
            "high_freq_factor",
        )
    },
}


def _check_values(content: Mapping[str, Any], head_dim: int) -> None:
    kind = content["rope_type"]
    optional = KINDS[kind].optional
    content = {key: value for key, value in content.items() if key in KINDS[kind].required | optional}
    for key, (test, rule) in _VALUE_RULES.items():
        if key in content and not (content[key] is None and key in optional):
            require(test(content[key]), f"rope_scaling[{key!r}] must be {rule}", **{key: content[key]})
    for key in ("short_factor", "long_factor"):
        factors = content.get(key)
        require(
            factors is None
            or (isinstance(factors, list | tuple) and len(factors) == head_dim // 2 and all(map(_is_number, factors))),
            f"rope_scaling[{key!r}] must be a list of {head_dim // 2} numbers, one for each pair of a head",
            **{key: factors},
        )
    if kind == "yarn":
        fast, slow = content.get("beta_fast") or 32, content.get("beta_slow") or 1
        require(fast >= slow, "rope_scaling['beta_fast'] must not be below beta_slow", beta_fast=fast, beta_slow=slow)
    if kind == "llama3":
        low, high = content["low_freq_factor"], content["high_freq_factor"]
        require(
            low < high,
            "rope_scaling['low_freq_factor'] must be below high_freq_factor",
            low_freq_factor=low,
            high_freq_factor=high,
        )
    if kind == "dynamic":
        require(head_dim > 2, "rope_type 'dynamic' needs heads larger than 2", head_dim=head_dim)


def rotary_table(
    scaling: Mapping[str, Any] | None,
    *,
    head_dim: int,
    theta: float,
    max_position_embeddings: int,
    original_max_position_embeddings: int | None = None,
) -> RotaryTable:
    """Compute the frequencies of a model.

    Args:
        scaling: Checked settings (see `normalise`), or None.
        head_dim: D.
        theta: Base θ.
        max_position_embeddings: Longest input of the model.
        original_max_position_embeddings: Longest input of pre-training, if the configuration names it outside of
            `rope_scaling`; `longrope` switches there and takes its factor from the ratio of both.
    """
    settings = {} if scaling is None else {key: value for key, value in scaling.items() if value is not None}
    kind = settings.get("rope_type", "default")
    powers = theta_powers(theta, head_dim)
    plain = np.float32(1) / powers
    if kind == "linear":
        return RotaryTable(plain / np.float32(settings["factor"]))
    if kind == "dynamic":
        factor = float(settings["factor"])
        return RotaryTable(plain, limit=max_position_embeddings, theta=theta, factor=factor)
    if kind == "yarn":
        return _yarn(settings, powers, theta, max_position_embeddings)
    if kind == "longrope":
        return _longrope(settings, powers, max_position_embeddings, original_max_position_embeddings)
    if kind == "llama3":
        return RotaryTable(_llama3(settings, plain))
    return RotaryTable(plain)


def theta_powers(theta: float, head_dim: int) -> Frequencies:
    """θ^(2i/D) for i = 0…D/2 − 1, rounded once to float32."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return np.power(np.float64(np.float32(theta)), exponents.astype(np.float64)).astype(np.float32)


def _mscale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's attention factor, from a fit of perplexities (section 3.4 of the paper)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn(settings: Mapping[str, Any], powers: Frequencies, theta: float, max_position_embeddings: int) -> RotaryTable:
    factor = settings["factor"]
    attention_factor = settings.get("attention_factor")
    if attention_factor is None:
        attention_factor = _mscale(factor)
        if "mscale" in settings and "mscale_all_dim" in settings:
            attention_factor = _mscale(factor, settings["mscale"]) / _mscale(factor, settings["mscale_all_dim"])
    original = settings.get("original_max_position_embeddings", max_position_embeddings)
    head_dim = 2 * len(powers)

    def pair_of(rotations: float) -> float:
        """The pair (as a real number) that turns this many times over the original length."""
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_of(settings.get("beta_fast", 32)), pair_of(settings.get("beta_slow", 1))
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high = high + 0.001 if low == high else high
    ramp = ((np.arange(len(powers), dtype=np.float32) - np.float32(low)) / np.float32(high - low)).clip(0, 1)
    kept = np.float32(1) - ramp
    frequencies = (np.float32(1) / (np.float32(factor) * powers)) * (np.float32(1) - kept)
    frequencies = frequencies + (np.float32(1) / powers) * kept
    return RotaryTable(frequencies, attention_factor=float(attention_factor))


def _longrope(
    settings: Mapping[str, Any], powers: Frequencies, max_position_embeddings: int, original: int | None
) -> RotaryTable:
    factor, attention_factor = settings.get("factor"), settings.get("attention_factor")
    if original:
        factor = max_position_embeddings / original
    limit = original or max_position_embeddings
    require(
        factor is not None or attention_factor is not None,
        "rope_type 'longrope' needs factor, attention_factor, or original_max_position_embeddings in the configuration",
        rope_scaling=dict(settings),
    )
    if attention_factor is None:
        assert factor is not None
        attention_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(limit))
    short, long = (np.asarray(settings[key], dtype=np.float32) for key in ("short_factor", "long_factor"))
    one = np.float32(1)
    return RotaryTable(
        one / (short * powers), attention_factor=attention_factor, limit=limit, long_frequencies=one / (long * powers)
    )


def _llama3(settings: Mapping[str, Any], plain: Frequencies) -> Frequencies:
    factor = np.float32(settings["factor"])
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    original = settings["original_max_position_embeddings"]
    wavelengths = np.float32(2 * math.pi) / plain
    slow, fast = wavelengths > np.float32(original / low), wavelengths < np.float32(original / high)
    smooth = (np.float32(original) / wavelengths - np.float32(low)) / np.float32(high - low)
    blended = (np.float32(1) - smooth) * plain / factor + smooth * plain
    return np.where(slow, plain / factor, np.where(fast, plain, blended)).astype(np.float32)
