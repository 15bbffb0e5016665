"""Commands that fetch data sets and prepare them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qpeft.cli.common import app, print_table

data = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Data sets: list those known by name, prepare one or your own."
)
app.add_typer(data, name="data")


@data.command(name="list")
def list_sets() -> None:
    """The data sets known by name."""
    from qpeft.applications.catalogue import CATALOGUE

    print_table(
        ("name", "task", "source"), [(d.name, d.title, d.source.words.split(",")[0].replace("`", "")) for d in CATALOGUE.values()]
    )


@data.command()
def prepare(
    name: Annotated[str, typer.Argument(help="A name of `qpeft data list`, or a table of your own with --label.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; default data/NAME.")] = None,
    label: Annotated[str | None, typer.Option(help="Your own table: the column to predict.", metavar="COLUMN")] = None,
    positive: Annotated[str, typer.Option(help="Your own table: the label that ranks rows, where there are two.")] = "",
    drop: Annotated[list[str] | None, typer.Option(help="Your own table: a column that is no input.", metavar="COLUMN")] = None,
    group: Annotated[str, typer.Option(help="Your own table: rows equal in this stay on one side.", metavar="COLUMN")] = "",
    subgroup: Annotated[list[str] | None, typer.Option(help="Your own table: report its values apart.", metavar="COLUMN")] = None,
    instruction: Annotated[str | None, typer.Option(help="Your own table: what the model is asked.")] = None,
    reasons: Annotated[int, typer.Option(min=0, help="Your own table: answers name so many reasons, made by a rule.")] = 0,
    file: Annotated[Path | None, typer.Option(help="A local copy of a hub dataset.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split; the catalogue's test sets are frozen at 0.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in the folder.")] = False,
) -> None:
    """Fetch or read a data set, check it, split it without leakage, and write rows as messages with a card."""
    from qpeft.applications.catalogue import find
    from qpeft.applications.prepare import own_data
    from qpeft.applications.prepare import prepare as write
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
        )
    elif positive or drop or group or subgroup or instruction or reasons:
        raise DataError("options of your own table without its label", hint="--label COLUMN")
    else:
        chosen = find(name)
    made = write(chosen, out or Path("data") / chosen.name, file=file, seed=seed, overwrite=overwrite)
    print(f"{made.folder}: {', '.join(f'{n:,} {part}' for part, n in made.rows.items())} rows, {made.left_out:,} left out")
    print(f"test.jsonl SHA-256 {made.hashes['test']}")
