"""Makes qpeft's methods known to PEFT in any Python process that imports torch, where `QPEFT_AUTOLOAD=1` is set.

PyTorch calls `load` at the end of `import torch` (entry point `torch.backends`), in child processes too. Without the variable
nothing happens. The file stands outside the package, so that qpeft itself is imported only where that is wanted.
"""

from __future__ import annotations

import os
import sys
import types
import warnings

VARIABLE = "QPEFT_AUTOLOAD"


class _Unfinished(types.ModuleType):
    """PEFT while it imports torch: the first use after its import has ended registers the methods."""

    def __getattribute__(self, name: str) -> object:
        if not name.startswith("__") and not getattr(self.__spec__, "_initializing", False):
            object.__setattr__(self, "__class__", types.ModuleType)
            _import()
        return types.ModuleType.__getattribute__(self, name)


def load() -> None:
    """Import qpeft if `QPEFT_AUTOLOAD` is 1. Never raises: an exception here would break `import torch`."""
    if os.environ.get(VARIABLE) != "1":
        return
    peft = sys.modules.get("peft")
    if peft is not None and getattr(peft.__spec__, "_initializing", False):
        peft.__class__ = _Unfinished
    else:
        _import()


def _import() -> None:
    try:
        import qpeft  # noqa: F401  # registers
    except Exception as error:
        warnings.warn(f"{VARIABLE}=1, but qpeft cannot be imported: {error}", RuntimeWarning, stacklevel=2)
