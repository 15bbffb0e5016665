"""Commands about what runs circuits: the backends there are, and one chip in detail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from qpeft.cli.common import AsJson, HelpPanel, app, examples, print_table

device = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Show one chip in detail.")
app.add_typer(device, name="device", rich_help_panel=HelpPanel.CHIPS)


@app.command(rich_help_panel=HelpPanel.CHIPS, epilog=examples("qpeft devices"))
def devices(as_json: AsJson = False) -> None:
    """List the simulators, emulated chips and vendors.

    The column `extra` names the extra of the package that a vendor's backend needs.
    """
    from qpeft.backends.emulator.chip import known_chips, load_chip
    from qpeft.backends.registry import BACKENDS

    rows: list[dict[str, Any]] = []
    for name, kind in BACKENDS.items():
        base: dict[str, Any] = {"name": f"{name}:{kind.argument}" if kind.argument else name, "qubits": None, "what": kind.summary}
        base |= {"simulated": kind.simulated, "synthetic": False, "extra": kind.extra}
        if name == "emulator":
            for chip in map(load_chip, known_chips()):
                label = {"name": f"{name}:{chip.name}", "qubits": len(chip.live_qubits), "synthetic": chip.synthetic}
                rows.append({**base, **label})
            base["name"] = f"{name}:FILE.json"
        rows.append(base)
    if as_json:
        print(json.dumps(rows))
        return
    print_table(
        ("name", "qubits", "label", "extra", "what it is"),
        [
            (
                row["name"],
                str(row["qubits"] or "-"),
                ", ".join(word for word in ("simulated", "synthetic") if row[word]) or "-",
                row["extra"] or "-",
                row["what"],
            )
            for row in rows
        ],
    )


@device.command(epilog=examples("qpeft device show wukong-72", "qpeft device show wukong-72 --png wukong.png"))
def show(
    chip: Annotated[str, typer.Argument(help="A chip that ships with qpeft, such as wukong-72, or a chip file (.json).")],
    png: Annotated[Path | None, typer.Option(help="Draw the chip into this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a chip's size, errors, times and source."""
    from statistics import median

    from qpeft.backends.emulator.chip import load_chip
    from qpeft.backends.emulator.drawing import draw_chip

    loaded = load_chip(chip)
    if png is not None:
        draw_chip(loaded, png)
    live = [loaded.qubits[q] for q in loaded.live_qubits]
    cz = [error for a, near in loaded.neighbours.items() for b, error in near.items() if a < b]
    spans: dict[str, list[float | None]] = {
        "T1 (us)": [q.t1_us for q in live],
        "T2 (us)": [q.t2_us for q in live],
        "one-qubit gate error": [q.error_1q for q in live],
        "CZ error": [*cz],
        "readout p(1|0)": [q.p1_given_0 for q in live],
        "readout p(0|1)": [q.p0_given_1 for q in live],
    }
    spread = {
        name: {"least": min(numbers), "median": median(numbers), "most": max(numbers)}
        for name, values in spans.items()
        if (numbers := [value for value in values if value is not None])
    }
    timing = loaded.timing
    facts: dict[str, Any] = {
        "name": loaded.name,
        "synthetic": loaded.synthetic,
        "date": str(loaded.date) if loaded.date else None,
        "source": loaded.source,
        "id": loaded.id,
        "qubits": loaded.n_qubits,
        "live_qubits": len(live),
        "couplers": len(loaded.couplers),
        "live_couplers": len(cz),
        "rphi_ns": loaded.native_gates.rphi.time_ns,
        "cz_ns": loaded.native_gates.cz.time_ns,
        "shot_us": timing.shot_us,
        "seconds_for_1000_shots": round(loaded.chip_seconds(1, 1000), 6),
    }
    if as_json:
        print(json.dumps({**facts, "calibration": spread}))
        return
    if loaded.synthetic:
        print("SYNTHETIC calibration: drawn or altered by a program, not measured on a device")
    print_table(("chip", ""), [(name, "-" if value is None else str(value)) for name, value in facts.items() if name != "source"])
    print_table(
        ("calibration", "least", "median", "most"),
        [(name, *(f"{spread[name][key]:.4g}" for key in ("least", "median", "most"))) for name in spread],
    )
    print(f"source: {loaded.source}")
    if png is not None:
        print(f"picture: {png}")
