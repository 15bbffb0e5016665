"""State vectors and unitary columns of a circuit without inputs, differentiable in its angles.

`qpeft::columns(angles, key, k)` is one registered operator, with rules for fake tensors and autograd, so that torch.compile sees
one node. It saves the angles alone: its backward makes the columns again and undoes the circuit step by step. Where torch.func,
vmap or forward mode transforms the call, or a gradient is differentiated again, the torch engine records every step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qpeft.circuits.executor import check_tensor
from qpeft.circuits.ir import Circuit
from qpeft.circuits.simulator import engine, transforms
from qpeft.circuits.simulator.torch_engine import columns as torch_columns
from qpeft.circuits.simulator.torch_engine.compiler import SimulatedCircuit, compile_circuit, compiled_from_key
from qpeft.errors import CircuitError


def amplitudes(circuit: Circuit, angles: Tensor) -> tuple[Tensor, Tensor]:
    """The final state from `|0...0>`: real and imaginary parts, `(2^n,)` each; otherwise as `columns`.

    Args:
        circuit: without inputs.
        angles: `(n_angles,)`, radians.
    """
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
        also under autocast. Differentiable in `angles`, to any order.

    Raises:
        CircuitError: a circuit with inputs, angles that are not a plain real tensor of that shape, or a `k` out of bounds.
        ResourceError: one column does not fit into memory.
    """
    return run(compile_circuit(circuit), angles, k)


def run(compiled: SimulatedCircuit, angles: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`columns` of a compiled circuit: what a module calls that torch.compile is to trace.

    Args:
        compiled: a circuit without inputs.
        angles: `(n_angles,)`, radians.
        k: number of columns, 1 to `2^n`.

    Returns:
        Real and imaginary parts, `(2^n, k)` each; dtype and errors as for `columns`.
    """
    circuit = compiled.circuit
    if circuit.n_inputs:
        raise CircuitError("a circuit with inputs has a state for each input", value=f"n_inputs={circuit.n_inputs}", bound="0")
    check_tensor("angles", angles)
    if tuple(angles.shape) != (circuit.n_angles,):
        raise CircuitError("angles have the wrong shape", value=tuple(angles.shape), bound=f"({circuit.n_angles},)")
    if not 1 <= k <= 2**circuit.n_qubits:
        raise CircuitError("no such number of columns", value=k, bound=f"1..{2**circuit.n_qubits}")
    angles = transforms.unwrapped("angles", angles)
    angles = angles if angles.dtype == torch.float64 else angles.float()
    re, im = torch_columns.values(angles, compiled, k) if transforms.active() else _columns(angles, compiled.key, k)
    return re, im


@torch.library.custom_op("qpeft::columns", mutates_args=())
def _columns(angles: Tensor, key: str, k: int) -> Tensor:
    compiled = compiled_from_key(key)
    return engine.for_columns(compiled, angles).values(angles, compiled, k)


@torch.library.custom_op("qpeft::columns_backward", mutates_args=())
def _columns_backward(grad: Tensor, angles: Tensor, key: str, k: int) -> Tensor:
    compiled = compiled_from_key(key)
    return engine.for_columns(compiled, angles).gradients(grad, angles, compiled)


@_columns.register_fake
def _(angles: Tensor, key: str, k: int) -> Tensor:
    return angles.new_empty(2, 2 ** compiled_from_key(key).circuit.n_qubits, k)


@_columns_backward.register_fake
def _(grad: Tensor, angles: Tensor, key: str, k: int) -> Tensor:
    return torch.empty_like(angles)


def _setup_context(ctx: Any, inputs: tuple[Tensor, str, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.key, ctx.k = inputs[1:]


def _autograd_rule(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (angles,) = ctx.saved_tensors
    if transforms.records_gradient(grad):
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            out = torch_columns.values(angles, compiled_from_key(ctx.key), ctx.k)
        (by_angles,) = torch.autograd.grad(
            out, angles, grad, create_graph=differentiable, allow_unused=True, materialize_grads=True
        )
        return by_angles, None, None
    return _columns_backward(grad, angles, ctx.key, ctx.k), None, None


_columns.register_autograd(_autograd_rule, setup_context=_setup_context)
