"""Circuits as frozen data. Standard library only.

Qubit order, stated once for the whole project: **qubit 0 is the leftmost (most significant) bit**. The basis state
`|q0 q1 ... q_{n-1}>` has index `q0 * 2^(n-1) + ... + q_{n-1}`, and a two-qubit gate on `(a, b)` has the matrix whose first
bit is `a`. PennyLane's wires agree; Qiskit and pyqpanda3 put qubit 0 in the lowest bit, so their basis indices are ours with
the bits reversed, while qubit *labels*, and with them `<Z_k>`, are the same everywhere.

Parameters live outside: a circuit is called with one real vector `params` of length `n_params`. Its first `n_inputs` entries
are *inputs* (data, different for each sample of a batch), the rest *angles* (shared by the batch, trainable).
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qpeft.circuits.gates import GATES as GATES
from qpeft.circuits.gates import INVERSE
from qpeft.circuits.gates import PAULI as PAULI
from qpeft.circuits.gates import GateSpec as GateSpec
from qpeft.errors import CircuitError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT, VERSION = "qpeft.circuit", 1
PRODUCT_HINT = (
    "make the product, or any other function, outside: give the circuit an input u and call it with u = x * w, "
    "whose gradient torch carries on to both"
)

PauliString = tuple[tuple[int, str], ...]


def _is_index(value: object) -> bool:
    """A whole number of at least 0 (data read from JSON may be anything)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _finite(value: object, what: str) -> float:
    """A finite number as a float, minus zero as zero, so that equal circuits have equal ids."""
    try:
        number = float(value) if not isinstance(value, (bool, str, bytes)) else math.nan  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise CircuitError(f"{what} must be a finite number", value=value)
    return number + 0.0


@dataclass(frozen=True)
class Angle:
    """A gate's angle in radians: `scale * params[index] + shift`, or the constant `shift` when `index` is None."""

    index: int | None = None
    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if self.index is not None and not _is_index(self.index):
            raise CircuitError("a parameter index must be a whole number of at least 0", value=self.index)
        for name in ("scale", "shift"):
            object.__setattr__(self, name, _finite(getattr(self, name), f"an angle's {name}"))
        if self.index is None:
            object.__setattr__(self, "scale", 1.0)

    def value(self, params: Sequence[float]) -> float:
        """The angle in radians for these parameters."""
        return self.shift if self.index is None else self.scale * params[self.index] + self.shift


@dataclass(frozen=True)
class Op:
    """One gate on given qubits; `angle` for parametrised gates only."""

    gate: str
    qubits: tuple[int, ...]
    angle: Angle | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "qubits", tuple(self.qubits))
        spec = GATES.get(self.gate)
        if spec is None:
            raise CircuitError("unknown gate", value=self.gate, bound=", ".join(GATES))
        if len(self.qubits) != spec.n_qubits or len(set(self.qubits)) != len(self.qubits):
            raise CircuitError(f"gate {self.gate} acts on {spec.n_qubits} different qubit(s)", value=self.qubits)
        if spec.parametrised != (self.angle is not None):
            raise CircuitError(f"gate {self.gate} takes {'one angle' if spec.parametrised else 'no angle'}", value=self.angle)

    @property
    def spec(self) -> GateSpec:
        """The gate's entry in the table."""
        return GATES[self.gate]

    def inverse(self) -> Op:
        """The gate that undoes this one."""
        angle = None if self.angle is None else Angle(self.angle.index, -self.angle.scale, -self.angle.shift)
        return Op(INVERSE.get(self.gate, self.gate), self.qubits, angle)


@dataclass(frozen=True)
class Observable:
    """A real combination of Pauli strings: `sum_t coefficient_t * P_t`.

    A Pauli string is written as sorted `(qubit, "X" | "Y" | "Z")` pairs; the empty string is the identity.
    """

    terms: tuple[tuple[float, tuple[tuple[int, str], ...]], ...]

    def __post_init__(self) -> None:
        checked = []
        for coefficient, string in self.terms:
            qubits = [q for q, _ in string]
            if len(set(qubits)) != len(qubits) or not all(map(_is_index, qubits)):
                raise CircuitError("a Pauli string names each qubit once, from 0", value=string)
            if any(p not in ("X", "Y", "Z") for _, p in string):
                raise CircuitError("a Pauli string holds X, Y and Z", value=string)
            number = _finite(coefficient, "an observable's coefficient")
            checked.append((number, tuple(sorted((int(q), p) for q, p in string))))
        object.__setattr__(self, "terms", tuple(checked))

    @classmethod
    def pauli(cls, string: str, coefficient: float = 1.0) -> Observable:
        """From a Pauli string: `Observable.pauli("IZZ")`.

        Args:
            string: one letter of I, X, Y, Z per qubit, qubit 0 first.
            coefficient: real factor.
        """
        return cls(((coefficient, tuple((q, p) for q, p in enumerate(string) if p != "I")),))

    @classmethod
    def z(cls, qubit: int) -> Observable:
        """`Z` on one qubit."""
        return cls(((1.0, ((qubit, "Z"),)),))


def commuting_groups(observables: Sequence[Observable]) -> list[tuple[dict[int, str], list[PauliString]]]:
    """Group distinct Pauli strings greedily: the strings of a group share one basis per qubit. `(basis, strings)` pairs."""
    groups: list[tuple[dict[int, str], list[PauliString]]] = []
    strings = dict.fromkeys(string for observable in observables for _, string in observable.terms if string)
    for string in strings:
        fitting = [group for group in groups if all(group[0].get(qubit, pauli) == pauli for qubit, pauli in string)]
        if not fitting:
            groups.append(({}, []))
        basis, members = (fitting or groups[-1:])[0]
        basis.update(string)
        members.append(string)
    return groups


@dataclass(frozen=True)
class Circuit:
    """A circuit from `|0...0>`: validated on construction, hashable, serialisable.

    `params = (inputs..., angles...)` has `n_params` entries of which the first `n_inputs` are data.
    """

    n_qubits: int
    ops: tuple[Op, ...]
    n_inputs: int = 0
    n_params: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "ops", tuple(self.ops))
        if not _is_index(self.n_qubits) or self.n_qubits < 1:
            raise CircuitError("a circuit has at least one qubit", value=self.n_qubits)
        if not (_is_index(self.n_inputs) and _is_index(self.n_params) and self.n_inputs <= self.n_params):
            raise CircuitError("n_inputs must lie between 0 and n_params", value=self.n_inputs, bound=f"0..{self.n_params}")
        for position, op in enumerate(self.ops):
            for qubit in op.qubits:
                if not _is_index(qubit) or qubit >= self.n_qubits:
                    raise CircuitError(f"op {position} ({op.gate}): no such qubit", value=qubit, bound=f"0..{self.n_qubits - 1}")
            if op.angle is not None and op.angle.index is not None and op.angle.index >= self.n_params:
                raise CircuitError(
                    f"op {position} ({op.gate}): no such parameter", value=op.angle.index, bound=f"0..{self.n_params - 1}"
                )

    @property
    def n_angles(self) -> int:
        """How many parameters are angles, shared by the batch and trainable."""
        return self.n_params - self.n_inputs

    @functools.cached_property
    def id(self) -> str:
        """SHA-256 of the canonical JSON, hexadecimal: equal circuits have equal ids on every machine."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def __hash__(self) -> int:
        return hash(self.id)

    def __deepcopy__(self, memo: object) -> Circuit:
        return self  # frozen: models that hold a circuit share it with their copies

    def is_input(self, op: Op) -> bool:
        """True when the op's angle depends on an input."""
        return op.angle is not None and op.angle.index is not None and op.angle.index < self.n_inputs

    def bind(self, params: Sequence[float]) -> Circuit:
        """The same circuit with every angle a constant."""
        if len(params) != self.n_params:
            raise CircuitError("wrong number of parameters", value=len(params), bound=self.n_params)
        ops = (Op(op.gate, op.qubits, None if op.angle is None else Angle(shift=op.angle.value(params))) for op in self.ops)
        return Circuit(self.n_qubits, tuple(ops))

    def inverse(self) -> Circuit:
        """The circuit that undoes this one, with the same parameters."""
        return Circuit(self.n_qubits, tuple(op.inverse() for op in reversed(self.ops)), self.n_inputs, self.n_params)

    def compose(self, other: Circuit, qubits: Sequence[int] | None = None, *, share_inputs: bool = False) -> Circuit:
        """This circuit, then another one.

        Args:
            other: has at most as many qubits.
            qubits: which qubit of this circuit each qubit of `other` is; default the first ones.
            share_inputs: give both the same inputs (data re-uploading); else those of `other` come after this one's.

        Returns:
            A circuit with the angles of this one, then those of `other`.

        Raises:
            CircuitError: qubits that do not fit, or shared inputs of different number.
        """
        places = tuple(range(other.n_qubits)) if qubits is None else tuple(qubits)
        if len(places) != other.n_qubits or len(set(places)) != len(places) or not set(places) <= set(range(self.n_qubits)):
            raise CircuitError("a place for every qubit of the other circuit", value=places, bound=f"0..{self.n_qubits - 1}")
        if share_inputs and self.n_inputs != other.n_inputs:
            raise CircuitError("circuits that share inputs take as many", value=other.n_inputs, bound=self.n_inputs)
        own_inputs = 0 if share_inputs else self.n_inputs
        n_inputs = own_inputs + other.n_inputs

        def moved(op: Op, before_inputs: int, before_angles: int, n: int, places: Sequence[int]) -> Op:
            angle = op.angle
            if angle is not None and angle.index is not None:
                index = angle.index + (before_inputs if angle.index < n else n_inputs - n + before_angles)
                angle = Angle(index, angle.scale, angle.shift)
            return Op(op.gate, tuple(places[q] for q in op.qubits), angle)

        first = [moved(op, 0, 0, self.n_inputs, range(self.n_qubits)) for op in self.ops]
        second = [moved(op, own_inputs, self.n_angles, other.n_inputs, places) for op in other.ops]
        return Circuit(self.n_qubits, (*first, *second), n_inputs, n_inputs + self.n_angles + other.n_angles)

    def statevector(self, params: Sequence[float] = ()) -> Tensor:
        """The exact final state: complex128 `(2^n,)`, qubit 0 as the most significant bit of the index.

        Args:
            params: inputs, then angles, radians, `n_params` of them.

        Raises:
            CircuitError: the wrong number of parameters. ResourceError: the state does not fit into memory.
        """
        import torch

        from qpeft.circuits.simulator.statevector import amplitudes

        return torch.complex(*amplitudes(self.bind([float(value) for value in params]), torch.zeros(0, dtype=torch.float64)))

    def draw(self, style: Literal["text", "picture"] = "text", *, fold: int = 100) -> Any:
        """Draw the circuit.

        Inputs are written `x0, x1, ..`, angles `w0, w1, ..`.

        Args:
            style: "text" or "picture".
            fold: longest line of text, characters.

        Returns:
            A string, or a Matplotlib figure (extra `report`).
        """
        from qpeft.circuits.text.drawing import draw_picture, draw_text

        return draw_text(self, fold) if style == "text" else draw_picture(self)

    # Conversions: each is in a module of its own in circuits/text

    @classmethod
    def from_qasm(cls, text: str | bytes, inputs: Sequence[str] | None = None, **limits: int) -> Circuit:
        """Read OpenQASM 2 or 3: see `qpeft.circuits.text.qasm.from_qasm` (extra `qasm`).

        Circuit.from_qasm(text, inputs=["x"])  # x, or x[0], x[1], .. are data; every other parameter is an angle
        """
        from qpeft.circuits.text.qasm import from_qasm

        return from_qasm(text, inputs=inputs, **limits)

    @classmethod
    def from_originir(cls, text: str, **limits: int) -> Circuit:
        """Read OriginIR, whose angles are numbers: see `qpeft.circuits.text.originir.from_originir`. Measurements are left out."""
        from qpeft.circuits.text.originir import from_originir

        return from_originir(text, **limits).circuit

    @classmethod
    def from_qiskit(cls, circuit: Any, inputs: Any = None, angles: Any = None) -> Circuit:
        """Read a Qiskit `QuantumCircuit`: see `qpeft.circuits.text.qiskit.from_qiskit` (extra `qiskit`).

        Circuit.from_qiskit(qc, inputs=x, angles=w)  # ParameterVectors, lists of Parameters, or names
        """
        from qpeft.circuits.text.qiskit import from_qiskit

        return from_qiskit(circuit, inputs, angles)

    @classmethod
    def from_pennylane(cls, function: Any, inputs: Any = 0, angles: Any = 0, *, wires: Sequence[Any] | None = None) -> Circuit:
        """Read a PennyLane quantum function or QNode: see `qpeft.circuits.text.pennylane.from_pennylane` (extra `pennylane`).

        Circuit.from_pennylane(lambda x, w: ..., inputs=4, angles=(2, 4))  # the shapes of its two arguments
        """
        from qpeft.circuits.text.pennylane import from_pennylane

        return from_pennylane(function, inputs, angles, wires=wires)

    def to_qasm2(self, params: Sequence[float] | None = None) -> str:
        """OpenQASM 2 with numbers for `params`: see `qpeft.circuits.text.qasm.to_qasm2`."""
        from qpeft.circuits.text.qasm import to_qasm2

        return to_qasm2(self, params)

    def to_qasm3(self, params: Sequence[float] | None = None) -> str:
        """OpenQASM 3, with free parameters where `params` is None: see `qpeft.circuits.text.qasm.to_qasm3`."""
        from qpeft.circuits.text.qasm import to_qasm3

        return to_qasm3(self, params)

    def to_originir(self, params: Sequence[float] = ()) -> str:
        """OriginIR with numbers for `params`, every qubit measured: see `qpeft.circuits.text.originir.to_originir`."""
        from qpeft.circuits.text.originir import to_originir

        return to_originir(self, params)

    def to_qiskit(self, params: Sequence[float] | None = None) -> Any:
        """A Qiskit `QuantumCircuit`, with ParameterVectors `in` and `theta` where `params` is None (extra `qiskit`)."""
        from qpeft.circuits.text.qiskit import to_qiskit

        return to_qiskit(self, params)

    def to_pennylane(self) -> Any:
        """A PennyLane quantum function of inputs and angles, on wires 0 to n - 1 (extra `pennylane`)."""
        from qpeft.circuits.text.pennylane import to_pennylane

        return to_pennylane(self)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: an op is `[gate, [qubits]]` or `[gate, [qubits], [index, scale, shift]]`."""
        ops: list[list[Any]] = []
        for op in self.ops:
            ops.append([op.gate, list(op.qubits)])
            if op.angle is not None:
                ops[-1].append([op.angle.index, op.angle.scale, op.angle.shift])
        return {
            "format": FORMAT,
            "version": VERSION,
            "n_qubits": self.n_qubits,
            "n_inputs": self.n_inputs,
            "n_params": self.n_params,
            "ops": ops,
        }

    def to_json(self) -> str:
        """Canonical JSON: keys sorted, no spaces."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_dict(cls, data: Any) -> Circuit:
        """Read the JSON form; raises CircuitError for anything that is not a valid circuit."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise CircuitError("not a circuit in qpeft's JSON form", bound=f'an object with "format": "{FORMAT}"')
        if data.get("version") != VERSION or isinstance(data["version"], bool):
            raise CircuitError("unknown circuit version", value=data.get("version"), bound=VERSION)
        if unknown := data.keys() - {"format", "version", "n_qubits", "n_inputs", "n_params", "ops"}:
            raise CircuitError("unknown fields in a circuit", value=", ".join(sorted(map(str, unknown))))
        try:
            ops = tuple(Op(gate, tuple(qubits), Angle(*angle[0]) if angle else None) for gate, qubits, *angle in data["ops"])
            if any(len(op) > 3 for op in data["ops"]):
                raise ValueError("an op has more than three entries")
            return cls(data["n_qubits"], ops, data["n_inputs"], data["n_params"])
        except CircuitError:
            raise
        except (TypeError, KeyError, IndexError, ValueError) as error:
            raise CircuitError(
                f"malformed circuit: {error!r}", bound="ops as [gate, [qubits]] or [gate, [qubits], [index, scale, shift]]"
            ) from error

    @classmethod
    def from_json(cls, text: str | bytes) -> Circuit:
        """Read what `to_json` wrote; CircuitError for anything else."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CircuitError(f"not JSON: {error}") from error
        return cls.from_dict(data)
