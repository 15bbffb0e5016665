"""EleutherAI's lm-evaluation-harness on a run: its own command line, with qpeft's methods known to PEFT."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from qpeft.errors import MissingDependencyError
from qpeft.training.loop.run_dir import ADAPTER, finished_config
from qpeft.training.model import loading

# Sets of exam questions by one name, in the harness's own task names
SUITES: dict[str, tuple[str, ...]] = {
    "medical": ("multimedqa",),  # MedMCQA, MedQA (USMLE), PubMedQA and six subjects of MMLU
    "financial": (
        "mmlu_professional_accounting",
        "mmlu_econometrics",
        "mmlu_high_school_macroeconomics",
        "mmlu_high_school_microeconomics",
        "mmlu_business_ethics",
    ),
}


def spell_suites(arguments: Sequence[str]) -> list[str]:
    """The arguments with the names of `SUITES` after --tasks replaced by their tasks."""
    spelled = list(arguments)
    for index, argument in enumerate(spelled):
        option, equals, value = argument.partition("=")
        if option in ("--tasks", "-t") and equals:
            spelled[index] = f"{option}={_spell(value)}"
        elif index and spelled[index - 1] in ("--tasks", "-t"):
            spelled[index] = _spell(argument)
    return spelled


def _spell(tasks: str) -> str:
    return ",".join(name for task in tasks.split(",") for name in SUITES.get(task, (task,)))


def model_arguments(folder: Path, *, with_adapter: bool = True) -> list[str]:
    """The options of `lm_eval` that mean this run: its base model as trained, and its adapter.

    Args:
        folder: folder of a finished run.
        with_adapter: False gives the base model alone.

    Returns:
        The options `--model` and `--model_args`.
    """
    section = finished_config(folder).model
    given: dict[str, str | bool] = {"pretrained": loading.resolve(section.model_name_or_path), "dtype": section.dtype}
    if section.revision is not None:
        given["revision"] = section.revision
    given |= {"trust_remote_code": True} if section.trust_remote_code else {}
    given |= {"peft": str((folder / ADAPTER).resolve())} if with_adapter else {}
    return ["--model", "hf", "--model_args", json.dumps(given)]


def lm_eval(arguments: Sequence[str]) -> None:
    """Run the harness's command line with these arguments in this process, where importing peft brings qpeft's methods.

    `--tasks` may name a suite of `SUITES`.
    """
    try:
        cli = importlib.import_module("lm_eval.__main__")
    except ImportError as error:
        raise MissingDependencyError("lm-eval", "eval", "qpeft lm-eval") from error

    import qpeft.adapters.peft  # noqa: F401  (makes the methods known)

    with mock.patch.object(sys, "argv", ["lm_eval", "run", *spell_suites(arguments)]):
        cli.cli_evaluate()
