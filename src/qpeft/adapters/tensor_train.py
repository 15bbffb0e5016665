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
    """`count` factors of `size`, largest first, as equal as its divisors allow (least sum); the published modes where listed."""
    if size < 1 or count < 1:
        raise AdapterError("a size and a number of factors are at least 1", value=(size, count))
    return PUBLISHED_MODES[size] if count == 4 and size in PUBLISHED_MODES else _balanced(size, count)


@functools.lru_cache(maxsize=8192)
def _balanced(size: int, count: int) -> tuple[int, ...]:
    if count == 1:
        return (size,)
    small = [d for d in range(1, math.isqrt(size) + 1) if size % d == 0]
    first = {*small, *(size // d for d in small)}
    options = [tuple(sorted((d, *_balanced(size // d, count - 1)), reverse=True)) for d in first]
    return min(options, key=lambda factors: (sum(factors), factors))


def parameter_count(d_in: int, d_out: int, bond: int, n_cores: int = 4) -> int:
    """Parameters of one tensor-train matrix: `sum_k j_k a_{k+1} a_k i_k` with bond dimensions `1, R, ..., R, 1`."""
    ins, outs = factorise(d_in, n_cores), factorise(d_out, n_cores)
    bonds = (1, *(bond,) * (n_cores - 1), 1)
    return sum(j * bonds[k + 1] * bonds[k] * i for k, (i, j) in enumerate(zip(ins, outs, strict=True)))


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

    @torch.no_grad()
    def initialise(self, gain: float) -> None:
        """Normal entries of variance `gain^2 / (a_k i_k)`: the whole train multiplies variance by `gain^(2 * cores)`."""
        for core in self.cores:
            core.normal_(0.0, gain / math.sqrt(core.shape[2] * core.shape[3]))

    def rows_times(self, rows: Tensor) -> Tensor:
        """`rows @ W` for rows `(p, d_out)`: `(p, d_in)`, without forming W."""
        p = rows.shape[0]
        state = rows.reshape(p, 1, -1)  # (done, bond, remaining outputs)
        for core in self.cores:
            j, b, a, _ = core.shape
            grid = state.reshape(state.shape[0], a, j, -1)
            state = torch.einsum("xajr,jbai->xibr", grid, core).reshape(-1, b, grid.shape[3])
        return state.reshape(p, self.d_in)

    def times_columns(self, columns: Tensor) -> Tensor:
        """`W @ columns` for columns `(d_in, p)`: `(d_out, p)`, without forming W."""
        p = columns.shape[1]
        state = columns.reshape(1, 1, -1)
        for core in self.cores:
            _, b, a, i = core.shape
            grid = state.reshape(state.shape[0], a, i, -1)
            state = torch.einsum("xair,jbai->xjbr", grid, core).reshape(-1, b, grid.shape[3])
        return state.reshape(self.d_out, p)

    def matrix(self) -> Tensor:
        """The dense `(d_out, d_in)` matrix."""
        return self.rows_times(torch.eye(self.d_out, dtype=self.cores[0].dtype, device=self.cores[0].device))
