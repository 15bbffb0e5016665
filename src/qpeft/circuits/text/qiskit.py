"""Circuit <-> Qiskit's `QuantumCircuit` (extra `qiskit`).

Qubits keep their labels. Qiskit puts qubit 0 in the lowest bit of a basis index and we in the highest, so state vectors agree with
the bits of each index reversed. States agree up to a global phase.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import IO, Any

from qpeft.circuits.ir import GATES, PRODUCT_HINT, Angle, Circuit, Op
from qpeft.circuits.text.names import ANGLES, INPUTS, in_natural_order, order_parameters
from qpeft.errors import CircuitError, MissingDependencyError

MAX_DEPTH = 32  # of definitions of gates in one another


def _quantum_circuit() -> tuple[Any, Any]:
    try:
        from qiskit import QuantumCircuit
        from qiskit.circuit import ParameterVector
    except ImportError as error:
        raise MissingDependencyError("qiskit", "qiskit", "a conversion from or to Qiskit") from error
    return QuantumCircuit, ParameterVector


def to_qiskit(circuit: Circuit, params: Sequence[float] | None = None) -> Any:
    """A `QuantumCircuit` of the same gates, without measurements.

    Args:
        circuit: the circuit.
        params: inputs, then angles, radians. Default: free, as ParameterVectors `in` (of the inputs) and `theta` (of the angles).

    Raises:
        CircuitError: the wrong number of parameters. MissingDependencyError: no Qiskit.
    """
    quantum_circuit, parameter_vector = _quantum_circuit()
    bound = circuit if params is None else circuit.bind([float(value) for value in params])
    vector = [*parameter_vector(INPUTS, bound.n_inputs), *parameter_vector(ANGLES, bound.n_angles)]
    out = quantum_circuit(bound.n_qubits)
    for op in bound.ops:
        angles = []
        if op.angle is not None:
            index = op.angle.index
            angles = [op.angle.shift if index is None else op.angle.scale * vector[index] + op.angle.shift]
        getattr(out, op.gate)(*angles, *op.qubits)
    return out


def write_qpy(circuit: Circuit, stream: IO[bytes]) -> None:
    """Write the circuit as `to_qiskit` makes it in Qiskit's file format, for `qiskit.qpy.load`.

    Args:
        circuit: the circuit.
        stream: binary stream to write to.
    """
    made = to_qiskit(circuit)
    from qiskit import qpy

    qpy.dump(made, stream)


def parameter_place(circuit: Circuit, parameter: Any) -> int:
    """Which of a circuit's parameters a Qiskit Parameter is.

    Args:
        circuit: the circuit.
        parameter: a Parameter of `to_qiskit(circuit)`.

    Returns:
        Index among inputs and angles.
    """
    return int(parameter.index) + (circuit.n_inputs if parameter.vector.name == ANGLES else 0)


def from_qiskit(circuit: Any, inputs: Any = None, angles: Any = None) -> Circuit:
    """Read a `QuantumCircuit`: its unitary gates in order.

    Gates that our table lacks are replaced by their definitions. Barriers, final measurements and global phases are left out. An
    angle may be a sum of `scale * parameter` and a constant; a gate with several parameters becomes one gate for each.

    Args:
        circuit: with at most the parameters named below.
        inputs: the data, in order: a ParameterVector, a Parameter, or a sequence of Parameters or names (of vectors too).
        angles: the trained parameters, likewise. Default: all that are not inputs, vectors in the order of their elements. Without
            either, the vector `in` is data and `theta` the angles.

    Raises:
        CircuitError: a parameter that is neither, a name that the circuit does not have, an angle that is not linear in the
            parameters, or an operation that is no unitary gate.
        MissingDependencyError: no Qiskit.
    """
    quantum_circuit, _ = _quantum_circuit()
    if not isinstance(circuit, quantum_circuit):
        raise CircuitError("not a Qiskit circuit", value=type(circuit).__name__, bound="qiskit.QuantumCircuit")
    found = {parameter.name: parameter for parameter in circuit.parameters}
    ordered = in_natural_order(sorted(found))
    data = _named(inputs, ordered)
    trained = _named(angles, ordered)
    if data is None and trained is None:
        data, trained = order_parameters(ordered, None)
    elif data is None or trained is None:
        given = set(data or trained or [])
        rest = [name for name in ordered if name not in given]
        data, trained = (rest if data is None else data), (rest if trained is None else trained)
    if both := set(data) & set(trained):
        raise CircuitError("a parameter is an input and an angle", value=", ".join(sorted(both)[:8]))
    if missing := [name for name in ordered if name not in {*data, *trained}]:
        raise CircuitError("these parameters are neither inputs nor angles", value=", ".join(missing[:8]))
    places = {found[name]: k for k, name in enumerate([*data, *trained]) if name in found}
    ops = list(_ops(circuit, {bit: k for k, bit in enumerate(circuit.qubits)}, places, MAX_DEPTH))
    return Circuit(circuit.num_qubits, tuple(ops), len(data), len(data) + len(trained))


def _named(given: Any, ordered: Sequence[str]) -> list[str] | None:
    """Names of the Parameters that a caller gave; names of his must be the circuit's, objects need not be used in it."""
    if given is None:
        return None
    if isinstance(given, str) or hasattr(given, "gradient"):
        given = [given]
    out: list[str] = []
    for one in given:
        out += order_parameters(ordered, [one])[0] if isinstance(one, str) else [one.name]
    return out


def _ops(circuit: Any, place: dict[Any, int], parameters: dict[Any, int], depth: int) -> Iterable[Op]:
    measured: set[int] = set()
    for instruction in circuit.data:
        gate, qubits = instruction.operation, tuple(place[bit] for bit in instruction.qubits)
        if gate.name == "barrier":
            continue
        if gate.name == "measure":
            measured.update(qubits)
            continue
        if not measured.isdisjoint(qubits):
            raise CircuitError("a gate after the measurement of its qubit", value=gate.name, hint="measure at the end")
        yield from _gate(gate, qubits, parameters, depth)


def _gate(gate: Any, qubits: tuple[int, ...], parameters: dict[Any, int], depth: int) -> Iterable[Op]:
    name = gate.name
    if name in GATES and getattr(gate, "ctrl_state", 1) == 1:
        if not GATES[name].parametrised:
            yield Op(name, qubits)
        else:
            for angle in _angles(gate.params[0], parameters):
                yield Op(name, qubits, angle)
        return
    if name in ("u", "u3"):  # up to a global phase
        theta, phi, lam = gate.params
        for rotation, value in (("rz", lam), ("ry", theta), ("rz", phi)):
            for angle in _angles(value, parameters):
                yield Op(rotation, qubits, angle)
        return
    if name == "u1":
        for angle in _angles(gate.params[0], parameters):
            yield Op("p", qubits, angle)
        return
    definition = getattr(gate, "definition", None)
    if definition is None or depth == 0:
        if name == "global_phase":
            return
        raise CircuitError(
            "not a unitary gate that can be read", value=name, hint="leave out measurements, resets and control flow"
        )
    yield from _ops(definition, {bit: qubits[k] for k, bit in enumerate(definition.qubits)}, parameters, depth - 1)


def _angles(value: Any, parameters: dict[Any, int]) -> list[Angle]:
    """Angles of gates in a row whose sum is a number or a ParameterExpression."""
    used = sorted(getattr(value, "parameters", ()), key=lambda parameter: parameters[parameter])
    if not used:
        return [Angle(shift=float(value))]
    terms = []
    for parameter in used:
        slope = value.gradient(parameter)
        if getattr(slope, "parameters", ()):
            raise CircuitError("an angle must be a sum of scale * parameter and a constant", value=value, hint=PRODUCT_HINT)
        terms.append((parameters[parameter], float(slope)))
    shift = float(value.bind(dict.fromkeys(used, 0.0)))
    (index, scale), *others = terms
    return [Angle(index, scale, shift), *(Angle(index, scale) for index, scale in others)]
