"""OpenQASM texts that are refused, with the line and the reason, and texts made to do harm."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("openqasm3")

from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.circuits.text.qasm import from_qasm, to_qasm3
from qpeft.errors import CircuitError, MissingDependencyError, QasmError
from tests import strategies

V2 = 'OPENQASM 2.0;\ninclude "qelib1.inc";\nqreg q[3];\n'
V3 = 'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[3] q;\n'


# Refusals


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (V3 + "h q[0]\nx q[1];", 5, "syntax error"),
        (V3 + "bit c;\nc = measure q[0];\nh q[0];", 6, "after the measurement"),
        (V3 + "\nreset q;", 5, "reset"),
        (V3 + "bit c;\nif (c == 1) x q[0];", 5, "if.*measured"),
        (V3 + "while (true) { x q[0]; }", 4, "while"),
        (V3 + "int i = 3;", 4, "const"),
        (V3 + "const int i = 3; i = 4;", 4, "do not change"),
        (V3 + "def f(qubit a) { x a; }", 4, "subroutines"),
        (V3 + "delay[10ns] q[0];", 4, "timing"),
        (V3 + "box { x q[0]; }", 4, "timing"),
        (V3 + "x[10ns] q[0];", 4, "duration"),
        (V3 + "foo q[0];", 4, "unknown gate.*include"),
        ("OPENQASM 3.0;\nqubit[3] q;\nh q[0];", 3, "unknown gate.*include"),
        ('include "other.inc";', 1, "not read.*stdgates.inc"),
        ('include "/etc/passwd";', 1, "not read"),
        ('OPENQASM 4.0;\nqubit q;', 0, "version"),
        (V3 + "rx q[0];", 4, "0 parameter"),
        (V3 + "x(1.0) q[0];", 4, "1 parameter"),
        (V3 + "cx q[0];", 4, "1 qubit"),
        (V3 + "cx q[0], q[0];", 4, "twice"),
        (V3 + "x q[3];", 4, "no such qubit"),
        (V3 + "x q[-4];", 4, "no such qubit"),
        (V3 + "x q[0.5];", 4, "constant integer"),
        (V3 + "x q[0:3];", 4, "no such qubit"),
        (V3 + "x r;", 4, "no such qubits.*declare"),
        (V3 + "x $0;", 4, "no such qubits.*use q"),
        (V3 + "qubit[2] r;\ncx q, r;", 5, "one size"),
        (V3 + "qubit q;", 4, "declared twice"),
        (V3 + "qubit[0] r;", 4, "at least one"),
        (V3 + "let a = q ++ q[0];", 4, "twice"),
        (V3 + "rx(1/2) q[0];", 4, "integer division.*1.0/2"),
        (V3 + "rx(2^2) q[0];", 4, "power is written"),
        (V3 + "rx(foo(2)) q[0];", 4, "unknown function"),
        (V3 + "rx(a) q[0];", 4, "unknown name"),
        (V3 + "rx(q) q[0];", 4, "not a number"),
        (V3 + "bit c; rx(c) q[0];", 4, "not a number"),
        (V3 + "rx(1.0/0) q[0];", 4, "finite"),
        (V3 + "rx(sqrt(-1)) q[0];", 4, "finite"),
        (V3 + "rx(exp(1000)) q[0];", 4, "finite"),
        (V3 + "rx(true) q[0];", 4, "not an expression"),
        (V3 + "pow(0.5) @ x q[0];", 4, "pow @ takes a constant integer"),
        (V3 + "ctrl(0) @ x q[0];", 4, "at least one control"),
        (V3 + "ctrl @ rxx(0.3) q[0], q[1], q[2];", 4, "no exact form.*rxx"),
        (V3 + "ctrl @ x q[0];", 4, "1 qubit"),
        (V3 + "gate a x { b x; }\ngate b x { h x; }", 4, "unknown gate.*'b'"),
        (V3 + "gate a x {\nh x;\na x; }", 6, "unknown gate.*'a'"),
        (V3 + "gate a x { h q; }", 4, "own qubits"),
        (V3 + "gate a x, x { h x; }", 4, "a name twice"),
        (V3 + "gate a x { h x; }\ngate a x { x x; }", 5, "defined twice"),
        (V3 + "gate U(a, b, c) x { h x; }", 4, "defined twice"),
        (V3 + "gate a x { for int i in [0:1] { h x; } }", 4, "gate calls only|syntax"),
        (V3 + "input int n;", 4, "input float"),
        (V3 + "input bit n;", 4, "input float"),
        (V3 + "input float theta; const float c = 2*theta;", 4, "cannot depend"),
        (V3 + "for float i in [0:1] { h q; }", 4, "loops run over integers"),
        (V3 + "for int i in [0:0:1] { h q; }", 4, "step 0"),
        (V3 + "for int i in [0:] { h q; }", 4, "constant integers"),
        (V3 + "for int i in {0} { h q; }\nrx(i) q[0];", 5, "unknown name"),
        (V3 + "for int i in {0} {\nreset q; }", 5, "reset"),
        (V3 + "c = measure q;", 4, "declared bits"),
        (V2 + "opaque g a;", 4, "opaque"),
        (V2 + "if (c == 1) x q[0];", 4, "measured"),
        (V2 + "reset q;", 4, "reset"),
        (V2 + "ctrl @ x q[0], q[1];", 4, "syntax"),
        (V2 + "input float t;", 4, "syntax"),
        ('OPENQASM 3.0;', 0, "no qubits"),
        ("", 0, "empty"),
        (b"OPENQASM 3.0;\nqubit \xff q;", 2, "UTF-8"),
        ("qubit q;\n\ud800", 2, "UTF-8"),
        (None, 0, "text"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_fixed_circuit_is_refused_with_its_line(text: Any, line: int, words: str) -> None:
    with pytest.raises(QasmError, match=words) as caught:
        from_qasm(text)
    assert caught.value.line == line
    assert isinstance(caught.value, CircuitError)


def test_limits_are_settings() -> None:
    text = V3 + "x q;"
    assert len(from_qasm(text, max_qubits=3, max_ops=3, max_bytes=len(text)).ops) == 3
    with pytest.raises(QasmError, match=r"line 3: too many qubits.*got 3.*allowed: 2.*raise max_qubits"):
        from_qasm(text, max_qubits=2)
    with pytest.raises(QasmError, match=r"line 4: too many gates.*max_ops=2"):
        from_qasm(text, max_ops=2)
    with pytest.raises(QasmError, match=f"too long.*allowed: {len(text) - 1}"):
        from_qasm(text, max_bytes=len(text) - 1)
    circuit = Circuit(2, (Op("crz", (0, 1), Angle(0, -0.5, -0.25)),) * 50, 0, 1)
    assert from_qasm(to_qasm3(circuit), max_ops=50) == circuit  # the budget of steps does not get in the way


def test_a_missing_parser_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openqasm3", None)
    monkeypatch.setitem(sys.modules, "openqasm3.parser", None)
    with pytest.raises(MissingDependencyError, match=r"qpeft\[qasm\]"):
        from_qasm(V3)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    for text in (V3 + "`", V3 + "a a", V3 + '"', V3 + "x q[0", "a" * 1000):
        with pytest.raises(QasmError):
            from_qasm(text)
    assert capfd.readouterr() == ("", "")


# Texts made to do harm


def doubling(body: str) -> str:
    gates = "".join(f"gate g{k} a {{ g{k - 1} a; g{k - 1} a; }}\n" for k in range(1, 60))
    return f"gate g0 a {{ {body} }}\n{gates}g59 q[0];"


HUGE = 10**12
BOMBS = {
    "doubling gates": V3 + doubling("h a;"),
    "doubling nothing": V3 + doubling(""),
    "doubling inverses": V3 + doubling("h a;").replace("{ g", "{ inv @ g"),
    "doubling in version 2": V2 + doubling("h a;"),
    "doubling under our name": V3 + doubling("h a;") + "gate sxdg a { g59 a; }\nsxdg q[0];",
    "a long chain of gates": V3 + "gate g0 a { h a; }\n" + "".join(f"gate g{k} a {{ g{k - 1} a; }}\n" for k in range(1, 800))
    + "g799 q[0];",
    "power": V3 + f"pow({HUGE}) @ h q[0];",
    "power of nothing": V3 + f"gate g a {{ }}\npow({2**63}) @ g q[0]; reset q;",
    "powers of powers": V3 + "pow(1000) @ " * 20 + "h q[0];",
    "many controls": V3 + f"ctrl({HUGE}) @ x q[0];",
    "modifiers": V3 + "inv @ " * 20000 + "x q[0];",
    "endless loop": V3 + f"for int i in [0:{HUGE}] {{ }}",
    "endless gates": V3 + f"for int i in [0:{HUGE}] {{ x q[0]; }}",
    "widest loop": V3 + f"for int i in [{-(2**63)}:{2**63 - 1}] {{ }}",
    "nested loops": V3 + "for int i in [0:1000] " * 20 + "x q[0];",
    "loop of sums": V3 + f"for int i in [0:{HUGE}] {{ const int a = {'1+' * 200}1; }}",
    "loop of barriers": V3 + f"for int i in [0:{HUGE}] {{ {'barrier q;' * 200} }}",
    "loop of selections": V3 + f"qubit[1000] r;\nfor int i in [0:{HUGE}] {{ let a = r[0:999]; }}",
    "register": V3 + f"qubit[{HUGE}] r;",
    "register in hexadecimal": V3 + f"qubit[0x{'f' * 5000}] r;",
    "register in digits": V3 + f"qubit[{'9' * 5000}] r;",
    "range": V3 + f"x q[0:1:{HUGE}];",
    "widest range": V3 + f"x q[{-(2**63)}:{2**63 - 1}];",
    "doubling alias": V3 + "let a0 = q ++ q;\n" + "".join(f"let a{k} = a{k - 1} ++ a{k - 1};" for k in range(1, 60)),
    "integer powers": V3 + "rx(9**9**9**9**9) q[0];",
    "huge power": V3 + "qubit[9223372036854775807**63] r;",
    "parentheses": V3 + f"rx({'(' * 60000}1{')' * 60000}) q[0];",
    "open parentheses": V3 + "(" * 200_000,
    "signs": V3 + f"rx({'-' * 100_000}1) q[0];",
    "sum": V3 + f"rx({'1+' * 100_000}1) q[0];",
    "functions": V3 + f"rx({'sin(' * 30000}1{')' * 30000}) q[0];",
    "indices": V3 + f"x q{'[0' * 50000}{']' * 50000};",
    "braces": V3 + "{" * 100_000 + "}" * 100_000,
    "ifs": V3 + "if (true) " * 20000 + "x q[0];",
    "elses": V3 + "if (true) x q; else " * 5000 + "x q;",
    "fors": V3 + "for int i in [0:9] " * 9000 + "x q[0];",
    "comment marks": V3 + "/*" * 100_000,
    "quotes": V3 + '"' * 200_000,
    "one name": V3 + "a" * 200_000 + " q;",
    "header": f"OPENQASM {'9' * 200_000};",
    "zero bytes": V3 + "\0" * 100_000,
    "strange digits": V3 + "x q[\u0661];",
    "overflow": V3 + "rx(1e308*10) q[0];",
    "overflowing scale": V3 + "input float theta; rx(1e300*theta*1e300) q[0];",
    "long text": "x" * 10**7,
    "UTF-16": V3.encode("utf-16"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_hostile_texts_are_refused_quickly(name: str) -> None:
    from_qasm(V3)  # the first call loads the parser
    started = time.process_time()
    with pytest.raises(QasmError):
        from_qasm(BOMBS[name])
    assert time.process_time() - started < 2.0


WORDS = r"""OPENQASM 2.0 3.0 ; ; ; { } ( ) [ ] , : -> @ = + - * / ** ^ ++ 0 1 2 0.5 1e9 pi q r c t a x h rx cx U gphase qubit
qreg bit creg gate inv ctrl pow for in int const float input angle let if measure barrier reset include $0 " // /* \ é"""
FRAGMENTS = st.sampled_from([*WORDS.split(), "\n", "\0"])


def read(text: str) -> Circuit | None:
    """The circuit, or None where the text is refused with a QasmError; anything else is a fault."""
    try:
        return from_qasm(text)
    except QasmError:
        return None


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["", V2, V3]), st.lists(FRAGMENTS, max_size=25), st.text(max_size=10))
def test_any_text_gives_a_circuit_or_a_qasm_error(start: str, words: list[str], tail: str) -> None:
    circuit = read(start + " ".join(words) + tail)
    assert circuit is None or from_qasm(to_qasm3(circuit)) == circuit


@settings(deadline=None, max_examples=60)
@given(strategies.circuits(max_ops=4), st.data())
def test_damaged_texts_give_a_circuit_or_a_qasm_error(circuit: Circuit, data: st.DataObject) -> None:
    text = to_qasm3(circuit)
    place = data.draw(st.integers(0, len(text)))
    damaged = text[:place] + data.draw(st.text(max_size=2)) + text[place + data.draw(st.integers(0, 5)) :]
    again = read(damaged)
    assert again is None or from_qasm(to_qasm3(again)) == again
