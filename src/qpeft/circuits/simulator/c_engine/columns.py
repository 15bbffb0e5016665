"""Columns of real circuits' unitaries, and their gradients, by the compiled kernel (columns.c), for CPU tensors.

It takes circuits whose unitary is real gate by gate: rotations about Y, Hadamards, X, Z, CZ, CNOTs, swaps and their like. A step of
the compiled becomes a step of the program: gates on single qubits, signs (phases of 0 and pi), or a permutation.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qpeft.circuits.simulator.c_engine import library
from qpeft.circuits.simulator.c_engine.expectations import dense
from qpeft.circuits.simulator.torch_engine.compiler import CompiledGate, SimulatedCircuit, Step, local_value, permutation

MAX_QUBITS = 18  # above, a state and its costate leave the caches, and torch takes threads
LOCAL, SIGNS, PERMUTATIONS = 0, 1, 2  # columns.h


class ColumnsBytecode(NamedTuple):
    """The arrays that the C function reads (see columns.h), and their addresses, valid while the arrays live."""

    code: npt.NDArray[np.int32]
    numbers: npt.NDArray[np.float64]
    addresses: tuple[int, int]


@functools.cache
def _function() -> Callable[..., int] | None:
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    return library.function("qpeft_columns", ctypes.c_int, ctypes.c_int, pointer, pointer, pointer, number, pointer, pointer)


def _steps(compiled: SimulatedCircuit) -> Iterator[Step]:
    """The circuit's steps, those of dense ones one by one."""
    for step in compiled.unitary.steps:
        yield from step.steps if step.kind == "dense" else (step,)


def _signs(step: Step, n: int) -> npt.NDArray[np.int32] | None:
    """A phase step as 1 and -1 of each basis state; None where it is anything else."""
    out = np.ones(2**n, dtype=np.int32)
    for gate in step.gates:
        values = np.diagonal(gate.parts[0])
        if gate.angle is not None or not np.isin(values, (1, -1)).all():
            return None
        out *= values.real.astype(np.int32)[local_value(n, gate.qubits)]
    return out


@functools.lru_cache(maxsize=512)
def _bytecode(compiled: SimulatedCircuit) -> ColumnsBytecode | None:
    """The bytecode, None where the kernel does not take the circuit."""
    n = compiled.circuit.n_qubits
    if n > MAX_QUBITS:
        return None
    steps: list[tuple[int, int]] = []
    begins, gates = [0], list[CompiledGate]()
    tables: dict[int, dict[bytes, tuple[int, npt.NDArray[np.int32]]]] = {SIGNS: {}, PERMUTATIONS: {}}
    for step in _steps(compiled):
        if step.kind == "local":
            if not all(gate.real for gate in step.gates):
                return None
            steps.append((LOCAL, len(begins) - 1))
            for qubit in reversed(range(n)):
                gates += step.on(qubit)
                begins.append(len(gates))
            continue
        table = _signs(step, n) if step.kind == "phase" else permutation(step.gates, n).astype(np.int32)
        if table is None:
            return None
        known = tables[SIGNS if step.kind == "phase" else PERMUTATIONS]
        number, _ = known.setdefault(table.tobytes(), (len(known), table))
        steps.append((SIGNS if step.kind == "phase" else PERMUTATIONS, number))
    index, numbers = [], []
    for gate in gates:
        angle = gate.angle
        scale, shift = (angle.scale, angle.shift) if angle is not None else (0.0, 0.0)
        bound = angle is not None and angle.index is not None
        index.append(angle.index if angle is not None and angle.index is not None else -1)
        numbers += [gate.frequency * scale if bound else 0.0, gate.frequency * shift, *gate.parts.real.flatten()]
    counts = [n, compiled.circuit.n_angles, len(steps), len(begins) - 1, len(gates), len(tables[SIGNS]), len(tables[PERMUTATIONS])]
    rows = [table for known in tables.values() for _, table in known.values()]
    parts = [counts, np.array(steps, dtype=np.int32).flatten(), begins, index, *rows]
    code = np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])
    array = np.array(numbers, dtype=np.float64)
    return ColumnsBytecode(code, array, (code.ctypes.data, array.ctypes.data))


def takes(compiled: SimulatedCircuit) -> bool:
    """Whether the kernel can run this circuit without inputs."""
    return _function() is not None and _bytecode(compiled) is not None


def values(angles: Tensor, compiled: SimulatedCircuit, k: int) -> Tensor:
    """See `engine.Columns.values`. The circuits are real, so the imaginary parts are zero."""
    out = angles.new_zeros(2, 2**compiled.circuit.n_qubits, k)
    _run(angles, compiled, k, None, out[0])
    return out


def gradients(grad: Tensor, angles: Tensor, compiled: SimulatedCircuit) -> Tensor:
    """See `engine.Columns.gradients`."""
    out = torch.empty_like(angles, memory_format=torch.contiguous_format)
    _run(angles, compiled, grad.shape[2], dense(grad[0].to(angles.dtype)), out)
    return out


def _run(angles: Tensor, compiled: SimulatedCircuit, k: int, grad: Tensor | None, out: Tensor) -> None:
    function, bytecode, angles = _function(), _bytecode(compiled), dense(angles)
    assert function is not None  # see `takes`
    assert bytecode is not None
    pointer = None if grad is None else grad.data_ptr()
    wide = angles.dtype is torch.float64
    if function(library.chosen(), wide, *bytecode.addresses, angles.data_ptr(), k, pointer, out.data_ptr()):
        raise MemoryError("the compiled kernel found no memory for its buffers")
