"""What does not depend on data: angles, gates, blocks and diagonals as small tensors, and their gradients.

A matrix M on amplitudes is a tensor `(2, K, K)` of real and imaginary parts, or `(1, K, K)` when it is real; its *real form*
`[[Re M, -Im M], [Im M, Re M]]` acts on stacked states. No complex dtype appears.

Gradients. With `psi`, `lam` the state and costate after a step, a gate `G(t)` whose generator is `X = G'(t) G(t)^-1` (constant
in t: `frequency * sine` of the gate table, since every gate is the identity at angle zero) has

    dL/dt = Re <lam, X psi> = Re tr(W^dagger X),   W = sum over samples of |lam><psi|.

A block is given W once, gathered over all samples, and carries it back through its factors.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qpeft.circuits.ir import Circuit, GateSpec, Op
from qpeft.circuits.plan import Factor, Plan, permutation, phase_weights


@dataclass(frozen=True)
class Angles:
    """Where each op's angle comes from: `scale * source[index] + shift`, radians. A `run` of plain entries is a slice."""

    index: Tensor
    scale: Tensor
    shift: Tensor
    run: slice | None

    @classmethod
    def of(cls, ops: Sequence[Op], first: int, like: Tensor) -> Angles:
        index, scale, shift = [], [], []
        for angle in (op.angle for op in ops):
            bound = angle is not None and angle.index is not None
            index.append(angle.index - first if angle is not None and angle.index is not None else 0)
            scale.append(angle.scale if angle is not None and bound else 0.0)
            shift.append(angle.shift if angle is not None else 0.0)
        plain = index == list(range(index[0], index[0] + len(index))) and set(scale) == {1.0} and set(shift) == {0.0}
        run = slice(index[0], index[0] + len(index)) if plain else None
        return cls(torch.tensor(index, device=like.device), like.new_tensor(scale), like.new_tensor(shift), run)

    def values(self, source: Tensor) -> Tensor:
        """`(ops, ...)` from a source `(params, ...)`."""
        if self.run is not None:
            return source[self.run]
        tail = (-1, *(1,) * (source.dim() - 1))
        if source.shape[0] == 0:
            return self.shift.reshape(tail).expand(-1, *source.shape[1:])
        return source[self.index] * self.scale.reshape(tail) + self.shift.reshape(tail)

    def accumulate(self, grad_source: Tensor, grad_values: Tensor) -> None:
        """Chain rule back to the source, summed where ops share a parameter, in place."""
        if self.run is not None:
            grad_source[self.run] += grad_values
        elif grad_source.shape[0]:
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
    real: bool  # every gate's matrix is real, for every angle


def _prepare(factor: Factor, circuit: Circuit, like: Tensor) -> Prepared:
    first = 0 if factor.kind == "data" else circuit.n_inputs
    empty = like.new_empty(0)
    no_index = torch.empty(0, dtype=torch.long, device=like.device)
    parts = generator = weights = offset = empty
    index = inverse = no_index
    frequency = like.new_tensor([op.spec.frequency for op in factor.ops])
    if factor.kind == "phase":
        weights, offset = (like.new_tensor(a) for a in phase_weights(factor))
    elif factor.kind == "perm":
        forward = permutation(factor)
        index, inverse = (torch.as_tensor(a, device=like.device) for a in (forward, np.argsort(forward)))
    elif len({op.spec.n_qubits for op in factor.ops}) == 1:  # local, pair, data
        values = np.array([_parts(op.spec) for op in factor.ops])
        pairs = np.stack([values.real, values.imag], axis=2)  # (ops, 3, 2, d, d)
        parts = like.new_tensor(pairs.transpose(1, 0, 2, 3, 4))
        generator = parts[2] * frequency[:, None, None, None]
    angles = Angles.of(factor.ops, first, like)
    real = factor.kind != "phase" and all(not part.imag.any() for op in factor.ops for part in _parts(op.spec))
    return Prepared(factor, angles, frequency, parts, generator, weights, offset, index, inverse, real)


def _parts(spec: GateSpec) -> list[npt.NDArray[np.complex128]]:
    zero = np.zeros((2**spec.n_qubits,) * 2, dtype=np.complex128)
    return [np.array(part, dtype=np.complex128) if part is not None else zero for part in (spec.constant, spec.cosine, spec.sine)]


@functools.lru_cache(maxsize=512)
def prepare(plan: Plan, device: torch.device, dtype: torch.dtype) -> tuple[tuple[Prepared, ...], ...]:
    """Constants of every factor of every element, kept per plan, device and dtype."""
    like = torch.empty(0, device=device, dtype=dtype)
    return tuple(tuple(_prepare(factor, plan.circuit, like) for factor in element.factors) for element in plan.elements)


def real_form(pair: Tensor) -> Tensor:
    """`(2, K, K)` real and imaginary parts -> `(2K, 2K)`; a real matrix `(1, K, K)` -> `(K, K)`."""
    if pair.shape[0] == 1:
        return pair[0]
    return torch.cat([torch.cat([pair[0], -pair[1]], dim=1), torch.cat([pair[1], pair[0]], dim=1)])


def _pair(form: Tensor, size: int) -> Tensor:
    """The inverse of `real_form`."""
    return form[None] if form.shape[0] == size else torch.stack([form[:size, :size], form[size:, :size]])


def _kron(factors: Sequence[Tensor], real: bool) -> Tensor:
    """Kronecker product of square matrices given as pairs `(2, k, k)`: a pair, or `(1, k, k)` when `real`."""
    out = factors[0][:1] if real else factors[0]
    for b in factors[1:]:
        size = out.shape[-1] * b.shape[-1]
        left, right = out[:, :, None, :, None], b[:, None, :, None, :]
        if real:
            out = (left * right[:1]).reshape(1, size, size)
        else:
            products = left[:, None] * right
            out = torch.stack([products[0, 0] - products[1, 1], products[0, 1] + products[1, 0]]).reshape(2, size, size)
    return out


def _gates(p: Prepared, angles: Tensor) -> Tensor:
    """`(ops, 2, d, d)`: each gate's matrix."""
    turned = p.angles.values(angles) * p.frequency
    c, s = torch.cos(turned)[:, None, None, None], torch.sin(turned)[:, None, None, None]
    return p.parts[0] + c * p.parts[1] + s * p.parts[2]


def _phase(p: Prepared, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of a diagonal's phases, `(D,)` each."""
    phase = p.angles.values(angles) @ p.weights + p.offset
    return torch.cos(phase), torch.sin(phase)


def rotate_rows(matrix: Tensor, c: Tensor, s: Tensor) -> Tensor:
    """Multiply rows (amplitudes) of a stacked `(2D, ...)` or `(2, D, ...)` tensor by the phases `c + i s`."""
    re, im = matrix.reshape(2, c.shape[0], -1)
    c, s = c[:, None], s[:, None]
    return torch.stack([c * re - s * im, s * re + c * im]).reshape(matrix.shape)


def _operator(p: Prepared, angles: Tensor) -> Tensor:
    """A local or pair factor on its register, `(2, K, K)` or, when real, `(1, K, K)`."""
    gates = _gates(p, angles)
    register = p.factor.register
    if p.factor.kind == "local":
        identity = torch.stack([torch.eye(2, dtype=gates.dtype, device=gates.device), gates.new_zeros(2, 2)])
        of_qubit = {op.qubits[0]: gates[g] for g, op in enumerate(p.factor.ops)}
        return _kron([of_qubit.get(q, identity) for q in register], p.real)
    (op,) = p.factor.ops
    k = len(register)
    rest = [q for q in register if q not in op.qubits]
    eye = torch.eye(2 ** len(rest), dtype=gates.dtype, device=gates.device)
    order = [*op.qubits, *rest]  # built in this order of qubits, then moved to the register's
    built = _kron([gates[0], torch.stack([eye, torch.zeros_like(eye)])], p.real)
    axes = [order.index(q) for q in register]
    grid = built.reshape(-1, *(2,) * 2 * k).permute(0, *(1 + a for a in axes), *(1 + k + a for a in axes))
    return grid.reshape(-1, 2**k, 2**k)


def _multiply(operator: Tensor, form: Tensor) -> Tensor:
    """`operator @ form` for `(1 or 2, K, K)` and a stacked `(cK, m)`; a real operator acts on both halves alike."""
    size = operator.shape[-1]
    if operator.shape[0] == 1 and form.shape[0] == 2 * size:
        return (operator @ form.reshape(2, size, -1)).reshape(form.shape)
    return real_form(operator) @ form


def block_matrix(prepared: Sequence[Prepared], angles: Tensor) -> Tensor:
    """A block's unitary, `(2, K, K)`, or `(1, K, K)` when all its factors are real; differentiable in the angles."""
    size = 2 ** len(prepared[0].factor.register)
    kept = 1 if all(p.real for p in prepared) else 2
    form = torch.eye(kept * size, dtype=angles.dtype, device=angles.device)
    for p in prepared:
        if p.factor.kind == "phase":
            form = rotate_rows(form, *_phase(p, angles))
        elif p.factor.kind == "perm":
            form = form.reshape(kept, size, -1)[:, p.index].reshape(kept * size, -1)
        else:
            form = _multiply(_operator(p, angles), form)
    return _pair(form, size)


def block_gradient(prepared: Sequence[Prepared], angles: Tensor, w: Tensor, grad_angles: Tensor) -> None:
    """Add a block's angle gradients, given `W = sum |lam><psi|` after it, `(2, K, K)`, or its real part for a real block."""
    kept, size = w.shape[0], w.shape[-1]
    carried = real_form(w)
    for p in reversed(prepared):
        if p.factor.kind == "phase":
            p.angles.accumulate(grad_angles, p.weights @ carried[size:, :size].diagonal())
            c, s = _phase(p, angles)
            carried = rotate_rows(rotate_rows(carried, c, -s).T, c, -s).T
        elif p.factor.kind == "perm":
            grid = carried.reshape(kept, size, kept, size)
            carried = grid[:, p.inverse][..., p.inverse].reshape(carried.shape)
        else:
            pair = _pair(carried, size)
            reduced = torch.stack([_partial_trace(pair, p.factor.register, op.qubits) for op in p.factor.ops])
            p.angles.accumulate(grad_angles, (reduced * p.generator[:, :kept]).sum(dim=(1, 2, 3)))
            if p is not prepared[0]:
                operator = _operator(p, angles)
                inverse = operator.mT * operator.new_tensor([1.0, -1.0])[: operator.shape[0], None, None]
                carried = _multiply(inverse, _multiply(inverse, carried).T).T


def _partial_trace(pair: Tensor, register: Sequence[int], qubits: Sequence[int]) -> Tensor:
    """Trace out all qubits of `register` but `qubits`, in their order: `(c, K, K) -> (c, d, d)`."""
    k = len(register)
    keep = [register.index(q) for q in qubits]
    rest = [i for i in range(k) if i not in keep]
    axes = [0, *(1 + i for i in keep), *(1 + k + i for i in keep), *(1 + i for i in rest), *(1 + k + i for i in rest)]
    d, r = 2 ** len(keep), 2 ** len(rest)
    moved = pair.reshape(-1, *(2,) * 2 * k).permute(axes).reshape(-1, d, d, r, r)
    return moved.diagonal(dim1=3, dim2=4).sum(-1)


def build(plan: Plan, angles: Tensor) -> list[tuple[Tensor, ...]]:
    """The tensors of every element, in order: a block's matrix, a phase's cosine and sine, nothing for data and perm."""
    out: list[tuple[Tensor, ...]] = []
    for element, prepared in zip(plan.elements, prepare(plan, angles.device, angles.dtype), strict=True):
        if element.kind == "block":
            out.append((block_matrix(prepared, angles),))
        else:
            out.append(_phase(prepared[0], angles) if element.kind == "phase" else ())
    return out
