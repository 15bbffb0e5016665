"""State evolution in torch: the forward pass, and the adjoint pass that undoes it beside a costate.

A state is a real tensor `(2, D, B)`: real and imaginary parts, `D = 2^n` amplitudes, B samples last, so that a per-sample
rotation is an elementwise product over contiguous samples. A matrix M on amplitudes acts on the stacked `(2D, B)` state as
the real matrix `[[Re M, -Im M], [Im M, Re M]]`; unitary M makes it orthogonal, so undoing a step is applying the transpose.
No complex dtype appears.

Gradients. With `psi`, `lam` the state and costate after a step, a gate `G(t)` whose generator is `X = G'(t) G(t)^-1` (constant
in t: `frequency * sine` of the gate table, since every gate is the identity at angle zero) has

    dL/dt = Re <lam, X psi> = Re tr(W^dagger X),   W = sum over samples of |lam><psi|.

Data gates read it per sample. A block gathers W once, over all samples, and carries it back through its factors.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qpeft.circuits.ir import Circuit, GateSpec, Op
from qpeft.circuits.plan import Element, Factor, Plan, permutation, phase_weights


@dataclass(frozen=True)
class Angles:
    """Where each op's angle comes from: `scale * source[index] + shift`, radians."""

    index: Tensor
    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, ops: Sequence[Op], first: int, like: Tensor) -> Angles:
        maps = [(0, 0.0, 0.0 if a is None else a.shift) if a is None or a.index is None else (a.index - first, a.scale, a.shift)
                for a in (op.angle for op in ops)]  # fmt: skip
        index, scale, shift = zip(*maps, strict=True)
        return cls(torch.tensor(index, device=like.device), like.new_tensor(scale), like.new_tensor(shift))

    def values(self, source: Tensor) -> Tensor:
        """`(ops, ...)` from a source `(params, ...)`."""
        tail = (-1, *(1,) * (source.dim() - 1))
        if source.shape[0] == 0:
            return self.shift.reshape(tail).expand(-1, *source.shape[1:])
        return source[self.index] * self.scale.reshape(tail) + self.shift.reshape(tail)

    def accumulate(self, grad_source: Tensor, grad_values: Tensor) -> None:
        """Chain rule back to the source, summed where ops share a parameter, in place."""
        if grad_source.shape[0]:
            tail = (-1, *(1,) * (grad_values.dim() - 1))
            grad_source.index_add_(0, self.index, grad_values * self.scale.reshape(tail))


@dataclass(frozen=True)
class Prepared:
    """The constants of one factor on one device and dtype."""

    factor: Factor
    angles: Angles
    frequency: Tensor
    parts: Tensor  # (3, ops, 2, d, d): constant, cosine, sine; empty for phase and perm
    generator: Tensor  # (ops, 2, d, d)
    weights: Tensor  # (ops, D), phase only
    offset: Tensor  # (D,), phase only
    index: Tensor  # (D,), perm only
    inverse: Tensor


def _prepare(factor: Factor, circuit: Circuit, like: Tensor) -> Prepared:
    first = 0 if factor.kind == "data" else circuit.n_inputs
    empty = like.new_empty(0)
    no_index = torch.empty(0, dtype=torch.long, device=like.device)
    parts = generator = weights = offset = empty
    index = inverse = no_index
    if factor.kind == "phase":
        weights, offset = (like.new_tensor(a) for a in phase_weights(factor))
    elif factor.kind == "perm":
        forward = permutation(factor)
        index, inverse = (torch.as_tensor(a, device=like.device) for a in (forward, np.argsort(forward)))
    elif factor.kind in ("local", "pair"):
        values = np.array([_parts(op.spec) for op in factor.ops])
        pairs = np.stack([values.real, values.imag], axis=2)  # (ops, 3, 2, d, d)
        parts = like.new_tensor(pairs.transpose(1, 0, 2, 3, 4))
        generator = parts[2] * like.new_tensor([op.spec.frequency for op in factor.ops])[:, None, None, None]
    frequency = like.new_tensor([op.spec.frequency for op in factor.ops])
    return Prepared(factor, Angles.of(factor.ops, first, like), frequency, parts, generator, weights, offset, index, inverse)


def _parts(spec: GateSpec) -> list[object]:
    zero = np.zeros((2**spec.n_qubits,) * 2)
    return [np.array(part, dtype=complex) if part is not None else zero for part in (spec.constant, spec.cosine, spec.sine)]


@functools.lru_cache(maxsize=512)
def prepare(plan: Plan, device: torch.device, dtype: torch.dtype) -> tuple[tuple[Prepared, ...], ...]:
    """Constants of every factor of every element, kept per plan, device and dtype."""
    like = torch.empty(0, device=device, dtype=dtype)
    return tuple(tuple(_prepare(factor, plan.circuit, like) for factor in element.factors) for element in plan.elements)


@functools.lru_cache(maxsize=512)
def readout_tensors(plan: Plan, device: torch.device, dtype: torch.dtype) -> tuple[tuple[Tensor | None, Tensor, Tensor | None], ...]:
    """Per readout: the flip (None where it flips nothing), real weights, imaginary weights (None where zero)."""
    out = []
    for r in plan.readouts:
        flip = None if (r.flip == np.arange(len(r.flip))).all() else torch.as_tensor(r.flip, device=device)
        imag = torch.as_tensor(r.imag, device=device, dtype=dtype) if r.imag.any() else None
        out.append((flip, torch.as_tensor(r.real, device=device, dtype=dtype), imag))
    return tuple(out)


# ---- blocks: small matrices in the real representation ----------------------------------------------------------------------


def _real_form(pair: Tensor) -> Tensor:
    """`(2, K, K)` real and imaginary parts -> `(2K, 2K)`."""
    return torch.cat([torch.cat([pair[0], -pair[1]], dim=1), torch.cat([pair[1], pair[0]], dim=1)])


def _kron(a: Tensor, b: Tensor) -> Tensor:
    """Kronecker product of square matrices given as pairs `(2, k, k)`."""
    size = a.shape[-1] * b.shape[-1]
    outer = a[:, None, :, None, :, None] * b[None, :, None, :, None, :]
    return torch.stack([outer[0, 0] - outer[1, 1], outer[0, 1] + outer[1, 0]]).reshape(2, size, size)


def _gates(p: Prepared, angles: Tensor) -> Tensor:
    """`(ops, 2, d, d)`: each gate's matrix."""
    turned = p.angles.values(angles) * p.frequency
    c, s = torch.cos(turned)[:, None, None, None], torch.sin(turned)[:, None, None, None]
    return p.parts[0] + c * p.parts[1] + s * p.parts[2]


def _phase(p: Prepared, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of a diagonal's phases, `(D,)` each."""
    phase = p.angles.values(angles) @ p.weights + p.offset
    return torch.cos(phase), torch.sin(phase)


def _rotate_rows(matrix: Tensor, c: Tensor, s: Tensor) -> Tensor:
    """Multiply rows (amplitudes) of a stacked `(2D, ...)` or `(2, D, ...)` tensor by the phases `c + i s`."""
    re, im = matrix.reshape(2, c.shape[0], -1)
    c, s = c[:, None], s[:, None]
    return torch.stack([c * re - s * im, s * re + c * im]).reshape(matrix.shape)


def _operator(p: Prepared, angles: Tensor) -> Tensor:
    """Real form of a local or pair factor on its register."""
    gates = _gates(p, angles)
    register = p.factor.register
    if p.factor.kind == "local":
        identity = torch.stack([torch.eye(2, dtype=gates.dtype, device=gates.device), gates.new_zeros(2, 2)])
        of_qubit = {op.qubits[0]: gates[g] for g, op in enumerate(p.factor.ops)}
        return _real_form(functools.reduce(_kron, [of_qubit.get(q, identity) for q in register]))
    (op,) = p.factor.ops
    k = len(register)
    rest = [q for q in register if q not in op.qubits]
    eye = torch.eye(2 ** len(rest), dtype=gates.dtype, device=gates.device)
    order = [*op.qubits, *rest]  # built in this order of qubits, then moved to the register's
    built = _kron(gates[0], torch.stack([eye, torch.zeros_like(eye)])).reshape(2, *(2,) * 2 * k)
    axes = [order.index(q) for q in register]
    return _real_form(built.permute(0, *(1 + a for a in axes), *(1 + k + a for a in axes)).reshape(2, 2**k, 2**k))


def block_matrix(element: Element, prepared: Sequence[Prepared], angles: Tensor) -> Tensor:
    """Real form `(2K, 2K)` of a block, differentiable in the angles."""
    size = 2 ** len(element.qubits)
    matrix = torch.eye(2 * size, dtype=angles.dtype, device=angles.device)
    for p in prepared:
        if p.factor.kind == "phase":
            matrix = _rotate_rows(matrix, *_phase(p, angles))
        elif p.factor.kind == "perm":
            matrix = matrix.reshape(2, size, -1)[:, p.index].reshape(2 * size, -1)
        else:
            matrix = _operator(p, angles) @ matrix
    return matrix


def block_gradient(prepared: Sequence[Prepared], angles: Tensor, w: Tensor, grad_angles: Tensor) -> None:
    """Add a block's angle gradients, given `W = sum |lam><psi|` after the block as a pair `(2, K, K)`."""
    size = w.shape[-1]
    carried = _real_form(w)
    for p in reversed(prepared):
        pair = torch.stack([carried[:size, :size], carried[size:, :size]])
        if p.factor.kind == "phase":
            p.angles.accumulate(grad_angles, p.weights @ pair[1].diagonal())
            c, s = _phase(p, angles)
            carried = _rotate_rows(_rotate_rows(carried, c, -s).T, c, -s).T
        elif p.factor.kind == "perm":
            carried = carried.reshape(2, size, 2, size)[:, p.inverse][..., p.inverse].reshape(2 * size, 2 * size)
        else:
            reduced = torch.stack([_partial_trace(pair, p.factor.register, op.qubits) for op in p.factor.ops])
            p.angles.accumulate(grad_angles, (reduced * p.generator).sum(dim=(1, 2, 3)))
            operator = _operator(p, angles)
            carried = operator.T @ carried @ operator


def _partial_trace(pair: Tensor, register: Sequence[int], qubits: Sequence[int]) -> Tensor:
    """Trace out all qubits of `register` but `qubits`, in their order: `(2, K, K) -> (2, d, d)`."""
    k = len(register)
    keep = [register.index(q) for q in qubits]
    rest = [i for i in range(k) if i not in keep]
    axes = [0, *(1 + i for i in keep), *(1 + k + i for i in keep), *(1 + i for i in rest), *(1 + k + i for i in rest)]
    d, r = 2 ** len(keep), 2 ** len(rest)
    moved = pair.reshape(2, *(2,) * 2 * k).permute(axes).reshape(2, d, d, r, r)
    return moved.diagonal(dim1=3, dim2=4).sum(-1)


# ---- states ------------------------------------------------------------------------------------------------------------------


def _split(psi: Tensor, n: int, qubits: Sequence[int]) -> tuple[list[Tensor], list[int]]:
    """Views of the amplitudes by the value of `qubits`: 2^k tensors `(2, ..., B)`, and the axes they were taken from."""
    axes = [1 + q for q in qubits]
    grid = psi.reshape(2, *(2,) * n, psi.shape[-1])
    views = [grid]
    for axis in axes:
        views = [view.narrow(axis, bit, 1) for view in views for bit in (0, 1)]
    return views, axes


def _times_i(x: Tensor) -> Tensor:
    return torch.stack([-x[1], x[0]])


@functools.lru_cache(maxsize=64)
def _terms(spec: GateSpec) -> tuple[tuple[tuple[int, int, complex], ...], ...]:
    """For each row of the matrix, its non-zero entries as (column, part, value); part 0 constant, 1 cosine, 2 sine."""
    rows: list[list[tuple[int, int, complex]]] = [[] for _ in range(2**spec.n_qubits)]
    for part, matrix in enumerate((spec.constant, spec.cosine, spec.sine)):
        for i, row in enumerate(matrix or ()):
            rows[i] += [(j, part, complex(value)) for j, value in enumerate(row) if value]
    return tuple(tuple(row) for row in rows)


def apply_data_gate(psi: Tensor, n: int, op: Op, c: Tensor, s: Tensor) -> Tensor:
    """Apply a gate with per-sample cosine and sine `(B,)` of `frequency * angle` to states `(2, D, B)`."""
    views, axes = _split(psi, n, op.qubits)
    rows = []
    for row in _terms(op.spec):
        total: Tensor | None = None
        for column, part, value in row:
            factor = (None, c, s)[part]
            for number, source in ((value.real, views[column]), (value.imag, None)):
                if number:
                    source = _times_i(views[column]) if source is None else source
                    term = source * number if factor is None else source * (factor if number == 1 else number * factor)
                    total = term if total is None else total + term
        assert total is not None  # a unitary has no empty row
        rows.append(total)
    for axis in reversed(axes):
        rows = [torch.cat(rows[i : i + 2], dim=axis) for i in range(0, len(rows), 2)]
    return rows[0].reshape(psi.shape)


def data_gate_gradient(psi: Tensor, lam: Tensor, n: int, op: Op) -> Tensor:
    """`Re <lam, X psi>` per sample `(B,)` for a gate just applied."""
    after, _ = _split(psi, n, op.qubits)
    costate, _ = _split(lam, n, op.qubits)
    total: Tensor | None = None
    for i, row in enumerate(op.spec.sine or ()):
        for j, value in enumerate(row):
            for number, source in ((complex(value).real, after[j]), (complex(value).imag, None)):
                if number:
                    source = _times_i(after[j]) if source is None else source
                    term = (costate[i] * source).flatten(0, -2).sum(0) * (number * op.spec.frequency)
                    total = term if total is None else total + term
    assert total is not None  # every parametrised gate has a generator
    return total


def apply_block(psi: Tensor, n: int, qubits: Sequence[int], matrix: Tensor) -> Tensor:
    """Apply a `(2K, 2K)` real-form matrix on `qubits` to states `(2, D, B)`."""
    moved, shape, order = _gather(psi, n, qubits)
    return _scatter((matrix @ moved).reshape(shape), n, order, psi.shape)


def block_correlation(lam: Tensor, psi: Tensor, n: int, qubits: Sequence[int]) -> Tensor:
    """`W = sum |lam><psi|` over samples and all other qubits, as a pair `(2, K, K)`."""
    gram = _gather(lam, n, qubits)[0] @ _gather(psi, n, qubits)[0].T
    k = gram.shape[0] // 2
    return torch.stack([gram[:k, :k] + gram[k:, k:], gram[k:, :k] - gram[:k, k:]])


def _gather(psi: Tensor, n: int, qubits: Sequence[int]) -> tuple[Tensor, tuple[int, ...], list[int]]:
    """`(2, D, B)` -> `(2K, rest)` with `qubits` in front; also the shape before flattening and the order of qubits."""
    order = [*qubits, *(q for q in range(n) if q not in qubits)]
    grid = psi.reshape(2, *(2,) * n, psi.shape[-1])
    if order != list(range(n)):
        grid = grid.permute(0, *(1 + q for q in order), n + 1)
    return grid.reshape(2 * 2 ** len(qubits), -1), tuple(grid.shape), order


def _scatter(grid: Tensor, n: int, order: list[int], shape: torch.Size) -> Tensor:
    if order != list(range(n)):
        grid = grid.permute(0, *(1 + order.index(q) for q in range(n)), n + 1)
    return grid.reshape(shape)


def build(plan: Plan, angles: Tensor) -> list[tuple[Tensor, ...]]:
    """The tensors of every element, in order: a block's matrix, a phase's cosine and sine, nothing for data and perm."""
    out: list[tuple[Tensor, ...]] = []
    for element, prepared in zip(plan.elements, prepare(plan, angles.device, angles.dtype), strict=True):
        if element.kind == "block":
            out.append((block_matrix(element, prepared, angles),))
        else:
            out.append(_phase(prepared[0], angles) if element.kind == "phase" else ())
    return out


def _trig(p: Prepared, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of `frequency * angle`, `(ops, B)`, from inputs `(n_inputs, B)`."""
    turned = p.angles.values(inputs) * p.frequency[:, None]
    return torch.cos(turned), torch.sin(turned)


def _product_state(plan: Plan, p: Prepared, inputs: Tensor) -> Tensor:
    """The state after a first data element of single-qubit gates on |0...0>: an outer product of one-qubit states."""
    n, batch = plan.circuit.n_qubits, inputs.shape[1]
    c, s = _trig(p, inputs)
    of_qubit = {op.qubits[0]: (op, c[g], s[g]) for g, op in enumerate(p.factor.ops)}
    state = torch.stack([torch.ones_like(inputs[:1]), torch.zeros_like(inputs[:1])])
    zero = torch.cat([state, torch.zeros_like(state)], dim=1)
    for q in range(n):
        if q not in of_qubit:
            state = (state[:, :, None] * zero[0, :, :][None, None]).reshape(2, -1, batch)
            continue
        op, cq, sq = of_qubit[q]
        one = apply_data_gate(zero, 1, Op(op.gate, (0,), op.angle), cq, sq)
        real = state[:, :, None] * one[0][None, None]
        if any(complex(v).imag for part in (op.spec.constant, op.spec.sine or ()) for row in part for v in row):
            real = real + _times_i(state)[:, :, None] * one[1][None, None]
        state = real.reshape(2, -1, batch)
    return state


def forward(plan: Plan, inputs: Tensor, tensors: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """Final states `(2, D, B)` from inputs `(n_inputs, B)`; plain torch, differentiable by autograd."""
    n, batch = plan.circuit.n_qubits, inputs.shape[1]
    prepared = prepare(plan, inputs.device, inputs.dtype)
    first = plan.elements[0] if plan.elements else None
    if first is not None and first.kind == "data" and all(op.spec.n_qubits == 1 for op in first.factors[0].ops):
        psi, start = _product_state(plan, prepared[0][0], inputs), 1
    else:
        psi, start = inputs.new_zeros(2, 2**n, batch), 0
        psi[0, 0] = 1.0
    for element, p, own in list(zip(plan.elements, prepared, tensors, strict=True))[start:]:
        psi = _step(psi, n, element, p, own, inputs)
    return psi


def _step(psi: Tensor, n: int, element: Element, prepared: Sequence[Prepared], own: tuple[Tensor, ...], inputs: Tensor) -> Tensor:
    if element.kind == "block":
        return apply_block(psi, n, element.qubits, own[0])
    if element.kind == "phase":
        return _rotate_rows(psi, *own)
    if element.kind == "perm":
        return psi[:, prepared[0].index]
    c, s = _trig(prepared[0], inputs)
    for g, op in enumerate(prepared[0].factor.ops):
        psi = apply_data_gate(psi, n, op, c[g], s[g])
    return psi


def read(plan: Plan, psi: Tensor) -> Tensor:
    """Expectation values `(n_observables, B)`."""
    total: Tensor | None = None
    for flip, real, imag in readout_tensors(plan, psi.device, psi.dtype):
        other = psi if flip is None else psi[:, flip]
        value = real @ (psi * other).sum(0)
        if imag is not None:  # Re(conj(a) i w f) = w (Im(a) Re(f) - Re(a) Im(f))
            value = value + imag @ (psi[1] * other[0] - psi[0] * other[1])
        total = value if total is None else total + value
    assert total is not None  # a plan has at least one readout
    return total


def costate(plan: Plan, psi: Tensor, grad: Tensor) -> Tensor:
    """`lam = 2 sum_k grad_k O_k psi`, from `grad (n_observables, B)`: the derivative of the read-out in the state."""
    total: Tensor | None = None
    for flip, real, imag in readout_tensors(plan, psi.device, psi.dtype):
        other = psi if flip is None else psi[:, flip]
        value = (real.T @ grad) * other
        if imag is not None:
            value = value + (imag.T @ grad) * _times_i(other)
        total = value if total is None else total + value
    assert total is not None
    return 2.0 * total


@dataclass
class Correlations:
    """What a backward pass gathers over chunks of samples: one tensor per block (W) and phase (Im diag W)."""

    tensors: list[Tensor | None]

    def add(self, position: int, value: Tensor) -> None:
        known = self.tensors[position]
        self.tensors[position] = value if known is None else known.add_(value)


def backward(
    plan: Plan, inputs: Tensor, grad: Tensor, tensors: Sequence[tuple[Tensor, ...]], gathered: Correlations
) -> Tensor:
    """Run a chunk again, undo it beside its costate; returns input gradients `(n_inputs, B)` and adds to `gathered`."""
    n, batch = plan.circuit.n_qubits, inputs.shape[1]
    prepared = prepare(plan, inputs.device, inputs.dtype)
    psi = forward(plan, inputs, tensors)
    both = torch.cat([psi, costate(plan, psi, grad)], dim=-1)  # state and costate side by side: one product undoes both
    twice = torch.cat([inputs, inputs], dim=1)
    grad_inputs = torch.zeros_like(inputs)
    for position in range(len(plan.elements) - 1, -1, -1):
        element, (p, *_), own = plan.elements[position], prepared[position], tensors[position]
        psi, lam = both[..., :batch], both[..., batch:]
        if element.kind == "data":
            ops = p.factor.ops
            p.angles.accumulate(grad_inputs, torch.stack([data_gate_gradient(psi, lam, n, op) for op in ops]))
            if position:
                c, s = _trig(p, twice)
                for g, op in enumerate(ops):
                    both = apply_data_gate(both, n, op, c[g], -s[g])
        elif element.kind == "block":
            gathered.add(position, block_correlation(lam, psi, n, element.qubits))
            both = apply_block(both, n, element.qubits, own[0].T) if position else both
        elif element.kind == "phase":
            gathered.add(position, (lam[1] * psi[0] - lam[0] * psi[1]).sum(-1))
            both = _rotate_rows(both, own[0], -own[1]) if position else both
        else:
            both = both[:, p.inverse]
    return grad_inputs


def angle_gradient(plan: Plan, angles: Tensor, gathered: Correlations) -> Tensor:
    """Angle gradients `(n_angles,)` from what all chunks gathered."""
    grad = torch.zeros_like(angles)
    for element, prepared, value in zip(
        plan.elements, prepare(plan, angles.device, angles.dtype), gathered.tensors, strict=True
    ):
        if value is not None and element.kind == "block":
            block_gradient(prepared, angles, value, grad)
        elif value is not None:
            prepared[0].angles.accumulate(grad, prepared[0].weights @ value)
    return grad
