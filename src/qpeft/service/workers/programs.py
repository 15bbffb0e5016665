"""Stored programs, read into circuits: the part of a worker, which loads neither the database's packages nor the settings."""

from __future__ import annotations

import functools

from qpeft.circuits.ir import Circuit
from qpeft.errors import CircuitError
from qpeft.service.messages import CIRCUIT, ORIGINIR, QASM


@functools.lru_cache(maxsize=512)
def circuit_of(form: str, text: bytes) -> tuple[Circuit, tuple[int, ...] | None]:
    """The circuit of a stored program, in a worker, and which qubit each classical bit holds (None: all qubits, in order).

    CircuitError says why it is none.
    """
    if form == CIRCUIT:
        return Circuit.from_json(text), None
    if form == QASM:
        from qpeft.circuits.text.qasm import from_qasm

        return from_qasm(text), None
    if form == ORIGINIR:
        from qpeft.circuits.text.originir import from_originir

        program = from_originir(text.decode())
        by_bit = dict(sorted((bit, qubit) for qubit, bit in program.measures))
        return program.circuit, tuple(by_bit.values()) or None
    raise CircuitError("unknown form of program", value=form, bound=f"{CIRCUIT}, {QASM}, {ORIGINIR}")
