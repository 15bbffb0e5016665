"""Chips from and to Origin's chip_info, Qiskit's Target and NoiseModel, and UnifiedQuantum's files."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import numpy as np
import pytest
from qiskit import QuantumCircuit, transpile
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit_aer import AerSimulator

from qpeft.backends.emulator import chip_formats
from qpeft.backends.emulator.backend import EmulatorBackend
from qpeft.backends.emulator.chip import Chip, load_chip
from qpeft.backends.vendors.qiskit import to_qiskit
from qpeft.circuits import ansatz
from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.errors import ConfigError
from tests.backends.emulator.random_chips import random_chip

CHIP_INFO = {
    "success": True,
    "code": 10000,
    "obj": {
        "ChipID": "72",
        "QubitCount": 4,
        "adjMatrix": {
            "0": [{"v": 1, "w": 0.96}],
            "1": [{"v": 0, "w": 0.96}, {"v": 2, "w": 0.0}],
            "2": [{"v": 1, "w": 0.0}, {"v": 3, "w": 0.975}],
            "3": [{"v": 2, "w": 0.975}],
        },
        "QubitParams": [
            {"qubitId": q, "T1": 12.5, "T2": 1.4, "frequency": 4200.0, "ReadoutFidelity": 0.93, "SingleGateFidelity": 0.996}
            for q in range(4)
        ],
        "AvailableQubits": [0, 1, 2],
        "BasicQGate": ["RPhi", "CZ"],
        "CompensateAngle": {},
        "QGateClock": [{"gateType": "RPhi", "IntValue": 35}, {"gateType": "CZ", "IntValue": 45}],
    },
}


def test_chip_info() -> None:
    chip = chip_formats.from_chip_info(CHIP_INFO, name="WK_C72")
    assert not chip.synthetic
    assert (chip.native_gates.rphi.time_ns, chip.native_gates.cz.time_ns) == (35, 45)
    assert chip.live_qubits == (0, 1, 2)
    assert chip.neighbours == {0: {1: 0.04}, 1: {0: 0.04}, 2: {}}
    assert len(chip.couplers) == 3
    assert "dead" in str(chip.why_not(1, 2))
    assert (chip.qubits[0].error_1q, chip.qubits[0].p1_given_0, chip.qubits[0].t1_us) == (0.004, 0.07, 12.5)
    assert chip == chip_formats.from_chip_info(CHIP_INFO["obj"], name="WK_C72")  # type: ignore[arg-type]
    impossible = json.loads(json.dumps(CHIP_INFO))
    impossible["obj"]["QubitParams"][0]["T2"] = 99.0
    assert chip_formats.from_chip_info(impossible, name="x").qubits[0].t2_us == 25.0


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("adjMatrix", {"0": [{"v": 9, "w": 0.9}]}, ""),
        ("adjMatrix", {"zero": [{"v": 1, "w": 0.9}]}, "adjMatrix"),
        ("adjMatrix", [], "adjMatrix"),
        ("QubitParams", [{"T1": 1}], "QubitParams"),
        ("QubitParams", None, "QubitParams"),
        ("QubitCount", 10**12, "QubitCount"),
        ("AvailableQubits", [-1], "AvailableQubits"),
        ("QGateClock", [{"gateType": "CZ"}], "QGateClock"),
    ],
)
def test_hostile_chip_info(key: str, value: Any, field: str) -> None:
    reply = {"obj": {**CHIP_INFO["obj"], key: value}}  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="chip_info") as caught:
        chip_formats.from_chip_info(reply, name="x")
    assert caught.value.field == field
    for nonsense in (None, [], {}, {"obj": None}, {"obj": {}}):
        with pytest.raises(ConfigError):
            chip_formats.from_chip_info(nonsense, name="x")  # type: ignore[arg-type]


def test_target_from_qiskit_and_back() -> None:
    target = GenericBackendV2(5, coupling_map=[[0, 1], [1, 0], [1, 2], [2, 3], [3, 4]], seed=1).target
    chip = chip_formats.from_target(target, name="generic", source="Qiskit's GenericBackendV2")
    assert {tuple(c.qubits) for c in chip.couplers} == {(0, 1), (1, 2), (2, 3), (3, 4)}
    for q, qubit in enumerate(chip.qubits):
        assert qubit.t1_us == pytest.approx(target.qubit_properties[q].t1 * 1e6)
        assert qubit.error_1q in [pytest.approx(target[name][(q,)].error) for name in ("x", "sx")]
        assert qubit.p1_given_0 == qubit.p0_given_1 == pytest.approx(target["measure"][(q,)].error)
    assert chip.neighbours[1][2] == pytest.approx(target["cx"][(1, 2)].error)

    wukong = load_chip("wukong-72")
    back = chip_formats.from_target(chip_formats.to_target(wukong), name="back", source="a test")
    assert back.neighbours == wukong.neighbours
    assert back.native_gates == wukong.native_gates
    for new, old in zip(back.qubits, wukong.qubits, strict=True):
        assert (new.t1_us, new.t2_us, new.error_1q, new.readout_error) == pytest.approx(
            (old.t1_us, old.t2_us, old.error_1q, old.readout_error)
        )


def test_qiskit_compiles_for_the_target() -> None:
    circuit = QuantumCircuit(4)
    circuit.h(0)
    for q in range(4):
        circuit.cx(q, (q + 1) % 4)
    chip = load_chip("wukong-72")
    compiled = transpile(circuit, target=chip_formats.to_target(chip), seed_transpiler=1)
    assert set(compiled.count_ops()) <= {"r", "rz", "cz"}
    for instruction in compiled.get_instructions("cz"):
        assert chip.why_not(*(compiled.find_bit(q).index for q in instruction.qubits)) is None


def test_chip_info_that_contradicts_itself() -> None:
    for change in (
        {"adjMatrix": {"0": [{"v": 1, "w": 0.96}], "1": [{"v": 0, "w": 0.9}]}},
        {"adjMatrix": {"0": [{"v": 0, "w": 0.96}]}},
        {"QubitParams": [CHIP_INFO["obj"]["QubitParams"][0]] * 2},  # type: ignore[index]
    ):
        with pytest.raises(ConfigError, match=r"two weights|both ends|twice"):
            chip_formats.from_chip_info({**CHIP_INFO["obj"], **change}, name="x")  # type: ignore[dict-item]


@functools.lru_cache(maxsize=2)
def exact_simulator(chip: Chip) -> Any:
    return chip_formats.aer_simulator(chip, method="density_matrix")


def distribution(chip: Chip, compiled: QuantumCircuit) -> np.ndarray:
    """Outcome probabilities of a native circuit on Aer with the exported noise, bit 0 leftmost."""
    measured = [0] * compiled.num_clbits
    for item in compiled.data:
        if item.operation.name == "measure":
            measured[compiled.find_bit(item.clbits[0]).index] = compiled.find_bit(item.qubits[0]).index
    program = compiled.remove_final_measurements(inplace=False)
    program.save_probabilities(measured[::-1])
    simulator = exact_simulator(chip)
    values = np.asarray(simulator.run(program).result().data()["probabilities"]).reshape((2,) * len(measured))
    for axis, q in enumerate(measured):
        qubit: Any = chip.qubits[q]
        up, down = qubit.p1_given_0, qubit.p0_given_1
        values = np.moveaxis(np.tensordot([[1 - up, down], [up, 1 - down]], values, axes=(1, axis)), 0, axis)
    return values.reshape(-1)


def to_native_ops(compiled: QuantumCircuit) -> tuple[Circuit, tuple[int, ...]]:
    """A circuit that Qiskit compiled for the chip, in the emulator's native gates, and the chip's qubit of each of its qubits."""
    places: list[int] = []
    ops: list[Op] = []
    measured: dict[int, int] = {}
    for item in compiled.data:
        where = [compiled.find_bit(q).index for q in item.qubits]
        places += [q for q in where if q not in places and item.operation.name != "barrier"]
        qubits = tuple(places.index(q) for q in where if q in places)
        angles = [Angle(shift=float(value)) for value in item.operation.params]
        match item.operation.name:
            case "cz":
                ops.append(Op("cz", qubits))
            case "rz":
                ops.append(Op("rz", qubits, angles[0]))
            case "r":
                theta, phi = (float(value) for value in item.operation.params)
                turns = (("rz", -phi), ("rx", theta), ("rz", phi))
                ops += [Op(gate, qubits, Angle(shift=value)) for gate, value in turns]
            case "measure":
                measured[compiled.find_bit(item.clbits[0]).index] = where[0]
    order = [measured[k] for k in sorted(measured)] + [q for q in places if q not in measured.values()]
    renumber = {places.index(q): i for i, q in enumerate(order)}
    renamed = [Op(op.gate, tuple(renumber[q] for q in op.qubits), op.angle) for op in ops]
    return Circuit(len(order), tuple(renamed)), tuple(order)


SMALL = random_chip([(0, 1), (1, 2), (2, 3)], seed=1)
SLOW = [pytest.param(name, n, marks=pytest.mark.slow) for n in range(2, 9) for name in ("wukong-72", "wukong-180")]


@pytest.mark.parametrize(("name", "n"), [("small", 3), *SLOW])
def test_aer_with_the_exported_noise_is_the_emulator(name: str, n: int) -> None:
    """Total variation at most 0.01, for what the emulator compiles and for what Qiskit compiles, each run by both."""
    chip = SMALL if name == "small" else load_chip(name)
    circuit = ansatz.hardware_efficient(n, 2)
    row = np.random.default_rng(n).uniform(-3, 3, circuit.n_params)
    emulated = EmulatorBackend(chip).compile(circuit)
    ours = emulated.run(row[None], None).probabilities()[0]
    assert 0.5 * np.abs(ours - distribution(chip, chip_formats.placed_circuit(emulated, row))).sum() <= 1e-6

    program = to_qiskit(circuit, row)
    program.measure_all()
    compiled = transpile(program, target=chip_formats.to_target(chip), seed_transpiler=0)
    native, layout = to_native_ops(compiled)
    again = EmulatorBackend(chip, native=True, layout=layout).compile(native).run(np.empty((1, 0)), None)
    marginal = again.marginal(range(n)).probabilities()[0]
    assert 0.5 * np.abs(marginal - distribution(chip, compiled)).sum() <= 0.01


@pytest.mark.parametrize(("name", "n"), [("small", 3), *SLOW])
def test_the_noise_model_alone_is_the_emulator(name: str, n: int) -> None:
    """`AerSimulator(noise_model=to_noise_model(chip))`, with Aer's own readout: total variation at most 0.01, shots aside."""
    chip = SMALL if name == "small" else load_chip(name)
    circuit = ansatz.qtha(n, 1)
    row = np.random.default_rng(n).uniform(-3, 3, circuit.n_params)
    emulated = EmulatorBackend(chip).compile(circuit)
    ours = emulated.run(row[None], None).probabilities()[0]
    simulator = AerSimulator(method="density_matrix", noise_model=chip_formats.to_noise_model(chip))
    shots = 4_000_000
    counts = simulator.run(chip_formats.placed_circuit(emulated, row), shots=shots, seed_simulator=n).result().get_counts()
    theirs = np.zeros(2**n)
    for bits, count in counts.items():
        theirs[int(bits[::-1], 2)] = count / shots
    assert 0.5 * np.abs(ours - theirs).sum() <= 0.01


@pytest.mark.parametrize("how", ["scheduled", "delay of no time"])
def test_a_transpiled_circuit_with_a_delay_decays_while_it_waits(how: str) -> None:
    circuit = ansatz.hardware_efficient(3, 2)
    program = to_qiskit(circuit, np.linspace(-2, 2, circuit.n_params))
    if how == "delay of no time":
        program.delay(0, 0, "s")
    scheduling = {"scheduling_method": "asap"} if how == "scheduled" else {}
    compiled = transpile(program, target=chip_formats.to_target(SMALL), seed_transpiler=0, **scheduling)
    compiled.save_probabilities()
    model = chip_formats.to_noise_model(SMALL)
    found = AerSimulator(method="density_matrix", noise_model=model).run(compiled).result().data()["probabilities"]
    whole = exact_simulator(SMALL).run(compiled).result().data()["probabilities"]
    assert 0.5 * np.abs(np.asarray(found) - np.asarray(whole)).sum() <= 1e-6


def test_counts_with_the_exported_noise_model() -> None:
    """Readout errors are in the model too: a qubit that stays in 0 is read as 1 as often as the chip file says."""
    chip = SMALL
    program = QuantumCircuit(1)
    program.measure_all()
    compiled = transpile(program, target=chip_formats.to_target(chip), initial_layout=[2])
    shots = 100_000
    simulator = AerSimulator(noise_model=chip_formats.to_noise_model(chip))
    seen = simulator.run(compiled, shots=shots, seed_simulator=1).result().get_counts().get("1", 0) / shots
    expected = chip.qubits[2].p1_given_0
    assert expected is not None
    assert abs(seen - expected) < 6 * np.sqrt(expected * (1 - expected) / shots)


def test_the_noise_model_refuses_gates_that_the_chip_has_not() -> None:
    chip = SMALL
    program = QuantumCircuit(1)
    program.h(0)
    program.save_density_matrix()
    with pytest.raises(ConfigError, match="h is not native"):
        exact_simulator(chip).run(program).result()


def test_a_noise_model_comes_back() -> None:
    chip = random_chip([(0, 1), (1, 2), (2, 3), (3, 4)], seed=3)
    model = chip_formats.to_noise_model(chip)
    back = chip_formats.from_noise_model(
        model, name="back", source="a test", native_gates=chip.native_gates, n_qubits=chip.n_qubits
    )
    assert back.live_qubits == chip.live_qubits
    for q in chip.live_qubits:
        old: Any = chip.qubits[q]
        new: Any = back.qubits[q]
        assert (new.t1_us, new.t2_us) == pytest.approx((old.t1_us, old.t2_us), rel=1e-6)
        assert (new.p1_given_0, new.p0_given_1) == pytest.approx((old.p1_given_0, old.p0_given_1), abs=1e-9)
    again = chip_formats.to_noise_model(back)
    for gate, errors in model._local_quantum_errors.items():
        for qubits, error in errors.items():
            same = np.asarray(again._local_quantum_errors[gate][qubits].to_quantumchannel().data)
            assert np.abs(same - np.asarray(error.to_quantumchannel().data)).max() < 1e-7


def test_unified_quantum_round_trip() -> None:
    for chip in (load_chip("wukong-72"), load_chip("wukong-180"), random_chip([(0, 1), (1, 2), (2, 3)], seed=1)):
        data = json.loads(json.dumps(chip_formats.to_unified_quantum(chip)))
        back = chip_formats.from_unified_quantum(data)
        assert (back.name, back.date, back.native_gates) == (chip.name, chip.date, chip.native_gates)
        assert back.live_qubits == chip.live_qubits
        assert {tuple(sorted(c.qubits)) for c in back.couplers} == {tuple(sorted(c.qubits)) for c in chip.couplers}
        for a, near in chip.neighbours.items():
            assert back.neighbours[a] == pytest.approx(near, abs=1e-9)
        for q in chip.live_qubits:
            new, old = (dataclasses.asdict(c.qubits[q]) for c in (back, chip))
            for field in ("t1_us", "t2_us", "error_1q", "p1_given_0", "p0_given_1"):
                assert new[field] == pytest.approx(old[field], abs=1e-9)


def unified() -> dict[str, Any]:
    return {
        "platform": "originq",
        "chip_name": "WK_C180",
        "full_id": "originq:WK_C180",
        "available_qubits": [0, 1, 2],
        "connectivity": [{"u": 0, "v": 1}, {"u": 2, "v": 1}],
        "single_qubit_data": [
            {
                "qubit_id": 0,
                "t1": 40.0,
                "t2": 20.0,
                "single_gate_fidelity": 0.999,
                "readout_fidelity_0": 0.98,
                "readout_fidelity_1": 0.95,
            },
            {"qubit_id": 1, "t1": 41.0, "t2": 21.0, "single_gate_fidelity": 0.998, "avg_readout_fidelity": 0.97},
            {"qubit_id": 2, "t1": None, "t2": 21.0, "single_gate_fidelity": 0.998, "avg_readout_fidelity": 0.97},
        ],
        "two_qubit_data": [
            {"qubit_u": 1, "qubit_v": 0, "gates": [{"gate": "cx", "fidelity": 0.98}, {"gate": "cz", "fidelity": None}]}
        ],
        "global_info": {"single_qubit_gate_time": 40.0, "two_qubit_gate_time": None},
        "calibrated_at": "2026-05-01T08:00:00+08:00",
    }


def test_unified_quantum_with_nulls_and_measured_readout() -> None:
    chip = chip_formats.from_unified_quantum(unified(), confusion={1: [[0.99, 0.08], [0.01, 0.92]]})
    assert chip.live_qubits == (0, 1)
    assert (chip.qubits[0].p1_given_0, chip.qubits[0].p0_given_1) == (0.02, 0.05)
    assert (chip.qubits[1].p1_given_0, chip.qubits[1].p0_given_1) == (0.01, 0.08)
    assert chip.neighbours[0] == {1: 0.02}
    assert "dead" in str(chip.why_not(0, 1) or "dead")
    assert [c.enabled for c in chip.couplers] == [True, False]
    assert (chip.native_gates.rphi.time_ns, chip.native_gates.cz.time_ns) == (40.0, 40.0)
    assert str(chip.date) == "2026-05-01"
    assert not chip.synthetic


PAIR = {"qubit_u": 0, "qubit_v": 1, "gates": [{"gate": "cz", "fidelity": 0.9}]}


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"two_qubit_data": [{**PAIR, "qubit_v": 2}]}, "two_qubit_data", "not in connectivity"),
        ({"two_qubit_data": [PAIR, {**PAIR, "qubit_u": 1, "qubit_v": 0}]}, "two_qubit_data", "twice"),
        ({"two_qubit_data": [{**PAIR, "qubit_v": 0}]}, "two_qubit_data", "with itself"),
        ({"available_qubits": [0, 7]}, "available_qubits", r"\[7\] have no"),
        ({"single_qubit_data": unified()["single_qubit_data"][:1] * 2}, "single_qubit_data", "twice"),
        ({"connectivity": [{"u": 0}]}, "connectivity", "'v' is missing"),
        ({"calibrated_at": "yesterday"}, "calibrated_at", "yesterday"),
        ({"two_qubit_data": None}, "two_qubit_data", "cannot be used"),
    ],
)
def test_unified_quantum_files_that_contradict_themselves(change: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        chip_formats.from_unified_quantum({**unified(), **change})
    assert caught.value.field == field


def test_where_unified_quantum_looks() -> None:
    path = chip_formats.unified_quantum_file("originq", "WK:C/180")
    assert path.parts[-4:] == (".uniqc", "backend", "chips", "originq-WK_C_180.json")
