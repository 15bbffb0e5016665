"""The command that judges one method: does it help a language model, compared fairly?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qpeft.cli.common import HelpPanel, app, examples

STORED = (Path("recipes/studies/breadth.yaml"), Path("docs/benchmarks/study"))


@app.command(
    rich_help_panel=HelpPanel.TRAIN,
    epilog=examples(
        "qpeft verdict QTHA --quick", "qpeft verdict my_circuit.qasm --input x --observable ZZI", "qpeft verdict recipe.yaml"
    ),
)
def verdict(
    subject: Annotated[str, typer.Argument(help="A circuit (.qasm, .json), a recipe (.yaml) or a method's name.")],
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="Circuit file: a parameter that is data, in order (repeatable).")
    ] = None,
    observables: Annotated[
        list[str] | None,
        typer.Option("--observable", help="Circuit file: a Pauli string that is measured (repeatable); default Z."),
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task of the protocol (repeatable).")] = None,
    seeds: Annotated[int | None, typer.Option(min=2, help="Only the first SEEDS seeds.", metavar="SEEDS")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A first look that proves nothing: one task, two seeds, few steps.")
    ] = False,
    protocol: Annotated[Path | None, typer.Option(help="A plan whose arms are the references; default the standard one.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of records and page; default runs/verdict/SUBJECT.")] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Print what it would cost, and stop.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run the references here too, instead of the records that come with qpeft.")
    ] = False,
) -> None:
    """Judge a method against LoRA and its own controls.

    Equal tuning, five seeds, three tasks; the method may be a circuit from a file. Prints an estimate first. Interrupted,
    the same command goes on. Writes one self-contained page.
    """
    import math
    import re
    import time

    from qpeft.study.leaderboard import write_plan
    from qpeft.study.plan import load_plan
    from qpeft.study.records import StudyRecords
    from qpeft.study.references import take_references
    from qpeft.study.runner import StudyRunner
    from qpeft.study.verdict import estimate_cost, read_protocol, read_subject, verdict_plan, work_left
    from qpeft.study.verdict_page import write_verdict

    found = read_subject(subject, inputs or (), observables or ())
    plan = verdict_plan(found, read_protocol(protocol), tasks=task or (), seeds=seeds, quick=quick)
    name = re.sub(r"[^a-z0-9]+", "-", found.name.lower()).strip("-") + ("-quick" if quick else "")
    folder = output or Path("runs/verdict") / name
    records = StudyRecords(folder, plan.name)
    write_plan(plan, folder)
    if not fresh:
        taken = take_references(plan, records)
        if taken.tuning or taken.seeds:
            print(f"{taken.tuning + taken.seeds} runs of the references come with qpeft; --fresh runs them here")
        for name in taken.other_rows:
            print(f"{name}: the rows are not those of the stored runs (another version of their source); the references run here")
    cost = estimate_cost(plan, records, found.name)
    arms, minutes = ", ".join(arm.label for arm in plan.arms), max(1, round(cost.seconds / 60))
    print(f"{len(plan.arms)} arms ({arms}), {len(plan.tasks)} tasks, {len(plan.seeds)} seeds")
    print(
        f"left: {cost.runs} runs, {cost.steps:,} steps, about {minutes} minutes on this machine under its present load", flush=True
    )
    if estimate:
        return
    runner, started = StudyRunner(plan, records, folder / "runs"), time.monotonic()
    for record in runner.work(plan.tasks, plan.arms):
        loss = f"loss {record.metrics['loss']:.4f}" if "loss" in record.metrics else record.error
        left = work_left(plan, records)[0]
        seconds = left * (time.monotonic() - started) / max(1, cost.runs - left)  # at the pace so far
        told = f"{left} runs left, about {math.ceil(seconds / 60)} minutes" if left else "all runs done"
        print(f"{record.group}: {record.label}, seed {record.seed}: {loss} ({told})", flush=True)
    stored = (load_plan(STORED[0]), StudyRecords(STORED[1], STORED[0].stem)) if all(p.exists() for p in STORED) else None
    print(write_verdict(plan, records, found.name, folder / "verdict.html", stored))
    print(f"page: {folder / 'verdict.html'}")
