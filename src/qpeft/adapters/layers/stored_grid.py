"""A circuit that was measured once, as a layer: its Fourier coefficients. It needs neither a simulator nor a chip."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qpeft.adapters.base import freeze
from qpeft.circuits.ir import Circuit
from qpeft.circuits.surrogate.grid import FourierGrid


class StoredGrid(nn.Module):
    """Trigonometric polynomials `z_k(u)` of a circuit (circuits/surrogate/grid.py), with the noise of where it was measured.

    `coefficients` is saved and never trained: `FourierGrid.of(circuit).coefficients(values)`, zero until it is loaded.

    Args:
        circuit: what was measured; it decides the grid of inputs.
        n_outputs: observables that were measured.
    """

    coefficients: Tensor

    def __init__(self, circuit: Circuit, n_outputs: int) -> None:
        super().__init__()
        self.grid = FourierGrid.of(circuit)
        empty = torch.zeros(self.grid.size, n_outputs)
        freeze(self, "coefficients", self.grid.coefficients(empty).contiguous())

    def forward(self, u: Tensor) -> Tensor:
        """`(..., n_inputs) -> (..., n_outputs)`, float32 (float64 for a float64 input)."""
        dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
        with torch.autocast(u.device.type, enabled=False):
            flat = u.reshape(u.shape[:-1].numel(), u.shape[-1]).to(dtype)
            return self.grid.evaluate(self.coefficients.to(dtype), flat).reshape(*u.shape[:-1], -1)

    def extra_repr(self) -> str:
        """Number of grid points that were measured, as `print(model)` shows it."""
        return f"{self.grid.size} points measured"
