"""What a training step of each arm costs: `python -m benchmarks.step_times --plan recipes/studies/breadth.yaml`.

The processor's time of forward, backward and AdamW on random tokens, all arms in turn on the plan's model.
The times of a study's runs themselves met whatever else the machine did.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks import harness, models, training
from qpeft.study.plan import load_plan


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each arm, 2 at least")
    parser.add_argument(
        "--records", type=Path, default=Path("docs/benchmarks/study"), help="folder of the result, PLAN-times.jsonl"
    )
    arguments = parser.parse_args(given)
    from qpeft.training.model.loading import load_model
    from qpeft.training.recipe.adapter_section import build_adapter_config

    plan = load_plan(arguments.plan)
    records = harness.Records(arguments.records / f"{plan.name}-times.jsonl")
    records.add(harness.machine(1))
    base = load_model(plan.model)
    adapted = {arm.label: models.adapted(base, build_adapter_config(arm.adapter)) for arm in plan.arms}
    steps = {label: training.step_of(model, arguments.batch, arguments.length) for label, model in adapted.items()}
    for step in steps.values():
        step()
    shape = {"batch": arguments.batch, "length": arguments.length}
    for label, timing in harness.interleaved(steps, seconds=0.0, least=arguments.rounds, clock=time.process_time).items():
        records.add({"kind": "step", "arm": label, "timing": timing, **shape})


if __name__ == "__main__":
    main()
