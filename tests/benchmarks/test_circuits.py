"""The circuit benchmark: peers agree, timing is a summary of what ran, the page says what the records say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import circuits, growth, harness, jax_circuits, kernel_limit, models, peers, report, user_time
from qpeft.circuits import ansatz
from qpeft.circuits.simulator.c_engine import library
from qpeft.circuits.simulator.torch_engine.compiler import compile_circuit


@pytest.mark.parametrize("make", [peers.ours, peers.pennylane_backprop])
@pytest.mark.parametrize("row", [("hardware_efficient", 3, 2, 5), ("qtha", 4, 2, 5)])
def test_peers_agree(make: object, row: tuple[str, int, int, int]) -> None:
    pytest.importorskip("pennylane")
    circuit, inputs, angles, weights = circuits.problem(row)
    found = make(circuit, 5)(inputs, angles, weights)  # type: ignore[operator]
    assert circuits.largest_error(found, circuits.reference(circuit, inputs, angles, weights)) < 2e-5


def test_lightning_gives_the_weighted_sum_and_its_gradient() -> None:
    pytest.importorskip("pennylane_lightning")
    circuit, inputs, angles, weights = circuits.problem(("hardware_efficient", 4, 2, 1))
    value, *gradients = peers.lightning_adjoint(circuit, 1)(inputs, angles, weights)
    wanted = circuits.reference(circuit, inputs, angles, weights)
    assert circuits.largest_error((value, *gradients), ((wanted[0] * weights).sum(), *wanted[1:])) < 2e-5
    with pytest.raises(peers.Unavailable, match="batches"):
        peers.lightning_adjoint(circuit, 2)


def test_interleaved_runs_every_step_at_least_so_often() -> None:
    calls = {"a": 0, "b": 0}

    def step(name: str) -> None:
        calls[name] += 1

    timings = harness.interleaved({name: lambda name=name: step(name) for name in calls}, seconds=0.0, least=4)  # type: ignore[misc]
    assert all(timings[name].rounds == calls[name] >= 4 for name in calls)
    assert all(t.min_ms <= t.lower_ms <= t.median_ms <= t.upper_ms for t in timings.values())


def test_counts_of_a_product_state_have_no_matrix_products() -> None:
    product = circuits.counted(compile_circuit(ansatz.hardware_efficient(8, 1)), 10)
    deeper = circuits.counted(compile_circuit(ansatz.hardware_efficient(8, 2)), 10)
    assert product["multiply_adds"] == 32 * 256 * 10
    # the second layer: two complex blocks of 16 rows, run twice, undone on two states, correlated once
    assert deeper["multiply_adds"] - product["multiply_adds"] == 2 * 5 * 4 * 16 * 256 * 10


def test_slope_of_a_power_law() -> None:
    assert report.slope([(x, 3.0 * x**1.7) for x in (1, 2, 5, 9)]) == pytest.approx(1.7)


def test_run_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pennylane")
    pytest.importorskip("matplotlib")
    out, page = tmp_path / "r.jsonl", tmp_path / "docs" / "circuits.md"
    threads = torch.get_num_threads()
    options = ["--quick", "--tables", "peers", "--rows", "0", "--peers", "PennyLane backprop", "--out", str(out)]
    try:
        circuits.main(options)
    finally:
        torch.set_num_threads(threads)
    machine, row = (json.loads(line) for line in out.read_text().splitlines())
    assert machine["product_gmac_s"] > 0
    assert set(row["timings"]) == {"ours", "ours, one call", "ours, torch only", "PennyLane backprop"}
    assert max(row["errors"].values()) < circuits.TOLERANCE
    circuits.main(["--out", str(out), "--page", str(page)])
    text = page.read_text()
    ratio = row["timings"]["PennyLane backprop"]["min_ms"] / row["timings"]["ours"]["min_ms"]
    assert f"{ratio:.1f} (" in text
    assert machine["cpu"] in text
    assert math.isfinite(ratio)
    capsys.readouterr()


def test_sweeps_draw_a_plot_and_its_slope(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    timing = {"lower_ms": 1.0, "upper_ms": 1.0, "median_ms": 1.0, "rounds": 3}
    records = [
        {
            "table": "layers",
            "circuit": "qtha",
            "qubits": 8,
            "layers": n,
            "tokens": 512,
            "timings": {"ours": {**timing, "min_ms": 2.0 * n}},
        }
        for n in (1, 2, 4, 8)
    ]
    lines = report._sweeps(records, tmp_path / "circuits.md")
    assert "(layers)^1.00" in "\n".join(lines)
    assert (tmp_path / "circuits-layers.png").stat().st_size > 1000


def test_the_newest_record_of_each_row_counts_for_each_processor() -> None:
    def row(tokens: int, version: int) -> dict[str, object]:
        place = {"table": "peers", "circuit": "qtha", "qubits": 4, "layers": 1, "tokens": tokens, "modules": 1}
        return {"kind": "row", **place, "version": version}

    old, new = ({"kind": "machine", "cpu": cpu, "instructions": ["avx512f"]} for cpu in ("old", "new"))
    records = [old, row(1, 0), row(2, 0), row(3, 0), new, row(1, 1), row(2, 1), {**new, "call": 2}, row(2, 2)]
    (first, *older), (second, *newer) = circuits.by_machine(records)
    assert (first["cpu"], second["call"]) == ("old", 2)
    assert [(r["tokens"], r["version"]) for r in older] == [(1, 0), (2, 0), (3, 0)]
    assert [(r["tokens"], r["version"]) for r in newer] == [(1, 1), (2, 2)]


@pytest.mark.parametrize(("n", "n_layers"), [(2, 1), (4, 2), (5, 3)])
def test_the_anchor_in_jax_is_right(n: int, n_layers: int) -> None:
    pytest.importorskip("jax")
    row = ("hardware_efficient", n, n_layers, 7)
    circuit, inputs, angles, weights = circuits.problem(row)
    found = peers.jax_by_hand(circuit, 7)(inputs, angles, weights)
    assert circuits.largest_error(found, circuits.reference(circuit, inputs, angles, weights)) < 1e-5


def test_the_anchor_reads_layers_and_refuses_other_circuits() -> None:
    found = jax_circuits.layers(ansatz.hardware_efficient(3, 2))
    assert [[len(own) for own in singles] for singles, _ in found] == [[4, 4, 4], [3, 3, 3]]
    source = found[0][1]  # the ring CNOT(0, 1), CNOT(1, 2), CNOT(2, 0)
    assert source is not None
    assert sorted(source) == list(range(8))
    with pytest.raises(ValueError, match="no crz here"):
        jax_circuits.layers(ansatz.qtha(3, 1))


def test_circuits_are_chosen_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = circuits.parser().parse_args(["--circuits", "hardware_efficient:3:3:5000", "qtha:5:3:100"]).circuits
    assert chosen == [("hardware_efficient", 3, 3, 5000), ("qtha", 5, 3, 100)]
    for wrong in ("qtha:3:3", "ring:3:3:5", "qtha:3:0:5", "qtha:3:x:5"):
        with pytest.raises(SystemExit):
            circuits.parser().parse_args(["--circuits", wrong])
        assert wrong in capsys.readouterr().err


def test_exponents_have_intervals() -> None:
    sizes = [1.0, 2.0, 4.0, 8.0]
    slope, half, r2 = growth.exponent(sizes, [3 * x**1.5 for x in sizes])
    assert (slope, half, r2) == pytest.approx((1.5, 0.0, 1.0), abs=1e-6)
    slope, half, _ = growth.exponent(sizes, [1.0, 2.2, 3.9, 8.3])
    assert abs(slope - 1) < half < 0.3


@pytest.mark.skipif(not library.available(), reason="the compiled kernel is not built here")
def test_the_parts_of_a_step_add_up_to_it() -> None:
    record = kernel_limit.measure(("qtha", 3, 2, 16), 0.01)
    parts = kernel_limit.parts(record, peak=40.0)
    assert sum(parts) == pytest.approx(record["step_ms"])
    assert record["bytes"] == 4 * 16 * (3 * 3 + 2 * 3)
    twice = kernel_limit.counted(compile_circuit(ansatz.qtha(3, 2)), 32)[0]
    assert twice == 2 * record["multiply_adds"]
    assert record["kernel_ms"] < record["step_ms"]


def test_runs_are_told_newest_first_and_once() -> None:
    machine = {"kind": "machine", "cpu": "A", "instructions": ["avx2"]}
    one, two = {**machine, "threads": 1}, {**machine, "threads": 2}
    old, new, other = (
        {"kind": "training", "model": "m", "dtype": "float32", "batch": 4, "length": 8, "arm": name} for name in "abc"
    )
    found = models.runs([one, old, two, other, one, new, one])
    assert [(head["threads"], [row["arm"] for row in rows]) for head, rows in found] == [(1, ["b"]), (2, ["c"])]


def test_the_spread_of_torch_alone_and_other_shapes_are_told(tmp_path: Path) -> None:
    machine = {"kind": "machine", "cpu": "A", "instructions": [], "cores": 1, "threads": 1, "python": "3", "versions": {}}
    machine |= {"load_before": [0.0], "product_gmac_s": 40.0}

    def record(table: str, circuit: str, **times: float) -> dict[str, object]:
        timings = {
            name.replace("_", " "): dict.fromkeys(("min_ms", "median_ms", "lower_ms", "upper_ms"), ms) for name, ms in times.items()
        }
        timings = {
            {"torch only": "ours, torch only", "one call": "ours, one call"}.get(name, name): t for name, t in timings.items()
        }
        shape = {"circuit": circuit, "qubits": 3, "layers": 3, "tokens": 5, "modules": 1}
        return {
            "kind": "row",
            "table": table,
            **shape,
            "timings": timings,
            "errors": {},
            "notes": {},
            "counted": {"multiply_adds": 1e6},
        }

    rows = [record("peers", "qtha", ours=1.0, torch_only=ms, TorchQuantum=30.0) for ms in (6.0, 4.0, 5.0)]
    rows.append(record("shapes", "hardware_efficient", ours=1.0, one_call=0.5, JAX_by_hand=4.0))
    report.write(circuits.by_machine([machine, *rows]), tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "fastest peer / torch only in 3 runs: 5.0, 7.5, 6.0." in text
    assert "| hardware_efficient 3, 3, 5 | 4.0 (4.0-4.0) | 8.0 (8.0-8.0) |" in text


def test_the_least_of_each_part_is_told() -> None:
    machine = {"kind": "machine", "cpu": "A", "instructions": [], "load_before": [0.5]}
    parts = [dict.fromkeys(user_time.PARTS, s) for s in (3.0, 2.0, 1.5, 1.0)]
    runs = [{"kind": "run", "way": way, **part} for way, part in zip([*user_time.WAYS] * 2, parts, strict=True)]
    text = user_time.page([machine, *runs, {"kind": "arms", "apart_s": 60.0, "together_s": 40.0}])
    assert "| a further step | 1.5 | 1 |" in text
    assert "base model evaluated once | 40.0 |" in text
