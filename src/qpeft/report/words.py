"""Numbers, units and names as a reader sees them, in one place for the console, the Markdown and the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qpeft.report.statistics import Estimate, direction

NONE = "–"

_NAMES = {
    "loss": "Held-out loss",
    "f1": "F1",
    "auroc": "AUROC",
    "ece": "Calibration error (ECE)",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}


def metric_name(metric: str) -> str:
    """The metric's name: "token_accuracy" is shown as "Token accuracy"."""
    words = _NAMES.get(metric) or metric.replace("_", " ").replace("/", ": ").strip()
    return f"{words[:1].upper()}{words[1:]}"


def heading(metric: str) -> str:
    """The metric's name with an arrow in the direction in which it is better: "Token accuracy ↑"."""
    return metric_name(metric) + {-1: "\u00a0↓", 1: "\u00a0↑", 0: ""}[direction(metric)]


def unit(metric: str) -> str:
    """The unit of a metric, "" for a bare number."""
    return "nats/token" if metric == "loss" else ""


def number(value: float) -> str:
    """Four decimals below 10, fewer above: 2.2131, 13.420, 134.20, 12,345."""
    size = abs(value)
    digits = 4 if size < 10 else 3 if size < 100 else 2 if size < 10_000 else 0
    return f"{value:,.{digits}f}".replace("-", "−")


def signed(value: float) -> str:
    """As `number`, always with a sign."""
    return number(value) if value < 0 else f"+{number(value)}"


def interval(estimate: Estimate) -> str:
    """ "± 0.0123", or "" when one seed gives no interval."""
    return "" if estimate.half_width is None else f"± {number(estimate.half_width)}"


def probability(p: float | None) -> str:
    """A p value; "not defined" for None."""
    if p is None:
        return "not defined"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(value: float) -> str:
    """A whole number with thousands separators."""
    return f"{round(value):,}"


def compact(value: float) -> str:
    """1500 -> "1.5k": short counts for an axis."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def percent(fraction: float) -> str:
    """0.1234 -> "12.3%"; three digits that tell."""
    value = 100 * fraction
    return f"{value:,.0f}%" if value >= 100 else f"{value:.3g}%"


def duration(seconds: float) -> str:
    """Seconds as "8.2 s", "3 min 12 s" or "2 h 05 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def gib(size: float) -> str:
    """Bytes as GiB."""
    return f"{size / 2**30:.2f}"


def listing(names: Iterable[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    items = list(names)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def plural(n: int, noun: str) -> str:
    """A number with its noun: "1 run", "2 runs".

    Args:
        n: the number.
        noun: in the singular.
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def merged(mappings: Sequence[Mapping[str, Any]]) -> str:
    """One line for many mappings: "torch 2.6, peft 0.21 or 0.22": values that differ are joined by "or", empty ones left out.

    Sorted by key. A key that ends in `_bytes` is shown in GiB.
    """
    parts = []
    for key in sorted({key for mapping in mappings for key in mapping}):
        found = [mapping[key] for mapping in mappings if mapping.get(key) not in (None, "", [], {})]
        if key.endswith("_bytes"):
            found = [f"{gib(value)} GiB" for value in found]
        values = dict.fromkeys(", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value) for value in found)
        if values:
            parts.append(f"{key.removesuffix('_bytes')} {' or '.join(values)}")
    return ", ".join(parts)
