"""Shared by the commands: the application and its panels, argument types, a table."""

from __future__ import annotations

import enum
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class HelpPanel(enum.StrEnum):
    """Headings of `qpeft --help`, in order. A command names its own with `rich_help_panel`."""

    TRAIN = "Train and compare"
    METHODS = "Methods"
    CHIPS = "Chips"
    SERVICE = "Quantum task service"
    APPLICATIONS = "Applications"


ALLOW_PLUGINS = "--allow-plugins"


class PanelGroup(TyperGroup):
    """Lists commands under their panels in plain text. Typer's own panels import Rich, which costs 0.1 s at each `--help`.

    `--allow-plugins` may stand anywhere on the command line: it concerns every command that reads a recipe or a run.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move `--allow-plugins` to the front, where the options of all commands stand."""
        end = args.index("--") if "--" in args else len(args)
        flags = [arg for arg in args[:end] if arg == ALLOW_PLUGINS]
        return super().parse_args(ctx, [*flags[:1], *(arg for arg in args[:end] if arg != ALLOW_PLUGINS), *args[end:]])

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one block per panel, commands in order of definition."""
        listed = [(name, command) for name in self.list_commands(ctx) if not (command := self.commands[name]).hidden]
        width = max(len(name) for name, _ in listed)
        formatter.write_paragraph()
        for panel in HelpPanel:
            formatter.write(f"{panel}:\n")
            for name, command in listed:
                if command.rich_help_panel == panel:  # type: ignore[attr-defined]
                    formatter.write(f"  {name:<{width}}  {command.get_short_help_str(formatter.width - width - 4)}\n")


def examples(*commands: str) -> str:
    """The end of a command's help: each example on a line of its own."""
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)


app = typer.Typer(
    cls=PanelGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Quantum-enhanced parameter-efficient fine-tuning of language models. Untested: macOS; Windows (without serve, worker and "
    "the compiled simulator).",
)

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML).")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value, such as training.seed=1.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what another recipe left in the output folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is never cut, the others are right-aligned."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*header)
    table.columns[0].no_wrap = True  # what names the row is typed again, whole
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
