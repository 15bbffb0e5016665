"""Cost estimate of a recipe on a backend, and the gradient method that is chosen. Nothing runs.

Per step, with P points of a circuit's surrogate, G circuits for the gradient of one point (2 for each rotation, 4 for each
controlled one; 2 with SPSA), M modules that share the circuit and T token positions:

    surrogate  P (1 + G)     whatever T and M
    direct     M T (1 + G')   G' counts the inputs' gates too

times the bases that the observables need; an evaluation is P, or M times its positions. Direct execution of equal rows runs them
once, and the T of a step is a mean: the figure is an estimate from above. A surrogate's figures are exact.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qpeft.adapters.base import Delta
from qpeft.adapters.peft.layer import DeltaLayer
from qpeft.adapters.quantum_layer import CircuitLayer
from qpeft.backends.base import Backend, CompiledCircuit, Counts, FloatArray, Limits
from qpeft.backends.executor import BackendExecutor
from qpeft.backends.registry import get_backend, planned_limits
from qpeft.backends.spending.budget import Cost
from qpeft.backends.spending.paid import SECONDS_PER_SHOT
from qpeft.circuits.ir import Circuit
from qpeft.errors import BudgetError, CircuitError, RunError
from qpeft.training.model.held_out_loss import Rows
from qpeft.training.on_chip.requests import Request, circuit_requests
from qpeft.training.on_chip.session import INNER, chosen_gradient, make_executor, surrogate_cost, surrogate_points
from qpeft.training.recipe.config import BackendSection, RunConfig
from qpeft.training.recipe.training_section import TrainingSection

QUEUE_S = (3.0, 2820.0)  # shortest and longest wait of a job seen on Wukong-72; used for chips of which none is known
MOST_CHIP_S = 600.0  # of one step: above this, SPSA is chosen
TOKENS = 1000  # the unit in which inference is told


@dataclass(frozen=True)
class Usage:
    """Size of a run: steps, evaluations, and their token positions per batch, padding included."""

    steps: int
    batches: tuple[int, ...]
    evaluations: int
    held_out: tuple[int, ...] = ()

    @property
    def positions(self) -> int:
        """Token positions of a step."""
        return sum(self.batches)


def usage(config: RunConfig, train_rows: Rows, eval_rows: Rows) -> Usage:
    """Size of a run. A step is the mean over an epoch in random order, batches padded to their longest row.

    Args:
        config: the recipe.
        train_rows: tokenised training rows.
        eval_rows: tokenised held-out rows.
    """
    section = config.training
    lengths, held_out = ([len(row["input_ids"]) for row in rows] for rows in (train_rows, eval_rows))
    size, parts = section.per_device_train_batch_size, section.accumulation(processes=1)
    per_epoch = max(1, math.ceil(len(lengths) / (size * parts)))
    epochs = 3.0 if section.num_train_epochs is None else section.num_train_epochs
    steps = section.max_steps if section.max_steps is not None else math.ceil(epochs * per_epoch)
    order = random.Random(0).sample(list(lengths), len(lengths))
    padded = _padded(order, size)
    mean = math.ceil(sum(padded) / max(1, len(padded)))
    batches = _padded(sorted(held_out), section.per_device_eval_batch_size)
    return Usage(steps, (mean,) * parts, _evaluations(section, steps, per_epoch) if held_out else 0, tuple(batches))


def _padded(lengths: Sequence[int], size: int) -> list[int]:
    """Positions of each batch of `size` rows."""
    return [max(lengths[i : i + size]) * len(lengths[i : i + size]) for i in range(0, len(lengths), size)]


def _evaluations(section: TrainingSection, steps: int, per_epoch: int) -> int:
    """During training, the last step always among them, and once more at the end if the weights are not those evaluated last."""
    if section.eval_strategy == "epoch":
        at = [k for k in range(1, steps + 1) if (k % per_epoch == 0 or k == steps) and k / per_epoch >= section.eval_delay]
    elif section.eval_strategy == "steps":
        every = section.eval_steps if section.eval_steps is not None else section.logging_steps
        stride = max(1, math.ceil(steps * every) if every < 1 else int(every))
        at = [k for k in range(1, steps + 1) if (k % stride == 0 or k == steps) and k >= section.eval_delay]
    else:
        at = []
    return len(at) + (steps not in at or section.load_best_model_at_end) + section.eval_on_start


def modules_of(model: Any) -> dict[int, int]:
    """How many adapted modules use each circuit layer, by the layer's id."""
    found: Counter[int] = Counter()
    for layer in model.modules():
        if isinstance(layer, DeltaLayer):
            for delta in layer.deltas.values():
                assert isinstance(delta, Delta)
                shared = [m for owner in delta.shared for m in owner.modules()]
                used = {id(m) for m in (*delta.modules(), *shared) if isinstance(m, CircuitLayer)}
                found.update(used)
    return found


@dataclass(frozen=True)
class Way:
    """One way of running: cost of a step, of an evaluation, of the whole training, and the queue's share (seconds, from and to)."""

    step: Cost
    training: Cost
    queue_s: tuple[float, float]


def ways(config: RunConfig, section: BackendSection, backend: Backend, model: Any, used: Usage) -> dict[str, Way]:
    """The cost of every way of running a model's circuits. Ways that a circuit cannot take are left out.

    Args:
        config: the recipe.
        section: its `backend` section.
        backend: the backend.
        model: the model with the adapter.
        used: size of the run, from `usage`.

    Returns:
        The cost by gradient method: "surrogate-shift", "surrogate-spsa", "direct-shift" and "direct-spsa".
    """
    modules, asked, found = modules_of(model), circuit_requests(model), {}
    runner = make_executor(backend, section.model_copy(update={"gradient": "surrogate-shift"}))
    for name in ("surrogate-shift", "surrogate-spsa", "direct-shift", "direct-spsa"):
        runner.gradient = INNER[name.rpartition("-")[2]]
        try:
            if name.startswith("surrogate"):
                step = sum((surrogate_cost(runner, section, request) for request in asked), Cost())
                once = sum((surrogate_cost(runner, section, request, gradient=False) for request in asked), Cost())
                training = step * used.steps + once * used.evaluations
                rounds = 2 * used.steps + used.evaluations
            else:
                step = sum((_direct(runner, request, modules[id(request.layer)], used.batches) for request in asked), Cost())
                once = sum((_forward(runner, request, modules[id(request.layer)], used.held_out) for request in asked), Cost())
                training = step * used.steps + once * used.evaluations
                runs = 2 * used.steps * len(used.batches) + used.evaluations * len(used.held_out)
                rounds = runs * sum(modules.values())
        except CircuitError:
            continue
        low, high = queue_of(backend)
        found[name] = Way(step, training, (min(rounds, training.jobs) * low, training.jobs * high))
    return found


def _direct(runner: BackendExecutor, request: Request, modules: int, batches: Sequence[int]) -> Cost:
    """A step of one circuit, every position of every module a row of its own."""
    prepared, total = runner.prepare(request.circuit, request.observables), Cost()
    for rows in _rows(request, batches):
        total += prepared.cost(prepared.gradient_rows(rows, inputs=True, angles=request.trained))
    return total * modules + _forward(runner, request, modules, batches)


def _forward(runner: BackendExecutor, request: Request, modules: int, batches: Sequence[int]) -> Cost:
    """Batches of one circuit without gradients, as in an evaluation."""
    prepared = runner.prepare(request.circuit, request.observables)
    return sum((prepared.cost(rows) for rows in _rows(request, batches)), Cost()) * modules


def _rows(request: Request, batches: Sequence[int]) -> Sequence[int]:
    return batches if request.circuit.n_inputs else (1,) * len(batches)


def queue_of(backend: Backend) -> tuple[float, float]:
    """Shortest and longest wait of a job, seconds; zero where there is no queue."""
    if backend.chip is None:
        return (0.0, 0.0) if backend.simulated else QUEUE_S
    return backend.chip.timing.queue_s or QUEUE_S


def choose(section: BackendSection, found: dict[str, Way], model: Any, used: Usage) -> tuple[str, str]:
    """Choose the gradient method: the surrogate where it has no more points than a step has rows, SPSA where parameter shift costs
    too much.

    Args:
        section: the recipe's `backend` section.
        found: cost of each way, from `ways`.
        model: the model with the adapter.
        used: size of the run, from `usage`.

    Returns:
        The name of the method and the reason for it.
    """
    modules = modules_of(model)
    rows = sum(modules[id(request.layer)] for request in circuit_requests(model)) * used.positions
    budget = section.budget.bounds()

    def fits(name: str) -> bool:
        try:
            budget.check(Cost(), found[name].training)
        except BudgetError:
            return False
        return True

    if "surrogate-shift" not in found:
        kind, why = "direct", "a circuit has no surrogate of the error asked"
    else:
        points = sum(surrogate_points(section, request) for request in circuit_requests(model))
        kind = "surrogate" if points <= rows else "direct"
        relation = "at most" if points <= rows else "more than"
        why = f"the surrogates have {points:,} points, {relation} the {rows:,} rows that a step would run directly"
    shift, spsa = found[f"{kind}-shift"], f"{kind}-spsa"
    if not fits(f"{kind}-shift") and fits(spsa):
        return spsa, f"{why}; the budget covers SPSA and not parameter shift"
    if shift.step.seconds > MOST_CHIP_S:
        return (
            spsa,
            f"{why}; parameter shift would take {shift.step.seconds:,.0f} s of chip time a step, more than {MOST_CHIP_S:,.0f}",
        )
    return f"{kind}-shift", f"{why}; parameter shift is unbiased and takes {shift.step.seconds:,.1f} s of chip time a step"


def decided(config: RunConfig, model: Any, train_rows: Rows, eval_rows: Rows, folder: Path) -> BackendSection:
    """The backend section of a recipe with `gradient: auto` resolved: once for a run, whatever its budget becomes later.

    Args:
        config: the recipe, with a `backend` section.
        model: the model with the adapter.
        train_rows: tokenised training rows.
        eval_rows: tokenised held-out rows.
        folder: the run's folder. A choice that an earlier session made is kept.

    Returns:
        The section with a gradient method other than `auto`.
    """
    section = config.backend
    assert section is not None
    if section.gradient != "auto":
        return section
    choice = chosen_gradient(folder)
    if choice is None:
        found, backend = usage(config, train_rows, eval_rows), _standing(section)
        choice, _ = choose(section, ways(config, section, backend, model, found), model, found)
        backend.close()
    return section.model_copy(update={"gradient": choice})


def plan(config: RunConfig, section: BackendSection) -> dict[str, Any]:
    """The whole plan, fit for JSON. The base model is built without its weights; nothing runs and nothing is sent.

    Args:
        config: the recipe.
        section: its `backend` section.

    Raises:
        RunError: no adapter section, or no circuit in the adapter. BackendError: the circuit does not run there.
    """
    from peft import get_peft_model

    from qpeft.training.data.examples import load_data
    from qpeft.training.data.tokenization import tokenize_all
    from qpeft.training.model import loading
    from qpeft.training.recipe.adapter_section import build_adapter_config

    if config.adapter is None:
        raise RunError("the recipe has no adapter section", value=config.name, hint="a recipe of one adapter")
    train, held_out = load_data(config.data)
    tokenizer = loading.load_tokenizer(config.model)
    rows, held_out_rows = (tokenize_all(part, tokenizer, config.data.max_length).rows if part else [] for part in (train, held_out))
    model = get_peft_model(loading.empty_model(config.model), build_adapter_config(config.adapter))
    asked, modules = circuit_requests(model), modules_of(model)
    if not asked:
        raise RunError("the adapter has no circuit, so nothing of it runs on a backend")
    backend = _standing(section)
    used = usage(config, rows, held_out_rows)
    found = ways(config, section, backend, model, used)
    choice, why = choose(section, found, model, used)
    runner = make_executor(backend, section.model_copy(update={"gradient": "surrogate-shift"}))
    compiled = [runner.prepare(request.circuit, request.observables) for request in asked]
    inference = _inference(section, backend, asked, modules)
    backend.close()
    return {
        "recipe": config.name,
        "backend": section.name,
        "simulated": backend.simulated,
        "calibration": backend.calibration,
        "shots_per_circuit": section.shots,
        "circuits": [
            {
                "qubits": request.circuit.n_qubits,
                "inputs": request.circuit.n_inputs,
                "angles": request.circuit.n_angles,
                "modules": modules[id(request.layer)],
                "surrogate_points": _points(section, request),
                "circuits_per_program": max(compiled_circuit.per_program for compiled_circuit, _ in prepared.groups),
            }
            for request, prepared in zip(asked, compiled, strict=True)
        ],
        "steps": used.steps,
        "evaluations": used.evaluations,
        "positions_per_step": used.positions,
        "training": {name: asdict(way) for name, way in found.items()},
        "inference": inference,
        "queue_s_per_job": queue_of(backend),
        "choice": choice,
        "why": why,
        **_money(section, found),
    }


def _money(section: BackendSection, found: Mapping[str, Way]) -> dict[str, Any]:
    """What training costs by each way at the prices of the recipe's budget; empty without prices."""
    price = section.budget.bounds().price
    if price is None:
        return {}
    costs = {name: round(price.of(way.training), 4) for name, way in found.items()}
    return {"money": {"currency": price.currency, "training": costs, "budget": section.budget.money}}


def _inference(
    section: BackendSection, backend: Backend, asked: Sequence[Request], modules: Mapping[int, int]
) -> dict[str, dict[str, float]]:
    """Cost of `qpeft export --to surrogate`, and of running every token directly. Neither packs."""
    if section.pack:
        section = section.model_copy(update={"pack": False})
        backend = _standing(section)
    runner = make_executor(backend, section.model_copy(update={"gradient": "surrogate-shift"}))
    each = [_forward(runner, request, modules[id(request.layer)], (TOKENS,)) for request in asked if request.circuit.n_inputs]
    found = {"direct_per_1000_tokens": asdict(sum(each, Cost()))}
    if all(_points(section, request) is not None for request in asked):
        found["surrogate_once"] = asdict(
            sum((surrogate_cost(runner, section, request, gradient=False) for request in asked), Cost())
        )
    return found


def _points(section: BackendSection, request: Request) -> int | None:
    try:
        return surrogate_points(section, request)
    except CircuitError:
        return None


def _standing(section: BackendSection) -> Backend:
    """The backend to plan for. A cloud's chip is stood in for by its shape alone: a plan needs no key."""
    limits = planned_limits(section.name)
    if limits is not None:
        return PlannedDevice(section.name, limits)
    return get_backend(section.name, **({"pack": True} if section.pack else {}))


class PlannedDevice(Backend):
    """A vendor's device as far as costs go: one circuit per program, the vendor's limits, the usual time per shot."""

    simulated, calibration = False, "not asked"

    def __init__(self, name: str, limits: Limits) -> None:
        self.name, self.limits = name, limits

    def compile(self, circuit: Circuit) -> CompiledCircuit:
        """A circuit for cost estimates only: its `run` raises RunError."""
        return _Shape(circuit)

    def estimate(self, programs: int, shots: int) -> float:
        """Seconds of chip time for `programs` programs of `shots` each, at `SECONDS_PER_SHOT`; queue not counted."""
        return programs * shots * SECONDS_PER_SHOT


class _Shape(CompiledCircuit):
    """A circuit of which the size alone is known."""

    def __init__(self, circuit: Circuit) -> None:
        self.circuit = circuit

    def run(self, params: FloatArray, shots: int | None, seed: int | None = None) -> Counts:
        raise RunError("a plan runs nothing")
