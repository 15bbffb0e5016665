"""Circuit requests of a model, found without changing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from qpeft.adapters.quantum_layer import CircuitLayer, executed_by
from qpeft.circuits.executor import Executor, Expectations
from qpeft.circuits.ir import Circuit, Observable
from qpeft.circuits.simulator.simulate import Simulator


@dataclass
class Request:
    """A layer, its circuit and the observables that it measures (None: `Z` of every qubit)."""

    layer: CircuitLayer
    circuit: Circuit
    observables: tuple[Observable, ...] | None = None

    @property
    def trained(self) -> bool:
        """Whether the circuit's angles are trained."""
        return bool(self.layer.angles.requires_grad)


class _Recorder:
    """An Executor that writes down what a layer compiles."""

    has_state = False

    def __init__(self, request: Request) -> None:
        self.request = request

    def compile(self, circuit: Circuit, observables: Sequence[Observable] | None = None) -> Expectations:
        self.request.observables = None if observables is None else tuple(observables)
        return Simulator().compile(circuit, observables)


def circuit_requests(model: nn.Module) -> list[Request]:
    """Requests of a model's circuits. A circuit that several modules share gives one request.

    Raises AdapterError for a circuit that no backend can run.
    """
    found = [Request(module, module.circuit) for module in model.modules() if isinstance(module, CircuitLayer)]
    recorders: dict[int, Executor] = {id(request.layer): _Recorder(request) for request in found}
    with executed_by(model, lambda layer: recorders[id(layer)]):
        return found
