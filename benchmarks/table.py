"""Tables of results: which rows are lost, in what order rows stand, and how they are written."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import describe

Row = dict[str, Any]

_INTRODUCTION = (
    "Ratio: time of the peer ÷ time of longspan, median over interleaved rounds, with the least and the largest. "
    "Floor: time ÷ time that the case's matrix products take, each shape by its fastest kernel of PyTorch and NumPy in "
    "the same run, or, for tokens that are generated, reading the weights. Memory: peak rise of one run. Times are of "
    "this machine and this run; read the ratios. Rows that are slower than their peer come first, then those that miss "
    "what is wanted. Remade by `make bench`."
)
#: figures that have a column
_COLUMNS = {
    "about", "difference", "peer_seconds", "ours_seconds", "ratio", "ratio_range", "at_least", "floor_at_most",
    "rounds", "floor_seconds", "ours_to_floor", "peer_to_floor", "ours_peak_bytes", "peer_peak_bytes", "case_seconds",
}  # fmt: skip


def shortfall(row: Row) -> float:
    """How far a row is from what is wanted: 1.25 is a quarter too slow, 1 or less is there."""
    wanted, most = row.get("at_least"), row.get("floor_at_most")
    by_peer = wanted / row["ratio"] if wanted else 0.0
    return max(by_peer, row["ours_to_floor"] / most if most and "ours_to_floor" in row else 0.0)


def is_missed(row: Row) -> bool:
    """True if a row is slower than its peer where more is not wanted, or than what is wanted."""
    return shortfall(row) > 1.0 or (row["ratio"] < 1.0 and not row.get("at_least"))


def ordered(cases: dict[str, Row]) -> dict[str, Row]:
    """Lost rows first, the slowest beside its peer at the top; then those that miss a bar; then by name."""

    def place(item: tuple[str, Row]) -> tuple[int, float, str]:
        name, row = item
        if row["ratio"] < min(1.0, row.get("at_least") or 1.0):
            return 0, row["ratio"], name
        return (1, -shortfall(row), name) if is_missed(row) else (2, 0.0, name)

    return dict(sorted(cases.items(), key=place))


def line(row: Row) -> str:
    """One row in one line."""
    low, high = row["ratio_range"]
    parts = [f"ratio {row['ratio']:.2f} ({low:.2f}–{high:.2f})"]
    parts[0] += f", wanted ≥ {row['at_least']:.2f}" if row.get("at_least") else ""
    if "ours_to_floor" in row:
        wanted = f", wanted ≤ {row['floor_at_most']:.2f}" if row.get("floor_at_most") else ""
        parts.append(f"÷ floor {row['ours_to_floor']:.2f}{wanted}")
    if "ours_peak_bytes" in row:
        parts.append(f"peak {row['ours_peak_bytes'] / 2**20:.0f} MiB, peer {row['peer_peak_bytes'] / 2**20:.0f}")
    parts.append(f"{row['case_seconds']:.0f} s")
    return "; ".join(parts) + ("  MISSED" if is_missed(row) else "")


def render(stored: dict[str, Any]) -> str:
    """The Markdown table of a result file."""
    cases = ordered(stored["cases"])
    lines = [
        describe(stored["machine"]),
        "",
        _INTRODUCTION,
        "",
        "| case | what | peer s | longspan s | ratio | wanted | ÷ floor (peer) | wanted | peak MiB (peer) | differs |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_table_row(name, row) for name, row in cases.items()),
    ]
    notes = []
    for name, row in cases.items():
        figures = [f"{key} {_number(value)}" for key, value in sorted(row.items()) if key not in _COLUMNS]
        notes += [f"- {name}: {'; '.join(figures)}"] if figures else []
    return "\n".join([*lines, *(["", "Further figures:", "", *notes] if notes else [])]) + "\n"


def _table_row(name: str, row: Row) -> str:
    low, high = row.get("ratio_range", (None, None))
    spread = f" ({low:.2f}–{high:.2f})" if low is not None and row["rounds"] > 1 else ""
    floor = f"{row['ours_to_floor']:.2f} ({row['peer_to_floor']:.2f})" if "ours_to_floor" in row else "–"
    wanted = f"≥ {row['at_least']:.4g}" if row.get("at_least") else "–"
    wanted_floor = f"≤ {row['floor_at_most']:.4g}" if row.get("floor_at_most") else "–"
    memory = "–"
    if "ours_peak_bytes" in row:
        memory = f"{row['ours_peak_bytes'] / 2**20:.0f} ({row['peer_peak_bytes'] / 2**20:.0f})"
    difference = "–" if row["difference"] is None else f"{row['difference']:.1e}"
    cells = [
        name, row["about"], f"{row['peer_seconds']:.3f}", f"{row['ours_seconds']:.3f}", f"{row['ratio']:.2f}{spread}",
        wanted, floor, wanted_floor, memory, difference,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
