"""A trained adapter evaluated with its circuits on a backend, vs. their exact values; the cost is known before it arises."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from qpeft.adapters.quantum_layer import CircuitLayer, executed_by
from qpeft.backends.base import Backend
from qpeft.backends.executor import BackendExecutor
from qpeft.backends.spending.budget import Budget, Cost, Ledger
from qpeft.backends.spending.cache import ResultCache
from qpeft.circuits.executor import Expectations
from qpeft.circuits.ir import Circuit, Observable
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.errors import RunError
from qpeft.progress import Count
from qpeft.training.model.held_out_loss import Rows, evaluate

logger = logging.getLogger(__name__)


class Counting:
    """The exact simulator, counting what `executor` would have run instead: `cost`, equal rows of a call once."""

    has_state = False

    def __init__(self, executor: BackendExecutor) -> None:
        self.executor, self.cost = executor, Cost()

    def compile(self, circuit: Circuit, observables: Sequence[Observable] | None = None) -> Expectations:
        """Compile for the exact simulator; each call of the result adds its rows, equal ones once, to `cost`.

        Args:
            circuit: with `n_inputs` inputs and `n_angles` angles.
            observables: default `<Z_k>` for every qubit k.

        Returns:
            A function of `inputs (..., n_inputs)` and `angles (n_angles,)`, radians, that returns exact expectation values
            `(..., n_observables)`.
        """
        prepared, exact = self.executor.prepare(circuit, observables), Simulator().compile(circuit, observables)

        def run(inputs: Tensor, angles: Tensor) -> Tensor:
            rows = inputs.detach().reshape(-1, circuit.n_inputs).cpu().numpy() if circuit.n_inputs else np.zeros((1, 1))
            self.cost += prepared.cost(len(np.unique(rows, axis=0)))
            return exact(inputs, angles)

        return run


def evaluate_on_backend(
    model: Any,
    rows: Rows,
    tokenizer: Any,
    backend: Backend,
    shots: int | None,
    *,
    batch_size: int = 8,
    seed: int | None = 0,
    budget: Budget | None = None,
    cache: ResultCache | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Metrics with the exact circuits and with the circuits on a backend.

    The exact pass comes first and counts the circuits, so the estimate, logged before anything runs on the backend, is the number
    of different inputs that it will see (noise shifts the inputs of later layers, so it may differ by a little).

    Args:
        model: the model with the adapter.
        rows: tokenised held-out rows.
        tokenizer: its tokenizer.
        backend: where the circuits run.
        shots: repetitions of each circuit; None for exact probabilities, where the backend has them.
        batch_size: rows in a batch.
        seed: of simulated shots; None draws fresh ones.
        budget: what may be spent; default without bounds.
        cache: results to reuse and to add to. With a cache the estimate is not held against the budget.
        progress: show bars.

    Returns:
        `exact` and `backend`: metrics as `evaluate` gives them; `estimate` and `spent`: costs; `simulated`; `calibration`.

    Raises:
        RunError: no circuit in the model. AdapterError: one that no backend can run.
        BudgetError: before anything has run, if the estimate is over the budget, or in the middle, if it was too low.
    """
    ledger = Ledger(budget or Budget())
    executor = BackendExecutor(backend, shots, seed=seed, cache=cache, ledger=ledger)
    counting = Counting(executor)
    if not any(isinstance(module, CircuitLayer) for module in model.modules()):
        hint = "leave out --backend, or name a run that has one"
        raise RunError("the adapter has no circuit, so nothing of it runs on a backend", hint=hint)
    with executed_by(model, lambda _: counting):
        exact = evaluate(model, rows, tokenizer, batch_size=batch_size, share_prefixes=False, progress=progress)
    logger.warning("on %s this takes %s", backend.name, counting.cost)
    if cache is None:  # a cache may hold much of it
        ledger.budget.check(ledger.spent, counting.cost)
    with _Progress(ledger, counting.cost, progress), executed_by(model, lambda _: executor):
        noisy = evaluate(model, rows, tokenizer, batch_size=batch_size, share_prefixes=False)
    return {
        "exact": exact,
        "backend": noisy,
        "estimate": _plain(counting.cost),
        "spent": ledger.to_dict(),
        "simulated": backend.simulated,
        "calibration": backend.calibration,
    }


def _plain(cost: Cost) -> dict[str, int | float]:
    return Ledger(spent=cost).to_dict()


class _Progress:
    """Progress in circuits, with shots, jobs and chip time so far."""

    def __init__(self, ledger: Ledger, estimate: Cost, shown: bool) -> None:
        self.ledger, self.estimate, self.shown = ledger, estimate, shown

    def __enter__(self) -> None:
        self.count = Count("circuits on the backend", self.estimate.circuits, shown=self.shown)

        def watch(cost: Cost) -> None:
            spent = self.ledger.spent
            self.count.add(cost.circuits, f"{spent.shots:,} shots, {spent.jobs:,} jobs, {spent.seconds:,.0f} s of chip time")

        self.ledger.watch = watch

    def __exit__(self, *_: object) -> None:
        self.ledger.watch = None
        self.count.__exit__()
