"""Chips from and to UnifiedQuantum's chip files (package unified-quantum 0.1), which its users fetch for their chips.

    chip = from_unified_quantum(json.loads(unified_quantum_file("originq", "WK_C180").read_text()), name="WK_C180")
    unified_quantum_file("originq", "wukong-72").write_text(json.dumps(to_unified_quantum(chip)))  # then dummy:originq:wukong-72

Its own noisy simulator of such a file leaves out T1 and T2 and halves the readout error, so its counts differ from the emulator's.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qpeft.backends.emulator.chip import FORMAT, VERSION, Chip, GateTime, NativeGates, Timing
from qpeft.backends.emulator.chip_formats.common import DEFAULT_TIMING, make_coupler, make_qubit, qubit_number
from qpeft.errors import ConfigError


def unified_quantum_file(platform: str, chip_name: str) -> Path:
    """Where UnifiedQuantum keeps the file of a chip.

    Args:
        platform: UnifiedQuantum's name of the vendor, such as `originq`.
        chip_name: the vendor's name of the chip.
    """
    safe = f"{platform}-{chip_name}".replace(":", "_").replace("/", "_")
    return Path.home() / ".uniqc" / "backend" / "chips" / f"{safe}.json"


def from_unified_quantum(
    data: Mapping[str, Any],
    *,
    name: str | None = None,
    confusion: Mapping[int, Any] | None = None,
    timing: Timing = DEFAULT_TIMING,
) -> Chip:
    """A Chip from the content of a chip file.

    Args:
        data: the JSON object. T1 and T2 in microseconds, times in nanoseconds. Numbers may be null; a qubit that is not in
            `available_qubits` or lacks one is disabled, a pair without a fidelity is a dead coupler.
        name: of the chip; default its `chip_name`.
        confusion: measured readout, `confusion_matrix[measured][prepared]` by qubit, as in the files `readout_1q_*` of
            `~/.uniqc/calibration_cache`; it takes precedence over the fidelities.
        timing: of shots and jobs, which the file does not hold.

    Raises:
        ConfigError: a field is missing or contradicts another: a pair outside `connectivity`, a pair or qubit that stands there
            twice, a pair of a qubit with itself.
    """
    place = "single_qubit_data"
    try:
        rows = {qubit_number(row["qubit_id"]): dict(row) for row in data["single_qubit_data"]}
        if len(rows) != len(data["single_qubit_data"]):
            raise ValueError("a qubit stands there twice")
        place = "available_qubits"
        available = {qubit_number(q) for q in data["available_qubits"]}
        if unknown := available - rows.keys():
            raise ValueError(f"qubits {sorted(unknown)} have no single_qubit_data")
        place = "connectivity"
        edges = [_pair(edge["u"], edge["v"]) for edge in data["connectivity"]]
        place = "two_qubit_data"
        fidelities = _fidelities(data["two_qubit_data"], set(edges))
        place = "global_info"
        times = data.get("global_info") or {}
        rphi, cz = (float(times.get(f"{kind}_qubit_gate_time") or usual) for kind, usual in (("single", 30.0), ("two", 40.0)))
        place = "calibrated_at"
        at = data.get("calibrated_at")
        date = datetime.datetime.fromisoformat(at).date() if at else None
        place = ""
        count = max([q for pair in edges for q in pair] + list(rows)) + 1
        qubits = [_row(rows.get(q, {}), (confusion or {}).get(q)) for q in range(count)]
        return Chip(
            format=FORMAT,
            version=VERSION,
            name=name or str(data["chip_name"]),
            source=f"UnifiedQuantum's file of {data.get('full_id') or data['chip_name']}",
            date=date,
            synthetic=False,
            native_gates=NativeGates(rphi=GateTime(time_ns=rphi), cz=GateTime(time_ns=cz)),
            gate_errors_include_decay=True,
            timing=timing,
            qubits=tuple(make_qubit(row, q in available) for q, row in enumerate(qubits)),
            couplers=tuple(make_coupler(pair, fidelities.get(pair, 0.0)) for pair in sorted(set(edges))),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"the chip file cannot be used: {what}", field=place, expected="UnifiedQuantum's format") from error


def _pair(u: Any, v: Any) -> tuple[int, int]:
    a, b = sorted((qubit_number(u), qubit_number(v)))
    if a == b:
        raise ValueError(f"a pair of qubit {a} with itself")
    return a, b


def _fidelities(data: Any, edges: set[tuple[int, int]]) -> dict[tuple[int, int], float]:
    """The best gate's fidelity of each pair. Files that pair fidelities with the topology by index show here: refused."""
    found: dict[tuple[int, int], float] = {}
    seen: set[tuple[int, int]] = set()
    for row in data:
        pair = _pair(row["qubit_u"], row["qubit_v"])
        if pair not in edges:
            raise ValueError(f"the pair {pair} is not in connectivity")
        if pair in seen:
            raise ValueError(f"the pair {pair} stands there twice")
        seen.add(pair)
        values = [float(gate["fidelity"]) for gate in row["gates"] if gate.get("fidelity") is not None]
        if values:
            found[pair] = max(values)
    return found


def _row(row: Mapping[str, Any], confusion: Any) -> dict[str, Any]:
    """One qubit's numbers under the names that `make_qubit` knows."""
    average = row.get("avg_readout_fidelity")
    read = [average if (value := row.get(f"readout_fidelity_{k}")) is None else value for k in (0, 1)]
    given_0, given_1 = (None if value is None else 1 - float(value) for value in read)
    if confusion is not None:
        given_0, given_1 = float(confusion[1][0]), float(confusion[0][1])
    names = {"T1": row.get("t1"), "T2": row.get("t2"), "SingleGateFidelity": row.get("single_gate_fidelity")}
    return {**names, "p1_given_0": given_0, "p0_given_1": given_1}


def to_unified_quantum(chip: Chip, *, platform: str = "originq") -> dict[str, Any]:
    """The content of a chip file for UnifiedQuantum; read back, it gives the same qubits and couplers.

    Args:
        chip: the chip.
        platform: UnifiedQuantum's name of the vendor.
    """

    def fidelity(error: float | None) -> float | None:
        return None if error is None else 1 - error

    single = [
        {
            "qubit_id": q,
            "t1": qubit.t1_us,
            "t2": qubit.t2_us,
            "single_gate_fidelity": fidelity(qubit.error_1q),
            "readout_fidelity_0": fidelity(qubit.p1_given_0),
            "readout_fidelity_1": fidelity(qubit.p0_given_1),
            "avg_readout_fidelity": None if qubit.p1_given_0 is None or qubit.p0_given_1 is None else 1 - qubit.readout_error,
        }
        for q, qubit in enumerate(chip.qubits)
    ]
    alive = [coupler for coupler in chip.couplers if coupler.enabled and coupler.error_cz is not None]
    times = chip.native_gates
    return {
        "platform": platform,
        "chip_name": chip.name,
        "full_id": f"{platform}:{chip.name}",
        "available_qubits": list(chip.live_qubits),
        "connectivity": [{"u": c.qubits[0], "v": c.qubits[1]} for c in chip.couplers],
        "single_qubit_data": single,
        "two_qubit_data": [
            {
                "qubit_u": c.qubits[0],
                "qubit_v": c.qubits[1],
                "gates": [{"gate": "cz", "fidelity": fidelity(c.error_cz)}],
            }
            for c in alive
        ],
        "global_info": {
            "single_qubit_gates": ["rphi", "rz"],
            "two_qubit_gates": ["cz"],
            "single_qubit_gate_time": times.rphi.time_ns,
            "two_qubit_gate_time": times.cz.time_ns,
        },
        "calibrated_at": None if chip.date is None else chip.date.isoformat(),
    }
