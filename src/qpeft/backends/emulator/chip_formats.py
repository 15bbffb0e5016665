"""Chips from and to what others write: a live Wukong chip's `chip_info`, and Qiskit's `Target`."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any

from qpeft.backends.emulator.chip import FORMAT, VERSION, Chip, Coupler, GateTime, NativeGates, Qubit, Timing
from qpeft.errors import ConfigError, MissingDependencyError

# A vendor's reply holds no times of jobs: those measured on the two chips (see the shipped files) stand in.
DEFAULT_TIMING = Timing(shot_us=100.0, circuit_s=0.06, job_s=3.24, max_circuits_per_job=200)


def from_chip_info(
    reply: Mapping[str, Any], *, name: str, date: datetime.date | None = None, timing: Timing = DEFAULT_TIMING
) -> Chip:
    """A Chip from the reply to `chipInfo.json`, or from its `obj`.

    T1 and T2 are taken as microseconds, fidelities of gates as average fidelities, `ReadoutFidelity` as the mean of both readout
    errors (they are not told apart), gate times as nanoseconds. A coupler of weight 0 is dead, a qubit that is not in
    `AvailableQubits` or lacks a number is disabled, and T2 above 2 T1 is lowered to it.

    Raises ConfigError naming the field that is missing or cannot be used.
    """
    info: Any = reply.get("obj", reply) if hasattr(reply, "get") else None
    if not isinstance(info, Mapping):
        raise ConfigError("not a chip's information", expected="an object with QubitParams and adjMatrix")
    place = "QubitParams"
    try:
        rows = {_index(row["qubitId"]): row for row in info["QubitParams"]}
        place = "QubitCount"
        count = max([int(info.get("QubitCount", 0)), *(q + 1 for q in rows)])
        if not 0 < count <= 100_000:
            raise ValueError(f"{count} qubits")
        place = "AvailableQubits"
        available = {_index(q) for q in info.get("AvailableQubits") or rows}
        place = "QubitParams"
        qubits = tuple(_qubit(rows.get(q, {}), q in available) for q in range(count))
        place = "adjMatrix"
        weights: dict[tuple[int, int], float] = {}
        for a, near in info["adjMatrix"].items():
            for edge in near:
                pair = (min(int(a), _index(edge["v"])), max(int(a), _index(edge["v"])))
                weights[pair] = min(float(edge["w"]), weights.get(pair, 1.0))
        place = "QGateClock"
        clock = {str(row["gateType"]).upper(): float(row["IntValue"]) for row in info.get("QGateClock") or ()}
        times = NativeGates(rphi=GateTime(time_ns=clock.get("RPHI", 30.0)), cz=GateTime(time_ns=clock.get("CZ", 40.0)))
        place = ""
        return Chip(
            format=FORMAT,
            version=VERSION,
            name=name,
            source=f"chip_info of chip {info.get('ChipID', name)}",
            date=date,
            synthetic=False,
            native_gates=times,
            gate_errors_include_decay=True,
            timing=timing,
            qubits=qubits,
            couplers=tuple(_coupler(pair, weight) for pair, weight in sorted(weights.items())),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"chip_info cannot be used: {what}", field=place, expected="what the vendor's service sends") from error


def _index(value: Any) -> int:
    number = int(value)
    if number < 0:
        raise ValueError(f"qubit {number}")
    return number


def _qubit(row: Mapping[str, Any], available: bool) -> Qubit:
    def number(key: str) -> float | None:
        value = row.get(key)
        return None if value is None or not math.isfinite(float(value)) else float(value)

    t1, t2, fidelity, readout = (number(key) for key in ("T1", "T2", "SingleGateFidelity", "ReadoutFidelity"))
    t1, t2 = (value if value is not None and value > 0 else None for value in (t1, t2))
    if t1 is not None and t2 is not None:
        t2 = min(t2, 2 * t1)
    error = None if fidelity is None or not 0.5 <= fidelity <= 1 else _round(1 - fidelity)
    flip = None if readout is None or not 0 <= readout <= 1 else _round(1 - readout)
    complete = None not in (t1, t2, error, flip)
    return Qubit(t1_us=t1, t2_us=t2, error_1q=error, p1_given_0=flip, p0_given_1=flip, enabled=available and complete)


def _round(value: float) -> float:
    """Ten significant digits: what subtraction from 1 and a change of unit leave of a number's last places goes."""
    return float(f"{value:.10g}")


def _coupler(pair: tuple[int, int], weight: float) -> Coupler:
    alive = 0.25 <= weight <= 1  # below a quarter it would do worse than a fully depolarising gate
    return Coupler(qubits=pair, error_cz=_round(1 - weight) if alive else None, enabled=alive)


def from_target(target: Any, *, name: str, source: str, date: datetime.date | None = None, timing: Timing = DEFAULT_TIMING) -> Chip:
    """A Chip from a Qiskit `Target` with calibration (for instance of a fake backend or of `BackendV2.target`).

    The chip is taken as if its pulses were RPhi and CZ: of each qubit the one-qubit gate with the longest duration, of each
    pair the two-qubit gate with the least error, its time the longest of all pairs. Readout errors are symmetric there. A qubit
    or pair without calibration is disabled.

    Raises ConfigError for a target without durations of gates.
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
        row: dict[str, Any] = {key: _round(value * 1e6) for key, value in times.items() if value is not None}
        if q in single:
            row["SingleGateFidelity"] = 1 - single[q][1]
        if q in readout:
            row["ReadoutFidelity"] = 1 - readout[q]
        qubits.append(_qubit(row, available=True))
    return Chip(
        format=FORMAT,
        version=VERSION,
        name=name,
        source=source,
        date=date,
        synthetic=False,
        native_gates=NativeGates(
            rphi=GateTime(time_ns=_round(max(duration for duration, _ in single.values()) * 1e9)),
            cz=GateTime(time_ns=_round(max((duration for _, duration in double.values()), default=0.0) * 1e9)),
        ),
        gate_errors_include_decay=True,
        timing=timing,
        qubits=tuple(qubits),
        couplers=tuple(_coupler(pair, 1 - error) for pair, (error, _) in sorted(double.items())),
    )


def to_target(chip: Chip) -> Any:
    """A Qiskit `Target` with the chip's live qubits and couplers: `r` (RPhi), `rz` (no time, no error), `cz` and `measure`."""
    try:
        from qiskit.circuit import Measure, Parameter
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
