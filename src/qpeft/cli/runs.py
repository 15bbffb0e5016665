"""Commands that train adapters, evaluate them and talk to them."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qpeft.cli.common import AsJson, HelpPanel, Overwrite, Recipe, Run, Set, app, examples, print_table

if TYPE_CHECKING:
    from qpeft.records import RunRecord


@app.command(
    rich_help_panel=HelpPanel.TRAIN,
    epilog=examples(
        "qpeft train recipes/chip.yaml",
        "qpeft train recipe.yaml --set training.seed=1 --output runs/seed1",
    ),
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
    as_json: AsJson = False,
) -> None:
    """Train one adapter, or continue an interrupted run.

    On several GPUs: torchrun --nproc-per-node 2 -m qpeft.cli train RECIPE.
    """
    from qpeft.errors import RunError
    from qpeft.training.loop.run import train as run
    from qpeft.training.recipe.config import load_recipe

    config = load_recipe(recipe, settings or ())
    if config.adapter is None:
        raise RunError("the recipe compares several adapters", value=str(recipe), hint=f"qpeft compare {recipe}")
    folder = output or Path("runs") / config.name
    record = run(config, folder, overwrite=overwrite, baseline=baseline, until=until)
    if os.environ.get("RANK", "0") != "0":
        return  # torchrun started several processes: the first one reports
    if as_json:
        print(record.to_json())
        return
    _print_record(record, folder)


def _print_record(record: RunRecord, folder: Path) -> None:
    seconds = f"{record.wall_s:,.0f} s, {record.tokens_per_s:,.0f} tokens/s, {record.peak_memory_bytes / 2**30:.2f} GiB at most"
    print(f"{record.label}: {record.trainable_parameters:,} trainable parameters, {record.steps:,} steps in {seconds}")
    if record.metrics:
        rows = [(name, f"{record.metrics_before[name]:,.4f}", f"{value:,.4f}") for name, value in record.metrics.items()]
        print_table(("held-out", "base model", "with adapter"), rows)
    if record.backend:
        spent = record.backend
        print(f"{spent['circuits']:,} circuits, {spent['shots']:,} shots, {spent['chip_s']:,.0f} s of chip time on {spent['name']}")
    if record.status == "ok":
        print(f"adapter: {folder / 'adapter'}")
    else:
        print(f"paused; the same command without --until goes on in {folder}")


@app.command(
    rich_help_panel=HelpPanel.TRAIN,
    epilog=examples("qpeft compare recipes/demo.yaml", "qpeft compare recipes/demo.yaml --engine ray"),
)
def compare(
    recipe: Recipe,
    settings: Set = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the comparison; default runs/<recipe's name>.")] = None,
    overwrite: Overwrite = False,
    engine: Annotated[str, typer.Option(help="local (one process after another) or ray (a Ray cluster).")] = "local",
    gpus: Annotated[float, typer.Option(min=0.0, help="With --engine ray: GPUs of one run.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Train methods x seeds on the same data, and report.

    The methods and seeds stand in the recipe's `compare` section. Every run sees the same rows in the same order.
    """
    from qpeft.study.compare import compare as run
    from qpeft.study.engine import make_engine
    from qpeft.training.recipe.config import load_recipe

    config = load_recipe(recipe, settings or ())
    folder = output or Path("runs") / config.name
    records = run(config, folder, overwrite=overwrite, engine=make_engine(engine, gpus=gpus))
    _report([records], folder / "report", config.name, as_json)


@app.command(
    rich_help_panel=HelpPanel.TRAIN,
    epilog=examples("qpeft report runs/demo --out report", "qpeft report runs/lora runs/qtha --out report"),
)
def report(
    records: Annotated[list[Path], typer.Argument(help="Files of records (JSON Lines), or folders of runs and comparisons.")],
    out: Annotated[Path, typer.Option(help="Folder for the page, the Markdown and the plots.")],
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn records into tables, plots and one web page."""
    _report(records, out, title, as_json)


def _report(paths: list[Path], out: Path, title: str | None, as_json: bool) -> None:
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
    if as_json:
        summaries = [dataclasses.asdict(one) for one in summarise(records)]
        print(json.dumps({"report": str(built.html), "arms": summaries}))
        return
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(console_table(summarise(records), narrow=console.width < 120))
    print(f"report: {built.html}")


@app.command(
    rich_help_panel=HelpPanel.TRAIN,
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
    from transformers import TextStreamer

    from qpeft.evaluation.generate import encode_messages, generate, user_turn
    from qpeft.training.data.examples import Message
    from qpeft.training.loop.loaded_run import load_run

    config, model, tokenizer = load_run(run)
    if base:
        model = model.unload()
    text = system or config.data.system
    first: int | None = seed  # later turns go on with the generator as the turn before left it
    messages: list[Message] = []
    asked = prompt
    while True:
        if asked is None:
            try:
                asked = input("> ").strip()
            except EOFError:
                return
        if not asked:
            return
        if asked == "/new":
            messages, asked = [], None
            continue
        messages = [*messages, Message("user", asked)] if messages else user_turn(asked, text)
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        (answer,) = generate(
            model,
            tokenizer,
            [encode_messages(messages, tokenizer)],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=first,
            streamer=streamer,
        )
        messages.append(Message("assistant", answer.text))
        if prompt is not None:
            return
        first, asked = None, None
