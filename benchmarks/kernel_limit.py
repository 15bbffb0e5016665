"""How far the compiled kernel is from the processor's limit: `python -m benchmarks.kernel_limit --out FILE.jsonl --page FILE.md`.

For each row: the multiply-adds and bytes of a pass forward and back, the time that the multiply-adds would take at the core's
measured peak, and the time of three nested things: the kernel's two calls with their arguments packed, the same from Python, and a
step through autograd. `--page` alone writes the page and its picture from the records in `--out`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import circuits, harness, models, peers, report
from qpeft.circuits.simulator import simulate
from qpeft.circuits.simulator.c_engine import expectations as kernel
from qpeft.circuits.simulator.torch_engine.compiler import SimulatedCircuit, compile_circuit
from qpeft.report.style import LIGHT, drawing

IN_MODEL = ("qtha", 8, 8, 512)  # QTHA with r=8, L=8 on 4 x 128 tokens
IN_TRAINING = ("smollm2-135m", "lora:8", 512)  # the step that it is compared with
ROWS = (("qtha", 4, 1, 512), *circuits.ROWS, IN_MODEL)
COUNTS = 14  # numbers at the head of a bytecode
MODULES, TRAINING = 60, Path("docs/benchmarks/training.jsonl")  # q_proj and v_proj of SmolLM2-135M's 30 layers
CIRCUITS = Path("docs/benchmarks/circuits.jsonl")
GOALS = {"JAX by hand": 4, "fastest peer in a torch loop": 50}
PARTS = ("multiply-adds at peak", "rest of the kernel", "call from Python", "autograd")


def counted(compiled: SimulatedCircuit, tokens: int) -> tuple[float, float]:
    """Multiply-adds of the kernel's arithmetic on states, forward and back, and the bytes of inputs, values and gradients.

    Per amplitude (two numbers): a table of phases 4, a rotation of one bit 2, its correlation 2, a diagonal correlation 2. The last
    product of a product state takes 4, its adjoint 8; reading 2, its adjoint 2. A gate on one qubit takes 8 forward and 24 back.
    Without stages there is no state but those of single qubits. Sines and cosines are left out.
    """
    total = bytes_moved = 0.0
    for call in kernel.calls(compiled):
        code = call.bytecode.code
        n, inputs, _, observables, gates, _, segments, stages, terms = (int(value) for value in code[:9])
        at = COUNTS + 2 * gates + terms
        begins = code[at + 7 * segments + n + 1 :][: stages + 1]
        first, rotations = int(begins[0]), segments - int(begins[0])
        forward = 4 + 4 * stages + 2 * rotations
        back = 2 + 2 + 8 + 4 * stages + 2 * rotations + 2 * rotations + 2 * stages
        # the adjoint makes the forward pass again
        total += tokens * ((2**n * (2 * forward + back) if stages else 0) + (2 * 8 + 24) * first)
        bytes_moved += 4 * tokens * (3 * inputs + 2 * observables)
    return total, bytes_moved


def best_ms(step: Callable[[], object], seconds: float) -> float:
    """The least time of a call, after one that is not counted."""
    step()
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.process_time_ns()
        step()
        best = min(best, (time.process_time_ns() - start) / 1e6)
    return best


def measure(row: tuple[Any, ...], seconds: float) -> dict[str, Any]:
    circuit, x, angles, weights = circuits.problem(row)
    compiled = compile_circuit(circuit)
    values, of_x, of_angles = (torch.empty_like(tensor) for tensor in (weights, x, angles))

    def in_kernel() -> None:
        for call in kernel.calls(compiled):
            call(x, angles, values)
            call(x, angles, None, weights, of_x, of_angles)

    one_call, step = simulate.vjp(circuit), peers.ours(circuit, len(x))
    multiply_adds, bytes_moved = counted(compiled, len(x))

    def around_nothing() -> None:
        inputs = x.detach().requires_grad_()
        torch.autograd.backward(2 * inputs, x)

    return {
        "kind": "row",
        "row": list(row),
        "multiply_adds": multiply_adds,
        "bytes": bytes_moved,
        "kernel_ms": best_ms(in_kernel, seconds),
        "python_ms": best_ms(lambda: (kernel.values(x, angles, compiled), kernel.gradients(weights, x, angles, compiled)), seconds),
        "one_call_ms": best_ms(lambda: one_call(x, angles, weights), seconds),
        "step_ms": best_ms(lambda: step(x, angles, weights), seconds),
        "floor_ms": best_ms(around_nothing, seconds),
    }


def name(record: dict[str, Any]) -> str:
    return "{} {}, {}, {}".format(*record["row"])


def parts(record: dict[str, Any], peak: float) -> list[float]:
    """Milliseconds of each of `PARTS`, which add up to the step."""
    at_peak = record["multiply_adds"] / peak / 1e6
    python = max(record["python_ms"] - record["kernel_ms"], 0.0)
    return [at_peak, record["kernel_ms"] - at_peak, python, record["step_ms"] - record["kernel_ms"] - python]


def picture(records: list[dict[str, Any]], peak: float, path: Path) -> None:
    """A bar for each row: shares of a step's time."""
    with drawing(LIGHT):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 4.0), layout="constrained", dpi=120)
        axes = figure.add_subplot()
        shares = [[100 * part / record["step_ms"] for part in parts(record, peak)] for record in records]
        left = [0.0] * len(records)
        for column, (label, color) in enumerate(zip(PARTS, LIGHT.palette, strict=False)):
            widths = [share[column] for share in shares]
            axes.barh([name(record) for record in records], widths, left=left, color=color, label=label)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        most = max(share[-1] for share in shares)
        axes.set_ylabel("circuit: qubits, layers, samples")
        figure.suptitle(f"Autograd takes up to {most:.0f}% of a small circuit's step; large ones are the kernel's", fontsize=10)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of a step through autograd, %")
        figure.legend(fontsize=8, loc="outside lower center", ncols=4)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})


def processors(records: list[dict[str, Any]]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each machine record with its rows, newest first; of runs on one kind of processor the newest."""
    found: dict[tuple[Any, ...], tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for record in records:
        if record["kind"] == "machine":
            key = (record["cpu"], *record["instructions"])
            found.pop(key, None)
            found[key] = (record, [])
        else:
            found[key][1].append(record)
    return [*reversed(found.values())]


def page(records: list[dict[str, Any]], image: str) -> str:
    lines = [
        "# The kernel's distance to the processor's limit",
        "",
        "What a forward and backward pass through a circuit costs, and what it would cost at the core's peak.",
        "",
        "* Made by `python -m benchmarks.kernel_limit --measure --append --out docs/benchmarks/kernel-limit.jsonl`",
        "  `--page docs/benchmarks/kernel-limit.md`. One thread, float32. Newest processor first.",
        "* Peak: multiply-adds per second in torch's product of two 1024 x 1024 matrices.",
        "* Multiply-adds: the arithmetic on states, forward once for the values and once more in the adjoint, and back. Sines,",
        "  cosines and transposes are not counted.",
        "* Kernel: its two calls with packed arguments. One call: `simulate.vjp`, which makes the forward pass once.",
        "* Autograd around a product by 2: `(2 * inputs)` and its backward pass in the same loop, below which no circuit gets.",
        "* Times: least CPU time of the process, ms. Circuits: name, qubits, layers, samples.",
        "* Next to other programs: the JAX program returns values and gradients from one compiled function; so does one call here.",
        "  Through autograd no lead can be larger than that of the last column: the kernel's two calls, and autograd around a",
        "  product by 2. Times of other programs are from [circuits](circuits.md). Its ratios are of programs that ran in turn.",
        "",
        f"![what a step's time goes to]({image})",
    ]
    for machine, rows in processors(records):
        lines += ["", *_processor(machine, rows)]
    return "\n".join(lines) + "\n"


def _processor(machine: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    peak = machine["product_gmac_s"]
    lines = [
        f"## {machine['cpu']} ({', '.join(machine['instructions'])})",
        "",
        f"Peak: {peak:.1f} billion multiply-adds per second; {machine['stream_gb_s']:.1f} GB/s in a sum of two large vectors.",
        "",
        "| circuit | multiply-adds, millions | MB in and out | at peak, ms | kernel, ms | share of peak | one call, ms "
        "| through autograd, ms | autograd around a product by 2, ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record in rows:
        at_peak = parts(record, peak)[0]
        lines.append(
            f"| {name(record)} | {record['multiply_adds'] / 1e6:.2f} | {record['bytes'] / 1e6:.2f} | {at_peak:.4f} "
            f"| {record['kernel_ms']:.4f} | {100 * at_peak / record['kernel_ms']:.0f}% | {record['one_call_ms']:.4f} "
            f"| {record['step_ms']:.4f} | {record['floor_ms']:.4f} |"
        )
    intensity = [record["multiply_adds"] / record["bytes"] for record in rows]
    balance = peak / machine["stream_gb_s"]
    return [
        *lines,
        "",
        f"A row takes {min(intensity):.0f} to {max(intensity):.0f} multiply-adds per byte that enters or leaves memory;"
        f" this core needs {balance:.1f} to be busy. States stay in cache, so that memory is no limit.",
        *_next_to_others(machine, rows),
        *_whole_model(machine, rows, peak),
    ]


def _next_to_others(machine: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Rows next to the JAX program and the fastest peer in a torch loop on the same processor, if the circuits page has them."""
    others: dict[str, dict[str, float]] = {}
    here = False
    for record in harness.read(CIRCUITS):
        if record["kind"] == "machine":
            here = (record["cpu"], record["instructions"]) == (machine["cpu"], machine["instructions"])
        elif here and record["table"] == "peers":
            peer = report.fastest_in_torch(record)
            found = {"JAX by hand": "JAX by hand"} | ({} if peer is None else {"fastest peer in a torch loop": peer})
            times = {kind: record["timings"][own]["min_ms"] for kind, own in found.items() if own in record["timings"]}
            others["{circuit} {qubits}, {layers}, {tokens}".format(**record)] = times
    lines = []
    for kind, goal in GOALS.items():
        table, missed = [], []
        for record in rows:
            other = others.get(name(record), {}).get(kind)
            if other is None:
                continue
            at_most = other / (record["kernel_ms"] + record["floor_ms"])
            ratios = [other / record["one_call_ms"], other / record["step_ms"], at_most]
            table.append(f"| {name(record)} | {other:.3f} | {' | '.join(f'{ratio:.1f}' for ratio in ratios)} |")
            if ratios[1] < goal:
                missed.append(f"{name(record)} ({ratios[1]:.1f}, at most {at_most:.1f})")
        if table:
            lines += [
                "",
                f"| circuit | {kind}, ms | it / one call | it / through autograd | it / (kernel and autograd alone) |",
                "|---|---|---|---|---|",
                *table,
                "",
                f"* Goal of {goal} through autograd: " + (f"missed by {', '.join(missed)}." if missed else "met on every row."),
            ]
    return lines


def _whole_model(machine: dict[str, Any], rows: list[dict[str, Any]], peak: float) -> list[str]:
    """What the circuits of a whole model take, next to LoRA's step on the same processor, if both were measured."""
    steps: dict[str, list[dict[str, Any]]] = {}
    for other, timed in itertools.chain.from_iterable(models.runs_alike(harness.read(TRAINING))):
        if all(other[key] == machine[key] for key in ("cpu", "instructions", "threads")):
            for row in timed:
                if (row["model"], row["arm"], row["batch"] * row["length"]) == IN_TRAINING:
                    steps.setdefault(row["dtype"], []).append(row)
    measured = [row for row in rows if tuple(row["row"]) == IN_MODEL]
    if not (steps and measured):
        return []
    record = measured[-1]
    _, qubits, _, tokens = record["row"]
    # Through autograd the kernel runs the circuit forward twice, in one call once
    second_forward = MODULES * (record["python_ms"] - record["one_call_ms"])
    at_peak, in_kernel = MODULES * parts(record, peak)[0], MODULES * record["kernel_ms"]
    kept = MODULES * tokens * 8 * 2**qubits
    lines = [
        "",
        "**What that means for a training step.** QTHA with r=8 and L=8 runs"
        f" {name(record)} in {MODULES} modules of SmolLM2-135M: {at_peak:,.0f} ms at the core's peak,"
        f" {in_kernel:,.0f} ms in the kernel.",
        f"{second_forward:,.0f} ms of these are the second forward pass. Keeping each sample's final state would save it, for"
        f" {kept / 2**20:.0f} MiB.",
        "",
        "| weights | LoRA r=8, 4 x 128 tokens: least step of all [runs](training.md), ms | QTHA's step at the core's peak / LoRA's"
        " | with this kernel | without the second forward pass | memory without it |",
        "|---|---|---|---|---|---|",
    ]
    for dtype, found in sorted(steps.items(), reverse=True):
        step, memory = min(row["timing"]["min_ms"] for row in found), max(row["peak_bytes"] or 0 for row in found)
        ratios = " | ".join(f"{1 + ms / step:.3f}" for ms in (at_peak, in_kernel, in_kernel - second_forward))
        lines.append(f"| {dtype} | {step:,.0f} | {ratios} | {f'{1 + kept / memory:.3f}' if memory else '-'} |")
    return [
        *lines,
        "",
        "These ratios assume that the rest of QTHA's step costs what LoRA's costs. Goals: 1.05 for time, 1.01 for memory.",
    ]


def main() -> None:
    parser = harness.timing_parser(__doc__, Path("kernel-limit.jsonl"))
    parser.add_argument("--circuits", nargs="+", type=circuits.row_of, default=ROWS, help="family:qubits:layers:samples")
    parser.add_argument("--append", action="store_true", help="keep the records that --out holds: a page of several processors")
    options = parser.parse_args()
    if options.page is None or options.measure:
        harness.keep_to_one_core()
        records = harness.Records(options.out, keep=options.append)
        records.add(harness.machine(1))
        for row in options.circuits:
            records.add(measure(row, options.seconds))
    if options.page is not None:
        found = harness.read(options.out)
        image = options.page.with_suffix(".png")
        machine, rows = processors(found)[0]
        picture(rows, machine["product_gmac_s"], image)
        options.page.write_text(page(found, image.name), encoding="utf-8")


if __name__ == "__main__":
    main()
