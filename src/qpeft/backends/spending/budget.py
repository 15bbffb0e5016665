"""Costs: an estimate, a hard budget that is checked before anything is sent, and a ledger of what was spent."""

from __future__ import annotations

import dataclasses
import math
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
class Price:
    """What a vendor charges, in `currency`, for each circuit, shot, job and second of chip time."""

    circuit: float = 0.0
    shot: float = 0.0
    job: float = 0.0
    second: float = 0.0
    currency: str = ""

    def of(self, cost: Cost) -> float:
        """The price of a cost."""
        return cost.circuits * self.circuit + cost.shots * self.shot + cost.jobs * self.job + cost.seconds * self.second


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that may be spent; None is no bound. `money` is bounded where there is a price.

    Raises BudgetError for a bound that bounds nothing: no number, not a number, infinite, below zero, or money without a price.
    """

    circuits: int | None = None
    shots: int | None = None
    jobs: int | None = None
    seconds: float | None = None
    money: float | None = None
    price: Price | None = None

    def __post_init__(self) -> None:
        for name in ("circuits", "shots", "jobs", "seconds", "money"):
            most, whole = getattr(self, name), name not in ("seconds", "money")
            number = isinstance(most, int | float) and not isinstance(most, bool)
            if most is not None and (not number or not 0 <= most < math.inf or (whole and most != int(most))):
                kind = "a whole number" if whole else "a number"
                raise BudgetError(f"{name} is {kind}, 0 or more, or None for no bound", value=most)
        if self.money is not None and self.price is None:
            raise BudgetError("money is a bound only with the vendor's prices", value=self.money, hint="price=Price(shot=0.001)")

    def check(self, spent: Cost, asked: Cost) -> None:
        """Raise BudgetError, naming what was asked and what is left, if `asked` on top of `spent` breaks a bound."""
        for name in ("circuits", "shots", "jobs", "seconds"):
            self._check(name, getattr(self, name), getattr(spent, name), getattr(asked, name))
        if self.price is not None and self.money is not None:
            unit = self.price.currency or "money"
            self._check(unit, self.money, round(self.price.of(spent), 6), round(self.price.of(asked), 6))

    @staticmethod
    def _check(name: str, most: float | None, spent: float, asked: float) -> None:
        if most is not None and asked > most - spent:
            raise BudgetError(
                f"the budget of {most:,} {name} does not cover this",
                value=f"{asked:,} {name}",
                bound=f"{max(most - spent, 0):,} left",
                hint=f"raise the budget, or ask for fewer {name}",
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
