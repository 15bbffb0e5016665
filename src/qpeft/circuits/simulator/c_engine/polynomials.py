"""Trigonometric polynomials of many samples, and their gradients, by the compiled kernel (polynomial.c), for CPU tensors."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from qpeft.circuits.simulator.c_engine import library
from qpeft.circuits.simulator.c_engine.expectations import dense
from qpeft.circuits.simulator.torch_engine.polynomials import cut

MOST = 1 << 14  # coefficients: the sums of their gradient stay in cache; above, torch's matrix products are as fast


@functools.cache
def _function() -> Callable[..., int] | None:
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    strided = (pointer, number, number)
    return library.function(
        "qpeft_polynomial",
        *(ctypes.c_int, ctypes.c_int, pointer, pointer, *strided, *strided, number, pointer, pointer, ctypes.c_int),
    )


def takes(coefficients: Tensor) -> bool:
    """Whether the kernel can evaluate so many coefficients."""
    return coefficients.numel() <= MOST and _function() is not None


def values(coefficients: Tensor, t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """See `engine.Polynomials.values`."""
    out = t.new_empty(t.shape[1], coefficients.shape[-1])
    _run(coefficients, t, shape, None, out, None)
    return out.t()


def gradients(
    grad: Tensor, coefficients: Tensor, t: Tensor, shape: tuple[int, ...], *, wanted: tuple[bool, bool] = (True, True)
) -> tuple[Tensor | None, Tensor | None]:
    """See `engine.Polynomials.gradients`."""
    by_coefficients = torch.empty_like(coefficients, memory_format=torch.contiguous_format) if wanted[0] else None
    by_t = t.new_empty(t.shape[1], t.shape[0]) if wanted[1] else None
    _run(coefficients, t, shape, grad.to(t.dtype), by_t, by_coefficients)
    return by_coefficients, None if by_t is None else by_t.t()


def _run(
    coefficients: Tensor,
    t: Tensor,
    shape: tuple[int, ...],
    grad: Tensor | None,
    out: Tensor | None,
    by_coefficients: Tensor | None,
) -> None:
    function = _function()
    assert function is not None  # see `takes`
    coefficients, t, grad = dense(coefficients), t.resolve_neg(), None if grad is None else grad.resolve_neg()
    status = function(
        library.chosen(),
        t.dtype is torch.float64,
        _sizes(shape, coefficients.shape[-1])[1],
        coefficients.data_ptr(),
        t.data_ptr(),
        *t.stride(),
        None if grad is None else grad.data_ptr(),
        *((0, 0) if grad is None else grad.stride()),
        t.shape[1],
        None if out is None else out.data_ptr(),
        None if by_coefficients is None else by_coefficients.data_ptr(),
        torch.get_num_threads(),
    )
    if status:
        raise MemoryError("the compiled kernel found no memory for its buffers")


@functools.cache
def _sizes(shape: tuple[int, ...], observables: int) -> tuple[object, int]:
    """The C function's `sizes`, and their address, valid while the array lives."""
    array = np.array([len(shape), cut(shape), observables, *shape], dtype=np.int32)
    return array, array.ctypes.data
