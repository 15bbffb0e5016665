"""Expressions of OpenQASM: constants, and what a circuit knows beyond them, linear expressions of parameters."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qpeft.circuits.ir import PRODUCT_HINT, Angle
from qpeft.errors import CircuitError, QasmError


@dataclass(frozen=True)
class LinearAngle:
    """`sum_k scale_k * params[index_k] + shift` in radians: `(index, scale)` terms with different indices, at least one."""

    terms: tuple[tuple[int, float], ...]
    shift: float = 0.0

    def angles(self) -> list[Angle]:
        """Angles of gates in a row that have together this one: a rotation by a sum is a product of rotations."""
        (first, *others) = self.terms
        return [Angle(first[0], first[1], self.shift), *(Angle(index, scale) for index, scale in others)]


Value = int | float | LinearAngle
Vector = tuple[LinearAngle, ...]  # an `input array`

MAX_INT = 2**63
STEPS_PER_OP = 10
CONSTANTS: dict[str, float] = {
    **dict.fromkeys(("pi", "π"), math.pi),
    **dict.fromkeys(("tau", "τ"), math.tau),
    **dict.fromkeys(("euler", "ℇ"), math.e),
}
FUNCTIONS: dict[str, Callable[..., float]] = {
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "arcsin": math.asin,
    "arccos": math.acos,
    "arctan": math.atan,
    "exp": math.exp,
    "ln": math.log,
    "log": math.log,
    "sqrt": math.sqrt,
    "floor": math.floor,
    "ceiling": math.ceil,
}
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


class StepLimit:
    """Bounds work to `STEPS_PER_OP * max_ops` steps: statements, gate calls, loop rounds, operators in expressions."""

    def __init__(self, max_ops: int) -> None:
        self.max_ops, self.left = max_ops, STEPS_PER_OP * max_ops

    def spend(self, steps: int = 1) -> None:
        """Count `steps` more steps.

        Raises:
            QasmError: more than `STEPS_PER_OP * max_ops` steps in all.
        """
        self.left -= steps
        if self.left < 0:
            raise QasmError("the program takes too many steps", bound=f"max_ops={self.max_ops}", hint="raise max_ops")


class Evaluator:
    """Evaluates expressions. Raises QasmError without a line; whoever runs the statement knows it.

    In OpenQASM 3 a quotient of integers is an integer, so one that does not come out even is refused rather than rounded;
    in OpenQASM 2 all numbers are real.
    """

    def __init__(self, version: int, budget: StepLimit) -> None:
        self.version, self.budget = version, budget

    def __call__(self, node: Any, names: Mapping[str, object]) -> Value:
        kind = type(node).__name__
        if kind in ("IntegerLiteral", "FloatLiteral"):
            return _checked(node.value)
        if kind == "Identifier":
            return self._named(node.name, names)
        self.budget.spend()
        try:
            if kind == "UnaryExpression" and node.op.name == "-":
                value = self(node.expression, names)
                return _linear("*", value, -1) if isinstance(value, LinearAngle) else -value
            if kind == "BinaryExpression":
                return self._binary(node.op.name, self(node.lhs, names), self(node.rhs, names))
            if kind == "FunctionCall":
                return self._function(node.name.name, [self(argument, names) for argument in node.arguments])
            if kind == "IndexExpression":
                return self._element(node, names)
            if kind == "Cast" and type(node.type).__name__ in ("FloatType", "AngleType"):
                value = self(node.argument, names)
                return value if isinstance(value, LinearAngle) else float(value)
        except (ArithmeticError, ValueError) as error:
            if isinstance(error, CircuitError):
                raise
            raise QasmError(f"an expression has no finite real value ({error})") from error
        raise QasmError(f"not an expression of numbers: {kind}", bound="numbers, constants, + - * / **, sin, cos, ...")

    def whole(self, node: Any, names: Mapping[str, object]) -> int:
        """A constant integer.

        Args:
            node: an expression of the syntax tree.
            names: values of the names that it may use.

        Raises:
            QasmError: the value is no integer.
        """
        value = self(node, names)
        if not isinstance(value, int):
            raise QasmError("a size, index or count must be a constant integer", value=value)
        return value

    def _named(self, name: str, names: Mapping[str, object]) -> Value:
        value = names.get(name, CONSTANTS.get(name))
        if value is None:
            raise QasmError("unknown name in an expression", value=name, hint="declare it as `const` or `input`")
        if isinstance(value, tuple) and value and isinstance(value[0], LinearAngle):
            raise QasmError("an array is not a number", value=name, hint=f"name one of its elements: {name}[0]")
        if not isinstance(value, (int, float, LinearAngle)):
            raise QasmError("not a number", value=name, hint="angles and indices cannot depend on bits or qubits")
        return value

    def _element(self, node: Any, names: Mapping[str, object]) -> Value:
        """`x[k]` of an `input array`."""
        array = names.get(getattr(node.collection, "name", ""))
        if not isinstance(array, tuple) or not array or not isinstance(array[0], LinearAngle):
            raise QasmError("only an `input array` has elements that are numbers")
        index = self.whole(node.index[0], names) if isinstance(node.index, list) and len(node.index) == 1 else len(array)
        if not -len(array) <= index < len(array):
            raise QasmError("no such element of the array", value=index, bound=f"0..{len(array) - 1}")
        element: LinearAngle = array[index]
        return element

    def _binary(self, op: str, a: Value, b: Value) -> Value:
        if isinstance(a, LinearAngle) or isinstance(b, LinearAngle):
            return _linear(op, a, b)
        if op in _ARITHMETIC:
            return _checked(_ARITHMETIC[op](a, b))
        if op == "/":
            if self.version == 3 and isinstance(a, int) and isinstance(b, int):
                if a % b:
                    raise QasmError("integer division drops the remainder", value=f"{a}/{b}", hint=f"write {a}.0/{b}")
                return a // b
            return _checked(a / b)
        if op == "**":
            if isinstance(a, int) and isinstance(b, int) and 0 <= b <= 63:
                return _checked(a**b)
            return _checked(math.pow(a, b))
        raise QasmError("unknown operator", value=op, bound="+ - * / **", hint="in OpenQASM 3 a power is written **")

    def _function(self, name: str, arguments: list[Value]) -> Value:
        if name not in FUNCTIONS:
            raise QasmError("unknown function", value=name, bound=", ".join(FUNCTIONS))
        if any(isinstance(argument, LinearAngle) for argument in arguments):
            raise _not_linear(name)
        if len(arguments) != 1:
            raise QasmError(f"function {name} takes one argument", value=len(arguments))
        return _checked(FUNCTIONS[name](arguments[0]))


def _checked(value: int | float) -> int | float:
    if isinstance(value, int) and abs(value) > MAX_INT:
        raise QasmError("an integer is out of range", bound="-2**63..2**63", hint="write it as a real number")
    if not math.isfinite(value):
        raise QasmError("a number is not finite", value=value)
    return value


def _linear(op: str, a: Value, b: Value) -> Value:
    """`a op b` where at least one holds a parameter; the result must be linear in the parameters."""
    if op == "-":
        op, b = "+", _linear("*", b, -1) if isinstance(b, LinearAngle) else -b
    if isinstance(b, LinearAngle) and not isinstance(a, LinearAngle) and op in "+*":
        a, b = b, a
    if isinstance(a, LinearAngle):
        if op == "+" and isinstance(b, LinearAngle):
            scales = dict(a.terms)
            for index, scale in b.terms:
                scales[index] = scales.get(index, 0.0) + scale
            return LinearAngle(tuple(scales.items()), a.shift + b.shift)
        if op == "+":
            return LinearAngle(a.terms, a.shift + b)  # type: ignore[operator]
        if op == "*" and not isinstance(b, LinearAngle):
            return LinearAngle(tuple((index, scale * b) for index, scale in a.terms), a.shift * b)
        if op == "/" and not isinstance(b, LinearAngle):
            return LinearAngle(tuple((index, scale / b) for index, scale in a.terms), a.shift / b)
    raise _not_linear(op)


def _not_linear(what: str) -> QasmError:
    return QasmError("an angle must be a sum of scale * parameter and a constant", value=what, hint=PRODUCT_HINT)
