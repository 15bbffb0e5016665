"""Buffers that states go through, step after step, in place: what evolve.py does where autograd does not look.

A product of a block needs its states as `(pre, K, post)`, in real numbers for a real block. Those views are made once for two
buffers between which products alternate, so that a step is one call.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Register:
    """One state, or a state and its costate, `(count, D, B)` complex; `states` is where they are now."""

    def __init__(self, n: int, states: Tensor) -> None:
        """Takes `states` over as the first buffer."""
        self.n, self.batch = n, states.shape[-1]
        self._buffers = (states, torch.empty_like(states))
        self._now = 0
        self._views: dict[tuple[tuple[int, ...], bool, int], tuple[Tensor, Tensor]] = {}
        self._product: Tensor | None = None

    @property
    def states(self) -> Tensor:
        return self._buffers[self._now]

    def _pair(self, qubits: tuple[int, ...], real: bool, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` states of both buffers around a block."""
        key = (qubits, real, count)
        if key not in self._views:
            size, after = 2 ** len(qubits), 2 ** (self.n - 1 - qubits[-1]) * self.batch
            found = []
            for buffer in self._buffers:
                own = buffer[:count]
                view = own.view(-1, size) if after == 1 else own.view(-1, size, after)
                found.append(torch.view_as_real(view).flatten(-2) if real and after > 1 else view)
            self._views[key] = (found[0], found[1])
        return self._views[key]

    def turn(self, matrix: Tensor, qubits: tuple[int, ...], count: int) -> None:
        """A `(K, K)` matrix on neighbouring qubits of the first `count` states; the others are lost."""
        pair = self._pair(qubits, not matrix.is_complex(), count)
        source, target = pair[self._now], pair[1 - self._now]
        if source.dim() == 2:  # one sample, and the block's amplitudes are the last axis
            torch.mm(source, matrix.t().to(source.dtype), out=target)
        elif source.shape[0] == 1:
            torch.mm(matrix, source[0], out=target[0])
        else:
            torch.bmm(matrix.expand(source.shape[0], -1, -1), source, out=target)
        self._now = 1 - self._now

    def correlation(self, real: bool, qubits: tuple[int, ...]) -> Tensor:
        """`lam psi^dagger`, lam the costate before the last `turn` and psi the state after it, `(K, K)`."""
        pair = self._pair(qubits, real, 2)
        lam, psi = pair[1 - self._now].chunk(2)[1], pair[self._now].chunk(2)[0]
        if lam.dim() == 2:
            out = lam.t() @ psi.conj()
            return out.real if real else out
        return lam[0] @ psi[0].mH if lam.shape[0] == 1 else torch.bmm(lam, psi.mH).sum(0)

    def shuffle(self, index: Tensor, count: int) -> None:
        """Permute basis states: `new[b] = old[index[b]]`."""
        torch.index_select(self.states[:count], 1, index, out=self._buffers[1 - self._now][:count])
        self._now = 1 - self._now

    def product(self) -> Tensor:
        """`lam conj(psi)`, in a buffer that the next call overwrites."""
        both = self.states
        self._product = torch.mul(both[1], both[0].conj(), out=self._product)
        return self._product
