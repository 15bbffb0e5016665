"""Buffers that states go through, step after step, in place: what evolve.py does where autograd does not look.

A product of a block needs its states as `(pre, K, post)`, in real numbers for a real block. Those views, and what an adjoint and a
batched product make of a matrix, are made once for all samples' chunks: with small chunks they cost as much as the arithmetic.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class _Around(NamedTuple):
    """Both buffers around a block: `flat` for products, and for two states the costate's and the conjugate state's part."""

    flat: tuple[Tensor, Tensor]
    lam: tuple[Tensor, Tensor]
    psi: tuple[Tensor, Tensor]


class Register:
    """One state, or a state and its costate, `(count, D, B)` complex; `states` is where they are now."""

    def __init__(self, n: int, states: Tensor, spare: Tensor | None = None) -> None:
        """Takes `states` over as the first buffer."""
        self.n, self.batch = n, states.shape[-1]
        self._buffers = (states, torch.empty_like(states) if spare is None else spare)
        self._now = 0
        self._views: dict[tuple[tuple[int, ...], bool, int], _Around] = {}
        self._kept: dict[tuple[int, bool, int], tuple[Tensor, Tensor]] = {}  # with the tensor, so that its id stays its own

    @property
    def states(self) -> Tensor:
        return self._buffers[self._now]

    def fit(self, batch: int) -> Register | None:
        """A register for so many samples in the same memory, if they fit."""
        if batch >= self.batch:
            return self if batch == self.batch else None
        count, amplitudes = self._buffers[0].shape[:2]
        first, spare = (b.flatten()[: count * amplitudes * batch].view(count, amplitudes, batch) for b in self._buffers)
        return Register(self.n, first, spare)

    def adjoint(self, tensor: Tensor) -> Tensor:
        """The adjoint of a matrix; of a column of phases, which are diagonal, the conjugate."""
        return self._made(tensor, True, 0)

    def _made(self, tensor: Tensor, adjoint: bool, copies: int) -> Tensor:
        key = (id(tensor), adjoint, copies)
        if key not in self._kept:
            made = tensor
            if adjoint:
                made = (tensor.conj() if tensor.shape[1] == 1 else tensor.mH).resolve_conj()
            self._kept[key] = (tensor, made.expand(copies, -1, -1) if copies else made)
        return self._kept[key][1]

    def _around(self, qubits: tuple[int, ...], real: bool, count: int) -> _Around:
        """The first `count` states of both buffers around a block: one is `(K, post)`, and of one sample amplitudes are last."""
        key = (qubits, real, count)
        found = self._views.get(key)
        if found is None:
            size, after = 2 ** len(qubits), 2 ** (self.n - 1 - qubits[-1]) * self.batch
            flat, lam, psi = [], [], []
            for buffer in self._buffers:
                own = buffer[:count]
                view = own.view(-1, size) if after == 1 else own.view(-1, size, after)
                view = torch.view_as_real(view).flatten(-2) if real and after > 1 else view
                state, costate = view.tensor_split(2) if count == 2 else (view, view)
                if view.dim() == 3 and state.shape[0] == 1:
                    state, costate = state[0], costate[0]
                flat.append(view[0] if view.dim() == 3 and view.shape[0] == 1 else view)
                lam.append(costate)
                psi.append(state.conj() if view.dim() == 2 else state.mH)
            found = self._views[key] = _Around((flat[0], flat[1]), (lam[0], lam[1]), (psi[0], psi[1]))
        return found

    def turn(self, matrix: Tensor, qubits: tuple[int, ...], count: int, *, adjoint: bool = False) -> None:
        """A `(K, K)` matrix on neighbouring qubits of the first `count` states; the others are lost."""
        flat = self._around(qubits, not matrix.is_complex(), count).flat
        source, target = flat[self._now], flat[1 - self._now]
        if source.dim() == 3:
            torch.bmm(self._made(matrix, adjoint, source.shape[0]), source, out=target)
        elif self.batch == 1 and qubits[-1] == self.n - 1:  # amplitudes last
            torch.mm(source, self._made(matrix, adjoint, 0).t().to(source.dtype), out=target)
        else:
            torch.mm(self._made(matrix, adjoint, 0), source, out=target)
        self._now = 1 - self._now

    def correlation(self, real: bool, qubits: tuple[int, ...]) -> Tensor:
        """`lam psi^dagger`, lam the costate before the last `turn` and psi the state after it, `(K, K)`."""
        around = self._around(qubits, real, 2)
        lam, psi = around.lam[1 - self._now], around.psi[self._now]
        if lam.dim() == 3:
            return torch.bmm(lam, psi).sum(0)
        if self.batch == 1 and qubits[-1] == self.n - 1:
            out = lam.t() @ psi
            return out.real if real else out
        return lam @ psi

    def shuffle(self, index: Tensor, count: int) -> None:
        """Permute basis states: `new[b] = old[index[b]]`."""
        torch.index_select(self.states[:count], 1, index, out=self._buffers[1 - self._now][:count])
        self._now = 1 - self._now

    def product(self) -> Tensor:
        """`lam conj(psi)`, where the next `turn` or `shuffle` writes."""
        both = self.states
        return torch.conj_physical(both[0], out=self._buffers[1 - self._now][0]).mul_(both[1])
