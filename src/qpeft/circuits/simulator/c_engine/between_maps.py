"""A circuit between linear maps, for a few tokens, by the compiled kernel (between_maps.c): no step of it is a call from Python."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from qpeft.circuits.simulator.c_engine import expectations as c_expectations
from qpeft.circuits.simulator.c_engine import library
from qpeft.circuits.simulator.c_engine.expectations import dense
from qpeft.circuits.simulator.torch_engine.compiler import SimulatedCircuit

_FIXED, _CALL = struct.Struct("14q"), struct.Struct("4q")


class BetweenMaps:
    """`(Q z + C u) up` of rows, `z` the expectation values of a circuit at inputs `u = down x`; for tensors that stay as they are.

    Args:
        compiled: the circuit and its observables, which `takes`.
        angles: `(n_angles,)`, radians.
        down: `(r, d_in)`.
        quantum: `Q (r, n_observables)`.
        classical: `C (r, r)`, None for none.
        up: `(r, d_out)`.
    """

    def __init__(
        self, compiled: SimulatedCircuit, angles: Tensor, down: Tensor, quantum: Tensor, classical: Tensor | None, up: Tensor
    ) -> None:
        (call,) = c_expectations.calls(compiled)
        function = _function()
        assert function is not None  # see `takes`
        self._function, self._d_out, self.dtype = function, up.shape[1], down.dtype
        maps = (dense(angles), dense(down), dense(quantum), None if classical is None else dense(classical), dense(up))
        wide = down.dtype is torch.float64
        kept = np.zeros(_kept_bytes()(wide, call.code, call.numbers) // 8 + 8)  # what depends on the angles
        self._held = (call, *maps, kept)  # what the addresses point to
        self._fixed = _FIXED.pack(
            call.variant,
            wide,
            call.code,
            call.numbers,
            *(0 if tensor is None else tensor.data_ptr() for tensor in maps),
            down.shape[1],
            down.shape[0],
            quantum.shape[1],
            up.shape[1],
            (kept.ctypes.data + 63) // 64 * 64,
        )
        self(down.new_empty(0, down.shape[1]))  # fills `kept`, which later calls only read

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Outputs `(..., d_out)` of rows `x (..., d_in)`, plus y where there is one, without a record for autograd."""
        x = dense(x)
        out = x.new_empty(*x.shape[:-1], self._d_out)
        address, rest = 0, y
        if y is not None and y.dtype is x.dtype and y.shape == out.shape and y.is_cpu and type(y) is Tensor:
            y, rest = dense(y), None
            address = y.data_ptr()
        if self._function(self._fixed + _CALL.pack(x.data_ptr(), x.numel() // x.shape[-1], out.data_ptr(), address)):
            raise MemoryError("the compiled kernel found no memory for its buffers")
        return out if rest is None else rest + out


def takes(compiled: SimulatedCircuit, *tensors: Tensor) -> bool:
    """Whether the kernel runs this circuit in one call, with maps and angles of this dtype and device."""
    dtype = tensors[0].dtype
    if dtype not in (torch.float32, torch.float64) or not library.available() or _function() is None:
        return False
    alike = all(tensor.is_cpu and tensor.dtype is dtype for tensor in tensors)
    return alike and c_expectations.takes(compiled) and len(c_expectations.calls(compiled)) == 1


@functools.cache
def _function() -> Callable[..., int] | None:
    return library.function("qpeft_between_maps", ctypes.c_char_p)


@functools.cache
def _kept_bytes() -> Callable[..., int]:
    found = library.function("qpeft_kept_bytes", ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    assert found is not None  # the library has both
    found.restype = ctypes.c_int64  # type: ignore[attr-defined]
    return found
