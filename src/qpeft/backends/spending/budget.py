"""Costs: an estimate, a hard budget that is checked before anything is sent, and a ledger of what was spent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

from qpeft.backends.base import Backend, CompiledCircuit
from qpeft.errors import BudgetError


@dataclass(frozen=True, kw_only=True)
class Cost:
    """`circuits` executed (rows of parameters), their `shots` in all, `programs` of the chip after packing, `jobs` sent to it, and
    estimated `seconds` of chip time, queue not counted. Exact probabilities cost no shots."""

    circuits: int = 0
    shots: int = 0
    programs: int = 0
    jobs: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)})

    def __mul__(self, times: int) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) * times for f in dataclasses.fields(self)})

    def __str__(self) -> str:
        return (
            f"{self.circuits:,} circuits, {self.shots:,} shots, {self.programs:,} programs, {self.jobs:,} jobs, "
            f"{self.seconds:,.1f} s of chip time (estimate)"
        )


def cost_of(backend: Backend, compiled: CompiledCircuit, rows: int, shots: int | None) -> Cost:
    """Cost of `compiled.run`.

    Args:
        backend: the backend that runs it.
        compiled: a circuit compiled for that backend.
        rows: number of rows of parameters.
        shots: repetitions of each row; None counts as 0.
    """
    programs = -(-rows // compiled.per_program)
    per_job = backend.limits.max_circuits_per_job or max(programs, 1)
    return Cost(
        circuits=rows,
        shots=rows * (shots or 0),
        programs=programs,
        jobs=-(-programs // per_job),
        seconds=backend.estimate(programs, shots or 0) if rows else 0.0,
    )


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that may be spent; None is no bound."""

    circuits: int | None = None
    shots: int | None = None
    jobs: int | None = None
    seconds: float | None = None

    def check(self, spent: Cost, asked: Cost) -> None:
        """Raise BudgetError, naming what was asked and what is left, if `asked` on top of `spent` breaks a bound."""
        for bound in dataclasses.fields(self):
            most = getattr(self, bound.name)
            left = None if most is None else most - getattr(spent, bound.name)
            if left is not None and getattr(asked, bound.name) > left:
                raise BudgetError(
                    f"the budget of {most:,} {bound.name} does not cover this",
                    value=f"{getattr(asked, bound.name):,} {bound.name}",
                    bound=f"{max(left, 0):,} left",
                    hint=f"raise the budget, or ask for fewer {bound.name}",
                )


@dataclass
class Ledger:
    """Counts of what an executor has spent and saved: `deduplicated` and `cached` count circuits.

    `watch` is called with every cost that is charged, for a display.
    """

    budget: Budget = field(default_factory=Budget)
    spent: Cost = field(default_factory=Cost)
    deduplicated: int = 0
    cached: int = 0
    watch: Callable[[Cost], None] | None = None

    def charge(self, cost: Cost) -> None:
        """Note a cost that is about to arise; BudgetError, and nothing noted, if the budget does not cover it."""
        self.budget.check(self.spent, cost)
        self.spent += cost
        if self.watch is not None:
            self.watch(cost)

    def to_dict(self) -> dict[str, int | float]:
        """For records."""
        return {**dataclasses.asdict(self.spent), "deduplicated": self.deduplicated, "cached": self.cached}
