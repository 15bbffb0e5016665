"""Circuits as layers: trainable angles around an Executor, or around the exact state."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from qpeft.adapters.base import freeze
from qpeft.circuits.executor import Executor, Expectations
from qpeft.circuits.ir import Circuit, Observable
from qpeft.circuits.simulator import statevector
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.circuits.simulator.torch_engine.compiler import compile_circuit
from qpeft.errors import AdapterError

MEASURED_QUBITS = 10  # probabilities of a register are measured through 2^n Pauli strings of Z


class CircuitLayer(nn.Module):
    """A circuit and its angles `(n_angles,)`, in radians, which start uniform in (-pi, pi).

    Args:
        circuit: what runs.
        frozen: the angles are saved and never trained.
    """

    angles: nn.Parameter

    def __init__(self, circuit: Circuit, *, frozen: bool = False) -> None:
        super().__init__()
        self.circuit, self.compiled = circuit, compile_circuit(circuit)
        if frozen:
            freeze(self, "angles", torch.empty(circuit.n_angles))
        else:
            self.angles = nn.Parameter(torch.empty(circuit.n_angles))
        self.set_executor(Simulator())
        self.initialise()

    def set_executor(self, executor: Executor) -> None:
        """Run the circuit on another executor from now on."""
        raise NotImplementedError

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw the angles uniform in (-pi, pi)."""
        self.angles.uniform_(-math.pi, math.pi)

    def extra_repr(self) -> str:
        """Numbers of qubits, gates and angles, as `print(model)` shows them."""
        return f"{self.circuit.n_qubits} qubits, {len(self.circuit.ops)} gates, {self.circuit.n_angles} angles"


class QuantumLayer(CircuitLayer):
    """Expectation values of a circuit: inputs `(..., n_inputs)` in radians, outputs `(..., n_observables)`.

    Outputs are float32, or float64 for a float64 layer. The circuit runs on the exact simulator until `set_executor`.

    Args:
        circuit: with inputs.
        frozen: the angles are saved and never trained.
        observables: what is measured; default `<Z_k>` of every qubit k.
    """

    def __init__(self, circuit: Circuit, *, frozen: bool = False, observables: Sequence[Observable] | None = None) -> None:
        self.observables = None if observables is None else tuple(observables)
        super().__init__(circuit, frozen=frozen)

    @property
    def n_outputs(self) -> int:
        """Values that `forward` returns for a sample."""
        return self.circuit.n_qubits if self.observables is None else len(self.observables)

    def set_executor(self, executor: Executor) -> None:
        """Compile the circuit and its observables on `executor`, which runs them from now on."""
        self.run = executor.compile(self.circuit, self.observables)

    def forward(self, u: Tensor) -> Tensor:
        """Expectation values `(..., n_observables)` for inputs `u (..., n_inputs)` in radians.

        Raises:
            CircuitError: inputs of another last size, or not real.
        """
        return self.run(u, self.angles)


class StateLayer(CircuitLayer):
    """The first k columns of a circuit without inputs: real and imaginary parts, `(2^n, k)` each, float32 or float64.

    No measurement gives the signs and phases of amplitudes, so this layer needs an executor that has the state.

    Args:
        circuit: without inputs.
        k: columns, 1 to `2^n`.
        frozen: the angles are saved and never trained.
    """

    def __init__(self, circuit: Circuit, k: int = 1, *, frozen: bool = False) -> None:
        super().__init__(circuit, frozen=frozen)
        self.k = k

    def set_executor(self, executor: Executor) -> None:
        """Raises AdapterError for an executor that only measures."""
        if not executor.has_state:
            raise AdapterError(
                "this method reads amplitudes, which no measurement gives",
                value=type(executor).__name__,
                hint="train it on the simulator; a generator's weights then run anywhere, or take a method that runs on a chip",
            )

    def forward(self) -> tuple[Tensor, Tensor]:
        """Real and imaginary parts of the circuit's first k columns, `(2^n, k)` each, float32 or float64."""
        return statevector.run(self.compiled, self.angles, self.k)


class ProbabilityLayer(CircuitLayer):
    """`p_b = |<b|psi>|^2` of a circuit without inputs, `(2^n,)`, qubit 0 the most significant bit of b.

    An executor that has the state gives them exactly. Any other measures the Pauli strings of Z, whose expectation values are the
    probabilities' Walsh-Hadamard transform: `<Z^s> = sum_b (-1)^(s.b) p_b`. Noise may leave a probability slightly negative.
    """

    def set_executor(self, executor: Executor) -> None:
        """Raises AdapterError for more than `MEASURED_QUBITS` qubits on an executor that only measures."""
        self.run: Expectations | None = None
        if executor.has_state:
            return
        n = self.circuit.n_qubits
        if n > MEASURED_QUBITS:
            raise AdapterError("too many probabilities to measure", value=f"{n} qubits", bound=f"{MEASURED_QUBITS} qubits")
        strings = ("".join(letters) for letters in itertools.product("IZ", repeat=n))
        self.run = executor.compile(self.circuit, [Observable.pauli(string) for string in strings])

    def forward(self) -> Tensor:
        """Probabilities `(2^n,)` of the basis states, exact or from measured expectation values."""
        if self.run is None:
            re, im = statevector.run(self.compiled, self.angles, 1)
            return (re.square() + im.square())[:, 0]
        values = self.run(self.angles.new_empty(1, 0), self.angles)[0]
        for _ in range(self.circuit.n_qubits):  # a butterfly on the first bit, which then moves to the last place
            low, high = values.reshape(2, -1)
            values = torch.stack([low + high, low - high], dim=1).flatten()
        return values / len(values)


def set_executor(model: nn.Module, executor: Executor) -> int:
    """Run every circuit of a model on `executor`; returns how many circuits there are."""
    layers = [module for module in model.modules() if isinstance(module, CircuitLayer)]
    for layer in layers:
        layer.set_executor(executor)
    return len(layers)


@contextlib.contextmanager
def executed_by(model: nn.Module, choose: Callable[[CircuitLayer], Executor]) -> Iterator[None]:
    """Run each circuit of a model on the executor that `choose` gives for its layer, and afterwards where it ran before."""
    layers = [module for module in model.modules() if isinstance(module, CircuitLayer)]
    before = [(layer, layer.run) for layer in layers if hasattr(layer, "run")]
    try:
        for layer in layers:
            layer.set_executor(choose(layer))
        yield
    finally:
        for layer, run in before:
            layer.run = run
