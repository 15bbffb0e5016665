"""Where a run's circuits are executed while it trains: the exact simulator, or a backend with a budget.

`CircuitSession` is what training calls; as it stands it is the session of a run without a backend, whose circuits stay on the
simulator. `ChipSession` runs them on a backend. A run's folder holds what makes it safe to continue: `spent.json` (the ledger over
all sessions, the gradient that was chosen, the calibrations that were used), with a vendor's cloud `jobs/` (the journal, whose
results are never paid twice), with `cache: true` `results.sqlite`. Seeds belong to steps, not to sessions, so a run that was
interrupted gets the same shots as one that was not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
from pathlib import Path
from typing import Any, Self

from torch import nn

from qpeft.adapters.quantum_layer import executed_by
from qpeft.backends.base import Backend
from qpeft.backends.emulator.backend import EmulatorBackend, NoisyExecutor
from qpeft.backends.executor import BackendExecutor
from qpeft.backends.executor import Gradient as InnerGradient
from qpeft.backends.registry import get_backend, is_paid
from qpeft.backends.spending.budget import Budget, Cost, Ledger
from qpeft.backends.spending.cache import ResultCache
from qpeft.circuits.executor import Executor
from qpeft.circuits.surrogate.base import SurrogateMaker, noise_has_won
from qpeft.circuits.surrogate.choice import surrogate_maker, surrogate_size
from qpeft.circuits.surrogate.executor import SurrogateExecutor
from qpeft.errors import BudgetError, RunError
from qpeft.files import atomic_write
from qpeft.training.on_chip.ask_once import AskOnce
from qpeft.training.on_chip.requests import Request, circuit_requests
from qpeft.training.processes import Processes
from qpeft.training.recipe.config import BackendSection, current_gradient

logger = logging.getLogger(__name__)

SPENT, CACHE, JOBS = "spent.json", "results.sqlite", "jobs"
INNER: dict[str, InnerGradient] = {"shift": "parameter-shift", "spsa": "spsa"}


def journal_name(backend: str) -> str:
    """The file name of a backend's journal."""
    return re.sub(r"[^\w.-]+", "-", backend) + ".jsonl"


def open_backend(name: str, folder: Path, *, budget: Budget | None = None, pack: bool = False) -> Backend:
    """The backend of this name. One that is paid for gets a journal in `folder/jobs`, and enforces the budget itself.

    Args:
        name: name of the backend, as `get_backend` takes it.
        folder: the run's folder.
        budget: what may be spent on a backend that is paid for.
        pack: run as many circuits at once as the chip has room for.
    """
    options: dict[str, Any] = {"pack": True} if pack else {}
    if is_paid(name):
        options |= {"journal": folder / JOBS / journal_name(name), "budget": budget}
    return get_backend(name, **options)


def make_executor(backend: Backend, section: BackendSection, **options: Any) -> BackendExecutor:
    """Executor for the recipe's `backend` section; the part of `gradient` after the dash is its gradient method."""
    return BackendExecutor(
        backend, section.shots, gradient=INNER[section.gradient.rpartition("-")[2]], seed=section.seed, **options
    )


class CircuitSession:
    """Interface between the training loop and the circuits' backend. The base class, for the exact simulator, does nothing."""

    deferred_gradients: frozenset[str] = frozenset()
    """Names of parameters whose gradients `flush` adds, and which data-parallel training must not wait for."""

    def __enter__(self) -> Self:
        """Put the model's circuits where the session runs them."""
        return self

    def __exit__(self, *_: object) -> None:
        """Put the circuits back where they were."""

    def begin_step(self, step: int) -> None:
        """Before the first batch of the step after `step` steps. BudgetError, and nothing run, if it would break the budget."""

    def flush(self) -> None:
        """After the last backward pass of a step: run the gradients that wait and add them to the parameters'."""

    def begin_evaluation(self, step: int) -> None:
        """Before an evaluation after `step` steps."""

    def explain(self, error: BudgetError, step: int) -> BudgetError:
        """The error of a budget that stops a run after `step` steps, with what was spent and how to continue."""
        return error

    def shown(self) -> dict[str, int | float]:
        """Costs for the progress line."""
        return {}

    def to_record(self) -> dict[str, Any]:
        """`RunRecord.backend`; empty where no backend ran anything."""
        return {}

    @property
    def simulated(self) -> bool:
        """Whether a classical computer ran the circuits."""
        return True


class ChipSession(CircuitSession):
    """A model's circuits on the backend of a recipe.

    With several processes the first one alone opens the backend, pays and keeps the ledger; the others get its values.
    """

    def __init__(self, section: BackendSection, folder: Path, model: nn.Module, processes: Processes | None = None) -> None:
        self.section, self.folder, self.model = section, folder, model
        self.processes = processes or Processes()
        self.budget = section.budget.bounds()
        kept = _kept(folder) if self.processes.first else {}
        self.ledger = Ledger(self.budget, Cost(**kept.get("spent", {})))
        self.ledger.cached, self.ledger.deduplicated = kept.get("cached", 0), kept.get("deduplicated", 0)
        self.ledger.watch = lambda _: self._note()
        self.cache = ResultCache(folder / CACHE) if section.cache and self.processes.first else None
        self.calibrations: list[str] = kept.get("calibrations", [])
        self.requests = circuit_requests(model)
        if not self.requests:
            raise RunError("the adapter has no circuit, so nothing of it runs on a backend", hint="leave out the backend section")
        self.backend: Backend | None = None
        self.runner: BackendExecutor | None = None
        self.surrogate: SurrogateExecutor | None = None
        self.signals: list[tuple[float, float]] = []
        self._last_step, self._before = Cost(), Cost()
        self._model_executors = contextlib.ExitStack()
        if not section.gradient.startswith("direct"):
            ids = {id(request.layer.angles) for request in self.requests if request.trained}
            self.deferred_gradients = frozenset(name for name, p in model.named_parameters() if id(p) in ids)

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _open(self) -> None:
        inner = self._open_backend() if self.processes.first else None
        through = not self.section.gradient.startswith("direct")
        executor: Executor | None = inner
        if self.processes.count > 1:
            executor = AskOnce(inner, self.processes, same_rows=through)
        assert executor is not None
        self.surrogate = SurrogateExecutor(executor, make=self._make(), deferred=True) if through else None
        self._model_executors.enter_context(executed_by(self.model, lambda _: self.surrogate or executor))

    def _make(self) -> SurrogateMaker:
        section = self.section
        return surrogate_maker(kind=section.surrogate, shots=section.shots, error=section.surrogate_error)

    def _open_backend(self) -> Executor:
        """The executor of the first process."""
        section = self.section
        self.backend = open_backend(section.name, self.folder, budget=self.budget, pack=section.pack)
        if self.backend.journal is not None:
            self.ledger.budget = Budget()  # the journal holds it, over all sessions
        if self.backend.calibration not in self.calibrations:
            self.calibrations.append(self.backend.calibration)
        self._note()
        if section.gradient == "emulator-autograd":
            assert isinstance(self.backend, EmulatorBackend)  # the recipe was checked
            return NoisyExecutor(self.backend)
        self.runner = make_executor(self.backend, section, ledger=self.ledger, cache=self.cache)
        return self.runner

    def _close(self) -> None:
        self._model_executors.close()
        if self.backend is not None:
            self.backend.close()

    def begin_step(self, step: int) -> None:
        """Prepare the step after `step` steps: recalibrate if it is due, select the step's seeds, check the budget.

        Raises:
            BudgetError: what was spent plus `step_cost()` is over the budget. Nothing was run.
        """
        if step and self.section.recalibrate and step % self.section.recalibrate == 0:
            self._close()
            self._open()
        self._begin(step, 0)

        def check() -> None:
            self._before = self.spent
            self.budget.check(self.spent, self.step_cost())

        self.processes.on_first(check)

    def begin_evaluation(self, step: int) -> None:
        """Select the seeds of the evaluation after `step` steps, and forget the surrogates' values."""
        self._begin(step, 1)

    def _begin(self, *sample: int) -> None:
        """Circuits that are not trained are measured anew as well: a step must not depend on where a session began."""
        if self.runner is not None:
            self.runner.begin(*sample)
        if self.surrogate is not None:
            self.surrogate.forget()

    def flush(self) -> None:
        """Run the surrogates' deferred gradients, add them to `angles.grad`, and note what the step cost."""
        if self.surrogate is not None:
            self._check_signal()
            self.surrogate.flush()
        self._last_step = self.spent + self._before * -1

    def _check_signal(self) -> None:
        """Warn, once for a session, where noise leaves nothing of what the circuits compute."""
        assert self.surrogate is not None
        if self.signals or not self.processes.first:
            return
        self.signals = self.surrogate.signals(self.section.shots)
        for signal, exact in self.signals:
            if lost := noise_has_won(signal, exact, self.section.shots):
                logger.warning("%s: %s. Training goes on; a classical model would do as well", self.section.name, lost)

    def step_cost(self) -> Cost:
        """Cost of the next step without cache hits. Surrogate: from the formula. Direct execution: the cost of the last step."""
        if self.runner is None or self.backend is None:
            return Cost()
        if self.cache is not None or self.backend.journal is not None:
            return Cost()  # it may have been paid for already; the runs themselves are checked one by one
        if self.surrogate is None:
            return self._last_step
        return sum((surrogate_cost(self.runner, self.section, request) for request in self.requests), Cost())

    @property
    def spent(self) -> Cost:
        """Cost over all sessions of the run. With a vendor: from the journal."""
        journal = None if self.backend is None else self.backend.journal
        return self.ledger.spent if journal is None else journal.spent

    @property
    def simulated(self) -> bool:
        """Whether the backend is simulated, as the first process knows it. Read it in every process."""
        return self.processes.on_first(lambda: bool(self.backend is not None and self.backend.simulated))

    def explain(self, error: BudgetError, step: int) -> BudgetError:
        """A BudgetError with the step, what was spent over all sessions, and how to continue.

        Args:
            error: what the budget said.
            step: the last optimizer step that was done.
        """
        return BudgetError(
            f"{error.what}: stopped after step {step}, spent {self.spent}",
            value=error.value,
            bound=error.bound,
            hint="the same command with a larger backend.budget goes on from the checkpoint",
        )

    def shown(self) -> dict[str, int | float]:
        """Spent over all sessions: `circuits`, `shots`, `jobs`, `chip_s` in seconds, and `money` at the budget's prices."""
        spent, price = self.spent, self.budget.price
        told = {"circuits": spent.circuits, "shots": spent.shots, "jobs": spent.jobs, "chip_s": round(spent.seconds, 1)}
        return told if price is None else {**told, "money": round(price.of(spent), 4)}

    def to_record(self) -> dict[str, Any]:
        """`RunRecord.backend`, from the first process. Call it in every process.

        Returns:
            `name`, `calibrations`, `shots_per_circuit` (None for exact probabilities), `gradient`; what was spent over all
            sessions: `circuits`, `shots`, `programs`, `jobs`, `chip_s` in seconds, `money` where the budget has a price;
            circuits that were not run: `cached`, `deduplicated`. Through a surrogate also how much the values vary over its
            points in the session's first step, `signal_rms` for each circuit, and how much they would without noise,
            `noiseless_signal_rms`.
        """
        return self.processes.on_first(self._record)

    def _record(self) -> dict[str, Any]:
        spent = dataclasses.asdict(self.spent)
        return {
            "name": self.section.name,
            "calibrations": self.calibrations,
            "shots_per_circuit": self.section.shots,
            "gradient": self.section.gradient,
            **{name: spent[name] for name in ("circuits", "shots", "programs", "jobs")},
            "chip_s": round(spent["seconds"], 3),
            **({} if self.budget.price is None else {"money": round(self.budget.price.of(self.spent), 4)}),
            "cached": self.ledger.cached,
            "deduplicated": self.ledger.deduplicated,
            **({"signal_rms": [round(a, 4) for a, _ in self.signals]} if self.signals else {}),
            **({"noiseless_signal_rms": [round(b, 4) for _, b in self.signals]} if self.signals else {}),
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


def surrogate_points(section: BackendSection, request: Request) -> int:
    """Circuits of one evaluation of a circuit through its surrogate.

    Args:
        section: the recipe's `backend` section.
        request: the layer and its circuit.

    Raises:
        CircuitError: the circuit has no surrogate.
    """
    kind, error = section.surrogate, section.surrogate_error
    return surrogate_size(request.circuit, request.observables, kind=kind, shots=section.shots, error=error)


def surrogate_cost(runner: BackendExecutor, section: BackendSection, request: Request, *, gradient: bool = True) -> Cost:
    """Cost of one training step of a circuit through its surrogate.

    Args:
        runner: executor on the backend.
        section: the recipe's `backend` section.
        request: the layer and its circuit.
        gradient: count the gradient of the angles too, if they are trained.

    Raises:
        CircuitError: the circuit has no surrogate.
    """
    prepared, points = runner.prepare(request.circuit, request.observables), surrogate_points(section, request)
    cost = prepared.cost(points)
    return cost + prepared.cost(prepared.gradient_rows(points)) if gradient and request.trained else cost


def chosen_gradient(folder: Path) -> str | None:
    """Gradient method of the run in this folder; None before its first session."""
    found: str | None = current_gradient(_kept(folder).get("gradient"))
    return found


def _kept(folder: Path) -> dict[str, Any]:
    file = folder / SPENT
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
