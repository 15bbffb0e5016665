"""The page of circuit benchmarks, from records alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def _peer_tables(records: Sequence[Record], table: str) -> list[str]:
    own = [r for r in records if r["table"] == table]
    if not own:
        return []
    names = list(dict.fromkeys(name for r in own for name in [*r["timings"], *r["notes"]]))
    rows = []
    for r in own:
        ours = r["timings"]["ours"]
        best = fastest_in_torch(r) if table == "peers" else next((n for n in r["timings"] if n != "ours"), None)
        ratio = "-"
        if best is not None:
            other = r["timings"][best]
            low, high = other["lower_ms"] / ours["upper_ms"], other["upper_ms"] / ours["lower_ms"]
            ratio = f"{other['min_ms'] / ours['min_ms']:.1f} ({low:.1f}-{high:.1f}) {best}"
        row = f"{r['circuit']} {r['qubits']}, {r['layers']}, {r['tokens']}"
        rows.append([row, *(_cell(r["timings"].get(n)) for n in names), ratio])
    lines = _table(["circuit: qubits, layers, tokens", *names, "fastest peer in a torch loop / ours"], rows)
    notes = dict.fromkeys(f"* {name}: {note}" for r in own for name, note in r["notes"].items())
    worst = {n: max(r["errors"][n] for r in own if n in r["errors"]) for n in names if any(n in r["errors"] for r in own)}
    checked = ", ".join(f"{name} {error:.1e}" for name, error in worst.items())
    return [*lines, *notes, f"* largest relative error against ours in float64: {checked}", ""]


def _limits(records: Sequence[Record], machine: Record) -> list[str]:
    rows = []
    for r in records:
        if r["table"] != "peers":
            continue
        seconds = r["timings"]["ours"]["min_ms"] / 1e3
        work, moved = r["counted"]["multiply_adds"], r["counted"]["bytes"]
        share = work / seconds / 1e9 / machine["product_gmac_s"]
        row = f"{r['circuit']} {r['qubits']}, {r['layers']}, {r['tokens']}"
        rows.append([row, f"{work / 1e6:.1f}", f"{moved / 2**20:.1f}", f"{work / seconds / 1e9:.1f}", f"{100 * share:.0f}%"])
    header = ["circuit", "multiply-adds, 10^6", "state traffic, MiB", "10^9 multiply-adds/s", "of a large matrix product's speed"]
    return _table(header, rows) if rows else []


def _sweeps(records: Sequence[Record], page: Path) -> list[str]:
    lines = []
    for name in ("qubits", "layers", "tokens"):
        own = sorted((r for r in records if r["table"] == name), key=lambda r: r[name])
        if len(own) < 3:
            continue
        points = [(r[name], r["timings"]["ours"]["min_ms"]) for r in own]
        fitted = [(2.0**x if name == "qubits" else x, y) for x, y in points[-4:]]
        axis = "2^qubits" if name == "qubits" else name
        image = page.with_name(f"circuits-{name}.png")
        _plot(points, name, image)
        fixed = ", ".join(f"{k} {own[0][k]}" for k in ("qubits", "layers", "tokens") if k != name)
        lines += [f"![cost against {name}]({image.name})", ""]
        lines += [
            f"Against {name} ({own[0]['circuit']}; {fixed}): "
            f"cost ~ ({axis})^{slope(fitted):.2f} over the last {len(fitted)} points.",
            "",
        ]
    return lines


def _plot(points: Sequence[tuple[float, float]], name: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*zip(*points, strict=True), "o-")
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
        "Made by `python -m benchmarks.circuits --page docs/benchmarks/circuits.md` from its records; do not edit.",
        "Gradients for inputs and angles, float32, peers in turn in one process. Cells: minimum (median), ms. Ratios: of minima",
        "(of quartiles).",
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
    if any(r["table"] in ("qubits", "layers", "tokens") for r in rows):
        lines += ["## Growth", "", *_sweeps(rows, page)]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines).rstrip() + "\n")
