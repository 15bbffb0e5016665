"""Tensor-train matrices (matrix product operators), the classical half of QTHA."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from qpeft.errors import AdapterError

# Modes published with QTHA (arXiv 2503.12790); every other size is factorised by `factorise`.
PUBLISHED_MODES: dict[int, tuple[int, int, int, int]] = {
    256: (4, 4, 4, 4),
    512: (8, 4, 4, 4),
    1024: (8, 8, 4, 4),
    2048: (8, 8, 8, 4),
    2560: (8, 8, 8, 5),
    3584: (8, 8, 8, 7),
    4096: (8, 8, 8, 8),
    5120: (10, 8, 8, 8),
    18944: (37, 8, 8, 8),
    20480: (40, 8, 8, 8),
    27648: (27, 16, 8, 8),
}


def factorise(size: int, count: int = 4) -> tuple[int, ...]:
    """Modes of a tensor train: `balanced` factors, or the published modes where listed."""
    if size < 1 or count < 1:
        raise AdapterError("a size and a number of factors are at least 1", value=(size, count))
    return PUBLISHED_MODES[size] if count == 4 and size in PUBLISHED_MODES else balanced(size, count)


@functools.lru_cache(maxsize=8192)
def balanced(size: int, count: int) -> tuple[int, ...]:
    """`count` factors of `size`, largest first, of the least sum."""
    if count == 1:
        return (size,)
    small = [d for d in range(1, math.isqrt(size) + 1) if size % d == 0]
    first = {*small, *(size // d for d in small)}
    options = [tuple(sorted((d, *balanced(size // d, count - 1)), reverse=True)) for d in first]
    return min(options, key=lambda factors: (sum(factors), factors))


def parameter_count(d_in: int, d_out: int, bond: int, n_cores: int = 4) -> int:
    """Parameters of one tensor-train matrix: `sum_k j_k a_{k+1} a_k i_k` with bond dimensions `1, R, ..., R, 1`."""
    ins, outs = factorise(d_in, n_cores), factorise(d_out, n_cores)
    bonds = (1, *(bond,) * (n_cores - 1), 1)
    return sum(j * bonds[k + 1] * bonds[k] * i for k, (i, j) in enumerate(zip(ins, outs, strict=True)))


@functools.lru_cache(maxsize=8192)
def contraction_cost(cores: tuple[tuple[int, ...], ...], summed: int, left: int) -> tuple[int, int]:
    """Multiplications per row of contracting cores `(j, a_{k+1}, a_k, i)` from the first on, and from the last back.

    `summed` and `left` are the axes of a core that are summed over and left over: 0 for j, 3 for i.
    """
    sizes, others = [core[summed] for core in cores], [core[left] for core in cores]
    forwards = backwards = 0
    for k, (_, b, a, _) in enumerate(cores):
        work = a * b * sizes[k] * others[k]
        forwards += work * math.prod(others[:k]) * math.prod(sizes[k + 1 :])
        backwards += work * math.prod(sizes[:k]) * math.prod(others[k + 1 :])
    return forwards, backwards


class TensorTrain(nn.Module):
    """A `(d_out, d_in)` matrix as a chain of cores `G_k` of shape `(j_k, a_{k+1}, a_k, i_k)`, bond dimensions `1, R, ..., R, 1`.

    Row-major: `W[j1 j2 .., i1 i2 ..] = sum over bonds of prod_k G_k[j_k, a_{k+1}, a_k, i_k]`.
    """

    def __init__(self, d_in: int, d_out: int, bond: int, n_cores: int = 4) -> None:
        super().__init__()
        ins, outs = factorise(d_in, n_cores), factorise(d_out, n_cores)
        bonds = (1, *(bond,) * (n_cores - 1), 1)
        self.d_in, self.d_out = d_in, d_out
        self.cores = nn.ParameterList(
            nn.Parameter(torch.empty(j, bonds[k + 1], bonds[k], i)) for k, (i, j) in enumerate(zip(ins, outs, strict=True))
        )
        shapes = tuple(tuple(core.shape) for core in self.cores)
        costs = {summed: contraction_cost(shapes, summed, left) for summed, left in ((0, 3), (3, 0))}
        self._from_first = {summed: forwards <= backwards for summed, (forwards, backwards) in costs.items()}

    @torch.no_grad()
    def initialise(self, gain: float) -> None:
        """Normal entries of variance `gain^2 / (a_k i_k)`: the whole train multiplies variance by `gain^(2 * cores)`."""
        for core in self.cores:
            core.normal_(0.0, gain / math.sqrt(core.shape[2] * core.shape[3]))

    def rows_times(self, rows: Tensor) -> Tensor:
        """`rows @ W` for rows `(p, d_out)`: `(p, d_in)`, without forming W."""
        return self._contract(rows, 0, 3)

    def times_columns(self, columns: Tensor) -> Tensor:
        """`W @ columns` for columns `(d_in, p)`: `(d_out, p)`, without forming W."""
        return self._contract(columns.T, 3, 0).T

    def _contract(self, rows: Tensor, summed: int, left: int) -> Tensor:
        """Rows `(p, sizes of one side)` to `(p, sizes of the other)`, a core at a time, from whichever end costs less.

        A step is one product of a core, as a matrix, with the middle axis of the state. From the first core on the state is
        `(p done, bond summed_k, remaining)`, from the last one back `(p remaining, summed_k bond, done)`: no axis ever moves.
        """
        state, outer = rows, rows.shape[0]
        if self._from_first[summed]:
            for core in self.cores:
                _, b, a, _ = core.shape
                matrix = core.permute(left, 1, 2, summed).reshape(core.shape[left] * b, a * core.shape[summed])
                state = _middle(matrix, state.reshape(outer, matrix.shape[1], -1))
                outer *= core.shape[left]
        else:
            outer *= rows.shape[1]
            for core in reversed(self.cores):
                _, b, a, _ = core.shape
                matrix = core.permute(2, left, summed, 1).reshape(a * core.shape[left], core.shape[summed] * b)
                outer //= core.shape[summed]
                state = _middle(matrix, state.reshape(outer, matrix.shape[1], -1))
        return state.reshape(rows.shape[0], -1)

    def matrix(self) -> Tensor:
        """The dense `(d_out, d_in)` matrix."""
        return self.rows_times(torch.eye(self.d_out, dtype=self.cores[0].dtype, device=self.cores[0].device))


def _middle(matrix: Tensor, state: Tensor) -> Tensor:
    """`matrix (m, k)` applied to the middle axis of `state (x, k, y)`: `(x, m, y)`."""
    if state.shape[2] == 1:  # one product instead of x small ones
        return (state.squeeze(2) @ matrix.T).unsqueeze(2)
    return matrix @ state
