"""A circuit with linear maps around it as one node of autograd, where torch would take ten.

Every map is multiplied the way round that skinny matrices are fast: `g @ B` of `(512, 576) (576, 8)` takes four times as long as
the same product from `B` transposed.
"""

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


def takes(x: Tensor, *others: Tensor) -> bool:
    """Whether these are plain tensors of one working dtype, outside of autocast."""
    dtype, device = x.dtype, x.device
    if dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(device.type) or not transforms.plain(x, *others):
        return False
    return all(tensor.dtype is dtype and tensor.device == device for tensor in others)


def circuit_with_maps(
    compiled: SimulatedCircuit,
    x: Tensor,
    down: Tensor,
    angles: Tensor,
    quantum: Tensor,
    classical: Tensor,
    up: Tensor,
    y: Tensor | None = None,
) -> Tensor:
    """`y + (Q z + C u) up`, z the expectation values of the circuit at inputs `u = x down^T`; for tensors that `takes` takes.

    Args:
        compiled: the circuit and its observables.
        x: `(..., d_in)`.
        down: `(r, d_in)`.
        angles: `(n_angles,)`, radians.
        quantum: `Q (p, n_observables)`.
        classical: `C (p, r)`.
        up: `(p, d_out)`.
        y: `(..., d_out)`, None for zero.

    Returns:
        `(..., d_out)`.
    """
    found: Tensor = _apply(x, down, angles, quantum, classical, up, y, compiled)
    return found


def _by_parts(
    compiled: SimulatedCircuit, x: Tensor, down: Tensor, angles: Tensor, quantum: Tensor, classical: Tensor, up: Tensor
) -> Tensor:
    u = linear(x, down)
    return (linear(run(compiled, u, angles), quantum) + linear(u, classical)) @ up


class _CircuitWithMaps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        down: Tensor,
        angles: Tensor,
        quantum: Tensor,
        classical: Tensor,
        up: Tensor,
        y: Tensor | None,
        compiled: SimulatedCircuit,
    ) -> Tensor:
        u = linear(as_rows(x), down)
        z = engine.for_expectations(compiled, u).values(u, angles, compiled)
        v = torch.mm(u, classical.t()).addmm_(z, quantum.t())
        ctx.save_for_backward(x, down, angles, quantum, classical, up, u, z, v)
        ctx.compiled = compiled
        out = torch.mm(v, up) if y is None else torch.addmm(as_rows(y), v, up)
        return out.view(*x.shape[:-1], up.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, down, angles, quantum, classical, up, u, z, v = ctx.saved_tensors
        compiled: SimulatedCircuit = ctx.compiled
        to_y = grad if ctx.needs_input_grad[6] else None
        if transforms.records_gradient(grad):
            tensors = (x, down, angles, quantum, classical, up)
            return *_recorded(grad, tensors, compiled, ctx.needs_input_grad), to_y, None
        grad = as_rows(grad)
        of_v = linear(grad, up)
        of_u, of_angles = engine.for_expectations(compiled, u).gradients(of_v @ quantum, u, angles, compiled, recording=True)
        of_u.addmm_(of_v, classical)
        transposed = of_v.t()
        of_x = torch.mm(of_u, down).view(x.shape) if ctx.needs_input_grad[0] else None
        of_down = torch.mm(of_u.t(), as_rows(x))
        return of_x, of_down, of_angles, transposed @ z, transposed @ u, torch.mm(v.t(), grad), to_y, None


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
