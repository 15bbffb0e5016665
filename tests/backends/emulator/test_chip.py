"""Chip files: shipped, hand-written, hostile; conversions, drift, times, the picture and the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from qpeft.backends.emulator import synthetic
from qpeft.backends.emulator.chip import DATA, MAX_BYTES, Chip, json_schema, load_chip, shipped_chips
from qpeft.backends.emulator.drawing import draw_chip
from qpeft.cli import devices
from qpeft.errors import ConfigError
from tests.backends.emulator.random_chips import chips, random_chip

HAND_WRITTEN = """
{"format": "qpeft.chip", "version": 1, "name": "mine", "source": "written by hand", "date": null, "synthetic": true,
 "native_gates": {"rphi": {"time_ns": 30}, "cz": {"time_ns": 40}}, "gate_errors_include_decay": true,
 "timing": {"shot_us": 100, "circuit_s": 0.06, "job_s": 3},
 "qubits": [
   {"t1_us": 12, "t2_us": 1.5, "error_1q": 0.004, "p1_given_0": 0.05, "p0_given_1": 0.08},
   {"t1_us": 10, "t2_us": 20, "error_1q": 0.003, "p1_given_0": 0.04, "p0_given_1": 0.09},
   {"t1_us": null, "t2_us": null, "error_1q": null, "p1_given_0": null, "p0_given_1": null, "enabled": false}],
 "couplers": [{"qubits": [0, 1], "error_cz": 0.03}, {"qubits": [1, 2], "error_cz": null, "enabled": false}]}
"""


def altered(*path: str | int, to: Any) -> str:
    data = json.loads(HAND_WRITTEN)
    place = data
    for key in path[:-1]:
        place = place[key]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return json.dumps(data)


def test_shipped_lattices() -> None:
    assert shipped_chips() == ("wukong-72", "wukong-180")
    small, large = load_chip("wukong-72"), load_chip("wukong-180")
    assert (small.n_qubits, len(small.couplers)) == (72, 126)
    assert (large.n_qubits, len(large.couplers)) == (180, 251)
    pairs = {tuple(sorted(c.qubits)) for c in small.couplers}
    assert pairs == {(q, q + 6) for q in range(66)} | {(6 * r + c, 6 * r + c + 1) for r in range(12) for c in range(5)}
    pairs = {tuple(sorted(c.qubits)) for c in large.couplers}
    slanted = {(9 * r + c, 9 * r + c + 10) for r in range(0, 20, 2) for c in range(8)}
    assert pairs == {(q, q + 9) for q in range(171)} | slanted
    degree = np.bincount([q for pair in pairs for q in pair])
    assert degree.max() == 3  # a honeycomb


@pytest.mark.parametrize("name", ["wukong-72", "wukong-180"])
def test_shipped_calibration_is_synthetic_reproducible_and_in_the_published_ranges(name: str) -> None:
    made = synthetic.SHIPPED[name]()
    assert (DATA / f"{name}.json").read_text(encoding="utf-8") == made.to_json()
    chip = load_chip(name)
    assert chip == made
    assert chip.synthetic
    assert chip.source.startswith("SYNTHETIC")
    bounds = {"wukong-72": (0.003, 0.005, 0.06, 0.08, 0.017, 0.048), "wukong-180": (0.0003, 0.006, 0.021, 0.074, 0.0001, 0.018)}[
        name
    ]
    for qubit in chip.qubits:
        assert bounds[0] <= qubit.error_1q <= bounds[1]
        assert bounds[2] * 0.999 <= qubit.readout_error <= bounds[3] * 1.001
        assert qubit.p1_given_0 != qubit.p0_given_1
    assert all(bounds[4] <= c.error_cz <= bounds[5] for c in chip.couplers if c.enabled)
    dead = sum(not coupler.enabled for coupler in chip.couplers)
    assert dead == {"wukong-72": 32, "wukong-180": 0}[name]
    other = synthetic.wukong_72(1) if name == "wukong-72" else synthetic.wukong_180(1)
    assert other.id != chip.id


def test_schema_file_is_that_of_the_dataclass() -> None:
    assert json.loads((DATA / "chip.schema.json").read_text(encoding="utf-8")) == json.loads(json.dumps(json_schema()))
    assert set(json_schema()["properties"]) == set(json.loads(load_chip("wukong-72").to_json()))


def test_hand_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(HAND_WRITTEN)
    chip = load_chip(path)
    assert chip.live_qubits == (0, 1)
    assert chip.neighbours == {0: {1: 0.03}, 1: {0: 0.03}}
    assert chip.why_not(0, 1) is None
    assert "qubit 2 of mine is disabled" in str(chip.why_not(2))
    assert "no qubit 7" in str(chip.why_not(7))
    assert load_chip(path).id == chip.id != Chip.from_json(altered("qubits", 0, "t1_us", to=13)).id


@pytest.mark.parametrize(
    ("path", "value", "field", "words"),
    [
        (("qubits", 1, "t2_us"), 20.5, "qubits.1", "t2_us is 20.5, at most 2 t1_us = 20"),
        (("qubits", 0, "p1_given_0"), 1.2, "qubits.0.p1_given_0", "less than or equal to 1; got 1.2"),
        (("qubits", 0, "p0_given_1"), -0.1, "qubits.0.p0_given_1", "greater than or equal to 0"),
        (("qubits", 0, "error_1q"), 0.6, "qubits.0.error_1q", "less than or equal to 0.5"),
        (("qubits", 0, "t1_us"), 0, "qubits.0.t1_us", "greater than 0"),
        (("qubits", 0, "t1_us"), None, "qubits.0", "t1_us is null"),
        (("qubits", 0, "t1_us"), "12", "qubits.0.t1_us", "valid number"),
        (("qubits", 0, "t1_us"), True, "qubits.0.t1_us", "valid number"),
        (("qubits", 0, "T1"), 12, "qubits.0.T1", "Unexpected keyword argument"),
        (("qubits", 0, "error_1q"), ..., "qubits.0.error_1q", "required"),
        (("qubits",), [], "qubits", "at least 1 item"),
        (("couplers", 0, "error_cz"), 0.8, "couplers.0.error_cz", "less than or equal to 0.75"),
        (("couplers", 0, "error_cz"), None, "couplers.0", "error_cz is null"),
        (("couplers", 0, "qubits"), [0, 3], "", "couplers.0.qubits names qubit 3, the last one is 2"),
        (("couplers", 0, "qubits"), [1, 1], "couplers.0", "both ends are qubit 1"),
        (("couplers", 0, "qubits"), [2, 1], "", "couplers.1 joins the same qubits as couplers.0"),
        (("couplers", 0, "qubits"), [0, -1], "couplers.0.qubits.1", "greater than or equal to 0"),
        (("couplers", 0, "qubits"), [0, 1.5], "couplers.0.qubits.1", "valid integer"),
        (("native_gates", "cz", "time_ns"), -1, "native_gates.cz.time_ns", "greater than or equal to 0"),
        (("timing", "shot_us"), -1, "timing.shot_us", "greater than or equal to 0"),
        (("version",), 2, "version", "Input should be 1"),
        (("format",), "qpeft.circuit", "format", "qpeft.chip"),
        (("name",), "../etc", "name", "pattern"),
        (("date",), "yesterday", "date", "date"),
        (("synthetic",), ..., "synthetic", "required"),
    ],
)
def test_bad_fields_are_named_with_their_bound(path: tuple[str | int, ...], value: Any, field: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Chip.from_json(altered(*path, to=value), file="mine.json")
    assert words in str(caught.value)
    assert caught.value.field == field
    assert "mine.json" in str(caught.value)


def test_every_problem_is_listed() -> None:
    data = json.loads(altered("qubits", 0, "t1_us", to=-1))
    data["couplers"][0]["error_cz"] = 2
    with pytest.raises(ConfigError) as caught:
        Chip.from_json(json.dumps(data))
    assert [problem.field for problem in caught.value.problems] == ["qubits.0.t1_us", "couplers.0.error_cz"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        '"chip"',
        "[" * 100_000,
        HAND_WRITTEN.replace("0.004", "NaN"),
        HAND_WRITTEN.replace("12,", "1e999,", 1),
        b"\xff\xfe\x00",
    ],
)
def test_hostile_text(text: str | bytes) -> None:
    with pytest.raises(ConfigError):
        Chip.from_json(text)


LEAVES = st.none() | st.booleans() | st.floats() | st.text(max_size=3)
KEYS = st.sampled_from(["qubits", "couplers", "t1_us", "format"])


@given(st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)))
def test_any_json_is_a_chip_or_a_config_error(data: Any) -> None:
    with pytest.raises(ConfigError):
        Chip.from_json(json.dumps(data))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("wukong-73", "wukong-72.yaml", "../wukong-72"):
        with pytest.raises(ConfigError, match=r"wukong-72, wukong-180 or a file"):
            load_chip(name)
    with pytest.raises(ConfigError, match="cannot read"):
        load_chip(tmp_path / "absent.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigError, match="cannot read"):
        load_chip(tmp_path / "folder.json")
    (tmp_path / "large.json").write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="too large"):
        load_chip(tmp_path / "large.json")


@given(chips())
def test_round_trip(chip: Chip) -> None:
    again = Chip.from_json(chip.to_json())
    assert again == chip
    assert again.id == chip.id
    assert hash(again) == hash(chip)


def test_in_python_a_bad_value_is_a_value_error() -> None:
    import dataclasses

    chip = load_chip("wukong-72")
    with pytest.raises(ValidationError, match="error_1q"):
        dataclasses.replace(chip.qubits[0], error_1q=0.7)
    with pytest.raises(AttributeError):
        chip.name = "other"  # type: ignore[misc]


def test_drift_is_one_walk_for_each_seed() -> None:
    chip = load_chip("wukong-72")
    assert synthetic.drifted(chip, 3, 0).qubits == chip.qubits
    day = synthetic.drifted(chip, 3, 24)
    assert day == synthetic.drifted(chip, 3, 24)
    assert day.synthetic
    assert "24 h" in day.source
    assert day.qubits != synthetic.drifted(chip, 4, 24).qubits
    assert Chip.from_json(day.to_json()) == day
    dead = [c.enabled for c in chip.couplers]
    assert [c.enabled for c in day.couplers] == dead

    def t1(hours: float) -> Any:
        return np.log([q.t1_us for q in synthetic.drifted(chip, 3, hours).qubits])

    assert np.allclose(t1(1.5), (t1(1) + t1(2)) / 2)  # a later time continues an earlier one
    # 72 qubits: the variance of log T1 after t hours is t s^2, within five standard errors of a chi-square of 72
    spread = np.sum((t1(16) - t1(0)) ** 2) / (16 * synthetic.DRIFT["t1_us"] ** 2)
    assert abs(spread - 72) < 5 * np.sqrt(2 * 72)
    year = synthetic.drifted(chip, 3, 24 * 365)
    assert all(q.t2_us <= 2 * q.t1_us for q in year.qubits)
    with pytest.raises(ValueError, match="hours"):
        synthetic.drifted(chip, 3, -1)


def test_times() -> None:
    chip = load_chip("wukong-72")
    assert chip.chip_seconds(1, 1000) == pytest.approx(0.16)  # as measured
    assert chip.job_seconds(1, 1000) == pytest.approx(3.4)
    assert chip.job_seconds(201, 1000) == pytest.approx(201 * 0.16 + 2 * 3.24)
    assert chip.chip_seconds(0, 1000) == chip.job_seconds(0, 1000) == 0
    assert load_chip("wukong-180").chip_seconds(1, 100) == pytest.approx(0.038)
    assert load_chip("wukong-180").job_seconds(1, 100) == pytest.approx(2.9)


def test_pictures(tmp_path: Path) -> None:
    for chip in (Chip.from_json(HAND_WRITTEN), random_chip([(0, 1)], 0)):
        draw_chip(chip, tmp_path / "chip.svg")
        svg = (tmp_path / "chip.svg").read_text()
        assert ("stroke-dasharray" in svg) == any(not coupler.enabled for coupler in chip.couplers)


def test_commands(tmp_path: Path) -> None:
    run = CliRunner().invoke
    rows = json.loads(run(devices.app, ["devices", "--json"]).stdout)
    chip = next(row for row in rows if row["name"] == "emulator:wukong-180")
    assert (chip["qubits"], chip["simulated"], chip["synthetic"]) == (180, True, True)
    assert {"simulator", "emulator:FILE.json"} <= {row["name"] for row in rows}
    assert "synthetic" in run(devices.app, ["devices"]).stdout
    path = tmp_path / "mine.json"
    path.write_text(HAND_WRITTEN)
    shown = run(devices.app, ["device", "show", str(path), "--png", str(tmp_path / "chip.png")])
    assert "SYNTHETIC" in shown.stdout
    assert (tmp_path / "chip.png").exists()
    facts = json.loads(run(devices.app, ["device", "show", str(path), "--json"]).stdout)
    assert (facts["live_qubits"], facts["live_couplers"], facts["calibration"]["CZ error"]["median"]) == (2, 1, 0.03)
    assert isinstance(run(devices.app, ["device", "show", "wukong-71"]).exception, ConfigError)
