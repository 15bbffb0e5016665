"""State vectors of a circuit without inputs, differentiable in its angles: what generators of weights read instead of `<Z>`.

One operator, `qpeft::columns(angles, key, k)`, with fake and autograd rules, so that torch.compile sees one node. Like the
operator in simulate.py it saves the angles alone and undoes the circuit step by step in its backward: on CPUs in the compiled
kernel where the circuit is real (kernel/columns.py), else in torch (evolve.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qpeft.circuits.ir import Circuit
from qpeft.circuits.simulator.c_engine import columns as kernel
from qpeft.circuits.simulator.simulate import check_memory
from qpeft.circuits.simulator.torch_engine import blocks, evolve
from qpeft.circuits.simulator.torch_engine.buffers import Register, Sums
from qpeft.circuits.simulator.torch_engine.compiler import Plan, compile_circuit, plan_from_key
from qpeft.errors import CircuitError


def amplitudes(circuit: Circuit, angles: Tensor) -> tuple[Tensor, Tensor]:
    """The final state from `|0...0>`: real and imaginary parts, `(2^n,)` each; otherwise as `columns`."""
    re, im = columns(circuit, angles, 1)
    return re[:, 0], im[:, 0]


def columns(circuit: Circuit, angles: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k columns of the circuit's unitary, the images of basis states `0..k-1`: real and imaginary parts.

    Args:
        circuit: without inputs.
        angles: `(n_angles,)`, radians.
        k: 1 to `2^n`.

    Returns:
        Two tensors `(2^n, k)`, row index with qubit 0 as its most significant bit; float64 for float64 angles, else float32,
        also under autocast. Differentiable once in `angles`.

    Raises:
        CircuitError: a circuit with inputs, angles of the wrong shape, or a `k` out of bounds.
        ResourceError: one column does not fit into memory.
    """
    return run(compile_circuit(circuit), angles, k)


def run(plan: Plan, angles: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`columns` of a compiled circuit: what a module calls that torch.compile is to trace."""
    circuit = plan.circuit
    if circuit.n_inputs:
        raise CircuitError("a circuit with inputs has a state for each input", value=f"n_inputs={circuit.n_inputs}", bound="0")
    if tuple(angles.shape) != (circuit.n_angles,):
        raise CircuitError("angles have the wrong shape", value=tuple(angles.shape), bound=f"({circuit.n_angles},)")
    if not 1 <= k <= 2**circuit.n_qubits:
        raise CircuitError("no such number of columns", value=k, bound=f"1..{2**circuit.n_qubits}")
    angles = angles if angles.dtype == torch.float64 else angles.float()
    re, im = _columns(angles, plan.key, k)
    return re, im


def _start(plan: Plan, angles: Tensor, k: int) -> tuple[evolve.Kit, Tensor]:
    """The circuit's steps, and the first k basis states `(2^n, k)`, complex."""
    kit = evolve.kit(plan, True, angles.device, angles.dtype)
    psi = torch.zeros(2**plan.circuit.n_qubits, k, dtype=angles.dtype.to_complex(), device=angles.device)
    return kit, psi.fill_diagonal_(1.0)


@torch.library.custom_op("qpeft::columns", mutates_args=())
def _columns(angles: Tensor, key: str, k: int) -> Tensor:
    plan = plan_from_key(key)
    if kernel.supports(plan, angles):
        return kernel.forward(angles, key, k)
    check_memory(plan, angles)
    with torch.autocast(angles.device.type, enabled=False):
        kit, psi = _start(plan, angles, k)
        psi = evolve.forward(kit, [psi], kit.builder(angles))
        return torch.stack([psi.real, psi.imag])


@torch.library.custom_op("qpeft::columns_backward", mutates_args=())
def _columns_backward(grad: Tensor, angles: Tensor, key: str, k: int) -> Tensor:
    plan = plan_from_key(key)
    if kernel.supports(plan, angles):
        return kernel.backward(grad[0], angles, key)
    if not plan.whole.steps:  # the identity
        return torch.zeros_like(angles)
    with torch.autocast(angles.device.type, enabled=False):
        kit, psi = _start(plan, angles, k)
        tensors, pull = blocks.pullback(kit.builder, angles, recording=False)
        sums: Sums = {}
        lam = torch.complex(*grad.to(angles.dtype))
        both = torch.stack([evolve.forward(kit, [psi], tensors), lam])
        evolve.undo(kit, tensors, Register(plan.circuit.n_qubits, both), sums)
        return pull(evolve.gradients(sums, tensors))[0]


@_columns.register_fake
def _(angles: Tensor, key: str, k: int) -> Tensor:
    return angles.new_empty(2, 2 ** plan_from_key(key).circuit.n_qubits, k)


@_columns_backward.register_fake
def _(grad: Tensor, angles: Tensor, key: str, k: int) -> Tensor:
    return torch.empty_like(angles)


def _setup_context(ctx: Any, inputs: tuple[Tensor, str, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.key, ctx.k = inputs[1:]


def _autograd_rule(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (angles,) = ctx.saved_tensors
    return _columns_backward(grad, angles, ctx.key, ctx.k), None, None


_columns.register_autograd(_autograd_rule, setup_context=_setup_context)
