"""The batched, differentiable state-vector simulator in PyTorch: the reference Executor.

One operator, `qpeft::expectations(inputs, angles, key)`, registered through torch.library with fake, autograd and vmap rules, so
that torch.compile and torch.vmap treat it as one node. Plain tensors in eager mode take the same two functions, `_values` and
`_gradients`, through a bare autograd.Function: the registered operator's own overhead is larger than a small circuit. It saves
inputs and angles alone; its backward runs the circuit again and undoes it step by step (see evolve.py), so memory does not grow
with depth. Samples pass in chunks that stay in cache; what does not depend on data is built once per call for all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import psutil
import torch
from torch import Tensor

from qpeft.circuits.executor import Expectations, as_rows, check_arguments, working_dtype
from qpeft.circuits.ir import Circuit, Observable
from qpeft.circuits.simulator.c_engine import library
from qpeft.circuits.simulator.torch_engine import blocks, evolve
from qpeft.circuits.simulator.torch_engine.buffers import Register, Sums
from qpeft.circuits.simulator.torch_engine.compiler import Plan, compile_circuit, plan_from_key
from qpeft.errors import CircuitError, ResourceError

Gradient = Literal["adjoint", "autograd"]

# Bytes of one chunk's state: little memory at near the best speed on a CPU, enough to fill an accelerator. A backward pass holds
# about ten of them.
CPU_CHUNK_BYTES, ACCELERATOR_CHUNK_BYTES = 160 << 10, 1 << 26
SEVERAL = 2  # chunks whose qubits' first gates and uploads are made, and differentiated, in one call
_WORKING = (torch.float32, torch.float64)
_PLAIN = (Tensor, torch.nn.Parameter)  # not a FakeTensor, nor any other subclass
LIVE_STATES = 12  # state-sized buffers alive at the peak of a backward pass, counted generously


class Simulator:
    """The Executor on the exact state vector, on whatever device the tensors are.

    `gradient="adjoint"` (default) needs no memory for depth, and records the circuit only where its gradient is differentiated
    again; `"autograd"` records every step, for torch.func.grad (which does not see an operator's own rule).
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
    check_arguments(plan.circuit, inputs, angles)
    if gradient == "adjoint" and not (torch.compiler.is_compiling() or type(inputs) not in _PLAIN or _transformed()):
        if torch.is_grad_enabled():
            out: Tensor = _apply(inputs, angles, plan)
            return out
        return _shaped(_values(*_flat(inputs, angles), plan), inputs)
    flat, angles = _flat(inputs, angles)
    out = _recorded(plan, flat, angles) if gradient == "autograd" else _expectations(flat, angles, plan.key)
    return _shaped(out, inputs)


def _shaped(rows: Tensor, inputs: Tensor) -> Tensor:
    """Values `(B, n_observables)` in the shape of the inputs."""
    return rows if inputs.dim() == 2 else rows.view(*inputs.shape[:-1], rows.shape[1])


def _transformed() -> bool:
    return bool(torch._C._are_functorch_transforms_active())


def _flat(inputs: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs as `(B, n_inputs)` and angles, both in float64 if one of them is, else in float32."""
    dtype = inputs.dtype
    if dtype is angles.dtype and dtype in _WORKING and inputs.is_cpu and angles.is_cpu and inputs.dim() == 2:
        return inputs, angles  # as it mostly is; what follows costs as much as a small circuit
    dtype = working_dtype(inputs, angles)
    return as_rows(inputs).to(dtype), angles.to(inputs.device, dtype)


def check_memory(plan: Plan, like: Tensor) -> None:
    """Refuse a circuit of which not even one sample's working set fits; the error holds both figures."""
    n = plan.circuit.n_qubits
    if n <= 16:  # 64 MiB at most: not worth asking the system on every call
        return
    steps = plan.program.steps
    tables = 16 * len({step.key for step in steps if step.kind == "perm"})  # a permutation and its inverse, 8 bytes each
    per_amplitude = tables + 2 * like.element_size() * (LIVE_STATES + 4 * sum(step.kind == "phase" for step in steps))
    required = 2**n * (per_amplitude + 2 * like.element_size() * len(plan.observables))
    available = torch.cuda.mem_get_info(like.device)[0] if like.is_cuda else psutil.virtual_memory().available
    if required > available:
        raise ResourceError(
            f"one sample of a {n}-qubit circuit", required_bytes=required, available_bytes=available, hint="use fewer qubits"
        )


def _chunks(plan: Plan, inputs: Tensor, times: int = 1) -> list[slice]:
    budget = CPU_CHUNK_BYTES if inputs.device.type == "cpu" else ACCELERATOR_CHUNK_BYTES
    size = times * max(1, budget // (2 * 2**plan.circuit.n_qubits * inputs.element_size()))
    return [slice(first, first + size) for first in range(0, inputs.shape[0], size)]


def _float32(like: Tensor) -> AbstractContextManager[object]:
    """No autocast inside (entering and leaving it costs as much as ten small operations, so only where it is on)."""
    device = like.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _recorded(plan: Plan, inputs: Tensor, angles: Tensor) -> Tensor:
    """Every step recorded by autograd, `(B, n_observables)`."""
    check_memory(plan, inputs)
    kit = evolve.kit(plan, False, inputs.device, inputs.dtype)
    with _float32(inputs):
        tensors = kit.builder(angles)
        out = evolve.read(plan, evolve.forward(kit, evolve.start(kit, inputs.mT, tensors), tensors))
    return out.mT.expand(inputs.shape[0], -1)


def _compiled(plan: Plan, inputs: Tensor) -> bool:
    """Whether the compiled kernel takes these samples; else torch does the work."""
    return inputs.is_cpu and library.supports(plan)


def _values(inputs: Tensor, angles: Tensor, plan: Plan) -> Tensor:
    """Expectation values `(B, n_observables)`."""
    if _compiled(plan, inputs):
        return library.expectations(inputs, angles, plan.key)
    check_memory(plan, inputs)
    kit = evolve.kit(plan, False, inputs.device, inputs.dtype)
    with _float32(inputs):
        tensors, columns = kit.builder(angles), inputs.mT.contiguous()
        out: list[Tensor] = []
        room: Register | None = None
        for part in _chunks(plan, inputs, 2):  # one state takes half of what a state and its costate do
            room = evolve.load(kit, evolve.ends(kit, columns[:, part], tensors), 1, room)
            evolve.run(kit, tensors, room)
            values = evolve.read(plan, room.states[0], room.spare[0]).mT
            out.append(values if room.batch > 1 else values.expand(len(inputs[part]), -1))
        return torch.cat(out) if out else inputs.new_empty(0, len(plan.observables))


def _gradients(grad: Tensor, inputs: Tensor, angles: Tensor, plan: Plan, *, recording: bool) -> list[Tensor]:
    """Gradients of inputs `(B, n_inputs)` and angles; for `recording` see `blocks.pullback`."""
    if _compiled(plan, inputs):
        return library.backward(grad, inputs, angles, plan.key)
    kit = evolve.kit(plan, False, inputs.device, inputs.dtype)
    columns, grad_columns = inputs.mT.contiguous(), grad.to(inputs.dtype).mT.contiguous()
    with _float32(inputs):
        tensors, pull = blocks.pullback(kit.builder, angles, recording=recording)
        sums: Sums = {}
        of_ends: dict[int, Tensor] = {}
        learn, grad_inputs = kit.builder.prefix_trainable, torch.empty_like(inputs)

        def ends(u: Tensor, *own: Tensor) -> list[Tensor]:
            mixed = list(tensors)
            for place, tensor in zip(learn, own, strict=True):
                mixed[place] = tensor
            return [part for end in evolve.ends(kit, u, mixed) for part in end]

        room: Register | None = None
        for several in _chunks(plan, inputs, SEVERAL):
            flat, pull_ends = blocks.pullback(ends, columns[:, several], *(tensors[i] for i in learn), recording=recording)
            by_ends, grads_here = [torch.zeros_like(x) for x in flat], grad_columns[:, several]
            whole, gathered_ends = evolve.grouped(kit, flat), evolve.grouped(kit, by_ends)
            for part in _chunks(plan, inputs[several]):
                own = [_samples(end, part) for end in whole]
                room = evolve.load(kit, own, 2, room)
                found = evolve.backward(plan, kit, tensors, grads_here[:, part], sums, room)
                evolve.gather(found, own, [_samples(end, part) for end in gathered_ends], room)
            by_inputs, *of_prefix = pull_ends(by_ends)
            grad_inputs[several] = by_inputs.mT
            for place, value in zip(learn, of_prefix, strict=True):
                of_ends[place] = of_ends[place] + value if place in of_ends else value
        gathered = evolve.gradients(sums, tensors)
        for place, value in of_ends.items():
            gathered[place] = value
        return [grad_inputs, *pull(gathered)]


def _samples(end: evolve.End, part: slice) -> evolve.End:
    """Columns of some samples; what is the same for all samples has one column."""
    return tuple(x if x.shape[-1] == 1 else x[..., part] for x in end)  # type: ignore[return-value]


class _Adjoint(torch.autograd.Function):
    """The operator's rule without the operator, which costs more than a small circuit: for plain tensors in eager mode.

    Shapes and dtypes are changed in here, where autograd does not record them: every node costs as much as the kernel at 4 qubits.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, angles: Tensor, plan: Plan) -> Tensor:
        ctx.save_for_backward(inputs, angles)
        ctx.plan = plan
        return _shaped(_values(*_flat(inputs, angles), plan), inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        inputs, angles = ctx.saved_tensors
        plan: Plan = ctx.plan
        grad = as_rows(grad)
        if torch.is_grad_enabled():  # the gradient is to be differentiated in its turn: record it
            out = _recorded(plan, *_flat(inputs, angles))
            grads = torch.autograd.grad(out, (inputs, angles), grad, create_graph=True, allow_unused=True, materialize_grads=True)
            return grads[0], grads[1], None
        flat, numbers = _flat(inputs, angles)
        of_inputs, of_angles = _gradients(grad, flat, numbers, plan, recording=True)
        if of_inputs.dtype is not inputs.dtype or inputs.dim() != 2:
            of_inputs = of_inputs.to(inputs.dtype).view(inputs.shape)
        return of_inputs, of_angles if angles.dtype is of_angles.dtype else of_angles.to(angles.dtype), None


# What `apply` of Function calls once it has seen that no transform of torch.func is active, which `run` has seen already.
_apply: Callable[[Tensor, Tensor, Plan], Tensor] = super(torch.autograd.Function, _Adjoint).apply


@torch.library.custom_op("qpeft::expectations", mutates_args=())
def _expectations(inputs: Tensor, angles: Tensor, key: str) -> Tensor:
    return _values(inputs, angles, plan_from_key(key))


@torch.library.custom_op("qpeft::expectations_backward", mutates_args=())
def _expectations_backward(grad: Tensor, inputs: Tensor, angles: Tensor, key: str) -> list[Tensor]:
    return _gradients(grad, inputs, angles, plan_from_key(key), recording=False)


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
