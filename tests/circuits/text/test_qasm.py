"""OpenQASM in and out: round trips, agreement with Qiskit and PennyLane, what definitions, controls and parameters mean."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings

pytest.importorskip("openqasm3")

from qpeft.circuits import ansatz
from qpeft.circuits.ir import GATES, Angle, Circuit, Op
from qpeft.circuits.text.qasm import from_qasm, to_qasm2, to_qasm3
from qpeft.errors import CircuitError, QasmError
from tests import foreign, reference, strategies

V2 = 'OPENQASM 2.0;\ninclude "qelib1.inc";\nqreg q[3];\n'
V3 = 'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[3] q;\n'


def v3_without_include(body: str) -> str:
    return f"OPENQASM 3.0;\nqubit[3] q;\n{body}"


def unitary(circuit: Circuit) -> np.ndarray:
    """The matrix of a circuit without parameters, column by column."""
    n = circuit.n_qubits
    columns = []
    for basis in np.eye(2**n, dtype=np.complex128):
        psi = basis.reshape((2,) * n)
        for op in circuit.ops:
            psi = reference.apply(op.spec.matrix(op.angle.shift if op.angle else 0.0), op.qubits, psi)
        columns.append(psi.reshape(-1))
    return np.array(columns).T


def assert_same_up_to_phase(a: np.ndarray, b: np.ndarray) -> None:
    """Unitary matrices or states that differ by a global phase at most."""
    overlap = np.vdot(a, b)
    assert abs(overlap) > 0.1
    np.testing.assert_allclose(a * (overlap / abs(overlap)), b, atol=1e-12)


def one_gate(name: str, angle: Angle | None = None, qubits: Sequence[int] = (1, 0), **sizes: int) -> Circuit:
    spec = GATES[name]
    return Circuit(2, (Op(name, tuple(qubits[: spec.n_qubits]), angle if spec.parametrised else None),), **sizes)


# Round trips


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, math.pi, 1e-5, 5e-324, -1e22, sys.float_info.max])
def test_every_gate_survives_both_versions_exactly(name: str, value: float) -> None:
    circuit = one_gate(name, Angle(shift=value))
    assert from_qasm(to_qasm2(circuit)) == circuit
    assert from_qasm(to_qasm3(circuit)) == circuit


@pytest.mark.parametrize("name", [name for name, spec in GATES.items() if spec.parametrised])
def test_every_gate_survives_openqasm_3_with_a_parameter(name: str) -> None:
    for angle in (Angle(0), Angle(2, -1.0), Angle(1, 0.5, -1e-300), Angle(2, 0.0, 1 / 3), Angle(0, -1e22, 7.0)):
        circuit = one_gate(name, angle, n_inputs=1, n_params=3)
        assert from_qasm(to_qasm3(circuit)) == circuit


@settings(deadline=None, max_examples=60)
@given(strategies.circuits(numbers=strategies.finite))
def test_symbolic_round_trip_is_exact(circuit: Circuit) -> None:
    assert from_qasm(to_qasm3(circuit)) == circuit


@settings(deadline=None, max_examples=40)
@given(strategies.bound_circuits(max_qubits=3))
def test_bound_round_trip_is_exact_and_keeps_the_state(case: tuple[Circuit, list[float]]) -> None:
    circuit, params = case
    for text in (to_qasm2(circuit, params), to_qasm3(circuit, params)):
        again = from_qasm(text)
        assert again == circuit.bind(params)
        np.testing.assert_array_equal(reference.state(again), reference.state(circuit, params))


def test_ansatz_round_trips_with_inputs_and_angles() -> None:
    circuit = ansatz.qtha(3, 2)
    text = to_qasm3(circuit)
    assert text.count("input float[64] in_") == 3
    assert text.count("input float[64] theta_") == 24
    assert from_qasm(text) == circuit
    assert from_qasm(text.encode()) == circuit


def test_numpy_parameters_are_fine() -> None:
    circuit = ansatz.qtha(2, 1)
    params = np.linspace(-1, 1, circuit.n_params, dtype=np.float32)
    assert from_qasm(to_qasm2(circuit, params)) == circuit.bind([float(v) for v in params])  # type: ignore[arg-type]


def test_openqasm_2_needs_numbers() -> None:
    with pytest.raises(CircuitError, match=r"no parameters.*5 free.*hint.*to_qasm3"):
        to_qasm2(Circuit(1, (), 0, 5))
    for write in (to_qasm2, to_qasm3):
        with pytest.raises(CircuitError, match="wrong number of parameters"):
            write(Circuit(1, (), 0, 5), [1.0])


def test_texts_are_plain_and_stable() -> None:
    circuit = Circuit(2, (Op("h", (1,)), Op("rzz", (0, 1), Angle(1, -0.5, 1e-7)), Op("p", (0,), Angle(0))), 1, 2)
    rzz = "gate rzz(t) a, b { cx a, b; rz(t) b; cx a, b; }\n"
    assert to_qasm3(circuit) == (
        f'OPENQASM 3.0;\ninclude "stdgates.inc";\n{rzz}input float[64] in_0;\ninput float[64] theta_0;\nqubit[2] q;\n'
        "h q[1];\nrzz(-0.5*theta_0 + 1.0e-07) q[0], q[1];\np(in_0) q[0];\n"
    )
    assert to_qasm2(circuit, [0.25, 2e-7]) == (
        f'OPENQASM 2.0;\ninclude "qelib1.inc";\ngate p(t) a {{ u1(t) a; }}\n{rzz}qreg q[2];\n'
        "h q[1];\nrzz(0.0) q[0], q[1];\np(0.25) q[0];\n"
    )


@pytest.mark.parametrize("name", [name for name, spec in GATES.items() if spec.qasm])
def test_table_definitions_equal_the_matrix_to_the_phase(name: str) -> None:
    """Renamed, so that it is expanded; controlled, so that a wrong phase would show."""
    spec = GATES[name]
    call = "(0.7)" if spec.parametrised else ""
    definition = str(spec.qasm).replace(f"gate {name}", "gate renamed", 1)
    wide = spec.n_qubits == 1  # the control needs a controlled form of each gate of the body
    text = V3.replace("[3]", f"[{spec.n_qubits + wide}]") + definition
    operands = ", ".join(f"q[{k}]" for k in range(spec.n_qubits + wide))
    expanded = from_qasm(f"{text} {'ctrl @ ' if wide else ''}renamed{call} {operands};")
    assert name not in {op.gate for op in expanded.ops} or name in ("p", "cp")
    expected = np.array(spec.matrix(0.7))
    if wide:
        expected = np.block([[np.eye(2), np.zeros((2, 2))], [np.zeros((2, 2)), expected]])
        assert_same_up_to_phase(unitary(expanded), expected)
    else:
        np.testing.assert_allclose(unitary(expanded), expected, atol=1e-14)


# Agreement with other tools


def qiskit_states(text: str, *, own: bool = False) -> np.ndarray:
    """Qiskit's final state of a text, in our order of qubits; its `own` OpenQASM 2 names gates that qelib1.inc lacks."""
    if "OPENQASM 2" in text:
        qasm2 = pytest.importorskip("qiskit.qasm2")
        circuit = qasm2.loads(text, custom_instructions=qasm2.LEGACY_CUSTOM_INSTRUCTIONS if own else ())
    else:
        pytest.importorskip("qiskit_qasm3_import", reason="qiskit reads OpenQASM 3 with the package qiskit-qasm3-import")
        qasm3 = pytest.importorskip("qiskit.qasm3")
        circuit = qasm3.loads(text)
    from qiskit.quantum_info import Statevector

    circuit.remove_final_measurements()
    return reference.reverse_qubits(Statevector(circuit).data)


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("write", [to_qasm2, to_qasm3])
def test_qiskit_reads_every_gate(write: Callable[..., str], name: str) -> None:
    prepare = (Op("ry", (0,), Angle(shift=0.7)), Op("rx", (1,), Angle(shift=1.1)), Op("rz", (1,), Angle(shift=0.4)))
    circuit = Circuit(2, prepare + one_gate(name, Angle(shift=-1e-1)).ops)
    assert_same_up_to_phase(qiskit_states(write(circuit)), reference.state(circuit))


@settings(deadline=None, max_examples=25)
@given(strategies.bound_circuits())
def test_qiskit_reads_random_circuits(case: tuple[Circuit, list[float]]) -> None:
    circuit, params = case
    for text in (to_qasm2(circuit, params), to_qasm3(circuit, params)):
        assert_same_up_to_phase(qiskit_states(text), reference.state(circuit, params))


def test_qiskit_reads_the_parameters() -> None:
    pytest.importorskip("qiskit_qasm3_import", reason="qiskit reads OpenQASM 3 with the package qiskit-qasm3-import")
    from qiskit import qasm3
    from qiskit.quantum_info import Statevector

    circuit = Circuit(
        2, (Op("ry", (0,), Angle(0, -0.5, -0.1)), Op("crx", (0, 1), Angle(1)), Op("rxx", (0, 1), Angle(2, 2.0))), 1, 3
    )
    params = [0.9, -1.2, 0.4]
    theirs = qasm3.loads(to_qasm3(circuit))
    values = dict(zip(["in_0", "theta_0", "theta_1"], params, strict=True))
    bound = theirs.assign_parameters({p: values[p.name] for p in theirs.parameters})
    assert_same_up_to_phase(reference.reverse_qubits(Statevector(bound).data), reference.state(circuit, params))


@settings(deadline=None, max_examples=25)
@given(strategies.bound_circuits())
def test_qiskits_own_texts_are_read(case: tuple[Circuit, list[float]]) -> None:
    qasm2, qasm3 = pytest.importorskip("qiskit.qasm2"), pytest.importorskip("qiskit.qasm3")
    from qiskit import QuantumCircuit

    circuit, params = case
    theirs = QuantumCircuit(circuit.n_qubits)
    for op in circuit.bind(params).ops:
        getattr(theirs, op.gate)(*([op.angle.shift] if op.angle else []), *op.qubits)
    theirs.measure_all()
    for text in (qasm2.dumps(theirs), qasm3.dumps(theirs)):  # Qiskit writes angles below 1e-9 as 0: what it reads there itself
        assert_same_up_to_phase(reference.state(from_qasm(text)), qiskit_states(text, own=True))


@settings(deadline=None, max_examples=25)
@given(strategies.bound_circuits())
def test_pennylane_agrees(case: tuple[Circuit, list[float]]) -> None:
    """Through text and without Qiskit: our reader gives PennyLane the gates, PennyLane its own matrices."""
    qml = pytest.importorskip("pennylane")
    circuit, params = case
    ops = from_qasm(to_qasm2(circuit, params)).ops
    tape = qml.tape.QuantumScript(
        [foreign.pennylane_gate(op.gate, op.angle.shift if op.angle else 0.0, op.qubits) for op in ops], [qml.state()]
    )
    device = qml.device("default.qubit", wires=circuit.n_qubits)
    np.testing.assert_allclose(qml.execute([tape], device)[0], reference.state(circuit, params), atol=1e-12)


HANDWRITTEN = {
    "registers": "OPENQASM 2.0;\ninclude \"qelib1.inc\";\nqreg a[1]; qreg b[2];\nh a[0]; cx a[0], b; rx(0.3) b[1]; barrier a, b;",
    "builtins 2": "OPENQASM 2.0;\nqreg q[2];\nU(0.3, 0.4, 0.5) q[0]; CX q[0], q[1]; U(pi/2, 0, pi) q;",
    "u gates": V2 + "u3(0.3, -0.4, 0.5) q[0]; u2(0.1, 0.2) q[1]; u1(0.7) q; cu1(0.3) q[0], q[1]; cu3(0.1, 0.2, 0.3) q[1], q[2];",
    "three qubits": V2 + "h q; ccx q[0], q[1], q[2]; t q; h q; ccx q[2], q[0], q[1]; h q;",
    "power": V2 + "rx(-2^2/3 + 2*3^2) q[0]; ry(sin(pi/4)*cos(0.3) - tan(0.1)) q[1]; rz(ln(2) + exp(-1) - sqrt(2)) q[1]; h q[1];",
    "real division": V2 + "rx(1/2) q[0]; rx(3/2*pi) q[1];",
    "names": "OPENQASM 2.0;\ninclude \"qelib1.inc\";\nqreg input[2]; creg bit[2];\n"
    "gate ctrl(angle, tau) in { rx(angle) in; rz(tau/2) in; }\nctrl(0.3, 0.5) input[1]; h input[1]; measure input -> bit;",
    "gate": V2 + "gate mine(a, b) x, y { rx(a + b) x; barrier x; cx x, y; u1(-a*b) y; }\n"
    "mine(0.3, pi/7) q[2], q[0]; mine(1, 2) q[0], q[1];",
    "comments": "// first\nOPENQASM 2.0; // ^ \" {\ninclude \"qelib1.inc\"; qreg q[1];\n//x q[0];\nry(0.3) q[0]; // end",
    "broadcast": V3 + "qubit r;\nh q; cx q, r; rx(0.2) q; cz r, q;",
    "modifiers": V3
    + "h q; inv @ s q[0]; ctrl @ rx(0.4) q[0], q[1]; inv @ rz(0.4) q[1]; ctrl @ inv @ t q[1], q[2]; pow(3) @ sx q[2]; "
    "ctrl @ sdg q[0], q[2]; ctrl @ x q[0], q[1]; ctrl(2) @ x q[1], q[2], q[0]; ctrl @ ctrl @ x q[0], q[1], q[2]; pow(-2) @ t q[1];",
    "negctrl": V3 + "h q; rz(0.3) q; negctrl @ ry(0.4) q[0], q[1]; negctrl @ ctrl @ x q[2], q[1], q[0];",
    "controlled phase": V3 + "h q; ctrl @ gphase(0.7) q[1]; gphase(0.3); ctrl @ p(0.2) q[0], q[2]; h q;",
    "swaps": V3 + "ry(0.3) q[0]; rx(0.5) q[1]; swap q[0], q[2]; h q[1]; cswap q[1], q[2], q[0]; ctrl @ swap q[0], q[1], q[2];",
    "slices": V3 + "h q[0:1]; x q[{0, 2}]; ry(0.1) q[-1]; let a = q[1:2]; let b = a[0]; rz(0.3) a; cx a[1], b; h b;",
    "constants": V3 + "const int n = 2; const float w = pi/n; const uint k = 3 - n;\nrx(w*n/3) q[n]; ry(τ/8) q[k]; h q[k];",
    "discrete sets": V3 + "for int i in {2, 0} { ry(0.3*i + 0.1) q[i]; } for uint i in [0:1] { cx q[i], q[i + 1]; }",
    "cu": V3 + "h q; cu(0.1, 0.2, 0.3, 0.4) q[0], q[1]; cphase(0.4) q[1], q[2]; phase(0.3) q[0]; h q;",
}  # fmt: skip
NOT_FOR_QISKIT = {"slices", "constants", "discrete sets"}  # it asks for casts, or has no loops with constant bounds


@pytest.mark.parametrize("name", sorted(HANDWRITTEN.keys() - NOT_FOR_QISKIT))
def test_handwritten_texts_mean_what_qiskit_says(name: str) -> None:
    text = HANDWRITTEN[name]
    assert_same_up_to_phase(reference.state(from_qasm(text)), qiskit_states(text))


def test_slices_constants_and_loops_by_hand() -> None:
    x, ry, rz = (functools.partial(Op, name) for name in ("x", "ry", "rz"))
    h, cx = functools.partial(Op, "h"), functools.partial(Op, "cx")
    assert from_qasm(HANDWRITTEN["slices"]).ops == (
        h((0,)), h((1,)), x((0,)), x((2,)), ry((2,), Angle(shift=0.1)),
        rz((1,), Angle(shift=0.3)), rz((2,), Angle(shift=0.3)), cx((2, 1)), h((1,)),
    )  # fmt: skip
    constants = from_qasm(HANDWRITTEN["constants"])
    assert [op.qubits for op in constants.ops] == [(2,), (1,), (1,)]
    assert constants.ops[0].angle == Angle(shift=math.pi / 2 * 2 / 3)
    loops = from_qasm(HANDWRITTEN["discrete sets"]).ops
    assert loops == (ry((2,), Angle(shift=0.3 * 2 + 0.1)), ry((0,), Angle(shift=0.1)), cx((0, 1)), cx((1, 2)))
    steps = from_qasm(
        V3 + "for int i in [2:-1:0] { x q[i]; } for int i in [2:0] { y q; } { let a = q[0]; x a; } let a = q[1]; x a;"
    )
    assert [op.qubits for op in steps.ops] == [(2,), (1,), (0,), (0,), (1,)]


# Controls see phases


def u_matrix(t: float, f: float, l: float) -> np.ndarray:  # noqa: E741
    """U(t, f, l) as the OpenQASM 3 specification has it."""
    a, b = (1 + np.exp(1j * t)) / 2, -0.5j * (1 - np.exp(1j * t))
    return np.array([[a, b * np.exp(1j * l)], [-b * np.exp(1j * f), a * np.exp(1j * (f + l))]])


@pytest.mark.parametrize("name", [name for name, spec in GATES.items() if spec.n_qubits == 1] + ["cx", "swap", "cz"])
def test_ctrl_gives_the_controlled_matrix(name: str) -> None:
    spec = GATES[name]
    call = f"{name}(0.7)" if spec.parametrised else name
    operands = ", ".join(f"q[{k}]" for k in range(spec.n_qubits + 1))
    text = V3.replace("[3]", f"[{spec.n_qubits + 1}]")
    size, g = 2**spec.n_qubits, np.array(spec.matrix(0.7))
    identity, zero = np.eye(size), np.zeros((size, size))
    assert_same_up_to_phase(unitary(from_qasm(f"{text}ctrl @ {call} {operands};")), np.block([[identity, zero], [zero, g]]))
    assert_same_up_to_phase(unitary(from_qasm(f"{text}negctrl @ {call} {operands};")), np.block([[g, zero], [zero, identity]]))
    inverse = unitary(from_qasm(f"{text}ctrl @ inv @ {call} {operands};"))
    assert_same_up_to_phase(inverse, np.block([[identity, zero], [zero, g.conj().T]]))


def test_ctrl_of_definitions_keeps_their_phase() -> None:
    text = V3.replace("[3]", "[2]") + "gate g(a, b, c) x { gphase(0.3); U(a, b, c) x; s x; gphase(-a*2); }\n"
    g = np.exp(1j * (0.3 - 1.0)) * np.diag([1, 1j]) @ u_matrix(0.5, 0.6, 0.7)
    zero = np.zeros((2, 2))
    for call, expected in {"g": g, "pow(2) @ g": g @ g, "pow(-1) @ g": g.conj().T, "inv @ g": g.conj().T}.items():
        controlled = unitary(from_qasm(f"{text}ctrl @ {call}(0.5, 0.6, 0.7) q[0], q[1];"))
        assert_same_up_to_phase(controlled, np.block([[np.eye(2), zero], [zero, expected]]))
    twice = unitary(from_qasm(text + "ctrl @ ctrl @ gphase(0.7) q[0], q[1];"))
    assert_same_up_to_phase(twice, np.diag([1, 1, 1, np.exp(0.7j)]))
    assert_same_up_to_phase(unitary(from_qasm(v3_without_include("U(0.5, 0.6, 0.7) q[0];")))[::4, ::4], u_matrix(0.5, 0.6, 0.7))


def test_several_controls_come_in_the_order_written() -> None:
    for body, flipped in (("ctrl @ negctrl @ x q[2], q[0], q[1];", 0b001), ("negctrl @ ctrl @ x q[2], q[0], q[1];", 0b100)):
        expected = np.eye(8)
        swapped = [flipped, flipped | 0b010]
        expected[:, swapped] = expected[:, swapped[::-1]]
        assert_same_up_to_phase(unitary(from_qasm(V3 + body)), expected)
    four = 'include "stdgates.inc"; qubit[4] q; ctrl(3) @ x q[0], q[1], q[2], q[3];'
    toffoli = np.eye(16)
    toffoli[:, [14, 15]] = toffoli[:, [15, 14]]
    assert_same_up_to_phase(unitary(from_qasm(four)), toffoli)


# Parameters


def test_parameters_are_inputs_by_name_and_affine() -> None:
    circuit = from_qasm(
        'OPENQASM 3.0;\ninclude "stdgates.inc";\ninput float[64] alpha;\ninput float in_0;\ninput angle[20] beta;\nqubit q;\n'
        "const float c = 0.5;\ngate half(t) a { rx(t/2) a; }\n"
        "ry(in_0) q; rz(-(alpha - 2)*c/2) q; half(beta + 1) q; p(pi - beta) q; rx((alpha + 1) + (alpha - 1.5)) q;\n"
        "inv @ half(in_0) q; "
        "ry(c) q; U(alpha, 0, 0) q;",
        inputs=["in_0"],
    )
    assert (circuit.n_inputs, circuit.n_params) == (1, 3)
    angles = [op.angle for op in circuit.ops]
    assert angles[:7] == [
        Angle(0), Angle(1, -0.25, 0.5), Angle(2, 0.5, 0.5), Angle(2, -1.0, math.pi), Angle(1, 2.0, -0.5), Angle(0, -0.5),
        Angle(shift=0.5),
    ]  # fmt: skip
    assert [(op.gate, op.angle) for op in circuit.ops[7:]] == [("rz", Angle(shift=0.0)), ("ry", Angle(1)), ("rz", Angle(shift=0.0))]


@pytest.mark.parametrize("angle", ["a*b", "sin(a)", "1/a", "a**2", "a/a", "2**a", "a*a", "a*(b + 1)", "(a + b)/b"])
def test_angles_that_are_not_linear_are_refused_with_the_rewriting(angle: str) -> None:
    text = f'include "stdgates.inc";\ninput float a;\ninput float b;\nqubit q;\nrx({angle}) q;'
    with pytest.raises(QasmError, match=r"line 5: an angle must be a sum of scale.*hint: make the product.*u = x \* w"):
        from_qasm(text, inputs=["a"])


def test_a_sum_of_datum_and_weight_is_a_gate_for_each() -> None:
    text = V3 + "input float x;\ninput float w;\ninput float v;\ncrz(2*x - w/2 + 0.25) q[0], q[1]; ctrl @ rx(v + x) q[2], q[0];"
    circuit = from_qasm(text, inputs=["x"])
    assert [(op.gate, op.angle) for op in circuit.ops] == [
        ("crz", Angle(0, 2.0, 0.25)), ("crz", Angle(1, -0.5)), ("crx", Angle(2)), ("crx", Angle(0)),
    ]  # fmt: skip
    params = [0.3, -0.7, 1.1]
    numbers = V3 + f"crz({2 * 0.3 + 0.7 / 2 + 0.25!r}) q[0], q[1]; ctrl @ rx({1.1 + 0.3!r}) q[2], q[0];"
    assert_same_up_to_phase(unitary(circuit.bind(params)), unitary(from_qasm(numbers)))


def test_vectors_are_read_in_the_order_of_their_numbers() -> None:
    """As Qiskit exports them: sorted as words, `in_10` before `in_2`, and its own `in[k]` as `_in_k_`."""
    for form in ("{}_{}", "_{}_{}_"):
        names = sorted(form.format(vector, k) for vector in ("in", "theta") for k in range(12))
        assert names.index(form.format("in", 10)) < names.index(form.format("in", 2))
        declared = "".join(f"input float[64] {name};\n" for name in names)
        gates = "".join(f"ry({form.format(vector, k)}) q[0];\n" for vector in ("in", "theta") for k in range(12))
        circuit = from_qasm(V3 + declared + gates)
        assert (circuit.n_inputs, circuit.n_params) == (12, 24)
        assert [op.angle for op in circuit.ops] == [Angle(k) for k in range(24)]


def test_arrays() -> None:
    text = V3 + "input array[float[64], 12] x;\ninput array[angle, 2] w;\nry(x[11]) q[0]; ry(2*w[1] + x[0]) q[1]; ry(w[-2]) q[2];"
    circuit = from_qasm(text + "for int i in [0:1] { rz(w[i]) q[i]; }", inputs=["x"])
    assert (circuit.n_inputs, circuit.n_params) == (12, 14)
    assert [op.angle for op in circuit.ops] == [Angle(11), Angle(13, 2.0), Angle(0), Angle(12), Angle(12), Angle(13)]
    for wrong, message in (
        ("x[12]", r"no such element.*0\.\.11"),
        ("x", "an array is not a number"),
        ("q[0]", "only an `input array`"),
    ):
        with pytest.raises(QasmError, match=message):
            from_qasm(text + f"ry({wrong}) q[0];", inputs=["x"])
    with pytest.raises(QasmError, match="one dimension"):
        from_qasm(V3 + "input array[float[64], 2, 2] x;", inputs=["x"])


def test_data_of_other_names_is_named_and_never_trained_in_silence() -> None:
    text = V3 + "input float pixel;\ninput float gain;\nry(pixel) q[0]; ry(gain) q[1];"
    with pytest.raises(QasmError, match=r"data or trained angles.*pixel, gain.*inputs=\[\.\.\.\]"):
        from_qasm(text)
    assert [op.angle for op in from_qasm(text, inputs=["gain"]).ops] == [Angle(1), Angle(0)]
    assert from_qasm(text, inputs=[]).n_inputs == 0
    for inputs in (["pixels"], ["pixel", "x"]):
        with pytest.raises(QasmError, match=r"no parameter of this name.*pixel, gain"):
            from_qasm(text, inputs=inputs)
    assert Circuit.from_qasm(text, ["pixel", "gain"]).n_inputs == 2


# What a definition means


def test_definitions_of_our_gates_are_recognised_and_others_expanded() -> None:
    same = 'OPENQASM 3.0;\ninclude "stdgates.inc";\ngate rzz(p0) _gate_q_0, _gate_q_1 { cx _gate_q_0, _gate_q_1; rz(p0) _gate_q_1; cx _gate_q_0, _gate_q_1; }\nqubit[2] q;\n'  # noqa: E501
    assert [op.gate for op in from_qasm(same + "rzz(0.3) q[0], q[1];").ops] == ["rzz"]
    other = same.replace("rz(p0)", "rz(2*p0)")
    assert [op.gate for op in from_qasm(other + "rzz(0.3) q[0], q[1];").ops] == ["cx", "rz", "cx"]
    own_x = v3_without_include("gate x a { U(pi, 0, pi) a; }\nx q[1];")
    assert [op.gate for op in from_qasm(own_x).ops] == ["rz", "ry", "rz"]
    shadowed = V3 + "gate twice a { h a; h a; }\ngate h a { x a; }\ntwice q[0]; h q[0];"
    assert [op.gate for op in from_qasm(shadowed).ops] == ["h", "h", "x"]


def test_final_measurements_and_barriers_leave_no_trace() -> None:
    plain = from_qasm(V3 + "h q;")
    assert from_qasm(V3 + "bit[3] c; output bit d; h q; barrier q; c = measure q; c[0] = measure q[0]; measure q[1] -> d;") == plain
    assert from_qasm(V3 + "#pragma x y\n@note z\nh q[0]; bit b = measure q[0]; h q[1]; h q[2]; measure q;") == plain
    assert from_qasm(V2 + "creg c[3]; h q; barrier q[0], q[1]; measure q -> c;") == plain
