"""QuIC, quantum-inspired compound adapters (arXiv 2502.06916): the output of a layer rotated by compounds of a small rotation.

    W = Q W0,  Q = diag(Q_1, .., Q_b, I),  Q_j = C_1(A_j) + C_2(A_j) + .. + C_K(A_j) + I  (direct sum)

`C_k(A)`, the compound of order k, has the k x k minors of A for entries, `C(n, k)` rows: what a circuit of two-qubit rotations
that keeps the number of ones does to the states with k ones among n qubits. A compound of a rotation is a rotation.

A_j is n x n, from n(n-1)/2 angles, zero at the start. As in the authors' code the layer's outputs are cut into `n_blocks` equal
blocks, each with the largest n whose orders 1..K fit it. What is left of a block, and of the layer, is not rotated. `C_n(A) = 1` is
left out, since it does nothing. With K = 1 this is orthogonal fine-tuning in blocks.

Minors are never formed. A vector of order k is an antisymmetric tensor with k axes of size n, and C_k(A) rotates each axis by A;
with `D = A - I`, axis by axis, `d <- d + D (v + d)` from d = 0 to `d = C_k(A) v - v`.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from qpeft.adapters.base import AdapterConfig, Delta, Position, one_of, positive
from qpeft.adapters.layers.orthogonal import cayley, givens, givens_schedule, skew
from qpeft.errors import AdapterError

SCHEDULE = ("partners", "numbers", "signs")  # buffers: the rounds of Givens rotations


@dataclass
class QuICConfig(AdapterConfig):
    """Settings of QuIC."""

    n_blocks: int = field(default=4, metadata={"help": "Equal blocks of a layer's outputs, at most half as many as outputs."})
    max_order: int = field(default=2, metadata={"help": "Largest order K of the compounds; 1 is orthogonal fine-tuning."})
    block_share: bool = field(default=False, metadata={"help": "True: one rotation for all blocks."})
    rotation: Literal["givens", "cayley"] = field(
        default="givens",
        metadata={"help": "A from angles: a product of Givens rotations, which a circuit runs, or a Cayley map, which is faster."},
    )
    structure: Literal["compound", "tied"] = field(
        default="compound",
        metadata={"help": "'tied' is the control: copies of A stand where the compounds of order 2 and more are."},
    )

    def check(self) -> None:
        """Extends the base class's checks: AdapterError for `n_blocks` or `max_order` below 1, an unknown rotation or structure."""
        super().check()
        positive("n_blocks", self.n_blocks)
        positive("max_order", self.max_order)
        one_of("rotation", self.rotation, ("givens", "cayley"))
        one_of("structure", self.structure, ("compound", "tied"))

    @classmethod
    def budget_grid(cls, rank: int) -> list[dict[str, Any]]:
        """Fewer and larger orders first: they share one small rotation among more outputs."""
        blocks = [1, 2, 4, 8, 16, 32]
        return [{"n_blocks": b, "max_order": k} for k in (3, 2) for b in blocks] + [
            {"n_blocks": b, "max_order": 1, "rotation": "cayley"} for b in reversed(blocks)
        ]


def orders(n: int, max_order: int) -> list[int]:
    """Orders whose compound of an n x n rotation does something: 1 to `max_order`, below n."""
    return list(range(1, min(max_order, n - 1) + 1))


def width(n: int, max_order: int) -> int:
    """Outputs that the compounds of an n x n rotation change.

    Args:
        n: size of the rotation.
        max_order: K, the largest order of a compound.
    """
    return sum(math.comb(n, k) for k in orders(n, max_order))


def largest_rotation(block: int, max_order: int) -> int:
    """The largest n whose compounds fit a block of at least two outputs.

    Args:
        block: number of outputs.
        max_order: K, the largest order of a compound.
    """
    n = 2
    while width(n + 1, max_order) <= block:
        n += 1
    return n


@functools.lru_cache(maxsize=256)
def antisymmetric(n: int, k: int) -> tuple[list[int], list[int], list[int]]:
    """Vectors of order k as antisymmetric tensors.

    Returns, for each of the `n^k` entries of the tensor, which of the `C(n, k)` numbers it holds and with which sign (0 for
    repeated indices), and for each number the entry with ascending indices. Numbers are in lexicographic order of index sets.
    """
    number = {indices: i for i, indices in enumerate(itertools.combinations(range(n), k))}
    which, sign = [], []
    for entry in itertools.product(range(n), repeat=k):
        inversions = sum(a > b for a, b in itertools.combinations(entry, 2))
        which.append(number.get(tuple(sorted(entry)), 0))
        sign.append((-1) ** inversions if len(set(entry)) == k else 0)
    return which, sign, [functools.reduce(lambda i, j: i * n + j, indices) for indices in number]


class QuIC(Delta):
    """The delta of QuIC: `Q - I` after the layer."""

    position: ClassVar[Position] = "output"

    def __init__(self, d_in: int, d_out: int, config: QuICConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__(d_in, d_out, config, scope)
        if d_out < 2:
            raise AdapterError("a layer with one output has no rotation", value=f"{d_in} -> {d_out}", hint="exclude_modules")
        self.blocks = min(config.n_blocks, d_out // 2)
        self.block = d_out // self.blocks
        self.n = largest_rotation(self.block, config.max_order)
        self.orders = orders(self.n, config.max_order)
        self.rotation, self.structure = config.rotation, config.structure
        rotations = 1 if config.block_share else self.blocks
        self.angles = nn.Parameter(torch.zeros(rotations, self.n * (self.n - 1) // 2))
        if not config.init_weights:
            nn.init.normal_(self.angles, std=0.1)
        if self.rotation == "givens":
            for name, table in zip(SCHEDULE, givens_schedule(self.n), strict=True):
                self.register_buffer(name, table, persistent=False)
        for k in self.orders[1:] if self.structure == "compound" else ():
            for name, entries in zip(("which", "sign", "ascending"), antisymmetric(self.n, k), strict=True):
                self.register_buffer(f"{name}_{k}", torch.tensor(entries), persistent=False)

    @property
    def linear(self) -> bool:
        """True: the delta is the matrix `Q - I`."""
        return True

    def rotation_minus_identity(self) -> Tensor:
        """`A - I` for each block, `(blocks, n, n)`."""
        if self.rotation == "cayley":
            change = cayley(skew(self.angles, self.n))
        else:
            a = givens(self.angles, *map(self.get_buffer, SCHEDULE))
            change = a - torch.eye(self.n, dtype=a.dtype, device=a.device)
        return change.to(self.angles.dtype).expand(self.blocks, -1, -1)

    def forward(self, x: Tensor) -> Tensor:
        """`(Q - I) x` of the base layer's outputs x without bias, `(..., d_out)` both (arXiv 2502.06916)."""
        change = self.cached("rotation", self.rotation_minus_identity).to(x.dtype)
        rows = x.reshape(x.shape[:-1].numel(), self.d_out)
        blocks = rows[:, : self.blocks * self.block].T.reshape(self.blocks, self.block, len(rows))  # rows last, for large products
        sizes = [math.comb(self.n, k) for k in self.orders]
        parts = torch.split(blocks, [*sizes, self.block - sum(sizes)], dim=1)
        deltas = [self._order(k, part, change) for k, part in zip(self.orders, parts, strict=False)]
        rotated = torch.cat([*deltas, torch.zeros_like(parts[-1])], dim=1).flatten(0, 1).T
        return nn.functional.pad(rotated, (0, self.d_out - rotated.shape[1])).reshape(x.shape)

    def _order(self, k: int, v: Tensor, change: Tensor) -> Tensor:
        """`C_k(A) v - v` for `v (blocks, C(n, k), rows)`."""
        if k == 1:
            return change @ v
        n, rows = self.n, v.shape[-1]
        if self.structure == "tied":
            copies = v.shape[1] // n
            whole = v[:, : copies * n].reshape(self.blocks, copies, n, rows)
            rotated = (change.unsqueeze(1) @ whole).flatten(1, 2)
            return torch.cat([rotated, torch.zeros_like(v[:, copies * n :])], dim=1)  # torch 2.6 pads no empty batch
        sign = self.get_buffer(f"sign_{k}").to(v.dtype).unsqueeze(-1)
        tensor = (v[:, self.get_buffer(f"which_{k}")] * sign).reshape(self.blocks, *(n,) * k, rows)
        delta = torch.zeros_like(tensor)
        for _ in range(k):  # rotate the first axis, then move it behind the others
            delta = delta + (change @ (tensor + delta).reshape(self.blocks, n, n ** (k - 1) * rows)).view_as(delta)
            tensor, delta = tensor.movedim(1, k).contiguous(), delta.movedim(1, k).contiguous()
        return delta.reshape(self.blocks, n**k, rows)[:, self.get_buffer(f"ascending_{k}")]
