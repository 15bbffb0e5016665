"""The command line: one function per command. What a command needs is imported inside it, so that --help is instant."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from qpeft import __version__, plugins
from qpeft.cli.common import ALLOW_PLUGINS, app
from qpeft.errors import QpeftError
from qpeft.training.environment import quiet_libraries

# The order in which --help lists commands
from qpeft.cli import runs, ui, study, verdict, evaluate, export, launch  # isort: skip
from qpeft.cli import methods, doctor  # isort: skip
from qpeft.cli import devices, plan  # isort: skip
from qpeft.cli import service, operators  # isort: skip
from qpeft.cli import data, applications  # isort: skip

__all__ = [
    "app",
    "applications",
    "data",
    "devices",
    "doctor",
    "evaluate",
    "export",
    "launch",
    "main",
    "methods",
    "operators",
    "plan",
    "runs",
    "service",
    "study",
    "ui",
    "verdict",
]


def _version(value: bool) -> None:
    if value:
        print(f"qpeft {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    allow_plugins: Annotated[bool, typer.Option(ALLOW_PLUGINS, help="Let a recipe's `plugins` run.")] = False,
) -> None:
    if allow_plugins:
        plugins.allow()


def main() -> None:
    """Entry point: errors made on purpose end in one message and exit code 2, an interrupt in 130."""
    quiet_libraries()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("qpeft").setLevel(logging.INFO)
    try:
        app(prog_name="qpeft")
    except QpeftError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
