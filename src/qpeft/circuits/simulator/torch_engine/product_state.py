"""Product states `(D, B)` from the amplitudes of their qubits `(n, 2, B)`, samples last.

A state is the Kronecker product of its qubits' amplitudes, qubit 0 first. It is made by halves: the left one `(L, B)` and the right
one `(R, B)`, `L R = D = 2^n`, are small and made by plain torch, and only their product is as large as a state.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

Halves: TypeAlias = "tuple[Tensor, Tensor]"


def kron(x: Tensor) -> Tensor:
    """Products along the second axis: `(m, k, d, B) -> (m, d^k, B)`."""
    m, k, _, batch = x.shape
    if k == 1:
        return x[:, 0]
    if k % 2:
        return (kron(x[:, :-1]).unsqueeze(2) * x[:, -1:]).view(m, -1, batch)
    return kron(_joined(x))


def _joined(x: Tensor) -> Tensor:
    """Neighbours multiplied: `(m, k, d, B) -> (m, k / 2, d^2, B)`."""
    m, k, d, batch = x.shape
    left, right = x.view(m, k // 2, 2, d, batch).unbind(2)
    return (left.unsqueeze(3) * right.unsqueeze(2)).view(m, k // 2, d * d, batch)


def halves(qubits: Tensor) -> Halves:
    """The two halves of a product state of qubits `(n, 2, B)`."""
    n = len(qubits)
    if n % 2 == 0:  # both at once
        left, right = kron(qubits.view(2, n // 2, 2, -1)).unbind(0)
        return left, right
    left = kron(qubits[None, : n // 2])[0] if n > 1 else torch.ones_like(qubits[0, :1])
    return left, kron(qubits[None, n // 2 :])[0]


def state(pair: Halves) -> Tensor:
    """The product state, differentiable by autograd."""
    left, right = pair
    return (left[:, None] * right).flatten(0, 1)


def write(pair: Halves, out: Tensor) -> None:
    """Write the product of two halves to a state.

    Args:
        pair: the halves `(L, B or 1)` and `(R, B)`, complex.
        out: `(L R, B)`, overwritten.
    """
    left, right = pair
    torch.mul(left.expand(-1, out.shape[1])[:, None], right, out=out.view(left.shape[0], right.shape[0], out.shape[1]))


def gather(grad: Tensor, pair: Halves, workspace: Tensor) -> Halves:
    """The gradients of the halves, per sample or common to all, from the gradient of their state.

    Torch's convention: of `z = x y` they are `conj(y) grad` and `conj(x) grad`.

    Args:
        grad: gradient of the state, `(D, B)`.
        pair: the halves.
        workspace: memory as large as a state, overwritten.
    """
    left, right = pair
    each = grad.view(left.shape[0], right.shape[0], -1)
    space = workspace.view(each.shape)
    of_left = torch.mul(each, right.conj(), out=space).sum(1).sum_to_size(left.shape)
    return of_left, torch.mul(each, left.conj()[:, None], out=space).sum(0).sum_to_size(right.shape)
