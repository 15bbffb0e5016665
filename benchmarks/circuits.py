"""The circuit against its peers: `python -m benchmarks.circuits --out circuits.jsonl --page docs/benchmarks/circuits.md --measure`.

`--circuits hardware_efficient:3:3:5000 qtha:5:3:100` runs circuits of your choice: family, qubits, layers, tokens.

Forward and backward with gradients for inputs and angles, float32. Times are the processor's for this process, on one core. Every
peer's values and gradients are checked against ours in float64 before it is timed. `--page` alone writes the page anew from the
records in `--out`.
"""

from __future__ import annotations

import argparse
import functools
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness, peers, report
from qpeft.circuits import ansatz
from qpeft.circuits.ir import Circuit
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.circuits.simulator.torch_engine.compiler import BLOCK_QUBITS, DENSE_QUBITS, SimulatedCircuit, compile_circuit

# (circuit, qubits, layers, tokens)
ROWS = (
    ("hardware_efficient", 4, 1, 512),
    ("hardware_efficient", 4, 2, 2048),
    ("hardware_efficient", 6, 2, 2048),
    ("hardware_efficient", 8, 2, 2048),
    ("hardware_efficient", 8, 4, 512),
    ("hardware_efficient", 10, 2, 512),
    ("qtha", 8, 8, 2048),
)
# odd numbers of qubits, and few or many samples
SHAPES = tuple(("hardware_efficient", n, 3, tokens) for n in (3, 5, 7) for tokens in (3, 100, 5000))
SHAPED = ("JAX by hand",)  # peers of those
LARGE = (("hardware_efficient", 16, 4, 1), ("hardware_efficient", 18, 4, 1), ("hardware_efficient", 20, 2, 1))
# (circuit, qubits, layers, tokens, modules): that many circuits with angles of their own, one after the other
SWEEPS = {
    "qubits": [("qtha", n, 2, 512, 1) for n in (2, 3, 4, 5, 6, 7, 8, 9, 10)],
    "layers": [("qtha", 8, layers, 512, 1) for layers in (1, 2, 4, 8, 16)],
    "tokens": [("qtha", 8, 2, tokens, 1) for tokens in (64, 256, 1024, 4096)],
    "modules": [("qtha", 8, 1, 512, modules) for modules in (1, 4, 16, 56)],
}
SWEPT = ("PennyLane backprop", "TensorCircuit-NG (torch)")  # peers of the sweeps
OURS = {"ours": peers.ours, "ours, one call": peers.ours_in_one_call, "ours, torch only": peers.ours_in_torch}
COMPILES = ("TensorCircuit-NG (JAX in torch)",)  # tens of seconds for each new shape
COMPILES_UP_TO = 110  # parametrised gates, beyond which compiling takes minutes
PACKAGES = (
    "torch", "pennylane", "pennylane-lightning", "torchquantum", "deepquantum", "tensorcircuit-ng", "jax", "jaxlib", "pyvqnet",
)  # fmt: skip
TOLERANCE = 2e-4  # relative to the largest entry, float32 of another library against float64


def row_of(text: str) -> tuple[str, int, int, int]:
    """`family:qubits:layers:tokens` of the command line."""
    try:
        family, qubits, layers, tokens = text.split(":")
        row = (family, int(qubits), int(layers), int(tokens))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: not family:qubits:layers:tokens, such as qtha:3:3:5000") from None
    if family not in ("hardware_efficient", "qtha") or min(row[1:]) < 1:
        raise argparse.ArgumentTypeError(f"{text}: hardware_efficient or qtha, then three numbers of at least 1")
    return row


def problem(row: tuple[Any, ...]) -> tuple[Circuit, Tensor, Tensor, Tensor]:
    """The circuit, inputs, angles and weights of a row; the same numbers every time."""
    name, n, layers, tokens = row[:4]
    circuit = getattr(ansatz, name)(n, layers)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(tokens, n, generator=generator)
    return circuit, inputs, torch.randn(circuit.n_angles, generator=generator), torch.randn(tokens, n, generator=generator)


def reference(circuit: Circuit, inputs: Tensor, angles: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    """Values and gradients in float64."""
    x, a = inputs.double().requires_grad_(), angles.double().requires_grad_()
    out = Simulator().compile(circuit)(x, a)
    return (out.detach(), *torch.autograd.grad((out * weights).sum(), (x, a)))


def largest_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Largest deviation of a tensor relative to its largest entry, or to 1, the scale of `<Z>`, if that is more."""
    return max(
        float((f.double().reshape(w.shape) - w).abs().max() / w.abs().max().clamp_min(1.0))
        for f, w in zip(found, wanted, strict=True)
        if w.numel()
    )


def counted(compiled: SimulatedCircuit, tokens: int) -> dict[str, float | str]:
    """Multiply-adds and bytes of our torch path, forward and backward, in float32, and which path that is.

    State vector: a product of a complex state with a real matrix of K rows takes 2 K multiply-adds an amplitude, with a complex one
    4 K. The backward pass runs the steps again, undoes state and costate, and correlates them where there is an angle to learn.
    Bytes are those of states read and written once by every step.
    """
    n, evolution = compiled.circuit.n_qubits, compiled.evolution
    size, multiply_adds, passes = 2**n * tokens, 0.0, 0.0
    for step in evolution.steps:
        groups = [(step.blocks, step.gates)] if step.kind == "local" else []
        if step.kind == "dense":
            gates = tuple(gate for inner in step.steps for gate in inner.gates)
            groups = [((tuple(range(n)),), gates)]
        for blocks, gates in groups:
            for block in blocks:
                own = [gate for gate in gates if set(gate.qubits) & set(block)]
                real = all(gate.real and gate.kind in ("local", "perm") for gate in own)
                times = 4 + any(gate.trainable for gate in own)
                multiply_adds += times * size * 2 ** len(block) * (2 if real else 4)
                passes += 2 * times
        if not groups:
            multiply_adds += 4 * 4 * size * (step.kind != "perm")
            passes += 2 * 4
    multiply_adds += 4 * 2 * 4 * size  # the product state and its gradient
    return {"path": "state vector", "multiply_adds": multiply_adds, "bytes": (passes + 8) * 8 * size}


def repeated(step: peers.Step, modules: int, inputs: Tensor, angles: Tensor, weights: Tensor) -> Callable[[], object]:
    """The step, once for each module with angles of its own."""
    return lambda: [step(inputs, angles + module, weights) for module in range(modules)]


def bench_row(row: tuple[Any, ...], table: str, makers: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Check and time all peers on one row."""
    circuit, inputs, angles, weights = problem(row)
    wanted = reference(circuit, inputs, angles, weights)
    steps: dict[str, Callable[[], object]] = {}
    notes: dict[str, str] = {}
    errors: dict[str, float] = {}
    first_s: dict[str, float] = {}
    for name, make in makers.items():
        if name in COMPILES and sum(op.angle is not None for op in circuit.ops) > COMPILES_UP_TO:
            notes[name] = "skipped: compiling a circuit of this size takes minutes"
            continue
        start = time.perf_counter()  # compiling included
        try:
            step = make(circuit, inputs.shape[0])
            found = step(inputs, angles, weights)
        except peers.Unavailable as error:
            notes[name] = str(error)
            continue
        except Exception as error:
            notes[name] = f"failed: {error!r}"[:300]
            continue
        first_s[name] = time.perf_counter() - start
        compared = wanted if found[0].dim() else ((wanted[0] * weights).sum(), *wanted[1:])
        errors[name] = largest_error(found, compared)
        if errors[name] > TOLERANCE:
            notes[name] = f"wrong: relative error {errors[name]:.1e}"
        steps[name] = functools.partial(step, inputs, angles, weights)
        if len(row) > 4 and row[4] > 1:
            steps[name] = repeated(step, row[4], inputs, angles, weights)
    timings = harness.interleaved(steps, seconds=seconds, least=3, clock=time.process_time)
    circuit_name, n, layers, tokens = row[:4]
    return {
        "kind": "row", "table": table, "circuit": circuit_name, "qubits": n, "layers": layers, "tokens": tokens,
        "modules": row[4] if len(row) > 4 else 1,
        "timings": {name: vars(timing) for name, timing in timings.items()},
        "errors": errors, "notes": notes, "first_s": first_s,
        "counted": counted(compile_circuit(circuit), tokens),
    }  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Measure and write records."""
    warnings.simplefilter("ignore")  # peers warn of their own deprecations
    records = harness.Records(options.out, keep=True)
    records.add(
        {**harness.machine(options.threads), "versions": harness.versions(*PACKAGES), "dense": DENSE_QUBITS, "block": BLOCK_QUBITS}
    )
    wanted = {name: make for name, make in peers.PEERS.items() if options.peers is None or name in (*options.peers, *OURS)}
    jobs: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    if "peers" in options.tables:
        jobs += [("peers", row, wanted) for row in ROWS]
    if "shapes" in options.tables:
        jobs += [("shapes", row, OURS | {peer: wanted[peer] for peer in SHAPED if peer in wanted}) for row in SHAPES]
    if "large" in options.tables:
        large = {"ours, torch only": peers.ours_in_torch, "lightning.qubit adjoint": peers.lightning_adjoint}
        jobs += [("large", row, large) for row in LARGE]
    for name, rows in SWEEPS.items():
        if name in options.tables:
            jobs += [(name, row, OURS | {peer: wanted[peer] for peer in SWEPT if peer in wanted}) for row in rows]
    if options.circuits:
        jobs = [("shapes", row, wanted) for row in options.circuits]
    if options.rows is not None:
        jobs = [job for i, job in enumerate(jobs) if i in options.rows]
    if options.quick:
        jobs = [job for job in jobs if 2 ** job[1][1] * job[1][2] * job[1][3] <= 1 << 18]
    for table, row, makers in jobs:
        record = bench_row(row, table, makers, 0.3 if options.quick else options.seconds)
        records.add(record)
        times = ", ".join(f"{name} {t['min_ms']:.3g}" for name, t in record["timings"].items())
        print(
            f"{table} {row}: {times} ms", *(f"{name}: {note}" for name, note in record["notes"].items()), sep="\n    ", flush=True
        )


def by_machine(records: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """For each kind of processor its newest machine record, then the newest record of each of its rows, with the older ones in
    `earlier`; most rows first."""
    machines: dict[tuple[str, bool], dict[str, Any]] = {}
    rows: dict[tuple[str, bool], dict[tuple[Any, ...], dict[str, Any]]] = {}
    kind = ("", False)
    for record in records:
        if record["kind"] == "machine":
            kind = (record["cpu"], "avx512f" in record["instructions"])
            machines[kind] = record
        else:
            key = tuple(record[name] for name in ("table", "circuit", "qubits", "layers", "tokens", "modules"))
            known = rows.setdefault(kind, {}).get(key)
            before = [] if known is None else [*known["earlier"], known]
            rows[kind][key] = {**record, "earlier": before}
    return sorted(([machines[kind], *found.values()] for kind, found in rows.items()), key=len, reverse=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(prog="python -m benchmarks.circuits", description=__doc__)
    out.add_argument("--out", type=Path, default=Path("circuits.jsonl"), help="JSON lines to add to, or to read with --page alone")
    out.add_argument("--page", type=Path, help="write this Markdown page, and plots next to it, from the records in --out")
    out.add_argument("--quick", action="store_true", help="small rows only, a third of a second each")
    out.add_argument("--seconds", type=float, default=3.0, help="time for each peer on each row (default 3)")
    out.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    out.add_argument("--rows", type=int, nargs="+", help="positions of the rows to run, from 0, over the tables chosen")
    out.add_argument("--circuits", nargs="+", type=row_of, help="these instead of the tables: family:qubits:layers:tokens")
    out.add_argument("--peers", nargs="+", help="run these peers only, and ours: " + ", ".join(peers.PEERS))
    tables = ("peers", "shapes", "large", *SWEEPS)
    out.add_argument("--tables", nargs="+", choices=tables, default=list(tables), help="tables to run")
    out.add_argument("--measure", action="store_true", help="measure even though --page is given")
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.page is None or options.measure:
        run(options)
    if options.page is not None:
        report.write(by_machine(harness.read(options.out)), options.page)


if __name__ == "__main__":
    harness.keep_to_one_core()
    main()
