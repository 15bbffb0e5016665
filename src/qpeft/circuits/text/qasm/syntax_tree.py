"""OpenQASM text -> the syntax tree of the reference parser (package `openqasm3`), with limits that no text can get round.

The parser is written for OpenQASM 3. Version 2 is made to look like it first: `^` becomes `**`, and identifiers that became
keywords get an underscore in front, which no OpenQASM 2 identifier has. The parser is slow (20 to 100 kB a second) and its time
grows faster than that with nesting, so nesting is bounded before it starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qpeft.errors import CircuitError, MissingDependencyError, QasmError

MAX_DEPTH, MAX_OPERATORS = 64, 256

# One step of the scan: a string, a comment (closed or not), a word, an operator or a bracket.
_TOKEN = re.compile(r'"[^"\n]*"|//[^\n]*|/\*.*?(?:\*/|\Z)|[^\W\d]\w*|[-+*/%^&|<>!~@]|[][(){};]', re.DOTALL)
_HEADER = re.compile(r"\s*OPENQASM\s+(\d+)(?:\.\d+)?\s*;")
_NEW_KEYWORDS = frozenset(
    (  # noqa: SIM905
        "defcalgrammar def cal defcal extern box let break continue else end return for while in switch case default nop pragma "
        "input output const readonly mutable qubit bool bit int uint float angle complex array void duration stretch gphase inv "
        "pow ctrl negctrl durationof sizeof delay true false"
    ).split()
)


class _Listener:
    """Turns the parser's first complaint into a QasmError (its own listener would print it)."""

    def syntaxError(self, recognizer: Any, symbol: Any, line: int, column: int, message: str, error: Any) -> None:
        raise QasmError(f"syntax error: {message[:200]}", line=line)

    def reportAmbiguity(self, *_: Any) -> None:
        """Ambiguities are the grammar's business."""

    reportAttemptingFullContext = reportContextSensitivity = reportAmbiguity


def parse(text: str | bytes, *, max_bytes: int) -> tuple[Any, int]:
    """Parse a program.

    Args:
        text: the program; bytes are UTF-8.
        max_bytes: the longest text that is read.

    Returns:
        The syntax tree (`openqasm3.ast.Program`) and the version, 2 or 3.

    Raises:
        QasmError: the text is too long, nested too deeply, or no OpenQASM.
        MissingDependencyError: the extra `qasm` is not installed.
    """
    text = _decoded(text, max_bytes)
    text, version = _prepared(text)
    try:
        from openqasm3.parser import CommonTokenStream, InputStream, QASMNodeVisitor, qasm3Lexer, qasm3Parser
    except ImportError as error:
        raise MissingDependencyError("openqasm3[parser]", "qasm", "reading OpenQASM") from error
    lexer = qasm3Lexer(InputStream(text))
    parser = qasm3Parser(CommonTokenStream(lexer))
    for recognizer in (lexer, parser):
        recognizer.removeErrorListeners()
        recognizer.addErrorListener(_Listener())
    try:
        return QASMNodeVisitor().visitProgram(parser.program()), version
    except (QasmError, MemoryError):
        raise
    except RecursionError as error:
        raise QasmError("the text is nested too deeply", hint="write it in smaller steps") from error
    except Exception as error:  # the parser meets hostile text with whatever its internals happen to raise
        raise QasmError(
            f"the parser cannot read the text: {str(error)[:200]}", hint="check it against the OpenQASM grammar"
        ) from error


@contextmanager
def located(node: Any) -> Iterator[None]:
    """Gives the line of a syntax node to errors that do not know theirs."""
    try:
        yield
    except CircuitError as error:
        if isinstance(error, QasmError) and error.line:
            raise
        raise QasmError(error.what, line=node.span.start_line, value=error.value, bound=error.bound, hint=error.hint) from error
    except RecursionError as error:
        raise QasmError("nested too deeply", line=node.span.start_line, hint="write it in smaller steps") from error


def _decoded(text: str | bytes, max_bytes: int) -> str:
    if not isinstance(text, (str, bytes)):
        raise QasmError("OpenQASM is text", value=type(text).__name__, bound="str or UTF-8 bytes")
    try:
        raw = text if isinstance(text, bytes) or len(text) > max_bytes else text.encode()
        if len(raw) > max_bytes:
            raise QasmError("the text is too long", value=f"{len(raw)} bytes", bound=f"{max_bytes} bytes", hint="raise max_bytes")
        text = raw.decode() if isinstance(raw, bytes) else raw
    except UnicodeError as error:
        line = error.object[: error.start].count("\n" if isinstance(error.object, str) else b"\n") + 1  # type: ignore[attr-defined]
        raise QasmError("the text is not valid UTF-8", line=line, hint="save the file as UTF-8") from error
    if not text.strip():
        raise QasmError("the text is empty")
    return text


def _prepared(text: str) -> tuple[str, int]:
    """The text without comments (their line breaks stay), in OpenQASM 3's words, and its version. Refuses deep nesting."""
    bare = _TOKEN.sub(lambda m: "\n" * m[0].count("\n") or " " if m[0].startswith(("//", "/*")) else m[0], text)
    header = _HEADER.match(bare)
    version = {"2": 2, "3": 3}.get(header[1] if header else "3")
    if version is None:
        raise QasmError("unknown OpenQASM version", value=header[1][:20] if header else None, bound="2.0, 3.0 or 3.1")
    depth = operators = 0

    def refuse(what: str, value: int, bound: int, at: int) -> QasmError:
        return QasmError(what, line=bare.count("\n", 0, at) + 1, value=value, bound=bound, hint="write it in smaller steps")

    def step(match: re.Match[str]) -> str:
        nonlocal depth, operators
        token = match[0]
        if token[0] in "([{":
            depth += 1
            if depth > MAX_DEPTH:
                raise refuse("brackets are nested too deeply", depth, MAX_DEPTH, match.start())
        elif token[0] in ")]}":
            depth = max(0, depth - 1)
        if token[0] in ";{}":
            operators = 0
        elif token[0] in "-+*/%^&|<>!~@":
            operators += 1
            if operators > MAX_OPERATORS:
                raise refuse("a statement has too many operators", operators, MAX_OPERATORS, match.start())
            return "**" if version == 2 and token == "^" else token
        if version == 2 and token == "opaque":
            raise QasmError(
                "an opaque gate has no matrix", line=bare.count("\n", 0, match.start()) + 1, hint="define it with `gate`"
            )
        return "_" + token if version == 2 and token in _NEW_KEYWORDS else token

    return _TOKEN.sub(step, bare), version
