"""The batched, differentiable state-vector simulator in PyTorch: the reference Executor.

One operator, `qpeft::expectations(inputs, angles, key)`, registered through torch.library with fake, autograd and vmap rules, so
that torch.compile and torch.vmap treat it as one node. It saves inputs and angles alone; its backward runs the circuit again
and undoes it step by step (see evolve.py), so memory does not grow with depth. Samples pass in chunks that stay in cache, and
what does not depend on data is built once per call for all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import psutil
import torch
from torch import Tensor

from qpeft.circuits import blocks, evolve
from qpeft.circuits.executor import Expectations
from qpeft.circuits.ir import Circuit, Observable
from qpeft.circuits.plan import Plan, compile_circuit, plan_from_key
from qpeft.errors import CircuitError, ResourceError

Gradient = Literal["adjoint", "autograd"]

# Bytes of one chunk's state: half a core's level-2 cache here, enough to fill an accelerator there.
CPU_CHUNK_BYTES, ACCELERATOR_CHUNK_BYTES = 1 << 19, 1 << 26
LIVE_STATES = 12  # state-sized buffers alive at the peak of a backward pass, counted generously


class Simulator:
    """The Executor on the exact state vector, on whatever device the tensors are.

    `gradient="adjoint"` (default) is first-order and needs no memory for depth; `"autograd"` records every step, for
    derivatives of any order and under torch.func.grad (which does not see an operator's own rule).
    """

    def __init__(self, gradient: Gradient = "adjoint") -> None:
        if gradient not in ("adjoint", "autograd"):
            raise CircuitError("unknown gradient method", value=gradient, bound="adjoint, autograd")
        self.gradient: Gradient = gradient

    def compile(self, circuit: Circuit, observables: Sequence[Observable] | None = None) -> Expectations:
        """A function of inputs and angles; see `expectations` for what it takes, returns and raises."""
        plan = compile_circuit(circuit, None if observables is None else tuple(observables))
        return functools.partial(run, plan, gradient=self.gradient)


def expectations(
    circuit: Circuit,
    inputs: Tensor,
    angles: Tensor,
    observables: Sequence[Observable] | None = None,
    *,
    gradient: Gradient = "adjoint",
) -> Tensor:
    """Expectation values of observables (default `<Z_k>` for each qubit k) after the circuit.

    Args:
        inputs: `(..., n_inputs)`, radians, one row per sample.
        angles: `(n_angles,)`, radians, shared by all samples.

    Returns:
        `(..., n_observables)`, float64 if an argument is, else float32: lower precisions are computed in float32, also under
        autocast, since a product of many rotations does not survive bfloat16.

    Raises:
        CircuitError: wrong shapes, or an observable on a qubit that is not there.
        ResourceError: one sample's state does not fit into memory; nothing was allocated.
    """
    return Simulator(gradient).compile(circuit, observables)(inputs, angles)


def run(plan: Plan, inputs: Tensor, angles: Tensor, *, gradient: Gradient = "adjoint") -> Tensor:
    """`expectations` of a compiled circuit."""
    circuit = plan.circuit
    if inputs.dim() < 1 or inputs.shape[-1] != circuit.n_inputs:
        raise CircuitError("inputs have the wrong shape", value=tuple(inputs.shape), bound=f"(..., {circuit.n_inputs})")
    if tuple(angles.shape) != (circuit.n_angles,):
        raise CircuitError("angles have the wrong shape", value=tuple(angles.shape), bound=f"({circuit.n_angles},)")
    dtype = torch.float64 if torch.float64 in (inputs.dtype, angles.dtype) else torch.float32
    flat = inputs.reshape(inputs.shape[:-1].numel(), circuit.n_inputs).to(dtype)
    angles = angles.to(inputs.device, dtype)
    out = _expectations(flat, angles, plan.key) if gradient == "adjoint" else _recorded(plan, flat, angles)
    return out.reshape(*inputs.shape[:-1], len(plan.observables))


def check_memory(plan: Plan, like: Tensor) -> None:
    """Refuse a circuit of which not even one sample's working set fits; the error holds both figures."""
    n = plan.circuit.n_qubits
    if n <= 16:  # 64 MiB at most: not worth asking the system on every call
        return
    per_amplitude = LIVE_STATES * 2 * like.element_size() + 16 * sum(e.kind == "perm" for e in plan.elements)
    per_amplitude += sum((like.element_size() * (2 + len(e.factors[0].ops))) for e in plan.elements if e.kind == "phase")
    required = 2**n * (per_amplitude + 2 * like.element_size() * len(plan.observables))
    available = torch.cuda.mem_get_info(like.device)[0] if like.is_cuda else psutil.virtual_memory().available
    if required > available:
        raise ResourceError(
            f"one sample of a {n}-qubit circuit", required_bytes=required, available_bytes=available, cure="use fewer qubits"
        )


def _chunks(plan: Plan, inputs: Tensor) -> list[slice]:
    budget = CPU_CHUNK_BYTES if inputs.device.type == "cpu" else ACCELERATOR_CHUNK_BYTES
    size = max(1, budget // (2 * 2**plan.circuit.n_qubits * inputs.element_size()))
    return [slice(start, start + size) for start in range(0, inputs.shape[0], size)]


def _recorded(plan: Plan, inputs: Tensor, angles: Tensor) -> Tensor:
    check_memory(plan, inputs)
    with torch.autocast(inputs.device.type, enabled=False):
        return evolve.read(plan, evolve.forward(plan, inputs.T, blocks.build(plan, angles))).T


@torch.library.custom_op("qpeft::expectations", mutates_args=())
def _expectations(inputs: Tensor, angles: Tensor, key: str) -> Tensor:
    plan = plan_from_key(key)
    check_memory(plan, inputs)
    out = inputs.new_empty(len(plan.observables), inputs.shape[0])
    with torch.autocast(inputs.device.type, enabled=False):
        tensors = blocks.build(plan, angles)
        columns = inputs.T.contiguous()
        for part in _chunks(plan, inputs):
            out[:, part] = evolve.read(plan, evolve.forward(plan, columns[:, part], tensors))
    return out.T.contiguous()


@torch.library.custom_op("qpeft::expectations_backward", mutates_args=())
def _expectations_backward(grad: Tensor, inputs: Tensor, angles: Tensor, key: str) -> list[Tensor]:
    plan = plan_from_key(key)
    grad_inputs = torch.empty_like(inputs)
    gathered = evolve.Correlations([None] * len(plan.elements))
    with torch.autocast(inputs.device.type, enabled=False):
        tensors = blocks.build(plan, angles)
        columns, grad_columns = inputs.T.contiguous(), grad.to(inputs.dtype).T.contiguous()
        for part in _chunks(plan, inputs):
            grad_inputs[part] = evolve.backward(plan, columns[:, part], grad_columns[:, part], tensors, gathered).T
        return [grad_inputs, evolve.angle_gradient(plan, angles, gathered)]


@_expectations.register_fake
def _(inputs: Tensor, angles: Tensor, key: str) -> Tensor:
    return inputs.new_empty(inputs.shape[0], len(plan_from_key(key).observables))


@_expectations_backward.register_fake
def _(grad: Tensor, inputs: Tensor, angles: Tensor, key: str) -> list[Tensor]:
    return [torch.empty_like(inputs), torch.empty_like(angles)]


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.key = inputs[2]


def _autograd_rule(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    inputs, angles = ctx.saved_tensors
    grad_inputs, grad_angles = _expectations_backward(grad, inputs, angles, ctx.key)
    return grad_inputs, grad_angles, None


def _vmap_rule(info: Any, in_dims: tuple[int | None, ...], inputs: Tensor, angles: Tensor, key: str) -> tuple[Tensor, int]:
    if in_dims[1] is None:  # more samples of one circuit
        rows = inputs.movedim(in_dims[0] or 0, 0)
        return _expectations(rows.flatten(0, 1), angles, key).unflatten(0, rows.shape[:2]), 0
    each = [inputs if in_dims[0] is None else inputs.select(in_dims[0], i) for i in range(info.batch_size)]
    return torch.stack([_expectations(x, angles.select(in_dims[1], i), key) for i, x in enumerate(each)]), 0


_expectations.register_autograd(_autograd_rule, setup_context=_setup_context)
_expectations.register_vmap(_vmap_rule)
