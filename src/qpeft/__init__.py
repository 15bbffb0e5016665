"""Quantum-enhanced parameter-efficient fine-tuning, as a drop-in for Hugging Face PEFT.

Importing this package loads neither torch nor peft. It makes the methods known to PEFT: at once if peft is imported already,
else at the moment it is.

Tested on Linux. macOS: expected to work, not tested. Windows: adapters, training and circuits in PyTorch are expected to work, not
tested; the compiled simulator, `qpeft serve` and `qpeft worker` are not available (qpeft.platforms).

    >>> import qpeft
    >>> model = peft.get_peft_model(base, qpeft.QTHAConfig(r=8, target_modules=["q_proj", "v_proj"]))
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from qpeft.adapters.methods.amplitude import AmplitudeConfig as AmplitudeConfig
    from qpeft.adapters.methods.cayley import CayleyConfig as CayleyConfig
    from qpeft.adapters.methods.qaa import QAAConfig as QAAConfig
    from qpeft.adapters.methods.qcore import QCoreConfig as QCoreConfig
    from qpeft.adapters.methods.qpa import QPAConfig as QPAConfig
    from qpeft.adapters.methods.qtha import QTHAConfig as QTHAConfig
    from qpeft.adapters.methods.quanta import QuanTAConfig as QuanTAConfig
    from qpeft.adapters.methods.quantum_peft import QuantumPEFTConfig as QuantumPEFTConfig
    from qpeft.adapters.methods.quic import QuICConfig as QuICConfig
    from qpeft.adapters.quantum_layer import set_executor as set_executor
    from qpeft.adapters.trained_circuits import circuit_inputs as circuit_inputs
    from qpeft.adapters.trained_circuits import circuits_of as circuits_of
    from qpeft.circuits.ir import Angle as Angle
    from qpeft.circuits.ir import Circuit as Circuit
    from qpeft.circuits.ir import Observable as Observable
    from qpeft.circuits.ir import Op as Op
    from qpeft.circuits.simulator.simulate import Simulator as Simulator
    from qpeft.circuits.simulator.simulate import expectations as expectations
    from qpeft.records import RunRecord as RunRecord

__version__ = "0.2.0"

_PUBLIC = {
    "AmplitudeConfig": "qpeft.adapters.peft",
    "CayleyConfig": "qpeft.adapters.peft",
    "QAAConfig": "qpeft.adapters.peft",
    "QCoreConfig": "qpeft.adapters.peft",
    "QPAConfig": "qpeft.adapters.peft",
    "QTHAConfig": "qpeft.adapters.peft",
    "QuanTAConfig": "qpeft.adapters.peft",
    "QuantumPEFTConfig": "qpeft.adapters.peft",
    "QuICConfig": "qpeft.adapters.peft",
    "set_executor": "qpeft.adapters.quantum_layer",
    "circuit_inputs": "qpeft.adapters.trained_circuits",
    "circuits_of": "qpeft.adapters.trained_circuits",
    "Angle": "qpeft.circuits.ir",
    "Circuit": "qpeft.circuits.ir",
    "Observable": "qpeft.circuits.ir",
    "Op": "qpeft.circuits.ir",
    "Simulator": "qpeft.circuits.simulator.simulate",
    "expectations": "qpeft.circuits.simulator.simulate",
    "RunRecord": "qpeft.records",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'qpeft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


class _RegisterWithPeft:
    """Waits for `import peft`, lets it happen, then registers the methods."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "peft":
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not self else None
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader)  # type: ignore[assignment]  # a loader by shape, importlib.abc costs 30 ms
                return spec
        return None


class _Loader:
    """Runs the module as its own loader would, then registers."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        importlib.import_module("qpeft.adapters.peft")


if "peft" in sys.modules:
    importlib.import_module("qpeft.adapters.peft")
else:
    sys.meta_path.insert(0, _RegisterWithPeft())
