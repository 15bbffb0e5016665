"""A finished run loaded for use: base model, adapter and tokenizer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from qpeft.training.loop.run_dir import ADAPTER, finished_config
from qpeft.training.model import loading
from qpeft.training.recipe.config import RunConfig


def load_run(folder: Path) -> tuple[RunConfig, Any, Any]:
    """`(config, model, tokenizer)` of a finished run, the adapter in place, in evaluation mode.

    Raises RunError for another folder; AdapterError for a damaged or foreign adapter; DataError and ModelError as loading says.
    """
    from qpeft.adapters.peft.load import load_saved
    from qpeft.adapters.saved import check_saved

    config = finished_config(folder)
    check_saved(folder / ADAPTER)  # before a large model is loaded
    base, tokenizer = loading.load_model(config.model), loading.load_tokenizer(config.model)
    return config, load_saved(base, folder / ADAPTER), tokenizer


def copy_sharing_weights(base: Any) -> Any:
    """A second model on the same weight matrices; vectors (biases, norms) and everything else are its own."""
    shared = [tensor for tensor in base.parameters() if tensor.dim() > 1]
    return copy.deepcopy(base, {id(tensor): tensor for tensor in shared})
