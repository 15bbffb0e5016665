"""Circuit <-> OriginIR, the text in which pyqpanda3 and Origin Quantum's cloud exchange programs.

One instruction a line: `RX q[2],(0.5)`, `CNOT q[0],q[1]`, `MEASURE q[0],c[0]`; `DAGGER ... ENDDAGGER` inverts what it encloses and
`CONTROL q[0] ... ENDCONTROL` controls it. Qubits keep their labels: `q[k]` is qubit k. States agree up to a global phase.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qpeft.circuits.gates import INVERSE
from qpeft.circuits.ir import GATES, Angle, Circuit, Op
from qpeft.errors import OriginIRError

MAX_BYTES, MAX_QUBITS, MAX_OPS, MAX_DEPTH = 4 * 2**20, 1024, 200_000, 16

# A step is one gate of our table on places or qubits; "gphase" is a global phase, which a control turns into a gate.
Step = tuple[str, tuple[int, ...], float]

_PI = math.pi


@dataclass(frozen=True)
class MeasuredCircuit:
    """A circuit without parameters and which qubit goes into which classical bit: `measures` are `(qubit, bit)` pairs."""

    circuit: Circuit
    measures: tuple[tuple[int, int], ...]


def _u3(t: float, f: float, k: float) -> list[Step]:
    """`((cos t/2, -e^ik sin t/2), (e^if sin t/2, e^i(f+k) cos t/2))`."""
    return [("gphase", (), (f + k) / 2), ("rz", (0,), k), ("ry", (0,), t), ("rz", (0,), f)]


def _u4(a: float, b: float, c: float, d: float) -> list[Step]:
    """`e^ia RZ(b) RY(c) RZ(d)`."""
    return [("gphase", (), a), ("rz", (0,), d), ("ry", (0,), c), ("rz", (0,), b)]


def _on(place: int, *gates: tuple[str, float]) -> list[Step]:
    return [(name, (place,), angle) for name, angle in gates]


def _xx_yy(angle: float) -> list[Step]:
    return [("rxx", (0, 1), angle), ("ryy", (0, 1), angle)]


def _cu(a: float, b: float, c: float, d: float) -> list[Step]:
    return controlled([(name, tuple(q + 1 for q in places), angle) for name, places, angle in _u4(a, b, c, d)], 0)


def _table(name: str) -> Callable[..., list[Step]]:
    places = tuple(range(GATES[name].n_qubits))
    return lambda angle=0.0: [(name, places, angle)]


# OriginIR's gates: how many qubits, how many angles, and the steps they are.
_READ: dict[str, tuple[int, int, Callable[..., list[Step]]]] = {
    **{
        theirs: (GATES[ours].n_qubits, int(GATES[ours].parametrised), _table(ours))
        for theirs, ours in {
            "I": "id", "X": "x", "Y": "y", "Z": "z", "H": "h", "S": "s", "T": "t", "CNOT": "cx", "CZ": "cz", "SWAP": "swap",
            "RX": "rx", "RY": "ry", "RZ": "rz", "U1": "p", "P": "p", "CR": "cp", "CP": "cp",
            "RXX": "rxx", "RYY": "ryy", "RZZ": "rzz",
        }.items()
    },
    "X1": (1, 0, lambda: _on(0, ("rx", _PI / 2))),
    "Y1": (1, 0, lambda: _on(0, ("ry", _PI / 2))),
    "Z1": (1, 0, lambda: _on(0, ("rz", _PI / 2))),
    "RPhi": (1, 2, lambda t, phi: _on(0, ("rz", -phi), ("rx", t), ("rz", phi))),
    "U2": (1, 2, lambda f, k: _u3(_PI / 2, f, k)),
    "U3": (1, 3, _u3),
    "U4": (1, 4, _u4),
    "CU": (2, 4, _cu),
    "TOFFOLI": (3, 0, lambda: controlled([("cx", (1, 2), 0.0)], 0)),
    "ISWAP": (2, 0, lambda: _xx_yy(-_PI / 2)),
    "SQISWAP": (2, 0, lambda: _xx_yy(-_PI / 4)),
}  # fmt: skip
_READ |= {name.upper(): facts for name, facts in _READ.items()}

_WRITE: dict[str, str] = {
    "id": "I", "x": "X", "y": "Y", "z": "Z", "h": "H", "s": "S", "t": "T", "cx": "CNOT", "cz": "CZ", "swap": "SWAP", "rx": "RX",
    "ry": "RY", "rz": "RZ", "p": "U1", "cp": "CR", "rxx": "RXX", "ryy": "RYY", "rzz": "RZZ", "sx": "X1",
}  # fmt: skip
_WRITE_INVERSE = {"sdg": "S", "tdg": "T", "sxdg": "X1"}
_WRITE_CONTROLLED = {"cy": "Y", "ch": "H", "crx": "RX", "cry": "RY", "crz": "RZ"}

_PHASES = {"s": _PI / 2, "sdg": -_PI / 2, "t": _PI / 4, "tdg": -_PI / 4}
_CONTROLLED = {"x": "cx", "y": "cy", "z": "cz", "h": "ch", "rx": "crx", "ry": "cry", "rz": "crz", "p": "cp"}


def inverse(steps: Sequence[Step]) -> list[Step]:
    """The inverse of a product of gates: each gate inverted, in reverse order. Angles in radians."""
    return [(INVERSE.get(name, name), places, -angle) for name, places, angle in reversed(steps)]


def controlled(steps: Sequence[Step], control: int) -> list[Step]:
    """The steps under one more control."""
    done: list[Step] = []
    for name, places, angle in steps:
        if name == "gphase":
            done.append(("p", (control,), angle))
        elif name in _PHASES:
            done.append(("cp", (control, *places), _PHASES[name]))
        elif name in _CONTROLLED:
            done.append((_CONTROLLED[name], (control, *places), angle))
        elif name == "cx":
            done += _toffoli(control, *places)
        elif name != "id":
            done += controlled(_in_smaller_gates(name, places, angle), control)
    return done


def _toffoli(a: int, b: int, c: int) -> list[Step]:
    gates = f"h{c} cx{b},{c} tdg{c} cx{a},{c} t{c} cx{b},{c} tdg{c} cx{a},{c} t{b} t{c} h{c} cx{a},{b} t{a} tdg{b} cx{a},{b}"
    return [(name, tuple(int(q) for q in places.split(",")), 0.0) for name, places in re.findall(r"([a-z]+)([\d,]+)", gates)]


def _in_smaller_gates(name: str, places: tuple[int, ...], t: float) -> list[Step]:
    """A gate that has no controlled form in our table, as gates that have one; equal with its phase."""
    if name in ("sx", "sxdg"):
        sign = 1 if name == "sx" else -1
        return [("gphase", (), sign * _PI / 4), ("rx", places, sign * _PI / 2)]
    a, b = places
    cx: Step = ("cx", (a, b), 0.0)

    def on(qubit: int, gate: str, angle: float = 0.0) -> Step:
        return (gate, (qubit,), angle)

    if name == "swap":
        return [cx, ("cx", (b, a), 0.0), cx]
    if name == "crz":
        return [on(b, "rz", t / 2), cx, on(b, "rz", -t / 2), cx]
    if name == "cp":
        return [on(a, "p", t / 2), ("crz", (a, b), t)]
    if name == "rzz":
        return [cx, on(b, "rz", t), cx]
    before, core = {
        "cy": ([on(b, "sdg")], cx),
        "cz": ([on(b, "h")], cx),
        "ch": ([on(b, "ry", -_PI / 4)], ("cz", (a, b), 0.0)),
        "crx": ([on(b, "h")], ("crz", (a, b), t)),
        "cry": ([on(b, "rx", _PI / 2)], ("crz", (a, b), t)),
        "rxx": ([on(a, "h"), on(b, "h")], ("rzz", (a, b), t)),
        "ryy": ([on(a, "rx", _PI / 2), on(b, "rx", _PI / 2)], ("rzz", (a, b), t)),
    }[name]
    return [*before, core, *inverse(before)]


def to_originir(circuit: Circuit, params: Sequence[float] = ()) -> str:
    """OriginIR text of a circuit, every qubit k measured into bit k. Angles are written exactly (17 digits).

    Args:
        circuit: the circuit.
        params: inputs, then angles, radians.
    """
    lines = [f"QINIT {circuit.n_qubits}", f"CREG {circuit.n_qubits}"]
    for op in circuit.bind(params).ops:
        qubits = [f"q[{q}]" for q in op.qubits]
        angle = "" if op.angle is None else f",({op.angle.shift!r})"
        if op.gate in _WRITE:
            lines.append(f"{_WRITE[op.gate]} {','.join(qubits)}{angle}")
        elif op.gate in _WRITE_INVERSE:
            lines += ["DAGGER", f"{_WRITE_INVERSE[op.gate]} {qubits[0]}", "ENDDAGGER"]
        else:
            lines += [f"CONTROL {qubits[0]}", f"{_WRITE_CONTROLLED[op.gate]} {qubits[1]}{angle}", "ENDCONTROL"]
    lines += [f"MEASURE q[{k}],c[{k}]" for k in range(circuit.n_qubits)]
    return "\n".join(lines) + "\n"


_LINE = re.compile(r"([A-Za-z]\w*)(?:\s+(.*))?")
_QUBIT, _BIT = re.compile(r"q\[(\d{1,6})\]"), re.compile(r"c\[(\d{1,6})\]")
_DYNAMIC = frozenset({"QIF", "ELSE", "ENDQIF", "QWHILE", "ENDQWHILE", "RESET"})


def from_originir(text: str, *, max_qubits: int = MAX_QUBITS, max_ops: int = MAX_OPS) -> MeasuredCircuit:
    """Read a program. OriginIRError names the line and says what is wrong with it.

    Raises:
        OriginIRError: text longer than `MAX_BYTES`, unknown or malformed instructions, a gate after its qubit was measured,
            control flow, or more than `max_qubits` qubits or `max_ops` gates after expansion.
    """
    if len(text) > MAX_BYTES:
        raise OriginIRError("the text is too long", value=f"{len(text)} characters", bound=MAX_BYTES)
    return _Reader(max_qubits, max_ops).read(text)


class _Reader:
    """Reads line by line. `scopes` holds an open DAGGER or CONTROL with the steps gathered inside it, the program outermost."""

    def __init__(self, max_qubits: int, max_ops: int) -> None:
        self.max_qubits, self.max_ops, self.line = max_qubits, max_ops, 0
        self.n_qubits, self.n_bits = 0, 0
        self.scopes: list[tuple[str, tuple[int, ...], list[Step]]] = [("", (), [])]
        self.measures: dict[int, int] = {}  # qubit -> bit

    def error(self, what: str, value: object = None, bound: object = None, hint: str | None = None) -> OriginIRError:
        return OriginIRError(what, line=self.line, value=value, bound=bound, hint=hint)

    def read(self, text: str) -> MeasuredCircuit:
        for self.line, raw in enumerate(text.splitlines(), start=1):
            stripped = raw.split("//")[0].split("%")[0].strip()
            if stripped:
                self._instruction(stripped)
        if not self.n_qubits:
            raise self.error("the program has no qubits", bound="QINIT n in the first line")
        if len(self.scopes) > 1:
            raise self.error(f"{self.scopes[-1][0]} is not closed", hint=f"END{self.scopes[-1][0]}")
        steps = self.scopes[0][2]
        ops = tuple(
            Op(name, places, Angle(shift=angle) if GATES[name].parametrised else None)
            for name, places, angle in steps
            if name != "gphase"
        )
        return MeasuredCircuit(Circuit(self.n_qubits, ops), tuple(self.measures.items()))

    def _instruction(self, line: str) -> None:
        match = _LINE.fullmatch(line)
        if match is None:
            raise self.error("not an instruction", value=line[:40])
        name, rest = match[1], (match[2] or "").strip()
        if name in ("QINIT", "CREG"):
            self._declare(name, rest)
        elif not self.n_qubits:
            raise self.error(f"{name} before QINIT", hint="QINIT n in the first line")
        elif name in ("DAGGER", "CONTROL"):
            if len(self.scopes) > MAX_DEPTH:
                raise self.error("nested too deeply", bound=MAX_DEPTH)
            self.scopes.append((name, self._qubits(rest) if name == "CONTROL" else (), []))
        elif name in ("ENDDAGGER", "ENDCONTROL"):
            self._close(name[3:])
        elif name == "MEASURE":
            self._measure(rest)
        elif name == "BARRIER":
            self._qubits(rest)
        elif name in _DYNAMIC:
            raise self.error("control flow and resets are not circuits", value=name)
        else:
            self._gate(name, rest)

    def _declare(self, name: str, rest: str) -> None:
        if (self.n_qubits if name == "QINIT" else self.n_bits) or not rest.isdecimal() or len(rest) > 6:
            raise self.error(f"{name} takes one number, once", value=rest[:40])
        size = int(rest)
        if name == "QINIT" and not 1 <= size <= self.max_qubits:
            raise self.error("so many qubits", value=size, bound=f"1..{self.max_qubits}")
        if name == "QINIT":
            self.n_qubits = size
        else:
            self.n_bits = size

    def _qubits(self, text: str) -> tuple[int, ...]:
        found = [_QUBIT.fullmatch(part.strip()) for part in text.split(",")] if text else []
        if not found or None in found:
            raise self.error("qubits are written q[0],q[1]", value=text[:40])
        qubits = tuple(int(match[1]) for match in found if match)
        if len(set(qubits)) != len(qubits):
            raise self.error("one qubit is named twice", value=text[:40])
        if max(qubits) >= self.n_qubits:
            raise self.error("no such qubit", value=max(qubits), bound=f"0..{self.n_qubits - 1}")
        if measured := [q for q in qubits if q in self.measures]:
            raise self.error("a qubit is used after it was measured", value=measured[0], hint="measure at the end")
        return qubits

    def _measure(self, rest: str) -> None:
        qubit, _, bit = rest.partition(",")
        (place,), match = self._qubits(qubit.strip()), _BIT.fullmatch(bit.strip())
        if match is None or int(match[1]) >= self.n_bits:
            raise self.error("no such classical bit", value=bit.strip()[:40], bound=f"c[0]..c[{self.n_bits - 1}]")
        if int(match[1]) in self.measures.values():
            raise self.error("two measurements into one bit", value=match[1])
        if len(self.scopes) > 1:
            raise self.error(f"a measurement inside {self.scopes[-1][0]}")
        self.measures[place] = int(match[1])

    def _gate(self, name: str, rest: str) -> None:
        facts = _READ.get(name)
        if facts is None:
            raise self.error("unknown instruction", value=name[:40], bound=", ".join(sorted(_READ)))
        left, bracket, right = rest.partition("(")
        if bracket and not right.endswith(")"):
            raise self.error("a gate is written NAME q[0],q[1],(angle)", value=rest[:40])
        qubits = self._qubits(left.rstrip(", \t"))
        angles = [self._number(part) for part in right[:-1].split(",")] if bracket else []
        size, n_angles, steps = facts
        if (len(qubits), len(angles)) != (size, n_angles):
            raise self.error(f"{name} takes {size} qubit(s) and {n_angles} angle(s)", value=rest[:60])
        made = [(name, tuple(qubits[p] for p in places), angle) for name, places, angle in steps(*angles)]
        self._add(made)

    def _number(self, text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise self.error("an angle is a finite number", value=text[:40])
        return number

    def _close(self, name: str) -> None:
        if self.scopes[-1][0] != name:
            raise self.error(f"END{name} closes nothing", value=self.scopes[-1][0] or "no open block")
        _, controls, steps = self.scopes.pop()
        if name == "DAGGER":
            steps = inverse(steps)
        for control in reversed(controls):
            if any(control in places for _, places, _ in steps):
                raise self.error("a gate acts on its own control", value=f"q[{control}]")
            inner, steps = steps, []
            for step in inner:
                steps += controlled([step], control)
                self._check(steps)
        self._add(steps)

    def _add(self, steps: list[Step]) -> None:
        into = self.scopes[-1][2]
        into += steps
        self._check(into)

    def _check(self, steps: list[Step]) -> None:
        if len(steps) > self.max_ops:
            raise self.error("too many gates", bound=self.max_ops)
