"""The settings `circuit`, `circuit_inputs` and `observables` of methods that run a circuit on every input.

    circuit: qtha                               a family of circuits by name (qpeft.circuits.ansatz.FAMILIES)
    circuit: my.qasm                            a file: OpenQASM (.qasm) or qpeft's JSON (.json)
    circuit: {circuit: .., id: .., qpeft: ..}   the saved form, as it stands in adapter_config.json
    QTHAConfig(circuit=c)                       a `Circuit`

A file is read when the settings are checked. From then on the setting is the `Circuit` itself, so a saved adapter needs no file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from qpeft import __version__
from qpeft.adapters.controls import STORED, make_qnn
from qpeft.circuits.ansatz import FAMILIES
from qpeft.circuits.ir import Circuit, Observable
from qpeft.circuits.text.qasm import from_qasm
from qpeft.errors import AdapterError, CircuitError

SUFFIXES = (".qasm", ".json")


class Default(int):
    """A default number that is distinguishable from the same number given by a user."""


def is_file_name(value: object) -> bool:
    """Whether a `circuit` setting names a file."""
    return isinstance(value, str) and value.endswith(SUFFIXES)


def read_circuit(value: Any, inputs: Sequence[str] | None = None) -> str | Circuit:
    """The setting as a family's name or a circuit.

    Args:
        value: a family's name, a file's path, a `Circuit`, or its saved form.
        inputs: for a file, the names of the parameters that are data, in order; default as the text says.

    Raises:
        AdapterError: anything else, no such family or file, a circuit without inputs, or a saved circuit whose id differs from
            what was saved.
        CircuitError: a file that cannot be read as a circuit.
    """
    if inputs is not None and not is_file_name(value):
        raise AdapterError("circuit_inputs names the inputs of a circuit that is read from a file", value=list(inputs))
    if isinstance(value, str) and not is_file_name(value):
        if value not in FAMILIES:
            raise AdapterError("unknown circuit", value=value, bound=f"{', '.join(FAMILIES)}, or a file {', '.join(SUFFIXES)}")
        return value
    circuit = value if isinstance(value, Circuit) else _read_file(value, inputs) if isinstance(value, str) else _read_saved(value)
    if circuit.n_inputs < 1:
        raise AdapterError(
            "the circuit has no inputs, so it gives the same values for every token",
            value=f"{circuit.n_params} parameters, all of them angles",
            hint="say which parameters are data: circuit_inputs=[...] for a file, n_inputs of a Circuit",
        )
    return circuit


def _read_file(name: str, inputs: Sequence[str] | None) -> Circuit:
    path = Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterError(f"the circuit's file cannot be read: {error}", value=name) from error
    reader: Callable[..., Circuit] = from_qasm if path.suffix == ".qasm" else _from_json
    try:
        return reader(text) if inputs is None else reader(text, inputs=list(inputs))
    except CircuitError as error:
        raise AdapterError(f"{name}: {error}") from error


def _from_json(text: str, inputs: Sequence[str] | None = None) -> Circuit:
    if inputs is not None:
        raise CircuitError(
            "a circuit in JSON says which parameters are inputs", value=list(inputs), hint="leave circuit_inputs out"
        )
    return Circuit.from_json(text)


def _read_saved(value: Any) -> Circuit:
    if not isinstance(value, Mapping) or not {"circuit", "id"} <= value.keys():
        raise AdapterError("not a circuit", value=type(value).__name__, bound="a name, a file, a Circuit, or its saved form")
    circuit = Circuit.from_dict(value["circuit"])
    if circuit.id != value["id"]:
        raise AdapterError(
            "the circuit is not the one that was saved: its id differs",
            value=circuit.id[:16],
            bound=str(value["id"])[:16],
            hint=f"the file was changed, or damaged, since qpeft {value.get('qpeft', 'of an unknown version')} wrote it",
        )
    return circuit


def save_circuit(circuit: str | Circuit) -> str | dict[str, Any]:
    """The JSON form of the setting: a family's name, or the circuit with its content id and the version of qpeft that wrote it."""
    if isinstance(circuit, str):
        return circuit
    return {"circuit": circuit.to_dict(), "id": circuit.id, "qpeft": __version__}


def read_observables(value: Any, n_qubits: int) -> tuple[Observable, ...] | None:
    """The setting as observables on `n_qubits` qubits; None stays None, which means `<Z_k>` of every qubit.

    Args:
        value: a list of Pauli strings with a letter for each qubit, qubit 0 first ("ZZI"), of `Observable`s, or of saved forms
            `[[coefficient, [[qubit, "Z"], ..]], ..]`.
        n_qubits: of the circuit.

    Raises:
        AdapterError: an empty list, anything else in it, or a qubit that the circuit does not have.
    """
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise AdapterError("observables are a list", value=value, bound='Pauli strings such as "ZZI", one letter a qubit')
    return tuple(_read_observable(each, n_qubits) for each in value)


def _read_observable(value: Any, n_qubits: int) -> Observable:
    try:
        if isinstance(value, str):
            if len(value) != n_qubits:
                raise AdapterError("an observable has a letter for each qubit", value=value, bound=f"{n_qubits} letters")
            found = Observable.pauli(value)
        elif isinstance(value, Observable):
            found = value
        else:
            found = Observable(tuple((coefficient, tuple((q, p) for q, p in string)) for coefficient, string in value))
    except (TypeError, ValueError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(f"not an observable: {error}", value=value) from error
    if bad := [qubit for _, string in found.terms for qubit, _ in string if qubit >= n_qubits]:
        raise AdapterError("an observable on a qubit that the circuit does not have", value=bad[0], bound=f"0..{n_qubits - 1}")
    return found


def save_observables(observables: Sequence[Observable] | None) -> list[list[Any]] | None:
    """The JSON form of the setting."""
    if observables is None:
        return None
    return [[[coefficient, [list(pair) for pair in string]] for coefficient, string in each.terms] for each in observables]


def check_qnn(kind: str, circuit: Circuit, observables: Sequence[Observable] | None, stored: Any = None) -> None:
    """Check that a kind of layer fits the circuit. Nothing is drawn or allocated.

    Args:
        kind: the setting `qnn`.
        circuit: the circuit.
        observables: default `<Z_k>` for each qubit k.
        stored: for the kind `stored`, the form of the surrogate.

    Raises:
        AdapterError: it does not fit.
    """
    if stored is not None and kind != STORED:
        raise AdapterError("`stored` is of a circuit that was measured", value=f"qnn={kind}", bound="qnn=stored")
    with torch.device("meta"):
        make_qnn(kind, circuit, observables, stored)


def build(circuit: str | Circuit, n_qubits: int, n_layers: int) -> Circuit:
    """The circuit of the setting `circuit`.

    Args:
        circuit: name of a family, or a Circuit, which is returned as it is.
        n_qubits: number of qubits of a family's circuit.
        n_layers: number of layers of a family's circuit.
    """
    return _of_family(FAMILIES[circuit], n_qubits, n_layers) if isinstance(circuit, str) else circuit


@functools.lru_cache(maxsize=256)
def _of_family(family: Callable[[int, int], Circuit], n_qubits: int, n_layers: int) -> Circuit:
    return family(n_qubits, n_layers)
