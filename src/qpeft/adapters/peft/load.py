"""A saved adapter put onto a base model; what does not fit is one line with the file's name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel

from qpeft.adapters.saved import CONFIG, WEIGHTS, check_saved
from qpeft.errors import AdapterError, QpeftError

MISSING = "missing adapter keys"  # in PEFT's warning of weights that the file does not have


def load_saved(base: Any, folder: Path, **options: Any) -> Any:
    """`PeftModel.from_pretrained` in evaluation mode, of a whole and fitting adapter folder.

    Args:
        base: the base model. It is changed, also by an adapter that is refused.
        folder: the adapter's folder.
        options: further arguments of `PeftModel.from_pretrained`.

    Raises:
        AdapterError: a damaged or foreign file; weights of other shapes or names than the config and the base model give.
    """
    check_saved(folder)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            model = PeftModel.from_pretrained(base, str(folder), **options).eval()
    except AdapterError as error:  # a method's, of its settings
        raise AdapterError(f"{folder / CONFIG} does not fit: {error}") from error
    except QpeftError:
        raise
    except KeyError as error:
        what = f"{folder / CONFIG} names what is not known here: {error}"
        raise AdapterError(what, hint="a newer peft or qpeft, or the package that has the method") from error
    except RuntimeError as error:  # torch's, of shapes
        raise AdapterError(
            f"{folder / WEIGHTS} does not fit its config and the base model: {_first_mismatch(str(error))}",
            hint="the base model it was trained on, and the weights that were saved with the config",
        ) from error
    except (ValueError, TypeError) as error:  # PEFT's, of targets and settings
        reason = " ".join(str(error).split())[:200]
        raise AdapterError(f"{folder / CONFIG} does not fit: {reason}", hint="the base model it was trained on") from error
    for warning in told:
        if MISSING in str(warning.message):
            absent = str(warning.message).partition("[")[2].partition(",")[0].strip(" ]'")
            raise AdapterError(
                f"{folder / WEIGHTS} lacks weights of the adapter, the first {absent}",
                hint="the weights that were saved with the config",
            )
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return model


def _first_mismatch(text: str) -> str:
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return next((line for line in lines if line.startswith("size mismatch")), " ".join(lines))[:300]
