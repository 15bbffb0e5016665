"""Commands that train adapters, evaluate them and talk to them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from qpeft.cli.common import AsJson, Overwrite, Panel, Recipe, Run, Set, app, examples, print_table


@app.command(
    rich_help_panel=Panel.TRAIN,
    epilog=examples("qpeft train recipes/chip.yaml", "qpeft train recipe.yaml --set training.seed=1 --output runs/seed1"),
)
def train(
    recipe: Recipe,
    settings: Set = None,
    output: Annotated[Path | None, typer.Option(help="Run folder; default runs/<recipe's name>.")] = None,
    overwrite: Overwrite = False,
    baseline: Annotated[
        Path | None, typer.Option(help="File that caches the base model's held-out metrics for several runs.")
    ] = None,
    until: Annotated[int | None, typer.Option(min=1, help="Pause after this step; the same command continues.")] = None,
) -> None:
    """Train one adapter, or continue an interrupted run."""
    from qpeft.training.loop.run import train as run
    from qpeft.training.recipe.config import load_recipe

    config = load_recipe(recipe, settings or ())
    folder = output or Path("runs") / config.name
    record = run(config, folder, overwrite=overwrite, baseline=baseline, until=until)
    loss = f", held-out loss {record.metrics_before['loss']:.4f} -> {record.metrics['loss']:.4f}" if record.metrics else ""
    print(
        f"{record.label}: {record.trainable_parameters:,} trainable parameters, {record.steps} steps in {record.wall_s:.0f} s{loss}"
    )
    print(
        f"adapter: {folder / 'adapter'}"
        if record.status == "ok"
        else f"paused; the same command without --until goes on in {folder}"
    )


@app.command(rich_help_panel=Panel.TRAIN, epilog=examples("qpeft compare recipes/demo.yaml"))
def compare(
    recipe: Recipe,
    settings: Set = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the comparison; default runs/<recipe's name>.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Train methods x seeds on the same data, and report.

    The methods and seeds stand in the recipe's `compare` section. Every run sees the same rows in the same order.
    """
    from qpeft.study.compare import compare as run
    from qpeft.training.recipe.config import load_recipe

    config = load_recipe(recipe, settings or ())
    folder = output or Path("runs") / config.name
    records = run(config, folder, overwrite=overwrite)
    _report([records], folder / "report", config.name)


@app.command(
    rich_help_panel=Panel.TRAIN,
    epilog=examples("qpeft report runs/demo --out report", "qpeft report runs/lora runs/qtha --out report"),
)
def report(
    records: Annotated[list[Path], typer.Argument(help="Files of records (JSON Lines), or folders of runs and comparisons.")],
    out: Annotated[Path, typer.Option(help="Folder for the page, the Markdown and the plots.")],
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
) -> None:
    """Turn records into tables, plots and one web page."""
    _report(records, out, title)


def _report(paths: list[Path], out: Path, title: str | None) -> None:
    from rich.console import Console

    from qpeft.errors import RunError
    from qpeft.records import read_records
    from qpeft.report import build, console_table, summarise

    files = []
    for path in paths:
        inside = [path / name for name in ("records.jsonl", "record.json") if (path / name).exists()]
        if not path.exists() or (path.is_dir() and not inside):
            raise RunError("no records here", value=str(path), bound="a records file, or a folder made by train or compare")
        files += inside if path.is_dir() else [path]
    records = [record for file in files for record in read_records(file)]
    built = build(records, out, title=title)
    Console(width=None if sys.stdout.isatty() else 140).print(console_table(summarise(records)))
    print(f"report: {built.html}")


@app.command(
    name="eval",
    rich_help_panel=Panel.TRAIN,
    epilog=examples("qpeft eval runs/chip", "qpeft eval runs/chip --backend emulator:wukong-72 --shots 1000"),
)
def evaluate(
    run: Run,
    data: Annotated[str | None, typer.Option(help="Rows to evaluate on; default the recipe's held-out rows.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate on the first ROWS rows only.", metavar="ROWS")] = None,
    backend: Annotated[str | None, typer.Option(help="Also run the circuits on this backend, such as emulator:wukong-72.")] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="Shots of every circuit; default exact, where the backend can.")] = None,
    max_circuits: Annotated[int | None, typer.Option(min=1, help="Stop before more than this many circuits run.")] = None,
    budget_shots: Annotated[int | None, typer.Option(min=1, help="Stop before more shots than this are spent.")] = None,
    cache: Annotated[Path | None, typer.Option(help="File of results to reuse and to add to.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of simulated shots.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure held-out loss with and without the adapter.

    Prints loss, perplexity and token accuracy. With --backend the circuits also run on an emulated or real chip.
    """
    from qpeft.errors import RunError
    from qpeft.training.data.examples import load_data, load_examples
    from qpeft.training.data.tokenization import tokenize_all
    from qpeft.training.loop.run import load_run
    from qpeft.training.model.held_out_loss import evaluate as measure

    if backend is None and any(option is not None for option in (shots, max_circuits, budget_shots, cache)):
        raise RunError("shots, budgets and a cache belong to a backend", hint="--backend NAME")
    where = _open_backend(backend, run) if backend else None
    config, model, tokenizer = load_run(run)
    section = config.data
    examples = load_examples(data, format=section.format, system=section.system) if data else load_data(section)[1]
    if not examples:
        raise RunError("the recipe names no held-out rows", value=str(run), hint="--data FILE")
    rows = tokenize_all(examples[:limit], tokenizer, section.max_length).rows
    size = config.training.per_device_eval_batch_size
    found: dict[str, Any] = {}
    if where is None:
        with_adapter = measure(model, rows, tokenizer, batch_size=size, progress=True)
    else:
        from qpeft.backends.spending.budget import Budget
        from qpeft.backends.spending.cache import ResultCache
        from qpeft.evaluation.on_backend import evaluate_on_backend

        found = evaluate_on_backend(
            model,
            rows,
            tokenizer,
            where,
            shots,
            batch_size=size,
            seed=seed,
            budget=Budget(circuits=max_circuits, shots=budget_shots),
            cache=ResultCache(cache) if cache else None,
            progress=True,
        )
        with_adapter = found.pop("exact")
        where.close()
    with model.disable_adapter():
        without = measure(model, rows, tokenizer, batch_size=size, progress=True)
    if as_json:
        on_chip = {"backend": {"name": backend, "shots": shots, "metrics": found.pop("backend"), **found}} if found else {}
        print(json.dumps({"rows": len(rows), "adapter": with_adapter, "base": without, **on_chip}))
        return
    columns = [without, with_adapter, *([found["backend"]] if found else [])]
    header = ("metric", "base model", "with adapter", *((f"on {backend}",) if found else ()))
    print_table(header, [(k, *(f"{column[k]:,.4f}" for column in columns)) for k in with_adapter])
    if found:
        spent = found["spent"]
        kind = "simulated on a classical computer" if found["simulated"] else "on the vendor's machine"
        print(
            f"{spent['circuits']:,} circuits ({kind}), {spent['shots']:,} shots, {spent['programs']:,} programs, "
            f"{spent['jobs']:,} jobs, about {spent['seconds']:,.0f} s of chip time; "
            f"{spent['deduplicated']:,} equal circuits and {spent['cached']:,} cached ones not run again"
        )


def _open_backend(name: str, run: Path) -> Any:
    """The backend, a vendor's cloud with its journal in the run's folder."""
    from qpeft.backends.registry import get_backend, needs_journal

    options = {"journal": run / "jobs" / f"{name.replace(':', '-')}.jsonl"} if needs_journal(name) else {}
    return get_backend(name, **options)


@app.command(
    rich_help_panel=Panel.TRAIN,
    epilog=examples("qpeft chat runs/chip", 'qpeft chat runs/chip --prompt "What is a qubit?"'),
)
def chat(
    run: Run,
    prompt: Annotated[str | None, typer.Option(help="Answer this prompt and exit; default a conversation.")] = None,
    system: Annotated[str | None, typer.Option(help="System message; default the recipe's.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the most likely token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    base: Annotated[bool, typer.Option("--base", help="Talk to the base model, without the adapter.")] = False,
) -> None:
    """Talk to a fine-tuned model.

    An empty line or end of input ends the conversation, /new starts another.
    """
    from qpeft.evaluation.generate import reply
    from qpeft.training.data.examples import Message
    from qpeft.training.loop.run import load_run

    config, model, tokenizer = load_run(run)
    if base:
        model = model.unload()
    from transformers import set_seed

    set_seed(seed)
    text = system or config.data.system
    start = [Message("system", text)] if text else []
    messages, asked = list(start), prompt
    while True:
        if asked is None:
            try:
                asked = input("> ").strip()
            except EOFError:
                return
        if not asked:
            return
        if asked == "/new":
            messages, asked = list(start), None
            continue
        messages.append(Message("user", asked))
        answer = reply(model, tokenizer, messages, max_new_tokens=max_new_tokens, temperature=temperature)
        messages.append(Message("assistant", answer))
        if prompt is not None:
            return
        asked = None
