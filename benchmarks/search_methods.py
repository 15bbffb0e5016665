"""Methods that the second study's search tries once, none of them a part of qpeft.

recipes/studies/second-search-methods.yaml lists this file as a plug-in.

* BLOCKS_SIDE, `W0 U + F V^T`: Cayley blocks and a one-sided LoRA on the same layer.
* GRADIENT_LORA, `(alpha / r) B A`: both are trained and start from the gradient's largest singular vectors, a small step of full
  fine-tuning and no no-op (LoRA-One, arXiv 2502.01235).
* EDIT, `y + R^T (W y + b - R y)`: LoReFT's edit (arXiv 2404.03592), of a layer's output at every position.
* TERA: a random tensor network, of which diagonals alone are trained (arXiv 2509.03234).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qpeft.adapters.base import Delta, Position, RankConfig, freeze
from qpeft.adapters.layers.orthogonal import cayley, skew
from qpeft.adapters.registry import Method, register


@dataclass
class BlocksSideConfig(RankConfig):
    """Settings of BLOCKS_SIDE."""

    r: int = field(default=2, metadata={"help": "Rank of the one-sided LoRA."})
    block_size: int = field(default=2, metadata={"help": "Inputs that a block rotates among themselves."})


class BlocksSide(Delta):
    """`W0 (U - I) x + (alpha / r) F V^T x`, V random with orthonormal columns, F trained."""

    down: nn.Parameter

    def __init__(self, d_in: int, d_out: int, config: BlocksSideConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__(d_in, d_out, config, scope)
        self.size, self.scale = config.block_size, config.scale
        pairs = self.size * (self.size - 1) // 2
        self.angles = nn.Parameter(torch.zeros(d_in // self.size, pairs))
        self.up = nn.Parameter(torch.zeros(d_out, config.r))
        freeze(self, "down", torch.linalg.qr(torch.randn(d_in, config.r))[0].T.contiguous())
        self.base: tuple[Tensor, ...] = ()

    def init_from_weight(self, weight: Tensor) -> None:
        self.base = (weight,)

    def forward(self, x: Tensor) -> Tensor:
        blocks = cayley(skew(self.angles, self.size))
        turned = torch.einsum("bij,...bj->...bi", blocks, x.reshape(*x.shape[:-1], -1, self.size)).flatten(-2)
        side = nn.functional.linear(nn.functional.linear(x, self.down), self.scale * self.up)
        return nn.functional.linear(turned, self.base[0]) + side


@dataclass
class GradientLoraConfig(RankConfig):
    """Settings of GRADIENT_LORA."""

    r: int = field(default=1, metadata={"help": "Rank."})
    gamma: float = field(
        default=128.0, metadata={"help": "Both factors start at (s / s_1)^(1/2) / gamma^(1/2) times singular vectors."}
    )
    batches: int = field(default=8, metadata={"help": "Batches whose gradient is taken."})

    def gradient_batches(self) -> int:
        return self.batches


class GradientLora(Delta):
    """LoRA whose factors start from the loss's gradient."""

    def __init__(self, d_in: int, d_out: int, config: GradientLoraConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__(d_in, d_out, config, scope)
        self.scale, self.gamma = config.scale, config.gamma
        self.down = nn.Parameter(torch.randn(config.r, d_in) / math.sqrt(d_in))
        self.up = nn.Parameter(torch.zeros(d_out, config.r))

    @torch.no_grad()
    def init_from_gradient(self, gradient: Tensor) -> None:
        left, values, right = torch.linalg.svd(gradient, full_matrices=False)
        r = self.down.shape[0]
        sizes = (values[:r] / values[0] / self.gamma).sqrt()
        self.down.copy_(sizes[:, None] * right[:r])
        self.up.copy_(-left[:, :r] * sizes)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.down), self.scale * self.up)


@dataclass
class EditConfig(RankConfig):
    """Settings of EDIT."""

    r: int = field(default=3, metadata={"help": "Rank of the edit."})


class Edit(Delta):
    """LoReFT's edit of the layer's output. R starts with orthonormal rows, which it does not keep, and W = R, so it is a no-op."""

    position: ClassVar[Position] = "output"

    def __init__(self, d_in: int, d_out: int, config: EditConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__(d_in, d_out, config, scope)
        frame = torch.linalg.qr(torch.randn(d_out, config.r))[0].T.contiguous()
        self.rows = nn.Parameter(frame.clone())
        self.change = nn.Parameter(torch.zeros_like(frame))  # W - R
        self.bias = nn.Parameter(torch.zeros(config.r))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.change, self.bias) @ self.rows


@dataclass
class TeraConfig(RankConfig):
    """Settings of TERA."""

    r: int = field(default=24, metadata={"help": "Tucker ranks, at most the factors of the layer's sizes."})


def _split(size: int) -> tuple[int, int]:
    """Two factors of a size, as close to each other as they can be."""
    small = next(k for k in range(math.isqrt(size), 0, -1) if size % k == 0)
    return small, size // small


class Tera(Delta):
    """`delta(x)_{ab} = sum G_{ijkl} U1_ai d1_i U2_bj d2_j U3_ck d3_k U4_dl d4_l x_{cd}`, U and G random, d trained."""

    def __init__(self, d_in: int, d_out: int, config: TeraConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__(d_in, d_out, config, scope)
        self.dims = (*_split(d_out), *_split(d_in))
        ranks = [min(config.r, size) for size in self.dims]
        self.scale = config.scale
        for index, (size, rank) in enumerate(zip(self.dims, ranks, strict=True)):
            freeze(self, f"frame{index}", torch.randn(size, rank) / math.sqrt(rank))
            start = torch.zeros(rank) if index == 0 else torch.ones(rank)
            self.register_parameter(f"weights{index}", nn.Parameter(start))
        freeze(self, "core", torch.randn(ranks) / math.sqrt(math.prod(self.dims[2:])))

    def forward(self, x: Tensor) -> Tensor:
        y = x.reshape(*x.shape[:-1], *self.dims[2:])
        factors = [getattr(self, f"frame{k}") * getattr(self, f"weights{k}") for k in range(4)]
        y = torch.einsum("...cd,ck,dl->...kl", y, factors[2], factors[3])
        y = torch.einsum("...kl,ijkl->...ij", y, self.core)
        y = torch.einsum("...ij,ai,bj->...ab", y, factors[0], factors[1])
        return self.scale * y.flatten(-2)


def _method(name: str, config: type[Any], delta: type[Delta], paper: str, summary: str) -> None:
    register(Method(name, config, delta, paper=paper, summary=summary))


_method("BLOCKS_SIDE", BlocksSideConfig, BlocksSide, "none", "Cayley blocks and a one-sided LoRA on the same layer")
_method("GRADIENT_LORA", GradientLoraConfig, GradientLora, "2502.01235", "LoRA that starts from the gradient")
_method("EDIT", EditConfig, Edit, "2404.03592", "LoReFT's edit of a layer's output")
_method("TERA", TeraConfig, Tera, "2509.03234", "a random tensor network with trained diagonals")
