"""A circuit that was measured once: its lattice coefficients as a layer. No simulator and no chip from then on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qpeft.circuits.ir import Circuit
from qpeft.circuits.surrogate.grid import FourierGrid


class StoredGrid(nn.Module):
    """`z_k(u)` of a circuit by its trigonometric polynomials (circuits/lattice.py), noise of where it was measured included.

    `coefficients` is a buffer, saved and never trained: `FourierGrid.of(circuit).coefficients(values)`. Zero until it is loaded.
    """

    coefficients: Tensor

    def __init__(self, circuit: Circuit) -> None:
        super().__init__()
        self.grid = FourierGrid.of(circuit)
        empty = torch.zeros(self.grid.size, circuit.n_qubits)
        self.register_buffer("coefficients", self.grid.coefficients(empty).contiguous())

    def forward(self, u: Tensor) -> Tensor:
        """`(..., n_inputs) -> (..., n_qubits)`, float32 (float64 for a float64 input)."""
        dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
        with torch.autocast(u.device.type, enabled=False):
            flat = u.reshape(u.shape[:-1].numel(), u.shape[-1]).to(dtype)
            return self.grid.evaluate(self.coefficients.to(dtype), flat).reshape(*u.shape[:-1], -1)

    def extra_repr(self) -> str:
        return f"{self.grid.size} points measured"
