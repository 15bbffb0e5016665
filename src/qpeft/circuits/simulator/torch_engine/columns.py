"""Columns of a circuit's unitary, and their gradients, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from qpeft.circuits.simulator.torch_engine import blocks, evolve
from qpeft.circuits.simulator.torch_engine.buffers import StateBuffers, Sums
from qpeft.circuits.simulator.torch_engine.compiler import SimulatedCircuit
from qpeft.circuits.simulator.torch_engine.expectations import check_memory, without_autocast


def values(angles: Tensor, compiled: SimulatedCircuit, k: int) -> Tensor:
    """See `engine.Columns.values`.

    Plain torch calls, which every transform of autograd and torch.func follows.

    Raises:
        ResourceError: one column does not fit into memory; nothing was allocated.
    """
    check_memory(compiled, angles)
    with without_autocast(angles):
        prepared, psi = _start(compiled, angles, k)
        psi = evolve.forward(prepared, [psi], prepared.builder(angles))
        return torch.stack([psi.real, psi.imag])


def gradients(grad: Tensor, angles: Tensor, compiled: SimulatedCircuit) -> Tensor:
    """See `engine.Columns.gradients`."""
    if not compiled.unitary.steps:  # the identity
        return torch.zeros_like(angles)
    with without_autocast(angles):
        prepared, psi = _start(compiled, angles, grad.shape[2])
        tensors, pull = blocks.pullback(prepared.builder, angles, recording=False)
        sums: Sums = {}
        costate = torch.complex(*grad.to(angles.dtype))
        both = torch.stack([evolve.forward(prepared, [psi], tensors), costate])
        evolve.undo(prepared, tensors, StateBuffers(compiled.circuit.n_qubits, both), sums)
        return pull(evolve.gradients(sums, tensors))[0]


def _start(compiled: SimulatedCircuit, angles: Tensor, k: int) -> tuple[evolve.PreparedEvolution, Tensor]:
    """The circuit's steps, and the first k basis states `(2^n, k)`, complex."""
    prepared = evolve.prepare(compiled, True, angles.device, angles.dtype)
    psi = torch.zeros(2**compiled.circuit.n_qubits, k, dtype=angles.dtype.to_complex(), device=angles.device)
    return prepared, psi.fill_diagonal_(1.0)
