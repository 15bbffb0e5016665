"""State evolution in torch: the forward pass, and the adjoint pass that undoes it beside a costate.

A state is a complex tensor `(D, B)`: `D = 2^n` amplitudes, B samples last, so that a per-sample phase is one elementwise product
over contiguous samples and a block is one matrix product. A real block multiplies real and imaginary parts alike.

Gradients follow torch's convention, `lam = dL/d(Re psi) + i dL/d(Im psi)`. Every step multiplies the state by a tensor, so

    psi' = M psi:  dL/dM = lam' psi^dagger,  lam = M^dagger lam',

summed over samples; of a phase only the diagonal of that is wanted. Steps are unitary: undoing one is applying its adjoint.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from qpeft.circuits.simulator.torch_engine import product_state
from qpeft.circuits.simulator.torch_engine.blocks import Builder, Tensors
from qpeft.circuits.simulator.torch_engine.buffers import Register, Sums
from qpeft.circuits.simulator.torch_engine.compiler import Plan, Program, Step, local_value

# A state or an upload's factors: `(D, B or 1)`, or its two halves where it is a product (product_state.py)
End: TypeAlias = "tuple[Tensor] | product_state.Halves"


class Upload:
    """The per-sample phases of a data step: `exp(i exponent)`, from inputs `(n_inputs, B)`."""

    def __init__(self, step: Step, n: int, n_inputs: int, like: Tensor) -> None:
        single, single_shift = np.zeros((n, n_inputs)), np.zeros((n, 1))
        pair, pair_shift = np.zeros((2**n, n_inputs)), np.zeros((2**n, 1))
        for gate in step.gates:
            assert gate.angle is not None
            assert gate.angle.index is not None
            slope, at_zero = gate.phases()
            at_zero = at_zero + slope * gate.angle.shift
            if len(gate.qubits) == 1:  # to a phase common to both basis states, which no expectation value sees
                single[gate.qubits[0], gate.angle.index] += (slope[1] - slope[0]) * gate.angle.scale
                single_shift[gate.qubits[0]] += at_zero[1] - at_zero[0]
            else:
                where = local_value(n, gate.qubits)
                pair[:, gate.angle.index] += slope[where] * gate.angle.scale
                pair_shift[:, 0] += at_zero[where]
        tensors = (like.new_tensor(a) for a in (single, single_shift, pair, pair_shift))
        self.single, self.single_shift, self.pair, self.pair_shift = tensors
        self.has_single, self.has_pair = any(len(g.qubits) == 1 for g in step.gates), any(len(g.qubits) > 1 for g in step.gates)

    def of_qubits(self, inputs: Tensor) -> Tensor:
        """`(n, 2, B)`: the factors of each qubit's basis states."""
        exponent = torch.addmm(self.single_shift, self.single, inputs)
        turned = torch.complex(exponent.cos(), exponent.sin())
        return torch.stack([torch.ones_like(turned), turned], dim=1)

    def of_register(self, qubits: Tensor | None, inputs: Tensor) -> End:
        """The factors of the register's basis states."""
        pair = None if qubits is None else product_state.halves(qubits)
        if not self.has_pair:
            assert pair is not None  # a data step has gates
            return pair
        exponent = torch.addmm(self.pair_shift, self.pair, inputs)
        turned = torch.complex(exponent.cos(), exponent.sin())
        return (turned if pair is None else product_state.state(pair) * turned,)


@dataclass(frozen=True)
class Kit:
    """Everything of a program that neither inputs nor angles change, on one device and dtype."""

    program: Program
    builder: Builder
    uploads: tuple[Upload, ...]
    prefix_upload: tuple[int | None, ...]  # which upload each data step of the prefix, and of the program, is
    step_upload: tuple[int | None, ...]
    blocks: tuple[tuple[tuple[int, ...], ...], ...]  # per step, the qubits of each matrix
    ground: Tensor  # (n, 2, 1): every qubit in |0>

    @functools.cached_property
    def used(self) -> tuple[int, ...]:
        """The uploads of the steps, in order of first use."""
        return tuple(dict.fromkeys(which for which in self.step_upload if which is not None))


@functools.lru_cache(maxsize=512)
def kit(plan: Plan, whole: bool, device: torch.device, dtype: torch.dtype) -> Kit:
    """The kit of a plan's program, or of its whole unitary; kept."""
    program, circuit = plan.whole if whole else plan.program, plan.circuit
    like = torch.empty(0, device=device, dtype=dtype)
    known: dict[tuple[object, ...], int] = {}
    uploads: list[Upload] = []

    def upload(step: Step) -> int | None:
        if step.kind != "data":
            return None
        if step.key not in known:
            known[step.key] = len(uploads)
            uploads.append(Upload(step, circuit.n_qubits, circuit.n_inputs, like))
        return known[step.key]

    prefix, steps = (tuple(upload(step) for step in group) for group in (program.prefix, program.steps))
    register = tuple(range(circuit.n_qubits))
    qubits = tuple((register,) if step.kind == "dense" else step.blocks for step in program.steps)
    ground = torch.complex(like.new_tensor([[[1.0], [0.0]]] * circuit.n_qubits), like.new_zeros(circuit.n_qubits, 2, 1))
    return Kit(program, Builder(program, circuit.n_inputs, like), tuple(uploads), prefix, steps, qubits, ground)


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


def start(k: Kit, inputs: Tensor, prefix: Sequence[Tensor]) -> Tensors:
    """The state after the prefix, `(D, B or 1)`, then the factors `(D, B)` of each upload of the steps, in order of first use."""
    return [end[0] if len(end) == 1 else product_state.state(end) for end in ends(k, inputs, prefix)]


def ends(k: Kit, inputs: Tensor, prefix: Sequence[Tensor]) -> list[End]:
    """What `start` returns, by halves where it is a product: `2^(n / 2 + 1)` numbers a sample instead of `2^n`."""
    qubits = [upload.of_qubits(inputs) if upload.has_single else None for upload in k.uploads]
    state, own = k.ground, iter(prefix)
    for which in k.prefix_upload:
        if which is None:
            gates = next(own)
            state = gates @ state if state is not k.ground else gates[:, :, :1]
        else:
            factor = qubits[which]
            assert factor is not None  # data steps of the prefix act on single qubits
            state = state * factor
    return [product_state.halves(state), *(k.uploads[which].of_register(qubits[which], inputs) for which in k.used)]


def grouped(k: Kit, flat: Sequence[Tensor]) -> list[End]:
    """The tensors of what `ends` returned, as `ends` returned them."""
    rest = iter(flat)
    whole = (False, *(k.uploads[which].has_pair for which in k.used))
    return [(next(rest),) if one else (next(rest), next(rest)) for one in whole]


def _views(matrix: Tensor, psi: Tensor, qubits: Sequence[int], n: int) -> Tensor:
    """The state as `(pre, K, post)` around a block; real numbers for a real matrix. Any leading axes of `psi` count as `pre`."""
    x = psi if matrix.is_complex() else torch.view_as_real(psi)
    after = 2 ** (n - 1 - qubits[-1]) * (x.numel() // (psi.numel() // psi.shape[-1]))
    return x.reshape(-1, matrix.shape[0], after)


def apply_block(matrix: Tensor, psi: Tensor, qubits: Sequence[int], n: int) -> Tensor:
    """A `(K, K)` matrix on neighbouring qubits of states `(..., D, B)`."""
    if qubits[-1] == n - 1 and psi.shape[-1] == 1:  # amplitudes of the block are the last axis: one product from the right
        return (psi.reshape(-1, matrix.shape[0]) @ matrix.mT.to(psi.dtype)).view(psi.shape)
    x = _views(matrix, psi, qubits, n)
    out = matrix @ x[0] if x.shape[0] == 1 else torch.bmm(matrix.expand(x.shape[0], -1, -1), x)
    return (out if matrix.is_complex() else torch.view_as_complex(out.view(*psi.shape, 2))).view(psi.shape)


def forward(k: Kit, started: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Final states `(D, B)` from what `start` returned; plain torch, differentiable by autograd."""
    psi, n = started[0], k.program.n_qubits
    factors = _by_upload(k, started[1:])
    for step, positions, perm, which, qubits in zip(
        k.program.steps, k.builder.steps, k.builder.perms, k.step_upload, k.blocks, strict=True
    ):
        if perm is not None:
            psi = psi.index_select(0, perm[0])
        elif which is not None:
            psi = psi * factors[which]
        elif step.kind == "phase":
            psi = psi * tensors[positions[0]]
        else:
            for position, block in zip(positions, qubits, strict=True):
                psi = apply_block(tensors[position], psi, block, n)
    return psi


def _by_upload(k: Kit, factors: Sequence[Tensor]) -> dict[int, Tensor]:
    return dict(zip(k.used, factors, strict=True))


def load(k: Kit, own: Sequence[End], count: int, room: Register | None) -> Register:
    """A register whose first state and whose uploads' factors are made from what `ends` returned.

    `room` is used again where it fits; `run` needs a count of 1, `backward` of 2.
    """
    n, batch = k.program.n_qubits, max(part.shape[-1] for end in own for part in end)
    room = room.fit(batch) if room is not None else None
    if room is None:
        room = Register(n, own[0][0].new_empty(count, 2**n, batch))
    if not room.factors:
        room.factors = [end[0].new_empty(2**n, end[0].shape[-1]) for end in own[1:]]
    for end, out in zip(own, (room.reset()[0], *room.factors), strict=True):
        if len(end) == 1:
            out.copy_(end[0])
        else:
            product_state.write(end, out)
    return room


def run(k: Kit, tensors: Sequence[Tensor], register: Register) -> None:
    """`forward` in place, on the first state of a register that `load` filled."""
    register.repeat("run", lambda: _run(k, tensors, register))


def _run(k: Kit, tensors: Sequence[Tensor], register: Register) -> None:
    factors = _by_upload(k, register.factors)
    for step, positions, perm, which, qubits in zip(
        k.program.steps, k.builder.steps, k.builder.perms, k.step_upload, k.blocks, strict=True
    ):
        if perm is not None:
            register.shuffle(perm[0], 1)
        elif which is not None:
            register.multiply(factors[which], 1)
        elif step.kind == "phase":
            register.multiply(tensors[positions[0]], 1)
        else:
            for position, block in zip(positions, qubits, strict=True):
                register.turn(tensors[position], block, 1)


def backward(plan: Plan, k: Kit, tensors: Sequence[Tensor], grad: Tensor, sums: Sums, register: Register) -> Tensors:
    """From the gradient of the values `(n_observables, B)`: run the steps on what `load` made, then `undo` them."""
    run(k, tensors, register)
    both = register.states
    costate(plan, both[0], grad if register.batch == grad.shape[1] else grad.sum(1, keepdim=True), both[1], register.spare[0])
    return undo(k, tensors, register, sums)


def undo(k: Kit, tensors: Sequence[Tensor], register: Register, sums: Sums) -> Tensors:
    """Undo the steps on final states and their costates side by side, in a register of two.

    Adds what `gradients` takes to `sums`. Returns the gradients of the first state and of the factors `(D, B)`, in the register's
    memory.
    """
    if not register.collected:
        register.collected = [torch.empty_like(register.states[1]) for _ in register.factors]
    register.repeat("undo", lambda: _undo(k, tensors, register, sums))
    return [register.states[1], *register.collected]


def _undo(k: Kit, tensors: Sequence[Tensor], register: Register, sums: Sums) -> None:
    factors, collected = _by_upload(k, register.factors), _by_upload(k, register.collected)
    for factor in factors.values():  # in place, until the end
        register.call(torch.conj_physical_, factor)
    met: set[int] = set()
    both: Tensor | None = None  # lam conj(psi), which diagonal steps leave as it is
    for position in range(len(k.program.steps) - 1, -1, -1):
        step, places, perm, which = (
            k.program.steps[position],
            k.builder.steps[position],
            k.builder.perms[position],
            k.step_upload[position],
        )
        if perm is not None:
            register.shuffle(perm[1], 2)
            both = None
        elif which is not None or step.kind == "phase":
            if both is None and (which is not None or k.builder.trainable[places[0]]):
                both = register.product()
            if which is not None:
                assert both is not None
                register.call(collected[which].add_ if which in met else collected[which].copy_, both)
                met.add(which)
                register.multiply(factors[which], 2)
            else:
                if k.builder.trainable[places[0]]:
                    assert both is not None
                    register.add_up(sums, places[0], both)
                register.multiply(register.adjoint(tensors[places[0]]), 2)
        else:
            both = None
            for place, qubits in zip(reversed(places), reversed(k.blocks[position]), strict=True):
                matrix = tensors[place]
                register.turn(matrix, qubits, 2, adjoint=True)
                if k.builder.trainable[place]:
                    register.correlate(sums, place, not matrix.is_complex(), qubits)
    for which, factor in factors.items():
        register.call(torch.conj_physical_, factor)
        register.call(collected[which].mul_, factor)


def gather(found: Sequence[Tensor], own: Sequence[End], out: Sequence[End], register: Register) -> None:
    """Add to `out` the gradients of what `ends` returned from what `undo` found; the register's states are lost."""
    for grad, end, totals in zip(found, own, out, strict=True):
        parts = (grad,) if len(end) == 1 else product_state.gather(grad, end, register.spare[0])
        for part, total in zip(parts, totals, strict=True):
            total += part


def gradients(sums: Sums, tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradient of each tensor from the sums of `undo`, None for those without one."""
    grads: list[Tensor | None] = [None] * len(tensors)
    for (place, *_), total in sums.items():
        if total.dim() == 1:  # of lam conj(psi), beside phases
            total = total[:, None] * tensors[place]
        else:
            total = total.sum(0) if total.dim() == 3 else total
            total = total if tensors[place].is_complex() or not total.is_complex() else total.real
        known = grads[place]
        grads[place] = total if known is None else known + total
    return grads


def read(plan: Plan, psi: Tensor, room: Tensor | None = None) -> Tensor:
    """Expectation values `(n_observables, B)` of states `(D, B)`; may write to `room`, as large as a state."""
    total: Tensor | None = None
    for flip, real, imag in readout_tensors(plan, psi.device, psi.real.dtype):
        if flip is None and imag is None:
            parts = torch.view_as_real(psi)
            squares = torch.mul(parts, parts, out=None if room is None else torch.view_as_real(room)).view(psi.shape[0], -1)
            value = (real @ squares).view(real.shape[0], -1, 2).sum(-1)
        else:
            pairs = psi.conj() * (psi if flip is None else psi.index_select(0, flip))
            value = real @ pairs.real
            if imag is not None:
                value = value - imag @ pairs.imag
        total = value if total is None else total + value
    assert total is not None  # a plan has at least one readout
    return total


def costate(plan: Plan, psi: Tensor, grad: Tensor, out: Tensor, room: Tensor) -> None:
    """Write `2 sum_k grad_k O_k psi`, the gradient in the state, to `out`, from `grad (n_observables, B)`; writes to `room` too."""
    space = torch.view_as_real(room).view(-1)[: psi.numel()].view(psi.shape)
    readouts = readout_tensors(plan, psi.device, grad.dtype)
    if len(readouts) > 1:
        out.zero_()
    doubled = 2.0 * grad
    for flip, real, imag in readouts:
        weights = torch.mm(real.mT, doubled, out=space)
        if imag is not None:
            weights = torch.complex(weights, imag.mT @ doubled)
        other = psi if flip is None else psi.index_select(0, flip)
        if len(readouts) > 1:
            out.add_(weights * other)
        else:
            torch.mul(weights, other, out=out)
