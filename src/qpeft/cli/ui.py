"""The command that shows training runs in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qpeft.cli.common import HelpPanel, app, examples


@app.command(rich_help_panel=HelpPanel.TRAIN, epilog=examples("qpeft ui", "qpeft ui runs --recipes recipes --port 8643"))
def ui(
    runs: Annotated[Path, typer.Argument(metavar="[RUNS_DIR]", help="The folder of runs.")] = Path("runs"),
    recipes: Annotated[Path, typer.Option(help="The folder of recipes that may be started.")] = Path("recipes"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 8643,
    browser: Annotated[bool, typer.Option("--browser", help="Open a browser.")] = False,
) -> None:
    """Show training runs in a browser, live while they train.

    Prints the address with a token, which is needed to open it. From another machine: ssh -L 8643:127.0.0.1:8643 HOST.
    """
    from qpeft.errors import MissingDependencyError, RunError

    try:
        from qpeft.ui.server import serve
    except ImportError as error:
        raise MissingDependencyError(error.name or "starlette", "ui", "qpeft ui") from error
    if runs.exists() and not runs.is_dir():
        raise RunError("not a folder", value=str(runs), bound="a folder of runs")
    runs.mkdir(parents=True, exist_ok=True)
    serve(runs, recipes, port=port, open_browser=browser)
