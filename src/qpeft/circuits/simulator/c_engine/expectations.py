"""Expectation values and their gradients by the compiled kernel (entry.c), for CPU tensors."""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qpeft.circuits.simulator.c_engine import library
from qpeft.circuits.simulator.c_engine.compiler import Bytecode, compile_bytecode
from qpeft.circuits.simulator.c_engine.stages import UnsupportedError
from qpeft.circuits.simulator.torch_engine.compiler import SimulatedCircuit
from qpeft.circuits.simulator.torch_engine.expectations import without_unused
from qpeft.errors import CircuitError

_PACKED = struct.Struct("12q").pack  # the arguments of qpeft_run: one call with them packed costs half of one with twelve


@functools.lru_cache(maxsize=512)
def _bytecodes(compiled: SimulatedCircuit) -> tuple[Bytecode, ...] | str:
    """The circuit's bytecodes, one for each group of observables measured in one basis; or why the kernel takes none."""
    try:
        return compile_bytecode(compiled.circuit, compiled.observables)
    except UnsupportedError as error:
        return str(error)


def takes(compiled: SimulatedCircuit) -> bool:
    """Whether the kernel can run this circuit with these observables."""
    return not isinstance(_bytecodes(compiled), str)


@dataclass(frozen=True)
class _Call:
    """A bytecode ready to run: the C function, the variant's number, and the addresses of the arrays that `bytecode` holds."""

    bytecode: Bytecode
    function: Callable[[bytes], int]
    variant: int
    code: int
    numbers: int

    def __call__(self, inputs: Tensor, angles: Tensor, grad: Tensor | None, out: Tensor, grad_angles: Tensor | None) -> None:
        arguments = _PACKED(
            self.variant,
            inputs.dtype is torch.float64,
            grad is not None,
            self.code,
            self.numbers,
            inputs.data_ptr(),
            angles.data_ptr(),
            0 if grad is None else grad.data_ptr(),
            inputs.shape[0],
            out.data_ptr(),
            0 if grad_angles is None else grad_angles.data_ptr(),
            torch.get_num_threads(),
        )
        if self.function(arguments):
            raise MemoryError("the compiled kernel found no memory for its buffers")


def _bound(bytecode: Bytecode, variant: int) -> _Call:
    """A bytecode bound to the library's entry point, to run with the variant of that number."""
    loaded = library.loaded()
    assert not isinstance(loaded, str)  # else there is no variant
    return _Call(bytecode, loaded.qpeft_call, variant, bytecode.code.ctypes.data, bytecode.numbers.ctypes.data)


@functools.lru_cache(maxsize=512)
def _calls(compiled: SimulatedCircuit) -> tuple[_Call, ...]:
    bytecodes = _bytecodes(compiled)
    if isinstance(bytecodes, str):
        raise CircuitError(f"the compiled kernel does not take this circuit: {bytecodes}")
    number = library.chosen()
    return tuple(_bound(bytecode, number) for bytecode in bytecodes)


def values(inputs: Tensor, angles: Tensor, compiled: SimulatedCircuit) -> Tensor:
    """See `engine.Expectations.values`."""
    inputs, angles = dense(inputs), dense(angles)
    first, *others = _calls(compiled)
    total = inputs.new_empty(inputs.shape[0], first.bytecode.n_observables)
    first(inputs, angles, None, total, None)
    for call in others:
        part = torch.empty_like(total)
        call(inputs, angles, None, part, None)
        total += part
    return total


def gradients(grad: Tensor, inputs: Tensor, angles: Tensor, compiled: SimulatedCircuit, *, recording: bool = False) -> list[Tensor]:
    """See `engine.Expectations.gradients`. `recording` makes no difference here."""
    inputs, angles = dense(inputs), dense(angles)
    grad = dense(grad if grad.dtype is inputs.dtype else grad.to(inputs.dtype))
    totals = _sums(grad, inputs, angles, compiled)
    if not math.isfinite(totals[0].sum() + totals[1].sum()):  # perhaps of a sample that the loss does not use
        return _sums(grad, without_unused(inputs, grad), angles, compiled)
    return totals


def _sums(grad: Tensor, inputs: Tensor, angles: Tensor, compiled: SimulatedCircuit) -> list[Tensor]:
    """Gradients, added up over the kernel's calls."""
    first, *others = _calls(compiled)
    totals = [torch.empty_like(inputs), torch.empty_like(angles)]
    first(inputs, angles, grad, *totals)
    for call in others:
        parts = [torch.empty_like(inputs), torch.empty_like(angles)]
        call(inputs, angles, grad, *parts)
        for total, part in zip(totals, parts, strict=True):
            total += part
    return totals


def dense(tensor: Tensor) -> Tensor:
    """The tensor with its numbers in memory as they are read: contiguous, and without a pending change of sign."""
    return (tensor.resolve_neg() if tensor.is_neg() else tensor).contiguous()
