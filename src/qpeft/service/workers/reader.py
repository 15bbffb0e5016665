"""A process that reads OpenQASM and OriginIR: text from users, which may be written to take for ever or all memory.

`Reader` is the side of the API, which asks and waits for so long; this file run as a program is the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import msgspec

try:
    import resource
except ImportError as error:
    from qpeft.platforms import require_posix

    require_posix("the task service")
    raise ImportError("Python without POSIX modules") from error

from qpeft.errors import CircuitError, MissingDependencyError, QpeftError, ServiceError
from qpeft.service.messages import QASM
from qpeft.service.workers.programs import circuit_of, to_stored

PYQPANDA_BINARY, PYQPANDA_INSTRUCTIONS = "pyqpanda3.binary", "pyqpanda3.instructions"
MEMORY_BYTES = 2 << 30
START_S = 60.0
VENDOR_S = 30.0  # pyqpanda3 takes seconds to load


class Question(msgspec.Struct):
    """A program as a user wrote it."""

    format: str
    text: bytes


class Reading(msgspec.Struct):
    """The program as it is stored: format, text, qubits, parameters and gates; or `error`, why it is none."""

    format: str = ""
    text: bytes = b""
    n_qubits: int = 0
    n_params: int = 0
    n_ops: int = 0
    texts: list[str] = msgspec.field(default_factory=list)
    """OriginIR of what a vendor's form holds."""
    error: str = ""


_encode = msgspec.msgpack.Encoder().encode
_QUESTION, _READING = msgspec.msgpack.Decoder(Question), msgspec.msgpack.Decoder(Reading)


class Reader:
    """The process, started when it is first asked. For one thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def read(self, form: str, text: bytes, timeout_s: float) -> Reading:
        """Read a program.

        Args:
            form: "openqasm" or "originir".
            text: the program.
            timeout_s: seconds to wait at most.

        Raises:
            ServiceError: 422, the text is no program, or takes too long to read.
        """
        if self._connection is None:
            self._start()
        assert self._connection is not None
        try:
            self._connection.send_bytes(_encode(Question(form, text)))
            reading = _READING.decode(self._connection.recv_bytes()) if self._connection.poll(timeout_s) else None
        except (OSError, EOFError):
            self.close()
            raise ServiceError("the program cannot be read", status=422, code="program", hint="write it with fewer gates") from None
        if reading is None:
            self.close()
            bound = f"{timeout_s:.0f} s"
            raise ServiceError("the program takes too long to read", status=422, code="program", bound=bound, hint="write it out")
        if reading.error:
            raise ServiceError(reading.error, status=422, code="program")
        return reading

    def _start(self) -> None:
        ours, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qpeft.service.workers.reader", str(theirs.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env={name: value for name, value in os.environ.items() if not name.startswith("QPEFT_SERV")},
        )
        theirs.close()
        self._connection = ours
        if not ours.poll(START_S):
            self.close()
            raise ServiceError("programs cannot be read now", status=503, code="reader", retry_after_s=5)
        ours.recv_bytes()

    def close(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None


def _vendor_texts(question: Question) -> list[str]:
    """Programs in one of pyqpanda3's own forms, read by pyqpanda3."""
    try:
        from pyqpanda3.core import instruction_to_qprog  # type: ignore[attr-defined]
        from pyqpanda3.intermediate_compiler import convert_qprog_to_originir  # type: ignore[attr-defined]
        from pyqpanda3.utils import comm_protocol_decode
    except ImportError as error:
        raise MissingDependencyError("pyqpanda3", "pyqpanda", "reading pyqpanda3's binary programs and instructions") from error
    try:
        if question.format == PYQPANDA_BINARY:
            programs = comm_protocol_decode(question.text)[0]
        else:
            found = instruction_to_qprog(question.text.decode(), 0, False)
            programs = found if isinstance(found, list) else [found]
        return [convert_qprog_to_originir(program) for program in programs]
    except (RuntimeError, ValueError, TypeError) as error:
        raise CircuitError(f"pyqpanda3 cannot read the program: {error}") from error


def _answer(question: Question) -> Reading:
    try:
        if question.format in (PYQPANDA_BINARY, PYQPANDA_INSTRUCTIONS):
            return Reading(texts=_vendor_texts(question))
        circuit, bits, _ = circuit_of(question.format, question.text)
    except QpeftError as error:
        return Reading(error=str(error)[:2000])
    except (RecursionError, MemoryError):
        return Reading(error="the program is nested too deeply, or too large")
    form, text = to_stored(circuit, bits)
    return Reading(form, text, circuit.n_qubits, circuit.n_params, len(circuit.ops))


def main(descriptor: int, parent: int) -> None:
    """Answer questions until the connection ends.

    Args:
        descriptor: file descriptor of the socket to the API process.
        parent: process id of the API process.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    if os.getppid() != parent:
        return
    connection = Connection(descriptor)
    with contextlib.suppress(QpeftError):
        _answer(Question(QASM, b"OPENQASM 3.0; qubit q;"))  # loads the parsers, which is no user's time
    connection.send_bytes(b"ready")
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            connection.send_bytes(_encode(_answer(_QUESTION.decode(connection.recv_bytes()))))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
