"""QuanTA, quantum-informed tensor adaptation (arXiv 2406.00132): gates on pairs of axes, as on pairs of qudits.

The input is reshaped to axes `d_1 x ... x d_N`, and a product of gates acts on it, one for every pair of axes:

    delta = T x - S x,  T = prod_(m<n) T^(mn),  T^(mn) a (d_m d_n) x (d_m d_n) matrix on axes m and n

S is a frozen copy of T at the start (kaiming-uniform, a = sqrt 5: each gate shrinks what it acts on by sqrt 3), drawn anew from
`seed` wherever the module is built. What is trained is `E = T - S`, zero at the start, gate by gate:

    p <- S^(mn) p,  d <- T^(mn) d + E^(mn) p      from p = x, d = 0 to d = delta

so that the delta starts at exactly zero and is never the small difference of two large numbers. Inputs are padded with zeros to
`d_1 ... d_N`, outputs cropped. Tokens are the last axis of a state, so that moving its axes moves runs of tokens; p and d go
through a gate together, in one product.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qpeft.adapters.base import AdapterConfig, Delta, make_dropout, one_of, positive, probability
from qpeft.adapters.layers.tensor_train import balanced
from qpeft.errors import AdapterError


@dataclass
class QuanTAConfig(AdapterConfig):
    """Settings of QuanTA. The published axes of a 7B model are `axes=[16, 8, 8, 4]`."""

    axes: list[int] | None = field(
        default=None, metadata={"help": "Sizes of the axes, at least as large in product as every adapted layer. Default: n_axes."}
    )
    n_axes: int = field(
        default=4, metadata={"help": "Number of axes where `axes` is not set: as equal as possible, layer by layer."}
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input, 0 to 1."})
    seed: int = field(default=0, metadata={"help": "Seed of the frozen gates S; layers of equal axes have equal S."})
    init: Literal["published", "balanced"] = field(
        default="published",
        metadata={
            "help": "Frozen gates: 'published' shrink what they act on by sqrt 3 each, which leaves nothing to train behind dozens "
            "of gates (12 axes have 66); 'balanced' keep its size."
        },
    )
    wiring: Literal["pairs", "blocks"] = field(
        default="pairs",
        metadata={
            "help": "'pairs': a gate acts on its two axes. 'blocks' is the control: it acts on consecutive entries instead, so "
            "that gates do not mix distant ones."
        },
    )

    def check(self) -> None:
        """Extends the base class's checks.

        Raises:
            AdapterError: fewer than two axes, an axis below 1, dropout outside [0, 1), an unknown init or wiring, or a seed outside
                [0, 2^63).
        """
        super().check()
        if self.axes is not None:
            for size in self.axes:
                positive("each of axes", size)
            if len(self.axes) < 2:
                raise AdapterError("gates act on pairs of axes", value=self.axes, bound="at least 2 axes")
        positive("n_axes", self.n_axes)
        if self.n_axes < 2:
            raise AdapterError("gates act on pairs of axes", value=self.n_axes, bound="n_axes >= 2")
        probability("dropout", self.dropout)
        one_of("init", self.init, ("published", "balanced"))
        one_of("wiring", self.wiring, ("pairs", "blocks"))
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise AdapterError("seed is a whole number", value=self.seed, bound="0 <= seed < 2^63")

    @classmethod
    def budget_grid(cls, rank: int) -> list[dict[str, Any]]:
        """From 12 axes down to 2: fewer axes have larger gates, so more parameters. `rank` has no effect."""
        return [{"n_axes": n} for n in range(12, 1, -1)]


def parameter_count(axes: tuple[int, ...]) -> int:
    """`sum_(m<n) (d_m d_n)^2`."""
    return sum((m * n) ** 2 for m, n in itertools.combinations(axes, 2))


@functools.lru_cache(maxsize=4096)
def choose_axes(size: int, count: int) -> tuple[int, ...]:
    """`count` axes that hold `size` entries, largest first: the balanced factors of the least size from `size` up whose gates
    have at most twice the parameters that `count` equal axes would need."""
    padded = size
    while parameter_count(axes := balanced(padded, count)) > 2 * math.comb(count, 2) * padded ** (4 / count):
        padded += 1
    return axes


class QuanTA(Delta):
    """The delta of QuanTA; see the module's docstring."""

    def __init__(self, d_in: int, d_out: int, config: QuanTAConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__(d_in, d_out, config, scope)
        size = max(d_in, d_out)
        self.axes = tuple(config.axes) if config.axes is not None else choose_axes(size, config.n_axes)
        self.size = math.prod(self.axes)
        if self.size < size:
            raise AdapterError(
                f"the axes hold too few entries for a {d_in} -> {d_out} layer",
                value=f"{' x '.join(map(str, self.axes))} = {self.size}",
                bound=f"at least {size}",
                hint="larger axes, or none: each layer then finds its own",
            )
        self.wiring = config.wiring
        self.dropout = make_dropout(config.dropout)
        self.pairs = list(itertools.combinations(range(len(self.axes) - 1, -1, -1), 2))  # the last axes first, as published
        self.gates = nn.ParameterList()  # E
        generator = torch.Generator(device="cpu").manual_seed(config.seed)
        for index, (m, n) in enumerate(self.pairs):
            width = self.axes[m] * self.axes[n]
            bound = math.sqrt((3.0 if config.init == "balanced" else 1.0) / width)
            frozen = torch.empty(width, width, device="cpu", dtype=torch.float32).uniform_(-bound, bound, generator=generator)
            self.register_buffer(f"frozen_{index}", frozen, persistent=False)
            gate = torch.zeros(width, width) if config.init_weights else torch.empty(width, width).uniform_(-bound, bound)
            self.gates.append(nn.Parameter(gate))

    @property
    def linear(self) -> bool:
        """True: the delta is the matrix `T - S`, cropped to `(d_out, d_in)`."""
        return True

    def _apart(self, states: Tensor, m: int, n: int) -> Tensor:
        """States `(count, *axes, rows)` with axes m and n first: `(count d_m d_n, size / (d_m d_n) rows)`."""
        count, rows, width = len(states), states.shape[-1], self.axes[m] * self.axes[n]
        if self.wiring == "pairs":
            states = states.movedim((1 + m, 1 + n), (1, 2))
        else:
            states = states.reshape(count, self.size // width, width, rows).transpose(1, 2)
        return states.reshape(count * width, self.size // width * rows)

    def _together(self, flat: Tensor, count: int, rows: int, m: int, n: int) -> Tensor:
        """The inverse of `_apart`; of pairs a view."""
        width = self.axes[m] * self.axes[n]
        if self.wiring == "pairs":
            rest = [d for k, d in enumerate(self.axes) if k not in (m, n)]
            return flat.view(count, self.axes[m], self.axes[n], *rest, rows).movedim((1, 2), (1 + m, 1 + n))
        return flat.view(count, width, self.size // width, rows).transpose(1, 2).reshape(count, *self.axes, rows)

    def forward(self, x: Tensor) -> Tensor:
        """`(T - S) dropout(x)`, gate by gate: `(..., d_in) -> (..., d_out)` (arXiv 2406.00132)."""
        count = x.shape[:-1].numel()
        rows = self.dropout(x).reshape(count, self.d_in)
        states = nn.functional.pad(rows, (0, self.size - self.d_in)).T.reshape(1, *self.axes, count)  # p, then p and d
        for index, (m, n) in enumerate(self.pairs):
            frozen, gate = self.get_buffer(f"frozen_{index}"), self.gates[index]
            of_p, of_d = torch.cat([frozen, gate]), torch.cat([torch.zeros_like(frozen), frozen + gate])
            both = of_p if index == 0 else torch.cat([of_p, of_d], dim=1)  # ((S, 0), (E, T)) on p and d
            if index == len(self.pairs) - 1:
                both = both[len(frozen) :]
            states = self._together(both @ self._apart(states, m, n), len(both) // len(frozen), count, m, n)
        return states[0].reshape(self.size, count)[: self.d_out].T.reshape(*x.shape[:-1], self.d_out)
