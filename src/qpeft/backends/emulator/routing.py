"""Where a circuit runs on a chip: native gates, on qubits whose couplers are alive, with swaps only where none fit.

`route` makes a template once; its angles stay symbolic, so one template serves every set of parameters. A circuit whose pairs
are found among the chip's live couplers is placed on the best such qubits by a search; for others Qiskit's SABRE inserts swaps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qpeft.backends.emulator.chip import Chip
from qpeft.backends.emulator.native_gates import PULSES, to_native
from qpeft.backends.emulator.noise import check_native, components
from qpeft.circuits.ir import Circuit, Op
from qpeft.errors import BackendError, MissingDependencyError

SEARCH_STEPS = 40_000  # of a search for the best qubits, then the best so far is taken
LOOSE = 6  # qubits tried for one that no gate ties to those already placed


@dataclass(frozen=True)
class RoutedCircuit:
    """A native circuit with its place on a chip.

    `circuit` has as many qubits as it touches; its qubit i is the chip's `qubits[i]`; qubit k of the circuit that was asked for
    ends on qubit `measured[k]` of `circuit` (others, if any, only carried swaps).
    """

    circuit: Circuit
    qubits: tuple[int, ...]
    measured: tuple[int, ...]

    @property
    def measured_on(self) -> tuple[int, ...]:
        """The chip's qubit on which each qubit of the circuit that was asked for is measured."""
        return tuple(self.qubits[k] for k in self.measured)


@dataclass(frozen=True)
class InteractionGraph:
    """Interactions of a native circuit, for placement: CZs per pair, pulses and readouts per qubit."""

    n_qubits: int
    pairs: tuple[tuple[tuple[int, int], int], ...]
    pulses: tuple[int, ...]
    readouts: tuple[int, ...]

    @classmethod
    def of(cls, circuit: Circuit, measured: Collection[int]) -> InteractionGraph:
        """Count the gates and readouts of a native circuit.

        Args:
            circuit: in native gates; every two-qubit gate counts as a CZ, RX and RY count as pulses, RZ does not count.
            measured: the circuit's qubits that are read out.
        """
        pairs = Counter(tuple(sorted(op.qubits)) for op in circuit.ops if len(op.qubits) == 2)
        pulses = Counter(op.qubits[0] for op in circuit.ops if op.gate in PULSES)
        n = circuit.n_qubits
        ordered = tuple(sorted(((a, b), count) for (a, b), count in pairs.items()))
        return cls(n, ordered, tuple(pulses[q] for q in range(n)), tuple(int(q in measured) for q in range(n)))

    def order(self) -> list[int]:
        """Qubits such that each is tied to an earlier one where its component allows: largest component first."""
        near: dict[int, list[int]] = {q: [] for q in range(self.n_qubits)}
        for (a, b), _ in self.pairs:
            near[a].append(b)
            near[b].append(a)
        out: list[int] = []
        for group in sorted(components(self.n_qubits, [pair for pair, _ in self.pairs]), key=len, reverse=True):
            reached = [min(group, key=lambda q: (len(near[q]), q))]
            for q in reached:
                reached += [other for other in near[q] if other not in reached]
            out += reached
        return out


def _loss(error: float) -> float:
    return -float(np.log(max(1.0 - error, 1e-9)))


def placements(
    shape: InteractionGraph,
    chip: Chip,
    free: Collection[int],
    roots: Sequence[int] | None = None,
    bound: Callable[[], float] | None = None,
) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Places for a circuit without swaps.

    Roots are tried in turn, cheaper neighbours first. The search ends after SEARCH_STEPS steps.

    Args:
        shape: interactions of the circuit.
        chip: the chip.
        free: the chip's qubits that may be used; disabled ones are left out.
        roots: qubits for the first placed qubit; default all free qubits, best first.
        bound: the cost from which on a branch is given up, asked at each step; default none.

    Yields:
        `(cost, qubits)`. The cost is `-log` of the product of all gate and readout fidelities. `qubits[i]` is the chip's qubit for
        the circuit's qubit i.
    """
    order = shape.order()
    ties: list[list[tuple[int, int]]] = []
    for position, q in enumerate(order):
        earlier = {other: count for pair, count in shape.pairs if q in pair for other in pair if other != q}
        ties.append([(other, earlier[other]) for other in order[:position] if other in earlier])
    alive = set(free) & set(chip.live_qubits)
    alone = {p: (_loss(chip.qubits[p].error_1q or 0.0), _loss(chip.qubits[p].readout_error)) for p in alive}
    image: dict[int, int] = {}
    taken: set[int] = set()
    limit = bound or (lambda: float("inf"))
    steps = 0

    def own(q: int, p: int) -> float:
        return shape.pulses[q] * alone[p][0] + shape.readouts[q] * alone[p][1]

    def extend(position: int, cost: float) -> Iterator[tuple[float, tuple[int, ...]]]:
        nonlocal steps
        if position == len(order):
            yield cost, tuple(image[q] for q in range(shape.n_qubits))
            return
        q = order[position]
        if position == 0:
            choices = [p for p in (sorted(alive, key=lambda p: own(q, p)) if roots is None else roots) if p in alive]
        elif ties[position]:
            choices = [p for p in chip.neighbours[image[ties[position][0][0]]] if p in alive and p not in taken]
        else:
            choices = sorted(alive - taken, key=lambda p: own(q, p))[:LOOSE]
        ranked = []
        for p in choices:
            errors = [(chip.neighbours[p].get(image[other]), count) for other, count in ties[position]]
            if all(error is not None for error, _ in errors):
                ranked.append((own(q, p) + sum(count * _loss(error or 0.0) for error, count in errors), p))
        for extra, p in sorted(ranked) if position else ranked:
            steps += 1
            if steps > SEARCH_STEPS or cost + extra >= limit():
                continue
            image[q] = p
            taken.add(p)
            yield from extend(position + 1, cost + extra)
            taken.discard(p)

    yield from extend(0, 0.0)


def best_placement(shape: InteractionGraph, chip: Chip, free: Collection[int]) -> tuple[int, ...] | None:
    """The placement with the least cost that the search finds.

    Args:
        shape: interactions of the circuit.
        chip: the chip.
        free: the chip's qubits that may be used.

    Returns:
        The chip's qubit for each of the circuit's, or None if the search finds none.
    """
    found: list[tuple[float, tuple[int, ...]]] = []  # each cheaper than the last
    for place in placements(shape, chip, free, bound=lambda: found[-1][0] if found else float("inf")):
        found.append(place)
    return found[-1][1] if found else None


def route(
    circuit: Circuit,
    chip: Chip,
    *,
    native: bool = False,
    layout: Sequence[int] | None = None,
    free: Collection[int] | None = None,
    seed: int = 0,
) -> RoutedCircuit:
    """Place a circuit on a chip.

    Args:
        circuit: the circuit.
        chip: the chip.
        native: take the circuit as it stands: gates must be native, and qubit i is the chip's qubit i unless `layout` says
            otherwise; nothing is moved.
        layout: the chip's qubit for each of the circuit's; pairs must be coupled, no swaps are made.
        free: the chip's qubits that may be used; default all that are enabled.
        seed: of SABRE, used for circuits that fit nowhere without swaps.

    Raises:
        BackendError: what the chip cannot do, with the reason.
        MissingDependencyError: swaps are needed and Qiskit is not installed.
    """
    if native:
        check_native(circuit)
    ready = circuit if native else to_native(circuit)
    everything = tuple(range(circuit.n_qubits))
    if native or layout is not None:
        qubits = everything if layout is None else tuple(layout)
        check_layout(circuit, qubits, chip)
        return RoutedCircuit(ready, qubits, everything)
    usable = set(chip.live_qubits) if free is None else set(free) & set(chip.live_qubits)
    if circuit.n_qubits > len(usable):
        raise BackendError(
            f"the circuit has more qubits than {chip.name} has to offer", value=circuit.n_qubits, bound=f"{len(usable)} free ones"
        )
    place = best_placement(InteractionGraph.of(ready, everything), chip, usable)
    if place is not None:
        return RoutedCircuit(ready, place, everything)
    swapped, qubits, measured = _swap(circuit, chip, usable, seed)
    ready = to_native(swapped)
    place = best_placement(InteractionGraph.of(ready, measured), chip, usable)
    return RoutedCircuit(ready, place or qubits, measured)


def check_layout(circuit: Circuit, qubits: Sequence[int], chip: Chip) -> None:
    """Refuse a circuit on these qubits of the chip, with the first reason: each pair that a gate joins must be coupled."""
    if len(qubits) != circuit.n_qubits or len(set(qubits)) != len(qubits):
        raise BackendError("a layout names a different chip qubit for each qubit of the circuit", value=list(qubits))
    for qubit in qubits:
        if reason := chip.why_not(qubit):
            raise BackendError(reason)
    for position, op in enumerate(circuit.ops):
        if len(op.qubits) == 2 and (reason := chip.why_not(*(qubits[q] for q in op.qubits))):
            raise BackendError(f"op {position}: {reason}", hint="another layout, or none, so that the circuit is routed")


def _swap(circuit: Circuit, chip: Chip, usable: Collection[int], seed: int) -> tuple[Circuit, tuple[int, ...], tuple[int, ...]]:
    """The circuit with SABRE's swaps on as many qubits as they touch, the chip's number of each, and where each ends."""
    try:
        from qiskit.circuit import Gate, QuantumCircuit
        from qiskit.transpiler import CouplingMap, PassManager
        from qiskit.transpiler.passes import SabreLayout
    except ImportError as error:
        raise MissingDependencyError("qiskit", "qiskit", "routing a circuit that needs swaps") from error
    region = _region(circuit, chip, usable)
    number = {p: i for i, p in enumerate(region)}
    edges = [(number[a], number[b]) for a in region for b in chip.neighbours[a] if b in number]
    opaque = QuantumCircuit(circuit.n_qubits)
    for position, op in enumerate(circuit.ops):
        opaque.append(Gate(f"op{position}", len(op.qubits), []), op.qubits)
    passes = PassManager([SabreLayout(CouplingMap(edges), seed=seed, swap_trials=8, layout_trials=8)])
    routed = passes.run(opaque)
    initial = passes.property_set["layout"]
    at = [initial[qubit] for qubit in opaque.qubits]
    ops: list[Op] = []
    for instruction in routed.data:
        where = tuple(routed.find_bit(qubit).index for qubit in instruction.qubits)
        if instruction.name == "swap":
            ops.append(Op("swap", where))
            moved = {where[0]: where[1], where[1]: where[0]}
            at = [moved.get(p, p) for p in at]
        else:
            op = circuit.ops[int(instruction.name[2:])]
            ops.append(Op(op.gate, where, op.angle))
    touched = sorted({q for op in ops for q in op.qubits} | set(at))
    compact: Mapping[int, int] = {p: i for i, p in enumerate(touched)}
    ops = [Op(op.gate, tuple(compact[q] for q in op.qubits), op.angle) for op in ops]
    swapped = Circuit(len(touched), tuple(ops), circuit.n_inputs, circuit.n_params)
    return swapped, tuple(region[p] for p in touched), tuple(compact[p] for p in at)


def _region(circuit: Circuit, chip: Chip, usable: Collection[int]) -> list[int]:
    """The largest set of usable qubits that live couplers join, as long as it can hold the circuit."""
    ordered = sorted(usable)
    number = {p: i for i, p in enumerate(ordered)}
    joined = components(len(ordered), [(number[a], number[b]) for a in ordered for b in chip.neighbours[a] if b in number])
    largest = max(joined, key=len)
    if len(largest) < circuit.n_qubits:
        raise BackendError(
            f"{chip.name} has no {circuit.n_qubits} free qubits that live couplers join", bound=f"at most {len(largest)}"
        )
    return [ordered[i] for i in largest]
