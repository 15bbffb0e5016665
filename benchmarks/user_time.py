"""Where a user's time goes: `python -m benchmarks.user_time --measure --out FILE.jsonl --page FILE.md`.

`qpeft train` of the demo with rows by themselves (`share_prefixes=false`) and as it comes, in turn; then arms of one step, each by
`qpeft train` in a process of its own, and all by `qpeft compare`. `--page` alone writes the page from the records in `--out`.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import harness

RECIPE, STEPS, ROUNDS, HELD_OUT = "recipes/demo.yaml", 8, 2, 8
WAYS = {"rows by themselves": "false", "as it comes": "auto"}
ARMS = 3
PARTS = {
    "first_s": "start to the end of the first step: imports, checks, model, rows, evaluation of the base model",
    "step_s": "a further step",
    "last_s": "evaluation after the last step, saving",
    "whole_s": f"whole run, {STEPS} steps",
    "cpu_s": "the same, CPU time",
}


def qpeft(command: str, folder: Path, *settings: str) -> tuple[float, float, float]:
    """Run the command on the demo: (its start, seconds by the clock, seconds of CPU time)."""
    given = [part for setting in (f"data.max_eval_rows={HELD_OUT}", *settings) for part in ("--set", setting)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    words = [sys.executable, "-m", "qpeft.cli", command, RECIPE, "--output", str(folder), *given]
    subprocess.run(words, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return start, time.time() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def one_run(sharing: str) -> dict[str, float]:
    """The parts of a run, seconds, from the times in its `progress.jsonl`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        settings = [f"training.{key}={STEPS}" for key in ("max_steps", "eval_steps", "save_steps")]
        start, whole_s, cpu_s = qpeft("train", folder, *settings, f"training.share_prefixes={sharing}", "training.logging_steps=1")
        events = harness.read(folder / "progress.jsonl")
    steps = {event["step"]: event["time"] for event in events if "loss" in event}
    last = max(steps.values())
    return {
        "first_s": steps[1] - start,
        "step_s": (last - steps[1]) / (STEPS - 1),
        "last_s": start + whole_s - last,
        "whole_s": whole_s,
        "cpu_s": cpu_s,
    }


def arms() -> dict[str, float]:
    """Seconds of CPU time for runs of one step: each in a process of its own, and all by `qpeft compare`."""
    short = [f"training.{key}=1" for key in ("max_steps", "eval_steps", "save_steps")]
    recipe = json.dumps(
        [{"label": f"r={r}", "adapter": {"peft_type": "LORA", "r": r, "target_modules": ["q_proj"]}} for r in range(1, ARMS + 1)]
    )
    with tempfile.TemporaryDirectory() as name:
        apart = sum(qpeft("train", Path(name) / str(k), *short)[2] for k in range(ARMS))
        together = qpeft("compare", Path(name) / "compare", *short, "compare.seeds=[0]", f"compare.arms={recipe}")[2]
    return {"apart_s": apart, "together_s": together}


def page(records: list[dict[str, Any]]) -> str:
    """Markdown from records."""
    machine = next(record for record in records if record["kind"] == "machine")
    runs = {way: [record for record in records if record["kind"] == "run" and record["way"] == way] for way in WAYS}
    both = next(record for record in records if record["kind"] == "arms")
    lines = [
        "# Where a user's time goes",
        "",
        "How long `qpeft train` and `qpeft compare` take on the demo, part by part.",
        "",
        "* Made by `python -m benchmarks.user_time --measure --out docs/benchmarks/user-time.jsonl",
        "  --page docs/benchmarks/user-time.md`.",
        f"* {machine['cpu']} ({', '.join(machine['instructions'])}), one thread.",
        f"  Load average before the run: {machine['load_before'][0]:.1f}.",
        f"* {ROUNDS} runs of each kind, in turn. A cell is the shortest time of its part, in wall-clock seconds.",
        "",
        f"`qpeft train {RECIPE}` with {STEPS} steps and {HELD_OUT} held-out rows:",
        "",
        "| part | `share_prefixes=false`, s | `auto`, the default, s |",
        "|---|--:|--:|",
        *(
            f"| {text} | " + " | ".join(f"{min(run[key] for run in runs[way]):.3g}" for way in WAYS) + " |"
            for key, text in PARTS.items()
        ),
        "",
        f"{ARMS} runs of one step, evaluated before and after, CPU time:",
        "",
        "| how | s |",
        "|---|--:|",
        f"| `qpeft train` {ARMS} times: model, rows and base model's evaluation in each | {both['apart_s']:.1f} |",
        f"| `qpeft compare`: model loaded once, rows tokenised once, base model evaluated once | {both['together_s']:.1f} |",
        "",
        "`make demo` trains five adapters with two seeds each. The README has its time.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    options = harness.timing_options(__doc__, Path("user-time.jsonl"))
    if options.page is None or options.measure:
        records = harness.Records(options.out)
        records.add(harness.machine(1))
        for _ in range(ROUNDS):
            for way, sharing in WAYS.items():
                records.add({"kind": "run", "way": way, **one_run(sharing)})
        records.add({"kind": "arms", **arms()})
    if options.page is not None:
        options.page.write_text(page(harness.read(options.out)), encoding="utf-8")


if __name__ == "__main__":
    main()
