"""Circuits and chips in the words of IQM Server API v1 (api/iqm.py): qubits `QB1`, `QB2`, .., gates `prx` and `cz`."""

from __future__ import annotations

import hashlib
import math
import uuid
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from qpeft.backends.emulator.chip import Chip
from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.errors import ServiceError
from qpeft.service.messages import MEASURED, Shots
from qpeft.service.scheduling.submission import StoredProgram
from qpeft.service.store.directory import stamp
from qpeft.service.workers.programs import Measured

Word = Annotated[str, Meta(max_length=200)]
OFFERED: Final = {"prx": "drag_crf", "cz": "tgss", "measure": "constant"}
"""Gates of an emulated chip with the name of their implementation."""
_NAMES: Final = uuid.uuid5(uuid.NAMESPACE_URL, "urn:qpeft")


class Instruction(msgspec.Struct):
    """One instruction; the older API of CUDA-Q says `qubits` for `locus` and gives angles in full turns (`angle_t`)."""

    name: Word
    args: dict[str, Any] = {}
    locus: list[Word] | None = None
    qubits: list[Word] | None = None
    implementation: Word | None = None

    @property
    def where(self) -> list[str]:
        """The qubits it acts on, by the names that the circuit uses."""
        return self.locus if self.locus is not None else self.qubits or []


class IqmCircuit(msgspec.Struct):
    """A circuit as a client sends it."""

    instructions: list[Instruction]
    name: str = ""


class QubitName(msgspec.Struct):
    """A name that circuits use for a physical qubit."""

    logical_name: Word
    physical_name: Word


class CircuitsRequest(msgspec.Struct):
    """A batch of circuits. A circuit that is a string is QIR, which is refused."""

    circuits: Annotated[list[IqmCircuit | str], Meta(min_length=1)]
    shots: Shots = 1000
    calibration_set_id: Word | None = None
    qubit_mapping: list[QubitName] | None = None
    heralding_mode: Word | None = "none"
    dd_mode: Word | None = "disabled"
    active_reset_cycles: int | None = None


def identifier(name: str) -> uuid.UUID:
    """The UUID that stands for a name of ours, such as a device's or a calibration's."""
    return uuid.uuid5(_NAMES, name)


def qubit_name(number: int) -> str:
    """A chip's qubit as clients write it, counted from 1."""
    return f"QB{number + 1}"


def _refused(what: str, value: object, bound: str = "", hint: str | None = None) -> ServiceError:
    return ServiceError(what, status=422, code="circuit", value=str(value)[:200], bound=bound or None, hint=hint)


def check_options(submission: CircuitsRequest) -> None:
    """Refuse what this service cannot honour, before any circuit is read."""
    for name, allowed in (("heralding_mode", (None, "none")), ("dd_mode", (None, "disabled")), ("active_reset_cycles", (None,))):
        value = getattr(submission, name)
        if value not in allowed:
            raise _refused(f"{name} is not honoured here", value, " or ".join(map(str, allowed)))


class IqmReading:
    """Reads the circuits of one submission for a chip.

    Args:
        chip: whose qubits and couplers the circuits name.
        submission: with the names of qubits.
    """

    def __init__(self, chip: Chip, submission: CircuitsRequest) -> None:
        self.chip = chip
        self.known = {qubit_name(q): q for q in range(chip.n_qubits)}
        self.names = dict(self.known)
        if submission.qubit_mapping is not None:
            self.names = {one.logical_name: self._physical(one.physical_name) for one in submission.qubit_mapping}
            if len(set(self.names.values())) < len(submission.qubit_mapping):
                raise _refused("a qubit mapping gives each name a physical qubit of its own", len(submission.qubit_mapping))

    def _physical(self, name: str) -> int:
        if name not in self.known:
            raise _refused(f"{self.chip.name} has no such qubit", name, f"QB1..QB{self.chip.n_qubits}")
        return self.known[name]

    def program(self, circuit: IqmCircuit | str, source: bytes, most_ops: int) -> StoredProgram:
        """The circuit as it is stored: on the qubits that it names, with what was sent.

        Args:
            circuit: as it was decoded.
            source: JSON that is kept with it.
            most_ops: bound on the number of gates.

        Raises ServiceError for what the chip cannot do.
        """
        if isinstance(circuit, str):
            raise _refused("QIR is not read here", circuit[:40], hint="send instructions")
        ops: list[tuple[str, tuple[int, ...], float | None]] = []
        measured: list[int] = []
        for number, instruction in enumerate(circuit.instructions):
            try:
                self._add(instruction, ops, measured)
            except ServiceError as error:
                error.args = (f"instruction {number} ({instruction.name[:40]}): {error}",)
                raise
        keys = [key for key, _ in measurements(circuit)]
        if not keys:
            raise _refused("a circuit measures at least one qubit", 0)
        if len(set(keys)) < len(keys):
            raise _refused("keys of measurements differ", next(key for key in keys if keys.count(key) > 1))
        if len(ops) > most_ops:
            raise _refused("too many gates", len(ops), str(most_ops))
        layout = tuple(sorted({q for _, qubits, _ in ops for q in qubits} | set(measured)))
        local = {q: i for i, q in enumerate(layout)}
        made = Circuit(
            len(layout),
            tuple(
                Op(gate, tuple(local[q] for q in qubits), None if angle is None else Angle(shift=angle))
                for gate, qubits, angle in ops
            ),
            0,
            0,
        )
        bits = tuple(local[q] for q in measured)
        text = msgspec.json.encode(Measured(msgspec.Raw(made.to_json().encode()), bits, layout, msgspec.Raw(source)))
        return StoredProgram(hashlib.sha256(b"iqm\0" + text).hexdigest(), MEASURED, text, len(layout), 0, len(ops))

    def _add(self, one: Instruction, ops: list[tuple[str, tuple[int, ...], float | None]], measured: list[int]) -> None:
        qubits = tuple(self._named(name) for name in one.where)
        if one.name in ("barrier", "delay"):
            if one.name == "delay" and _number(one.args, "duration") != 0.0:
                raise _refused("delays are not emulated", one.args.get("duration"), "0")
            return
        if one.name not in OFFERED:
            raise _refused("not offered here", one.name, ", ".join((*OFFERED, "barrier")))
        if one.implementation not in (None, OFFERED[one.name]):
            raise _refused("no such implementation", one.implementation, OFFERED[one.name])
        if not qubits or len(set(qubits)) < len(qubits) or (one.name != "measure" and len(qubits) != 1 + (one.name == "cz")):
            raise _refused("it acts on another number of different qubits", ", ".join(one.where))
        if again := set(qubits) & set(measured):
            raise _refused("the qubit is measured already", qubit_name(min(again)), hint="measure each qubit once, at the end")
        for pair in [qubits] if one.name == "cz" else [(q,) for q in qubits]:
            if reason := self.chip.why_not(*pair):
                raise _refused(f"{'-'.join(map(qubit_name, pair))}: {reason}", one.name, hint="qubits here count from QB1")
        if one.name == "measure":
            measured += qubits
        elif one.name == "cz":
            ops.append(("cz", qubits, None))
        else:
            turns = "angle_t" in one.args
            angle, phase = (_number(one.args, name + "_t" * turns) * (2 * math.pi) ** turns for name in ("angle", "phase"))
            frame = [("rz", qubits, -phase), ("rz", qubits, phase)] if phase else []
            ops += [*frame[:1], ("rx", qubits, angle), *frame[1:]]

    def _named(self, name: str) -> int:
        if name not in self.names:
            raise _refused("no such qubit", name, f"{len(self.names)} names, such as {next(iter(self.names), '')}")
        return self.names[name]


def _number(args: dict[str, Any], name: str) -> float:
    value = args.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
        raise _refused(f"{name} is a number", value, "below 1e15")
    return float(value)


def measurements(circuit: IqmCircuit) -> list[tuple[str, int]]:
    """Keys of the circuit's measurements in its order, with the number of bits that each holds."""
    found = []
    for one in circuit.instructions:
        if one.name == "measure":
            key = one.args.get("key")
            if not isinstance(key, str) or not 0 < len(key) <= 200:
                raise _refused("a measurement has a key", key)
            found.append((key, len(one.where)))
    return found


def architecture(chip: Chip, calibration: str) -> dict[str, Any]:
    """What the chip offers under a calibration: its live qubits, and the loci of each gate."""
    live = [qubit_name(q) for q in chip.live_qubits]
    loci = {"prx": [[name] for name in live], "cz": _pairs(chip), "measure": [[name] for name in live]}
    gates = {
        gate: {
            "implementations": {implementation: {"loci": loci[gate]}},
            "default_implementation": implementation,
            "override_default_implementation": {},
        }
        for gate, implementation in OFFERED.items()
    }
    head = {"calibration_set_id": str(identifier(calibration)), "qubits": live, "computational_resonators": []}
    return {**head, "gates": gates}


def _pairs(chip: Chip) -> list[list[str]]:
    return [[qubit_name(a), qubit_name(b)] for a, near in chip.neighbours.items() for b in near if a < b]


def label(chip: Chip) -> str:
    """The chip's name, with a note where its calibration was not measured."""
    return f"{chip.name} (emulated{', synthetic calibration' if chip.synthetic else ''})"


def static_architecture(chip: Chip) -> dict[str, Any]:
    """Qubits and couplers, whatever works today."""
    connectivity = [[qubit_name(a), qubit_name(b)] for a, b in (sorted(coupler.qubits) for coupler in chip.couplers)]
    qubits = [qubit_name(q) for q in range(chip.n_qubits)]
    return {"dut_label": label(chip), "qubits": qubits, "computational_resonators": [], "connectivity": connectivity}


Observation = tuple[str, float, str]  # field, value, unit


def _times(chip: Chip) -> list[Observation]:
    found: list[Observation] = []
    for q in chip.live_qubits:
        for kind, microseconds in (("t1", chip.qubits[q].t1_us), ("t2", chip.qubits[q].t2_us)):
            found.append((f"characterization.model.{qubit_name(q)}.{kind}_time", (microseconds or 0.0) * 1e-6, "s"))
        found.append((f"gates.prx.drag_crf.{qubit_name(q)}.duration", chip.native_gates.rphi.time_ns * 1e-9, "s"))
    return found + [(f"gates.cz.tgss.{a}__{b}.duration", chip.native_gates.cz.time_ns * 1e-9, "s") for a, b in _pairs(chip)]


def _fidelities(chip: Chip) -> list[Observation]:
    found: list[Observation] = []
    for q in chip.live_qubits:
        qubit, name = chip.qubits[q], qubit_name(q)
        found += [
            (f"metrics.rb.prx.drag_crf.{name}.fidelity:par=d1", 1.0 - (qubit.error_1q or 0.0), ""),
            (f"metrics.ssro.measure.constant.{name}.fidelity", 1.0 - qubit.readout_error, ""),
            (f"metrics.ssro.measure.constant.{name}.error_0_to_1", qubit.p1_given_0 or 0.0, ""),
            (f"metrics.ssro.measure.constant.{name}.error_1_to_0", qubit.p0_given_1 or 0.0, ""),
        ]
    for a, near in chip.neighbours.items():
        pairs = ((f"{qubit_name(a)}__{qubit_name(b)}", error) for b, error in near.items() if a < b)
        found += [(f"metrics.irb.cz.tgss.{pair}.fidelity:par=d2", 1.0 - error, "") for pair, error in pairs]
    return found


def observations(chip: Chip, calibration: str, created_at: float, metrics: bool) -> dict[str, Any]:
    """A chip's calibration as observations.

    Args:
        chip: the chip.
        calibration: id of the calibration.
        created_at: when it was stored, seconds since 1970.
        metrics: True gives fidelities; False gives coherence times and durations of gates.
    """
    found = _fidelities(chip) if metrics else _times(chip)
    when = stamp(created_at)
    rows = [
        {
            "observation_id": number,
            "dut_field": field,
            "value": value,
            "unit": unit,
            "uncertainty": None,
            "invalid": False,
            "created_timestamp": when,
            "modified_timestamp": when,
        }
        for number, (field, value, unit) in enumerate(found, 1)
    ]
    this = identifier(calibration)
    return {
        "observation_set_id": str(identifier(f"metrics of {calibration}") if metrics else this),
        "observation_set_type": "quality-metric-set" if metrics else "calibration-set",
        "describes_id": str(this) if metrics else None,
        "invalid": False,
        "dut_label": label(chip),
        "created_timestamp": when,
        "end_timestamp": when,
        "observations": rows,
    }
