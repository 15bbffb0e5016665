"""docs/scale.md from the records of docs/benchmarks/scale.jsonl and the cost model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.scale.cost_model import SHAPES, Shape
from qpeft.backends.spending.paid import SECONDS_PER_SHOT

TEMPLATE = Path(__file__).with_name("scale.md.jinja")
GIB = 2**30
GPUS = (1, 8, 64)
LENGTH, ROWS = 1024, 8  # tokens of a sequence, and sequences of a device, in the extrapolated table
BUSY = 3.0  # load of the machine from which on times are not shown
FULL = 0.9  # share of a device's memory that is used at most


@dataclass(frozen=True)
class Accelerator:
    """Assumed, not measured: FLOP/s of dense bfloat16, the share of it that is reached, bytes, and bytes/s between devices."""

    name: str = "H100 SXM"
    flops: float = 989e12
    share: float = 0.35
    memory: float = 80e9
    in_node: float = 450e9
    between_nodes: float = 50e9
    node: int = 8


def tokens_per_s(shape: Shape, gpus: int, on: Accelerator) -> float:
    """Of all devices together: computation, then what FSDP2 sends, not overlapped."""
    tokens = LENGTH * ROWS
    seconds = tokens * shape.flops(LENGTH, checkpointing=True) / (on.flops * on.share)
    if gpus > 1:
        bandwidth = on.in_node if gpus <= on.node else on.between_nodes
        seconds += shape.gathered_bytes("bfloat16") * (gpus - 1) / gpus / bandwidth
    return gpus * tokens / seconds


def page(records: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> str:
    """Markdown.

    Args:
        records: of scale.jsonl.
        steps: of training.jsonl, whose times the cost model is checked against.
    """
    options, shapes = ([r for r in records if r["kind"] == kind] for kind in ("option", "shape"))
    empty = next(r["peak_bytes"] for r in records if r["kind"] == "empty")
    timed, on = comparable(steps), Accelerator()
    rate = step_operations(timed[0]) / (timed[0]["timing"]["min_ms"] / 1e3)
    memory = [predicted_bytes(row, empty) / row["peak_bytes"] - 1 for row in shapes]
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    text: str = template.render(
        machine=records[0]["machine"],
        options=_options(options),
        rate=f"{rate / 1e9:.1f}",
        empty=f"{empty / GIB:.2f}",
        memory_error=f"{min(memory):+.0%} to {max(memory):+.0%}",
        time=_times(timed, rate),
        memory=_memory(shapes, empty),
        untied=not all(row.get("tied", True) for row in shapes),
        gpu={
            "name": on.name,
            "flops": f"{on.flops / 1e12:.0f}",
            "share": f"{on.share:.0%}",
            "memory": f"{on.memory / 1e9:.0f}",
            "in_node": f"{on.in_node / 1e9:.0f}",
            "between": f"{on.between_nodes / 1e9:.0f}",
        },
        extrapolated=_extrapolated(on),
        logits=f"{16 * 128_256 * LENGTH * ROWS / 1e9:.0f}",
        shot=f"{SECONDS_PER_SHOT * 1e6:.0f}",
        chip=_chip(),
    )
    return text


MODELS = {"smollm2-135m": "SmolLM2-135M", "qwen2.5-1.5b": "Qwen2.5-1.5B"}  # names in training.jsonl


def comparable(steps: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Steps of LoRA r=8 of different models, on one thread of one kind of machine without matrix units, smallest model first."""
    found: dict[str, Mapping[str, Any]] = {}
    machine: Mapping[str, Any] = {}
    for row in steps:
        if row["kind"] == "machine":
            machine = row
        elif row["arm"] == "lora:8" and machine["threads"] == 1 and "amx_tile" not in machine["instructions"]:
            found.setdefault(row["model"], row)
    return sorted(found.values(), key=lambda row: SHAPES[MODELS[row["model"]]].parameters)


def step_operations(row: Mapping[str, Any]) -> float:
    """Floating-point operations of a step of the training benchmark, by the cost model."""
    shape = SHAPES[MODELS[row["model"]]]
    return float(row["batch"] * row["length"] * shape.flops(row["length"]))


def _times(rows: Sequence[Mapping[str, Any]], rate: float) -> str:
    cells = []
    for row in rows:
        measured, predicted = row["timing"]["min_ms"] / 1e3, step_operations(row) / rate
        name = f"{MODELS[row['model']]}, {row['batch']} x {row['length']}"
        cells.append((name, f"{measured:.2f}", f"{predicted:.2f}", f"{predicted / measured - 1:+.0%}"))
    return _table("| model, rows x tokens | step, s | predicted, s | deviation |", cells)


def _table(head: str, rows: Sequence[Sequence[str]]) -> str:
    columns = head.count("|") - 1
    lines = [head, "|---|" + "--:|" * (columns - 1), *(f"| {' | '.join(cells)} |" for cells in rows)]
    return "\n".join(lines) + "\n"


def _options(rows: Sequence[Mapping[str, Any]]) -> str:
    first = rows[0]["peak_bytes"]
    cells = [(r["name"], _speed(r), f"{r['peak_bytes'] / GIB:.2f}", f"{r['peak_bytes'] / first:.2f}") for r in rows]
    return _table("| option | tokens/s | peak memory, GiB | memory relative to the first row |", cells)


def _speed(row: Mapping[str, Any]) -> str:
    return f"{row['tokens_per_s']:.0f}" if row.get("load", BUSY) < BUSY else "other programs ran"


def predicted_bytes(row: Mapping[str, Any], empty: int) -> float:
    """Peak memory of a measured step, by the cost model."""
    tokens = row["batch"] * row["length"]
    shape = SHAPES[row["model"]]
    if not row.get("tied", True):  # the measured model had an output layer of its own
        shape = dataclasses.replace(shape, tied=False)
    return empty + shape.memory(
        base="float32", trained=row["trained"], tokens=tokens, labelled=tokens, width=4, checkpointing=row["checkpointing"]
    )


def _memory(rows: Sequence[Mapping[str, Any]], empty: int) -> str:
    cells = []
    for row in rows:
        measured, predicted = row["peak_bytes"], predicted_bytes(row, empty)
        cells.append((row["name"], f"{measured / GIB:.2f}", f"{predicted / GIB:.2f}", f"{predicted / measured - 1:+.1%}"))
    return _table("| model, rows x tokens | peak memory, GiB | predicted, GiB | deviation |", cells)


def _extrapolated(on: Accelerator) -> str:
    head = "| model | parameters |" + "".join(f" {n} GPU{'s' * (n > 1)}, tokens/s | GB per GPU |" for n in GPUS)
    rows = []
    for name, shape in SHAPES.items():
        trained = 8 * shape.layers * (2 * shape.hidden + shape.attention + shape.keys)
        cells = [name, f"{shape.parameters / 1e9:.2f}B"]
        for gpus in GPUS:
            tokens = LENGTH * ROWS
            held = shape.memory(
                base="bfloat16", trained=trained, tokens=tokens, labelled=tokens, width=2, checkpointing=True, shards=gpus
            )
            fits = held <= FULL * on.memory
            cells += [f"{tokens_per_s(shape, gpus, on):,.0f}" if fits else "does not fit", f"{held / 1e9:.0f}"]
        rows.append(cells)
    return _table(head, rows)


def _chip() -> str:
    head = "| qubits r | layers L | points | circuits per step "
    head += "| chip seconds: one circuit | q and v of 24 layers | q and v of 80 layers |"
    rows = []
    for qubits, layers in ((2, 1), (4, 1), (4, 2), (6, 1), (8, 1)):
        points, circuits = chip_circuits(qubits, layers)
        seconds = circuits * 1000 * SECONDS_PER_SHOT
        counts = (f"{points:,}", f"{circuits:,}", f"{seconds:,.0f}", f"{48 * seconds:,.0f}", f"{160 * seconds:,.0f}")
        rows.append((str(qubits), str(layers), *counts))
    return _table(head, rows)


def chip_circuits(qubits: int, layers: int) -> tuple[int, int]:
    """`(points, circuits per step)` of QTHA's circuit through the grid surrogate by parameter shift."""
    from qpeft.circuits.ansatz import qtha

    circuit = qtha(qubits, layers)
    points = (2 * layers + 1) ** qubits
    angles = [(op, op.angle.index) for op in circuit.ops if op.angle is not None]
    trained = [op for op, index in angles if index is not None and index >= circuit.n_inputs]
    shifts = sum(4 if op.spec.n_qubits == 2 else 2 for op in trained)
    return points, points * (1 + shifts)
