"""Programs as users send them: checked, hashed, and turned into the form that is stored.

qpeft's own JSON is read here, which is quick. OpenQASM and OriginIR are read in a process of their own (workers/reader.py) within
bounds on bytes, time and memory, so that their cost is known before they are scheduled. What was read is remembered by its hash.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict

import msgspec

from qpeft.circuits.ir import Circuit
from qpeft.errors import CircuitError, ServiceError
from qpeft.service.messages import CIRCUIT, ORIGINIR, QASM, CircuitSource
from qpeft.service.scheduling.submission import StoredProgram
from qpeft.service.settings import Settings
from qpeft.service.workers.reader import VENDOR_S, Reader

MAX_QUBITS = 1024
KEPT = 4096


class ProgramReader:
    """Reads programs for the API. `read` may be called from several threads; each has a process of its own for text."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._kept: OrderedDict[bytes, StoredProgram | ServiceError] = OrderedDict()
        self._lock = threading.Lock()
        self._own = threading.local()
        self._readers: list[Reader] = []

    def close(self) -> None:
        """End the processes."""
        for reader in self._readers:
            reader.close()

    def texts(self, form: str, content: bytes) -> list[str]:
        """The programs inside a vendor's form, as OriginIR text.

        Args:
            form: name of the form (workers/reader.py).
            content: the form.

        Raises:
            ServiceError: 413, it is too long; 422, it cannot be read.
        """
        bound = self.settings.max_program_bytes
        if len(content) > bound:
            raise ServiceError("the program is too long", status=413, code="program", value=len(content), bound=f"{bound} bytes")
        return self._reader().read(form, content, VENDOR_S).texts

    def read(self, source: CircuitSource, deadline: float | None = None) -> StoredProgram:
        """The program of a request.

        Args:
            source: the circuit in one of its forms.
            deadline: monotonic time until which text has to be read.

        Raises ServiceError when it is none, too large, not valid, or takes too long to read.
        """
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
            return self._remember(CIRCUIT, bytes(source.circuit), deadline)
        text = source.qasm if forms[0] == "qasm" else source.originir
        assert text is not None
        try:
            return self._remember(QASM if forms[0] == "qasm" else ORIGINIR, text.encode(), deadline)
        except UnicodeEncodeError as error:
            raise ServiceError("the program is not valid text", status=422, code="program", hint="send UTF-8") from error

    def _remember(self, form: str, text: bytes, deadline: float | None) -> StoredProgram:
        if len(text) > self.settings.max_program_bytes:
            raise ServiceError(
                "the program is too long",
                status=413,
                code="program",
                value=len(text),
                bound=f"{self.settings.max_program_bytes} bytes",
            )
        key = hashlib.sha256(form.encode() + b"\0" + text).digest()
        with self._lock:
            found = self._kept.get(key)
        if found is None:
            found = self._check(form, text, key.hex(), deadline)
            with self._lock:
                self._kept[key] = found
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        if isinstance(found, ServiceError):
            raise ServiceError(str(found), status=found.status, code=found.code)
        return found

    def _check(self, form: str, text: bytes, name: str, deadline: float | None) -> StoredProgram | ServiceError:
        """The program, or the refusal that is remembered like one."""
        if form == CIRCUIT:
            try:
                circuit = Circuit.from_json(text)
            except CircuitError as error:
                return ServiceError(str(error), status=422, code="program")
            program = StoredProgram(name, form, text, circuit.n_qubits, circuit.n_params, len(circuit.ops))
        else:
            timeout_s = self.settings.max_read_s
            if deadline is not None:
                timeout_s = min(timeout_s, max(deadline - time.monotonic(), 0.05))
            try:
                found = self._reader().read(form, text, timeout_s)
            except ServiceError as refusal:
                if refusal.status != 422 or timeout_s < self.settings.max_read_s:
                    raise
                return refusal
            program = StoredProgram(name, found.format, found.text, found.n_qubits, found.n_params, found.n_ops)
        for what, value, bound in (("gates", program.n_ops, self.settings.max_ops), ("qubits", program.n_qubits, MAX_QUBITS)):
            if value > bound:
                return ServiceError(f"too many {what}", status=422, code="program", value=value, bound=bound)
        return program

    def _reader(self) -> Reader:
        reader: Reader | None = getattr(self._own, "reader", None)
        if reader is None:
            reader = self._own.reader = Reader()
            self._readers.append(reader)
        return reader
