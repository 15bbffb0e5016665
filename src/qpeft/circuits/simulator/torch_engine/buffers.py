"""Buffers that states go through, step after step, in place: what evolve.py does where autograd does not look.

A product of a block needs its states as `(pre, K, post)`, in real numbers for a real block. Those views, and what an adjoint and a
batched product make of a matrix, are made once; and the calls of torch that take the first chunk of samples through the circuit
are recorded and repeated for the others, on the same memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

Sums: TypeAlias = "dict[tuple[int, tuple[int, ...], torch.dtype], Tensor]"  # by tensor of the evolution; a last chunk may differ


class _Around(NamedTuple):
    """Both buffers around a block: `flat` for products, and for two states the costate's and the conjugate state's part."""

    flat: tuple[Tensor, Tensor]
    lam: tuple[Tensor, Tensor]
    psi: tuple[Tensor, Tensor]


class StateBuffers:
    """One state, or a state and its costate, `(count, D, B)` complex; `states` is where they are now."""

    def __init__(self, n: int, states: Tensor, spare: Tensor | None = None) -> None:
        """Takes `states` over as the first buffer."""
        self.factors: list[Tensor] = []  # of the uploads, `(D, B or 1)`
        self.collected: list[Tensor] = []  # their gradients, `(D, B)`
        self._sum = states.new_empty(states.shape[1])
        self._tapes: dict[str, tuple[list[Callable[[], object]], int]] = {}  # calls, and the buffer that they end in
        self._tape: list[Callable[[], object]] | None = None
        self.n, self.batch = n, states.shape[-1]
        self._buffers = (states, torch.empty_like(states) if spare is None else spare)
        self._now = 0
        self._views: dict[tuple[tuple[int, ...], bool, int], _Around] = {}
        self._made_of: dict[tuple[int, bool, int], tuple[Tensor, Tensor]] = {}  # with the tensor, so that its id stays its own

    @property
    def states(self) -> Tensor:
        """The buffer that holds the current states, `(count, D, B)` complex."""
        return self._buffers[self._now]

    def call(self, function: Callable[..., object], *arguments: Any, **named: Any) -> None:
        """A call that writes to memory of these buffers or of its sums, recorded where `repeat` records."""
        if self._tape is not None:
            self._tape.append(functools.partial(function, *arguments, **named))
        function(*arguments, **named)

    def repeat(self, name: str, steps: Callable[[], None]) -> None:
        """Run steps, and record their calls. The next time the recorded calls run, on other states in the same buffer.

        Args:
            name: name of the record.
            steps: runs the steps by the methods of these buffers.
        """
        if name in self._tapes:
            calls, self._now = self._tapes[name]
            for call in calls:
                call()
            return
        self._tape = []
        steps()
        self._tapes[name] = self._tape, self._now
        self._tape = None

    def reset(self) -> Tensor:
        """The first buffer's states, which are now the states."""
        self._now = 0
        return self.states

    @property
    def spare(self) -> Tensor:
        """The buffer that `states` are not in."""
        return self._buffers[1 - self._now]

    def fit(self, batch: int) -> StateBuffers | None:
        """Buffers for so many samples in the same memory, if they fit."""
        if batch >= self.batch:
            return self if batch == self.batch else None
        count, amplitudes = self._buffers[0].shape[:2]
        first, spare = (b.flatten()[: count * amplitudes * batch].view(count, amplitudes, batch) for b in self._buffers)
        return StateBuffers(self.n, first, spare)

    def adjoint(self, tensor: Tensor) -> Tensor:
        """The adjoint of a matrix; of a column of phases, which are diagonal, the conjugate."""
        return self._made(tensor, True, 0)

    def _made(self, tensor: Tensor, adjoint: bool, copies: int) -> Tensor:
        key = (id(tensor), adjoint, copies)
        if key not in self._made_of:
            made = tensor
            if adjoint:
                made = (tensor.conj() if tensor.shape[1] == 1 else tensor.mH).resolve_conj()
            self._made_of[key] = (tensor, made.expand(copies, -1, -1) if copies else made)
        return self._made_of[key][1]

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

    def apply_block(self, matrix: Tensor, qubits: tuple[int, ...], count: int, *, adjoint: bool = False) -> None:
        """Apply a matrix to neighbouring qubits.

        Args:
            matrix: `(K, K)`.
            qubits: neighbouring qubits, ascending.
            count: number of states it is applied to, from the first on; the others are lost.
            adjoint: apply the matrix's adjoint.
        """
        flat = self._around(qubits, not matrix.is_complex(), count).flat
        source, target = flat[self._now], flat[1 - self._now]
        if source.dim() == 3:
            self.call(torch.bmm, self._made(matrix, adjoint, source.shape[0]), source, out=target)
        elif self.batch == 1 and qubits[-1] == self.n - 1:  # amplitudes last
            self.call(torch.mm, source, self._made(matrix, adjoint, 0).t().to(source.dtype), out=target)
        else:
            self.call(torch.mm, self._made(matrix, adjoint, 0), source, out=target)
        self._now = 1 - self._now

    def correlate(self, sums: Sums, place: int, real: bool, qubits: tuple[int, ...]) -> None:
        """Add `lam psi^dagger` to a sum, `(K, K)` or several: the costate before the last `apply_block` and the state after it.

        Complex where the amplitudes are last, for a real matrix too.

        Args:
            sums: sums of all steps so far; a missing one starts at zero.
            place: index of the block's matrix among the evolution's tensors.
            real: whether the block's matrix is real.
            qubits: the block's qubits, ascending.
        """
        around = self._around(qubits, real, 2)
        lam, psi = around.lam[1 - self._now], around.psi[self._now]
        if lam.dim() == 2 and self.batch == 1 and qubits[-1] == self.n - 1:
            lam = lam.t()
        total = _total(sums, place, (*lam.shape[:-1], psi.shape[-1]), lam)
        self.call(torch.baddbmm if lam.dim() == 3 else torch.addmm, total, lam, psi, out=total)

    def add_up(self, sums: Sums, place: int, product: Tensor) -> None:
        """Add `product (D, B)`, summed over samples, to a sum `(D,)`.

        Args:
            sums: sums of all steps so far; a missing one starts at zero.
            place: index of the phase among the evolution's tensors.
            product: `lam conj(psi)`, `(D, B)`.
        """
        total = _total(sums, place, product.shape[:1], product)
        self.call(torch.sum, product, 1, out=self._sum)
        self.call(total.add_, self._sum)

    def permute(self, index: Tensor, count: int) -> None:
        """Permute the basis states of the first states: `new[b] = old[index[b]]`.

        Args:
            index: `(D,)`.
            count: number of states, from the first on.
        """
        self.call(torch.index_select, self.states[:count], 1, index, out=self.spare[:count])
        self._now = 1 - self._now

    def multiply(self, factor: Tensor, count: int) -> None:
        """Multiply the first states by phases.

        Args:
            factor: `(D, B)` or `(D, 1)`.
            count: number of states, from the first on.
        """
        self.call(self.states[:count].mul_, factor)

    def product(self) -> Tensor:
        """`lam conj(psi)`, where the next `apply_block` or `permute` writes."""
        both, out = self.states, self.spare[0]
        self.call(torch.conj_physical, both[0], out=out)
        self.call(out.mul_, both[1])
        return out


def _total(sums: Sums, place: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
    key = (place, shape, like.dtype)
    if key not in sums:
        sums[key] = like.new_zeros(shape)
    return sums[key]
