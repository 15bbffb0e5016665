"""The page of circuit benchmarks, from records alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
IN_TORCH = ("PennyLane backprop", "TorchQuantum", "DeepQuantum", "TensorCircuit-NG (torch)", "TensorCircuit-NG (JAX in torch)")


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least-squares slope of log y against log x."""
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mean_x) ** 2 for x in xs)


def fastest_in_torch(record: Record) -> str | None:
    """The fastest peer that fits into a torch loop and is right."""
    names = [n for n in IN_TORCH if n in record["timings"] and not record["notes"].get(n, "").startswith("wrong")]
    return min(names, key=lambda name: record["timings"][name]["min_ms"], default=None)


def _cell(timing: Record | None) -> str:
    return "-" if timing is None else f"{timing['min_ms']:.3g} ({timing['median_ms']:.3g})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *("| " + " | ".join(row) + " |" for row in rows), ""]


def _row(record: Record) -> str:
    return f"{record['circuit']} {record['qubits']}, {record['layers']}, {record['tokens']}"


def _times(record: Record, peer: str | None, ours: str) -> str:
    """How many times as long a peer takes: of minima, and between quartiles."""
    if peer not in record["timings"] or ours not in record["timings"]:
        return "-"
    other, own = record["timings"][peer], record["timings"][ours]
    low, high = other["lower_ms"] / own["upper_ms"], other["upper_ms"] / own["lower_ms"]
    return f"{other['min_ms'] / own['min_ms']:.1f} ({low:.1f}-{high:.1f})"


def _peer_tables(records: Sequence[Record], table: str) -> list[str]:
    own = [r for r in records if r["table"] == table]
    if not own:
        return []
    names = list(dict.fromkeys(name for r in own for name in [*r["timings"], *r["notes"]]))
    lines = _table(
        ["circuit: qubits, layers, tokens", *names], [[_row(r), *(_cell(r["timings"].get(n)) for n in names)] for r in own]
    )
    if table == "peers":
        best = [fastest_in_torch(r) for r in own]
        header = ["circuit", "fastest peer in a torch loop", "it / ours", "it / ours, torch only", "JAX by hand / ours"]
        ratios = [
            [_row(r), b or "-", _times(r, b, "ours"), _times(r, b, "ours, torch only"), _times(r, "JAX by hand", "ours")]
            for r, b in zip(own, best, strict=True)
        ]
    else:
        header = ["circuit", "lightning.qubit adjoint / ours"]
        ratios = [[_row(r), _times(r, "lightning.qubit adjoint", "ours, torch only")] for r in own]
    notes = dict.fromkeys(f"* {name}: {note}" for r in own for name, note in r["notes"].items())
    worst = {n: max(r["errors"][n] for r in own if n in r["errors"]) for n in names if any(n in r["errors"] for r in own)}
    checked = ", ".join(f"{name} {error:.1e}" for name, error in worst.items())
    return [*lines, *_table(header, ratios), *notes, f"* largest relative error against ours in float64: {checked}", ""]


def _limits(records: Sequence[Record], machine: Record) -> list[str]:
    """Of the torch path, whose operations are counted; the time that they and their bytes would take at the machine's ceilings."""
    rows = []
    for r in records:
        if r["table"] not in ("peers", "large") or "ours, torch only" not in r["timings"]:
            continue
        ms = r["timings"]["ours, torch only"]["min_ms"]
        work, moved = r["counted"]["multiply_adds"], r["counted"]["bytes"]
        at_best = work / machine["product_gmac_s"] / 1e6, moved / machine["stream_gb_s"] / 1e6
        rows.append(
            [
                _row(r),
                r["counted"]["path"],
                f"{work / 1e6:.1f}",
                f"{moved / 2**20:.1f}",
                *(f"{x:.2f}" for x in at_best),
                f"{ms:.2f}",
            ]
        )
    header = ["circuit", "path", "multiply-adds, 10^6", "traffic, MiB", "ms at the product's speed", "ms at the sum's speed"]
    return _table([*header, "measured, ms"], rows) if rows else []


def _sweeps(records: Sequence[Record], page: Path) -> list[str]:
    lines = []
    for name in ("qubits", "layers", "tokens", "modules"):
        own = sorted((r for r in records if r["table"] == name), key=lambda r: r[name])
        if len(own) < 3:
            continue
        curves = {n: [(r[name], r["timings"][n]["min_ms"]) for r in own] for n in own[0]["timings"]}
        axis = "2^qubits" if name == "qubits" else name
        image = page.with_name(f"circuits-{name}.png")
        _plot(curves, name, image)
        fixed = ", ".join(f"{k} {own[0].get(k, 1)}" for k in ("qubits", "layers", "tokens", "modules") if k != name)
        slopes = []
        for label, points in curves.items():
            fitted = [(2.0**x if name == "qubits" else x, y) for x, y in points[-4:]]
            slopes.append(f"{label} ~ ({axis})^{slope(fitted):.2f}")
        lines += [f"![cost against {name}]({image.name})", ""]
        lines += [f"Against {name} ({own[0]['circuit']}; {fixed}), fitted over the last four points: {', '.join(slopes)}.", ""]
    return lines


def _plot(curves: Mapping[str, Sequence[tuple[float, float]]], name: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for label, points in curves.items():
        axes.plot(*zip(*points, strict=True), "o-", label=label)
    axes.legend()
    axes.set_yscale("log")
    if name != "qubits":
        axes.set_xscale("log", base=2)
    axes.set_xlabel(name)
    axes.set_ylabel("forward + backward, ms")
    axes.grid(alpha=0.3, which="both")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def write(records: Sequence[Record], page: Path) -> None:
    """Write the page and its plots."""
    machine = next(r for r in records if r["kind"] == "machine")
    rows = [r for r in records if r["kind"] == "row"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    lines = [
        "# Circuits: cost of one forward and backward pass",
        "",
        "Made by `python -m benchmarks.circuits --out docs/benchmarks/circuits.jsonl --page docs/benchmarks/circuits.md",
        "--measure`; do not edit. Its tables, and rows of the first, may come from calls of their own (`--tables`, `--rows`):",
        "what stands in one row was always measured in one process. The ceilings are those of the newest call.",
        "Gradients for inputs and angles, float32, peers in turn in one process on one core. Cells: minimum (median) of the",
        "processor's time for the process, ms. Ratios: of minima (between quartiles). Angles that no expectation value depends on",
        "(RZ of a last layer) cost nothing in ours: they are left out when the circuit is compiled.",
        "",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {' '.join(machine['instructions'])}, "
        f"{machine['threads']} thread(s); "
        f"load before the run {machine['load_before'][0]}. Measured ceilings: {machine['product_gmac_s']:.1f} x 10^9 float32 "
        f"multiply-adds/s in a large matrix product, {machine['stream_gb_s']:.1f} GB/s in a large sum.",
        f"Python {machine['python']}, {versions}.",
        "",
    ]
    for table, title in (("peers", "## Batches of samples"), ("large", "## One sample of a large circuit")):
        if any(r["table"] == table for r in rows):
            lines += [title, "", *_peer_tables(rows, table)]
    lines += ["## Distance to the limit", "", *_limits(rows, machine)]
    if any(r["table"] in ("qubits", "layers", "tokens", "modules") for r in rows):
        lines += ["## Growth", "", *_sweeps(rows, page)]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines).rstrip() + "\n")
