"""EleutherAI's lm-evaluation-harness on a run: its own command line, with qpeft's methods known to PEFT."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from qpeft.errors import MissingDependencyError
from qpeft.training import models
from qpeft.training.folder import ADAPTER, finished_config


def model_arguments(folder: Path, *, with_adapter: bool = True) -> list[str]:
    """The options of `lm_eval` that mean this run: its base model as trained, and its adapter."""
    section = finished_config(folder).model
    given: dict[str, str | bool] = {"pretrained": models.resolve(section.model_name_or_path), "dtype": section.dtype}
    if section.revision is not None:
        given["revision"] = section.revision
    given |= {"trust_remote_code": True} if section.trust_remote_code else {}
    given |= {"peft": str((folder / ADAPTER).resolve())} if with_adapter else {}
    return ["--model", "hf", "--model_args", json.dumps(given)]


def lm_eval(arguments: Sequence[str]) -> None:
    """Run the harness's command line with these arguments in this process, where importing peft brings qpeft's methods."""
    try:
        cli = importlib.import_module("lm_eval.__main__")
    except ImportError as error:
        raise MissingDependencyError("lm-eval", "eval", "qpeft lm-eval") from error

    import qpeft.adapters.peft  # noqa: F401  (makes the methods known)

    with mock.patch.object(sys, "argv", ["lm_eval", "run", *arguments]):
        cli.cli_evaluate()
