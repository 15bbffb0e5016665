"""The circuits of an adapted model with their trained angles, module by module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qpeft.adapters.base import Delta
from qpeft.adapters.peft.layer import DeltaLayer
from qpeft.adapters.quantum_layer import CircuitLayer
from qpeft.circuits.ir import Angle, Circuit, Observable, Op
from qpeft.circuits.simulator.simulate import expectations
from qpeft.errors import AdapterError, CircuitError


@dataclass(frozen=True, eq=False)
class ModuleCircuit:
    """The circuit of one adapted module.

    Attributes:
        module: its name in the base model.
        circuit: as the adapter's settings give it, parameters free.
        observables: what the adapter reads; `<Z_k>` of every qubit where it reads the state itself.
        angles: `(n_angles,)` float64, radians, as trained when `circuits_of` was called.
        layer: where it runs; modules that share a circuit share the layer.
    """

    module: str
    circuit: Circuit
    observables: tuple[Observable, ...]
    angles: Tensor
    layer: CircuitLayer

    @property
    def trained(self) -> Circuit:
        """The circuit with its angles put in; its inputs stay free."""
        values, n = self.angles.tolist(), self.circuit.n_inputs

        def put_in(op: Op) -> Op:
            if op.angle is None or op.angle.index is None or op.angle.index < n:
                return op
            angle = op.angle
            return Op(op.gate, op.qubits, Angle(shift=angle.scale * values[angle.index - n] + angle.shift))  # type: ignore[operator]

        return Circuit(self.circuit.n_qubits, tuple(map(put_in, self.circuit.ops)), n, n)

    def bound(self, u: Sequence[float] | Tensor = ()) -> Circuit:
        """The circuit without a free parameter.

        Args:
            u: its inputs, `(n_inputs,)` in radians; nothing for a circuit without inputs.

        Raises:
            CircuitError: another number of inputs.
        """
        return self.circuit.bind([*self._inputs(u), *self.angles.tolist()])

    def expectations(self, u: Sequence[float] | Tensor = ()) -> Tensor:
        """Exact values `(n_observables,)` of the observables at the inputs `u`, float64. Raises as `bound` does."""
        inputs = torch.tensor(self._inputs(u), dtype=torch.float64)
        with torch.no_grad():
            found: Tensor = expectations(self.circuit, inputs, self.angles, list(self.observables))
        return found

    def _inputs(self, u: Sequence[float] | Tensor) -> list[float]:
        values = [float(value) for value in (u.flatten().tolist() if isinstance(u, Tensor) else u)]
        if len(values) != self.circuit.n_inputs:
            raise CircuitError("inputs of the wrong length", value=len(values), bound=f"{self.circuit.n_inputs} inputs")
        return values


def circuits_of(model: nn.Module, adapter: str | None = None) -> dict[str, ModuleCircuit]:
    """The circuits of an adapted model, by the name of the adapted module in the base model.

        qpeft.circuits_of(model)["model.layers.0.self_attn.q_proj"].bound(u).to_qiskit()

    Modules that share a circuit each have an entry. Where an adapter has several circuits in a module, the circuit's name follows
    the module's after a dot.

    Args:
        model: with an adapter, a PEFT model or its base model.
        adapter: its name; default the first one that is active.

    Raises:
        AdapterError: no circuit in the adapter.
    """
    found = {
        name: ModuleCircuit(name, layer.circuit, _observables(layer), layer.angles.detach().double().cpu().clone(), layer)
        for _, name, layer in _layers(model, adapter)
    }
    if not found:
        raise AdapterError(
            "the model has no circuits",
            value=adapter or "its active adapter",
            hint="a method with a circuit, not measured (stored) and not replaced by a control",
        )
    return found


@torch.no_grad()
def circuit_inputs(model: nn.Module, adapter: str | None = None, **batch: Any) -> dict[str, Tensor]:
    """What each circuit gets as inputs while the model reads a batch, by the names of `circuits_of`.

    Args:
        model, adapter: as in `circuits_of`; the adapter must be active.
        batch: the model's arguments, such as `input_ids (B, T)`.

    Returns:
        `(B, T, n_inputs)` for each circuit with inputs that ran, radians.
    """
    found: dict[str, Tensor] = {}
    handles = []
    for module, name, layer in _layers(model, adapter):
        handles += _watch(module, name, layer, found)
    training = model.training
    try:
        model.eval()
        model(**batch)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return found


def _watch(module: DeltaLayer, name: str, layer: CircuitLayer, found: dict[str, Tensor]) -> list[Any]:
    """Hooks that keep what `layer` gets while `module` runs: other modules may share the layer."""
    inside = [False]

    def enter(*_: Any) -> None:
        inside[0] = True

    def leave(*_: Any) -> None:
        inside[0] = False

    def keep(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        if inside[0] and arguments:
            found[name] = arguments[0].detach().clone()

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave), layer.register_forward_pre_hook(keep)]


def _layers(model: Any, adapter: str | None) -> Iterator[tuple[DeltaLayer, str, CircuitLayer]]:
    """Adapted modules, names and circuit layers."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for name, module in base.named_modules():
        if not isinstance(module, DeltaLayer):
            continue
        chosen = adapter if adapter is not None else next((a for a in module.active_adapters if a in module.deltas), None)
        if chosen is None or chosen not in module.deltas:
            continue
        delta = module.deltas[chosen]
        assert isinstance(delta, Delta)
        own = [(path, m) for path, m in delta.named_modules() if isinstance(m, CircuitLayer)]
        own += [(path, m) for owner in delta.shared for path, m in owner.named_modules() if isinstance(m, CircuitLayer)]
        for path, layer in own:
            yield module, name if len(own) == 1 else f"{name}.{path}", layer


def _observables(layer: CircuitLayer) -> tuple[Observable, ...]:
    given = getattr(layer, "observables", None)
    return tuple(Observable.z(k) for k in range(layer.circuit.n_qubits)) if given is None else tuple(given)
