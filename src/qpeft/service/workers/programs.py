"""Stored programs, read into circuits: for worker processes, which load neither the database's packages nor the settings."""

from __future__ import annotations

import functools

import msgspec

from qpeft.circuits.ir import Circuit
from qpeft.errors import CircuitError
from qpeft.service.messages import CIRCUIT, MEASURED, ORIGINIR, QASM


class Measured(msgspec.Struct):
    """A circuit in JSON, and which qubit each classical bit holds."""

    circuit: msgspec.Raw
    bits: tuple[int, ...]


@functools.lru_cache(maxsize=512)
def circuit_of(form: str, text: bytes) -> tuple[Circuit, tuple[int, ...] | None]:
    """The circuit of a program, and which qubit each classical bit holds (None: all qubits, in order).

    Raises CircuitError when it is none.
    """
    if form == CIRCUIT:
        return Circuit.from_json(text), None
    if form == MEASURED:
        measured = msgspec.json.decode(text, type=Measured)
        return Circuit.from_json(bytes(measured.circuit)), measured.bits
    if form == QASM:
        from qpeft.circuits.text.qasm import from_qasm

        return from_qasm(text, inputs=()), None  # a job gives one row of parameters: which of them are data is no matter
    if form == ORIGINIR:
        from qpeft.circuits.text.originir import from_originir

        program = from_originir(text.decode())
        by_bit = dict(sorted((bit, qubit) for qubit, bit in program.measures))
        return program.circuit, tuple(by_bit.values()) or None
    raise CircuitError("unknown form of program", value=form, bound=f"{CIRCUIT}, {MEASURED}, {QASM}, {ORIGINIR}")


def to_stored(circuit: Circuit, bits: tuple[int, ...] | None) -> tuple[str, bytes]:
    """`(format, text)` that `circuit_of` reads quickly."""
    text = circuit.to_json().encode()
    return (CIRCUIT, text) if bits is None else (MEASURED, msgspec.json.encode(Measured(msgspec.Raw(text), bits)))
