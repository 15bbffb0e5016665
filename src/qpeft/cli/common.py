"""What commands share: the application, types of arguments, a table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

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


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*header)
    table.columns[0].no_wrap = True  # what names the row is typed again, whole
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
