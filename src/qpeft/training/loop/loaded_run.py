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

    Raises RunError for another folder; DataError and ModelError as loading says.
    """
    from peft import PeftModel

    import qpeft.adapters.peft  # noqa: F401  (makes the methods known)
    from qpeft.adapters.saved import check_saved

    config = finished_config(folder)
    check_saved(folder / ADAPTER)
    base, tokenizer = loading.load_model(config.model), loading.load_tokenizer(config.model)
    return config, PeftModel.from_pretrained(base, str(folder / ADAPTER)).eval(), tokenizer


def copy_sharing_weights(base: Any) -> Any:
    """A second model on the same weight matrices; vectors (biases, norms) and everything else are its own."""
    shared = [tensor for tensor in base.parameters() if tensor.dim() > 1]
    return copy.deepcopy(base, {id(tensor): tensor for tensor in shared})
