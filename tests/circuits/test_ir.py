"""Circuits as data: gate facts against two other tools, JSON, ids, validation, ansatz counts."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from qpeft.circuits import ansatz
from qpeft.circuits.ir import GATES, Angle, Circuit, Observable, Op
from qpeft.errors import CircuitError
from tests import foreign, reference, strategies

GOLDEN = Path(__file__).parent.parent / "golden" / "circuits.json"
ANGLES = (0.0, 0.3, -1.7, math.pi, 5.9)


def matrix(name: str, angle: float = 0.0) -> np.ndarray:
    return np.array(GATES[name].matrix(angle), dtype=np.complex128)


def every_gate() -> Circuit:
    """Each gate of the table once, parametrised ones with scale and shift, on qubits in both orders."""
    ops = []
    for k, (name, spec) in enumerate(GATES.items()):
        qubits = ((2, 0), (0, 1))[k % 2][: spec.n_qubits]
        ops.append(Op(name, qubits, Angle(k % 3, 0.5, 0.1 * k) if spec.parametrised else None))
    return Circuit(3, tuple(ops), n_inputs=1, n_params=3)


# Gates


@pytest.mark.parametrize("name", GATES)
def test_gate_matrices_are_unitary_and_match_their_flags(name: str) -> None:
    spec = GATES[name]
    for angle in ANGLES:
        m = matrix(name, angle)
        assert m.shape == (2**spec.n_qubits, 2**spec.n_qubits)
        np.testing.assert_allclose(m @ m.conj().T, np.eye(len(m)), atol=1e-15)
        if spec.diagonal:
            np.testing.assert_array_equal(m, np.diag(np.diag(m)))
        if spec.permutation:
            assert set(np.unique(m)) <= {0, 1}
            assert (m.sum(axis=0) == 1).all()
    generic = matrix(name, 0.3)
    assert spec.diagonal == bool((generic == np.diag(np.diag(generic))).all())
    assert spec.parametrised == (not np.array_equal(matrix(name, 0.3), matrix(name, 0.4)))


@pytest.mark.parametrize("name", [name for name, spec in GATES.items() if spec.parametrised])
def test_rotations_compose_and_start_at_the_identity(name: str) -> None:
    np.testing.assert_allclose(matrix(name, 0.4) @ matrix(name, 0.9), matrix(name, 1.3), atol=1e-15)
    np.testing.assert_array_equal(matrix(name, 0.0), np.eye(len(matrix(name))))


@pytest.mark.parametrize("name", GATES)
def test_gate_matrices_equal_qiskits_with_the_qubits_reversed(name: str) -> None:
    pytest.importorskip("qiskit")
    from qiskit import QuantumCircuit
    from qiskit.quantum_info import Operator

    spec = GATES[name]
    for angle in ANGLES if spec.parametrised else (0.0,):
        circuit = QuantumCircuit(spec.n_qubits)
        getattr(circuit, name)(*([angle] if spec.parametrised else []), *range(spec.n_qubits))
        theirs = Operator(circuit).reverse_qargs().data  # their qubit 0 is the lowest bit
        np.testing.assert_allclose(matrix(name, angle), theirs, atol=1e-14)


@pytest.mark.parametrize("name", GATES)
def test_gate_matrices_equal_pennylanes(name: str) -> None:
    qml = pytest.importorskip("pennylane")
    wires = range(GATES[name].n_qubits)
    for angle in ANGLES:
        theirs = qml.matrix(foreign.pennylane_gate(name, angle, wires), wire_order=wires)
        np.testing.assert_allclose(matrix(name, angle), theirs, atol=1e-14)


def test_qubit_0_is_the_leftmost_bit() -> None:
    np.testing.assert_array_equal(reference.state(Circuit(3, (Op("x", (0,)),))), np.eye(8)[0b100])
    np.testing.assert_array_equal(reference.state(Circuit(3, (Op("x", (2,)), Op("cx", (2, 1))))), np.eye(8)[0b011])
    np.testing.assert_array_equal(reference.reverse_qubits(np.eye(8)[0b100]), np.eye(8)[0b001])


def test_expectations_of_known_states() -> None:
    bell = Circuit(2, (Op("h", (0,)), Op("cx", (0, 1))))
    words = {"II": 1, "XX": 1, "YY": -1, "ZZ": 1, "ZI": 0, "IX": 0, "XZ": 0}
    for word, value in words.items():
        assert reference.expectation(bell, (), Observable.pauli(word)) == pytest.approx(value, abs=1e-15)
    both = Observable(((0.5, ((0, "Z"), (1, "Z"))), (-2.0, ((1, "Y"), (0, "Y"))), (3.0, ())))
    assert reference.expectation(bell, (), both) == pytest.approx(0.5 + 2.0 + 3.0)
    turned = Circuit(1, (Op("ry", (0,), Angle(0)),), 0, 1)
    assert reference.expectation(turned, [0.7], Observable.z(0)) == pytest.approx(math.cos(0.7))
    assert reference.expectation(turned, [0.7], Observable.pauli("X", 2.0)) == pytest.approx(2 * math.sin(0.7))


# JSON and ids


@settings(deadline=None)
@given(strategies.circuits(numbers=strategies.finite))
def test_json_round_trip(circuit: Circuit) -> None:
    again = Circuit.from_json(circuit.to_json())
    assert again == circuit
    assert again.id == circuit.id
    assert Circuit.from_dict(json.loads(json.dumps(circuit.to_dict()))) == circuit


@pytest.mark.parametrize(
    ("name", "circuit"),
    [
        ("every_gate", every_gate()),
        ("qtha_3_2", ansatz.qtha(3, 2)),
        ("qtha_3_2_unentangled", ansatz.qtha(3, 2, entangling=False)),
        ("hardware_efficient_3_2", ansatz.hardware_efficient(3, 2)),
    ],
)
def test_saved_circuits_still_load_with_the_same_id(name: str, circuit: Circuit) -> None:
    """A failure means that saved adapters no longer find their circuits: change VERSION and keep reading the old one."""
    golden = json.loads(GOLDEN.read_text())[name]
    assert Circuit.from_dict(golden["circuit"]) == circuit
    assert circuit.to_dict() == golden["circuit"]
    assert circuit.id == golden["id"]
    assert hashlib.sha256(json.dumps(golden["circuit"], sort_keys=True, separators=(",", ":")).encode()).hexdigest() == golden["id"]


def test_ids_tell_circuits_apart() -> None:
    x = Op("rx", (0,), Angle(0))
    variants = [
        Circuit(1, (x,), 0, 1),
        Circuit(1, (x,), 1, 1),
        Circuit(2, (x,), 0, 1),
        Circuit(1, (x,), 0, 2),
        Circuit(1, (x, x), 0, 1),
        Circuit(1, (Op("ry", (0,), Angle(0)),), 0, 1),
        Circuit(1, (Op("rx", (0,), Angle(0, 2.0)),), 0, 1),
        Circuit(1, (Op("rx", (0,), Angle(0, 1.0, 0.5)),), 0, 1),
        Circuit(1, (Op("rx", (0,), Angle(None, 1.0, 0.5)),), 0, 1),
    ]
    assert len({c.id for c in variants}) == len(set(variants)) == len(variants)
    assert hash(variants[0]) == hash(Circuit(1, [x], 0, 1))  # type: ignore[arg-type]
    assert copy.deepcopy(variants[0]) == variants[0]


# Validation


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Op("foo", (0,)), "unknown gate"),
        (lambda: Op("cx", (0,)), "2 different qubit"),
        (lambda: Op("cx", (1, 1)), "2 different qubit"),
        (lambda: Op("x", (0, 1)), "1 different qubit"),
        (lambda: Op("rx", (0,)), "takes one angle"),
        (lambda: Op("x", (0,), Angle(0)), "takes no angle"),
        (lambda: Angle(-1), "whole number"),
        (lambda: Angle(True), "whole number"),
        (lambda: Angle(0.5), "whole number"),  # type: ignore[arg-type]
        (lambda: Angle(0, math.nan), "scale must be a finite"),
        (lambda: Angle(0, 1.0, math.inf), "shift must be a finite"),
        (lambda: Angle(0, "1"), "scale must be a finite"),  # type: ignore[arg-type]
        (lambda: Circuit(0, ()), "at least one qubit"),
        (lambda: Circuit(1, (Op("x", (1,)),)), "op 0 .x.: no such qubit"),
        (lambda: Circuit(1, (Op("x", (0,)), Op("x", (-1,)))), "op 1 .x.: no such qubit"),
        (lambda: Circuit(1, (Op("x", (0.0,)),)), "no such qubit"),  # type: ignore[arg-type]
        (lambda: Circuit(1, (Op("rx", (0,), Angle(1)),), 0, 1), "no such parameter"),
        (lambda: Circuit(1, (), 2, 1), "n_inputs"),
        (lambda: Circuit(1, (), 0, -1), "n_inputs"),
        (lambda: Circuit(1, (), 0, 2).bind([0.0]), "wrong number of parameters"),
        (lambda: Observable(((1.0, ((0, "Z"), (0, "X"))),)), "each qubit once"),
        (lambda: Observable(((1.0, ((-1, "Z"),)),)), "each qubit once"),
        (lambda: Observable(((1.0, ((0, "I"),)),)), "X, Y and Z"),
        (lambda: Observable(((math.inf, ()),)), "finite"),
        (lambda: Observable.pauli("ZQ"), "X, Y and Z"),
        (lambda: ansatz.qtha(0, 1), "at least one qubit"),
        (lambda: ansatz.hardware_efficient(1, 0), "one layer"),
    ],
)
def test_what_is_not_valid_is_refused_on_construction(build: Any, words: str) -> None:
    with pytest.raises(CircuitError, match=words):
        build()


def document(**changes: Any) -> str:
    data = {
        "format": "qpeft.circuit",
        "version": 1,
        "n_qubits": 2,
        "n_inputs": 0,
        "n_params": 1,
        "ops": [["rx", [0], [0, 1.0, 0.0]]],
    }
    return json.dumps({key: value for key, value in {**data, **changes}.items() if value is not ...})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("9" * 5000, "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
        ("[]", "not a circuit"),
        (document(format="other"), "not a circuit"),
        (document(version=2), "version"),
        (document(extra=1), "unknown fields"),
        (document(ops=...), "malformed"),
        (document(ops=None), "malformed"),
        (document(ops=[[]]), "malformed"),
        (document(ops=[[["x"], [0]]]), "malformed"),
        (document(ops=[["x", None]]), "malformed"),
        (document(ops=[["x", ["0"]]]), "no such qubit"),
        (document(ops=[["x", [9]]]), "no such qubit"),
        (document(ops=[["rx", [0], [0, math.nan, 0]]]), "finite"),
        (document(ops=[["rx", [0], [None, 1, 2, 3]]]), "malformed"),
        (document(ops=[["rx", [0], {"index": 0}]]), "whole number"),
        (document(n_qubits="2"), "at least one qubit"),
        (document(n_qubits=True), "at least one qubit"),
    ],
)
def test_json_that_is_not_a_circuit_is_refused(text: str | bytes, words: str) -> None:
    assert Circuit.from_json(document()).n_params == 1
    with pytest.raises(CircuitError, match=words):
        Circuit.from_json(text)


# What circuits say about themselves


@settings(deadline=None)
@given(strategies.bound_circuits(max_qubits=3))
def test_binding_keeps_the_state(case: tuple[Circuit, list[float]]) -> None:
    circuit, params = case
    bound = circuit.bind(params)
    assert bound.n_params == bound.n_inputs == 0
    np.testing.assert_array_equal(reference.state(bound), reference.state(circuit, params))
    assert circuit.n_inputs + circuit.n_angles == circuit.n_params
    for op in circuit.ops:
        index = None if op.angle is None else op.angle.index
        assert circuit.is_input(op) == (index is not None and index < circuit.n_inputs)


def test_observables_are_written_in_one_way() -> None:
    assert Observable.pauli("IZX", 2.0).terms == ((2.0, ((1, "Z"), (2, "X"))),)
    assert Observable(((1, ((2, "X"), (0, "Z"))),)) == Observable.pauli("ZIX")
    assert Observable.z(1) == Observable.pauli("IZ")


# Ansatz


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_qtha_counts(n: int, layers: int) -> None:
    circuit = ansatz.qtha(n, layers)
    per_qubit = 4 if n > 1 else 2
    assert (circuit.n_qubits, circuit.n_inputs, circuit.n_angles) == (n, n, per_qubit * n * layers)
    trainable = [op.angle.index for op in circuit.ops if op.angle is not None and not circuit.is_input(op)]
    assert trainable == list(range(n, circuit.n_params))  # every angle once, in order
    assert sum(map(circuit.is_input, circuit.ops)) == n * layers
    bare = ansatz.qtha(n, layers, entangling=False)
    assert bare.n_angles == 2 * n * layers
    assert {op.gate for op in bare.ops} == {"ry"}


def test_qtha_layer_by_hand() -> None:
    gates = [(op.gate, op.qubits, op.angle.index if op.angle else None) for op in ansatz.qtha(3, 1).ops]
    assert gates == [
        ("ry", (0,), 0), ("ry", (1,), 1), ("ry", (2,), 2),
        ("crz", (0, 1), 3), ("crz", (1, 2), 4), ("crz", (2, 0), 5),
        ("ry", (0,), 6), ("ry", (1,), 7), ("ry", (2,), 8),
        ("crz", (0, 2), 9), ("crz", (1, 0), 10), ("crz", (2, 1), 11),
        ("ry", (0,), 12), ("ry", (1,), 13), ("ry", (2,), 14),
    ]  # fmt: skip


@pytest.mark.parametrize(("n", "cnots"), [(1, 0), (2, 1), (3, 3), (5, 5)])
def test_hardware_efficient_counts(n: int, cnots: int) -> None:
    circuit = ansatz.hardware_efficient(n, 2)
    assert (circuit.n_qubits, circuit.n_inputs, circuit.n_angles) == (n, n, 3 * n * 2)
    assert sum(op.gate == "cx" for op in circuit.ops) == 2 * cnots
    indices = [op.angle.index for op in circuit.ops if op.angle is not None]
    assert indices == list(range(circuit.n_params))


@pytest.mark.parametrize(
    "op",
    [["ry", [0], [0, 10**400, 0.0]], ["ry", [0], [0, True, 0.0]], ["ry", [0], [0, 1.0, 0.0], 7], ["ry", [0], [0, "1", 0.0]]],
)
def test_json_numbers_that_are_none_are_circuit_errors(op: list[object]) -> None:
    text = json.dumps({"format": "qpeft.circuit", "version": 1, "n_qubits": 1, "n_inputs": 0, "n_params": 1, "ops": [op]})
    with pytest.raises(CircuitError):
        Circuit.from_json(text)


def test_minus_zero_is_zero_and_coefficients_are_numbers() -> None:
    ids = {Circuit(1, (Op("ry", (0,), Angle(shift=zero)),)).id for zero in (0.0, -0.0)}
    assert len(ids) == 1
    with pytest.raises(CircuitError, match="finite number"):
        Observable((("a", ()),))  # type: ignore[arg-type]
