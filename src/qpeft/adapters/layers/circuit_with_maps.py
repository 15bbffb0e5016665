"""A circuit's values and its inputs, each through a linear map, and added: one node of autograd where torch would take seven."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from qpeft.circuits.executor import as_rows
from qpeft.circuits.simulator import engine, transforms
from qpeft.circuits.simulator.simulate import run
from qpeft.circuits.simulator.torch_engine.compiler import SimulatedCircuit


def takes(u: Tensor, *others: Tensor) -> bool:
    """Whether these are plain tensors of one working dtype, outside of autocast."""
    dtype, device = u.dtype, u.device
    if dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(device.type) or not transforms.plain(u, *others):
        return False
    return all(tensor.dtype is dtype and tensor.device == device for tensor in others)


def circuit_with_maps(compiled: SimulatedCircuit, u: Tensor, angles: Tensor, quantum: Tensor, classical: Tensor) -> Tensor:
    """`Q z + C u`, z the expectation values of the circuit at inputs u; for tensors that `takes` takes.

    Args:
        compiled: the circuit and its observables.
        u: `(..., r)`, radians.
        angles: `(n_angles,)`, radians.
        quantum: `Q (p, n_observables)`.
        classical: `C (p, r)`.

    Returns:
        `(..., p)`.
    """
    found: Tensor = _apply(u, angles, quantum, classical, compiled)
    return found


def _by_parts(compiled: SimulatedCircuit, u: Tensor, angles: Tensor, quantum: Tensor, classical: Tensor) -> Tensor:
    return linear(run(compiled, u, angles), quantum) + linear(u, classical)


class _CircuitWithMaps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, angles: Tensor, quantum: Tensor, classical: Tensor, compiled: SimulatedCircuit) -> Tensor:
        rows = as_rows(u)
        z = engine.for_expectations(compiled, rows).values(rows, angles, compiled)
        ctx.save_for_backward(u, angles, quantum, classical, z)
        ctx.compiled = compiled
        return torch.mm(rows, classical.t()).addmm_(z, quantum.t()).view(*u.shape[:-1], classical.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, angles, quantum, classical, z = ctx.saved_tensors
        compiled: SimulatedCircuit = ctx.compiled
        if transforms.records_gradient(grad):
            return *_recorded(grad, (u, angles, quantum, classical), compiled, ctx.needs_input_grad), None
        grad, rows = as_rows(grad), as_rows(u)
        simulator = engine.for_expectations(compiled, rows)
        of_u, of_angles = simulator.gradients(grad @ quantum, rows, angles, compiled, recording=True)
        of_u.addmm_(grad, classical)
        transposed = grad.t()
        return of_u.view(u.shape), of_angles, transposed @ z, transposed @ rows, None


# What `apply` of Function calls once it has seen that no transform of torch.func is active, which `takes` has seen already.
_apply: Callable[..., Tensor] = super(torch.autograd.Function, _CircuitWithMaps).apply


def _recorded(
    grad: Tensor, tensors: tuple[Tensor, ...], compiled: SimulatedCircuit, needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients that transforms follow and that can be differentiated again; None where none is needed."""
    with torch.enable_grad():
        out = _by_parts(compiled, *tensors)
    chosen = [tensor for tensor, need in zip(tensors, needed, strict=False) if need]
    found = iter(torch.autograd.grad(out, chosen, grad, create_graph=torch.is_grad_enabled(), materialize_grads=True))
    return [next(found) if need else None for need, _ in zip(needed, tensors, strict=False)]
