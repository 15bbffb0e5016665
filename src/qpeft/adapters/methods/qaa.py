"""QAA, quantum-amplitude embedded adaptation (arXiv 2509.16244): a projected activation becomes the amplitudes of a state.

    h = A dropout(x)                         d_in -> r
    psi = U h / |h|                          h padded with zeros to 2^n amplitudes, n = ceil(log2 r)
    z_k = <psi| Z_k |psi>                    r -> n
    delta = (alpha / r) B z                  n -> d_out, B zero at the start

U is a circuit of L layers of RY on every qubit and linear CNOTs (ansatz.ry_cnot), the same for all tokens: a real orthogonal
matrix, built once a step, so that a token costs two small products. The norm of h is lost, as in any amplitude embedding, and the
zero vector has no state: there z is 0. So that the gradient stays finite, `|h|^2 + 1e-12` stands for `|h|^2`.

`d_in r + n d_out + n L` trained numbers for a layer. Not linear.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from qpeft.adapters.base import Delta, RankConfig, make_dropout, one_of, positive
from qpeft.adapters.controls import Linear
from qpeft.adapters.layers.generated_lora import GENERATORS, Hashed, qubits_for
from qpeft.adapters.quantum_layer import StateLayer
from qpeft.circuits import ansatz

TINY = 1e-12


@dataclass
class QAAConfig(RankConfig):
    """Settings of QAA."""

    r: int = field(default=8, metadata={"help": "Amplitudes that the activation is projected to; ceil(log2 r) qubits."})
    n_layers: int = field(default=8, metadata={"help": "Layers L of the circuit."})
    unitary: Literal["circuit", "product", "hashed", "frozen"] = field(
        default="circuit", metadata={"help": "The circuit or what stands in its place."}
    )

    def check(self) -> None:
        """Extends the base class's checks: AdapterError for `n_layers` below 1 or an unknown unitary."""
        super().check()
        positive("n_layers", self.n_layers)
        one_of("unitary", self.unitary, GENERATORS)


class QAA(Delta):
    """The delta of QAA; see the module's docstring."""

    def __init__(self, d_in: int, d_out: int, config: QAAConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__(d_in, d_out, config, scope)
        n = qubits_for(config.r)
        self.scale, self.dropout = config.scale, make_dropout(config.dropout)
        self.down, self.up = Linear(d_in, config.r), Linear(n, d_out)
        if config.init_weights:
            nn.init.zeros_(self.up.weight)
        self.unitary: nn.Module
        if config.unitary == "hashed":
            self.unitary = Hashed(4**n, n * config.n_layers)
        else:
            circuit = ansatz.ry_cnot(n, config.n_layers, entangling=config.unitary != "product")
            self.unitary = StateLayer(circuit, k=config.r, frozen=config.unitary == "frozen")
        signs = 1 - 2 * ((torch.arange(2**n, device="cpu")[:, None] >> torch.arange(n - 1, -1, -1, device="cpu")) & 1)
        self.register_buffer("signs", signs.to(torch.get_default_dtype()), persistent=False)  # of Z_k at basis state b: (2^n, n)

    def matrix(self) -> Tensor:
        """U's first r columns, `(2^n, r)`; of a hashed one, of the same norm as a whole but not orthogonal."""
        size, r = len(self.get_buffer("signs")), self.down.out_features
        if isinstance(self.unitary, Hashed):
            hashed: Tensor = self.unitary() * math.sqrt(size)
            return hashed.reshape(size, size)[:, :r]
        real: Tensor = self.unitary()[0]  # the imaginary part is zero
        return real

    def embed(self, h: Tensor) -> Tensor:
        """`z (..., n)` from `h (..., r)`: `<Z_k>` of the state that U makes of `h / |h|`; 0 for the zero vector."""
        signs, matrix = self.get_buffer("signs"), self.cached("matrix", self.matrix)
        z: Tensor
        with torch.autocast(h.device.type, enabled=False):
            h = h.to(matrix.dtype)
            h = h * torch.rsqrt(h.square().sum(-1, keepdim=True) + TINY)
            weights = nn.functional.linear(h, matrix).square()
            z = weights @ signs.to(weights.dtype)
        return z

    def forward(self, x: Tensor) -> Tensor:
        """`(alpha / r) B z` with z of `embed(A dropout(x))`: `(..., d_in) -> (..., d_out)` (arXiv 2509.16244)."""
        h = self.down(self.dropout(x))
        out: Tensor = self.up(self.embed(h).to(h.dtype))
        return self.scale * out
