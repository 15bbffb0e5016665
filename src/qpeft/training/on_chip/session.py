"""The backend of a training run: executors for the model's circuits, the sample of each step, and what it costs.

A run's folder holds what makes it safe to go on: `spent.json` (the ledger over all sessions, the gradient that was chosen, the
calibrations that were seen), with a vendor's cloud `jobs/` (the journal, whose results are never paid twice), with `cache: true`
`results.sqlite`. Seeds belong to steps, not to sessions, so a run that was cut off sees the shots of one that was not.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from qpeft.adapters.quantum_layer import CircuitLayer, set_executor
from qpeft.backends.base import Backend
from qpeft.backends.emulator.backend import EmulatorBackend, NoisyExecutor
from qpeft.backends.executor import BackendExecutor
from qpeft.backends.executor import Gradient as InnerGradient
from qpeft.backends.registry import get_backend, is_paid
from qpeft.backends.spending.budget import Budget, Cost, Ledger
from qpeft.backends.spending.cache import ResultCache
from qpeft.circuits.executor import Executor, Expectations
from qpeft.circuits.ir import Circuit, Observable
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.circuits.surrogate.executor import SurrogateExecutor
from qpeft.circuits.surrogate.grid import FourierGrid
from qpeft.errors import BudgetError, RunError
from qpeft.files import atomic_write
from qpeft.training.recipe.config import BackendSection

logger = logging.getLogger(__name__)

SPENT, CACHE, JOBS = "spent.json", "results.sqlite", "jobs"
INNER: dict[str, InnerGradient] = {"shift": "parameter-shift", "spsa": "spsa"}


def journal_name(backend: str) -> str:
    """The file name of a backend's journal."""
    return re.sub(r"[^\w.-]+", "-", backend) + ".jsonl"


def open_backend(name: str, folder: Path, *, budget: Budget | None = None, pack: bool = False) -> Backend:
    """The backend of this name. One that is paid for gets a journal in `folder/jobs`, and enforces the budget itself."""
    options: dict[str, Any] = {"pack": True} if pack else {}
    if is_paid(name):
        options |= {"journal": folder / JOBS / journal_name(name), "budget": budget}
    return get_backend(name, **options)


def make_executor(backend: Backend, section: BackendSection, **options: Any) -> BackendExecutor:
    """The executor that a recipe's section means, for its gradient's last word."""
    return BackendExecutor(
        backend, section.shots, gradient=INNER[section.gradient.rpartition("-")[2]], seed=section.seed, **options
    )


class ChipSession:
    """A model's circuits on the backend of a recipe. Use as a context manager: it lets go of clients and journals."""

    def __init__(self, section: BackendSection, folder: Path, model: nn.Module) -> None:
        self.section, self.folder, self.model = section, folder, model
        self.budget = Budget(**section.budget.model_dump())
        kept = _kept(folder)
        self.ledger = Ledger(self.budget, Cost(**kept.get("spent", {})))
        self.ledger.cached, self.ledger.deduplicated = kept.get("cached", 0), kept.get("deduplicated", 0)
        self.ledger.watch = lambda _: self._note()
        self.cache = ResultCache(folder / CACHE) if section.cache else None
        self.calibrations: list[str] = kept.get("calibrations", [])
        self.runner: BackendExecutor | None = None
        self._last_step, self._before = Cost(), Cost()
        self.requests = requests(model)
        self._open()

    def __enter__(self) -> ChipSession:
        return self

    def __exit__(self, *_: object) -> None:
        set_executor(self.model, Simulator())
        self._close()

    def _open(self) -> None:
        section = self.section
        self.backend = open_backend(section.name, self.folder, budget=self.budget, pack=section.pack)
        if self.backend.journal is not None:
            self.ledger.budget = Budget()  # the journal holds it, over all sessions
        if self.backend.calibration not in self.calibrations:
            self.calibrations.append(self.backend.calibration)
        inner: Executor
        if section.gradient == "emulator-autograd":
            assert isinstance(self.backend, EmulatorBackend)  # the recipe was checked
            inner = NoisyExecutor(self.backend)
        else:
            inner = self.runner = make_executor(self.backend, section, ledger=self.ledger, cache=self.cache)
        self.grid = None if section.gradient.startswith("direct") else SurrogateExecutor(inner, deferred=True)
        if not set_executor(self.model, self.grid or inner):
            raise RunError("the adapter has no circuit, so nothing of it runs on a backend", hint="leave out the backend section")
        self._note()

    def _close(self) -> None:
        self.backend.close()

    def begin_step(self, step: int) -> None:
        """Before the first batch of the step after `step` steps. BudgetError, and nothing run, if it would break the budget."""
        if step and self.section.recalibrate and step % self.section.recalibrate == 0:
            self._close()
            self._open()
        self._begin(step, 0)
        self._before = self.spent
        self.budget.check(self.spent, self.step_cost())

    def begin_evaluation(self, step: int) -> None:
        self._begin(step, 1)

    def _begin(self, *sample: int) -> None:
        """Circuits that are not trained are measured anew as well: what a step sees must not depend on where a session began."""
        if self.runner is not None:
            self.runner.begin(*sample)
        if self.grid is not None:
            self.grid.forget()

    def flush(self) -> None:
        """After the last backward pass of a step: the gradients that wait."""
        if self.grid is not None:
            self.grid.flush()
        self._last_step = self.spent + self._before * -1

    def step_cost(self) -> Cost:
        """What the next step will cost if nothing is cached: on the lattice by the formula, direct what the last one cost."""
        if self.runner is None:
            return Cost()
        if self.cache is not None or self.backend.journal is not None:
            return Cost()  # it may have been paid for already; the runs themselves are checked one by one
        if self.grid is None:
            return self._last_step
        return sum((grid_cost(self.runner, request) for request in self.requests), Cost())

    @property
    def spent(self) -> Cost:
        """What was spent over all sessions; with a vendor, what its journal says."""
        journal = self.backend.journal
        return self.ledger.spent if journal is None else journal.spent

    def explain(self, error: BudgetError, step: int) -> BudgetError:
        """The error of a budget that stops a run, with what was spent and how to go on."""
        told = BudgetError(
            f"{error.what}: stopped after step {step}, spent {self.spent}",
            value=error.value,
            bound=error.bound,
            hint="the same command with a larger backend.budget goes on from the checkpoint",
        )
        return told

    def shown(self) -> dict[str, int | float]:
        """For the progress bar."""
        spent = self.spent
        return {"circuits": spent.circuits, "shots": spent.shots, "jobs": spent.jobs, "chip_s": round(spent.seconds, 1)}

    def to_record(self) -> dict[str, Any]:
        """`RunRecord.backend`."""
        spent = dataclasses.asdict(self.spent)
        return {
            "name": self.section.name,
            "calibrations": self.calibrations,
            "shots_per_circuit": self.section.shots,
            "gradient": self.section.gradient,
            **{name: spent[name] for name in ("circuits", "shots", "programs", "jobs")},
            "chip_s": round(spent["seconds"], 3),
            "cached": self.ledger.cached,
            "deduplicated": self.ledger.deduplicated,
        }

    def _note(self) -> None:
        kept = {
            "gradient": self.section.gradient,
            "calibrations": self.calibrations,
            "spent": dataclasses.asdict(self.ledger.spent),
            "cached": self.ledger.cached,
            "deduplicated": self.ledger.deduplicated,
        }
        atomic_write(self.folder / SPENT, json.dumps(kept))


@dataclass
class Request:
    """What a layer asks an executor for; as an Executor it writes that down."""

    layer: CircuitLayer
    circuit: Circuit
    observables: tuple[Observable, ...] | None = None

    @property
    def trained(self) -> bool:
        return bool(self.layer.angles.requires_grad)

    def compile(self, circuit: Circuit, observables: Sequence[Observable] | None = None) -> Expectations:
        self.observables = None if observables is None else tuple(observables)
        return Simulator().compile(circuit, observables)


def requests(model: nn.Module) -> list[Request]:
    """What every circuit of a model, once however many modules share it, asks for. The model is left on the simulator."""
    found = [Request(module, module.circuit) for module in model.modules() if isinstance(module, CircuitLayer)]
    for request in found:
        request.layer.set_executor(request)
        request.layer.set_executor(Simulator())
    return found


def grid_cost(runner: BackendExecutor, request: Request, *, gradient: bool = True) -> Cost:
    """Of one step of a circuit on the lattice: its values, and with `gradient` those of the gradient for its angles."""
    prepared, points = runner.prepare(request.circuit, request.observables), FourierGrid.of(request.circuit).size
    cost = prepared.cost(points)
    return cost + prepared.cost(prepared.gradient_rows(points)) if gradient and request.trained else cost


def chosen_gradient(folder: Path) -> str | None:
    """What a run in this folder trains with, if it has begun."""
    return _kept(folder).get("gradient")


def _kept(folder: Path) -> dict[str, Any]:
    file = folder / SPENT
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
