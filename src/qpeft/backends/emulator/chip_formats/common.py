"""From other tools' fidelities to the numbers of a chip file, the same for every format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qpeft.backends.emulator.chip import Coupler, Qubit, Timing

# Other formats hold no times of jobs: those measured on the two Wukong chips (see the shipped files) stand in.
DEFAULT_TIMING = Timing(shot_us=100.0, circuit_s=0.06, job_s=3.24, max_circuits_per_job=200)


def qubit_number(value: Any) -> int:
    """A qubit's number; ValueError for what is none."""
    number = int(value)
    if number < 0:
        raise ValueError(f"qubit {number}")
    return number


def make_qubit(row: Mapping[str, Any], available: bool) -> Qubit:
    """A Qubit from a row of other tools' numbers.

    Args:
        row: `T1` and `T2` in microseconds, `SingleGateFidelity`, and `ReadoutFidelity` (the mean of both readout errors) or
            `p1_given_0` and `p0_given_1`. T2 above 2 T1 is lowered to it; what is missing or impossible disables the qubit.
        available: the source says that the qubit is in use.
    """

    def number(key: str) -> float | None:
        value = row.get(key)
        return None if value is None or not math.isfinite(float(value)) else float(value)

    def probability(value: float | None) -> float | None:
        return None if value is None or not -1e-12 <= value <= 1 else max(rounded(value), 0.0)

    t1, t2, fidelity, readout = (number(key) for key in ("T1", "T2", "SingleGateFidelity", "ReadoutFidelity"))
    t1, t2 = (value if value is not None and value > 0 else None for value in (t1, t2))
    if t1 is not None and t2 is not None:
        t2 = min(t2, 2 * t1)
    error = None if fidelity is None or not 0.5 <= fidelity <= 1 + 1e-12 else max(rounded(1 - fidelity), 0.0)
    mean = None if readout is None else 1 - readout
    up, down = (probability(number(key) if row.get(key) is not None else mean) for key in ("p1_given_0", "p0_given_1"))
    complete = None not in (t1, t2, error, up, down)
    return Qubit(t1_us=t1, t2_us=t2, error_1q=error, p1_given_0=up, p0_given_1=down, enabled=available and complete)


def rounded(value: float) -> float:
    """Ten significant digits: what subtraction from 1 and a change of unit leave of a number's last places goes."""
    return float(f"{value:.10g}")


def make_coupler(pair: tuple[int, int], weight: float) -> Coupler:
    """A Coupler from a CZ fidelity.

    Args:
        pair: the two qubits.
        weight: average fidelity of the CZ. The coupler is disabled below 0.25, the fidelity of a fully depolarising gate, and above
            1.
    """
    alive = 0.25 <= weight <= 1 + 1e-12
    return Coupler(qubits=pair, error_cz=max(rounded(1 - weight), 0.0) if alive else None, enabled=alive)
