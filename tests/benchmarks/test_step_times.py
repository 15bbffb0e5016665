"""The cost of a training step of every arm of a plan."""

from __future__ import annotations

from pathlib import Path

import yaml
from benchmarks.step_times import main

from benchmarks import harness


def test_every_arm_of_a_plan_is_timed(tmp_path: Path, tiny_model: Path) -> None:
    plan = yaml.safe_load(Path("recipes/studies/breadth.yaml").read_text())
    plan["model"] = {"model_name_or_path": str(tiny_model)}
    plan["arms"] = [arm for arm in plan["arms"] if arm["label"] in ("LoRA r=8", "QTHA", "QTHA without circuit")]
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(plan))
    main(["--plan", str(file), "--rounds", "2", "--length", "8", "--records", str(tmp_path)])
    machine, *steps = harness.read(tmp_path / "breadth-times.jsonl")
    assert machine["threads"] == 1
    assert {step["arm"] for step in steps} == {"LoRA r=8", "QTHA", "QTHA without circuit"}
    assert all(step["timing"]["min_ms"] > 0 for step in steps)
