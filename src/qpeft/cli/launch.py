"""`qpeft exec`: another program's command with qpeft's methods known to PEFT, in its child processes too."""

from __future__ import annotations

import os
import shutil
from importlib import metadata

import typer

from qpeft.cli.common import HelpPanel, app, examples
from qpeft.errors import ConfigError

VARIABLE = "QPEFT_AUTOLOAD"  # qpeft_autoload.py reads it
TORCH = "TORCH_DEVICE_BACKEND_AUTOLOAD"


@app.command(
    "exec",
    rich_help_panel=HelpPanel.TRAIN,
    epilog=examples(
        "qpeft exec python train.py", "qpeft exec torchrun --nproc-per-node 2 train.py", "qpeft exec lm_eval run --help"
    ),
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
    add_help_option=True,
)
def execute(context: typer.Context) -> None:
    """Run another program, whose PEFT then knows our methods.

    Sets QPEFT_AUTOLOAD=1 and replaces itself with the command. Each Python process that imports torch then knows qpeft's methods,
    as after `import qpeft`. The program has to run in the Python environment that qpeft is installed in.
    """
    command = [*context.args]
    if not command:
        raise ConfigError("no command", expected="qpeft exec CMD ARGUMENTS", hint="qpeft exec python train.py")
    if os.environ.get(TORCH) == "0":
        raise ConfigError(f"{TORCH}=0 keeps torch from loading qpeft", hint=f"unset {TORCH}")
    if not any(point.value.startswith("qpeft_autoload:") for point in metadata.entry_points(group="torch.backends")):
        raise ConfigError("this installation of qpeft is older than its code", hint="install it again: pip install -e .")
    if shutil.which(command[0]) is None:
        raise ConfigError("no such command", field=command[0], hint="install it in this environment")
    os.environ[VARIABLE] = "1"
    os.execvp(command[0], command)
