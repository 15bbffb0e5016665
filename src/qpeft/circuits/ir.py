"""Circuits as frozen data. Standard library only.

Qubit order, stated once for the whole project: **qubit 0 is the leftmost (most significant) bit**. The basis state
`|q0 q1 ... q_{n-1}>` has index `q0 * 2^(n-1) + ... + q_{n-1}`, and a two-qubit gate on `(a, b)` has the matrix whose first
bit is `a`. PennyLane's wires agree; Qiskit and pyqpanda3 put qubit 0 in the lowest bit, so their basis indices are ours with
the bits reversed, while qubit *labels*, and with them `<Z_k>`, are the same everywhere.

Parameters live outside: a circuit is called with one real vector `params` of length `n_params`. Its first `n_inputs` entries
are *inputs* (data, different for each sample of a batch), the rest *angles* (shared by the batch, trainable).
"""

from __future__ import annotations

import cmath
import functools
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qpeft.errors import CircuitError

FORMAT, VERSION = "qpeft.circuit", 1

Matrix = tuple[tuple[complex, ...], ...]
PauliString = tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class GateSpec:
    """One gate, the only place its facts are written.

    The matrix is `M(t) = constant + cos(frequency * t) * cosine + sin(frequency * t) * sine`, t in radians; a gate without a
    parameter has `constant` alone. `qasm` is the OpenQASM definition of a gate that OpenQASM 2's qelib1.inc lacks, exact to the
    phase, written in gates that it has; `stdgates` is False where OpenQASM 3's stdgates.inc lacks the gate too.
    """

    name: str
    n_qubits: int
    constant: Matrix
    cosine: Matrix | None = None
    sine: Matrix | None = None
    frequency: float = 0.5
    qasm: str | None = None
    stdgates: bool = True

    @property
    def parametrised(self) -> bool:
        return self.cosine is not None

    def matrix(self, angle: float = 0.0) -> Matrix:
        """The unitary, `2^n_qubits` rows; `angle` in radians, ignored by fixed gates."""
        if self.cosine is None or self.sine is None:
            return self.constant
        c, s = math.cos(self.frequency * angle), math.sin(self.frequency * angle)
        return tuple(
            tuple(a + c * b + s * d for a, b, d in zip(*rows, strict=True))
            for rows in zip(self.constant, self.cosine, self.sine, strict=True)
        )

    def _parts(self) -> list[Matrix]:
        return [part for part in (self.constant, self.cosine, self.sine) if part is not None]

    @functools.cached_property
    def diagonal(self) -> bool:
        """True when the matrix is diagonal for every angle."""
        return all(not v for part in self._parts() for i, row in enumerate(part) for j, v in enumerate(row) if i != j)

    @functools.cached_property
    def frequencies(self) -> tuple[float, ...]:
        """The positive frequencies at which the angle enters expectation values, ascending: differences of the matrix's exponents.

        A rotation has `(1,)`, a controlled rotation `(0.5, 1)`, a fixed gate none.
        """
        if self.cosine is None or self.sine is None:
            return ()
        pairs = [(b, d) for rows in zip(self.cosine, self.sine, strict=True) for b, d in zip(*rows, strict=True)]
        parts = {0.0: any(v for row in self.constant for v in row)}  # exponent -> whether the matrix has it
        parts[self.frequency], parts[-self.frequency] = (any(abs(b + s * d) > 0 for b, d in pairs) for s in (-1j, 1j))
        exponents = [exponent for exponent, there in parts.items() if there]
        return tuple(sorted({abs(a - b) for a in exponents for b in exponents} - {0.0}))

    @functools.cached_property
    def permutation(self) -> bool:
        """True when the matrix only permutes basis states (entries 0 and 1)."""
        return not self.parametrised and all(v in (0, 1) for row in self.constant for v in row)


def _diagonal(*values: complex) -> Matrix:
    return tuple(tuple(v if i == j else 0 for j in range(len(values))) for i, v in enumerate(values))


def _block(upper: Matrix, lower: Matrix) -> Matrix:
    """Block-diagonal matrix: `upper` where the first qubit is 0, `lower` where it is 1."""
    k = len(upper)
    return tuple(row + (0,) * k for row in upper) + tuple((0,) * k + row for row in lower)


def _controlled(gate: Matrix, identity: bool) -> Matrix:
    return _block(_I if identity else _O, gate)


def _scaled(factor: complex, matrix: Matrix) -> Matrix:
    return tuple(tuple(factor * v for v in row) for row in matrix)


def _kron(a: Matrix, b: Matrix) -> Matrix:
    return tuple(tuple(x * y for x in ra for y in rb) for ra in a for rb in b)


_I, _O = _diagonal(1, 1), _diagonal(0, 0)
_X: Matrix = ((0, 1), (1, 0))
_Y: Matrix = ((0, -1j), (1j, 0))
_Z = _diagonal(1, -1)
_H: Matrix = _scaled(math.sqrt(0.5), ((1, 1), (1, -1)))
_SX: Matrix = ((0.5 + 0.5j, 0.5 - 0.5j), (0.5 - 0.5j, 0.5 + 0.5j))
_SXDG: Matrix = ((0.5 - 0.5j, 0.5 + 0.5j), (0.5 + 0.5j, 0.5 - 0.5j))
PAULI: dict[str, Matrix] = {"I": _I, "X": _X, "Y": _Y, "Z": _Z}


def _rotation(name: str, generator: Matrix, qasm: str | None = None, stdgates: bool = True) -> GateSpec:
    """`exp(-i t/2 generator)` for a generator that squares to the identity."""
    size = len(generator)
    n = size.bit_length() - 1
    return GateSpec(
        name, n, _diagonal(*(0,) * size), _diagonal(*(1,) * size), _scaled(-1j, generator), qasm=qasm, stdgates=stdgates
    )


def _controlled_rotation(name: str, generator: Matrix, qasm: str | None = None) -> GateSpec:
    constant, cosine, sine = _block(_I, _O), _controlled(_I, False), _controlled(_scaled(-1j, generator), False)
    return GateSpec(name, 2, constant, cosine, sine, qasm=qasm)


GATES: dict[str, GateSpec] = {
    spec.name: spec
    for spec in (
        GateSpec("id", 1, _I),
        GateSpec("x", 1, _X),
        GateSpec("y", 1, _Y),
        GateSpec("z", 1, _Z),
        GateSpec("h", 1, _H),
        GateSpec("s", 1, _diagonal(1, 1j)),
        GateSpec("sdg", 1, _diagonal(1, -1j)),
        GateSpec("t", 1, _diagonal(1, cmath.exp(0.25j * math.pi))),
        GateSpec("tdg", 1, _diagonal(1, cmath.exp(-0.25j * math.pi))),
        GateSpec("sx", 1, _SX, qasm="gate sx a { h a; s a; h a; }"),
        GateSpec("sxdg", 1, _SXDG, qasm="gate sxdg a { h a; sdg a; h a; }", stdgates=False),
        GateSpec("cx", 2, _controlled(_X, True)),
        GateSpec("cy", 2, _controlled(_Y, True)),
        GateSpec("cz", 2, _controlled(_Z, True)),
        GateSpec("ch", 2, _controlled(_H, True)),
        GateSpec(
            "swap",
            2,
            ((1, 0, 0, 0), (0, 0, 1, 0), (0, 1, 0, 0), (0, 0, 0, 1)),
            qasm="gate swap a, b { cx a, b; cx b, a; cx a, b; }",
        ),
        _rotation("rx", _X),
        _rotation("ry", _Y),
        _rotation("rz", _Z),
        GateSpec("p", 1, _diagonal(1, 0), _diagonal(0, 1), _diagonal(0, 1j), 1.0, "gate p(t) a { u1(t) a; }"),
        _controlled_rotation("crx", _X, "gate crx(t) a, b { h b; crz(t) a, b; h b; }"),
        _controlled_rotation("cry", _Y, "gate cry(t) a, b { ry(t/2) b; cx a, b; ry(-t/2) b; cx a, b; }"),
        _controlled_rotation("crz", _Z),
        GateSpec(
            "cp",
            2,
            _diagonal(1, 1, 1, 0),
            _diagonal(0, 0, 0, 1),
            _diagonal(0, 0, 0, 1j),
            frequency=1.0,
            qasm="gate cp(t) a, b { cu1(t) a, b; }",
        ),
        _rotation("rxx", _kron(_X, _X), "gate rxx(t) a, b { h a; h b; cx a, b; rz(t) b; cx a, b; h b; h a; }", False),
        _rotation(
            "ryy",
            _kron(_Y, _Y),
            "gate ryy(t) a, b { sdg a; h a; sdg b; h b; cx a, b; rz(t) b; cx a, b; h b; s b; h a; s a; }",
            False,
        ),
        _rotation("rzz", _kron(_Z, _Z), "gate rzz(t) a, b { cx a, b; rz(t) b; cx a, b; }", False),
    )
}


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
        return GATES[self.gate]


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
        """From a Pauli string with one letter per qubit, qubit 0 first: `Observable.pauli("IZZ")`."""
        return cls(((coefficient, tuple((q, p) for q, p in enumerate(string) if p != "I")),))

    @classmethod
    def z(cls, qubit: int) -> Observable:
        return cls(((1.0, ((qubit, "Z"),)),))


def commuting_groups(observables: Sequence[Observable]) -> list[tuple[dict[int, str], list[PauliString]]]:
    """Distinct Pauli strings of all observables in groups that one basis per qubit measures: `(basis, strings)` pairs, greedy."""
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
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CircuitError(f"not JSON: {error}") from error
        return cls.from_dict(data)
