"""Gates as OpenQASM text sees them: definitions, what they expand to, and the modifiers `inv @`, `pow(k) @`, `ctrl @`.

A gate expands into steps `(gate of our table, qubits, angle)`. The global phase `gphase` is a step too, because under a control
it is no longer global: `ctrl @` distributes over the steps and turns `gphase(t)` into `p(t)` on the control. At the top level a
phase is dropped.
"""

from __future__ import annotations

import functools
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qpeft.circuits.gates import INVERSE
from qpeft.circuits.ir import GATES, Angle
from qpeft.circuits.text.qasm.syntax_tree import located, parse
from qpeft.circuits.text.qasm.values import Evaluator, LinearAngle, StepLimit, Value
from qpeft.errors import QasmError

Step = tuple[str, tuple[int, ...], Angle | None]

# The rest of qelib1.inc and stdgates.inc, and controlled gates by the name "c" + gate for `ctrl @`. U, u2 and u3 have the phases of
# the OpenQASM 3 specification and its stdgates.inc; Qiskit gives them others, so it reads `ctrl @ u3(...)` as another gate.
_LIBRARY = """
gate U(t, f, l) a { gphase(t/2); gphase(f/2); gphase(l/2); rz(l) a; ry(t) a; rz(f) a; }
gate u3(t, f, l) a { rz(l) a; ry(t) a; rz(f) a; }
gate u(t, f, l) a { u3(t, f, l) a; }
gate u2(f, l) a { u3(pi/2, f, l) a; }
gate u1(t) a { p(t) a; }
gate u0(t) a { id a; }
gate phase(t) a { p(t) a; }
gate CX a, b { cx a, b; }
gate cnot a, b { cx a, b; }
gate cu1(t) a, b { cp(t) a, b; }
gate cphase(t) a, b { cp(t) a, b; }
gate cu3(t, f, l) a, b { p(f/2) a; p(l/2) a; crz(l) a, b; cry(t) a, b; crz(f) a, b; }
gate cu(t, f, l, g) a, b { p(g) a; cu3(t, f, l) a, b; }
gate cid a, b { id b; }
gate cs a, b { cp(pi/2) a, b; }
gate csdg a, b { cp(-pi/2) a, b; }
gate ct a, b { cp(pi/4) a, b; }
gate ctdg a, b { cp(-pi/4) a, b; }
gate csx a, b { h b; cs a, b; h b; }
gate csxdg a, b { h b; csdg a, b; h b; }
gate ccx a, b, c {
  h c; cx b, c; tdg c; cx a, c; t c; cx b, c; tdg c; cx a, c; t b; t c; h c; cx a, b; t a; tdg b; cx a, b;
}
gate ccz a, b, c { h c; ccx a, b, c; h c; }
gate cswap a, b, c { cx c, b; ccx a, b, c; cx c, b; }
"""


@dataclass(frozen=True)
class GateDefinition:
    """A gate by its definition: the calls in its body with the gates they call. `body` None: a gate of our table."""

    name: str
    parameters: tuple[str, ...]
    qubits: tuple[str, ...]
    body: tuple[tuple[Any, GateDefinition], ...] | None = None


GPHASE = GateDefinition("gphase", ("t",), ())
TABLE = {
    name: GateDefinition(name, ("t",) if spec.parametrised else (), tuple("abcdef"[: spec.n_qubits]))
    for name, spec in GATES.items()
}


@functools.cache
def library() -> Mapping[str, GateDefinition]:
    """Every gate that an include file brings: our table and `_LIBRARY`."""
    return _defined(_LIBRARY, TABLE)


@functools.cache
def _table_definitions() -> Mapping[str, GateDefinition]:
    """The gates of our table that have an OpenQASM definition, by that definition."""
    texts = {name: spec.qasm for name, spec in GATES.items() if spec.qasm is not None}
    defined = _defined("\n".join(texts.values()), library())
    return {name: defined[name] for name in texts}


def _defined(text: str, known: Mapping[str, GateDefinition]) -> Mapping[str, GateDefinition]:
    program, _ = parse(text, max_bytes=len(text.encode()))
    gates = dict(known)
    for node in program.statements:
        gates[node.name.name] = define(node, gates)
    return gates


def define(node: Any, gates: Mapping[str, GateDefinition]) -> GateDefinition:
    """Read a `gate` definition. Names are resolved now, so a gate can only call gates defined before it: no recursion.

    Args:
        node: the definition in the syntax tree.
        gates: the gates defined before it, by name.

    Raises:
        QasmError: a name used twice, or a call that cannot be resolved.
    """
    parameters = tuple(argument.name for argument in node.arguments)
    qubits = tuple(qubit.name for qubit in node.qubits)
    if len(set(parameters + qubits)) != len(parameters + qubits):
        raise QasmError("a gate definition uses a name twice", value=node.name.name)
    body = []
    for call in node.body:
        with located(call):
            kind = type(call).__name__
            if kind == "QuantumBarrier":
                continue
            if kind not in ("QuantumGate", "QuantumPhase"):
                raise QasmError("a gate body holds gate calls only", value=kind, hint="write loops outside the definition")
            for operand in call.qubits:
                if type(operand).__name__ != "Identifier" or operand.name not in qubits:
                    raise QasmError("a gate body acts on the gate's own qubits", bound=", ".join(qubits))
            body.append((call, find(call, gates)))
    return GateDefinition(node.name.name, parameters, qubits, tuple(body))


def find(call: Any, gates: Mapping[str, GateDefinition]) -> GateDefinition:
    """The gate that a call names.

    Args:
        call: the call in the syntax tree.
        gates: the gates defined before it, by name.

    Raises:
        QasmError: there is no such gate.
    """
    if type(call).__name__ == "QuantumPhase":
        return GPHASE
    gate = gates.get(call.name.name)
    if gate is None:
        hint = 'include "stdgates.inc" (OpenQASM 3) or "qelib1.inc" (OpenQASM 2), or define the gate before its first use'
        raise QasmError("unknown gate", value=call.name.name, hint=hint)
    return gate


class Expander:
    """Turns gate calls into steps, within a budget. `constants` are the program's global constants, visible in gate bodies."""

    def __init__(self, evaluate: Evaluator, budget: StepLimit, constants: dict[str, object]) -> None:
        self.evaluate, self.budget, self.constants = evaluate, budget, constants

    def call(self, node: Any, gate: GateDefinition, names: Mapping[str, object], qubits: tuple[int, ...]) -> list[Step]:
        """The steps of a call on single qubits: controls first, as written.

        Args:
            node: the call in the syntax tree: `QuantumGate` or `QuantumPhase`.
            gate: definition of the gate that is called.
            names: values of the parameters and constants visible at the call.
            qubits: qubit numbers, controls first.

        Raises:
            QasmError: a duration; a wrong number of parameters or qubits; one qubit twice; more steps than the budget allows.
        """
        if getattr(node, "duration", None) is not None:
            raise QasmError("a gate with a duration is a pulse schedule, not a circuit", hint="leave out [duration]")
        arguments = [node.argument] if gate is GPHASE else node.arguments
        if len(arguments) != len(gate.parameters):
            raise QasmError(f"gate {gate.name} got {len(arguments)} parameter(s)", bound=len(gate.parameters))
        modifiers = [self._modifier(modifier, names) for modifier in node.modifiers] if node.modifiers else []
        controls = sum(count for kind, count in modifiers if kind.endswith("ctrl")) if modifiers else 0
        if len(qubits) != controls + len(gate.qubits):
            raise QasmError(f"gate {gate.name} got {len(qubits)} qubit(s)", bound=controls + len(gate.qubits))
        if len(set(qubits)) != len(qubits):
            raise QasmError(f"gate {gate.name} got one qubit twice", value=qubits)
        values = [_real(self.evaluate(argument, names)) for argument in arguments]
        steps = self.expand(gate, values, qubits[controls:])
        for kind, count in reversed(modifiers):
            if kind == "inv" or (kind == "pow" and count < 0):
                self.budget.spend(len(steps))
                steps = [_inverse(step) for step in reversed(steps)]
            if kind == "pow":
                self.budget.spend(len(steps) * abs(count))
                steps = steps * abs(count) if steps else []
            elif kind.endswith("ctrl"):
                for control in qubits[controls - count : controls]:
                    flip: list[Step] = [("x", (control,), None)] if kind == "negctrl" else []
                    steps = flip + self._controlled(steps, control) + flip
                controls -= count
        return steps

    def expand(self, gate: GateDefinition, values: Sequence[float | LinearAngle], qubits: tuple[int, ...]) -> list[Step]:
        """The steps of a gate. An angle that is a sum of parameters takes a step for each of them.

        Args:
            gate: its definition.
            values: angles in radians, one per parameter of the gate.
            qubits: qubit numbers, one per qubit of the gate.
        """
        self.budget.spend()
        if gate.body is None:
            if not values:
                return [(gate.name, qubits, None)]
            angle = values[0]
            angles = angle.angles() if isinstance(angle, LinearAngle) else [Angle(shift=angle)]
            self.budget.spend(len(angles) - 1)
            return [(gate.name, qubits, each) for each in angles]
        arguments: dict[str, object] = dict(zip(gate.parameters, values, strict=True))
        names = ChainMap(arguments, self.constants)
        place = dict(zip(gate.qubits, qubits, strict=True))
        steps = []
        for node, callee in gate.body:
            steps += self.call(node, callee, names, tuple(place[operand.name] for operand in node.qubits))
        return steps

    def native(self, gate: GateDefinition) -> GateDefinition:
        """Our table's gate when `gate` is defined as the table defines it (the names of qubits aside), else `gate` itself."""
        ours = _table_definitions().get(gate.name)
        if ours is None or (len(ours.parameters), len(ours.qubits)) != (len(gate.parameters), len(gate.qubits)):
            return gate
        values, qubits = [LinearAngle(((k, 1.0),)) for k in range(len(gate.parameters))], tuple(range(len(gate.qubits)))
        try:
            same = self.expand(gate, values, qubits) == self.expand(ours, values, qubits)
        except QasmError:  # not affine in its parameter: it may still be called with constants
            same = False
        return TABLE[gate.name] if same else gate

    def _modifier(self, node: Any, names: Mapping[str, object]) -> tuple[str, int]:
        kind = node.modifier.name
        if node.argument is None:
            return kind, 1
        try:
            count = self.evaluate.whole(node.argument, names)
        except QasmError as error:
            raise QasmError(f"{kind} @ takes a constant integer", hint="define the gate's power or root yourself") from error
        if kind != "pow" and count < 1:
            raise QasmError(f"{kind} @ needs at least one control", value=count)
        return kind, count

    def _controlled(self, steps: list[Step], control: int) -> list[Step]:
        result = []
        for name, qubits, angle in steps:
            gate = library().get("p" if name == "gphase" else "c" + name)
            if gate is None:
                raise QasmError(
                    "ctrl @ has no exact form in the gate table", value=name, hint="define the controlled gate from table gates"
                )
            result += self.expand(gate, [] if angle is None else [_plain(angle)], (control, *qubits))
        return result


def _inverse(step: Step) -> Step:
    name, qubits, angle = step
    return INVERSE.get(name, name), qubits, None if angle is None else Angle(angle.index, -angle.scale, -angle.shift)


def _real(value: Value) -> float | LinearAngle:
    return value if isinstance(value, LinearAngle) else float(value)


def _plain(angle: Angle) -> float | LinearAngle:
    return angle.shift if angle.index is None else LinearAngle(((angle.index, angle.scale),), angle.shift)
