"""What the compiled of a circuit keeps, leaves out and joins."""

from __future__ import annotations

import numpy as np
import pytest

from qpeft.circuits import ansatz
from qpeft.circuits.ir import GATES, Angle, Circuit, Observable, Op
from qpeft.circuits.simulator.torch_engine import compiler


@pytest.mark.parametrize("name", [name for name, spec in GATES.items() if not (spec.permutation and spec.n_qubits > 1)])
def test_every_gate_is_diagonal_in_a_product_basis(name: str) -> None:
    spec = GATES[name]
    letters, parts = compiler.diagonal_basis(spec)
    turn = np.eye(1)
    for letter in letters:
        one = np.eye(2)
        for matrix in compiler._TO_BASIS[letter]:
            one = matrix @ one
        turn = np.kron(turn, one)
    for angle in (0.0, 0.7):
        c, s = np.cos(spec.frequency * angle), np.sin(spec.frequency * angle)
        back = turn @ (parts[0] + c * parts[1] + s * parts[2]) @ turn.conj().T
        np.testing.assert_allclose(back, np.array(spec.matrix(angle)), atol=1e-14)


def kinds(evolution: compiler.Evolution) -> tuple[list[str], list[str]]:
    return [step.kind for step in evolution.prefix], [step.kind for step in evolution.steps]


def test_an_upload_becomes_a_phase_between_fixed_gates() -> None:
    prefix, steps = kinds(compiler.compile_circuit(ansatz.qtha(4, 2)).evolution)
    assert prefix == ["local", "data", "local"]
    assert steps == ["dense", "data", "dense"]


def test_a_layer_of_qtha_above_the_dense_size_has_real_blocks_alone() -> None:
    evolution = compiler.compile_circuit(ansatz.qtha(8, 3)).evolution
    local = [step for step in evolution.steps if step.kind == "local"]
    assert all(gate.real for step in local for gate in step.gates)
    assert all(step.blocks == ((0, 1, 2, 3), (4, 5, 6, 7)) for step in local)


def test_last_phases_and_permutations_are_left_to_the_observables() -> None:
    compiled = compiler.compile_circuit(ansatz.hardware_efficient(8, 1))
    prefix, steps = kinds(compiled.evolution)
    assert prefix == ["local", "data", "local"]
    assert steps == []  # no RZ, and the ring is in the observables: with one layer the state is a product
    assert compiled.evolution.folded is not None
    flipping = compiler.compile_circuit(ansatz.hardware_efficient(8, 1), (Observable.pauli("XIIIIIII"),))
    assert kinds(flipping.evolution)[1] == ["perm"]


def test_phases_on_the_ground_state_are_left_out() -> None:
    circuit = Circuit(2, (Op("rz", (0,), Angle(0)), Op("crz", (0, 1), Angle(1)), Op("cx", (0, 1)), Op("ry", (1,), Angle(2))), 0, 3)
    compiled = compiler.compile_circuit(circuit)
    assert [gate.qubits for step in compiled.evolution.prefix for gate in step.gates] == [(1,)]
    assert sum(len(step.steps) for step in compiled.unitary.steps) == 4  # the unitary keeps them all


def test_gates_that_undo_each_other_are_gone() -> None:
    """RY uploads change the basis before and after; between two of them on one qubit both changes cancel."""
    uploads = tuple(Op("ry", (q,), Angle(q)) for q in range(7))
    once, twice = (compiler.compile_circuit(Circuit(7, uploads * times + (Op("cz", (0, 1)),), 7, 7)).evolution for times in (1, 2))
    for evolution in (once, twice):
        assert [step.kind for step in evolution.prefix] == ["local", "data", "local"]
    fixed = [[len(step.gates) for step in evolution.prefix if step.kind == "local"] for evolution in (once, twice)]
    assert fixed[0] == fixed[1]  # nothing is left between the uploads
    assert [len(evolution.prefix[1].gates) for evolution in (once, twice)] == [7, 14]


def test_fixed_gates_that_do_not_undo_each_other_stay() -> None:
    pairs = {"undone": ("s", "sdg"), "left": ("s", "s")}
    steps = {
        name: compiler.compile_circuit(Circuit(1, (Op("h", (0,)), *(Op(g, (0,)) for g in gates)))).unitary.steps
        for name, gates in pairs.items()
    }
    gates = {name: sum(len(inner.gates) for step in found for inner in step.steps) for name, found in steps.items()}
    assert gates == {"undone": 1, "left": 3}
