"""Programs as users send them: checked and hashed.

The API reads qpeft's own JSON, which is quick, and takes OpenQASM and OriginIR as text within a bound on its size; those are
parsed by workers alone (workers/programs.py). What was checked is remembered by its hash.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from qpeft.circuits.ir import Circuit
from qpeft.errors import CircuitError, ServiceError
from qpeft.service.messages import CIRCUIT, ORIGINIR, QASM, Source
from qpeft.service.scheduling.submission import StoredProgram
from qpeft.service.settings import Settings

MAX_QUBITS = 1024


@dataclass
class ProgramReader:
    """Queries programs for the API; the cache holds what was checked before."""

    settings: Settings
    capacity: int = 4096

    def __post_init__(self) -> None:
        self._cache: OrderedDict[bytes, StoredProgram] = OrderedDict()

    def read(self, source: Source) -> StoredProgram:
        """The program of a request; ServiceError when it is none, too large or not valid."""
        forms = [name for name in ("circuit", "qasm", "originir") if getattr(source, name) not in (None, msgspec.UNSET)]
        if len(forms) != 1:
            raise ServiceError(
                "a program comes in exactly one form",
                status=422,
                code="program",
                value=", ".join(forms) or "none",
                bound="circuit, qasm, originir",
            )
        if forms[0] == "circuit":
            assert isinstance(source.circuit, msgspec.Raw)
            return self._remember(CIRCUIT, bytes(source.circuit))
        text = source.qasm if forms[0] == "qasm" else source.originir
        assert text is not None
        try:
            return self._remember(QASM if forms[0] == "qasm" else ORIGINIR, text.encode())
        except UnicodeEncodeError as error:
            raise ServiceError("the program is not valid text", status=422, code="program", hint="send UTF-8") from error

    def _remember(self, form: str, text: bytes) -> StoredProgram:
        if len(text) > self.settings.max_program_bytes:
            raise ServiceError(
                "the program is too long",
                status=413,
                code="program",
                value=len(text),
                bound=f"{self.settings.max_program_bytes} bytes",
            )
        key = hashlib.sha256(form.encode() + b"\0" + text).digest()
        program = self._cache.get(key)
        if program is None:
            program = self._check(form, text, key.hex())
            self._cache[key] = program
            if len(self._cache) > self.capacity:
                self._cache.popitem(last=False)
        return program

    def _check(self, form: str, text: bytes, name: str) -> StoredProgram:
        if form != CIRCUIT:
            return StoredProgram(name, form, text, None, None, text.count(b"\n") + text.count(b";") + 1)
        try:
            circuit = Circuit.from_json(text)
        except CircuitError as error:
            raise ServiceError(str(error), status=422, code="program") from error
        if len(circuit.ops) > self.settings.max_ops:
            raise ServiceError("too many gates", status=422, code="program", value=len(circuit.ops), bound=self.settings.max_ops)
        if circuit.n_qubits > MAX_QUBITS:
            raise ServiceError("too many qubits", status=422, code="program", value=circuit.n_qubits, bound=MAX_QUBITS)
        return StoredProgram(name, form, text, circuit.n_qubits, circuit.n_params, len(circuit.ops))
