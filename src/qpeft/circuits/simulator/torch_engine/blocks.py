"""Matrices and phases of an evolution's steps, from the angles, in a fixed number of torch calls. They do not depend on data.

All gates of a evolution are evaluated together, multiplied along each qubit's run, and multiplied out to Kronecker blocks of
equal size together, so the calls do not grow with depth. Tensors are complex inside the operator and never leave it.

Gradients. `build` is plain torch: autograd carries a gradient of its tensors back to the angles. `pullback` does that where
autograd is on, and inside an operator, where it is off, through torch.func.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from qpeft.circuits.simulator.torch_engine.compiler import CompiledGate, ComplexArray, Evolution, Step, local_value, permutation

Tensors: TypeAlias = "list[Tensor]"
Pull: TypeAlias = "Callable[[Sequence[Tensor | None]], Sequence[Tensor]]"  # None is a gradient of zero
PHASE_TABLE_QUBITS = 12  # above, a phase step's exponents are summed gate by gate instead of by one product with a table
IDENTITY = np.stack([np.eye(2), np.zeros((2, 2)), np.zeros((2, 2))]).astype(np.complex128)


@dataclass(frozen=True)
class GateAngles:
    """Angles of many gates, radians: `scale * angles[index] + shift`."""

    index: Tensor
    scale: Tensor
    shift: Tensor
    fixed: bool

    @classmethod
    def of(cls, gates: Sequence[CompiledGate | None], first: int, like: Tensor, *, times_frequency: bool = False) -> GateAngles:
        """The angles of these gates.

        Args:
            gates: the gates in order. None stands for a missing gate, with angle 0.
            first: index of the circuit's first angle, which is its number of inputs.
            like: a tensor with the device and dtype of the angles.
            times_frequency: multiply each angle by its gate's frequency.
        """
        index, scale, shift = [], [], []
        for gate in gates:
            angle, factor = (None, 0.0) if gate is None else (gate.angle, gate.frequency if times_frequency else 1.0)
            bound = angle is not None and angle.index is not None
            index.append(angle.index - first if angle is not None and angle.index is not None else 0)
            scale.append(angle.scale * factor if angle is not None and bound else 0.0)
            shift.append(angle.shift * factor if angle is not None else 0.0)
        fixed = not any(scale)
        return cls(torch.tensor(index, device=like.device), like.new_tensor(scale), like.new_tensor(shift), fixed)

    def __call__(self, angles: Tensor) -> Tensor:
        return self.shift if self.fixed else torch.addcmul(self.shift, self.scale, angles.index_select(0, self.index))


class FamilyKey(NamedTuple):
    """Key of blocks that are evaluated together."""

    qubits: int
    real: bool
    trainable: bool
    prefix: bool


def factors(gates: Sequence[CompiledGate], size: int = 2) -> list[tuple[ComplexArray, CompiledGate | None]]:
    """A run of gates on one qubit as few parametrised factors, first to last, fixed gates multiplied in.

    `size` is that of the gates' matrices: 4 where they act on Bloch vectors.
    """
    out: list[tuple[ComplexArray, CompiledGate | None]] = []
    pending = np.eye(size, dtype=np.complex128)
    for gate in gates:
        if gate.trainable:
            out.append((gate.parts @ pending, gate))
            pending = np.eye(size, dtype=np.complex128)
        else:
            fixed = gate.matrix(gate.angle.shift if gate.angle is not None else 0.0)
            if out:
                out[-1] = (fixed @ out[-1][0], out[-1][1])
            else:
                pending = fixed @ pending
    return out or [(np.stack([pending, 0 * pending, 0 * pending]), None)]


@dataclass(frozen=True)
class Family:
    """Local gates on blocks of equal size, evaluated together: all fixed or all trainable, all real or not."""

    count: int
    qubits: int
    real: bool
    prefix: bool
    values: GateAngles
    parts: Tensor  # (3, factors, runs, 8): real and imaginary parts of 2 x 2 matrices
    constant: Tensor | None = None  # the result, when fixed

    @classmethod
    def of(cls, name: FamilyKey, runs: Sequence[Sequence[CompiledGate]], first: int, like: Tensor) -> Family:
        """The family of these blocks. A family without trainable angles is evaluated here, once.

        Args:
            name: block size, and whether the blocks are real, trainable and part of the prefix.
            runs: the gates on each qubit of each block, in order; one sequence per qubit.
            first: index of the circuit's first angle, which is its number of inputs.
            like: a tensor with the device and real dtype of the angles.
        """
        lists = [factors(run) for run in runs]
        depth = max(len(own) for own in lists)
        padded = [[*own, *[(IDENTITY, None)] * (depth - len(own))] for own in lists]
        array = np.array([[padded[r][f][0] for r in range(len(runs))] for f in range(depth)])  # (factors, runs, 3, 2, 2)
        pairs = np.stack([array.real, array.imag], axis=-1).reshape(depth, len(runs), 3, 8)
        values = GateAngles.of([padded[r][f][1] for f in range(depth) for r in range(len(runs))], first, like, times_frequency=True)
        parts = like.new_tensor(np.ascontiguousarray(pairs.transpose(2, 0, 1, 3)))
        family = cls(len(runs) // name.qubits, name.qubits, name.real, name.prefix, values, parts)
        return replace(family, constant=family.tensor(like)) if values.fixed else family

    def tensor(self, angles: Tensor) -> Tensor:
        """`(m, K, K)`, or `(m, qubits, 2, 2)` for a prefix, where nothing is multiplied out."""
        if self.constant is not None:
            return self.constant
        scaled = self.values(angles).view(*self.parts.shape[1:3], 1)
        pairs = torch.addcmul(torch.addcmul(self.parts[0], scaled.cos(), self.parts[1]), scaled.sin(), self.parts[2])
        grid = pairs.view(*pairs.shape[:2], 2, 2, 2)
        gates = grid[..., 0].contiguous() if self.real else torch.view_as_complex(grid)
        product, *later = gates.unbind(0)
        for factor in later:
            product = torch.bmm(factor, product)
        grouped = product.view(self.count, self.qubits, 2, 2)
        return grouped if self.prefix else kron_matrices(grouped)


def kron_matrices(x: Tensor) -> Tensor:
    """Kronecker products along the second axis: `(m, k, d, d) -> (m, d^k, d^k)`."""
    m, k, d = x.shape[:3]
    if k == 1:
        return x.view(m, d, d)
    if k % 2:
        left, right = kron_matrices(x[:, :-1]), x[:, -1]
    else:
        if k > 2:
            x = kron_matrices(x.reshape(2 * m, k // 2, d, d))
        left, right = x.view(m, 2, *x.shape[-2:]).unbind(1)
    a, b = left.shape[-1], right.shape[-1]
    return (left.reshape(m, a, 1, a, 1) * right.reshape(m, 1, b, 1, b)).view(m, a * b, a * b)


@dataclass(frozen=True)
class Phases:
    """All shared phase steps of a evolution: `exp(i exponent)`, `(steps, D)`."""

    values: GateAngles
    table: Tensor | None  # (steps, gates, D), or (gates, D) where all steps share it; zero rows where a step has fewer gates
    gates: tuple[tuple[tuple[tuple[int, ...], Tensor], ...], ...]  # without a table: per step, the shape and slopes of each gate
    offset: Tensor  # (steps, D)

    @classmethod
    def of(cls, steps: Sequence[Step], n: int, first: int, like: Tensor) -> Phases:
        """The phases of these steps.

        Args:
            steps: of kind "phase", also those inside dense steps.
            n: qubits of the register, `D = 2^n`.
            first: index of the first angle among the circuit's parameters.
            like: gives device and real dtype.
        """
        most = max((len(step.gates) for step in steps), default=0)
        values = GateAngles.of([g for s in steps for g in [*s.gates, *[None] * (most - len(s.gates))]], first, like)
        offset = np.zeros((len(steps), 2**n))
        table = np.zeros((len(steps), most, 2**n)) if n <= PHASE_TABLE_QUBITS else None
        shaped = []
        for f, step in enumerate(steps):
            own = []
            for g, gate in enumerate(step.gates):
                slope, at_zero = gate.phases()
                where = local_value(n, gate.qubits)
                offset[f] += at_zero[where]
                if table is not None:
                    table[f, g] = slope[where]
                else:
                    order = np.argsort(gate.qubits)
                    spread = slope.reshape((2,) * len(order)).transpose(order).reshape(-1)
                    shape, before = [], 0
                    for q in sorted(gate.qubits):
                        shape += [2 ** (q - before), 2]
                        before = q + 1
                    own.append(((*shape, 2 ** (n - before)), like.new_tensor(spread)))
            shaped.append(tuple(own))
        if table is not None and len(table) and (table == table[0]).all():
            table = table[0]
        return cls(values, None if table is None else like.new_tensor(table), tuple(shaped), like.new_tensor(offset))

    def factors(self, angles: Tensor) -> Tensor:
        """The diagonals `exp(i exponent)`, `(steps, D)` complex, at `angles (n_angles,)` in radians."""
        steps, size = self.offset.shape
        values = self.values(angles).view(steps, -1)
        if self.table is None:
            rows = [self._summed(f, values[f]) for f in range(steps)]
            exponent = torch.stack(rows)
        elif self.table.dim() == 2:
            exponent = torch.addmm(self.offset, values, self.table)
        else:
            exponent = torch.baddbmm(self.offset[:, None], values[:, None], self.table).view(steps, size)
        return torch.complex(exponent.cos(), exponent.sin())

    def _summed(self, step: int, values: Tensor) -> Tensor:
        exponent = self.offset[step]
        for value, (shape, slope) in zip(values, self.gates[step], strict=False):
            sizes = [s if i % 2 else 1 for i, s in enumerate(shape)]
            exponent = (exponent.view(shape) + (value * slope).view(sizes)).view(-1)
        return exponent


@dataclass(frozen=True)
class DenseGroup:
    """Dense steps made alike, multiplied out together; of each inner step its kind, family, the rows of all, a permutation."""

    real: bool
    steps: tuple[int, ...]
    inner: tuple[tuple[str, int, slice | Tensor, Tensor | None], ...]


class Builder:
    """Builds the tensors of a evolution from its angles: a flat list in the order of its steps.

    A local step of the prefix has one tensor `(n, 2, 2)`, any other one `(K, K)` for each of its blocks, a phase step `(D, 1)`, a
    dense step `(D, D)`; data and perm have none. `prefix[s]` and `steps[s]` are their positions in the list, `trainable` tells
    which depend on angles, `perms[s]` holds a permutation and its inverse.
    """

    PHASES, NONE = -1, -2

    def __init__(self, evolution: Evolution, first: int, like: Tensor) -> None:
        """`first` is the index of the first angle among the circuit's parameters; `like` gives device and dtype."""
        self.n, n = evolution.n_qubits, evolution.n_qubits
        all_qubits, device = tuple(range(n)), like.device
        runs: dict[FamilyKey, list[list[CompiledGate]]] = {}
        phases: list[Step] = []
        tables: dict[tuple[object, ...], Tensor] = {}

        def block(step: Step, qubits: tuple[int, ...], name: FamilyKey) -> tuple[int, int]:
            own = runs.setdefault(name, [])
            own += [step.on(q) for q in qubits]
            return list(runs).index(name), len(own) // len(qubits) - 1

        def phase(step: Step) -> tuple[int, int]:
            phases.append(step)
            return self.PHASES, len(phases) - 1

        def perm(step: Step) -> Tensor:
            return tables.setdefault(step.key, torch.as_tensor(permutation(step.gates, n), device=device))

        self.sources: list[tuple[int, int]] = []  # of every tensor: its family (or PHASES) and row, or (NONE, dense step)
        self.trainable: list[bool] = []
        self.prefix: list[int | None] = []
        self.steps: list[tuple[int, ...]] = []
        self.perms: list[tuple[Tensor, Tensor] | None] = []
        for step in evolution.prefix:
            self.prefix.append(len(self.sources) if step.kind == "local" else None)
            if step.kind == "local":
                learns = any(gate.trainable for gate in step.gates)
                self.sources.append(block(step, all_qubits, FamilyKey(n, False, learns, True)))
                self.trainable.append(learns)
        alike: dict[tuple[bool, tuple[object, ...]], list[tuple[int, list[tuple[int, int]]]]] = {}
        for position, step in enumerate(evolution.steps):
            before = len(self.sources)
            if step.kind == "dense":
                gates = [gate for s in step.steps if s.kind != "perm" for gate in s.gates]
                name = FamilyKey(n, all(gate.real and gate.kind == "local" for gate in gates), True, False)
                rows = [
                    block(s, all_qubits, name) if s.kind == "local" else phase(s) if s.kind == "phase" else (self.NONE, 0)
                    for s in step.steps
                ]
                make = (name.real, tuple(s.key if s.kind == "perm" else s.kind for s in step.steps))
                alike.setdefault(make, []).append((position, rows))
                self.sources.append((self.NONE, position))
                self.trainable.append(any(gate.trainable for gate in gates))
            elif step.kind == "local":
                for qubits in step.blocks:
                    gates = [gate for gate in step.gates if gate.qubits[0] in qubits]
                    learns = any(gate.trainable for gate in gates)
                    name = FamilyKey(len(qubits), all(gate.real for gate in gates), learns, False)
                    self.sources.append(block(step, qubits, name))
                    self.trainable.append(learns)
            elif step.kind == "phase":
                self.sources.append(phase(step))
                self.trainable.append(any(gate.trainable for gate in step.gates))
            self.steps.append(tuple(range(before, len(self.sources))))
            index = perm(step) if step.kind == "perm" else None
            self.perms.append(None if index is None else (index, index.argsort()))
        self.prefix_trainable = [place for place in self.prefix if place is not None and self.trainable[place]]
        self.families = [Family.of(name, own, first, like) for name, own in runs.items()]
        self.phases = Phases.of(phases, n, first, like) if phases else None
        self.dense: list[DenseGroup] = []
        for (real, _), members in alike.items():
            inner = []
            for i, step in enumerate(evolution.steps[members[0][0]].steps):
                rows_of = [rows[i][1] for _, rows in members]
                table = perm(step) if step.kind == "perm" else None
                inner.append((step.kind, members[0][1][i][0], _rows(rows_of, device), table))
            self.dense.append(DenseGroup(real, tuple(position for position, _ in members), tuple(inner)))

    def __call__(self, angles: Tensor) -> Tensors:
        families = [family.tensor(angles) for family in self.families]
        factors = angles if self.phases is None else self.phases.factors(angles).unsqueeze(-1)  # (steps, D, 1)
        rows: dict[int, Sequence[Tensor]] = {}
        dense: dict[int, Tensor] = {}
        for group in self.dense:
            product = self._multiplied(group, families, factors, angles)
            dense.update(zip(group.steps, product.unbind(0), strict=True))
        out = []
        for family, row in self.sources:
            if family == self.NONE:
                out.append(dense[row])
                continue
            if family not in rows:  # all rows at once: autograd undoes that in one call
                rows[family] = (factors if family == self.PHASES else families[family]).unbind(0)
            out.append(rows[family][row])
        return out

    def _multiplied(self, group: DenseGroup, families: Sequence[Tensor], factors: Tensor, angles: Tensor) -> Tensor:
        product: Tensor | None = None  # (steps, D, D)
        for kind, family, rows, table in group.inner:
            if kind == "local":
                own = families[family][rows]
                product = own if product is None else own @ product
                continue
            if product is None:
                dtype = angles.dtype if group.real else angles.dtype.to_complex()
                product = torch.eye(2**self.n, dtype=dtype, device=angles.device).expand(len(group.steps), -1, -1)
            product = product * factors[rows] if kind == "phase" else product.index_select(1, table)  # type: ignore[arg-type]
        assert product is not None  # a dense step holds at least one step
        return product


def _rows(rows: Sequence[int], device: torch.device) -> slice | Tensor:
    """Rows as a slice where they are evenly spaced."""
    gap = rows[1] - rows[0] if len(rows) > 1 else 1
    if gap > 0 and list(rows) == list(range(rows[0], rows[0] + gap * len(rows), gap)):
        return slice(rows[0], rows[0] + gap * (len(rows) - 1) + 1, gap)
    return torch.tensor(rows, device=device)


def pullback(function: Callable[..., Sequence[Tensor]], *arguments: Tensor, recording: bool) -> tuple[list[Tensor], Pull]:
    """Values of `function` and what carries gradients of them back to its arguments.

    `recording` says that autograd sees what is computed here; inside an operator it does not, and torch.func does the same.
    """
    if not recording:
        values, pull = torch.func.vjp(lambda *x: tuple(function(*x)), *arguments)[:2]
        zeros = [torch.zeros_like(y) for y in values]
        return list(values), lambda grads: pull(tuple(z if g is None else g for z, g in zip(zeros, grads, strict=True)))
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in arguments]
        outputs = function(*leaves)

    def back(grads: Sequence[Tensor | None]) -> Sequence[Tensor]:
        used = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None and y.requires_grad]
        if not used:
            return [torch.zeros_like(x) for x in leaves]
        return torch.autograd.grad([y for y, _ in used], leaves, [g for _, g in used], allow_unused=True, materialize_grads=True)

    return [y.detach() for y in outputs], back
