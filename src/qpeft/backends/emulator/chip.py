"""A chip as data: qubits, couplers, native gates, errors and times, in one JSON file with a versioned schema.

    chip = load_chip("wukong-72")          # ships with qpeft: inferred lattice, synthetic calibration
    chip = load_chip("my-chip.json")

Units are in the names: `t1_us` microseconds, `time_ns` nanoseconds. Errors are probabilities: a gate error is the average gate
infidelity `1 - F`, `p1_given_0` the probability to read 1 where the qubit was 0. Bounds, types and meanings are written once,
in the fields below; the JSON schema next to the chip files is made from them (`python -m qpeft.backends.emulator.synthetic`).
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from qpeft.errors import ConfigError
from qpeft.plugins import Registry

FORMAT: Literal["qpeft.chip"] = "qpeft.chip"
VERSION: Literal[1] = 1
DATA = Path(__file__).parent / "chip_data"
MAX_BYTES = 16 * 2**20  # of a chip file: 100,000 qubits

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

Probability = Annotated[float, Field(ge=0, le=1)]
Position = Annotated[tuple[float, float], Field(description="column and row in a drawing")]


def _inconsistent(what: str) -> PydanticCustomError:
    return PydanticCustomError("inconsistent", "{what}", {"what": what})


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Qubit:
    """One qubit's calibration. A disabled qubit may leave out what was not measured (null)."""

    t1_us: Annotated[float, Field(gt=0, description="energy relaxation time")] | None
    t2_us: Annotated[float, Field(gt=0, description="coherence time, at most 2 T1")] | None
    error_1q: Annotated[float, Field(ge=0, le=0.5, description="average infidelity of RPhi; 1/2 is fully depolarising")] | None
    p1_given_0: Annotated[Probability, Field(description="readout: probability of 1 where the qubit was 0")] | None
    p0_given_1: Annotated[Probability, Field(description="readout: probability of 0 where the qubit was 1")] | None
    enabled: bool = True
    position: Position | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Qubit:
        if self.enabled:
            for name in ("t1_us", "t2_us", "error_1q", "p1_given_0", "p0_given_1"):
                if getattr(self, name) is None:
                    raise _inconsistent(f"{name} is null, which a disabled qubit alone may have")
        if self.t1_us is not None and self.t2_us is not None and self.t2_us > 2 * self.t1_us:
            raise _inconsistent(f"t2_us is {self.t2_us:g}, at most 2 t1_us = {2 * self.t1_us:g} is possible")
        return self

    @property
    def readout_error(self) -> float:
        """The mean of both readout errors; 1 where it is not known."""
        if self.p1_given_0 is None or self.p0_given_1 is None:
            return 1.0
        return (self.p1_given_0 + self.p0_given_1) / 2


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Coupler:
    """A pair of qubits that can take a CZ, or could when the coupler was alive (`enabled`)."""

    qubits: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
    error_cz: Annotated[float, Field(ge=0, le=0.75, description="average infidelity of CZ; 3/4 is fully depolarising")] | None
    enabled: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Coupler:
        if self.qubits[0] == self.qubits[1]:
            raise _inconsistent(f"both ends are qubit {self.qubits[0]}")
        if self.enabled and self.error_cz is None:
            raise _inconsistent("error_cz is null, which a disabled coupler alone may have")
        return self


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class GateTime:
    """How long a native gate takes."""

    time_ns: Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class NativeGates:
    """The pulses: RPhi(theta, phi), a rotation about the axis (cos phi, sin phi, 0), and CZ. RZ is a change of frame and free."""

    rphi: GateTime
    cz: GateTime


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Timing:
    """Time model of a job. The chip is busy for `circuit_s + shots * shot_us`; a job waits in queues besides."""

    shot_us: Annotated[float, Field(ge=0, description="one repetition, reset and readout included")]
    circuit_s: Annotated[float, Field(ge=0, description="chip time of a circuit in addition to its shots")]
    job_s: Annotated[float, Field(ge=0, description="time of a job in addition to its circuits, without a queue")]
    queue_s: Annotated[tuple[float, float], Field(description="shortest and longest wait seen")] | None = None
    max_shots: Annotated[int, Field(ge=1)] | None = None
    max_circuits_per_job: Annotated[int, Field(ge=1)] | None = None


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Chip:
    """A quantum chip at one calibration: frozen, validated, content-addressed by `id`.

    Qubits are numbered by their place in `qubits`. `synthetic` is true when the calibration was drawn or altered by a
    program instead of measured on a device; `source` says by whom. `gate_errors_include_decay` says what the gate errors
    mean: True, the whole infidelity of the gate (as benchmarking measures it), decay during the gate included; False, the
    depolarising part alone, to which decay is added. Built in Python, a bad value raises pydantic's ValidationError (a
    ValueError); `from_json` and `load_chip` raise ConfigError.
    """

    format: Literal["qpeft.chip"]
    version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=80)]
    source: Annotated[str, Field(min_length=1, max_length=2000, description="where the calibration comes from")]
    date: Annotated[datetime.date, Field(description="of the calibration")] | None
    synthetic: bool
    native_gates: NativeGates
    gate_errors_include_decay: bool
    timing: Timing
    qubits: Annotated[tuple[Qubit, ...], Field(min_length=1)]
    couplers: tuple[Coupler, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Chip:
        seen: dict[frozenset[int], int] = {}
        for number, coupler in enumerate(self.couplers):
            for qubit in coupler.qubits:
                if qubit >= self.n_qubits:
                    raise _inconsistent(f"couplers.{number}.qubits names qubit {qubit}, the last one is {self.n_qubits - 1}")
            pair = frozenset(coupler.qubits)
            if pair in seen:
                raise _inconsistent(f"couplers.{number} joins the same qubits as couplers.{seen[pair]}: {sorted(pair)}")
            seen[pair] = number
        return self

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def n_qubits(self) -> int:
        """Number of qubits, disabled ones included."""
        return len(self.qubits)

    @functools.cached_property
    def id(self) -> str:
        """SHA-256 of the JSON form, hexadecimal: equal calibrations have equal ids."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @functools.cached_property
    def live_qubits(self) -> tuple[int, ...]:
        """Numbers of the enabled qubits."""
        return tuple(q for q, qubit in enumerate(self.qubits) if qubit.enabled)

    @functools.cached_property
    def neighbours(self) -> dict[int, dict[int, float]]:
        """`neighbours[a][b]` is the CZ error of the live coupler between live qubits a and b."""
        out: dict[int, dict[int, float]] = {q: {} for q in self.live_qubits}
        for coupler in self.couplers:
            a, b = coupler.qubits
            if coupler.enabled and coupler.error_cz is not None and a in out and b in out:
                out[a][b] = out[b][a] = coupler.error_cz
        return out

    def why_not(self, a: int, b: int | None = None) -> str | None:
        """Why there is no gate on qubit `a`, or on the pair `(a, b)`; None when there is one."""
        for q in (a,) if b is None else (a, b):
            if not 0 <= q < self.n_qubits:
                return f"{self.name} has no qubit {q}, its qubits are 0..{self.n_qubits - 1}"
            if not self.qubits[q].enabled:
                return f"qubit {q} of {self.name} is disabled"
        if b is None or b in self.neighbours[a]:
            return None
        if any(set(coupler.qubits) == {a, b} for coupler in self.couplers):
            return f"the coupler between qubits {a} and {b} of {self.name} is dead"
        near = ", ".join(map(str, self.neighbours[a])) or "none"
        return f"qubits {a} and {b} of {self.name} are not coupled (live neighbours of {a}: {near})"

    def chip_seconds(self, circuits: int, shots: int) -> float:
        """Seconds the chip is busy with `circuits` circuits (packed ones count once) of `shots` shots each."""
        return circuits * (self.timing.circuit_s + shots * self.timing.shot_us * 1e-6)

    def job_seconds(self, circuits: int, shots: int) -> float:
        """Seconds from sending to the last result with no one else in the queue.

        Args:
            circuits: number of circuits; packed ones count once.
            shots: repetitions of each circuit.
        """
        jobs = math.ceil(circuits / (self.timing.max_circuits_per_job or max(circuits, 1)))
        return self.chip_seconds(circuits, shots) + jobs * self.timing.job_s

    def to_json(self) -> str:
        """The file's text: one qubit or coupler a line."""
        return "".join(_lines(_ADAPTER.dump_python(self, mode="json")))

    @classmethod
    def from_json(cls, text: str | bytes, *, file: str = "") -> Chip:
        """Read a chip file's text; raises ConfigError with every problem, naming field and bound."""
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise ConfigError.collect([_problem(detail, file) for detail in error.errors(include_url=False)]) from None


_ADAPTER: TypeAdapter[Chip] = TypeAdapter(Chip)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a chip file."""
    schema = _ADAPTER.json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _problem(detail: Any, file: str) -> ConfigError:
    offered = detail.get("input")
    got = f"; got {json.dumps(offered)}" if isinstance(offered, (int, float, str, bool)) and len(str(offered)) < 80 else ""
    return ConfigError(detail["msg"] + got, file=file, field=".".join(map(str, detail["loc"])), hint="see docs/chips.md")


def _lines(data: dict[str, Any]) -> Iterator[str]:
    yield "{\n"
    for position, (key, value) in enumerate(data.items()):
        end = ",\n" if position + 1 < len(data) else "\n"
        if isinstance(value, list) and value:
            items = ",\n".join(f"    {json.dumps(item)}" for item in value)
            yield f'  "{key}": [\n{items}\n  ]{end}'
        else:
            yield f'  "{key}": {json.dumps(value)}{end}'
    yield "}\n"


def shipped_chips() -> tuple[str, ...]:
    """Names of the chips that ship with qpeft."""
    return tuple(sorted((path.stem for path in DATA.glob("wukong-*.json")), key=lambda name: (len(name), name)))


CHIPS: Registry[Chip] = Registry("qpeft.chips", {}, Chip)  # of other packages (docs/extending/chip.md)


def known_chips() -> tuple[str, ...]:
    """Names of the chips that ship with qpeft, then of those that other packages bring."""
    return (*shipped_chips(), *(name for name in CHIPS if name not in shipped_chips()))


def load_chip(name: str | os.PathLike[str]) -> Chip:
    """A chip that ships with qpeft or that a package brings, by name, or one from a file (any path that ends in .json).

    Raises:
        ConfigError: there is no such chip, or its file does not validate.
        PluginError: the package that brings it is broken.
    """
    if str(name) in shipped_chips():
        path = DATA / f"{name}.json"
    elif str(name).endswith(".json"):
        path = Path(name)
    elif str(name) in CHIPS:
        return CHIPS[str(name)]
    else:
        raise ConfigError(f"no chip {str(name)!r}", expected=f"{', '.join(known_chips())} or a file that ends in .json")
    try:
        with open(path, "rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the chip: {error.strerror}", file=str(name)) from error
    if len(content) > MAX_BYTES:
        raise ConfigError("the file is too large for a chip", file=str(name), expected=f"at most {MAX_BYTES:,} bytes")
    return Chip.from_json(content, file=str(name))
