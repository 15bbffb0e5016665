"""The methods by name. A new method is its file and one entry here, or an entry point of another package, or a call of `register`.

The entry point group is `qpeft.methods`; an entry point loads a `Method` (docs/extending/method.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qpeft.adapters.base import AdapterConfig, Delta
from qpeft.adapters.controls import QNN_KINDS
from qpeft.adapters.layers.generated_lora import GENERATORS
from qpeft.adapters.methods.amplitude import Amplitude, AmplitudeConfig
from qpeft.adapters.methods.cayley import CayleyConfig, CayleyUnitary
from qpeft.adapters.methods.qaa import QAA, QAAConfig
from qpeft.adapters.methods.qcore import QCore, QCoreConfig
from qpeft.adapters.methods.qpa import QPA, QPAConfig
from qpeft.adapters.methods.qtha import QTHA, QTHAConfig
from qpeft.adapters.methods.quanta import QuanTA, QuanTAConfig
from qpeft.adapters.methods.quantum_peft import QuantumPEFT, QuantumPEFTConfig
from qpeft.adapters.methods.quic import QuIC, QuICConfig
from qpeft.errors import AdapterError
from qpeft.plugins import Registry

Kind = Literal["circuit", "generator", "inspired"]


@dataclass(frozen=True)
class Method:
    """A method of adaptation.

    Attributes:
        name: PEFT's type name, upper case.
        config, delta: its settings and its module.
        paper: where it comes from.
        summary: one line of what it is.
        kind: "circuit" runs a quantum circuit on every input; "generator" runs one without input, whose outcome makes the
            weights; "inspired" borrows the algebra and runs no circuit.
        runs_on: where the quantum part can run: "simulator", "chip"; empty for inspired methods.
        controls: classical controls by name, each as the settings that put it in the quantum part's place.
    """

    name: str
    config: type[AdapterConfig]
    delta: type[Delta]
    paper: str
    summary: str
    kind: Kind = "inspired"
    runs_on: tuple[str, ...] = ()
    controls: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_OURS = (
    Method(
        "QTHA",
        QTHAConfig,
        QTHA,
        "arXiv 2503.12790",
        "tensor trains around a data re-uploading circuit",
        kind="circuit",
        runs_on=("simulator", "chip"),
        controls={kind: {"qnn": kind} for kind in QNN_KINDS if kind != "circuit"},
    ),
    Method(
        "QCORE",
        QCoreConfig,
        QCore,
        "ours",
        "one-sided LoRA, or a core between frozen frames, with a circuit",
        kind="circuit",
        runs_on=("simulator", "chip"),
        controls={kind: {"qnn": kind} for kind in QNN_KINDS if kind != "circuit"},
    ),
    Method(
        "QPA",
        QPAConfig,
        QPA,
        "arXiv 2410.09846",
        "a circuit's probabilities and a small network generate LoRA's factors",
        kind="generator",
        runs_on=("simulator", "chip"),
        controls={kind: {"generator": kind} for kind in GENERATORS if kind != "circuit"},
    ),
    Method(
        "AMPLITUDE",
        AmplitudeConfig,
        Amplitude,
        "arXiv 2509.16244",
        "a circuit's amplitudes are LoRA's factors",
        kind="generator",
        runs_on=("simulator",),
        controls={kind: {"generator": kind} for kind in GENERATORS if kind != "circuit"},
    ),
    Method(
        "QAA",
        QAAConfig,
        QAA,
        "arXiv 2509.16244",
        "a projected activation becomes the amplitudes of a state",
        kind="circuit",
        runs_on=("simulator",),
        controls={kind: {"unitary": kind} for kind in GENERATORS if kind != "circuit"},
    ),
    Method(
        "QUANTA",
        QuanTAConfig,
        QuanTA,
        "arXiv 2406.00132",
        "gates on pairs of axes of the reshaped input",
        controls={"blocks": {"wiring": "blocks"}},
    ),
    Method(
        "QUANTUM_PEFT",
        QuantumPEFTConfig,
        QuantumPEFT,
        "arXiv 2503.05431",
        "a singular value decomposition with orthogonal factors from a circuit or a short formula",
        kind="generator",
        runs_on=("simulator",),
        controls={"product": {"entangling": False}, "linear": {"parametrisation": "taylor", "order": 1}},
    ),
    Method(
        "QUIC",
        QuICConfig,
        QuIC,
        "arXiv 2502.06916",
        "the output rotated by compounds of a small rotation",
        controls={"tied": {"structure": "tied"}},
    ),
    Method(
        "CAYLEY",
        CayleyConfig,
        CayleyUnitary,
        "arXiv 2605.05914",
        "the input rotated by small unitary blocks",
        controls={"linear": {"transform": "linear"}},
    ),
)

METHODS: Registry[Method] = Registry("qpeft.methods", {method.name: method for method in _OURS}, Method)

listeners: list[Callable[[Method], None]] = []  # who wants to know of methods registered later: the bridge to PEFT


def register(method: Method) -> None:
    """Add a method of your own; it is then a PEFT method like the others, whether peft is imported already or later.

    Raises AdapterError for a name that is not upper case, or that qpeft or PEFT has already.
    """
    if not re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*", method.name):
        raise AdapterError("a method's name is upper case, as in PEFT", value=method.name, bound="letters, digits, single _")
    if method.name in METHODS:
        raise AdapterError("a method of this name exists already", value=method.name)
    for listener in listeners:
        listener(method)  # may refuse the name
    METHODS.register(method.name, method)
