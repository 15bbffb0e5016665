"""The command line: one function per command. What a command needs is imported inside it, so that --help is instant."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from qpeft import __version__
from qpeft.errors import QpeftError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Quantum-enhanced parameter-efficient fine-tuning of language models.",
)

Recipe = Annotated[Path, typer.Argument(help="A recipe (YAML).")]
Run = Annotated[Path, typer.Argument(help="The folder of a finished run.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value, such as training.seed=1.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what another recipe left in the output folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _version(value: bool) -> None:
    if value:
        print(f"qpeft {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command()
def train(
    recipe: Recipe,
    settings: Set = None,
    output: Annotated[Path | None, typer.Option(help="Run folder; default runs/<recipe's name>.")] = None,
    overwrite: Overwrite = False,
    baseline: Annotated[Path | None, typer.Option(help="File in which runs share the base model's held-out metrics.")] = None,
) -> None:
    """Train one adapter, or continue a run that was interrupted."""
    from qpeft.training.config import load_recipe
    from qpeft.training.run import train as run

    config = load_recipe(recipe, settings or ())
    folder = output or Path("runs") / config.name
    record = run(config, folder, overwrite=overwrite, baseline=baseline)
    loss = f", held-out loss {record.metrics_before['loss']:.4f} -> {record.metrics['loss']:.4f}" if record.metrics else ""
    print(
        f"{record.label}: {record.trainable_parameters:,} trainable parameters, {record.steps} steps in {record.wall_s:.0f} s{loss}"
    )
    print(f"adapter: {folder / 'adapter'}")


@app.command()
def compare(
    recipe: Recipe,
    settings: Set = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the comparison; default runs/<recipe's name>.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Train every method x seed of a recipe's compare section on the same data in the same order, and report."""
    from qpeft.training.compare import compare as run
    from qpeft.training.config import load_recipe

    config = load_recipe(recipe, settings or ())
    folder = output or Path("runs") / config.name
    records = run(config, folder, overwrite=overwrite)
    _report([records], folder / "report", config.name)


@app.command()
def report(
    records: Annotated[list[Path], typer.Argument(help="Files of records (JSON Lines), or folders of runs and comparisons.")],
    out: Annotated[Path, typer.Option(help="Where the page, its Markdown twin and the plots go.")],
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
) -> None:
    """Turn records into a table, plots, Markdown and one self-contained HTML page."""
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


@app.command(name="eval")
def evaluate(
    run: Run,
    data: Annotated[str | None, typer.Option(help="Rows to evaluate on; default the recipe's held-out rows.")] = None,
    as_json: AsJson = False,
) -> None:
    """Loss, perplexity and token accuracy of a run, with its adapter and without."""
    from qpeft.errors import RunError
    from qpeft.training.data import load_data, load_examples
    from qpeft.training.evaluate import evaluate as measure
    from qpeft.training.run import load_run
    from qpeft.training.tokenization import tokenize_all

    config, model, tokenizer = load_run(run)
    section = config.data
    examples = load_examples(data, format=section.format, system=section.system) if data else load_data(section)[1]
    if not examples:
        raise RunError("the recipe names no held-out rows", value=str(run), cure="--data FILE")
    rows = tokenize_all(examples, tokenizer, section.max_length).rows
    size = config.training.per_device_eval_batch_size
    with_adapter = measure(model, rows, tokenizer, batch_size=size, progress=True)
    with model.disable_adapter():
        without = measure(model, rows, tokenizer, batch_size=size, progress=True)
    if as_json:
        print(json.dumps({"rows": len(rows), "adapter": with_adapter, "base": without}))
        return
    _table(("metric", "base model", "with adapter"), [(k, f"{without[k]:,.4f}", f"{with_adapter[k]:,.4f}") for k in with_adapter])


@app.command()
def chat(
    run: Run,
    prompt: Annotated[str | None, typer.Option(help="Answer this and end; without it, a conversation.")] = None,
    system: Annotated[str | None, typer.Option(help="System message; default the recipe's.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the most likely token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    base: Annotated[bool, typer.Option("--base", help="Without the adapter, to compare.")] = False,
) -> None:
    """Talk to a fine-tuned model. An empty line or end of input ends the conversation, /new starts another."""
    from qpeft.training.chat import reply
    from qpeft.training.data import Message
    from qpeft.training.run import load_run

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


@app.command()
def params(
    model: Annotated[str, typer.Argument(help="Hub id, folder (its config.json is enough) or package:NAME.")],
    method: Annotated[str, typer.Option(help="A method of qpeft or of PEFT.")] = "qtha",
    rank: Annotated[int | None, typer.Option(min=1, help="Rank r; default the method's own.")] = None,
    target_modules: Annotated[
        str | None, typer.Option(help="Comma-separated names, or all-linear; default PEFT's for the model.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the adapter, such as bond_dim=4.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count a method's trainable parameters on a model, beside LoRA's of equal rank, without the model's weights."""
    from qpeft.adapters.peft import count_parameters
    from qpeft.training.adapter_section import build_adapter_config
    from qpeft.training.config import ModelSection
    from qpeft.training.models import empty_model
    from qpeft.training.yaml_source import read_settings

    fields: dict[str, Any] = {"peft_type": method, **read_settings(settings or (), "adapter")}
    if rank is not None:
        fields["r"] = rank
    if target_modules:
        fields["target_modules"] = target_modules if target_modules == "all-linear" else target_modules.split(",")
    path = Path(model)
    name = str(path.parent) if path.name == "config.json" and path.is_file() else model
    config = build_adapter_config(fields)
    counts = count_parameters(empty_model(ModelSection(model_name_or_path=name)), config)
    share = counts["trainable"] / counts["lora"] if counts["lora"] else None
    result = {
        "model": model,
        "method": str(config.peft_type.value),
        "rank": getattr(config, "r", None),
        **counts,
        "share_of_lora": share,
        "share_of_base": counts["trainable"] / counts["base"],
    }
    if as_json:
        print(json.dumps(result))
        return
    rows = [
        (f"{result['method']}" + (f", r = {result['rank']}" if result["rank"] else ""), f"{counts['trainable']:,}"),
        ("LoRA of equal rank", f"{counts['lora']:,}" if counts["lora"] else "-"),
        ("share of LoRA", f"{share:.1%}" if share is not None else "-"),
        ("base model", f"{counts['base']:,}"),
        ("share of base", f"{result['share_of_base']:.4%}"),
    ]
    _table(("", "trainable parameters"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*header)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main() -> None:
    """Entry point: errors made on purpose end in one message and exit code 2, an interrupt in 130."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("qpeft").setLevel(logging.INFO)
    try:
        app()
    except QpeftError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
