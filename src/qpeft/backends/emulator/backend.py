"""The noisy chip emulator: what a chip with this calibration would answer, exactly or in shots, differentiable in torch.

    backend = get_backend("emulator:wukong-72")
    counts = backend.compile(circuit).run(params, shots=1000, seed=0)

A circuit is routed once (routing.py) and split into the parts that its CZs join. Each part is exact on Pauli coefficients
(pauli_transfer.py) while its largest vector has at most 4^8 of them, which holds for all parts of up to 8 qubits; larger parts
go to Qiskit Aer (aer.py). Parts of equal structure, of one circuit or of many, run as one batch. The model is in docs/emulator.md.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qpeft.backends.base import (
    DENSE_QUBITS,
    Backend,
    CompiledCircuit,
    Counts,
    Limits,
    bits_of,
    check_circuit,
    check_run,
    sample,
    z_table,
)
from qpeft.backends.emulator import aer, pauli_transfer
from qpeft.backends.emulator.chip import Chip, load_chip
from qpeft.backends.emulator.native_gates import NATIVE, PULSES
from qpeft.backends.emulator.noise import NoiseParameters, NoiseSchedule, components, schedule
from qpeft.backends.emulator.packing import PackedProgram, capacity
from qpeft.backends.emulator.routing import RoutedCircuit, route
from qpeft.backends.folding import check_scale, folded
from qpeft.circuits.executor import Expectations, as_rows, check_arguments, working_dtype
from qpeft.circuits.ir import Angle, Circuit, Observable, Op
from qpeft.errors import BackendError, CircuitError, ResourceError

FloatArray = npt.NDArray[np.float64]

FREE = NATIVE - PULSES - {"cz"}  # native gates without time or error: RZ
CHUNK_BYTES = 1 << 23  # of the vectors of the rows that are computed together
CONTRACTED = 1 << 12  # entries a row of a tensor network's largest tensor, taken to choose how many rows run together


@dataclass(frozen=True)
class Component:
    """Qubits of a circuit that CZs join, as a circuit of their own. `outputs` are the numbers of its measured qubits' outcomes
    among those of the whole circuit, in the order of `measured`; `source` is its qubits' numbers on the chip."""

    circuit: Circuit
    schedule: NoiseSchedule
    angles: tuple[Angle, ...]
    measured: tuple[int, ...]
    outputs: tuple[int, ...]
    source: tuple[int, ...]
    calibration: NoiseParameters

    @property
    def exact(self) -> bool:
        """Small enough for the distribution of all its measured qubits."""
        return self.plan.peak <= pauli_transfer.LARGEST

    @functools.cached_property
    def plan(self) -> pauli_transfer.EvolutionPlan:
        """The component's noise schedule, arranged in groups for pauli_transfer.py."""
        return pauli_transfer.arrange(self.schedule, frozenset(self.measured))

    def only(self, outputs: Collection[int]) -> Component:
        """The same with fewer measured qubits: those whose outcomes have the numbers `outputs`."""
        kept = [(q, number) for q, number in zip(self.measured, self.outputs, strict=True) if number in outputs]
        return dataclasses.replace(self, measured=tuple(q for q, _ in kept), outputs=tuple(number for _, number in kept))

    def rotation_angles(self, rows: Tensor) -> Tensor:
        """The angle of every turn for `rows (rows, n_params)`: `(slots, rows)`."""
        shift = rows.new_tensor([angle.shift for angle in self.angles])[:, None]
        if not self.circuit.n_params:
            return shift.expand(-1, len(rows))
        scale = rows.new_tensor([0.0 if angle.index is None else angle.scale for angle in self.angles])[:, None]
        return rows.T[[angle.index or 0 for angle in self.angles]] * scale + shift


def _split(routed: RoutedCircuit, chip: Chip) -> tuple[Component, ...]:
    circuit = routed.circuit
    output = {compact: k for k, compact in enumerate(routed.measured)}
    parts = []
    for group in components(circuit.n_qubits, [op.qubits for op in circuit.ops if len(op.qubits) == 2]):
        local = {q: i for i, q in enumerate(group)}
        ops = tuple(Op(op.gate, tuple(local[q] for q in op.qubits), op.angle) for op in circuit.ops if op.qubits[0] in local)
        piece = Circuit(len(group), ops, circuit.n_inputs, circuit.n_params)
        times = chip.native_gates
        timeline, angles = schedule(piece, times.rphi.time_ns, times.cz.time_ns)
        measured = [q for q in group if q in output]
        source = tuple(routed.qubits[q] for q in group)
        calibration = NoiseParameters.of(chip, source, timeline.pairs)
        where = tuple(local[q] for q in measured)
        if measured:
            parts.append(Component(piece, timeline, angles, where, tuple(output[q] for q in measured), source, calibration))
    return tuple(parts)


class EmulatorBackend(Backend):
    """A chip emulated.

    Args:
        chip: a Chip, the name of one that ships with qpeft, or a chip file.
        native: take circuits as they stand (see `routing.route`): native gates on the chip's own qubit numbers.
        layout: the chip's qubit for each of a circuit's; no swaps are made.
        pack: run as many rows of parameters at once as the chip has room for; each has its own qubits and their noise, so
            a row's outcome depends on its place in the batch.
        guard: idle qubits between packed circuits.
        seed: of routing and packing.
        noise_scale: 1, or an odd number of times the noise: every pulse of the routed circuit is folded (folding.py).
    """

    packs_circuits = True
    chip: Chip

    def __init__(
        self,
        chip: Chip | str | os.PathLike[str] = "wukong-72",
        *,
        native: bool = False,
        layout: Sequence[int] | None = None,
        pack: bool = False,
        guard: int = 0,
        seed: int = 0,
        noise_scale: int = 1,
    ) -> None:
        if pack and (native or layout is not None):
            raise BackendError("packing chooses the qubits itself", hint="leave out native and layout")
        self.chip = chip if isinstance(chip, Chip) else load_chip(chip)
        self.name = f"emulator:{chip if isinstance(chip, (str, os.PathLike)) else self.chip.name}"
        self.native, self.layout = native, None if layout is None else tuple(layout)
        self.pack, self.guard, self.seed, self.noise_scale = pack, guard, seed, noise_scale
        check_scale(noise_scale)
        timing = self.chip.timing
        self.limits = Limits(len(self.chip.live_qubits), timing.max_shots, timing.max_circuits_per_job, exact=True)
        options = f"native={native},layout={self.layout},pack={pack},guard={guard},seed={seed}"
        scaled = f",noise_scale={noise_scale}" if noise_scale != 1 else ""
        self.calibration = f"{self.chip.id}:{options}{scaled}"

    def with_noise_scale(self, scale: int) -> EmulatorBackend:
        """A new backend: same chip and options, `scale` times this one's noise.

        Raises:
            BackendError: a `scale` that is not 1, 3, 5, ...
        """
        options: dict[str, Any] = {"native": self.native, "layout": self.layout, "pack": self.pack, "guard": self.guard}
        return EmulatorBackend(self.chip, **options, seed=self.seed, noise_scale=scale * self.noise_scale)

    def compile(self, circuit: Circuit) -> EmulatedCircuit:
        """Route a circuit; BackendError says what the chip cannot do."""
        if not self.native:
            check_circuit(self.name, self.limits, circuit)
        if self.pack:
            places = capacity(circuit, self.chip, guard=self.guard, seed=self.seed)
        else:
            places = (route(circuit, self.chip, native=self.native, layout=self.layout, seed=self.seed),)
        return EmulatedCircuit(self, circuit, places)

    def compile_at(self, circuit: Circuit, layout: Sequence[int]) -> EmulatedCircuit:
        """See `Backend.compile_at`."""
        native = all(op.gate in NATIVE for op in circuit.ops)
        return EmulatedCircuit(self, circuit, (route(circuit, self.chip, native=native, layout=layout),))

    def compile_packed(self, program: PackedProgram) -> EmulatedCircuit:
        """A packed program, all its tenants together; its qubits and parameters are those of `program.circuit`."""
        circuit = program.circuit
        return EmulatedCircuit(self, circuit, (RoutedCircuit(circuit, program.qubits, tuple(range(circuit.n_qubits))),))

    def probabilities(self, circuit: Circuit, params: Tensor) -> Tensor:
        """Outcome probabilities `(batch, 2^n)`, differentiable in the parameters.

        Args:
            circuit: the circuit.
            params: `(batch, n_params)`, radians.
        """
        return self.compile(circuit).probabilities(params)

    def estimate(self, programs: int, shots: int) -> float:
        """Seconds the chip would be busy with `programs` programs of `shots` each."""
        return self.chip.chip_seconds(programs, shots)


class EmulatedCircuit(CompiledCircuit):
    """A circuit on an emulated chip; row i of a batch runs on place `i mod per_program`."""

    def __init__(self, backend: EmulatorBackend, circuit: Circuit, places: Sequence[RoutedCircuit]) -> None:
        self.backend, self.circuit = backend, circuit
        self.places = tuple(
            dataclasses.replace(place, circuit=folded(place.circuit, backend.noise_scale, FREE)) for place in places
        )
        self.per_program = len(self.places)
        self.qubits = self.places[0].measured_on if len(self.places) == 1 else None
        self.parts = tuple(_split(place, backend.chip) for place in self.places)

    def probabilities(self, params: Tensor) -> Tensor:
        """`(batch, 2^n)` for `params (batch, n_params)`, float64 if they are, else float32; differentiable in them.

        Raises BackendError where a part is too large to be exact, ResourceError for more qubits than a table holds.
        """
        return probabilities_of([self], [params])[0]

    def marginals(self, params: Tensor, groups: Sequence[Sequence[int]]) -> list[Tensor]:
        """The exact distribution of groups of qubits, for circuits of any number of qubits. Differentiable in `params`.

        Args:
            params: `(batch, n_params)`, radians.
            groups: the circuit's qubits in each group.

        Returns:
            For each group of k qubits `(batch, 2^k)`; float64 for float64 parameters, else float32.

        Raises:
            BackendError: the wide parts of the circuit are too deep (`pauli_transfer.contract`).
            MissingDependencyError: opt_einsum is needed for wide parts and not installed.
        """
        if self.exact:
            return [_joined(parts, group) for parts in _evaluate([self], [params]) for group in groups]
        return [_joined(_evaluate([self], [params], group)[0], group) for group in groups]

    @property
    def exact(self) -> bool:
        """Every part is small enough for the distribution of all its qubits."""
        return all(part.exact for parts in self.parts for part in parts)

    def run(self, params: FloatArray, shots: int | None, seed: int | None = None) -> Counts:
        """See `CompiledCircuit.run`. With `shots`, components too large for pauli_transfer.py are sampled with Qiskit Aer.

        Raises:
            BackendError: `shots=None` and a component is too large to be exact, or Aer cannot run it.
            ResourceError: `shots=None` and more than `DENSE_QUBITS` qubits.
            MissingDependencyError: Aer is needed and not installed.
        """
        backend, n = self.backend, self.circuit.n_qubits
        rows = check_run(backend.name, backend.limits, self.circuit, params, shots)
        if shots is None:
            return Counts.dense(self.probabilities(torch.from_numpy(rows)).numpy(), None)
        if self.exact and n <= DENSE_QUBITS // 2:
            table = self.probabilities(torch.from_numpy(rows).float())  # in single precision: 1e-6, far below the shots' error
            return sample(table.double().numpy(), shots, seed)
        seeds = np.random.SeedSequence(seed)
        found: list[tuple[npt.NDArray[np.bool_], FloatArray]] = [(np.empty((0, n), dtype=np.bool_), np.empty(0))] * len(rows)
        for place, parts in enumerate(self.parts):
            mine = rows[place :: self.per_program]
            drawn = np.zeros((len(mine), shots, n), dtype=np.bool_)
            small = [part for part in parts if part.exact]
            tables = _batches([(part, torch.from_numpy(mine)) for part in small])
            for part, table in zip(small, tables, strict=True):
                drawn[:, :, list(part.outputs)] = _draw(table.numpy(), shots, np.random.default_rng(seeds.spawn(1)[0]))
            for part in (part for part in parts if not part.exact):
                bits = aer.sample(part.circuit, part.schedule, part.angles, part.calibration, mine, shots, seeds.spawn(1)[0])
                drawn[:, :, list(part.outputs)] = bits[:, :, list(part.measured)]
            for i, bits in enumerate(drawn):
                distinct, times = np.unique(bits, axis=0, return_counts=True)
                found[place + i * self.per_program] = (distinct, times.astype(np.float64))
        return Counts.sparse(n, found, shots)


def probabilities_of(circuits: Sequence[EmulatedCircuit], params: Sequence[Tensor]) -> list[Tensor]:
    """`EmulatedCircuit.probabilities` of many circuits at once: components of equal structure run as one batch,
    wherever they are placed.

    Args:
        circuits: compiled circuits.
        params: parameters of each circuit, `(batch, n_params)`, radians.
    """
    for circuit in circuits:
        n = circuit.circuit.n_qubits
        if n > DENSE_QUBITS:
            raise ResourceError(
                f"a table of the outcomes of {n} qubits",
                required_bytes=8 * 2**n,
                available_bytes=8 * 2**DENSE_QUBITS,
                hint="give a number of shots, or ask for marginals",
            )
    return [
        _joined(parts, range(circuit.circuit.n_qubits))
        for circuit, parts in zip(circuits, _evaluate(circuits, params), strict=True)
    ]


Tables = list[tuple[tuple[int, ...], Tensor]]  # outcomes' numbers, and their distribution (rows, 2^k)


def _evaluate(
    circuits: Sequence[EmulatedCircuit], params: Sequence[Tensor], outputs: Collection[int] | None = None
) -> list[Tables]:
    """The distribution of every part of every circuit, or of these `outputs` alone, rows in the order of each circuit's
    parameters."""
    work: list[tuple[Component, Tensor]] = []
    chosen: list[tuple[tuple[Component, ...], ...]] = []
    for circuit, rows in zip(circuits, params, strict=True):
        if rows.dim() != 2 or rows.shape[1] != circuit.circuit.n_params:
            raise CircuitError(
                "parameters have the wrong shape", value=tuple(rows.shape), bound=f"(batch, {circuit.circuit.n_params})"
            )
        wide = rows if rows.dtype == torch.float64 else rows.float()
        chosen.append(circuit.parts if outputs is None else tuple(_only(parts, outputs) for parts in circuit.parts))
        work += [(part, wide[place :: circuit.per_program]) for place, parts in enumerate(chosen[-1]) for part in parts]
    tables = iter(_batches(work, part_of_all=outputs is not None))
    out: list[Tables] = []
    for circuit, rows, places in zip(circuits, params, chosen, strict=True):
        by_place = [[(part.outputs, next(tables)) for part in parts] for parts in places]
        if circuit.per_program == 1:
            out.append(by_place[0])
            continue
        wanted = tuple(sorted(range(circuit.circuit.n_qubits) if outputs is None else outputs))
        whole = [_joined(parts, wanted) for parts in by_place]
        order = torch.argsort(torch.arange(len(rows), device=rows.device) % circuit.per_program, stable=True)
        out.append([(wanted, torch.cat(whole)[torch.argsort(order)])])
    return out


def _only(parts: Sequence[Component], outputs: Collection[int]) -> tuple[Component, ...]:
    return tuple(part.only(outputs) for part in parts if not set(part.outputs).isdisjoint(outputs))


def _joined(tables: Tables, wanted: Sequence[int]) -> Tensor:
    """The distribution of the wanted qubits, in that order, `(rows, 2^k)`: a product over parts."""
    product: Tensor | None = None
    order: list[int] = []
    for qubits, table in tables:
        kept = [i for i, q in enumerate(qubits) if q in wanted]
        if not kept:
            continue
        grid = table.reshape(len(table), *(2,) * len(qubits))
        if len(kept) < len(qubits):
            grid = grid.sum(dim=[1 + i for i in range(len(qubits)) if i not in kept])
        flat = grid.flatten(1)
        product = flat if product is None else (product[:, :, None] * flat[:, None, :]).flatten(1)
        order += [qubits[i] for i in kept]
    if product is None or sorted(order) != sorted(wanted):
        raise BackendError("a marginal names different qubits of the circuit", value=list(wanted))
    grid = product.reshape(len(product), *(2,) * len(order))
    return grid.permute(0, *(1 + order.index(q) for q in wanted)).flatten(1)


def _batches(work: Sequence[tuple[Component, Tensor]], *, part_of_all: bool = False) -> list[Tensor]:
    """The distribution `(rows, 2^measured)` of each part for its rows; parts of equal structure together. `part_of_all`: a few of
    a wide circuit's qubits are measured, and a tensor network gives them where `evolve` and Aer cannot."""
    out: list[Tensor | None] = [None] * len(work)
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, (part, rows) in enumerate(work):
        if not part.exact and not part_of_all:
            out[i] = aer.probabilities(part.circuit, part.schedule, part.angles, part.calibration, rows, part.measured)
        else:
            groups.setdefault((part.schedule, part.measured, rows.dtype, rows.device), []).append(i)
    for members in groups.values():
        tables = _run_equal([work[i][0] for i in members], [work[i][1] for i in members])
        start = 0
        for i in members:
            out[i] = tables[start : start + len(work[i][1])]
            start += len(work[i][1])
    return [table for table in out if table is not None]


def _run_equal(parts: Sequence[Component], rows: Sequence[Tensor]) -> Tensor:
    """Parts of one structure: their rows one after the other, in chunks."""
    plan, like = parts[0].plan, rows[0]
    total = sum(map(len, rows))
    if len(parts) == 1:
        calibration = parts[0].calibration
    else:
        stacked = [part.calibration.repeat(len(r)) for part, r in zip(parts, rows, strict=True)]
        calibration = NoiseParameters.stack(stacked)
    noise = {
        field.name: torch.as_tensor(getattr(calibration, field.name), dtype=like.dtype, device=like.device)
        for field in dataclasses.fields(calibration)
    }
    angles = torch.cat([part.rotation_angles(r) for part, r in zip(parts, rows, strict=True)], dim=1)
    slots = list(angles)
    if total and not angles.requires_grad:  # else a gradient tells rows apart whose angles are equal
        slots = [a[:1] if equal else a for a, equal in zip(slots, (angles == angles[:, :1]).all(dim=1).tolist(), strict=True)]
    size = max(1, CHUNK_BYTES // (min(plan.peak, CONTRACTED) * like.element_size()))
    pieces = [_run_chunk(plan, slots, noise, slice(start, min(start + size, total))) for start in range(0, total, size)]
    return torch.cat(pieces) if pieces else like.new_empty(0, 2 ** len(parts[0].measured))


def _run_chunk(plan: pauli_transfer.EvolutionPlan, slots: Sequence[Tensor], noise: dict[str, Tensor], rows: slice) -> Tensor:
    def chosen(values: Tensor) -> Tensor:
        return values if len(values) == 1 else values[rows]

    method = pauli_transfer.evolve if plan.peak <= pauli_transfer.LARGEST else pauli_transfer.contract
    found = method(plan, lambda slot: chosen(slots[slot]), {name: chosen(values) for name, values in noise.items()})
    tables = [(qubits, table.flatten(1).expand(rows.stop - rows.start, -1)) for qubits, table in found]
    return _joined(tables, sorted(plan.measured))


def _draw(table: FloatArray, shots: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Outcomes of a `(rows, 2^k)` distribution, one for each shot: `(rows, shots, k)` bits."""
    k = table.shape[1].bit_length() - 1
    index = np.zeros((len(table), shots), dtype=np.int64)
    for i, row in enumerate(np.cumsum(np.clip(table, 0.0, None), axis=1)):
        index[i] = np.searchsorted(row[:-1], rng.random(shots) * row[-1], side="right")
    return bits_of(index, k)


class NoisyExecutor:
    """An Executor that runs adapters' circuits on an emulated chip, exactly and with autograd's gradients: noise-aware training."""

    has_state = False

    def __init__(self, backend: Backend) -> None:
        if not isinstance(backend, EmulatorBackend):
            raise BackendError("only an emulated chip has autograd's gradients", value=backend.name, hint="BackendExecutor")
        self.backend: Backend = backend
        self._emulator = backend

    def with_backend(self, backend: Backend) -> NoisyExecutor:
        """The same on another emulated chip, such as this one at a larger noise scale."""
        return NoisyExecutor(backend)

    def compile(self, circuit: Circuit, observables: Sequence[Observable] | None = None) -> Expectations:
        """See `Executor.compile`; CircuitError for observables with X or Y."""
        emulated, n = self._emulator.compile(circuit), circuit.n_qubits
        chosen = [Observable.z(k) for k in range(n)] if observables is None else list(observables)
        # each table of outcomes and the values of the observables that are read from it
        if emulated.exact and n <= DENSE_QUBITS // 2:
            tables = [(tuple(range(n)), torch.from_numpy(z_table(chosen, n)))]
        else:
            tables = [_support(observable, n) for observable in chosen]

        def expectations(inputs: Tensor, angles: Tensor) -> Tensor:
            check_arguments(circuit, inputs, angles)
            flat = as_rows(inputs).to(working_dtype(inputs, angles))
            params = torch.cat([flat, angles.to(flat).expand(len(flat), -1)], dim=1)
            found = emulated.marginals(params, [qubits for qubits, _ in tables])
            columns = [table @ signs.to(flat) for table, (_, signs) in zip(found, tables, strict=True)]
            means = torch.cat(columns, dim=1)
            return means.reshape(*inputs.shape[:-1], len(chosen))

        return expectations


def _support(observable: Observable, n_qubits: int) -> tuple[tuple[int, ...], Tensor]:
    """The qubits that an observable reads (at least one), and its values on their outcomes `(2^k, 1)`."""
    qubits = tuple(sorted({qubit for _, string in observable.terms for qubit, _ in string})) or (0,)
    if qubits[-1] >= n_qubits:
        raise CircuitError("an observable names a qubit that is not there", value=qubits[-1], bound=f"0..{n_qubits - 1}")
    place = {qubit: i for i, qubit in enumerate(qubits)}
    terms = tuple((value, tuple((place[q], pauli) for q, pauli in string)) for value, string in observable.terms)
    return qubits, torch.from_numpy(z_table([Observable(terms)], len(qubits)))
