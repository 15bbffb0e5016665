"""Trigonometric polynomials of many samples: values and gradients by hand, in about a dozen torch calls and two dozen.

    z_k(t) = sum_m c[m, k] prod_q phi_{m_q}(t_q),    phi = 1, cos t, sin t, cos 2t, sin 2t, ..

The basis functions of the first variables and of the last ones multiply out to two halves `a (L, B)` and `b (R, B)`, and
`z_k = a^T C_k b`: one matrix product for all samples and one sum of products. Variables are `t (n, B)`, samples last; coefficients
are `(*shape, K)`, where `shape[q]`, odd, counts the basis functions of variable q. Samples pass in chunks that stay in cache.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

CHUNK_BYTES = 1 << 19  # of one buffer (R, K, B); a backward pass holds about three


def values(coefficients: Tensor, t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """See `engine.Polynomials.values`."""
    matrix = _matrix(coefficients, shape)
    out = t.new_empty(coefficients.shape[-1], t.shape[1])
    for part in _chunks(t, matrix):
        _, left, right = _halves(t[:, part], shape)
        rows = torch.mm(matrix.t(), left).view(len(right), len(out), left.shape[1])  # C^T a, (R, K, B)
        torch.sum(rows.mul_(right[:, None]), 0, out=out[:, part])
    return out


def gradients(
    grad: Tensor,
    coefficients: Tensor,
    t: Tensor,
    shape: tuple[int, ...],
    *,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """See `engine.Polynomials.gradients`."""
    matrix, k, grad = _matrix(coefficients, shape), coefficients.shape[-1], grad.contiguous()
    by_matrix: Tensor | None = None
    slopes: list[Tensor] = []
    for part in _chunks(t, matrix):
        groups, left, right = _halves(t[:, part], shape)
        own = grad[:, part]
        by_rows = (right[:, None] * own).view(len(right) * k, own.shape[1])  # (R K, B)
        if wanted[0]:
            by_matrix = torch.mm(left, by_rows.t()) if by_matrix is None else by_matrix.addmm_(left, by_rows.t())
        if wanted[1]:
            by_halves = t.new_empty(len(left) + len(right), own.shape[1])
            torch.mm(matrix, by_rows, out=by_halves[: len(left)])
            rows = torch.mm(matrix.t(), left, out=by_rows).view(len(right), k, own.shape[1])
            torch.sum(rows.mul_(own), 1, out=by_halves[len(left) :])
            if len(groups) == 1:
                slopes.append(groups[0].slopes(by_halves.view(2, len(left), own.shape[1])))
            else:
                parts = torch.split(by_halves, [len(left), len(right)])
                slopes.append(torch.cat([group.slopes(p[None]) for group, p in zip(groups, parts, strict=True)]))
    by_t = None if not slopes else slopes[0] if len(slopes) == 1 else torch.cat(slopes, 1)
    return None if by_matrix is None else by_matrix.view(coefficients.shape), by_t


def _matrix(coefficients: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Coefficients as a matrix `(L, R K)`."""
    return coefficients.reshape(math.prod(shape[: cut(shape)]), -1)


def _chunks(t: Tensor, matrix: Tensor) -> Sequence[slice]:
    """Chunks of equal size."""
    batch, count = t.shape[1], 1
    if t.device.type == "cpu":
        count = -(-batch * matrix.shape[1] * matrix.element_size() // CHUNK_BYTES) or 1
    if count == 1:
        return (slice(0, batch),)
    size = max(32, -(-batch // count))
    return [slice(first, first + size) for first in range(0, batch, size)]


class _Group:
    """Variables `(copies * len(shape), B)`, one half or two halves of one shape: their basis and its products."""

    def __init__(self, t: Tensor, copies: int, shape: tuple[int, ...]) -> None:
        self.copies, self.shape, batch = copies, shape, t.shape[1]
        self.degree = max(shape, default=1) // 2
        flat = t.new_empty(len(t), 2 * self.degree + 1, batch)
        flat[:, 0] = 1
        self.cosines, self.sines = flat[:, 1::2], flat[:, 2::2]
        if self.degree:
            phases = t[:, None] if self.degree == 1 else t[:, None] * _orders(self.degree, t.device, t.dtype)[:, None]
            torch.cos(phases, out=self.cosines)
            torch.sin(phases, out=self.sines)
        self.basis = flat.view(copies, len(shape), 2 * self.degree + 1, batch)  # 1, cos, sin, cos 2., ..
        self.products = [self.basis[:, q, :count] for q, count in enumerate(shape[:1])]  # of the first 1, 2, .. variables
        for q, count in enumerate(shape[1:], 1):
            product = self.products[-1][:, :, None] * self.basis[:, q, None, :count]
            self.products.append(product.flatten(1, 2))
        if not shape:
            self.products.append(t.new_ones(copies, 1, batch))

    def slopes(self, by_product: Tensor) -> Tensor:
        """Gradient of the variables from that of the last product `(copies, prod of shape, B)`."""
        batch = by_product.shape[-1]
        if not self.shape:
            return by_product.new_empty(0, batch)
        even = min(self.shape) == max(self.shape)
        by_basis = (torch.empty_like if even else torch.zeros_like)(self.basis)
        for q in range(len(self.shape) - 1, 0, -1):  # the product's last factor first
            count = self.shape[q]
            pairs = by_product.view(len(by_product), by_product.shape[1] // count, count, batch)
            torch.sum(pairs * self.products[q - 1][:, :, None], 1, out=by_basis[:, q, :count])
            by_product = (pairs * self.basis[:, q, None, :count]).sum(2)
        by_basis[:, 0, : self.shape[0]] = by_product
        flat = by_basis.flatten(0, 1)
        out = torch.addcmul(self.cosines * flat[:, 2::2], self.sines, flat[:, 1::2], value=-1)  # (variables, degree, B)
        return out[:, 0] if self.degree == 1 else _orders(self.degree, out.device, out.dtype) @ out


Halves: TypeAlias = tuple[list[_Group], Tensor, Tensor]


def _halves(t: Tensor, shape: tuple[int, ...]) -> Halves:
    """The groups that the variables fall into, and the halves `a (L, B)` and `b (R, B)`."""
    k = cut(shape)
    if shape[:k] == shape[k:]:
        both = _Group(t, 2, shape[:k])
        left, right = both.products[-1].unbind(0)
        return [both], left, right
    groups = [_Group(t[:k], 1, shape[:k]), _Group(t[k:], 1, shape[k:])]
    return groups, groups[0].products[-1][0], groups[1].products[-1][0]


@functools.cache
def cut(shape: tuple[int, ...]) -> int:
    """How many variables go to the first half: the split whose halves are closest in size."""
    return min(range(len(shape) + 1), key=lambda k: math.prod(shape[:k]) + math.prod(shape[k:]))


@functools.lru_cache(maxsize=64)
def _orders(degree: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.arange(1, degree + 1, device=device, dtype=dtype)
