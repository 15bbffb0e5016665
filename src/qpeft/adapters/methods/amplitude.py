"""Amplitude adapters: the amplitudes of a circuit are the LoRA factors (arXiv 2509.16244 and kin).

A circuit of `n = ceil(log2(r (d_in + d_out)))` qubits and L layers (RY on all, linear CNOTs) prepares a state with real
amplitudes; times `sqrt(2^n)` they are numbers of unit size, and the first `r (d_in + d_out)` of them are A and B:

    delta = (alpha / r) B diag(gate) A x        gate: r trained numbers, zero at the start

`n L + r` trained numbers for a layer, logarithmic in its size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from qpeft.adapters.base import RankConfig, one_of, positive
from qpeft.adapters.layers.generated_lora import GENERATORS, GeneratedLora, RealState, qubits_for


@dataclass
class AmplitudeConfig(RankConfig):
    """Settings of amplitude adapters."""

    n_layers: int = field(default=8, metadata={"help": "Layers L of the circuit."})
    generator: Literal["circuit", "product", "hashed", "frozen"] = field(
        default="circuit", metadata={"help": "The circuit or what stands in its place."}
    )

    def check(self) -> None:
        """Extends the base class's checks: AdapterError for `n_layers` below 1 or an unknown generator."""
        super().check()
        positive("n_layers", self.n_layers)
        one_of("generator", self.generator, GENERATORS)

    @classmethod
    def budget_grid(cls, rank: int) -> list[dict[str, Any]]:
        """From 1 to 64 layers at LoRA's rank."""
        return [{"r": rank, "n_layers": n} for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)]


class Amplitude(GeneratedLora):
    """The delta of an amplitude adapter; see the module's docstring."""

    def __init__(self, d_in: int, d_out: int, config: AmplitudeConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__(d_in, d_out, config, scope)
        self.size = config.r * (d_in + d_out)
        self.state = RealState(config.generator, qubits_for(self.size), config.n_layers)

    def numbers(self) -> Tensor:
        """The first `r (d_in + d_out)` amplitudes of the state, times `sqrt(2^n)`: `(r (d_in + d_out),)`."""
        state: Tensor = self.cached("amplitudes", self.state)
        return state[: self.size] * math.sqrt(len(state))
