"""Chips from `chip_info`, the calibration reply of Origin Quantum's cloud."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from qpeft.backends.emulator.chip import FORMAT, VERSION, Chip, GateTime, NativeGates, Timing
from qpeft.backends.emulator.chip_formats.common import DEFAULT_TIMING, make_coupler, make_qubit, qubit_number
from qpeft.errors import ConfigError


def from_chip_info(
    reply: Mapping[str, Any], *, name: str, date: datetime.date | None = None, timing: Timing = DEFAULT_TIMING
) -> Chip:
    """A Chip from the vendor's reply.

    T1 and T2 are taken as microseconds, fidelities of gates as average fidelities, `ReadoutFidelity` as the mean of both readout
    errors (they are not told apart), gate times as nanoseconds. A coupler of weight 0 is dead, a qubit that is not in
    `AvailableQubits` or lacks a number is disabled, and T2 above 2 T1 is lowered to it.

    Args:
        reply: the reply to `chipInfo.json`, or its `obj`.
        name: name of the chip.
        date: date of the calibration.
        timing: the service's times, which the reply does not have.

    Raises:
        ConfigError: a field is missing or cannot be used; the message names it.
    """
    info: Any = reply.get("obj", reply) if hasattr(reply, "get") else None
    if not isinstance(info, Mapping):
        raise ConfigError("not a chip's information", expected="an object with QubitParams and adjMatrix")
    place = "QubitParams"
    try:
        rows = {qubit_number(row["qubitId"]): row for row in info["QubitParams"]}
        if len(rows) != len(info["QubitParams"]):
            raise ValueError("a qubit stands there twice")
        place = "QubitCount"
        count = max([int(info.get("QubitCount", 0)), *(q + 1 for q in rows)])
        if not 0 < count <= 100_000:
            raise ValueError(f"{count} qubits")
        place = "AvailableQubits"
        available = {qubit_number(q) for q in info.get("AvailableQubits") or rows}
        place = "QubitParams"
        qubits = tuple(make_qubit(rows.get(q, {}), q in available) for q in range(count))
        place = "adjMatrix"
        weights: dict[tuple[int, int], float] = {}
        for a, near in info["adjMatrix"].items():
            for edge in near:
                pair = (min(int(a), qubit_number(edge["v"])), max(int(a), qubit_number(edge["v"])))
                weight = float(edge["w"])
                if weights.setdefault(pair, weight) != weight:
                    raise ValueError(f"the pair {pair} has two weights, {weights[pair]:g} and {weight:g}")
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
            couplers=tuple(make_coupler(pair, weight) for pair, weight in sorted(weights.items())),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"chip_info cannot be used: {what}", field=place, expected="what the vendor's service sends") from error
