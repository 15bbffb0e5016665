"""Circuit -> OpenQASM text. Numbers are written so that reading them back gives the same double."""

from __future__ import annotations

from collections.abc import Sequence

from qpeft.circuits.ir import GATES, Angle, Circuit
from qpeft.errors import CircuitError


def to_qasm2(circuit: Circuit, params: Sequence[float] | None = None) -> str:
    """OpenQASM 2 with every angle a constant; `params` has length `n_params`, radians.

    Gates that the qelib1.inc of the OpenQASM 2 paper lacks are defined in the text. Raises CircuitError for a circuit with
    free parameters and no `params`.
    """
    if circuit.n_params and params is None:
        raise CircuitError(
            "OpenQASM 2 has no parameters",
            value=f"{circuit.n_params} free parameters",
            hint="pass params, or write OpenQASM 3 with to_qasm3",
        )
    bound = _bound(circuit, params)
    lacking = {name for name, spec in GATES.items() if spec.qasm is not None}
    return _text(bound, ["OPENQASM 2.0;", 'include "qelib1.inc";'], lacking, f"qreg q[{bound.n_qubits}];")


def to_qasm3(circuit: Circuit, params: Sequence[float] | None = None) -> str:
    """OpenQASM 3. Without `params` the text declares them: `input float[64]` `in_0, in_1, ...` for the circuit's inputs, then
    `theta_0, theta_1, ...` for its angles, so that `from_qasm` gives back the same circuit. With `params` (length `n_params`,
    radians) every angle is a constant. Gates that stdgates.inc lacks are defined in the text.
    """
    bound = circuit if params is None else _bound(circuit, params)
    lacking = {name for name, spec in GATES.items() if not spec.stdgates}
    return _text(bound, ["OPENQASM 3.0;", 'include "stdgates.inc";'], lacking, f"qubit[{bound.n_qubits}] q;")


def _bound(circuit: Circuit, params: Sequence[float] | None) -> Circuit:
    return circuit.bind([] if params is None else [float(value) for value in params])


def _text(circuit: Circuit, header: list[str], lacking: set[str], register: str) -> str:
    used = {op.gate for op in circuit.ops}
    lines = header + [str(spec.qasm) for name, spec in GATES.items() if name in used & lacking]
    names = [f"in_{k}" for k in range(circuit.n_inputs)] + [f"theta_{k}" for k in range(circuit.n_angles)]
    lines += [f"input float[64] {name};" for name in names]
    lines.append(register)
    for op in circuit.ops:
        angle = "" if op.angle is None else f"({_angle(op.angle, names)})"
        lines.append(f"{op.gate}{angle} {', '.join(f'q[{qubit}]' for qubit in op.qubits)};")
    return "\n".join(lines) + "\n"


def _angle(angle: Angle, names: Sequence[str]) -> str:
    if angle.index is None:
        return _number(angle.shift)
    term = names[angle.index] if angle.scale == 1.0 else f"{_number(angle.scale)}*{names[angle.index]}"
    if not angle.shift:
        return term
    return f"{term} {'-' if angle.shift < 0 else '+'} {_number(abs(angle.shift))}"


def _number(value: float) -> str:
    """The shortest text that reads back as the same double, with the point that OpenQASM 2 asks for (`1.0e-05`)."""
    mantissa, e, exponent = repr(value).partition("e")
    return mantissa + ("" if "." in mantissa else ".0") + e + exponent
