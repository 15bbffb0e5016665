"""Expectation values and their gradients by the compiled kernel (entry.c), for CPU tensors."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qpeft.circuits.simulator.c_engine import library
from qpeft.circuits.simulator.c_engine.compiler import Bytecode, compile_bytecode
from qpeft.circuits.simulator.c_engine.stages import UnsupportedError
from qpeft.circuits.simulator.torch_engine.compiler import SimulatedCircuit
from qpeft.errors import CircuitError

_PACKED = struct.Struct("13q").pack  # the arguments of qpeft_run: one call with them packed costs half of one with thirteen


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
class KernelCall:
    """A bytecode ready to run: the C function, the variant's number, and the addresses of the arrays that `bytecode` holds."""

    bytecode: Bytecode
    function: Callable[[bytes], int]
    variant: int
    code: int
    numbers: int

    def __call__(
        self,
        inputs: Tensor,
        angles: Tensor,
        values: Tensor | None = None,
        grad: Tensor | None = None,
        grad_inputs: Tensor | None = None,
        grad_angles: Tensor | None = None,
    ) -> None:
        """Writes `values`, and with `grad` also `grad_inputs` and `grad_angles`."""
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
            0 if values is None else values.data_ptr(),
            0 if grad_inputs is None else grad_inputs.data_ptr(),
            0 if grad_angles is None else grad_angles.data_ptr(),
            torch.get_num_threads(),
        )
        if self.function(arguments):
            raise MemoryError("the compiled kernel found no memory for its buffers")


def _bound(bytecode: Bytecode, variant: int) -> KernelCall:
    """A bytecode bound to the library's entry point, to run with the variant of that number."""
    loaded = library.loaded()
    assert not isinstance(loaded, str)  # else there is no variant
    return KernelCall(bytecode, loaded.qpeft_call, variant, bytecode.code.ctypes.data, bytecode.numbers.ctypes.data)


@functools.lru_cache(maxsize=512)
def calls(compiled: SimulatedCircuit) -> tuple[KernelCall, ...]:
    """The circuit's bytecodes, each ready to run; their results add up."""
    bytecodes = _bytecodes(compiled)
    if isinstance(bytecodes, str):
        raise CircuitError(f"the compiled kernel does not take this circuit: {bytecodes}")
    number = library.chosen()
    return tuple(_bound(bytecode, number) for bytecode in bytecodes)


def values(inputs: Tensor, angles: Tensor, compiled: SimulatedCircuit) -> Tensor:
    """See `engine.Expectations.values`."""
    inputs, angles = dense(inputs), dense(angles)
    first, *others = calls(compiled)
    total = inputs.new_empty(inputs.shape[0], first.bytecode.n_observables)
    first(inputs, angles, total)
    for call in others:
        part = torch.empty_like(total)
        call(inputs, angles, part)
        total += part
    return total


def gradients(grad: Tensor, inputs: Tensor, angles: Tensor, compiled: SimulatedCircuit, *, recording: bool = False) -> list[Tensor]:
    """See `engine.Expectations.gradients`. `recording` makes no difference here."""
    grad, inputs, angles = dense(grad if grad.dtype is inputs.dtype else grad.to(inputs.dtype)), dense(inputs), dense(angles)
    first, *others = calls(compiled)
    totals = [torch.empty_like(inputs), torch.empty_like(angles)]
    first(inputs, angles, None, grad, *totals)
    for call in others:
        parts = [torch.empty_like(inputs), torch.empty_like(angles)]
        call(inputs, angles, None, grad, *parts)
        for total, part in zip(totals, parts, strict=True):
            total += part
    return totals


def values_and_gradients(grad: Tensor, inputs: Tensor, angles: Tensor, compiled: SimulatedCircuit) -> tuple[Tensor, Tensor, Tensor]:
    """See `engine.Expectations.values_and_gradients`. One pass forward serves both."""
    grad, inputs, angles = dense(grad), dense(inputs), dense(angles)
    first, *others = calls(compiled)
    totals = torch.empty_like(grad), torch.empty_like(inputs), torch.empty_like(angles)
    first(inputs, angles, totals[0], grad, *totals[1:])
    for call in others:
        parts = torch.empty_like(grad), torch.empty_like(inputs), torch.empty_like(angles)
        call(inputs, angles, parts[0], grad, *parts[1:])
        for total, part in zip(totals, parts, strict=True):
            total += part
    return totals


def dense(tensor: Tensor) -> Tensor:
    """The tensor with its numbers in memory as they are read: contiguous, and without a pending change of sign."""
    return (tensor.resolve_neg() if tensor.is_neg() else tensor).contiguous()
