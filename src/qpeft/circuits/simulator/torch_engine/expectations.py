"""Expectation values and their gradients in PyTorch: chunks of samples that stay in cache, or one record for autograd.

What depends on the angles alone is built once per call. `values` and `gradients` leave no record: the gradient runs the circuit
again and undoes it step by step, so memory does not grow with depth. `recorded` lets autograd and torch.func record every step.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import psutil
import torch
from torch import Tensor

from qpeft.circuits.simulator.torch_engine import blocks, evolve
from qpeft.circuits.simulator.torch_engine.buffers import StateBuffers, Sums
from qpeft.circuits.simulator.torch_engine.compiler import SimulatedCircuit
from qpeft.errors import ResourceError

# Bytes of one chunk's state: little memory at near the best speed on a CPU, enough to fill an accelerator. A backward pass holds
# about ten of them.
CPU_CHUNK_BYTES, ACCELERATOR_CHUNK_BYTES = 640 << 10, 1 << 26
SEVERAL = 2  # chunks whose qubits' first gates and uploads are made, and differentiated, in one call
LIVE_STATES = 12  # state-sized buffers alive at the peak of a backward pass, counted generously


def values(inputs: Tensor, angles: Tensor, compiled: SimulatedCircuit) -> Tensor:
    """See `engine.Expectations.values`.

    Raises:
        ResourceError: one sample's state does not fit into memory; nothing was allocated.
    """
    check_memory(compiled, inputs)
    prepared = evolve.prepare(compiled, False, inputs.device, inputs.dtype)
    with without_autocast(inputs):
        tensors, columns = prepared.builder(angles), inputs.mT.contiguous()
        out: list[Tensor] = []
        buffers: StateBuffers | None = None
        for part in _chunks(compiled, inputs, 2):  # one state takes half of what a state and its costate do
            buffers = evolve.load(prepared, evolve.factored_start(prepared, columns[:, part], tensors), 1, buffers)
            evolve.run(prepared, tensors, buffers)
            found = evolve.read(compiled, buffers.states[0], buffers.spare[0]).mT
            out.append(found if buffers.batch > 1 else found.expand(len(inputs[part]), -1))
        return torch.cat(out) if out else inputs.new_empty(0, len(compiled.observables))


def gradients(grad: Tensor, inputs: Tensor, angles: Tensor, compiled: SimulatedCircuit, *, recording: bool = False) -> list[Tensor]:
    """See `engine.Expectations.gradients`, and `blocks.pullback` for `recording`."""
    prepared = evolve.prepare(compiled, False, inputs.device, inputs.dtype)
    columns, grad_columns = without_unused(inputs, grad).mT.contiguous(), grad.to(inputs.dtype).mT.contiguous()
    with without_autocast(inputs):
        tensors, pull = blocks.pullback(prepared.builder, angles, recording=recording)
        sums: Sums = {}
        of_prefix: dict[int, Tensor] = {}
        trainable, grad_inputs = prepared.builder.prefix_trainable, torch.empty_like(inputs)

        def start(u: Tensor, *own: Tensor) -> list[Tensor]:
            mixed = list(tensors)
            for place, tensor in zip(trainable, own, strict=True):
                mixed[place] = tensor
            return [part for factored in evolve.factored_start(prepared, u, mixed) for part in factored]

        buffers: StateBuffers | None = None
        for several in _chunks(compiled, inputs, SEVERAL):
            flat, pull_start = blocks.pullback(start, columns[:, several], *(tensors[i] for i in trainable), recording=recording)
            by_start, grads_here = [torch.zeros_like(x) for x in flat], grad_columns[:, several]
            whole, gathered = evolve.grouped(prepared, flat), evolve.grouped(prepared, by_start)
            for part in _chunks(compiled, inputs[several]):
                own = [_samples(factored, part) for factored in whole]
                buffers = evolve.load(prepared, own, 2, buffers)
                found = evolve.backward(compiled, prepared, tensors, grads_here[:, part], sums, buffers)
                evolve.gather(found, own, [_samples(factored, part) for factored in gathered], buffers)
            by_inputs, *by_prefix = pull_start(by_start)
            grad_inputs[several] = by_inputs.mT
            for place, value in zip(trainable, by_prefix, strict=True):
                of_prefix[place] = of_prefix[place] + value if place in of_prefix else value
        of_tensors = evolve.gradients(sums, tensors)
        for place, value in of_prefix.items():
            of_tensors[place] = value
        return [grad_inputs, *pull(of_tensors)]


def recorded(inputs: Tensor, angles: Tensor, compiled: SimulatedCircuit) -> Tensor:
    """Expectation values `(B, n_observables)` in plain torch calls, which every transform of autograd and torch.func follows.

    Args:
        inputs: `(B, n_inputs)`, radians.
        angles: `(n_angles,)`, radians, of the dtype of the inputs.
        compiled: the circuit and its observables.

    Raises:
        ResourceError: one sample's working set does not fit into memory.
    """
    check_memory(compiled, inputs)
    if not inputs.shape[0]:  # no sample, and still a function of both arguments
        return inputs.new_empty(0, len(compiled.observables)) + inputs.sum() + angles.sum()
    prepared = evolve.prepare(compiled, False, inputs.device, inputs.dtype)
    with without_autocast(inputs):
        tensors = prepared.builder(angles)
        out = evolve.read(compiled, evolve.forward(prepared, evolve.start(prepared, inputs.mT, tensors), tensors))
    return out.mT.expand(inputs.shape[0], -1)


def values_and_gradients(grad: Tensor, inputs: Tensor, angles: Tensor, compiled: SimulatedCircuit) -> tuple[Tensor, Tensor, Tensor]:
    """See `engine.Expectations.values_and_gradients`."""
    found = values(inputs, angles, compiled)
    of_inputs, of_angles = gradients(grad, inputs, angles, compiled)
    return found, of_inputs, of_angles


def without_unused(inputs: Tensor, grad: Tensor) -> Tensor:
    """Inputs with zeros for samples whose values the loss does not use, so that an infinite one spoils no gradient.

    Args:
        inputs: `(B, n_inputs)`.
        grad: gradient of the values, `(B, n_observables)`.
    """
    return torch.where((grad != 0).any(1, keepdim=True), inputs, torch.zeros_like(inputs))


def check_memory(compiled: SimulatedCircuit, like: Tensor) -> None:
    """Check that one sample's working set fits into memory. Circuits of up to 16 qubits are not checked.

    Args:
        compiled: the circuit and its observables.
        like: a tensor with the device and real dtype of the samples.

    Raises:
        ResourceError: it does not fit; the message has both figures.
    """
    n = compiled.circuit.n_qubits
    if n <= 16:  # 64 MiB at most: not worth asking the system on every call
        return
    steps = compiled.evolution.steps
    tables = 16 * len({step.key for step in steps if step.kind == "perm"})  # a permutation and its inverse, 8 bytes each
    per_amplitude = tables + 2 * like.element_size() * (LIVE_STATES + 4 * sum(step.kind == "phase" for step in steps))
    required = 2**n * (per_amplitude + 2 * like.element_size() * len(compiled.observables))
    available = torch.cuda.mem_get_info(like.device)[0] if like.is_cuda else psutil.virtual_memory().available
    if required > available:
        raise ResourceError(
            f"one sample of a {n}-qubit circuit", required_bytes=required, available_bytes=available, hint="use fewer qubits"
        )


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """No autocast inside (entering and leaving it costs as much as ten small operations, so only where it is on)."""
    device = like.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _chunks(compiled: SimulatedCircuit, inputs: Tensor, times: int = 1) -> list[slice]:
    budget = CPU_CHUNK_BYTES if inputs.device.type == "cpu" else ACCELERATOR_CHUNK_BYTES
    size = times * max(1, budget // (2 * 2**compiled.circuit.n_qubits * inputs.element_size()))
    return [slice(first, first + size) for first in range(0, inputs.shape[0], size)]


def _samples(factored: evolve.Factored, part: slice) -> evolve.Factored:
    """Columns of some samples; what is the same for all samples has one column."""
    return tuple(x if x.shape[-1] == 1 else x[..., part] for x in factored)  # type: ignore[return-value]
