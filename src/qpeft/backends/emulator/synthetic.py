"""Synthetic calibration: the chips that ship, and drift. `python -m qpeft.backends.emulator.synthetic` writes the shipped files.

No vendor's calibration file is public. The lattices are inferred (every published pair of coupled qubits fits them) and the
numbers are drawn uniformly, with a seed, from ranges that were published; what was not published is an assumption and the
file's `source` says which. Everything made here carries `synthetic: true`.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qpeft.backends.emulator.chip import (
    DATA,
    FORMAT,
    VERSION,
    Chip,
    Coupler,
    GateTime,
    NativeGates,
    Qubit,
    Timing,
    json_schema,
)

DRAWN = datetime.date(2026, 11, 24)
Range = tuple[float, float]
Pair = tuple[int, int]

# Standard deviation of the logarithm of a calibration number after one hour of drift. Assumed, not measured on these chips.
DRIFT = {"t1_us": 0.05, "t2_us": 0.05, "error_1q": 0.04, "p1_given_0": 0.03, "p0_given_1": 0.03, "error_cz": 0.06}


def square_grid(rows: int, columns: int) -> list[Pair]:
    """Couplers of a grid numbered row by row: `(q, q + 1)` inside a row and `(q, q + columns)` between rows."""
    along = [(q, q + 1) for q in range(rows * columns) if q % columns != columns - 1]
    return sorted([*along, *((q, q + columns) for q in range((rows - 1) * columns))])


def honeycomb(rows: int, columns: int) -> list[Pair]:
    """Couplers of a brick wall numbered row by row: `(q, q + columns)` always; from even rows `(q, q + columns + 1)` as well,
    but for the last column."""
    down = [(q, q + columns) for q in range((rows - 1) * columns)]
    slant = [(q, q + columns + 1) for q in range((rows - 1) * columns) if (q // columns) % 2 == 0 and q % columns != columns - 1]
    return sorted([*down, *slant])


def wukong_72(seed: int = 72) -> Chip:
    """72 qubits on a grid of 12 x 6, a quarter of the 126 couplers dead."""
    return _draw(
        name="wukong-72",
        seed=seed,
        couplers=square_grid(12, 6),
        positions=[(float(q % 6), float(q // 6)) for q in range(72)],
        dead=0.25,
        t1_us=(9.0, 17.0),
        t2_us=(1.1, 1.8),
        error_1q=(0.003, 0.005),
        error_cz=(0.017, 0.048),
        readout=(0.06, 0.08),
        times_ns=(30.0, 40.0),
        timing=Timing(shot_us=100.0, circuit_s=0.06, job_s=3.24, queue_s=(3.0, 2820.0), max_circuits_per_job=200),
        source=f"SYNTHETIC: lattice inferred from published pairs; calibration drawn with seed {seed} from the ranges of a vendor "
        "sample (fidelity of RPhi .995-.997, of CZ .952-.983, of readout .92-.94, T1 9-17 us, T2 1.1-1.8 us). Assumed: a quarter "
        "of the couplers dead, p(1|0) between a fifth and four fifths of the readout error's sum.",
    )


def wukong_180(seed: int = 180) -> Chip:
    """180 qubits on a honeycomb of 20 rows x 9, all 251 couplers alive."""
    return _draw(
        name="wukong-180",
        seed=seed,
        couplers=honeycomb(20, 9),
        positions=[
            (round(1.4 * (q % 9) - 0.7 * (q // 9 % 2), 1), round(1.9 * (q // 18) + 0.8 * (q // 9 % 2), 1)) for q in range(180)
        ],
        dead=0.0,
        t1_us=(30.0, 50.0),
        t2_us=(10.0, 30.0),
        error_1q=(0.0003, 0.006),
        error_cz=(0.0001, 0.018),
        readout=(0.021, 0.074),
        times_ns=(40.0, 40.0),
        timing=Timing(shot_us=100.0, circuit_s=0.028, job_s=2.862, max_circuits_per_job=200),
        source=f"SYNTHETIC: lattice inferred from published pairs; calibration drawn with seed {seed} from a public extract of 16 "
        "qubits (error of RPhi .03-.6%, of CZ .01-1.8%, of readout 2.1-7.4%) and T1 about 40 us. Assumed: T1 30-50 us, T2 10-30 "
        "us, no dead couplers, p(1|0) between a fifth and four fifths of the readout error's sum, 100 us a shot as on the 72.",
    )


SHIPPED = {"wukong-72": wukong_72, "wukong-180": wukong_180}


def _draw(
    *,
    name: str,
    seed: int,
    couplers: Sequence[Pair],
    positions: Sequence[tuple[float, float]],
    dead: float,
    t1_us: Range,
    t2_us: Range,
    error_1q: Range,
    error_cz: Range,
    readout: Range,
    times_ns: tuple[float, float],
    timing: Timing,
    source: str,
) -> Chip:
    rng = np.random.default_rng(seed)

    def draw(bounds: Range, count: int) -> list[float]:
        return [float(f"{x:.4g}") for x in rng.uniform(*bounds, count)]

    n = len(positions)
    columns = zip(draw(t1_us, n), draw(t2_us, n), draw(error_1q, n), draw(readout, n), draw((0.2, 0.8), n), positions, strict=True)
    qubits = tuple(
        Qubit(
            t1_us=t1,
            t2_us=t2,
            error_1q=error,
            p1_given_0=float(f"{2 * read * share:.4g}"),
            p0_given_1=float(f"{2 * read * (1 - share):.4g}"),
            position=position,
        )
        for t1, t2, error, read, share, position in columns
    )
    broken = set(np.argsort(rng.random(len(couplers)))[: round(dead * len(couplers))].tolist())
    return Chip(
        format=FORMAT,
        version=VERSION,
        name=name,
        source=source,
        date=DRAWN,
        synthetic=True,
        native_gates=NativeGates(rphi=GateTime(time_ns=times_ns[0]), cz=GateTime(time_ns=times_ns[1])),
        gate_errors_include_decay=True,
        timing=timing,
        qubits=qubits,
        couplers=tuple(
            Coupler(qubits=pair, error_cz=None if i in broken else error, enabled=i not in broken)
            for i, (pair, error) in enumerate(zip(couplers, draw(error_cz, len(couplers)), strict=True))
        ),
    )


def drifted(chip: Chip, seed: int, hours: float) -> Chip:
    """The chip after some hours: every number x of its calibration performs a random walk in log x.

    `log x(t) = log x(0) + s W(t)` with W a Gaussian walk that grows by a standard normal an hour (linear inside an hour) and s
    the constants of DRIFT, cut where bounds demand it (errors at their largest, T2 at 2 T1). One seed is one history: a later
    time continues an earlier one. Zeros, disabled parts and couplings stay as they are.
    """
    if not (0 <= hours <= 24 * 365):
        raise ValueError(f"hours of drift must lie in 0..{24 * 365}, got {hours}")

    def walk(field: str, count: int) -> npt.NDArray[np.float64]:
        rng = np.random.default_rng([seed, list(DRIFT).index(field)])
        whole = int(hours)
        steps = np.stack([rng.standard_normal(count) for _ in range(whole + 1)])
        steps[whole] *= hours - whole
        return np.asarray(np.exp(DRIFT[field] * steps.sum(axis=0)))

    bounds = {"error_1q": 0.5, "error_cz": 0.75, "p1_given_0": 1.0, "p0_given_1": 1.0}
    factors = {field: walk(field, len(chip.couplers if field == "error_cz" else chip.qubits)) for field in DRIFT}

    def moved(old: float | None, field: str, index: int) -> float | None:
        return None if old is None else min(float(old * factors[field][index]), bounds.get(field, np.inf))

    qubits = []
    for i, qubit in enumerate(chip.qubits):
        new = {field: moved(getattr(qubit, field), field, i) for field in DRIFT if field != "error_cz"}
        if new["t1_us"] is not None and new["t2_us"] is not None:
            new["t2_us"] = min(new["t2_us"], 2 * new["t1_us"])
        qubits.append(dataclasses.replace(qubit, **new))  # type: ignore[arg-type]
    couplers = tuple(
        dataclasses.replace(coupler, error_cz=moved(coupler.error_cz, "error_cz", i)) for i, coupler in enumerate(chip.couplers)
    )
    source = f"{chip.source} Drifted by {hours:g} h with seed {seed}."[-2000:]
    return dataclasses.replace(chip, qubits=tuple(qubits), couplers=couplers, source=source, synthetic=True)


def write_shipped() -> None:
    """Write the shipped chip files and the JSON schema."""
    DATA.mkdir(exist_ok=True)
    for name, make in SHIPPED.items():
        (DATA / f"{name}.json").write_text(make().to_json(), encoding="utf-8")
    (DATA / "chip.schema.json").write_text(json.dumps(json_schema(), indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_shipped()
