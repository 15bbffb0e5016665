"""OriginIR: written and read back, against pyqpanda3's own reader, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given

from qpeft.circuits.ir import GATES, Angle, Circuit, Op
from qpeft.circuits.text.originir import MAX_DEPTH, from_originir, to_originir
from qpeft.errors import OriginIRError
from tests.reference import fidelity, reverse_qubits, state
from tests.strategies import bound_circuits


@given(bound_circuits())
def test_round_trip(drawn: tuple[Circuit, list[float]]) -> None:
    circuit, params = drawn
    read = from_originir(to_originir(circuit, params))
    assert read.measures == tuple((k, k) for k in range(circuit.n_qubits))
    assert fidelity(state(read.circuit), state(circuit, params)) == pytest.approx(1, abs=1e-10)


def test_simple_gates_survive_as_they_are() -> None:
    names = ("h", "cx", "rx", "cp", "sdg", "crz", "ryy", "swap")
    ops = tuple(Op(g, tuple(range(GATES[g].n_qubits)), Angle(shift=0.1 / 3) if GATES[g].parametrised else None) for g in names)
    circuit = Circuit(2, ops)
    assert from_originir(to_originir(circuit)).circuit == circuit


THEIRS = [
    "X1 q[0]",
    "Y1 q[1]",
    "Z1 q[0]",
    "RPhi q[0],(0.3,0.5)",
    "U1 q[0],(0.4)",
    "P q[1],(0.4)",
    "U2 q[0],(0.1,0.2)",
    "U3 q[0],(0.1,0.2,0.3)",
    "U4 q[0],(0.1,0.2,0.3,0.4)",
    "CU q[2],q[0],(0.1,0.2,0.3,0.4)",
    "TOFFOLI q[2],q[0],q[1]",
    "ISWAP q[0],q[1]",
    "SQISWAP q[2],q[1]",
    "CR q[0],q[2],(0.7)",
    "DAGGER\nS q[0]\nT q[1]\nCU q[0],q[1],(0.1,0.2,0.3,0.4)\nISWAP q[1],q[2]\nENDDAGGER",
    "CONTROL q[2]\nH q[0]\nX1 q[1]\nU3 q[0],(0.1,0.2,0.3)\nENDCONTROL",
    "CONTROL q[2],q[0]\nX q[1]\nENDCONTROL",
    "CONTROL q[2],q[0]\nRX q[1],(0.3)\nU4 q[1],(0.1,0.2,0.3,0.4)\nENDCONTROL",
    "CONTROL q[0]\nSWAP q[1],q[2]\nRXX q[1],q[2],(0.3)\nENDCONTROL",
    "CONTROL q[0]\nDAGGER\nT q[1]\nCZ q[1],q[2]\nRYY q[2],q[1],(0.4)\nRZZ q[2],q[1],(0.4)\nENDDAGGER\nENDCONTROL",
    "BARRIER q[0],q[1]",
    "CONTROL q[1]\nCR q[0],q[2],(0.7)\nISWAP q[0],q[2]\nENDCONTROL",
]


@pytest.mark.parametrize("body", THEIRS)
def test_reads_as_pyqpanda3_does(body: str) -> None:
    pytest.importorskip("pyqpanda3")
    from pyqpanda3.core import CPUQVM
    from pyqpanda3.intermediate_compiler import convert_originir_string_to_qprog

    start = "".join(f"RY q[{k}],({0.4 + k})\nRZ q[{k}],({1.1 - k})\n" for k in range(3))
    text = f"QINIT 3\nCREG 3\n{start}{body}\nRX q[0],(0.3)\nRX q[1],(0.5)\nRX q[2],(0.7)\n"
    machine = CPUQVM()
    machine.run(convert_originir_string_to_qprog(text), 1)
    theirs = np.array(machine.result().get_state_vector())
    assert fidelity(state(from_originir(text).circuit), reverse_qubits(theirs)) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 0, "no qubits"),
        ("H q[0]", 1, "before QINIT"),
        ("QINIT 0", 1, "so many"),
        ("QINIT 99999999", 1, "one number"),
        ("QINIT 5000", 1, "so many"),
        ("QINIT 2\nQINIT 2", 2, "once"),
        ("QINIT 2\nFOO q[0]", 2, "unknown instruction"),
        ("QINIT 2\nH q[2]", 2, "no such qubit"),
        ("QINIT 2\nH q0", 2, "written q"),
        ("QINIT 2\nRX q[0],(0.1", 2, "NAME q"),
        ("QINIT 2\nCNOT q[1],q[1]", 2, "twice"),
        ("QINIT 2\nCNOT q[1]", 2, "2 qubit"),
        ("QINIT 2\nRX q[1]", 2, "1 angle"),
        ("QINIT 2\nRX q[1],(nan)", 2, "finite"),
        ("QINIT 2\nRX q[1],(pi)", 2, "finite"),
        ("QINIT 2\nRX q[1],(1e999)", 2, "finite"),
        ("QINIT 2\nCREG 1\nMEASURE q[0],c[1]", 3, "classical bit"),
        ("QINIT 2\nCREG 1\nMEASURE q[0],c[0]\nMEASURE q[1],c[0]", 4, "one bit"),
        ("QINIT 2\nCREG 1\nMEASURE q[0],c[0]\nH q[0]", 4, "measured"),
        ("QINIT 2\nQWHILE c[0]", 2, "control flow"),
        ("QINIT 2\nDAGGER\nH q[0]", 3, "not closed"),
        ("QINIT 2\nENDDAGGER", 2, "closes nothing"),
        ("QINIT 2\nDAGGER\nENDCONTROL", 3, "closes nothing"),
        ("QINIT 2\nCONTROL q[0]\nH q[0]\nENDCONTROL", 4, "own control"),
        ("QINIT 2\n" + "DAGGER\n" * (MAX_DEPTH + 1), MAX_DEPTH + 2, "deeply"),
        ("QINIT 2\n\x00", 2, "not an instruction"),
    ],
)
def test_refusals_name_the_line(text: str, line: int, words: str) -> None:
    with pytest.raises(OriginIRError, match=words) as caught:
        from_originir(text)
    if line:
        assert caught.value.line == line


def test_expansion_is_bounded() -> None:
    nested = "QINIT 12\n" + "".join(f"CONTROL q[{k}]\n" for k in range(11)) + "X q[11]\n" + "ENDCONTROL\n" * 11
    with pytest.raises(OriginIRError, match="too many"):
        from_originir(nested)
    with pytest.raises(OriginIRError, match="too long"):
        from_originir("QINIT 1\n" * 2**20)


def test_angles_are_exact() -> None:
    circuit = Circuit(1, (Op("rx", (0,), Angle(shift=math.pi / 7)),))
    assert from_originir(to_originir(circuit)).circuit.ops[0].angle == Angle(shift=math.pi / 7)
