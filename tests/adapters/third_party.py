"""A method as a third party would write it: this file alone, beside the package. Importing it makes it a PEFT method."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qpeft.adapters.base import AdapterConfig, Delta, positive
from qpeft.adapters.registry import Method, register


@dataclass
class SineConfig(AdapterConfig):
    """delta = B sin(A x), rank r."""

    r: int = field(default=4, metadata={"help": "Rank."})

    def check(self) -> None:
        super().check()
        positive("r", self.r)


class Sine(Delta):
    def __init__(self, d_in: int, d_out: int, config: SineConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__(d_in, d_out, config, scope)
        self.down = nn.Parameter(torch.randn(config.r, d_in) / d_in**0.5)
        self.up = nn.Parameter((0 if config.init_weights else 0.1) * torch.randn(d_out, config.r))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(torch.sin(nn.functional.linear(x, self.down)), self.up)


register(Method("SINE", SineConfig, Sine, "nowhere", "a sine between two matrices"))
