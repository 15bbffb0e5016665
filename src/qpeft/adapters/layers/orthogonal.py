"""Orthogonal matrices from free numbers, in float32 or float64, also under autocast.

Angles at zero give the identity to the bit, so that adapters built on them start as exact no-ops.
"""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float64 if it is, else in float32: lower precisions do not survive long products of rotations."""
    return x if x.dtype == torch.float64 else x.float()


def skew(entries: Tensor, n: int) -> Tensor:
    """`A = B - B^T` `(..., n, n)` from the strict lower triangle of B, `(..., n(n-1)/2)`, row by row.

    In this order the first m(m-1)/2 entries fill the leading m x m block, and zeros after them leave the rest empty.
    """
    rows, columns = torch.tril_indices(n, n, -1, device=entries.device)
    empty = torch.zeros(*entries.shape[:-1], n * n, dtype=entries.dtype, device=entries.device)
    lower: Tensor = empty.index_copy(-1, rows * n + columns, entries).reshape(*entries.shape[:-1], n, n)
    return lower - lower.transpose(-1, -2)


def cayley(a: Tensor) -> Tensor:
    """`(I - A)(I + A)^-1 - I = -2 (I + A)^-1 A` for skew-symmetric `A (..., n, n)`: what the Cayley transform adds to I."""
    with torch.autocast(a.device.type, enabled=False):
        a = at_least_float32(a)
        solved: Tensor = torch.linalg.solve(torch.eye(a.shape[-1], dtype=a.dtype, device=a.device) + a, a)
        return -2.0 * solved


def givens_schedule(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rounds of disjoint pairs in which every two of n axes meet once (the circle method of tournaments).

    Returns tensors `(rounds, n)`: an axis's partner in a round, the number `j(j-1)/2 + i` of their pair i < j, and the sign of
    the sine, -1 for i and +1 for j; an axis without a partner has itself, number 0 and sign 0.
    """
    size = n + n % 2
    ring, partners, numbers, signs = list(range(size)), list[list[int]](), list[list[int]](), list[list[int]]()
    for _ in range(size - 1):
        partner, number, sign = list(range(n)), [0] * n, [0] * n
        for i, j in zip(ring[: size // 2], reversed(ring[size // 2 :]), strict=True):
            low, high = min(i, j), max(i, j)
            if high < n:
                partner[low], partner[high] = high, low
                number[low] = number[high] = high * (high - 1) // 2 + low
                sign[low], sign[high] = -1, 1
        partners.append(partner)
        numbers.append(number)
        signs.append(sign)
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return torch.tensor(partners), torch.tensor(numbers), torch.tensor(signs)


def givens(angles: Tensor, partners: Tensor, numbers: Tensor, signs: Tensor) -> Tensor:
    """A rotation `(..., n, n)` as a product of Givens rotations, one for each pair of axes.

    The first round of `givens_schedule` acts first. With i < j, angle `j(j-1)/2 + i` rotates axes i and j:
    `a_i <- cos a_i - sin a_j`, `a_j <- sin a_i + cos a_j`. Around zero the angles are independent directions, which
    nearest-neighbour meshes of as many rotations lack.

    Args:
        angles: `(..., n(n-1)/2)`, radians, n at least 2.
        partners: `(rounds, n)`, the partner of each axis, from `givens_schedule`.
        numbers: `(rounds, n)`, the index of each pair's angle.
        signs: `(rounds, n)`, the sign of each axis's sine.

    Returns:
        Float64 for float64 angles, else float32.
    """
    with torch.autocast(angles.device.type, enabled=False):
        angles = at_least_float32(angles)
        n = signs.shape[1]
        signed = signs * angles[..., numbers]  # zero for an axis without a partner
        cosines, sines = torch.cos(signed).unsqueeze(-1), torch.sin(signed).unsqueeze(-1)
        a = torch.eye(n, dtype=angles.dtype, device=angles.device).expand(*angles.shape[:-1], n, n)
        for k, partner in enumerate(partners):
            a = cosines[..., k, :, :] * a + sines[..., k, :, :] * a[..., partner, :]
        return a
