# mypy: ignore-errors
"""The simulator for accelerators in Triton: a block of samples goes through the circuit, and back, without leaving its program.

A circuit comes as tables (tables.py). Every stage is, on amplitudes `psi_j` of every sample,

    psi_j <- exp(i sum_q rates[j, q] u_q) psi_j            where data enters, then
    psi_j <- stay[j] psi_j + move[j] psi_{partner[j]}

which a gate on one qubit, any diagonal gate and any permutation are. The adjoint pass undoes state and costate side by side and
sums, for each table entry, its gradient over the samples: each program over its own samples, in a fixed order, so results do not
depend on timing. Import this module only where Triton is installed: `tables.available`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

AMPLITUDES = 2048  # of a block: 2^n times its samples
PROGRAMS = 1024  # at most, each with partial sums of its own


@triton.jit
def _take(x, index):
    return tl.gather(x, tl.broadcast_to(index[:, None], x.shape), 0)


@triton.jit
def _rotate(re, im, rates, row, u, rows, live, sign, N_INPUTS, D: tl.constexpr, BLOCK: tl.constexpr):
    """The data phases of table row `row`, or with sign -1 their inverse."""
    j = tl.arange(0, D)
    angle = tl.zeros((D, BLOCK), dtype=re.dtype)
    for q in range(N_INPUTS):
        value = tl.load(u + rows * N_INPUTS + q, mask=live, other=0.0)
        angle += tl.load(rates + (row * D + j) * N_INPUTS + q)[:, None] * value[None, :]
    c, s = tl.cos(angle), sign * tl.sin(angle)
    return c * re - s * im, s * re + c * im


@triton.jit
def _forward(re, im, stage, table, partner, D: tl.constexpr):
    j = tl.arange(0, D)
    at = table + 4 * (stage * D + j)
    a, b, c, d = tl.load(at)[:, None], tl.load(at + 1)[:, None], tl.load(at + 2)[:, None], tl.load(at + 3)[:, None]
    index = tl.load(partner + stage * D + j)
    p_re, p_im = _take(re, index), _take(im, index)
    return a * re - b * im + c * p_re - d * p_im, a * im + b * re + c * p_im + d * p_re


@triton.jit
def _undo(re, im, stage, table, back, D: tl.constexpr):
    """The adjoint of `_forward`; `back` is the inverse of the partners."""
    j = tl.arange(0, D)
    at = table + 4 * (stage * D + j)
    a, b = tl.load(at)[:, None], tl.load(at + 1)[:, None]
    index = tl.load(back + stage * D + j)
    moved = table + 4 * (stage * D + index)
    c, d = tl.load(moved + 2)[:, None], tl.load(moved + 3)[:, None]
    p_re, p_im = _take(re, index), _take(im, index)
    return a * re + b * im + c * p_re + d * p_im, a * im - b * re + c * p_im - d * p_re


@triton.jit
def _evolve(u, rows, live, table, partner, data, rates, N_STAGES, N_INPUTS, D: tl.constexpr, BLOCK: tl.constexpr):
    dtype = table.dtype.element_ty
    ground = tl.where(tl.arange(0, D)[:, None] == 0, 1.0, 0.0)
    re = tl.broadcast_to(ground, (D, BLOCK)).to(dtype)
    im = tl.zeros((D, BLOCK), dtype=dtype)
    for stage in range(N_STAGES):
        row = tl.load(data + stage)
        if row >= 0:
            re, im = _rotate(re, im, rates, row, u, rows, live, 1.0, N_INPUTS, D, BLOCK)
        re, im = _forward(re, im, stage, table, partner, D)
    return re, im


@triton.jit
def _values(
    u, table, partner, data, rates, flip, weights, out,
    B, N_STAGES, N_INPUTS, N_FLIPS, K, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = rows < B
    j = tl.arange(0, D)
    re, im = _evolve(u, rows, live, table, partner, data, rates, N_STAGES, N_INPUTS, D, BLOCK)
    for k in range(K):
        total = tl.zeros((BLOCK,), dtype=re.dtype)
        for f in range(N_FLIPS):
            index = tl.load(flip + f * D + j)
            p_re, p_im = _take(re, index), _take(im, index)
            at = weights + 2 * ((f * K + k) * D + j)
            w_re, w_im = tl.load(at)[:, None], tl.load(at + 1)[:, None]
            total += tl.sum(w_re * (re * p_re + im * p_im) - w_im * (re * p_im - im * p_re), axis=0)
        tl.store(out + rows * K + k, total, mask=live)


@triton.jit
def _gradients(
    grad, u, table, partner, back, data, rates, flip, weights, by_u, by_table,
    B, N_STAGES, N_INPUTS, N_FLIPS, K, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    j = tl.arange(0, D)
    program = tl.program_id(0)
    for block in range(program, tl.cdiv(B, BLOCK), tl.num_programs(0)):
        rows = block * BLOCK + tl.arange(0, BLOCK)
        live = rows < B
        re, im = _evolve(u, rows, live, table, partner, data, rates, N_STAGES, N_INPUTS, D, BLOCK)
        l_re = tl.zeros((D, BLOCK), dtype=re.dtype)
        l_im = tl.zeros((D, BLOCK), dtype=re.dtype)
        for f in range(N_FLIPS):
            index = tl.load(flip + f * D + j)
            p_re, p_im = _take(re, index), _take(im, index)
            for k in range(K):
                own = 2.0 * tl.load(grad + rows * K + k, mask=live, other=0.0)[None, :]
                at = weights + 2 * ((f * K + k) * D + j)
                w_re, w_im = tl.load(at)[:, None], tl.load(at + 1)[:, None]
                l_re += own * (w_re * p_re - w_im * p_im)
                l_im += own * (w_re * p_im + w_im * p_re)
        for step in range(N_STAGES):
            stage = N_STAGES - 1 - step
            re, im = _undo(re, im, stage, table, back, D)
            index = tl.load(partner + stage * D + j)
            p_re, p_im = _take(re, index), _take(im, index)
            to = by_table + 4 * ((program * N_STAGES + stage) * D + j)
            tl.store(to, tl.load(to) + tl.sum(l_re * re + l_im * im, axis=1))
            tl.store(to + 1, tl.load(to + 1) + tl.sum(l_im * re - l_re * im, axis=1))
            tl.store(to + 2, tl.load(to + 2) + tl.sum(l_re * p_re + l_im * p_im, axis=1))
            tl.store(to + 3, tl.load(to + 3) + tl.sum(l_im * p_re - l_re * p_im, axis=1))
            l_re, l_im = _undo(l_re, l_im, stage, table, back, D)
            tl.debug_barrier()  # the next block adds to what this one stored
            row = tl.load(data + stage)
            if row >= 0:
                slope = l_im * re - l_re * im
                for q in range(N_INPUTS):
                    rate = tl.load(rates + (row * D + j) * N_INPUTS + q)[:, None]
                    at = by_u + rows * N_INPUTS + q
                    tl.store(at, tl.load(at, mask=live, other=0.0) + tl.sum(slope * rate, axis=0), mask=live)
                tl.debug_barrier()
                re, im = _rotate(re, im, rates, row, u, rows, live, -1.0, N_INPUTS, D, BLOCK)
                l_re, l_im = _rotate(l_re, l_im, rates, row, u, rows, live, -1.0, N_INPUTS, D, BLOCK)


def _sizes(inputs: Tensor, table: Tensor, weights: Tensor) -> tuple[int, ...]:
    stages, amplitudes = table.shape[:2]
    block = max(1, min(128, AMPLITUDES // amplitudes))
    return len(inputs), stages, inputs.shape[1], weights.shape[0], weights.shape[1], amplitudes, block


def values(inputs: Tensor, table: Tensor, fixed: dict[str, Tensor]) -> Tensor:
    """Expectation values `(B, K)` from inputs `(B, n_inputs)` and a table `(stages, D, 4)`: stay and move, real and imaginary."""
    sizes = _sizes(inputs, table, fixed["weights"])
    out = inputs.new_empty(sizes[0], sizes[4])
    if sizes[0]:
        names = ("partner", "data", "rates", "flip", "weights")
        _values[(triton.cdiv(sizes[0], sizes[-1]),)](inputs, table, *(fixed[name] for name in names), out, *sizes)
    return out


def gradients(grad: Tensor, inputs: Tensor, table: Tensor, fixed: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Gradients of `(grad * values).sum()` for inputs and table."""
    sizes = _sizes(inputs, table, fixed["weights"])
    programs = min(PROGRAMS, max(1, triton.cdiv(sizes[0], sizes[-1])))
    by_inputs, by_table = torch.zeros_like(inputs), table.new_zeros(programs, *table.shape)
    if sizes[0]:
        names = ("partner", "back", "data", "rates", "flip", "weights")
        _gradients[(programs,)](grad, inputs, table, *(fixed[name] for name in names), by_inputs, by_table, *sizes)
    return by_inputs, by_table.sum(0)
