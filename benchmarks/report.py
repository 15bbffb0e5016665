"""The page of circuit benchmarks, from records alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qpeft.report.style import LIGHT, drawing, marks

Record = dict[str, Any]
TABLES = {
    "peers": "### Batches of samples",
    "shapes": "### Other shapes: odd numbers of qubits, 3 to 5,000 samples",
    "large": "### One sample of a large circuit",
}
ANCHORS = ("JAX by hand", "JAX gate by gate")  # programs for these circuits alone: written for speed, and one operation per gate
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
    if table == "large":
        header = ["circuit", "lightning.qubit adjoint / ours"]
        ratios = [[_row(r), _times(r, "lightning.qubit adjoint", "ours, torch only")] for r in own]
    else:
        best = [fastest_in_torch(r) for r in own]
        anchors = [name for name in ANCHORS if any(name in r["timings"] for r in own)]
        in_one = anchors if any("ours, one call" in r["timings"] for r in own) else []
        in_torch = any(best)
        header = [
            "circuit",
            *(["fastest peer in a torch loop", "its time / ours", "its time / ours, torch only"] if in_torch else []),
            *(f"{name} / ours" for name in anchors),
            *(f"{name} / ours, one call" for name in in_one),
        ]
        ratios = [
            [
                _row(r),
                *([b or "-", _times(r, b, "ours"), _times(r, b, "ours, torch only")] if in_torch else []),
                *(_times(r, name, "ours") for name in anchors),
                *(_times(r, name, "ours, one call") for name in in_one),
            ]
            for r, b in zip(own, best, strict=True)
        ]
    told = _missed(own, "JAX by hand", "ours, one call", 4)
    notes = dict.fromkeys(f"* {name}: {note}" for r in own for name, note in r["notes"].items())
    worst = {n: max(r["errors"][n] for r in own if n in r["errors"]) for n in names if any(n in r["errors"] for r in own)}
    checked = ", ".join(f"{name} {error:.1e}" for name, error in worst.items())
    return [*lines, *_table(header, ratios), *told, *notes, f"* Largest relative error vs. ours in float64: {checked}", ""]


def _missed(records: Sequence[Record], peer: str, ours: str, goal: float) -> list[str]:
    """A line that says on which rows a lead falls short of a goal."""
    timed = [
        (r, r["timings"][peer]["min_ms"] / r["timings"][ours]["min_ms"]) for r in records if {peer, ours} <= r["timings"].keys()
    ]
    short = [f"{_row(r)} ({ratio:.1f})" for r, ratio in timed if ratio < goal]
    return (
        [f"* Goal: {peer} / {ours} of at least {goal}. " + (f"Missed by {', '.join(short)}." if short else "Met on every row.")]
        if timed
        else []
    )


def _torch_limit(machine: Record, records: Sequence[Record]) -> list[str]:
    """What torch alone could reach at this core's peak, and how far it is from there."""
    own = [r for r in records if r["table"] == "peers" and "ours, torch only" in r["timings"] and "counted" in r]
    if not own or "product_gmac_s" not in machine:
        return []
    lines = []
    for r in own:
        at_peak, taken = r["counted"]["multiply_adds"] / machine["product_gmac_s"] / 1e6, r["timings"]["ours, torch only"]["min_ms"]
        peer = fastest_in_torch(r)
        ratios = [f"{r['timings'][peer]['min_ms'] / ms:.1f}" for ms in (taken, at_peak)] if peer else ["-", "-"]
        lines.append(
            [
                _row(r),
                f"{r['counted']['multiply_adds'] / 1e6:.1f}",
                f"{at_peak:.3g}",
                f"{taken:.3g}",
                f"{100 * at_peak / taken:.0f}%",
                *ratios,
            ]
        )
    header = ["circuit", "multiply-adds, millions", "at peak, ms", "torch only, ms", "share of peak"]
    header += ["fastest peer in a torch loop / torch only", "fastest peer in a torch loop / at peak"]
    spreads = []
    for r in own:
        found = [ratio for run in [*r.get("earlier", []), r] if (ratio := _torch_ratio(run)) is not None]
        if r["circuit"] == "qtha" and len(found) > 1:
            spreads.append(f"* {_row(r)}: fastest peer / torch only in {len(found)} runs: {', '.join(f'{x:.1f}' for x in found)}.")
    told = "At peak: how long the multiply-adds of the torch engine would take at the core's measured peak."
    return ["### Torch alone and the core's peak", "", told, "", *_table(header, lines), *spreads, *([""] if spreads else [])]


def _torch_ratio(record: Record) -> float | None:
    """How many times as long the fastest peer in a torch loop takes as torch alone, of minima."""
    peer, own = fastest_in_torch(record), record["timings"].get("ours, torch only")
    return None if peer is None or own is None else float(record["timings"][peer]["min_ms"] / own["min_ms"])


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
        lines += [f"Time against {name} ({own[0]['circuit']}; {fixed}), fitted over the last four points: {', '.join(slopes)}.", ""]
    return lines


def _plot(curves: Mapping[str, Sequence[tuple[float, float]]], name: str, path: Path) -> None:
    """Time against one size, a line for each program, in the style of the reports."""
    ours, peers = curves["ours"][-1], [points[-1] for label, points in curves.items() if not label.startswith("ours")]
    title = f"Time against {name}"
    if peers:
        title = f"At {ours[0]:,} {name} the fastest peer takes {min(y for _, y in peers) / ours[1]:.0f} times as long as ours"
    with drawing(LIGHT):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.8, 4.5), layout="constrained", dpi=120)
        axes = figure.add_subplot()
        look = marks(curves)
        for label, points in curves.items():
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, color=look[label].color(LIGHT), marker=look[label].marker, markersize=5, label=label)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if name != "qubits":
            axes.set_xscale("log", base=2)
            axes.set_xticks([x for x, _ in curves["ours"]], [f"{x:,}" for x, _ in curves["ours"]])
        axes.set_xlabel({"tokens": "samples (tokens)", "modules": "modules (circuits in turn)"}.get(name, name))
        axes.set_ylabel("forward + backward, ms (log scale)")
        axes.set_title(title, fontsize=10)
        figure.legend(fontsize=8, loc="outside lower center", ncols=3)  # covers no point
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})


def _sides(machines: Sequence[Sequence[Record]]) -> list[str]:
    """Ratios of every processor next to each other."""
    rows: dict[str, list[str]] = {}
    columns: list[str] = []
    for machine, *records in machines:
        own = [r for r in records if r["table"] == "peers"]
        for anchor, ours in ((None, "ours"), *((anchor, ours) for anchor in ANCHORS for ours in ("ours", "ours, one call"))):
            cells = {_row(r): _times(r, anchor or fastest_in_torch(r), ours).split(" ")[0] for r in own}
            if any(cell != "-" for cell in cells.values()):
                columns.append(f"{anchor or 'fastest peer in a torch loop'} / {ours}, {_short(machine)}")
                for row in rows.keys() | cells.keys():
                    rows.setdefault(row, ["-"] * (len(columns) - 1)).append(cells.get(row, "-"))
    order = [_row(r) for r in machines[0][1:] if r["table"] == "peers"]
    notes = []
    for machine, *records in machines:
        timed = {name for r in records if r["table"] == "peers" for name in r["timings"]}
        missing = [name for name in IN_TORCH if name not in timed]
        if missing:
            notes.append(f"* {_short(machine)}: of the peers in a torch loop {', '.join(missing)} were not timed.")
        if ANCHORS[0] not in timed:
            notes.append(f"* {_short(machine)}: {ANCHORS[0]} was not timed.")
    return [*_table(["circuit: qubits, layers, tokens", *columns], [[name, *rows[name]] for name in order]), *notes, ""]


def _short(machine: Record) -> str:
    cpu = machine["cpu"].replace("(R)", "").replace(" Processor", "")
    return f"{cpu}, {'AVX-512' if 'avx512f' in machine['instructions'] else 'AVX2'}"


def _swept(machines: Sequence[Sequence[Record]]) -> list[Record]:
    """Of each sweep the records of the processor that has most of it."""
    found: list[Record] = []
    for name in ("qubits", "layers", "tokens", "modules"):
        own = [[r for r in records if r["table"] == name] for _, *records in machines]
        found += max(own, key=lambda rows: sum(len(r["timings"]) for r in rows), default=[])
    return found


def write(machines: Sequence[Sequence[Record]], page: Path) -> None:
    """Write the page and its plots. `machines` holds the records of each processor, its machine record first."""
    lines = [
        "# Circuits: cost of one forward and backward pass",
        "",
        "How long a forward and backward pass through a circuit takes in qpeft (*ours*) and in other libraries (*peers*).",
        "",
        "* Made by `python -m benchmarks.circuits --measure --out docs/benchmarks/circuits.jsonl",
        "  --page docs/benchmarks/circuits.md`. Circuits of your choice:",
        "  `python -m benchmarks.circuits --circuits hardware_efficient:3:3:5000 qtha:5:3:100 --out circuits.jsonl`.",
        "* Gradients for inputs and angles, float32, one core. All programs of a row ran in turn in one process.",
        "* Times: minimum (median) of the process's CPU time, ms. Ratios: a peer's minimum divided by ours (between quartiles).",
        "* RZ gates of a last layer change no expectation value. qpeft leaves them out when it compiles the circuit.",
        "* *ours* goes through autograd (`expectations`, `backward`). *ours, one call* is `simulate.vjp`: values and gradients in",
        "  one function, as in the JAX programs. *ours, torch only* is without the compiled engine.",
        "* *In a torch loop*: the peer takes torch tensors and gives gradients to torch's autograd.",
        "* *JAX by hand* (`benchmarks/jax_circuits.py`) is written for these circuits only: gates on one qubit are fused,",
        "  the first layer is a product state, later layers are two Kronecker factors, the ring of CNOTs is one gather.",
        "* *JAX gate by gate* is a simple JAX program with one operation per gate.",
        "",
        "## Time ratios by processor",
        "",
        *_sides(machines),
    ]
    for machine, *rows in machines:
        versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
        load = machine["load_before"][0]
        lines += [
            f"## {_short(machine)}",
            "",
            f"{machine['cpu']}, {machine['cores']} cores, {' '.join(machine['instructions'])}, {machine['threads']} thread(s). "
            f"Python {machine['python']}, {versions}.",
            f"Load average before the run: {load:.1f}."
            + (" Other programs were running: read the ratios, not the times." if load > 1.5 else ""),
            "",
        ]
        for table, title in TABLES.items():
            if any(r["table"] == table for r in rows):
                lines += [title, "", *_peer_tables(rows, table)]
        lines += _torch_limit(machine, rows)
    lines += [
        "## Growth",
        "",
        "Each plot is from the processor on which most programs were measured.",
        "",
        *_sweeps(_swept(machines), page),
    ]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines).rstrip() + "\n")
