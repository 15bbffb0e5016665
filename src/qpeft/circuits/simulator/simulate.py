"""Expectation values of circuits, batched and differentiable: the reference Executor.

`qpeft::expectations(inputs, angles, key)` is one registered operator, with rules for fake tensors, autograd and vmap, so that
torch.compile sees one node. Plain tensors in eager mode take the same two functions, `_values` and `_gradients`, through a bare
autograd.Function: the registered operator's own overhead is larger than a small circuit. Both save inputs and angles alone. Where
torch.func or forward mode differentiates, or a gradient is differentiated again, the torch engine records every step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from qpeft.circuits.executor import Expectations, as_rows, check_arguments, check_tensor, working_dtype
from qpeft.circuits.ir import Circuit, Observable
from qpeft.circuits.simulator import engine, transforms
from qpeft.circuits.simulator.torch_engine.compiler import SimulatedCircuit, compile_circuit, compiled_from_key
from qpeft.circuits.simulator.torch_engine.expectations import recorded, without_unused
from qpeft.errors import CircuitError

Gradient = Literal["adjoint", "autograd"]

_WORKING = (torch.float32, torch.float64)


class Simulator:
    """Executor on the exact state vector, on the device of the tensors.

    Args:
        gradient: `"adjoint"` (default) needs no memory for depth, and records the circuit only where a transform of torch.func,
            forward mode or a second derivative asks for it; `"autograd"` records every step always.

    Raises:
        CircuitError: an unknown gradient method.
    """

    has_state = True

    def __init__(self, gradient: Gradient = "adjoint") -> None:
        if gradient not in ("adjoint", "autograd"):
            raise CircuitError("unknown gradient method", value=gradient, bound="adjoint, autograd")
        self.gradient: Gradient = gradient

    def compile(self, circuit: Circuit, observables: Sequence[Observable] | None = None) -> Expectations:
        """See `Executor.compile`, and `expectations` for the result's dtype and errors."""
        compiled = compile_circuit(circuit, None if observables is None else tuple(observables))
        return functools.partial(run, compiled, gradient=self.gradient)


def expectations(
    circuit: Circuit,
    inputs: Tensor,
    angles: Tensor,
    observables: Sequence[Observable] | None = None,
    *,
    gradient: Gradient = "adjoint",
) -> Tensor:
    """Expectation values of observables after a circuit.

    Args:
        circuit: with `n_inputs` inputs and `n_angles` angles.
        inputs: `(..., n_inputs)`, radians, one row per sample.
        angles: `(n_angles,)`, radians, shared by all samples; moved to the device of the inputs.
        observables: default `<Z_k>` for each qubit k.
        gradient: see `Simulator`.

    Returns:
        `(..., n_observables)`, float64 if an argument is, else float32: lower precisions are computed in float32, also under
        autocast, since a product of many rotations does not survive bfloat16.

    Raises:
        CircuitError: arguments that are not plain real tensors of these shapes, or an observable on a qubit that is not there.
        ResourceError: one sample's state does not fit into memory; nothing was allocated.
    """
    return Simulator(gradient).compile(circuit, observables)(inputs, angles)


def vjp(
    circuit: Circuit, observables: Sequence[Observable] | None = None
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Values and gradients in one call that autograd does not see: for training loops of one's own and for benchmarks.

    At 4 qubits it takes a quarter to a half of the time of `expectations` and `backward`, which pay for autograd's record.

    Args:
        circuit: with `n_inputs` inputs and `n_angles` angles.
        observables: default `<Z_k>` for each qubit k.

    Returns:
        A function of inputs `(..., n_inputs)`, angles `(n_angles,)`, in radians, and a gradient `(..., n_observables)`. It returns
        the expectation values and the gradients of `(gradient * values).sum()` in inputs and angles, in the shapes of the three,
        in float64 if inputs or angles are, else in float32.
    """
    compiled = compile_circuit(circuit, None if observables is None else tuple(observables))
    return functools.partial(_vjp, compiled)


def _vjp(compiled: SimulatedCircuit, inputs: Tensor, angles: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    check_arguments(compiled.circuit, inputs, angles)
    if grad.shape != (*inputs.shape[:-1], len(compiled.observables)):
        bound = f"(..., {len(compiled.observables)}), as many rows as the inputs"
        raise CircuitError("the gradient has the wrong shape", value=tuple(grad.shape), bound=bound)
    rows, numbers = _flat(inputs.detach(), angles.detach())
    grad = as_rows(grad.detach())
    if grad.dtype is not rows.dtype or not grad.is_cpu:
        grad = grad.to(rows.device, rows.dtype)
    found = engine.for_expectations(compiled, rows).values_and_gradients(grad, rows, numbers, compiled)
    return found if inputs.dim() == 2 else (_shaped(found[0], inputs), found[1].view(inputs.shape), found[2])


def run(compiled: SimulatedCircuit, inputs: Tensor, angles: Tensor, *, gradient: Gradient = "adjoint") -> Tensor:
    """`expectations` of a compiled circuit.

    Args:
        compiled: the circuit and its observables.
        inputs: `(..., n_inputs)`, radians.
        angles: `(n_angles,)`, radians.
        gradient: see `Simulator`.

    Returns:
        `(..., n_observables)`; dtype and errors as for `expectations`.
    """
    check_arguments(compiled.circuit, inputs, angles)
    if gradient == "adjoint" and transforms.plain(inputs, angles):
        if torch.is_grad_enabled():
            out: Tensor = _apply(inputs, angles, compiled)
            return out
        return _shaped(_values(*_flat(inputs, angles), compiled), inputs)
    check_tensor("inputs", inputs)
    check_tensor("angles", angles)
    inputs, angles = transforms.unwrapped("inputs", inputs), transforms.unwrapped("angles", angles)
    if angles.is_meta and not inputs.is_meta:
        raise CircuitError("angles hold no numbers", value="device meta", hint="materialise the model before it runs")
    flat, angles = _flat(inputs, angles)
    if gradient == "autograd" or transforms.needs_record():
        return _shaped(recorded(flat, angles, compiled), inputs)
    return _shaped(_expectations(flat, angles, compiled.key), inputs)


def compiled_circuit(run_circuit: Callable[..., Tensor]) -> SimulatedCircuit | None:
    """The circuit of a function that `Simulator.compile` made, with adjoint gradients; None for another executor's."""
    ours = isinstance(run_circuit, functools.partial) and run_circuit.func is run
    return run_circuit.args[0] if ours and run_circuit.keywords == {"gradient": "adjoint"} else None  # type: ignore[attr-defined]


def _shaped(rows: Tensor, inputs: Tensor) -> Tensor:
    """Values `(B, n_observables)` in the shape of the inputs."""
    return rows if inputs.dim() == 2 else rows.reshape(*inputs.shape[:-1], rows.shape[1])


def _flat(inputs: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs as `(B, n_inputs)` and angles, both in float64 if one of them is, else in float32."""
    dtype = inputs.dtype
    if dtype is angles.dtype and dtype in _WORKING and inputs.is_cpu and angles.is_cpu and inputs.dim() == 2:
        return inputs, angles  # as it mostly is; what follows costs as much as a small circuit
    dtype = working_dtype(inputs, angles)
    return as_rows(inputs).to(dtype), angles.to(inputs.device, dtype)


def _values(inputs: Tensor, angles: Tensor, compiled: SimulatedCircuit) -> Tensor:
    """Expectation values `(B, n_observables)`."""
    return engine.for_expectations(compiled, inputs).values(inputs, angles, compiled)


def _gradients(grad: Tensor, inputs: Tensor, angles: Tensor, compiled: SimulatedCircuit, *, recording: bool) -> list[Tensor]:
    """Gradients of inputs `(B, n_inputs)` and angles."""
    return engine.for_expectations(compiled, inputs).gradients(grad, inputs, angles, compiled, recording=recording)


def _recorded_gradients(
    grad: Tensor, inputs: Tensor, angles: Tensor, compiled: SimulatedCircuit, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of inputs and angles, None where not wanted, that transforms follow and that can be differentiated again."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        flat, numbers = _flat(inputs, angles)
        flat = flat if transforms.is_batch_of_gradients(grad) else without_unused(flat, grad)
        out = recorded(flat, numbers, compiled)
    chosen = [tensor for tensor, want in zip((inputs, angles), wanted, strict=False) if want]
    found = iter(torch.autograd.grad(out, chosen, grad, create_graph=differentiable, allow_unused=True, materialize_grads=True))
    return next(found) if wanted[0] else None, next(found) if wanted[1] else None


class _Adjoint(torch.autograd.Function):
    """The operator's rule without the operator, which costs more than a small circuit: for plain tensors in eager mode.

    Shapes and dtypes are changed in here, where autograd does not record them: every node costs as much as the kernel at 4 qubits.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, angles: Tensor, compiled: SimulatedCircuit) -> Tensor:
        ctx.save_for_backward(inputs, angles)
        ctx.compiled = compiled
        return _shaped(_values(*_flat(inputs, angles), compiled), inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        inputs, angles = ctx.saved_tensors
        compiled: SimulatedCircuit = ctx.compiled
        grad = as_rows(grad)
        if transforms.records_gradient(grad):
            return *_recorded_gradients(grad, inputs, angles, compiled, ctx.needs_input_grad), None
        flat, numbers = _flat(inputs, angles)
        of_inputs, of_angles = _gradients(grad, flat, numbers, compiled, recording=True)
        if of_inputs.dtype is not inputs.dtype or inputs.dim() != 2:
            of_inputs = of_inputs.to(inputs.dtype).view(inputs.shape)
        return of_inputs, of_angles if angles.dtype is of_angles.dtype else of_angles.to(angles.dtype), None


# What `apply` of Function calls once it has seen that no transform of torch.func is active, which `run` has seen already.
_apply: Callable[[Tensor, Tensor, SimulatedCircuit], Tensor] = super(torch.autograd.Function, _Adjoint).apply


@torch.library.custom_op("qpeft::expectations", mutates_args=())
def _expectations(inputs: Tensor, angles: Tensor, key: str) -> Tensor:
    return _values(inputs, angles, compiled_from_key(key))


# torch 2.6 does not read `list[Tensor]` from annotations
_BACKWARD_SCHEMA = "(Tensor grad, Tensor inputs, Tensor angles, str key) -> Tensor[]"


@torch.library.custom_op("qpeft::expectations_backward", mutates_args=(), schema=_BACKWARD_SCHEMA)
def _expectations_backward(grad: Tensor, inputs: Tensor, angles: Tensor, key: str) -> list[Tensor]:
    return _gradients(grad, inputs, angles, compiled_from_key(key), recording=False)


@_expectations.register_fake
def _(inputs: Tensor, angles: Tensor, key: str) -> Tensor:
    return inputs.new_empty(inputs.shape[0], len(compiled_from_key(key).observables))


@_expectations_backward.register_fake
def _(grad: Tensor, inputs: Tensor, angles: Tensor, key: str) -> list[Tensor]:
    return [torch.empty_like(inputs), torch.empty_like(angles)]


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.key = inputs[2]


def _autograd_rule(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    inputs, angles = ctx.saved_tensors
    if transforms.records_gradient(grad):
        return *_recorded_gradients(grad, inputs, angles, compiled_from_key(ctx.key), ctx.needs_input_grad), None
    grad_inputs, grad_angles = _expectations_backward(grad, inputs, angles, ctx.key)
    return grad_inputs, grad_angles, None


def _vmap_rule(info: Any, in_dims: tuple[int | None, ...], inputs: Tensor, angles: Tensor, key: str) -> tuple[Tensor, int]:
    call = functools.partial(run, compiled_from_key(key)) if not torch.compiler.is_compiling() else _with_key(key)
    if in_dims[1] is None:  # more samples of one circuit
        rows = inputs.movedim(in_dims[0] or 0, 0)
        return call(rows.flatten(0, 1), angles).reshape(*rows.shape[:2], -1), 0
    each = [inputs if in_dims[0] is None else inputs.select(in_dims[0], i) for i in range(info.batch_size)]
    return torch.stack([call(x, angles.select(in_dims[1], i)) for i, x in enumerate(each)]), 0


def _with_key(key: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda inputs, angles: _expectations(inputs, angles, key)


_expectations.register_autograd(_autograd_rule, setup_context=_setup_context)
_expectations.register_vmap(_vmap_rule)
