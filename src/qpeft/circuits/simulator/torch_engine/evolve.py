"""State evolution in torch: the forward pass, and the adjoint pass that undoes it together with a costate.

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
from qpeft.circuits.simulator.torch_engine.buffers import StateBuffers, Sums
from qpeft.circuits.simulator.torch_engine.compiler import Evolution, SimulatedCircuit, Step, local_value

# A state or an upload's factors: `(D, B or 1)`, or its two halves where it is a product (product_state.py)
Factored: TypeAlias = "tuple[Tensor] | product_state.Halves"


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

    def of_all_qubits(self, qubits: Tensor | None, inputs: Tensor) -> Factored:
        """The factors of all basis states.

        Args:
            qubits: `(n, 2, B)` from `of_qubits`, or None if the step has no gate on a single qubit.
            inputs: `(n_inputs, B)`, radians.

        Returns:
            `(D, B)`, or its two halves if the step has no gate on two qubits.
        """
        pair = None if qubits is None else product_state.halves(qubits)
        if not self.has_pair:
            assert pair is not None  # a data step has gates
            return pair
        exponent = torch.addmm(self.pair_shift, self.pair, inputs)
        turned = torch.complex(exponent.cos(), exponent.sin())
        return (turned if pair is None else product_state.state(pair) * turned,)


@dataclass(frozen=True)
class PreparedEvolution:
    """Everything of a evolution that neither inputs nor angles change, on one device and dtype."""

    evolution: Evolution
    builder: Builder
    uploads: tuple[Upload, ...]
    prefix_upload: tuple[int | None, ...]  # which upload each data step of the prefix, and of the evolution, is
    step_upload: tuple[int | None, ...]
    blocks: tuple[tuple[tuple[int, ...], ...], ...]  # per step, the qubits of each matrix
    ground: Tensor  # (n, 2, 1): every qubit in |0>

    @functools.cached_property
    def used(self) -> tuple[int, ...]:
        """The uploads of the steps, in order of first use."""
        return tuple(dict.fromkeys(which for which in self.step_upload if which is not None))


@functools.lru_cache(maxsize=512)
def prepare(compiled: SimulatedCircuit, whole: bool, device: torch.device, dtype: torch.dtype) -> PreparedEvolution:
    """The tensors for a circuit's evolution; cached.

    Args:
        compiled: the circuit.
        whole: for its whole unitary instead of its evolution from the ground state.
        device: where the tensors are made.
        dtype: real dtype of the tensors.
    """
    evolution, circuit = compiled.unitary if whole else compiled.evolution, compiled.circuit
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

    prefix, steps = (tuple(upload(step) for step in group) for group in (evolution.prefix, evolution.steps))
    all_qubits = tuple(range(circuit.n_qubits))
    qubits = tuple((all_qubits,) if step.kind == "dense" else step.blocks for step in evolution.steps)
    ground = torch.complex(like.new_tensor([[[1.0], [0.0]]] * circuit.n_qubits), like.new_zeros(circuit.n_qubits, 2, 1))
    return PreparedEvolution(evolution, Builder(evolution, circuit.n_inputs, like), tuple(uploads), prefix, steps, qubits, ground)


@functools.lru_cache(maxsize=512)
def readout_tensors(
    compiled: SimulatedCircuit, device: torch.device, dtype: torch.dtype
) -> tuple[tuple[Tensor | None, Tensor, Tensor | None], ...]:
    """Per readout: the flip (None where it flips nothing), real weights, imaginary weights (None where zero).

    Args:
        compiled: the circuit with the readouts of its observables.
        device: where the tensors are made.
        dtype: real dtype of the weights.
    """
    out = []
    for r in compiled.readouts:
        flip = None if (r.flip == np.arange(len(r.flip))).all() else torch.as_tensor(r.flip, device=device)
        imag = torch.as_tensor(r.imag, device=device, dtype=dtype) if r.imag.any() else None
        out.append((flip, torch.as_tensor(r.real, device=device, dtype=dtype), imag))
    return tuple(out)


def start(prepared: PreparedEvolution, inputs: Tensor, prefix: Sequence[Tensor]) -> Tensors:
    """The state after the prefix, `(D, B or 1)`, then the factors `(D, B)` of each upload of the steps, in order of first use.

    Args:
        prepared: the evolution's constants, from `prepare`.
        inputs: `(n_inputs, B)`, radians.
        prefix: the tensors of the prefix's gates, in order.
    """
    return [end[0] if len(end) == 1 else product_state.state(end) for end in factored_start(prepared, inputs, prefix)]


def factored_start(prepared: PreparedEvolution, inputs: Tensor, prefix: Sequence[Tensor]) -> list[Factored]:
    """Start states as in `start`, product states as two halves: `2^(n / 2 + 1)` numbers per sample instead of `2^n`.

    Args:
        prepared: the evolution's constants, from `prepare`.
        inputs: `(n_inputs, B)`, radians.
        prefix: the tensors of the prefix's gates, in order.
    """
    qubits = [upload.of_qubits(inputs) if upload.has_single else None for upload in prepared.uploads]
    state, own = prepared.ground, iter(prefix)
    for which in prepared.prefix_upload:
        if which is None:
            gates = next(own)
            state = gates @ state if state is not prepared.ground else gates[:, :, :1]
        else:
            factor = qubits[which]
            assert factor is not None  # data steps of the prefix act on single qubits
            state = state * factor
    return [product_state.halves(state), *(prepared.uploads[which].of_all_qubits(qubits[which], inputs) for which in prepared.used)]


def grouped(prepared: PreparedEvolution, flat: Sequence[Tensor]) -> list[Factored]:
    """The tensors of what `factored_start` returned, as `factored_start` returned them.

    Args:
        prepared: the evolution's constants, from `prepare`.
        flat: the tensors of `factored_start`'s result in one sequence.
    """
    rest = iter(flat)
    whole = (False, *(prepared.uploads[which].has_pair for which in prepared.used))
    return [(next(rest),) if one else (next(rest), next(rest)) for one in whole]


def _views(matrix: Tensor, psi: Tensor, qubits: Sequence[int], n: int) -> Tensor:
    """The state as `(pre, K, post)` around a block; real numbers for a real matrix. Any leading axes of `psi` count as `pre`."""
    x = psi if matrix.is_complex() else torch.view_as_real(psi)
    after = 2 ** (n - 1 - qubits[-1]) * (x.numel() // (psi.numel() // psi.shape[-1]))
    return x.reshape(-1, matrix.shape[0], after)


def apply_block(matrix: Tensor, psi: Tensor, qubits: Sequence[int], n: int) -> Tensor:
    """Apply a matrix to neighbouring qubits.

    Args:
        matrix: `(K, K)`, real or complex.
        psi: states `(..., D, B)`.
        qubits: neighbouring qubits, ascending.
        n: number of qubits of the states.
    """
    if qubits[-1] == n - 1 and psi.shape[-1] == 1:  # amplitudes of the block are the last axis: one product from the right
        return (psi.reshape(-1, matrix.shape[0]) @ matrix.mT.to(psi.dtype)).view(psi.shape)
    x = _views(matrix, psi, qubits, n)
    out = matrix @ x[0] if x.shape[0] == 1 else torch.bmm(matrix.expand(x.shape[0], -1, -1), x)
    return (out if matrix.is_complex() else torch.view_as_complex(out.view(*psi.shape, 2))).view(psi.shape)


def forward(prepared: PreparedEvolution, started: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Final states `(D, B)` from what `start` returned; plain torch, differentiable by autograd.

    Args:
        prepared: the evolution's constants, from `prepare`.
        started: the first state and the uploads' factors, from `start`.
        tensors: matrices and phases of the steps, from `prepared.builder`.
    """
    psi, n = started[0], prepared.evolution.n_qubits
    factors = _by_upload(prepared, started[1:])
    for step, positions, perm, which, qubits in zip(
        prepared.evolution.steps, prepared.builder.steps, prepared.builder.perms, prepared.step_upload, prepared.blocks, strict=True
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


def _by_upload(prepared: PreparedEvolution, factors: Sequence[Tensor]) -> dict[int, Tensor]:
    return dict(zip(prepared.used, factors, strict=True))


def load(prepared: PreparedEvolution, own: Sequence[Factored], count: int, reuse: StateBuffers | None) -> StateBuffers:
    """Buffers whose first state and uploads' factors are made from what `factored_start` returned.

    Args:
        prepared: the evolution's constants, from `prepare`.
        own: the first state and the uploads' factors, from `factored_start`.
        count: number of states: `run` needs 1, `backward` 2.
        reuse: buffers of an earlier chunk, used again where they fit.
    """
    n, batch = prepared.evolution.n_qubits, max(part.shape[-1] for end in own for part in end)
    buffers = reuse.fit(batch) if reuse is not None else None
    if buffers is None:
        buffers = StateBuffers(n, own[0][0].new_empty(count, 2**n, batch))
    if not buffers.factors:
        buffers.factors = [end[0].new_empty(2**n, end[0].shape[-1]) for end in own[1:]]
    for end, out in zip(own, (buffers.reset()[0], *buffers.factors), strict=True):
        if len(end) == 1:
            out.copy_(end[0])
        else:
            product_state.write(end, out)
    return buffers


def run(prepared: PreparedEvolution, tensors: Sequence[Tensor], buffers: StateBuffers) -> None:
    """`forward` in place, on the first state of buffers that `load` filled.

    Args:
        prepared: the evolution's constants, from `prepare`.
        tensors: matrices and phases of the steps, from `prepared.builder`.
        buffers: from `load`; overwritten.
    """
    buffers.repeat("run", lambda: _run(prepared, tensors, buffers))


def _run(prepared: PreparedEvolution, tensors: Sequence[Tensor], buffers: StateBuffers) -> None:
    factors = _by_upload(prepared, buffers.factors)
    for step, positions, perm, which, qubits in zip(
        prepared.evolution.steps, prepared.builder.steps, prepared.builder.perms, prepared.step_upload, prepared.blocks, strict=True
    ):
        if perm is not None:
            buffers.permute(perm[0], 1)
        elif which is not None:
            buffers.multiply(factors[which], 1)
        elif step.kind == "phase":
            buffers.multiply(tensors[positions[0]], 1)
        else:
            for position, block in zip(positions, qubits, strict=True):
                buffers.apply_block(tensors[position], block, 1)


def backward(
    compiled: SimulatedCircuit,
    prepared: PreparedEvolution,
    tensors: Sequence[Tensor],
    grad: Tensor,
    sums: Sums,
    buffers: StateBuffers,
) -> Tensors:
    """Run the steps on the states that `load` made, then `undo` them.

    Args:
        compiled: the circuit and its observables.
        prepared: the evolution's constants, from `prepare`.
        tensors: matrices and phases of the steps, from `prepared.builder`.
        grad: gradient of the values, `(n_observables, B)`.
        sums: sums that `gradients` takes; added to.
        buffers: from `load` with a count of 2; overwritten.

    Returns:
        Gradients of the first state and of the uploads' factors, as `undo` returns them.
    """
    run(prepared, tensors, buffers)
    both = buffers.states
    costate(compiled, both[0], grad if buffers.batch == grad.shape[1] else grad.sum(1, keepdim=True), both[1], buffers.spare[0])
    return undo(prepared, tensors, buffers, sums)


def undo(prepared: PreparedEvolution, tensors: Sequence[Tensor], buffers: StateBuffers, sums: Sums) -> Tensors:
    """Undo the steps on final states and their costates side by side, in buffers of two.

    Args:
        prepared: the evolution's constants, from `prepare`.
        tensors: matrices and phases of the steps, from `prepared.builder`.
        buffers: final state and costate; overwritten.
        sums: sums that `gradients` takes; added to.

    Returns:
        Gradients of the first state and of the uploads' factors, `(D, B)` each, in the buffers' memory.
    """
    if not buffers.collected:
        buffers.collected = [torch.empty_like(buffers.states[1]) for _ in buffers.factors]
    buffers.repeat("undo", lambda: _undo(prepared, tensors, buffers, sums))
    return [buffers.states[1], *buffers.collected]


def _undo(prepared: PreparedEvolution, tensors: Sequence[Tensor], buffers: StateBuffers, sums: Sums) -> None:
    factors, collected = _by_upload(prepared, buffers.factors), _by_upload(prepared, buffers.collected)
    for factor in factors.values():  # in place, until the end
        buffers.call(torch.conj_physical_, factor)
    met: set[int] = set()
    both: Tensor | None = None  # lam conj(psi), which diagonal steps leave as it is
    for position in range(len(prepared.evolution.steps) - 1, -1, -1):
        step, places, perm, which = (
            prepared.evolution.steps[position],
            prepared.builder.steps[position],
            prepared.builder.perms[position],
            prepared.step_upload[position],
        )
        if perm is not None:
            buffers.permute(perm[1], 2)
            both = None
        elif which is not None or step.kind == "phase":
            if both is None and (which is not None or prepared.builder.trainable[places[0]]):
                both = buffers.product()
            if which is not None:
                assert both is not None
                buffers.call(collected[which].add_ if which in met else collected[which].copy_, both)
                met.add(which)
                buffers.multiply(factors[which], 2)
            else:
                if prepared.builder.trainable[places[0]]:
                    assert both is not None
                    buffers.add_up(sums, places[0], both)
                buffers.multiply(buffers.adjoint(tensors[places[0]]), 2)
        else:
            both = None
            for place, qubits in zip(reversed(places), reversed(prepared.blocks[position]), strict=True):
                matrix = tensors[place]
                buffers.apply_block(matrix, qubits, 2, adjoint=True)
                if prepared.builder.trainable[place]:
                    buffers.correlate(sums, place, not matrix.is_complex(), qubits)
    for which, factor in factors.items():
        buffers.call(torch.conj_physical_, factor)
        buffers.call(collected[which].mul_, factor)


def gather(found: Sequence[Tensor], own: Sequence[Factored], out: Sequence[Factored], buffers: StateBuffers) -> None:
    """Add up the gradients of the tensors of `factored_start`.

    Args:
        found: gradients from `undo`.
        own: what `factored_start` returned.
        out: sums of the gradients, of the shapes of `own`; added to.
        buffers: overwritten.
    """
    for grad, end, totals in zip(found, own, out, strict=True):
        parts = (grad,) if len(end) == 1 else product_state.gather(grad, end, buffers.spare[0])
        for part, total in zip(parts, totals, strict=True):
            total += part


def gradients(sums: Sums, tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradient of each tensor of an evolution.

    Args:
        sums: from `undo`.
        tensors: matrices and phases of the steps, from `prepared.builder`.

    Returns:
        One per tensor; None for those without one.
    """
    grads: list[Tensor | None] = [None] * len(tensors)
    for (place, *_), total in sums.items():
        if total.dim() == 1:  # of lam conj(psi), for phases
            total = total[:, None] * tensors[place]
        else:
            total = total.sum(0) if total.dim() == 3 else total
            total = total if tensors[place].is_complex() or not total.is_complex() else total.real
        known = grads[place]
        grads[place] = total if known is None else known + total
    return grads


def read(compiled: SimulatedCircuit, psi: Tensor, workspace: Tensor | None = None) -> Tensor:
    """Expectation values `(n_observables, B)` of states.

    Args:
        compiled: the circuit with the readouts of its observables.
        psi: complex states, `(D, B)`.
        workspace: memory as large as `psi` that may be overwritten; None allocates it.
    """
    total: Tensor | None = None
    for flip, real, imag in readout_tensors(compiled, psi.device, psi.real.dtype):
        if flip is None and imag is None:
            parts = torch.view_as_real(psi)
            squares = torch.mul(parts, parts, out=None if workspace is None else torch.view_as_real(workspace)).view(
                psi.shape[0], -1
            )
            value = (real @ squares).view(real.shape[0], -1, 2).sum(-1)
        else:
            pairs = psi.conj() * (psi if flip is None else psi.index_select(0, flip))
            value = real @ pairs.real
            if imag is not None:
                value = value - imag @ pairs.imag
        total = value if total is None else total + value
    assert total is not None  # a compiled circuit has at least one readout
    return total


def costate(compiled: SimulatedCircuit, psi: Tensor, grad: Tensor, out: Tensor, workspace: Tensor) -> None:
    """Write `2 sum_k grad_k O_k psi`, the gradient in the state, to `out`.

    Args:
        compiled: the circuit with the readouts of its observables.
        psi: final states `(D, B)`.
        grad: gradient of the values, `(n_observables, B)`.
        out: `(D, B)`, overwritten.
        workspace: memory as large as a state, overwritten.
    """
    space = torch.view_as_real(workspace).view(-1)[: psi.numel()].view(psi.shape)
    readouts = readout_tensors(compiled, psi.device, grad.dtype)
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
