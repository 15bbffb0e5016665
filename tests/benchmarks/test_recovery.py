"""The recovery benchmark from tuning to measured blocks, on a tiny model; a second call repeats nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import blocks_on_chip, compressed_model, harness, recovery
from tests.tiny import save_tiny_model


@pytest.mark.slow
def test_records_hold_every_run_and_measured_blocks_come_close_to_exact_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_model(tmp_path / "model")
    monkeypatch.setattr(compressed_model, "MODEL", str(tmp_path / "model"))
    for module in (recovery, blocks_on_chip):
        monkeypatch.setattr(module, "COMPRESSED", str(tmp_path / "model"))
    arms = {name: recovery.ARMS[name] | {"layers_to_transform": [0, 1]} for name in (recovery.CAYLEY, "LoRA r=1")}
    small = {"train": 12, "validation": 4, "test": 4}
    for name, value in {"LAST": 2, "STEPS": 6, "TOKENS": 12, "SEEDS": range(2), "BATCH": 2, "ROWS": small, "ARMS": arms}.items():
        monkeypatch.setattr(recovery, name, value)
    monkeypatch.setattr(blocks_on_chip, "SHOTS", (200, None))
    for part, count in small.items():
        lines = [json.dumps({"text": f"{part} row {i} of some length"}) + "\n" for i in range(count)]
        (tmp_path / f"{part}.jsonl").write_text("".join(lines))
    monkeypatch.setattr(recovery.Recovery.__init__, "__defaults__", (tuple(small),))

    out, chip = tmp_path / "recovery.jsonl", tmp_path / "blocks.jsonl"
    recovery.work(tmp_path, out)
    lines = harness.read(out)
    assert {(x["arm"], x["seed"]) for x in lines if x["kind"] == "test"} == {(arm, seed) for arm in arms for seed in range(2)}
    losses = {x["kind"]: x["loss"] for x in lines}
    assert losses["compressed"] == pytest.approx(losses["before compression"], rel=1e-6)  # the same model here
    blocks_on_chip.work(tmp_path, out, chip, 0)
    found = {(x["place"], x["shots"], x["reading"]): x for x in harness.read(chip)}
    exact, none = found["exact", None, ""]["loss"], found["no blocks", None, ""]["loss"]
    assert exact == pytest.approx(
        next(x["loss"] for x in lines if (x["kind"], x["arm"], x["seed"]) == ("test", recovery.CAYLEY, 0))
    )
    assert none == pytest.approx(losses["compressed"], rel=1e-6)
    assert exact != pytest.approx(none, rel=1e-6)
    assert len(found) == 2 + 2 * (1 + 2)
    assert found["emulator:wukong-72", None, "nearest orthogonal"]["error"] < found["simulator", 200, "as measured"]["error"]

    before = out.read_text(), chip.read_text()
    recovery.work(tmp_path, out)
    blocks_on_chip.work(tmp_path, out, chip, 0)
    assert (out.read_text(), chip.read_text()) == before
