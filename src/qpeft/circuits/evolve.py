"""State evolution in torch: the forward pass, and the adjoint pass that undoes it beside a costate.

A state is a real tensor `(2, D, B)`: real and imaginary parts, `D = 2^n` amplitudes, B samples last, so that a per-sample
rotation is an elementwise product over contiguous samples. Every step is unitary, so undoing it is applying its adjoint.
Gradients are those of blocks.py, read per sample for data gates.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qpeft.circuits.blocks import Prepared, block_gradient, prepare, real_form, rotate_rows
from qpeft.circuits.ir import GateSpec, Op
from qpeft.circuits.plan import Element, Plan


@functools.lru_cache(maxsize=512)
def readout_tensors(
    plan: Plan, device: torch.device, dtype: torch.dtype
) -> tuple[tuple[Tensor | None, Tensor, Tensor | None], ...]:
    """Per readout: the flip (None where it flips nothing), real weights, imaginary weights (None where zero)."""
    out = []
    for r in plan.readouts:
        flip = None if (r.flip == np.arange(len(r.flip))).all() else torch.as_tensor(r.flip, device=device)
        imag = torch.as_tensor(r.imag, device=device, dtype=dtype) if r.imag.any() else None
        out.append((flip, torch.as_tensor(r.real, device=device, dtype=dtype), imag))
    return tuple(out)


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


def apply_block(psi: Tensor, n: int, qubits: Sequence[int], matrix: Tensor, *, adjoint: bool = False) -> Tensor:
    """Apply a block's `(1 or 2, K, K)` matrix, or its adjoint, on `qubits` to states `(2, D, B)`."""
    grid, order = _grid(psi, n, qubits)
    re, im = (matrix.mT if adjoint else matrix)[0], None if matrix.shape[0] == 1 else matrix[1]
    if im is None:
        out = re @ grid
    elif grid.shape[1] == 1:
        form = real_form(matrix)
        out = (form.T if adjoint else form) @ grid.flatten(0, 2)
    else:
        im = -im.T if adjoint else im
        a, b = re @ grid, im @ grid
        out = torch.stack([a[0] - b[1], a[1] + b[0]])
    if order is not None:  # the gathered qubits go back to their places
        out = out.reshape(2, *(2,) * n, psi.shape[-1]).permute(0, *(1 + order.index(q) for q in range(n)), n + 1)
    return out.reshape(psi.shape)


def block_correlation(lam: Tensor, psi: Tensor, n: int, qubits: Sequence[int], kept: int) -> Tensor:
    """`W = sum |lam><psi|` over samples and all other qubits, `(2, K, K)`; its real part `(1, K, K)` when `kept` is 1."""
    left, right = _grid(lam, n, qubits)[0], _grid(psi, n, qubits)[0].mT
    real = (left @ right).sum(dim=(0, 1))
    if kept == 1:
        return real[None]
    return torch.stack([real, (left[1] @ right[0] - left[0] @ right[1]).sum(0)])


def _grid(psi: Tensor, n: int, qubits: Sequence[int]) -> tuple[Tensor, list[int] | None]:
    """States as `(2, pre, K, post * B)` around neighbouring `qubits`; others are gathered in front, in the order returned."""
    k, start = len(qubits), qubits[0]
    if list(qubits) == list(range(start, start + k)):
        return psi.reshape(2, 2**start, 2**k, -1), None
    order = [*qubits, *(q for q in range(n) if q not in qubits)]
    grid = psi.reshape(2, *(2,) * n, psi.shape[-1]).permute(0, *(1 + q for q in order), n + 1)
    return grid.reshape(2, 1, 2**k, -1), order


def _trig(p: Prepared, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of `frequency * angle`, `(ops, B)`, from inputs `(n_inputs, B)`."""
    turned = p.angles.values(inputs) * p.frequency[:, None]
    return torch.cos(turned), torch.sin(turned)


def _product_state(n: int, p: Prepared, inputs: Tensor) -> Tensor:
    """The state after a first data element of single-qubit gates on |0...0>: an outer product of one-qubit states."""
    batch, kept = inputs.shape[1], 1 if p.real else 2
    c, s = _trig(p, inputs)
    first = p.parts[:, :, :kept, :, :1]  # what each gate makes of |0>: (3, ops, kept, 2, 1)
    ones = first[0] + c[:, None, None] * first[1] + s[:, None, None] * first[2]  # (ops, kept, 2, B)
    of_qubit = {op.qubits[0]: ones[g] for g, op in enumerate(p.factor.ops)}
    zero = inputs.new_zeros(kept, 2, 1)
    zero[0, 0] = 1.0
    state = inputs.new_zeros(kept, 1, batch)
    state[0] = 1.0
    for q in range(n):
        one = of_qubit.get(q, zero)[:, None]  # (kept, 1, 2, B)
        if p.real:
            state = (state[:, :, None] * one).reshape(1, -1, batch)
        else:
            products = state[:, None, :, None] * one
            pair = [products[0, 0] - products[1, 1], products[0, 1] + products[1, 0]]
            state = torch.stack(pair).reshape(2, -1, batch)
    return torch.cat([state, torch.zeros_like(state)]) if p.real else state


def forward(plan: Plan, inputs: Tensor, tensors: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """Final states `(2, D, B)` from inputs `(n_inputs, B)`; plain torch, differentiable by autograd."""
    n, batch = plan.circuit.n_qubits, inputs.shape[1]
    prepared = prepare(plan, inputs.device, inputs.dtype)
    first = plan.elements[0] if plan.elements else None
    if first is not None and first.kind == "data" and all(op.spec.n_qubits == 1 for op in first.factors[0].ops):
        psi, start = _product_state(n, prepared[0][0], inputs), 1
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
        return rotate_rows(psi, *own)
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


def backward(plan: Plan, inputs: Tensor, grad: Tensor, tensors: Sequence[tuple[Tensor, ...]], gathered: Correlations) -> Tensor:
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
            gathered.add(position, block_correlation(lam, psi, n, element.qubits, own[0].shape[0]))
            both = apply_block(both, n, element.qubits, own[0], adjoint=True) if position else both
        elif element.kind == "phase":
            gathered.add(position, (lam[1] * psi[0] - lam[0] * psi[1]).sum(-1))
            both = rotate_rows(both, own[0], -own[1]) if position else both
        else:
            both = both[:, p.inverse]
    return grad_inputs


def angle_gradient(plan: Plan, angles: Tensor, gathered: Correlations) -> Tensor:
    """Angle gradients `(n_angles,)` from what all chunks gathered."""
    grad = torch.zeros_like(angles)
    for element, prepared, value in zip(plan.elements, prepare(plan, angles.device, angles.dtype), gathered.tensors, strict=True):
        if value is not None and element.kind == "block":
            block_gradient(prepared, angles, value, grad)
        elif value is not None:
            prepared[0].angles.accumulate(grad, prepared[0].weights @ value)
    return grad
