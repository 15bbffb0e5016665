"""The compiled kernel's trigonometric polynomials (polynomial.c): what ../polynomial.py does, for CPU tensors."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from qpeft.circuits.simulator.c_engine import library

MOST = 1 << 14  # coefficients: the sums of their gradient stay in cache; above, torch's matrix products are as fast


@functools.cache
def _function() -> Callable[..., int] | None:
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    strided = (pointer, number, number)
    return library.function(
        "qpeft_polynomial",
        *(ctypes.c_int, ctypes.c_int, pointer, pointer, *strided, *strided, number, pointer, pointer, ctypes.c_int),
    )


def supports(coefficients: Tensor, t: Tensor) -> bool:
    """Whether the kernel can run here and takes these tensors."""
    return (
        t.is_cpu
        and t.dtype is coefficients.dtype
        and t.dtype in (torch.float32, torch.float64)
        and coefficients.numel() <= MOST
        and not torch.compiler.is_compiling()
        and library.available()
        and _function() is not None
    )


def values(coefficients: Tensor, t: Tensor, shape: tuple[int, ...], cut: int) -> Tensor:
    """`(K, B)`; arguments as in polynomial.py, `cut` variables in the first half."""
    out = t.new_empty(t.shape[1], coefficients.shape[-1])
    _run(coefficients, t, shape, cut, None, out, None)
    return out.t()


def gradients(
    grad: Tensor, coefficients: Tensor, t: Tensor, shape: tuple[int, ...], cut: int, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """As in polynomial.py."""
    by_coefficients = torch.empty_like(coefficients, memory_format=torch.contiguous_format) if wanted[0] else None
    by_t = t.new_empty(t.shape[1], t.shape[0]) if wanted[1] else None
    _run(coefficients, t, shape, cut, grad.to(t.dtype), by_t, by_coefficients)
    return by_coefficients, None if by_t is None else by_t.t()


def _run(
    coefficients: Tensor,
    t: Tensor,
    shape: tuple[int, ...],
    cut: int,
    grad: Tensor | None,
    out: Tensor | None,
    by_coefficients: Tensor | None,
) -> None:
    function = _function()
    assert function is not None  # see `supports`
    coefficients = coefficients.contiguous()
    status = function(
        library.chosen(),
        t.dtype is torch.float64,
        _sizes(shape, cut, coefficients.shape[-1])[1],
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
def _sizes(shape: tuple[int, ...], cut: int, observables: int) -> tuple[object, int]:
    """The C function's `sizes`, and their address for as long as they are kept."""
    array = np.array([len(shape), cut, observables, *shape], dtype=np.int32)
    return array, array.ctypes.data
