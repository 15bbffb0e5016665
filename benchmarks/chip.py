"""Executions of a training step on a chip while its tokens grow: `python -m benchmarks.chip --out chip.jsonl [--plot FILE.png]`.

Counts come from the formulas of `qpeft plan`, which never run the language model. At two sizes they are checked by a real step:
every circuit of every module is run on random activations, forward and backward, and the backend's counter is read. Then the
grid's evaluation is timed against the simulator's, interleaved, and the sizes from which the grid no longer pays are listed.

`--train FOLDER [--recipe FILE] [--arms exact ...] [--set key=value]` trains `recipes/chip.yaml` or another recipe instead: with
exact circuits, on the emulated chip by parameter shift and by SPSA, and with the circuit frozen, which is the control. It tells
how far the angles moved, and the loss with the trained angles put back to their initial values: whether training them mattered.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from qpeft.adapters.quantum_layer import QuantumLayer
from qpeft.backends.emulator.backend import EmulatorBackend
from qpeft.backends.executor import BackendExecutor, Gradient
from qpeft.backends.spending.budget import Cost, Ledger
from qpeft.circuits import ansatz
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.circuits.surrogate.executor import SurrogateExecutor
from qpeft.circuits.surrogate.grid import FourierGrid
from qpeft.report.style import LIGHT, drawing
from qpeft.training.data.examples import load_data
from qpeft.training.data.tokenization import tokenize_all
from qpeft.training.loop.loaded_run import load_run
from qpeft.training.loop.run import train
from qpeft.training.model.held_out_loss import evaluate
from qpeft.training.recipe.config import load_recipe

TOKENS = (128, 256, 512, 1024, 2048, 4096)
CHECKED = (128, 4096)
MODULES = 60  # q_proj and v_proj of SmolLM2-135M
QUBITS, LAYERS, SHOTS = 4, 1, 1000
RECIPE = Path(__file__).parents[1] / "recipes" / "chip.yaml"
ARMS = {
    "frozen": ["backend=null", "adapter.qnn=frozen"],  # its angles are the initial ones of the others
    "exact": ["backend=null"],
    "shift": ["backend.gradient=surrogate-shift"],
    "spsa": ["backend.gradient=surrogate-spsa"],
}


def executor(gradient: Gradient, pack: bool) -> BackendExecutor:
    return BackendExecutor(EmulatorBackend("wukong-72", pack=pack), SHOTS, gradient=gradient, seed=0, ledger=Ledger())


def counted(tokens: int, gradient: Gradient, pack: bool) -> dict[str, dict[str, Any]]:
    """Cost of a step by the formulas: through the lattice, and direct with every row different."""
    circuit, runner = ansatz.qtha(QUBITS, LAYERS), executor(gradient, pack)
    prepared, points = runner.prepare(circuit), FourierGrid.of(circuit).size
    lattice = prepared.cost(points) + prepared.cost(prepared.gradient_rows(points))
    direct = prepared.cost(tokens) + prepared.cost(prepared.gradient_rows(tokens, inputs=True))
    return {"lattice": asdict(lattice), "direct": asdict(direct * MODULES)}


def measured(tokens: int, gradient: Gradient, pack: bool) -> Cost:
    """What a real step charges: MODULES uses of one circuit on `tokens` random activations each, then one flush."""
    circuit, runner = ansatz.qtha(QUBITS, LAYERS), executor(gradient, pack)
    lattice = SurrogateExecutor(runner, deferred=True)
    run, angles = lattice.compile(circuit), torch.randn(circuit.n_angles, requires_grad=True)
    for _ in range(MODULES):
        torch.autograd.backward(run(torch.randn(tokens, QUBITS, requires_grad=True), angles).square().sum())
    lattice.flush()
    return runner.ledger.spent


def timings(seconds: float) -> list[dict[str, Any]]:
    """Forward and backward for inputs and angles at 4 qubits; the lattice's values are remembered, as in a step."""
    found = []
    for tokens in (512, 2048):
        circuit = ansatz.qtha(QUBITS, LAYERS)
        inputs, angles = torch.randn(tokens, QUBITS, requires_grad=True), torch.randn(circuit.n_angles, requires_grad=True)
        runs = {
            "simulator": Simulator().compile(circuit),
            "lattice": SurrogateExecutor(Simulator(), deferred=True).compile(circuit),
        }

        def step(run: Callable[..., Any], inputs: torch.Tensor = inputs, angles: torch.Tensor = angles) -> Callable[[], object]:
            return lambda: run(inputs, angles).sum().backward()

        steps = {name: step(run) for name, run in runs.items()}
        for first in steps.values():
            first()
        times = {name: asdict(timing) for name, timing in harness.interleaved(steps, seconds=seconds).items()}
        found.append({"kind": "evaluation", "tokens": tokens, "kernel": os.environ.get("QPEFT_KERNEL", "on"), "timings": times})
    return found


def sizes() -> list[dict[str, Any]]:
    """Points of the grid: the tokens per step from which it pays for a circuit of one module; and those for MODULES modules."""
    rows = []
    for n, layers in itertools.product((2, 3, 4, 5, 6, 8), (1, 2, 3)):
        points = (2 * layers + 1) ** n
        rows.append({"kind": "size", "qubits": n, "layers": layers, "points": points, "shared": -(-points // MODULES)})
    return rows


def trained(recipe: Path, folder: Path, arm: str, settings: list[str]) -> dict[str, Any]:
    """One arm; a run that is there already is not run again. Losses are nats/token on the held-out rows, moves radians."""
    config = load_recipe(recipe, [*settings, *ARMS[arm]])
    record = train(config, folder / arm, baseline=folder / "baseline.json")
    found = {
        "kind": "training",
        "recipe": recipe.stem,
        "arm": arm,
        "settings": settings,
        "loss_before": record.metrics_before["loss"],
        "loss": record.metrics["loss"],
        "loss_exact": record.backend.get("exact_loss", record.metrics["loss"]),
        "wall_s": record.wall_s,
        "backend": record.backend,
    }
    if arm != "frozen" and (folder / "frozen" / "record.json").exists():
        initial = _angles(load_run(folder / "frozen")[1])
        _, model, tokenizer = load_run(folder / arm)
        angles = _angles(model)
        found["angles_moved_rms"] = float((angles - initial).square().mean().sqrt())
        with torch.no_grad():
            angles.copy_(initial)
        _, held_out = load_data(config.data)
        rows = tokenize_all(held_out, tokenizer, config.data.max_length).rows
        found["loss_with_initial_angles"] = evaluate(model, rows, tokenizer)["loss"]
    return found


def _angles(model: torch.nn.Module) -> torch.Tensor:
    """Of the one circuit that all modules share."""
    (layer,) = (module for module in model.modules() if isinstance(module, QuantumLayer))
    return layer.angles


def plot(records: list[dict[str, Any]], file: Path) -> None:
    """Circuits per step against tokens per step, a line for each way and gradient; crosses are what the backend counted."""
    names = {"direct": "one circuit per token and module", "lattice": "grid surrogate"}
    with drawing(LIGHT):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.6, 4.6), layout="constrained", dpi=130)
        axes = figure.add_subplot()
        counts = [r for r in records if r["kind"] == "count"]
        for way, colour in (("direct", LIGHT.palette[1]), ("lattice", LIGHT.palette[0])):
            for gradient, mark in (("parameter-shift", "o-"), ("spsa", "s--")):
                rows = [r for r in counts if r["gradient"] == gradient]
                told = f"{names[way]}, {'SPSA' if gradient == 'spsa' else 'parameter shift'}"
                sizes, circuits = [r["tokens"] for r in rows], [r[way]["circuits"] for r in rows]
                axes.loglog(sizes, circuits, mark, color=colour, label=told, markersize=4)
        checks = [r for r in records if r["kind"] == "check"]
        sizes, circuits = [r["tokens"] for r in checks], [r["circuits"] for r in checks]
        axes.loglog(sizes, circuits, "x", color=LIGHT.ink, markersize=8, label="counted by the backend in a real step")
        axes.set(xlabel="tokens per training step", ylabel="circuits per training step")
        axes.set_title(
            f"Circuits of the grid surrogate do not grow with tokens\n(QTHA, {QUBITS} qubits, one circuit in {MODULES} modules)",
            fontsize=10,
        )
        axes.set_xticks(TOKENS, [f"{t:,}" for t in TOKENS], minor=False)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.minorticks_off()
        figure.legend(loc="outside lower center", ncol=2, fontsize=8)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chip", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("chip.jsonl"))
    parser.add_argument("--plot", type=Path, help="write this PNG")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each evaluation")
    parser.add_argument("--train", type=Path, metavar="FOLDER", help="train in this folder instead")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="with --train: another recipe than recipes/chip.yaml")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--set", action="append", default=[], help="a setting of the recipe, key=value")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    records = harness.Records(arguments.out)
    records.add(harness.machine(1))
    if arguments.train:
        for arm in arguments.arms:
            records.add(trained(arguments.recipe, arguments.train, arm, arguments.set))
        return
    gradients: tuple[Gradient, ...] = ("parameter-shift", "spsa")
    for gradient in gradients:
        for tokens in TOKENS:
            records.add({"kind": "count", "gradient": gradient, "tokens": tokens, "pack": True, **counted(tokens, gradient, True)})
        for tokens in CHECKED:
            spent, expected = measured(tokens, gradient, True), counted(tokens, gradient, True)["lattice"]
            if asdict(spent) != expected:
                raise SystemExit(f"a real step of {tokens} tokens cost {spent}, the formula says {expected}")
            records.add({"kind": "check", "gradient": gradient, "tokens": tokens, "circuits": spent.circuits})
    for row in [*timings(arguments.seconds), *sizes()]:
        records.add(row)
    for record in harness.read(arguments.out):
        print(record)
    if arguments.plot:
        plot(harness.read(arguments.out), arguments.plot)


if __name__ == "__main__":
    main()
