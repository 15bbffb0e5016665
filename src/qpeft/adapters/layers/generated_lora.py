"""LoRA factors made by a small generator: a circuit without inputs, or one of its classical controls.

circuit   RY on every qubit and linear CNOTs (ansatz.ry_cnot)
product   the same circuit without its CNOTs: n independent bits, as many angles
hashed    no circuit: as many numbers, each repeated with random signs at random places, as in HashedNets (arXiv 1504.04788)
frozen    the circuit at its random initial angles, not trained
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qpeft.adapters.base import Delta, RankConfig, make_dropout
from qpeft.adapters.quantum_layer import CircuitLayer, ProbabilityLayer, StateLayer
from qpeft.circuits import ansatz
from qpeft.circuits.ir import Circuit

GENERATORS = ("circuit", "product", "hashed", "frozen")


def qubits_for(size: int) -> int:
    """The least number of qubits whose basis states number at least `size`; at least one."""
    return max(1, (size - 1).bit_length())


class Hashed(nn.Module):
    """A unit vector of `size` real entries from `n_numbers` trained ones: `v_i = sign_i number[place_i] / norm`.

    Places and signs are random integers, drawn anew from `seed` wherever the module is built: PyTorch's generator gives the
    same integers on every machine, so that nothing of length `size` is saved.
    """

    def __init__(self, size: int, n_numbers: int, seed: int = 0) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.empty(n_numbers))
        generator = torch.Generator(device="cpu").manual_seed(seed)
        draw = torch.randint(2 * n_numbers, (size,), generator=generator, device="cpu")
        self.register_buffer("place", draw // 2, persistent=False)
        self.register_buffer("sign", 2 * (draw % 2) - 1, persistent=False)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw the trained numbers uniform in (-pi, pi), as angles are."""
        self.numbers.uniform_(-math.pi, math.pi)  # as angles start

    def forward(self) -> Tensor:
        """The unit vector `(size,)`."""
        v: Tensor = self.numbers[self.get_buffer("place")] * self.get_buffer("sign")
        return v / v.square().sum().sqrt()


class RealState(nn.Module):
    """The `2^n` real amplitudes that a generator makes, a unit vector; `n L` numbers whatever the kind."""

    def __init__(self, kind: str, n_qubits: int, n_layers: int) -> None:
        super().__init__()
        self.source = _source(kind, n_qubits, n_layers, StateLayer)

    def forward(self) -> Tensor:
        """Real amplitudes `(2^n,)`, a unit vector."""
        made = self.source()
        amplitudes: Tensor = made if isinstance(made, Tensor) else made[0][:, 0]
        return amplitudes


class Probabilities(nn.Module):
    """The `2^n` probabilities that a generator makes, of sum 1; `n L` numbers whatever the kind."""

    def __init__(self, kind: str, n_qubits: int, n_layers: int) -> None:
        super().__init__()
        self.source = _source(kind, n_qubits, n_layers, ProbabilityLayer)

    def forward(self) -> Tensor:
        """Probabilities `(2^n,)`, of sum 1; a hashed generator's are the squares of its unit vector."""
        made: Tensor = self.source()
        return made.square() if isinstance(self.source, Hashed) else made


def _source(kind: str, n_qubits: int, n_layers: int, layer: type[CircuitLayer]) -> nn.Module:
    if kind == "hashed":
        return Hashed(2**n_qubits, n_qubits * n_layers)
    circuit: Circuit = ansatz.ry_cnot(n_qubits, n_layers, entangling=kind != "product")
    return layer(circuit, frozen=kind == "frozen")


class GeneratedLora(Delta):
    """`delta = scale B diag(gate) A x`, where B and A are generated and the gate is trained, zero at the start.

    Subclasses set `generator` and implement `numbers()`: `r (d_in + d_out)` numbers of unit size, A row-major `(r, d_in)` first,
    then B `(d_out, r)`. A is divided by `sqrt(d_in)`, so that `A x` has the size of x.
    """

    def __init__(self, d_in: int, d_out: int, config: RankConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__(d_in, d_out, config, scope)
        self.r, self.scale, self.dropout = config.r, config.scale, make_dropout(config.dropout)
        self.gate = nn.Parameter(torch.zeros(config.r) if config.init_weights else torch.ones(config.r))

    @property
    def linear(self) -> bool:
        """True: the delta is the matrix `scale B diag(gate) A`."""
        return True

    def numbers(self) -> Tensor:
        """`(r (d_in + d_out),)`, differentiable in what generates them."""
        raise NotImplementedError

    def factors(self) -> tuple[Tensor, Tensor]:
        """`scale B diag(gate)`, shape `(d_out, r)`, and A, shape `(r, d_in)`, in the gate's dtype."""
        numbers = self.numbers().to(self.gate.dtype)
        of_a = self.r * self.d_in
        down = numbers[:of_a].reshape(self.r, self.d_in) / math.sqrt(self.d_in)
        return numbers[of_a:].reshape(self.d_out, self.r) * (self.scale * self.gate), down

    def forward(self, x: Tensor) -> Tensor:
        """`scale B diag(gate) A dropout(x)`: `(..., d_in) -> (..., d_out)`."""
        up, down = self.factors()
        return nn.functional.linear(nn.functional.linear(self.dropout(x), down), up)
