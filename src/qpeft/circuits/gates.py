"""The table of gates: the only place where their facts are written. Standard library only."""

from __future__ import annotations

import cmath
import functools
import math
from dataclasses import dataclass

Matrix = tuple[tuple[complex, ...], ...]


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
        """Whether the gate takes an angle."""
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


# The inverse of a fixed gate that is not its own; a gate with an angle is inverted by the angle's sign.
INVERSE = {"s": "sdg", "sdg": "s", "t": "tdg", "tdg": "t", "sx": "sxdg", "sxdg": "sx"}

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
