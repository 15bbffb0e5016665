"""A circuit that was measured once, as a layer: the numbers of its surrogate. It needs neither a simulator nor a chip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qpeft.adapters.base import freeze
from qpeft.circuits.ir import Circuit, Observable
from qpeft.circuits.surrogate.stored import StoredForm, StoredLayout


class StoredSurrogate(nn.Module):
    """Expectation values `z_k(u)` of a circuit from stored numbers, with the noise of where it was measured.

    The tensors (circuits/surrogate/stored.py) are saved and never trained, and zero until they are loaded.

    Args:
        circuit: what was measured; it decides the terms.
        observables: that were measured; default `<Z_k>` of every qubit k.
        form: how the surrogate is stored, `{"kind": .., "size": ..}`; default the Fourier grid.
    """

    def __init__(self, circuit: Circuit, observables: Sequence[Observable] | None = None, form: Any = None) -> None:
        super().__init__()
        self.layout = StoredLayout(circuit, observables, StoredForm.read(form))
        for name, shape in self.layout.shapes.items():
            freeze(self, name, torch.ones(shape) if name == "lengths" else torch.zeros(shape))

    def forward(self, u: Tensor) -> Tensor:
        """`(..., n_inputs) -> (..., n_outputs)`, float32 (float64 for a float64 input)."""
        dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
        with torch.autocast(u.device.type, enabled=False):
            flat = u.reshape(u.shape[:-1].numel(), u.shape[-1]).to(dtype)
            tensors = {name: getattr(self, name).to(dtype) for name in self.layout.shapes}
            return self.layout.evaluate(tensors, flat).reshape(*u.shape[:-1], -1)

    def extra_repr(self) -> str:
        """Kind of surrogate and how many numbers it has, as `print(model)` shows it."""
        return f"{self.layout.form.kind}, {self.layout.numbers} numbers"
