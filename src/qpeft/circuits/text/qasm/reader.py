"""OpenQASM text -> Circuit: runs the program's declarations, loops and gate calls, and refuses what a fixed circuit is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qpeft.circuits.ir import Circuit, Op
from qpeft.circuits.text.names import order_parameters
from qpeft.circuits.text.qasm.gates import Expander, GateDefinition, define, find, library
from qpeft.circuits.text.qasm.syntax_tree import located, parse
from qpeft.circuits.text.qasm.values import Evaluator, LinearAngle, StepLimit, Vector
from qpeft.errors import CircuitError, QasmError

Qubits = tuple[int, ...]

_REFUSED = {
    "BranchingStatement": "`if` depends on measured values",
    "SwitchStatement": "`switch` depends on measured values",
    "WhileLoop": "`while` depends on measured values",
    "QuantumReset": "`reset` is not unitary",
    "ClassicalAssignment": "classical variables do not change in a fixed circuit",
    "SubroutineDefinition": "subroutines are not supported",
    "ExternDeclaration": "external functions are not supported",
    "DelayInstruction": "`delay` is timing, not a gate",
    "Box": "`box` is timing, not a gate",
    "CalibrationDefinition": "pulse calibrations are not supported",
    "CalibrationStatement": "pulse calibrations are not supported",
    "CalibrationGrammarDeclaration": "pulse calibrations are not supported",
}


def from_qasm(
    text: str | bytes,
    *,
    inputs: Sequence[str] | None = None,
    max_bytes: int = 2**18,
    max_ops: int = 20_000,
    max_qubits: int = 1024,
) -> Circuit:
    """Read OpenQASM 2 or 3 (no version line: 3).

    Registers are laid end to end in the order of their declarations: the first one's qubit 0 is qubit 0. `input` variables of
    type float, angle or array of these become parameters: first the circuit's inputs, then its angles, both in the order of their
    declarations and, within an array or numbered names, in the order of the numbers (`x_2` before `x_10`). An angle may be a sum
    of `scale * parameter` and a constant; a gate with several parameters becomes one gate for each. Read are: constants and
    arithmetic, `let`, `gate` definitions, `inv @`, `pow(integer) @`, `ctrl @` and `negctrl @` where the gate table has an exact
    form, `for` over integers; U, u1, u2, u3 and the like become rz, ry, p. Barriers, final measurements, pragmas, annotations
    and the bit widths of float and angle types are ignored; global phases are dropped. A gate defined as our own table defines
    it is read as that gate. Include files are known by name and never opened.

    Args:
        text: the program; bytes are UTF-8.
        inputs: names of the `input` variables that are data. `x` stands for an array `x` and for `x_0, x_1, ..` too; all others
            are angles. Default: `in` is data and `theta` angles, as `to_qasm3` and Qiskit's exporter write ParameterVectors of
            these names; another name is then an error.
        max_bytes: longest text in UTF-8 bytes (default 256 KiB; the parser reads 20 to 100 kB a second).
        max_ops: most gates in the result; the steps to reach them (calls, loop rounds, terms of expressions) are bounded too.
        max_qubits: most qubits declared.

    Raises:
        QasmError: for any text that is not such a program, with the line where it is known.
        MissingDependencyError: without the package `openqasm3[parser]`.
    """
    program, version = parse(text, max_bytes=max_bytes)
    reader = _Reader(program, version, StepLimit(max_ops), max_ops, max_qubits, inputs)
    try:
        for statement in program.statements:
            reader.run(statement)
    except RecursionError as error:
        raise QasmError("the program is nested too deeply", hint="write it in smaller steps") from error
    if not reader.n_qubits:
        raise QasmError("the program declares no qubits", hint="add `qubit[n] q;` (OpenQASM 3) or `qreg q[n];` (OpenQASM 2)")
    return Circuit(reader.n_qubits, tuple(reader.ops), reader.n_inputs, len(reader.parameters))


class _Bits:
    """A classical register: known by name, never read."""


class _Reader:
    """One program being read. `names` maps every visible name to a number, a parameter or array of them, qubits or `_Bits`."""

    def __init__(
        self, program: Any, version: int, budget: StepLimit, max_ops: int, max_qubits: int, inputs: Sequence[str] | None
    ) -> None:
        self.version, self.budget, self.max_ops, self.max_qubits = version, budget, max_ops, max_qubits
        self.names: dict[str, object] = {}
        self.constants: dict[str, object] = {}
        self.shadowed: dict[str, object] = {}  # names of the scope being read, with what they hide
        self.is_global = True
        self.defined: set[str] = set()
        self.builtin = {name: library()[name] for name in (("U", "CX") if version == 2 else ("U",))}
        self.gates: dict[str, GateDefinition] = dict(self.builtin)
        self.evaluate = Evaluator(version, budget)
        self.expander = Expander(self.evaluate, budget, self.constants)
        self.n_qubits = 0
        self.ops: list[Op] = []
        self.measured: set[int] = set()
        self.sizes: dict[str, int | None] = {}  # of every parameter, in the order of declaration: its array's, None for a number
        for node in program.statements:
            if _is_parameter(node):
                with located(node):
                    self.sizes[node.identifier.name] = self._array_size(node.type)
        elements = [name if size is None else f"{name}[{k}]" for name, size in self.sizes.items() for k in range(size or 1)]
        try:
            data, trained = order_parameters(elements, inputs)
        except CircuitError as error:
            raise QasmError(error.what, value=error.value, bound=error.bound, hint=error.hint) from error
        self.n_inputs = len(data)
        self.parameters = {name: k for k, name in enumerate([*data, *trained])}

    def _array_size(self, kind: Any) -> int | None:
        if type(kind).__name__ != "ArrayType":
            return None
        size = self.evaluate.whole(kind.dimensions[0], {}) if len(kind.dimensions) == 1 else 0
        if not 1 <= size <= self.max_ops:
            raise QasmError("an input array has one dimension", value=size, bound=f"1..{self.max_ops} elements")
        return size

    def run(self, node: Any) -> None:
        """One statement."""
        kind = type(node).__name__
        if kind == "Pragma":
            return
        with located(node):
            self.budget.spend()
            handler: Callable[[Any], None] | None = getattr(self, f"_{kind}", None)
            if handler is None:
                reason = _REFUSED.get(kind, f"{kind} is not supported")
                raise QasmError(reason, hint="write a circuit of gates with final measurements only")
            handler(node)

    # Names and scopes

    def _declare(self, name: str, value: object) -> None:
        if name in self.shadowed:
            raise QasmError("declared twice", value=name)
        self.shadowed[name] = self.names.get(name)
        self.names[name] = value

    @contextmanager
    def _scope(self) -> Iterator[None]:
        outer, was_global = self.shadowed, self.is_global
        self.shadowed, self.is_global = {}, False
        try:
            yield
        finally:
            for name, value in self.shadowed.items():
                if value is None:
                    del self.names[name]
                else:
                    self.names[name] = value
            self.shadowed, self.is_global = outer, was_global

    # Declarations

    def _Include(self, node: Any) -> None:
        if node.filename not in ("stdgates.inc", "qelib1.inc"):
            raise QasmError("files are not read", value=node.filename, bound="stdgates.inc, qelib1.inc", hint="paste the file in")
        self.gates = {**library(), **self.gates}

    def _QubitDeclaration(self, node: Any) -> None:
        size = 1 if node.size is None else self.evaluate.whole(node.size, self.names)
        if size < 1:
            raise QasmError("a register needs at least one qubit", value=size)
        if self.n_qubits + size > self.max_qubits:
            raise QasmError("too many qubits", value=self.n_qubits + size, bound=self.max_qubits, hint="raise max_qubits")
        self._declare(node.qubit.name, tuple(range(self.n_qubits, self.n_qubits + size)))
        self.n_qubits += size

    def _AliasStatement(self, node: Any) -> None:
        self._declare(node.target.name, self._qubits(node.value))

    def _ConstantDeclaration(self, node: Any) -> None:
        kind = type(node.type).__name__
        if kind in ("IntType", "UintType"):
            value: float = self.evaluate.whole(node.init_expression, self.names)
            if kind == "UintType" and value < 0:
                raise QasmError("an unsigned constant is negative", value=value)
        elif kind in ("FloatType", "AngleType"):
            number = self.evaluate(node.init_expression, self.names)
            if isinstance(number, LinearAngle):
                raise QasmError("a constant cannot depend on a parameter", value=node.identifier.name)
            value = float(number)
        else:
            raise QasmError("a constant must be a number", value=kind, bound="int, uint, float, angle")
        self._declare(node.identifier.name, value)
        if self.is_global:
            self.constants[node.identifier.name] = value

    def _IODeclaration(self, node: Any) -> None:
        name = node.identifier.name
        if node.io_identifier.name == "output" and type(node.type).__name__ == "BitType":
            self._declare(name, _Bits())
        elif _is_parameter(node) and name in self.sizes:
            size = self.sizes[name]
            own = [name] if size is None else [f"{name}[{k}]" for k in range(size)]
            values: Vector = tuple(LinearAngle(((self.parameters[element], 1.0),)) for element in own)
            self._declare(name, values[0] if size is None else values)
        else:
            bound = "input float, input angle, input array[float, n]"
            raise QasmError("parameters are numbers", value=f"{node.io_identifier.name} {name}", bound=bound)

    def _ClassicalDeclaration(self, node: Any) -> None:
        if type(node.type).__name__ != "BitType":
            raise QasmError("classical variables are not supported", value=node.identifier.name, hint="declare it as `const`")
        measurement = node.init_expression
        if measurement is not None and type(measurement).__name__ != "QuantumMeasurement":
            raise QasmError("bits only receive measurements", value=node.identifier.name)
        if measurement is not None:
            self.measured.update(self._qubits(measurement.qubit))
        self._declare(node.identifier.name, _Bits())

    def _QuantumGateDefinition(self, node: Any) -> None:
        name = node.name.name
        if name in self.defined or name in self.builtin:
            raise QasmError("gate defined twice", value=name)
        self.defined.add(name)
        self.gates[name] = self.expander.native(define(node, self.gates))

    # What happens to qubits

    def _QuantumGate(self, node: Any) -> None:
        gate = find(node, self.gates)
        operands = [self._qubits(operand) for operand in node.qubits]
        width = max(map(len, operands), default=1)
        if any(len(operand) not in (1, width) for operand in operands):
            raise QasmError("registers in one gate call must be of one size", value=[len(operand) for operand in operands])
        for k in range(width):
            qubits = tuple(operand[k % len(operand)] for operand in operands)
            if not self.measured.isdisjoint(qubits):
                raise QasmError("a gate after the measurement of its qubit", value=qubits, hint="measure at the end only")
            for name, places, angle in self.expander.call(node, gate, self.names, qubits):
                if name != "gphase":
                    self.ops.append(Op(name, places, angle))
            if len(self.ops) > self.max_ops:
                raise QasmError("too many gates", bound=f"max_ops={self.max_ops}", hint="raise max_ops")

    _QuantumPhase = _QuantumGate

    def _QuantumMeasurementStatement(self, node: Any) -> None:
        self.measured.update(self._qubits(node.measure.qubit))
        target = getattr(node.target, "name", None)
        name = getattr(target, "name", target)
        if name is not None and not isinstance(self.names.get(name), _Bits):
            raise QasmError("a measurement goes into declared bits", value=name, hint="declare `bit[n] c;` or `creg c[n];`")

    def _QuantumBarrier(self, node: Any) -> None:
        """Barriers order, and the order of a circuit's gates is fixed already."""

    def _CompoundStatement(self, node: Any) -> None:
        with self._scope():
            for statement in node.statements:
                self.run(statement)

    def _ForInLoop(self, node: Any) -> None:
        if type(node.type).__name__ not in ("IntType", "UintType"):
            raise QasmError("loops run over integers", bound="for int i in [start:step:end] or {a, b, c}")
        for value in self._integers(node.set_declaration):
            self.budget.spend()
            with self._scope():
                self._declare(node.identifier.name, value)
                for statement in node.block:
                    self.run(statement)

    # Qubit operands

    def _qubits(self, node: Any) -> Qubits:
        kind = type(node).__name__
        if kind == "Identifier":
            value = self.names.get(node.name)
            if isinstance(value, tuple) and all(isinstance(qubit, int) for qubit in value):
                return value
            hint = "declare `qubit[n] q;` and use q[k]" if node.name.startswith("$") else "declare it with `qubit` or `qreg`"
            raise QasmError("no such qubits", value=node.name, hint=hint)
        if kind == "IndexedIdentifier":
            chosen = self._qubits(node.name)
            for index in node.indices:
                chosen = self._select(chosen, index)
            return chosen
        if kind == "IndexExpression":
            return self._select(self._qubits(node.collection), node.index)
        if kind == "Concatenation":
            return self._distinct(self._qubits(node.lhs) + self._qubits(node.rhs))
        raise QasmError("not a qubit or a register", value=kind)

    def _select(self, register: Qubits, index: Any) -> Qubits:
        if isinstance(index, list):
            if len(index) != 1:
                raise QasmError("a register has one index", value=len(index))
            index = index[0]
        many = type(index).__name__ in ("DiscreteSet", "RangeDefinition")
        places = self._integers(index, len(register)) if many else [self.evaluate.whole(index, self.names)]
        size = len(register)
        probes = (places[0], places[-1]) if isinstance(places, range) and places else places  # a range may be huge
        if not places or any(not -size <= place < size for place in probes):
            raise QasmError("no such qubit in the register", value=[*probes][:8], bound=f"0..{size - 1}")
        return self._distinct(tuple(register[place] for place in places))

    def _distinct(self, qubits: Qubits) -> Qubits:
        self.budget.spend(len(qubits) - 1)
        if len(set(qubits)) != len(qubits):
            raise QasmError("a selection names a qubit twice", value=qubits[:8])
        return qubits

    def _integers(self, node: Any, size: int | None = None) -> Sequence[int]:
        """The integers of `{a, b, c}` or `[start:step:end]`, both ends included; open ends are those of a register of `size`."""
        kind = type(node).__name__
        if kind == "DiscreteSet":
            return [self.evaluate.whole(value, self.names) for value in node.values]
        if kind != "RangeDefinition" or (size is None and (node.start is None or node.end is None)):
            raise QasmError("not a range of constant integers", bound="[start:end], [start:step:end] or {a, b, c}")
        step = 1 if node.step is None else self.evaluate.whole(node.step, self.names)
        if not step:
            raise QasmError("a range has step 0")
        ends = (0, (size or 0) - 1) if step > 0 else ((size or 0) - 1, 0)
        start, end = (
            ends[k] if value is None else self.evaluate.whole(value, self.names) for k, value in enumerate((node.start, node.end))
        )
        if size is not None:
            start, end = (value + size if value < 0 else value for value in (start, end))
        return range(start, end + (1 if step > 0 else -1), step)


def _is_parameter(node: Any) -> bool:
    if type(node).__name__ != "IODeclaration" or node.io_identifier.name != "input":
        return False
    kind = node.type.base_type if type(node.type).__name__ == "ArrayType" else node.type
    return type(kind).__name__ in ("FloatType", "AngleType")
