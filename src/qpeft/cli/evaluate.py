"""`qpeft eval`: held-out loss, task metrics and lm-evaluation-harness of one run, several, or a whole comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from qpeft.cli.common import AsJson, HelpPanel, Run, app, examples, print_table


@app.command(
    name="eval",
    rich_help_panel=HelpPanel.TRAIN,
    epilog=examples(
        "qpeft eval runs/chip",
        "qpeft eval runs/demo --task",
        "qpeft eval runs/chip --backend emulator:wukong-72 --shots 1000",
        "qpeft eval runs/chip --lm-eval arc_easy --limit 100",
    ),
)
def evaluate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs, or of comparisons.")],
    data: Annotated[str | None, typer.Option(help="Rows to evaluate on; default the recipe's held-out rows.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate on the first ROWS rows only.", metavar="ROWS")] = None,
    task: Annotated[bool, typer.Option("--task", help="Score the run's task (evaluate-task) instead of held-out loss.")] = False,
    harness: Annotated[
        str | None, typer.Option("--lm-eval", metavar="TASKS", help="Run these tasks of lm-evaluation-harness instead.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Also run the circuits on this backend, such as emulator:wukong-72.")] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="Shots of every circuit; default exact, where the backend can.")] = None,
    max_circuits: Annotated[int | None, typer.Option(min=1, help="Stop before more than this many circuits run.")] = None,
    budget_shots: Annotated[int | None, typer.Option(min=1, help="Stop before more shots than this are spent.")] = None,
    budget_jobs: Annotated[int | None, typer.Option(min=1, help="Stop before more jobs than this are sent.")] = None,
    budget_seconds: Annotated[float | None, typer.Option(min=0.0, help="Stop before more chip time than this, estimated.")] = None,
    cache: Annotated[Path | None, typer.Option(help="File of results to reuse and to add to.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of simulated shots.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Evaluate runs, with their adapter and without.

    Prints held-out loss, perplexity and token accuracy; with --task the metrics of the run's task. A comparison stands for its
    finished runs, and several runs give one table. With --backend the circuits also run on an emulated or real chip.
    """
    from qpeft.backends.spending.budget import Budget
    from qpeft.errors import RunError
    from qpeft.evaluation.held_out import BackendOptions, evaluate_run, finished_runs

    budget = Budget(circuits=max_circuits, shots=budget_shots, jobs=budget_jobs, seconds=budget_seconds)
    if backend is None and (shots, cache, budget) != (None, None, Budget()):
        raise RunError("shots, budgets and a cache belong to a backend", hint="--backend NAME")
    if (harness is not None) + task + (backend is not None) > 1:
        raise RunError("one of --task, --lm-eval and --backend at a time")
    folders = [run for folder in runs for run in finished_runs(folder)]
    if harness is not None:
        _harness(folders, harness, limit)
        return
    if task:
        _task(folders, data, limit, as_json)
        return
    where = None
    if backend is not None:
        where = BackendOptions(name=backend, shots=shots, budget=budget, cache=cache, seed=seed)
    found = [evaluate_run(run, data=data, limit=limit, backend=where, progress=not as_json) for run in folders]
    if as_json:
        told = {str(run): result for run, result in zip(folders, found, strict=True)}
        print(json.dumps(found[0] if len(found) == 1 else told))
    elif len(found) == 1:
        _print_one(found[0])
    else:
        _print_several(folders, found)


def _print_one(found: dict[str, Any]) -> None:
    on_backend = found.get("backend")
    columns = [found["base"], found["adapter"], *([on_backend["metrics"]] if on_backend else [])]
    header = ("metric", "base model", "with adapter", *((f"on {on_backend['name']}",) if on_backend else ()))
    print_table(header, [(name, *(f"{column[name]:,.4f}" for column in columns)) for name in found["adapter"]])
    if on_backend:
        _print_spent(on_backend)


def _print_several(folders: list[Path], found: list[dict[str, Any]]) -> None:
    rows = []
    for run, result in zip(folders, found, strict=True):
        base, adapter = result["base"], result["adapter"]
        on_backend = (f"{result['backend']['metrics']['loss']:.4f}",) if "backend" in result else ()
        rows.append(
            (
                str(run),
                f"{result['rows']:,}",
                f"{base['loss']:.4f}",
                f"{adapter['loss']:.4f}",
                f"{adapter['loss'] - base['loss']:+.4f}",
                f"{adapter['token_accuracy']:.4f}",
                *on_backend,
            )
        )
    more = ("loss on the backend",) if "backend" in found[0] else ()
    print_table(("run", "rows", "base loss", "loss, nats/token", "difference", "token accuracy", *more), rows)


def _print_spent(on_backend: dict[str, Any]) -> None:
    spent = on_backend["spent"]
    kind = "simulated on a classical computer" if on_backend["simulated"] else "on the vendor's machine"
    print(
        f"{spent['circuits']:,} circuits ({kind}), {spent['shots']:,} shots, {spent['programs']:,} programs, "
        f"{spent['jobs']:,} jobs, about {spent['seconds']:,.0f} s of chip time; "
        f"{spent['deduplicated']:,} equal circuits and {spent['cached']:,} cached ones not run again"
    )


def _task(folders: list[Path], data: str | None, limit: int | None, as_json: bool) -> None:
    """Task metrics: the tables of evaluate-task for one run, one table for several."""
    from qpeft.applications.scoring.evaluate_task import evaluate_task
    from qpeft.cli.applications import print_task_evaluation

    folder = None if data is None else Path(data)
    found = {str(run): evaluate_task(run, folder=folder, limit=limit, progress=not as_json) for run in folders}
    if as_json:
        print(json.dumps(next(iter(found.values())) if len(found) == 1 else found))
        return
    if len(found) == 1:
        print_task_evaluation(next(iter(found.values())), folders[0])
        return
    measured = {run: result["models"]["adapter"] for run, result in found.items()}
    keys = list(dict.fromkeys(key for metrics in measured.values() for key in metrics))
    rows = []

    def cell(run: str, key: str) -> str:
        """A measure and its interval over rows."""
        if key not in measured[run]:
            return "-"
        low, high = found[run].get("intervals", {}).get("adapter", {}).get(key, (None, None))
        return f"{measured[run][key]:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})")

    for run in measured:
        gap = found[run].get("difference", {}).get("base model")
        interval = "-" if gap is None else f"{gap['accuracy']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})"
        rows.append((run, f"{found[run]['rows']:,}", *(cell(run, key) for key in keys), interval))
    print_table(("run", "rows", *keys, "accuracy minus base"), rows)
    print("In brackets: 95% bootstrap intervals over rows.")


def _harness(folders: list[Path], tasks: str, limit: int | None) -> None:
    from qpeft.errors import RunError
    from qpeft.evaluation.lm_eval import lm_eval as run_harness
    from qpeft.evaluation.lm_eval import model_arguments

    if len(folders) > 1:
        raise RunError("lm-eval takes one run", value=len(folders), hint="qpeft eval runs/demo/runs/ARM/seed-0 --lm-eval TASKS")
    more = [] if limit is None else ["--limit", str(limit)]
    run_harness([*model_arguments(folders[0]), "--tasks", tasks, *more])


@app.command(
    name="lm-eval",
    hidden=True,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    rich_help_panel=HelpPanel.TRAIN,
    epilog=examples("qpeft lm-eval runs/chip --tasks arc_easy --limit 100"),
)
def lm_eval(
    context: typer.Context,
    run: Run,
    base: Annotated[bool, typer.Option("--base", help="Run the base model, without the adapter.")] = False,
) -> None:
    """Run lm-evaluation-harness on a run.

    Options after RUN are the harness's own, such as --tasks arc_easy. The tasks `medical` and `financial` are sets of exam
    questions. `qpeft eval RUN --lm-eval TASKS` is the short form.
    """
    from qpeft.evaluation.lm_eval import lm_eval as run_harness
    from qpeft.evaluation.lm_eval import model_arguments

    run_harness([*model_arguments(run, with_adapter=not base), *context.args])
