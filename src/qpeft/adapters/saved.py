"""A saved adapter's files, checked before PEFT reads them: damage and foreign files are one line with the file's name."""

from __future__ import annotations

import json
from pathlib import Path

from qpeft.errors import AdapterError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def check_saved(folder: Path) -> None:
    """Check that a folder holds a whole adapter.

    Raises:
        AdapterError: a file that is missing, truncated, not JSON or not safetensors, a config without `peft_type`, or weights that
            are not finite.
    """
    from safetensors import SafetensorError, safe_open

    config, weights = folder / CONFIG, folder / WEIGHTS
    for file in (config, weights):
        if not file.is_file():
            raise AdapterError("not a saved adapter: a file is missing", value=str(file))
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterError(f"{config} is not JSON: {error}", hint="the file is damaged; copy it again") from error
    if not isinstance(found, dict) or "peft_type" not in found:
        raise AdapterError(f"{config} is no adapter's: it has no peft_type")
    try:
        with safe_open(str(weights), "pt") as tensors:
            names = list(tensors.keys())
            broken = next((name for name in names if not tensors.get_tensor(name).isfinite().all()), None)
    except SafetensorError as error:
        what = f"{weights} is truncated or no safetensors file: {' '.join(str(error).split())}"
        raise AdapterError(what, hint="the file is damaged; copy it again") from error
    if broken is not None:
        raise AdapterError(f"{weights} holds numbers that are not finite, the first in {broken}", hint="a run that did not diverge")
    if not names:
        raise AdapterError(f"{weights} holds no tensors")
