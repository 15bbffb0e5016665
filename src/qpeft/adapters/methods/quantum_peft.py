"""Quantum-PEFT (arXiv 2503.05431): a singular value decomposition whose orthogonal factors come from few numbers.

    delta = (alpha / r) U diag(lambda) V^T x        U (d_out, K), V (d_in, K), lambda zero at the start

K is `r`, or the layer's smaller size where that is less. U and V are, for a size N:

    pauli    the first K columns of a real circuit on q = ceil(log2 N) qubits (ansatz.simplified_two_design), of its 2^q rows the
             first N; so the columns are orthonormal where N is a power of two, and nearly so elsewhere. (2 L + 1) q - 2 L angles.
    taylor   the first K columns of exp(A), A = B - B^T, B strictly lower triangular with K columns; the series ends at `order`.
             NK - K(K+1)/2 numbers.
    cayley   the first K columns of (I - A)(I + A)^-1, with the same A. Orthonormal whatever B is.

`A = P Q^T` with `P = [B, -E]` and `Q = [E, B]`, `E` the first K columns of the identity, so both maps are `E + P f(Q^T P) Q^T E`
with f of a 2K x 2K matrix: `f(S) = sum_p S^(p-1) / p!` or `f(S) = -2 (I + S)^-1`. Nothing of size N x N is formed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qpeft.adapters.base import Delta, RankConfig, make_dropout, one_of, positive
from qpeft.adapters.layers.generated_lora import qubits_for
from qpeft.adapters.layers.orthogonal import at_least_float32
from qpeft.adapters.quantum_layer import StateLayer
from qpeft.circuits.ansatz import simplified_two_design
from qpeft.errors import AdapterError

PARAMETRISATIONS = ("pauli", "taylor", "cayley")


@dataclass
class QuantumPEFTConfig(RankConfig):
    """Settings of Quantum-PEFT."""

    parametrisation: Literal["pauli", "taylor", "cayley"] = field(
        default="pauli",
        metadata={"help": "Where the orthogonal factors come from: a circuit, a truncated exponential, a Cayley map."},
    )
    n_layers: int = field(default=1, metadata={"help": "Layers L of the circuit (pauli)."})
    order: int = field(
        default=12, metadata={"help": "Last term of the series (taylor). 1 is the control: I + A, which is not orthogonal."}
    )
    entangling: bool = field(
        default=True, metadata={"help": "False is pauli's control: the circuit without its CZ gates, as many angles."}
    )

    def check(self) -> None:
        """Extends the base class's checks.

        Raises:
            AdapterError: `n_layers` or `order` below 1, an unknown parametrisation, or `entangling=False` without a circuit.
        """
        super().check()
        for name in ("n_layers", "order"):
            positive(name, getattr(self, name))
        one_of("parametrisation", self.parametrisation, PARAMETRISATIONS)
        if not self.entangling and self.parametrisation != "pauli":
            raise AdapterError("only a circuit has entangling gates", value=self.parametrisation, hint="parametrisation='pauli'")

    @classmethod
    def budget_grid(cls, rank: int) -> list[dict[str, Any]]:
        """The circuit with more and more layers at LoRA's rank, then the exponential at ranks up to it."""
        circuits = [{"r": rank, "n_layers": layers} for layers in (1, 2, 4, 8, 16, 32)]
        return circuits + [{"r": r, "parametrisation": "taylor"} for r in range(1, rank + 1)]


class CircuitColumns(nn.Module):
    """Columns of the circuit, `(size, k)`."""

    def __init__(self, size: int, k: int, n_layers: int, entangling: bool) -> None:
        super().__init__()
        self.size = size
        self.state = StateLayer(simplified_two_design(qubits_for(size), n_layers, entangling=entangling), k)

    def forward(self) -> Tensor:
        """The first `size` rows and k columns of the circuit's matrix, which is real: `(size, k)`."""
        real, _ = self.state()
        columns: Tensor = real[: self.size]
        return columns


class StiefelColumns(nn.Module):
    """Columns of exp(A) or of A's Cayley map, `(size, k)`, from the `size k - k (k + 1) / 2` entries of B, row by row."""

    def __init__(self, size: int, k: int, order: int | None) -> None:
        super().__init__()
        self.size, self.k, self.order = size, k, order
        self.entries = nn.Parameter(torch.randn(size * k - k * (k + 1) // 2) / math.sqrt(size))

    def forward(self) -> Tensor:
        """The first k columns of exp(A), up to the term `order`, or of the Cayley map: `(size, k)`, at least float32."""
        entries, k = at_least_float32(self.entries), self.k
        with torch.autocast(entries.device.type, enabled=False):
            i, j = torch.tril_indices(self.size, k, -1, device=entries.device)
            b = entries.new_zeros(self.size * k).index_copy(0, i * k + j, entries).view(self.size, k)
            e = torch.eye(self.size, k, dtype=b.dtype, device=b.device)
            p, q = torch.cat([b, -e], dim=1), torch.cat([e, b], dim=1)
            s, identity = q.T @ p, torch.eye(2 * k, dtype=b.dtype, device=b.device)
            if self.order is None:
                f = -2.0 * torch.linalg.solve(identity + s, q[:k].T)
            else:
                f = identity
                for term in range(self.order, 1, -1):  # Horner
                    f = identity + s @ f / term
                f = f @ q[:k].T
            columns: Tensor = e + p @ f
        return columns


class QuantumPEFT(Delta):
    """The delta of Quantum-PEFT; see the module's docstring."""

    def __init__(self, d_in: int, d_out: int, config: QuantumPEFTConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__(d_in, d_out, config, scope)
        self.scale, self.dropout = config.scale, make_dropout(config.dropout)
        k = min(config.r, d_in, d_out)
        self.singular_values = nn.Parameter(torch.zeros(k) if config.init_weights else torch.randn(k))

        def factor(size: int) -> nn.Module:
            if config.parametrisation == "pauli":
                return CircuitColumns(size, k, config.n_layers, config.entangling)
            return StiefelColumns(size, k, config.order if config.parametrisation == "taylor" else None)

        self.u, self.v = factor(d_out), factor(d_in)

    @property
    def linear(self) -> bool:
        """True: the delta is the matrix `(alpha / r) U diag(lambda) V^T`."""
        return True

    def up(self) -> Tensor:
        """`(alpha / r) U diag(lambda)`, `(d_out, k)`."""
        columns: Tensor = self.u()
        return columns.to(self.dtype) * (self.scale * self.singular_values)

    def down(self) -> Tensor:
        """`V^T`, `(k, d_in)`."""
        columns: Tensor = self.v()
        return columns.T.to(self.dtype)

    def factors(self) -> tuple[Tensor, Tensor]:
        """`(alpha / r) U diag(lambda)`, shape `(d_out, K)`, and `V^T`, shape `(K, d_in)`."""
        return self.up(), self.down()

    def forward(self, x: Tensor) -> Tensor:
        """`(alpha / r) U diag(lambda) V^T dropout(x)`: `(..., d_in) -> (..., d_out)` (arXiv 2503.05431)."""
        return nn.functional.linear(
            nn.functional.linear(self.dropout(x), self.cached("down", self.down)), self.cached("up", self.up)
        )
