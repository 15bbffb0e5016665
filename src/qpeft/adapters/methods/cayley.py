"""Cayley unitary adapter (arXiv 2605.05914): the input of a layer rotated block by block.

    W = W0 U,  U = diag(U_1, U_2, ...),  U_b = (I - A_b)(I + A_b)^-1,  A_b skew-symmetric, 4 x 4 by default

Real blocks (so orthogonal). A size that is no multiple of the block ends with a smaller one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from qpeft.adapters.base import AdapterConfig, Delta, Position, one_of, positive
from qpeft.adapters.layers.orthogonal import at_least_float32, cayley, skew
from qpeft.errors import AdapterError


@dataclass
class CayleyConfig(AdapterConfig):
    """Settings of the Cayley unitary adapter. The default block is the published one."""

    block_size: int = field(default=4, metadata={"help": "Inputs that a block rotates among themselves."})
    transform: Literal["cayley", "linear"] = field(
        default="cayley",
        metadata={"help": "'linear' is the control: I - 2 A, the transform's first order, which is not orthogonal."},
    )

    def check(self) -> None:
        """Extends the base class's checks: AdapterError for `block_size` below 2 or an unknown transform."""
        super().check()
        positive("block_size", self.block_size)
        one_of("transform", self.transform, ("cayley", "linear"))
        if self.block_size == 1:
            raise AdapterError("a block of one input has no rotation", value=1, bound="block_size >= 2")


class CayleyUnitary(Delta):
    """The delta of the Cayley unitary adapter: `D = U - I` before the layer."""

    position: ClassVar[Position] = "input"

    def __init__(self, d_in: int, d_out: int, config: CayleyConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__(d_in, d_out, config, scope)
        if d_in < 2:
            raise AdapterError("a layer with one input has no rotation", value=f"{d_in} -> {d_out}", hint="exclude_modules")
        self.transform = config.transform
        self.size = min(config.block_size, d_in)
        self.blocks, rest = divmod(d_in, self.size)
        self.angles = nn.Parameter(torch.zeros(self.blocks * _pairs(self.size) + _pairs(rest)))
        self.blocks += rest > 0
        if not config.init_weights:
            nn.init.normal_(self.angles, std=0.1)

    @property
    def linear(self) -> bool:
        """True: the delta is the block-diagonal matrix `U - I`."""
        return True

    def matrices(self) -> Tensor:
        """`U - I` by blocks `(blocks, size, size)`; a smaller last block leaves the rest of its matrix zero."""
        missing = self.blocks * _pairs(self.size) - self.angles.shape[0]
        a = skew(nn.functional.pad(at_least_float32(self.angles), (0, missing)).view(self.blocks, -1), self.size)
        return cayley(a) if self.transform == "cayley" else -2.0 * a

    def forward(self, x: Tensor) -> Tensor:
        """`(U - I) x`, `(..., d_in)` both (arXiv 2605.05914)."""
        padded = nn.functional.pad(x, (0, self.blocks * self.size - self.d_in)).reshape(*x.shape[:-1], self.blocks, self.size)
        rotated = torch.einsum("bij,...bj->...bi", self.cached("matrices", self.matrices).to(x.dtype), padded)
        return rotated.flatten(-2)[..., : self.d_in]


def _pairs(n: int) -> int:
    return n * (n - 1) // 2
