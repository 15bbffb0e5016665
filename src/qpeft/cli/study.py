"""Commands that run and report studies: arms x tasks x seeds with equal tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from qpeft.cli.common import AsJson, HelpPanel, app, examples, print_table

study = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Compare methods over tasks and seeds, with equal tuning.")
app.add_typer(study, name="study", rich_help_panel=HelpPanel.TRAIN)

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="The plan of a study (YAML).")]
Records = Annotated[Path, typer.Option(help="Folder of the study's records.")]
RECORDS = Path("docs/benchmarks/study")


@study.command(
    epilog=examples("qpeft study run recipes/studies/breadth.yaml", "qpeft study run recipes/studies/breadth.yaml --status")
)
def run(
    plan: PlanFile,
    records: Records = RECORDS,
    runs: Annotated[
        Path | None, typer.Option(help="Folder of unfinished runs; default runs/study, with --rerun FOLDER/runs.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task of the plan (repeatable).")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Only this arm of the plan (repeatable).")] = None,
    part: Annotated[
        str, typer.Option(help="K/N: every Nth of these arms from the Kth on, for N processes.", metavar="K/N")
    ] = "1/1",
    seeds: Annotated[int | None, typer.Option(min=0, help="Only the first SEEDS seeds; 0 tunes only.", metavar="SEEDS")] = None,
    rerun: Annotated[
        Path | None, typer.Option(help="Repeat recorded runs at their learning rates, into this folder.", metavar="FOLDER")
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="Print what is done and what is left, and stop.")] = False,
    engine: Annotated[str, typer.Option(help="local (one run after another) or ray (a Ray cluster).")] = "local",
    gpus: Annotated[float, typer.Option(min=0.0, help="With --engine ray: GPUs of one arm.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Tune every arm on validation rows, then train and test every seed.

    Every learning rate leaves a tuning record, every run a run record. Interrupted, the same command goes on.
    """
    import logging

    from qpeft.errors import ConfigError
    from qpeft.study.engine import StudyPart, make_engine
    from qpeft.study.plan import load_plan
    from qpeft.study.records import StudyRecords, fingerprint_of
    from qpeft.study.runner import StudyRunner
    from qpeft.study.spread import spread

    found = load_plan(plan)
    if seeds is not None:
        found = found.model_copy(update={"seeds": found.seeds[:seeds]})
    tasks = _named("task", [t.name for t in found.tasks], task)
    arms = _named("arm", [a.label for a in found.arms], arm)
    number, slash, count = part.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ConfigError(f"got {part!r}", field="--part", expected="K/N with 1 <= K <= N, as 1/2")
    known = target = StudyRecords(records, found.name)
    if rerun:
        target = StudyRecords(rerun, found.name)
        target.tuning = known.tuning | target.tuning
    place = runs or (rerun / "runs" if rerun else Path("runs/study"))
    runner = StudyRunner(found, target, place / found.name)
    done, planned = runner.progress()
    steps = found.tuning.steps(found.max_steps)
    if not as_json:
        print(f"{found.name}: {done} of {planned} runs done; tuning costs {steps} steps per arm and task")
    if status:
        if as_json:
            print(json.dumps({"study": found.name, "done": done, "planned": planned, "tuning_steps": steps}))
        return
    mine = [a for a in found.arms if a.label in arms][int(number) - 1 :: int(count)]
    chosen = [t for t in found.tasks if t.name in tasks]
    if engine != "local":
        parts = [StudyPart(plan, task.name, arm.label, records, place, seeds, rerun) for task in chosen for arm in mine]
        spread(parts, found, rerun or records, make_engine(engine, gpus=gpus))
        return
    logging.getLogger("qpeft.training.loop").setLevel(logging.WARNING)  # the same few words for each of many runs
    rows = []
    for record in runner.work(chosen, mine):
        if as_json:
            print(record.to_json(), flush=True)
            continue
        metrics = ", ".join(f"{name} {record.metrics[name]:.4f}" for name in ("loss", "accuracy") if name in record.metrics)
        before = known.runs.get(fingerprint_of(record)) if rerun else None
        first = f" (recorded: loss {before.metrics['loss']:.4f})" if before is not None and "loss" in before.metrics else ""
        print(f"{record.group}: {record.label}, seed {record.seed}: {metrics or record.error}{first}", flush=True)
        loss = f"{record.metrics['loss']:.4f}" if "loss" in record.metrics else record.status
        rows.append((record.group, record.label, str(record.seed), loss, f"{record.tokens_per_s:,.0f}", f"{record.wall_s:,.0f}"))
    if rows:
        print_table(("task", "arm", "seed", "held-out loss", "tokens/s", "seconds"), rows)


@study.command(epilog=examples("qpeft study report recipes/studies/breadth.yaml --out docs/benchmarks --images docs/images"))
def report(
    plan: PlanFile,
    records: Records = RECORDS,
    out: Annotated[Path, typer.Option(help="Folder of the page, study-NAME.md.")] = Path("docs/benchmarks"),
    images: Annotated[Path, typer.Option(help="Folder of the plots.")] = Path("docs/images"),
) -> None:
    """Write a study's page and plots from its records alone."""
    from qpeft.study.page import write_page
    from qpeft.study.plan import load_plan
    from qpeft.study.records import StudyRecords

    found = load_plan(plan)
    file = out / f"study-{found.name}.md"
    write_page(found, StudyRecords(records, found.name), file, images)
    print(file)


@study.command(
    epilog=examples("qpeft study verdict recipes/studies/breadth.yaml QTHA", "qpeft study verdict plan.yaml mine --out mine.html")
)
def verdict(
    plan: PlanFile,
    arm: Annotated[str, typer.Argument(metavar="ARM", help="The arm to judge, by its label.")],
    records: Records = RECORDS,
    out: Annotated[Path | None, typer.Option(help="The page; default runs/verdict/PLAN-ARM.html.")] = None,
) -> None:
    """Judge one arm of a study against all others, from its records alone.

    Writes the page that `qpeft verdict` writes. p values are corrected over all comparisons of the page.
    """
    import re

    from qpeft.study.plan import load_plan
    from qpeft.study.records import StudyRecords
    from qpeft.study.verdict_page import write_verdict

    found = load_plan(plan)
    _named("arm", [a.label for a in found.arms], [arm])
    file = out or Path("runs/verdict") / f"{found.name}-{re.sub(r'[^a-z0-9]+', '-', arm.lower()).strip('-')}.html"
    print(write_verdict(found, StudyRecords(records, found.name), arm, file))
    print(f"page: {file}")


OWN = (Path("recipes/studies/breadth.yaml"),)
CONTRIBUTED = Path("docs/benchmarks/leaderboard")


@study.command(epilog=examples("qpeft study leaderboard", "qpeft study leaderboard --check"))
def leaderboard(
    plans: Annotated[
        list[Path] | None, typer.Argument(metavar="[PLAN]...", help="Plans of the studies; default those of the repository.")
    ] = None,
    records: Records = RECORDS,
    contributed: Annotated[Path, typer.Option(help="Folder of contributions, a folder for each.")] = CONTRIBUTED,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("docs/leaderboard.md"),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if the page is not what the records give.")] = False,
) -> None:
    """Write the leaderboard from records alone.

    Every contribution is checked first; one that does not pass stops the command.
    """
    from qpeft.errors import RunError
    from qpeft.files import atomic_write
    from qpeft.study.leaderboard import leaderboard as page
    from qpeft.study.leaderboard import problems, read_entry

    entries = [read_entry(plan, records) for plan in plans or OWN]
    for folder in sorted(path for path in contributed.iterdir() if path.is_dir()) if contributed.is_dir() else []:
        entry = read_entry(folder)
        if found := problems(entry):
            raise RunError(
                f"{len(found)} problems", value=str(folder), bound="; ".join(found[:8]), hint=f"qpeft study check {folder}"
            )
        entries.append(entry)
    text = page(entries)
    if not check:
        atomic_write(out, text)
        print(out)
    elif not out.is_file() or out.read_text(encoding="utf-8") != text:
        raise RunError("the page is not what the records give", value=str(out), hint="qpeft study leaderboard")
    else:
        print(f"{out}: fresh")


@study.command(
    epilog=examples("qpeft study check docs/benchmarks/leaderboard/mine", "qpeft study check plan.yaml --records records")
)
def check(
    place: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder with plan.yaml and its records, or a plan.")],
    records: Annotated[Path | None, typer.Option(help="Folder of the records, where the plan stands elsewhere.")] = None,
) -> None:
    """Aggregate a folder of records again and list what keeps it off the leaderboard.

    Prints every problem and fails if there is one; else prints the rows that it adds.
    """
    from qpeft.study.leaderboard import leaderboard as page
    from qpeft.study.leaderboard import problems, read_entry

    entry = read_entry(place, records)
    found = problems(entry)
    for line in found:
        print(f"problem: {line}")
    print(f"{len(entry.records.runs)} run records, {len(entry.records.tuning)} tuning records, {len(found)} problems")
    if found:
        raise typer.Exit(1)
    print(page([entry]).partition("\n## ")[2])


def _named(what: str, names: list[str], wanted: list[str] | None) -> list[str]:
    """The wanted names, all where none is given; ConfigError for an unknown one."""
    from qpeft.errors import ConfigError

    for name in wanted or ():
        if name not in names:
            raise ConfigError(f"no {what} {name!r} in the plan", expected=f"one of {', '.join(names)}")
    return names if wanted is None else wanted
