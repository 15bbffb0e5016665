"""Many small circuits on one chip at once: disjoint live qubits for each, one program, counts split back.

Circuits on disjoint qubits that no gate joins do not influence each other in this library's noise model: each tenant's outcomes
are those of its solo run on the same qubits. On a real chip neighbours may; `guard` keeps a distance.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qpeft.backends.base import Counts
from qpeft.backends.emulator.chip import Chip
from qpeft.backends.emulator.routing import InteractionGraph, RoutedCircuit, placements, route
from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.errors import BackendError

ROUNDS = 400  # parts of a chip cleared and filled anew when not every tenant fits
CANDIDATES = 400  # places kept from each root

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PackedProgram:
    """Circuits that run together. `tenants[t]` is the number of the circuit in the list that was packed, `places[t]` its place."""

    tenants: tuple[int, ...]
    places: tuple[RoutedCircuit, ...]

    @property
    def qubits(self) -> tuple[int, ...]:
        """The chip's qubits, tenant by tenant."""
        return tuple(q for place in self.places for q in place.qubits)

    @property
    def circuit(self) -> Circuit:
        """All tenants as one native circuit; its qubit i is the chip's `qubits[i]`, its parameters the tenants' in order."""
        ops: list[Op] = []
        first = n_params = 0
        for place in self.places:
            for op in place.circuit.ops:
                angle = op.angle
                if angle is not None and angle.index is not None:
                    angle = Angle(n_params + angle.index, angle.scale, angle.shift)
                ops.append(Op(op.gate, tuple(first + q for q in op.qubits), angle))
            first += place.circuit.n_qubits
            n_params += place.circuit.n_params
        return Circuit(first, tuple(ops), 0, n_params)

    def params(self, rows: Sequence[npt.ArrayLike]) -> FloatArray:
        """The program's parameters from the tenants', each `(batch, n_params)`."""
        return np.concatenate([np.atleast_2d(np.asarray(row, dtype=np.float64)) for row in rows], axis=1)

    def split(self, counts: Counts) -> list[Counts]:
        """Each tenant's counts from those of the program, its qubits in its own order."""
        starts = itertools.accumulate((place.circuit.n_qubits for place in self.places), initial=0)
        return [counts.marginal([start + q for q in place.measured]) for start, place in zip(starts, self.places, strict=False)]


def pack(
    circuits: Sequence[Circuit], chip: Chip, *, guard: int = 0, free: Collection[int] | None = None, seed: int = 0
) -> list[PackedProgram]:
    """Place every circuit on disjoint qubits of as few programs as the search finds.

    Each template is routed once; its copies share the result but for the qubits. Where all circuits fit at once on the best
    free qubits they get those; otherwise orders that leave few gaps are tried, and what does not fit goes to the next program.

    Args:
        circuits: the circuits.
        chip: the chip.
        guard: idle qubits at least between two tenants, along couplers, dead ones too.
        free: the chip's qubits that may be used; default all that are enabled.
        seed: of the random orders, and of routing.

    Raises:
        BackendError: a circuit does not fit on the chip even alone.
    """
    if guard < 0:
        raise BackendError("guard counts qubits", value=guard, bound="at least 0")
    usable = set(chip.live_qubits) if free is None else set(free) & set(chip.live_qubits)
    templates = {circuit: route(circuit, chip, free=usable, seed=seed) for circuit in dict.fromkeys(circuits)}
    shapes = {circuit: InteractionGraph.of(routed.circuit, routed.measured) for circuit, routed in templates.items()}
    boards = {shape: _Candidates.of(shape, chip, usable) for shape in dict.fromkeys(shapes.values())}
    for circuit, routed in templates.items():
        boards[shapes[circuit]].add(routed.qubits)
    blocks = _reach(chip, guard)
    live = _live(chip)
    rng = np.random.default_rng(seed)
    waiting = sorted(range(len(circuits)), key=lambda i: -shapes[circuits[i]].n_qubits)
    start = np.zeros(chip.n_qubits, dtype=np.bool_)
    start[sorted(usable)] = True
    programs = []
    while waiting:
        places = _fill([boards[shapes[circuits[i]]] for i in waiting], start, blocks, live, rng)
        placed = {i: place for i, place in zip(waiting, places, strict=True) if place is not None}
        tenants = tuple(sorted(placed))
        found = (templates[circuits[i]] for i in tenants)
        programs.append(
            PackedProgram(
                tenants, tuple(RoutedCircuit(r.circuit, placed[i], r.measured) for i, r in zip(tenants, found, strict=True))
            )
        )
        waiting = [i for i in waiting if i not in placed]
    return programs


class _Candidates:
    """Places of one shape: for every set of qubits its cheapest arrangement, cheapest set first."""

    def __init__(self, n_qubits: int, places: dict[frozenset[int], tuple[float, tuple[int, ...]]]) -> None:
        self.n_qubits = n_qubits
        self.places = [qubits for _, qubits in sorted(places.values())]
        self.sets: BoolArray = np.zeros((len(places), n_qubits), dtype=np.bool_)
        for row, qubits in enumerate(self.places):
            self.sets[row, list(qubits)] = True

    @classmethod
    def of(cls, shape: InteractionGraph, chip: Chip, usable: Collection[int]) -> _Candidates:
        places: dict[frozenset[int], tuple[float, tuple[int, ...]]] = {}
        for root in sorted(usable):
            for found in itertools.islice(placements(shape, chip, usable, roots=[root]), CANDIDATES):
                key = frozenset(found[1])
                places[key] = min(found, places.get(key, found))
        return cls(chip.n_qubits, places)

    def add(self, qubits: tuple[int, ...]) -> None:
        """A place that is known, where the search found none."""
        if not self.places:
            self.places = [qubits]
            self.sets = np.zeros((1, self.n_qubits), dtype=np.bool_)
            self.sets[0, list(qubits)] = True


def _reach(chip: Chip, distance: int) -> BoolArray:
    """`reach[a, b]`: b is at most `distance` couplers from a, dead couplers counted."""
    step = np.eye(chip.n_qubits, dtype=np.bool_)
    for coupler in chip.couplers:
        a, b = coupler.qubits
        step[a, b] = step[b, a] = True
    reach = np.eye(chip.n_qubits, dtype=np.bool_)
    for _ in range(distance):
        reach = reach @ step
    return reach


def _live(chip: Chip) -> BoolArray:
    """`live[a, b]`: a live coupler joins a and b."""
    live = np.zeros((chip.n_qubits,) * 2, dtype=np.bool_)
    for a, others in chip.neighbours.items():
        live[a, list(others)] = True
    return live


def _fill(
    wanted: Sequence[_Candidates], start: BoolArray, blocks: BoolArray, live: BoolArray, rng: np.random.Generator
) -> list[tuple[int, ...] | None]:
    """A place or None for each tenant.

    First everyone takes the cheapest free set. If someone is left over, sets are chosen that leave their free neighbours other
    free neighbours, and then again and again a part of the chip is cleared and filled anew, kept when no fewer tenants fit.
    """
    boards = {id(board): board for board in wanted}.values()
    fringes = {id(board): ((board.sets.astype(np.float32) @ live > 0) & ~board.sets).astype(np.float32) for board in boards}

    def free(rows: Sequence[int | None]) -> BoolArray:
        taken = np.zeros_like(start)
        for board, row in zip(wanted, rows, strict=True):
            if row is not None:
                taken |= blocks[board.sets[row]].any(axis=0)
        return start & ~taken

    def refill(rows: Sequence[int | None], greedy: bool) -> list[int | None]:
        left, out = free(rows), list(rows)
        for tenant, board in enumerate(wanted):
            if out[tenant] is not None:
                continue
            fit = np.flatnonzero(~(board.sets @ ~left))
            if not len(fit):
                continue
            choice = 0
            if not greedy:
                weight = left / np.maximum(live @ left.astype(np.float32), 0.5)
                choice = int(np.argmin(fringes[id(board)][fit] @ weight + rng.random(len(fit)) * 0.5))
            out[tenant] = int(fit[choice])
            left &= ~blocks[board.sets[out[tenant]]].any(axis=0)
        return out

    def score(rows: Sequence[int | None]) -> int:
        return sum(row is not None for row in rows)

    goal = min(len(wanted), _most(wanted, int(start.sum())))
    best = refill([None] * len(wanted), greedy=True)
    if score(best) < goal:
        best = max(best, refill([None] * len(wanted), greedy=False), key=score)
    for _ in range(ROUNDS):
        if score(best) >= goal:
            break
        centre = live[rng.integers(len(start))]
        for _ in range(2):
            centre = centre @ live | centre
        kept = [None if row is None or (board.sets[row] & centre).any() else row for board, row in zip(wanted, best, strict=True)]
        best = max(refill(kept, greedy=False), best, key=score)
    return [None if row is None else board.places[row] for board, row in zip(wanted, best, strict=True)]


def _most(wanted: Sequence[_Candidates], free: int) -> int:
    """How many tenants could fit by their number of qubits."""
    return sum(total <= free for total in itertools.accumulate(sorted(len(board.places[0]) for board in wanted)))


def capacity(circuit: Circuit, chip: Chip, *, guard: int = 0, seed: int = 0) -> tuple[RoutedCircuit, ...]:
    """As many places for copies of one circuit as the search finds on one chip.

    Args:
        circuit: the circuit to copy.
        chip: the chip.
        guard: idle qubits at least between two copies.
        seed: of the search and of routing.

    Raises:
        BackendError: the circuit does not fit on the chip even alone.
    """
    most = len(chip.live_qubits) // circuit.n_qubits
    return pack([circuit] * max(most, 1), chip, guard=guard, seed=seed)[0].places
