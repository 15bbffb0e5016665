"""Contractions of small tensors, and their gradients, by the compiled kernel (contraction.c), for CPU tensors.

At sizes of a tensor train's cores, torch spends its time on calls and records: one call here does all steps.
"""

from __future__ import annotations

import ctypes
import functools
import math
import struct
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qpeft.circuits.simulator.c_engine import library
from qpeft.circuits.simulator.c_engine.expectations import dense

MOST = 1 << 23  # multiplications on one thread; above, torch's matrix products are as fast
MAX_BUFFERS = 64  # contraction.c
GATHER, MATMUL = 0, 1  # contraction.h
Shape = tuple[int, ...]


class Contraction:
    """A contraction's steps, written once for tensors of given shapes, and then run on any tensors of these shapes.

    Args:
        shapes: shapes of the inputs, which are buffers 0, 1, ..
    """

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.n_inputs, self.sizes = len(shapes), [math.prod(shape) for shape in shapes]
        self.multiplications = 0
        self._steps: list[tuple[int, ...]] = []
        self._tables: list[npt.NDArray[np.int32]] = []
        self._begin = 0

    def permuted(self, buffer: int, shape: Shape, axes: Shape) -> int:
        """The buffer's tensor of that shape with its axes in another order, dense; the buffer itself where nothing moves."""
        table = np.arange(math.prod(shape), dtype=np.int32).reshape(shape).transpose(axes).reshape(-1)
        if np.array_equal(table, np.arange(len(table))):
            return buffer
        self._tables.append(table)
        self._begin += len(table)
        return self._add(len(table), (GATHER, len(self.sizes), buffer, buffer, 0, 0, 0, 0, self._begin - len(table)))

    def matmul(self, a: int, b: int, m: int, n: int, k: int, batch: int = 1) -> int:
        """`out[o] = a b[o]`, shapes `(m, k)` and `(batch, k, n)`."""
        self.multiplications += batch * m * n * k
        return self._add(batch * m * n, (MATMUL, len(self.sizes), a, b, batch, m, n, k, 0))

    def _add(self, size: int, step: tuple[int, ...]) -> int:
        self._steps.append(step)
        self.sizes.append(size)
        return len(self.sizes) - 1

    def finish(self, out_shape: Shape) -> None:
        """Close the contraction: the last step's buffer is the result, of that shape."""
        self.out_shape = out_shape
        head = [self.n_inputs, len(self.sizes), len(self._steps), len(self.sizes) - 1, *self.sizes]
        self.code = np.concatenate([np.asarray(part, dtype=np.int32).reshape(-1) for part in (head, self._steps, *self._tables)])
        self._address = self.code.ctypes.data
        self._pack = (struct.Struct(f"5qd{self.n_inputs}q").pack, struct.Struct(f"5qd{2 * self.n_inputs}q").pack)

    @property
    def fits(self) -> bool:
        """Whether the kernel takes it: not so large that torch is as fast."""
        return bool(self._steps) and len(self.sizes) <= MAX_BUFFERS and self.multiplications <= MOST

    def value(self, inputs: Sequence[Tensor], scale: float = 1.0) -> Tensor:
        """The result times `scale`, of the inputs' dtype, without a record for autograd."""
        inputs = [dense(tensor) for tensor in inputs]
        out = inputs[0].new_empty(self.out_shape)
        self._run(self._pack[0](*self._head(out), out.data_ptr(), 0, scale, *(tensor.data_ptr() for tensor in inputs)))
        return out

    def gradients(self, grad: Tensor, inputs: Sequence[Tensor], scale: float = 1.0) -> list[Tensor]:
        """Gradients of `(grad * value).sum()`, one for every input."""
        grad, inputs = dense(grad), [dense(tensor) for tensor in inputs]
        found = [torch.empty_like(tensor) for tensor in inputs]
        addresses = (tensor.data_ptr() for tensor in (*inputs, *found))
        self._run(self._pack[1](*self._head(grad), 0, grad.data_ptr(), scale, *addresses))
        return found

    def _head(self, like: Tensor) -> tuple[int, int, int]:
        return library.chosen(), like.dtype is torch.float64, self._address

    def _run(self, arguments: bytes) -> None:
        function = _function()
        assert function is not None  # see `available`
        if function(arguments):
            raise MemoryError("the compiled kernel found no memory for its buffers")


def available(tensors: Sequence[Tensor]) -> bool:
    """Whether the kernel runs here on tensors of this device and dtype."""
    dtype = tensors[0].dtype
    if dtype is not torch.float32 and dtype is not torch.float64:
        return False
    return library.available() and _function() is not None and all(t.dtype is dtype and t.is_cpu for t in tensors)


@functools.cache
def _function() -> Callable[..., int] | None:
    return library.function("qpeft_contract", ctypes.c_char_p)
