"""What a surrogate costs and how far it is off: `python -m benchmarks.surrogates --out FILE.jsonl [--page FILE.md --plots FOLDER]`.

QTHA's circuit with random angles, 1,000 shots for each value. Errors are root mean squares over random inputs against the exact
expectation values of the same backend: the simulator, or the emulated Wukong-180 (synthetic calibration). Wide circuits are judged
by their light cones, which the simulator evaluates exactly. Lines go to `--out`; what is there is not run again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import harness
from qpeft.circuits import ansatz
from qpeft.circuits.ir import Circuit, Observable
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.circuits.surrogate.light_cone import light_cone
from qpeft.circuits.surrogate.regression import RegressionSurrogate
from qpeft.circuits.surrogate.sparse import SparseSurrogate
from qpeft.circuits.surrogate.tensor_train import TensorTrainSurrogate
from qpeft.errors import CircuitError
from qpeft.report.style import LIGHT, drawing

SHOTS, TEST_INPUTS, DRAWS = 1000, 400, 3
TARGET = 0.05
WIDTHS = (4, 6, 8, 10, 12, 16, 20, 24)  # at one layer
DEEP = ((4, 2), (5, 2), (6, 2))
CHIP = "wukong-180"
CHIP_SHAPES = ((4, 1), (6, 1), (8, 1), (16, 1), (4, 2), (6, 2))  # qubits, layers
CHIP_POINTS = {(6, 2): 1500}  # else chosen for the target
RANGES = (0.1, 0.2, 0.3, 0.5, 1.0)  # rad RMS of the inputs of the published circuit, n = L = 8


def exact_values(circuit: Circuit) -> Callable[[Tensor, Tensor], Tensor]:
    """Expectation values of all qubits by their light cones, `(B, n)`."""
    cones = [light_cone(circuit, Observable.z(k)) for k in range(circuit.n_qubits)]
    runs = [Simulator().compile(cone.circuit, [cone.observable]) for cone in cones]

    def values(inputs: Tensor, angles: Tensor) -> Tensor:
        columns = [run(inputs[:, list(c.inputs)], angles[list(c.angles)]) for run, c in zip(runs, cones, strict=True)]
        return torch.cat(columns, 1)

    return values


def chip_values(circuit: Circuit) -> Callable[[Tensor, Tensor], Tensor]:
    """The same on the emulated chip, noise included, without shots."""
    from qpeft.backends.emulator.backend import EmulatorBackend, NoisyExecutor

    return NoisyExecutor(EmulatorBackend(CHIP)).compile(circuit)


def with_shots(values: Tensor, rng: np.random.Generator) -> Tensor:
    """Means of SHOTS outcomes of +1 or -1."""
    return torch.as_tensor(2.0 * rng.binomial(SHOTS, ((1 + values) / 2).clamp(0, 1).numpy()) / SHOTS - 1)


def measured(surrogate: Any, circuit: Circuit, values: Callable[[Tensor, Tensor], Tensor], inputs: Tensor) -> dict[str, float]:
    """Error and its estimate, root mean squares over DRAWS sets of random angles; and the largest over observables."""
    found, told, largest, signal = [], [], 0.0, []
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        angles = torch.as_tensor(rng.uniform(0, 2 * math.pi, circuit.n_angles))
        with torch.no_grad():
            noisy = with_shots(values(torch.as_tensor(surrogate.points()), angles), rng)
            surrogate.forget()
            truth = values(inputs, angles)
            square = (surrogate.evaluate(surrogate.coefficients(noisy), inputs) - truth).square().mean(0)
        found.append(float(square.mean()))
        largest = max(largest, math.sqrt(float(square.max())))
        told.append(float(surrogate.error(noisy).square().mean()))
        signal.append(float(truth.var(0).mean()))
    names = ("error", "estimated_error", "signal")
    roots = [math.sqrt(sum(x) / len(x)) for x in (found, told, signal)]
    return {"circuits": surrogate.size, **dict(zip(names, roots, strict=True)), "largest_error": largest}


MITIGATED = ("wukong-72", (46, 40, 41, 47))  # a chip and a square of its qubits, calibrated and run on the same four
MITIGATIONS: dict[str, tuple[tuple[int, ...], bool]] = {
    "none": ((), False),
    "readout": ((), True),
    "zero noise, scales 1 3": ((1, 3), False),
    "zero noise, scales 1 3 5": ((1, 3, 5), False),
    "readout, and zero noise, scales 1 3": ((1, 3), True),
    "readout, and zero noise, scales 1 3 5": ((1, 3, 5), True),
}


def mitigated(circuit: Circuit, scales: tuple[int, ...], readout: bool) -> dict[str, float]:
    """Error against the noiseless circuit of a grid surrogate whose values are mitigated; 12,000 shots for each point in all."""
    from qpeft.backends.executor import BackendExecutor
    from qpeft.backends.mitigation.readout import MitigatedBackend, ReadoutCorrection
    from qpeft.backends.mitigation.zero_noise import ZeroNoise
    from qpeft.backends.registry import get_backend
    from qpeft.circuits.surrogate.executor import SurrogateExecutor

    chip, layout = MITIGATED
    squares = []
    for draw in range(DRAWS):
        backend: Any = get_backend(f"emulator:{chip}", layout=layout)
        if readout:
            correction = ReadoutCorrection.measure(backend, n_qubits=len(layout), shots=20_000, seed=draw)
            backend = MitigatedBackend(backend, correction)
        inner: Any = BackendExecutor(backend, 12_000 // max(1, len(scales)), seed=draw)
        run = SurrogateExecutor(ZeroNoise(inner, scales) if scales else inner).compile(circuit)
        angles = torch.as_tensor(np.random.default_rng(draw).uniform(0, 2 * math.pi, circuit.n_angles))
        inputs = uniform(circuit.n_qubits)
        with torch.no_grad():
            squares.append(float((run(inputs, angles) - Simulator().compile(circuit)(inputs, angles)).square().mean()))
    return {"circuits": 81 * max(1, len(scales)), "error": math.sqrt(sum(squares) / len(squares))}


def uniform(n: int) -> Tensor:
    return torch.as_tensor(np.random.default_rng(99).uniform(0, 2 * math.pi, (TEST_INPUTS, n)))


def grid_points(n: int, layers: int) -> int:
    return int((2 * layers + 1) ** n)


def cases(tables: list[str]) -> list[tuple[dict[str, Any], Callable[[], dict[str, float]]]]:
    """Every line: what it is, and the call that measures it."""
    found: list[tuple[dict[str, Any], Callable[[], dict[str, float]]]] = []

    def add(table: str, n: int, layers: int, name: str, work: Callable[[Circuit], dict[str, float]], **more: Any) -> None:
        if table in tables:
            line = {"table": table, "qubits": n, "layers": layers, "surrogate": name, **more}
            found.append(({**line, "grid_circuits": grid_points(n, layers)}, lambda: work(ansatz.qtha(n, layers))))

    def sparse(points: int | None, values: Callable[..., Any] = exact_values) -> Callable[[Circuit], dict[str, float]]:
        def work(c: Circuit) -> dict[str, float]:
            surrogate = SparseSurrogate.of(c, shots=SHOTS, error=TARGET, points=points)
            return measured(surrogate, c, values(c), uniform(c.n_qubits))

        return work

    def tensor_train(points: int) -> Callable[[Circuit], dict[str, float]]:
        return lambda c: measured(TensorTrainSurrogate.of(c, shots=SHOTS, points=points), c, exact_values(c), uniform(c.n_qubits))

    for n in WIDTHS:
        add("width", n, 1, "sparse", sparse(None))
    for n, layers in ((8, 1), *DEEP):
        for count in (64, 128, 256, 512, 1024, 1500):
            if count < grid_points(n, layers):
                add("error", n, layers, "sparse", sparse(count), points=count)
                add("error", n, layers, "tensor train", tensor_train(count), points=count)
    for n, layers in CHIP_SHAPES:
        add("chip", n, layers, "sparse", sparse(CHIP_POINTS.get((n, layers)), chip_values), backend=CHIP)
    if "mitigation" in tables:
        for name, (scales, readout) in MITIGATIONS.items():
            line = {"table": "mitigation", "qubits": 4, "layers": 1, "mitigation": name, "backend": MITIGATED[0]}
            found.append((line, lambda s=scales, r=readout: mitigated(ansatz.qtha(4, 1), s, r)))  # type: ignore[misc]
    for spread in RANGES:
        for count in (300, 1000):

            def regression(c: Circuit, p: int = count, s: float = spread) -> dict[str, float]:
                rows = torch.as_tensor(np.random.default_rng(7).normal(0, s, (4 * p + TEST_INPUTS, c.n_qubits)))
                surrogate = RegressionSurrogate.of(c, inputs=rows[TEST_INPUTS:], points=p, shots=SHOTS)
                return measured(surrogate, c, Simulator().compile(c), rows[:TEST_INPUTS])

            add("published", 8, 8, "regression", regression, points=count, input_rms=spread)
    return found


TITLES = {
    "width": ("One layer: circuits for an RMS error of at most 0.05", "qubits"),
    "error": ("Error against circuits", "qubits, layers"),
    "chip": ("The emulated Wukong-180 (synthetic calibration), noise included", "qubits, layers"),
    "published": ("The published circuit, n = L = 8: a regression on inputs of limited range", "input RMS, rad"),
}
COLUMNS = (
    "surrogate",
    "circuits",
    "circuits of the full grid",
    "RMS error",
    "largest RMS error of a qubit",
    "estimated RMS error",
    "spread of the exact values, RMS",
)


def page(lines: list[dict[str, Any]]) -> str:
    """All tables as Markdown."""
    out = [
        "# Surrogates: cost and error",
        "",
        "How many circuits a surrogate runs, and how far its expectation values are from the exact ones. After this page you can",
        "choose one of the surrogates of [past the grid](../past-the-grid.md).",
        "",
        "* QTHA's circuit with random angles, 1,000 shots per circuit. Errors are of `<Z>`, which lies between -1 and 1.",
        "* Made by `python -m benchmarks.surrogates`.",
        "",
    ]
    for table, (title, first) in TITLES.items():
        rows = [line for line in lines if line.get("table") == table]
        if rows:
            out += [f"## {title}", "", f"| {' | '.join((first, *COLUMNS))} |", "|---" * (len(COLUMNS) + 1) + "|"]
            out += [_row(table, row) for row in rows]
            out.append("")
    rows = [line for line in lines if line.get("table") == "mitigation"]
    if rows:
        out += [
            "## Mitigation inside the fit",
            "",
            "| mitigation | circuits | RMS distance from the noiseless circuit |",
            "|---|--:|--:|",
        ]
        out += [f"| {row['mitigation']} | {row['circuits']} | {row['error']:.3f} |" for row in rows]
        chip, layout = MITIGATED
        told = (
            f"Grid surrogate of QTHA's circuit, 4 qubits, 1 layer, on qubits {', '.join(map(str, layout))} of the emulated {chip}; "
        )
        out += ["", f"{told}12,000 shots per grid point in all; those of the calibration come on top.", ""]
    return "\n".join(out)


def _row(table: str, row: dict[str, Any]) -> str:
    shape = f"{row['qubits']}, {row['layers']}" if table in ("error", "chip") else str(row["qubits"])
    grid = f"{row['grid_circuits']:,}" if row["grid_circuits"] < 1e9 else f"{row['grid_circuits']:.1e}"
    first = f"{row['input_rms']:g}" if table == "published" else shape
    errors = (f"{row[name]:.3f}" for name in ("error", "largest_error", "estimated_error"))
    return f"| {' | '.join((first, row['surrogate'], format(row['circuits'], ','), grid, *errors, format(row['signal'], '.2f')))} |"


def _power(value: float, _: int) -> str:
    """A power of ten as text, for an axis of powers."""
    return f"10{str(round(math.log10(value))).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def plot(lines: list[dict[str, Any]], folder: Path) -> None:
    """Circuits against width and depth, and error against circuits."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter

    with drawing(LIGHT):
        figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
        rows = sorted((line for line in lines if line["table"] == "width"), key=lambda line: line["qubits"])
        widths = [line["qubits"] for line in rows]
        axes.semilogy(widths, [line["grid_circuits"] for line in rows], "o--", color="C0", label="grid, L = 1: 3^n")
        axes.semilogy(widths, [line["circuits"] for line in rows], "s-", color="C0", label="sparse, L = 1, error measured")
        deep = [n for n, _ in DEEP]
        planned = [SparseSurrogate.of(ansatz.qtha(n, layers), shots=SHOTS, error=TARGET).size for n, layers in DEEP]
        axes.semilogy(deep, [grid_points(n, layers) for n, layers in DEEP], "o--", color="C1", label="grid, L = 2: 5^n")
        axes.semilogy(deep, planned, "s-", color="C1", label="sparse, L = 2, as planned")
        last = rows[-1]
        axes.set(xlabel="qubits", ylabel=f"circuits for an RMS error of at most {TARGET}")
        axes.set_title(
            f"At {last['qubits']} qubits {last['circuits']:,} circuits instead of {last['grid_circuits'] / 1e9:,.0f} billion",
            fontsize=10,
        )
        axes.set_xticks(range(4, 25, 4))
        axes.yaxis.set_major_formatter(FuncFormatter(_power))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.legend()
        figure.savefig(folder / "surrogates-width.png", dpi=150)
        plt.close(figure)
        figure, axes = plt.subplots(figsize=(6.4, 5.2), layout="constrained")
        several = [line for line in lines if line["table"] == "error"]
        for k, (n, layers) in enumerate(sorted({(line["qubits"], line["layers"]) for line in several})):
            for name, style in (("sparse", "o-"), ("tensor train", "s--")):
                own = [x for x in several if (x["qubits"], x["layers"], x["surrogate"]) == (n, layers, name)]
                label = f"{name}, n = {n}, L = {layers}"
                axes.loglog([x["circuits"] for x in own], [x["error"] for x in own], style, color=f"C{k}", label=label)
        axes.axhline(1 / math.sqrt(SHOTS), color=LIGHT.muted, linewidth=0.8, label="one direct run of 1,000 shots, at most")
        axes.set(xlabel="circuits for an evaluation", ylabel="RMS error of an expectation value")
        sizes = {(x["qubits"], x["layers"], x["circuits"]) for x in several}
        errors = {(x["qubits"], x["layers"], x["circuits"], x["surrogate"]): x["error"] for x in several}
        both = [size for size in sizes if {(*size, "sparse"), (*size, "tensor train")} <= errors.keys()]
        ahead = sum(errors[*size, "sparse"] < errors[*size, "tensor train"] for size in both)
        axes.set_title(f"The sparse surrogate has the lower error in {ahead} of {len(both)} cases of equal circuits", fontsize=10)
        axes.set_xticks([64, 128, 256, 512, 1024], ["64", "128", "256", "512", "1,024"])
        axes.set_yticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0], ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"])
        axes.minorticks_off()
        figure.legend(loc="outside lower center", fontsize=8, ncols=2)
        figure.savefig(folder / "surrogates-error.png", dpi=150)
        plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tables", nargs="+", default=["width", "error", "chip", "published", "mitigation"])
    parser.add_argument("--page", type=Path)
    parser.add_argument("--plots", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    known = harness.read(options.out) if options.out.exists() else []
    records = harness.Records(options.out, keep=True)
    for line, work in cases(options.tables):
        if any(line.items() <= old.items() for old in known):
            continue
        try:
            found = {**line, **work()}
        except CircuitError as error:
            print(f"{line}: {error}")
            continue
        records.add(found)
        print(found, flush=True)
    lines = harness.read(options.out)
    if options.page:
        options.page.write_text(page(lines), encoding="utf-8")
    if options.plots:
        plot(lines, options.plots)


if __name__ == "__main__":
    main()
