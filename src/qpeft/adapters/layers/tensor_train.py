"""Tensor-train matrices (matrix product operators), the classical half of QTHA."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from qpeft.circuits.simulator import transforms
from qpeft.circuits.simulator.c_engine import contractions
from qpeft.circuits.simulator.c_engine.contractions import Contraction
from qpeft.errors import AdapterError

Shapes: TypeAlias = "tuple[tuple[int, ...], ...]"

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
    """Modes of a tensor train: `balanced` factors, or the published modes where `PUBLISHED_MODES` lists the size.

    Args:
        size: the number to factorise, at least 1.
        count: number of factors, at least 1.

    Raises:
        AdapterError: a size or count below 1.
    """
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
    """Parameters of one tensor-train matrix: `sum_k j_k a_{k+1} a_k i_k` with bond dimensions `1, R, ..., R, 1`.

    Args:
        d_in: input width.
        d_out: output width.
        bond: R, the bond dimension.
        n_cores: number of cores.
    """
    ins, outs = factorise(d_in, n_cores), factorise(d_out, n_cores)
    bonds = (1, *(bond,) * (n_cores - 1), 1)
    return sum(j * bonds[k + 1] * bonds[k] * i for k, (i, j) in enumerate(zip(ins, outs, strict=True)))


@functools.lru_cache(maxsize=8192)
def contraction_cost(cores: Shapes, summed: int, left: int) -> tuple[int, int]:
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


@dataclass(frozen=True)
class ContractionStep:
    """One step of a contraction: a group of cores as a matrix `(rows, columns)` on the middle axis of the state.

    `axes` permutes the group's `(j_1 .. j_g, b, a, i_1 .. i_g)`. The state's first axis is divided by `before` ahead of the step
    and multiplied by `after` behind it.
    """

    group: tuple[int, ...]
    axes: tuple[int, ...]
    rows: int
    columns: int
    before: int
    after: int


@dataclass(frozen=True)
class ContractionOrder:
    """How rows go through a tensor train: `outer` first axes of the state for each row, and the steps."""

    outer: int
    steps: tuple[ContractionStep, ...]


@functools.lru_cache(maxsize=8192)
def orders(cores: Shapes, summed: int, left: int, rows: int) -> tuple[tuple[float, ContractionOrder], ...]:
    """Orders of contraction over the axis `summed` of cores of these shapes, and the multiplications each takes for so many rows.

    Cores one by one or merged to two halves first, from the first on or from the last back. From the first on, the state is
    `(rows done, bond summed_k, remaining)`, from the last back `(rows remaining, summed_k bond, done)`: no axis ever moves.

    Args:
        cores: shape of each core.
        summed: axis of the cores that is summed over.
        left: axis of the cores that stays.
        rows: number of rows.

    Returns:
        `(multiplications, order)` of each.
    """
    half, found = len(cores) // 2, []
    halves = (tuple(range(half)), tuple(range(half, len(cores))))
    for groups in (tuple((k,) for k in range(len(cores))), *([halves] if half else [])):
        merged, work = [], 0.0
        for group in groups:
            shape = cores[group[0]]
            for j, b, _, i in (cores[k] for k in group[1:]):
                work += math.prod(shape) * j * b * i
                shape = (shape[0] * j, b, shape[2], shape[3] * i)
            merged.append(shape)
        for backwards, each in enumerate(contraction_cost(tuple(merged), summed, left)):
            found.append((work + rows * each, _order(groups, tuple(merged), summed, left, bool(backwards))))
    return tuple(found)


def _order(groups: Sequence[tuple[int, ...]], shapes: Shapes, summed: int, left: int, backwards: bool) -> ContractionOrder:
    ordered = []
    for group, shape in zip(groups, shapes, strict=True):
        g = len(group)
        axes = {0: tuple(range(g)), 1: (g,), 2: (g + 1,), 3: tuple(range(g + 2, 2 * g + 2))}
        to, by = ((2, left), (summed, 1)) if backwards else ((left, 1), (2, summed))
        sizes = [shape[to[0]] * shape[to[1]], shape[by[0]] * shape[by[1]]]
        steps = (shape[summed], 1) if backwards else (1, shape[left])
        ordered.append(ContractionStep(group, (*axes[to[0]], *axes[to[1]], *axes[by[0]], *axes[by[1]]), sizes[0], sizes[1], *steps))
    if backwards:
        return ContractionOrder(math.prod(s[summed] for s in shapes), tuple(ordered[::-1]))
    return ContractionOrder(1, tuple(ordered))


class TensorTrain(nn.Module):
    """A `(d_out, d_in)` matrix as a chain of cores `G_k` of shape `(j_k, a_{k+1}, a_k, i_k)`, bond dimensions `1, R, ..., R, 1`.

    Row-major: `W[j1 j2 .., i1 i2 ..] = sum over bonds of prod_k G_k[j_k, a_{k+1}, a_k, i_k]`.
    """

    def __init__(self, d_in: int, d_out: int, bond: int, n_cores: int = 4, *, rows: int = 8) -> None:
        """`rows`: how many rows or columns there will mostly be, for which the order of contraction is chosen."""
        super().__init__()
        ins, outs = factorise(d_in, n_cores), factorise(d_out, n_cores)
        bonds = (1, *(bond,) * (n_cores - 1), 1)
        self.d_in, self.d_out = d_in, d_out
        self.cores = nn.ParameterList(
            nn.Parameter(torch.empty(j, bonds[k + 1], bonds[k], i)) for k, (i, j) in enumerate(zip(ins, outs, strict=True))
        )
        self.shapes = tuple((j, bonds[k + 1], bonds[k], i) for k, (i, j) in enumerate(zip(ins, outs, strict=True)))
        self.orders = {
            axis: min(orders(self.shapes, axis, 3 - axis, rows), key=lambda pair: pair[0])[1] for axis in (0, 3)
        }  # by the axis that is summed over

    @torch.no_grad()
    def initialise(self, gain: float) -> None:
        """Normal entries of variance `gain^2 / (a_k i_k)`: the whole train multiplies variance by `gain^(2 * cores)`."""
        for core in self.cores:
            core.normal_(0.0, gain / math.sqrt(core.shape[2] * core.shape[3]))

    def rows_times(self, rows: Tensor) -> Tensor:
        """`rows @ W` for rows `(p, d_out)`: `(p, d_in)`, without forming W."""
        return products(TrainProduct(self, rows, columns=False))[0]

    def times_columns(self, columns: Tensor) -> Tensor:
        """`W @ columns` for columns `(d_in, p)`: `(d_out, p)`, without forming W."""
        return products(TrainProduct(self, columns, columns=True))[0]

    def matrix(self) -> Tensor:
        """The dense `(d_out, d_in)` matrix."""
        return self.rows_times(torch.eye(self.d_out, dtype=self.cores[0].dtype, device=self.cores[0].device))


def contract(rows: Tensor, cores: Sequence[Tensor], order: ContractionOrder) -> Tensor:
    """Multiply rows by a tensor-train matrix.

    Args:
        rows: `(p, product of the modes of one side)`.
        cores: the cores, first to last.
        order: order of contraction, from `orders`.

    Returns:
        `(p, product of the modes of the other side)`.
    """
    outer, state = rows.shape[0] * order.outer, rows
    for step in order.steps:
        matrix = merged([cores[k] for k in step.group]).permute(step.axes).reshape(step.rows, step.columns)
        outer //= step.before
        state = state.reshape(outer, step.columns, -1)
        alone = state.shape[2] == 1  # one product instead of many small ones
        state = state.squeeze(2) @ matrix.T if alone else torch.bmm(matrix.expand(outer, -1, -1), state)
        outer *= step.after
    return state.reshape(rows.shape[0], -1)


def merged(cores: Sequence[Tensor]) -> Tensor:
    """Neighbouring cores as one group `(j_1 .. j_g, b, a, i_1 .. i_g)`, summed over the bonds between them."""
    group = cores[0]
    for g, core in enumerate(cores[1:], 1):
        *js, c, a = group.shape[: g + 2]
        left = group.movedim(g, -1).reshape(-1, c)  # (j.. a i.., c)
        right = core.permute(2, 0, 1, 3).reshape(c, -1)  # (c, j b i)
        product = (left @ right).view(*js, a, *group.shape[g + 2 :], core.shape[0], core.shape[1], core.shape[3])
        group = product.movedim((2 * g + 1, 2 * g + 2), (g, g + 1))
    return group


class TrainProduct(NamedTuple):
    """`scale * rows W` for `rows (p, d_out)`, or with `columns` `scale * W columns` for `columns (d_in, p)`.

    With `transposed` the latter is stored as `(p, d_out)`, which saves a pass over it.
    """

    train: TensorTrain
    factor: Tensor
    columns: bool
    scale: float = 1.0
    transposed: bool = False

    def tensors(self) -> tuple[Tensor, ...]:
        """What autograd differentiates: the factor and the cores."""
        return self.factor, *self.train.cores

    def in_torch(self, factor: Tensor, *cores: Tensor) -> Tensor:
        """The product by torch's operators."""
        order = self.train.orders[3 if self.columns else 0]
        found = contract(factor.T if self.columns else factor, cores, order)
        found = found.T if self.columns and not self.transposed else found
        return found if self.scale == 1.0 else self.scale * found

    def compiled(self, tensors: Sequence[Tensor]) -> Contraction | None:
        """The product as steps of the compiled kernel, None where it does not take it."""
        shape = tuple(tensors[0].shape)
        if any(core.shape != wanted for core, wanted in zip(tensors[1:], self.train.shapes, strict=True)):
            return None  # gathered elsewhere, or an error that torch words
        order = self.train.orders[3 if self.columns else 0]
        made = _contraction((shape, *self.train.shapes), order, self.columns, self.columns and not self.transposed)
        return made if made.fits else None


def products(*wanted: TrainProduct) -> tuple[Tensor, ...]:
    """Products of factors with tensor trains: all of them one node of autograd where the compiled kernel takes them."""
    each = [product.tensors() for product in wanted]
    tensors = list(itertools.chain(*each))
    if transforms.plain(*tensors) and contractions.available(tensors):
        compiled = [product.compiled(own) for product, own in zip(wanted, each, strict=True)]
        if None not in compiled:
            calls = [(made, product.scale, len(own)) for made, product, own in zip(compiled, wanted, each, strict=True)]
            found: tuple[Tensor, ...] = _apply(wanted, calls, *tensors) if torch.is_grad_enabled() else _values(calls, tensors)
            return found
    return tuple(product.in_torch(*own) for product, own in zip(wanted, each, strict=True))


def _values(calls: Sequence[tuple[Any, float, int]], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    found, at = [], 0
    for contraction, scale, count in calls:
        found.append(contraction.value(tensors[at : at + count], scale))
        at += count
    return tuple(found)


class _Products(torch.autograd.Function):
    """`products` by the compiled kernel. Going back it makes the forward pass again: nothing is stored but the arguments."""

    @staticmethod
    def forward(ctx: Any, wanted: Sequence[TrainProduct], calls: Sequence[tuple[Any, float, int]], *tensors: Tensor) -> Any:
        ctx.save_for_backward(*tensors)
        ctx.wanted, ctx.calls = wanted, calls
        return _values(calls, tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors, found, at = ctx.saved_tensors, list[Tensor | None](), 0
        recorded = any(map(transforms.records_gradient, grads))
        for grad, product, (contraction, scale, count) in zip(grads, ctx.wanted, ctx.calls, strict=True):
            own, needed = tensors[at : at + count], ctx.needs_input_grad[2 + at : 2 + at + count]
            found += _recorded(product, grad, own, needed) if recorded else contraction.gradients(grad, own, scale)
            at += count
        return None, None, *found


# What `apply` of Function calls once it has seen that no transform of torch.func is active, which `products` has seen already.
_apply: Callable[..., tuple[Tensor, ...]] = super(torch.autograd.Function, _Products).apply


def _recorded(product: TrainProduct, grad: Tensor, tensors: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
    """Gradients that transforms follow and that can be differentiated again; None where none is needed."""
    with torch.enable_grad():
        out = product.in_torch(*tensors)
    chosen = [tensor for tensor, need in zip(tensors, needed, strict=True) if need]
    if not chosen:
        return [None] * len(tensors)
    found = iter(torch.autograd.grad(out, chosen, grad, create_graph=torch.is_grad_enabled(), materialize_grads=True))
    return [next(found) if need else None for need in needed]


@functools.lru_cache(maxsize=1024)
def _contraction(shapes: Shapes, order: ContractionOrder, columns: bool, turned: bool) -> Contraction:
    """A product with a train, of a factor and cores of these shapes, as steps of the compiled kernel."""
    made = Contraction(shapes)
    p = shapes[0][1 if columns else 0]
    state = made.permuted(0, shapes[0], (1, 0)) if columns else 0
    size, outer = math.prod(shapes[0]), p * order.outer
    for step in order.steps:
        buffer, shape, axes = _merged_view(made, step.group, shapes)
        axes = tuple(axes[k] for k in step.axes)
        outer //= step.before
        rest = size // (outer * step.columns)
        if rest == 1:
            half = len(step.group) + 1
            state = made.matmul(state, made.permuted(buffer, shape, axes[half:] + axes[:half]), outer, step.rows, step.columns)
        else:
            state = made.matmul(made.permuted(buffer, shape, axes), state, step.rows, rest, step.columns, outer)
        size = outer * step.rows * rest
        outer *= step.after
    if turned:
        state = made.permuted(state, (p, size // p), (1, 0))
    made.finish((size // p, p) if turned else (p, size // p))
    return made


def _merged_view(made: Contraction, group: Sequence[int], shapes: Shapes) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """`merged` of a group of cores: a buffer, its shape, and the order of its axes that makes it `merged`."""
    buffer, shape = group[0] + 1, shapes[group[0] + 1]
    axes = tuple(range(4))
    for g, k in enumerate(group[1:], 1):
        j, b, c, i = shapes[k + 1]
        seen = tuple(shape[axis] for axis in axes)
        left = made.permuted(buffer, shape, (*axes[:g], *axes[g + 1 :], axes[g]))
        right = made.permuted(k + 1, shapes[k + 1], (2, 0, 1, 3))
        buffer = made.matmul(left, right, math.prod(shape) // c, j * b * i, c)
        shape = (*seen[:g], *seen[g + 1 :], j, b, i)
        rest = [axis for axis in range(len(shape)) if axis not in (2 * g + 1, 2 * g + 2)]
        axes = (*rest[:g], 2 * g + 1, 2 * g + 2, *rest[g:])
    return buffer, shape, axes
