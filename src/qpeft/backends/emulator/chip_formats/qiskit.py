"""Chips from and to Qiskit: a `Target` for its transpiler, a `NoiseModel` for Aer.

    compiled = transpile(circuit, target=to_target(chip))
    aer_simulator(chip, method="density_matrix").run(compiled)  # the emulator's distribution of the same native circuit

The noise is the emulator's (docs/emulator.md). Waiting qubits decay too; Aer has no place for that in a `NoiseModel` unless a
circuit contains a delay, so `aer_simulator` writes it into the circuit. A `Target` has no readout asymmetry, and a `NoiseModel` no
gate times: what the one lacks is in the other.
"""

from __future__ import annotations

import datetime
import functools
import math
from typing import Any

import numpy as np

from qpeft.backends.emulator.chip import FORMAT, VERSION, Chip, GateTime, NativeGates, Timing
from qpeft.backends.emulator.chip_formats.common import DEFAULT_TIMING, make_coupler, make_qubit, rounded
from qpeft.backends.emulator.noise import NoiseParameters, components
from qpeft.errors import ConfigError, MissingDependencyError

PULSES = ("r", "rx", "ry")


def from_target(target: Any, *, name: str, source: str, date: datetime.date | None = None, timing: Timing = DEFAULT_TIMING) -> Chip:
    """A Chip from a Qiskit `Target` with calibration.

    The chip is taken as if its pulses were RPhi and CZ: of each qubit the one-qubit gate with the longest duration, of each
    pair the two-qubit gate with the least error, its time the longest of all pairs. Readout errors are symmetric there. A qubit
    or pair without calibration is disabled.

    Args:
        target: `qiskit.transpiler.Target`, for instance of a fake backend or of `BackendV2.target`.
        name: name of the chip.
        source: where the calibration comes from.
        date: date of the calibration.
        timing: the service's times, which a target does not have.

    Raises:
        ConfigError: the target has no one-qubit gate with a duration and an error.
    """
    single: dict[int, tuple[float, float]] = {}  # qubit -> (duration, error)
    double: dict[tuple[int, int], tuple[float, float]] = {}  # pair -> (error, duration)
    readout: dict[int, float] = {}
    for operation, where in target.instructions:
        if where is None or operation.name in ("id", "delay", "reset"):
            continue
        properties = target[operation.name][where]
        duration, error = getattr(properties, "duration", None), getattr(properties, "error", None)
        if error is None:
            continue
        if operation.name == "measure":
            readout[where[0]] = float(error)
        elif duration is not None and len(where) == 1:
            single[where[0]] = max(single.get(where[0], (0.0, 0.0)), (float(duration), float(error)))
        elif duration is not None and len(where) == 2:
            pair = (min(where), max(where))
            double[pair] = min(double.get(pair, (1.0, 0.0)), (float(error), float(duration)))
    if not single:
        raise ConfigError("the target has no calibrated one-qubit gate", expected="durations and errors of gates")
    qubits = []
    for q in range(target.num_qubits):
        properties = target.qubit_properties[q] if target.qubit_properties else None
        times = {key: getattr(properties, key.lower(), None) for key in ("T1", "T2")}
        row: dict[str, Any] = {key: rounded(value * 1e6) for key, value in times.items() if value is not None}
        if q in single:
            row["SingleGateFidelity"] = 1 - single[q][1]
        if q in readout:
            row["ReadoutFidelity"] = 1 - readout[q]
        qubits.append(make_qubit(row, available=True))
    return Chip(
        format=FORMAT,
        version=VERSION,
        name=name,
        source=source,
        date=date,
        synthetic=False,
        native_gates=NativeGates(
            rphi=GateTime(time_ns=rounded(max(duration for duration, _ in single.values()) * 1e9)),
            cz=GateTime(time_ns=rounded(max((duration for _, duration in double.values()), default=0.0) * 1e9)),
        ),
        gate_errors_include_decay=True,
        timing=timing,
        qubits=tuple(qubits),
        couplers=tuple(make_coupler(pair, 1 - error) for pair, (error, _) in sorted(double.items())),
    )


def to_target(chip: Chip) -> Any:
    """A Qiskit `Target` with live qubits and couplers: `r` (RPhi), `rz` (no time, no error), `cz`, `measure` and `delay`."""
    try:
        from qiskit.circuit import Delay, Measure, Parameter
        from qiskit.circuit.library import CZGate, RGate, RZGate
        from qiskit.transpiler import InstructionProperties, QubitProperties, Target
    except ImportError as error:
        raise MissingDependencyError("qiskit", "qiskit", "a Qiskit Target") from error
    properties = [QubitProperties(t1=_seconds(q.t1_us), t2=_seconds(q.t2_us)) for q in chip.qubits]
    target = Target(num_qubits=chip.n_qubits, qubit_properties=properties)
    times = chip.native_gates
    live = [(q, chip.qubits[q]) for q in chip.live_qubits]
    rphi = {(q,): InstructionProperties(duration=times.rphi.time_ns * 1e-9, error=qubit.error_1q) for q, qubit in live}
    target.add_instruction(RGate(Parameter("theta"), Parameter("phi")), rphi)
    target.add_instruction(RZGate(Parameter("angle")), {(q,): InstructionProperties(duration=0.0, error=0.0) for q, _ in live})
    target.add_instruction(Measure(), {(q,): InstructionProperties(error=qubit.readout_error) for q, qubit in live})
    target.add_instruction(Delay(Parameter("time")), {(q,): None for q, _ in live})
    pairs = {
        (a, b): InstructionProperties(duration=times.cz.time_ns * 1e-9, error=error)
        for a, near in chip.neighbours.items()
        for b, error in near.items()
    }
    if pairs:
        target.add_instruction(CZGate(), pairs)
    return target


def _seconds(us: float | None) -> float | None:
    return None if us is None else us * 1e-6


def to_noise_model(chip: Chip) -> Any:
    """Aer's `NoiseModel` of a chip: the errors of `r`, `rx`, `ry` and `cz`, `rz` free of error, and readout errors.

    It is Markovian Aer noise, so any of Aer's methods works. Waiting qubits decay too, in circuits that contain a delay: Aer asks a
    noise model about no others. `placed_circuit` writes one, `transpile(.., scheduling_method="asap")` does, and a delay of no time
    will do: `circuit.delay(0, 0, "s")`. `aer_simulator` needs none.

    Raises MissingDependencyError without Qiskit Aer.
    """
    try:
        from qiskit_aer.noise import NoiseModel, ReadoutError, depolarizing_error, thermal_relaxation_error
    except ImportError as error:
        raise MissingDependencyError("qiskit-aer", "aer", "a noise model for Aer") from error
    model = NoiseModel(["cz", "r", "rx", "ry", "rz"])
    times, live = chip.native_gates, chip.live_qubits
    pairs = sorted((a, b) for a, near in chip.neighbours.items() for b in near if a < b)
    position = {q: i for i, q in enumerate(live)}
    noise = NoiseParameters.of(chip, live, [(position[a], position[b]) for a, b in pairs])

    def decay(qubit: int, ns: float) -> Any:
        i = position[qubit]
        return thermal_relaxation_error(noise.t1_ns[0, i], noise.t2_ns[0, i], ns)

    for q, i in position.items():
        pulse = depolarizing_error(1 - noise.keep_1q[0, i], 1).compose(decay(q, times.rphi.time_ns))
        model.add_quantum_error(pulse, list(PULSES), [q])
        model.add_readout_error(ReadoutError(noise.confusion[0, i].T), [q])
    during = {q: decay(q, times.cz.time_ns) for q in live}
    for k, (a, b) in enumerate(pairs):
        depolarise = depolarizing_error(1 - noise.keep_cz[0, k], 2)
        for first, second in ((a, b), (b, a)):  # the first qubit of an instruction is the lowest
            model.add_quantum_error(depolarise.compose(during[second].tensor(during[first])), ["cz"], [first, second])
    model._custom_noise_passes.append(waiting_pass(chip))  # as NoiseModel.from_backend does for delays
    return model


def aer_simulator(chip: Chip, **options: Any) -> Any:
    """An `AerSimulator` of a chip, for circuits in its native gates on its own qubit numbers (`to_target`, `placed_circuit`).

    Args:
        chip: the chip.
        options: of `AerSimulator`, such as `method="density_matrix"`.
    """
    noise_model = to_noise_model(chip)
    from qiskit.transpiler import PassManager
    from qiskit_aer import AerSimulator

    noise_model._custom_noise_passes.clear()  # the decay is written into the circuit instead
    waiting = PassManager([waiting_pass(chip)])

    class ChipSimulator(AerSimulator):  # type: ignore[misc]
        """Aer with the chip's noise, waiting included."""

        def run(self, circuits: Any, *args: Any, **run_options: Any) -> Any:
            return super().run(waiting.run(circuits), *args, **run_options)

    return ChipSimulator(noise_model=noise_model, **options)


def waiting_pass(chip: Chip) -> Any:
    """A Qiskit pass that inserts the decay of qubits that wait: for a partner, and for the measurement of those they are joined
    with. A gate that is not native to the chip is refused."""
    from qiskit.transpiler.basepasses import TransformationPass
    from qiskit_aer.noise import thermal_relaxation_error

    times = chip.native_gates
    durations = dict.fromkeys(PULSES, times.rphi.time_ns) | {"rz": 0.0, "cz": times.cz.time_ns}

    @functools.lru_cache(maxsize=100_000)
    def decay(q: int, ns: float) -> Any:
        qubit = chip.qubits[q]
        assert qubit.t1_us is not None
        assert qubit.t2_us is not None
        return thermal_relaxation_error(qubit.t1_us * 1e3, qubit.t2_us * 1e3, ns).to_instruction()

    class WaitingDecay(TransformationPass):  # type: ignore[misc]
        """The emulator's schedule."""

        def run(self, dag: Any) -> Any:
            return insert_waiting(dag, durations, decay)

    return WaitingDecay()


def insert_waiting(dag: Any, durations: dict[str, float], decay: Any) -> Any:
    """A DAG with the decay of waiting qubits written out; gates start as soon as their qubits are free.

    Qubits that gates join, directly or through others, end together: an instruction that is no gate, such as a measurement,
    comes after that.

    Args:
        dag: a `DAGCircuit` of native gates.
        durations: duration of each gate by name, in any one unit.
        decay: `decay(qubit, time)` makes the instruction for a wait, time in the unit of the durations.

    Raises:
        ConfigError: a gate without a duration.
    """
    from qiskit.circuit import Gate

    number = {qubit: i for i, qubit in enumerate(dag.qubits)}
    nodes = list(dag.topological_op_nodes())
    gates = [node for node in nodes if not node.cargs and node.op.name in durations]
    for node in nodes:
        if isinstance(node.op, Gate) and node.op.name not in durations:
            raise ConfigError(
                f"the gate {node.op.name} is not native to the chip",
                expected=", ".join(durations),
                hint="to_target(chip), transpile",
            )
    joined = components(len(number), [[number[q] for q in node.qargs] for node in gates if len(node.qargs) == 2])
    group = {q: members for members in joined for q in members}
    free: dict[int, float] = {}
    for node in gates:
        where = [number[q] for q in node.qargs]
        start = max(free.get(q, 0.0) for q in where)
        free.update(dict.fromkeys(where, start + durations[node.op.name]))
    ends = {q: max(free.get(other, 0.0) for other in members) for q, members in group.items()}
    out, clock = dag.copy_empty_like(), dict[int, float]()

    def wait(q: int, until: float) -> None:
        if q in clock and until > clock[q]:
            out.apply_operation_back(decay(q, until - clock[q]), [dag.qubits[q]])
        if q in clock:
            clock[q] = until

    for node in nodes:
        where = [number[q] for q in node.qargs]
        if node.op.name in durations:
            start = max(clock.get(q, 0.0) for q in where)
            for q in where:
                wait(q, start)
                clock[q] = start + durations[node.op.name]
        elif node.op.name == "delay":  # the schedule above is kept, whatever made the delay
            continue
        elif node.op.name != "barrier":
            for q in where:
                wait(q, ends[q])
        out.apply_operation_back(node.op, node.qargs, node.cargs)
    return out


def from_noise_model(
    model: Any,
    *,
    name: str,
    source: str,
    n_qubits: int | None = None,
    native_gates: NativeGates | None = None,
    date: datetime.date | None = None,
    timing: Timing = DEFAULT_TIMING,
) -> Chip:
    """A Chip from an Aer `NoiseModel` with an error for each qubit and pair.

    T1 and T2 are read off each qubit's one-qubit gate (`r`, `rx`, `sx` or `x`), as a decay over the gate's time; a gate's error is
    its average infidelity, decay included.

    Args:
        model: `qiskit_aer.noise.NoiseModel`.
        name: name of the chip.
        source: where the calibration comes from.
        n_qubits: number of qubits; default up to the last one that the model names.
        native_gates: gate times, which a model does not have; default 30 ns for RPhi and 40 ns for CZ.
        date: date of the calibration.
        timing: the service's times.

    Raises:
        ConfigError: the model has no one-qubit error, or a gate that heats, which is no decay.
    """
    from qiskit.quantum_info import SuperOp, average_gate_fidelity

    times = native_gates or NativeGates(rphi=GateTime(time_ns=30.0), cz=GateTime(time_ns=40.0))
    errors, readout = model._local_quantum_errors, model._local_readout_errors
    single = {q: found for gate in ("x", "sx", "rx", "r") for q, found in errors.get(gate, {}).items()}  # the last one counts
    double = {q: found for gate in ("ecr", "cx", "cz") for q, found in errors.get(gate, {}).items()}
    if not single:
        raise ConfigError("the noise model has no error of a one-qubit gate of each qubit", expected="errors on r, rx, sx or x")
    last = max(q for where in (*single, *double, *readout) for q in where)
    rows: list[dict[str, float]] = []
    for q in range(last + 1 if n_qubits is None else n_qubits):
        row: dict[str, float] = {}
        if (q,) in single:
            channel = SuperOp(single[(q,)])
            row = _decay_of(channel, times.rphi.time_ns, q) | {"SingleGateFidelity": float(average_gate_fidelity(channel))}
        if (q,) in readout:
            (given_0, given_1) = readout[(q,)].probabilities
            row |= {"p1_given_0": float(given_0[1]), "p0_given_1": float(given_1[0])}
        rows.append(row)
    fidelity = {
        (min(where), max(where)): float(average_gate_fidelity(SuperOp(error))) for where, error in double.items() if len(where) == 2
    }
    return Chip(
        format=FORMAT,
        version=VERSION,
        name=name,
        source=source,
        date=date,
        synthetic=False,
        native_gates=times,
        gate_errors_include_decay=True,
        timing=timing,
        qubits=tuple(make_qubit(row, available=True) for row in rows),
        couplers=tuple(make_coupler(pair, value) for pair, value in sorted(fidelity.items())),
    )


def _decay_of(channel: Any, ns: float, qubit: int) -> dict[str, float]:
    """T1 and T2 in microseconds of a one-qubit channel that depolarises and then decays for `ns`."""
    from qiskit.quantum_info import PTM

    matrix = np.asarray(PTM(channel).data).real
    fallen = matrix[3, 0]  # 1 - exp(-t/T1)
    if not 0 <= fallen < 1:
        raise ConfigError(f"the error of qubit {qubit} is no decay towards 0", expected="thermal relaxation without heating")
    if fallen == 0.0 or matrix[3, 3] <= 0 or matrix[1, 1] <= 0:
        return {}
    keep = matrix[3, 3] / (1 - fallen)
    t1, t2 = -ns / math.log1p(-fallen), -ns / math.log(min(matrix[1, 1] / keep, 1 - 1e-15))
    return {"T1": rounded(t1 * 1e-3), "T2": rounded(min(t2, 2 * t1) * 1e-3)}


def placed_circuit(compiled: Any, params: Any) -> Any:
    """Native circuit of an emulated circuit, as a Qiskit circuit on all qubits of the chip.

    Args:
        compiled: an `EmulatedCircuit`, not packed.
        params: `(n_params,)` radians.

    Returns:
        A `QuantumCircuit` in native gates that measures qubit k of the original circuit into bit k. On `aer_simulator(chip)`, and
        on `AerSimulator(noise_model=to_noise_model(chip))`, it gives the emulator's distribution. It ends with a delay of no time,
        by which Aer knows that waiting qubits decay.
    """
    from qiskit import QuantumCircuit

    (place,) = compiled.places
    values = [float(value) for value in params]
    out = QuantumCircuit(compiled.backend.chip.n_qubits, compiled.circuit.n_qubits)
    for op in place.circuit.ops:
        angles = [] if op.angle is None else [op.angle.value(values)]
        getattr(out, op.gate)(*angles, *(place.qubits[q] for q in op.qubits))
    out.delay(0, place.qubits[0])
    out.measure(list(place.measured_on), range(compiled.circuit.n_qubits))
    return out
