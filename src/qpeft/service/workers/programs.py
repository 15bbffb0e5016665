"""Stored programs, read into circuits: for worker processes, which load neither the database's packages nor the settings."""

from __future__ import annotations

import functools
from typing import NamedTuple

import msgspec

from qpeft.circuits.ir import Circuit
from qpeft.errors import CircuitError
from qpeft.service.messages import CIRCUIT, MEASURED, ORIGINIR, QASM


class Measured(msgspec.Struct, omit_defaults=True):
    """A circuit in JSON, and which qubit each classical bit holds.

    `layout` is the chip's qubit of each of the circuit's, for a circuit that must not be moved. `source` is what a client of
    another protocol sent, kept to be told again.
    """

    circuit: msgspec.Raw
    bits: tuple[int, ...]
    layout: tuple[int, ...] | None = None
    source: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Program(NamedTuple):
    """A program as it runs: which qubit each classical bit holds (None: all qubits, in order), and `layout` as in Measured."""

    circuit: Circuit
    bits: tuple[int, ...] | None = None
    layout: tuple[int, ...] | None = None


@functools.lru_cache(maxsize=512)
def circuit_of(form: str, text: bytes) -> Program:
    """The program that a stored text is.

    Args:
        form: name of the form of the text, as `messages.py` has them.
        text: the stored text.

    Raises:
        CircuitError: the text is no program.
    """
    if form == CIRCUIT:
        return Program(Circuit.from_json(text))
    if form == MEASURED:
        measured = msgspec.json.decode(text, type=Measured)
        return Program(Circuit.from_json(bytes(measured.circuit)), measured.bits, measured.layout)
    if form == QASM:
        from qpeft.circuits.text.qasm import from_qasm

        return Program(from_qasm(text, inputs=()))  # a job gives one row of parameters: which of them are data is no matter
    if form == ORIGINIR:
        from qpeft.circuits.text.originir import from_originir

        program = from_originir(text.decode())
        by_bit = dict(sorted((bit, qubit) for qubit, bit in program.measures))
        return Program(program.circuit, tuple(by_bit.values()) or None)
    raise CircuitError("unknown form of program", value=form, bound=f"{CIRCUIT}, {MEASURED}, {QASM}, {ORIGINIR}")


def to_stored(circuit: Circuit, bits: tuple[int, ...] | None) -> tuple[str, bytes]:
    """The stored form of a program, which `circuit_of` reads quickly.

    Args:
        circuit: the circuit.
        bits: the qubit of each classical bit; None for all qubits in order.

    Returns:
        `(format, text)`.
    """
    text = circuit.to_json().encode()
    return (CIRCUIT, text) if bits is None else (MEASURED, msgspec.json.encode(Measured(msgspec.Raw(text), bits)))
