"""The Heisenberg picture: observables carried back through a circuit to where the data enters, once for all samples.

Where every input enters before its qubit meets another, a state is a product of Bloch vectors `T_q (1, cos t_q, sin t_q)`, with
`t_q` an upload's angle and `T_q (4, 3)` the gates after it. An observable is a vector over the 4^n Pauli words; a one-qubit gate
turns it by a real 4 x 4 matrix, a Clifford gate on two qubits permutes words and changes signs. Carried back through the circuit
and the `T_q`, it is the coefficients of a trigonometric polynomial (polynomial.py) in the t_q: samples take part in that alone.

With the observables `O` as a matrix whose rows or columns are words, one qubit's 4 x 4 matrix `M` is one product: `x^T M` takes
the first axis of words from the front and leaves it at the end, so n products turn all qubits and exchange rows and columns.
All is real. The gradient is written by hand, since autograd's own cost would be several times that of the arithmetic.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qpeft.circuits.ir import PAULI
from qpeft.circuits.simulator.torch_engine.blocks import Values, factors
from qpeft.circuits.simulator.torch_engine.compiler import DENSE_QUBITS, FloatArray, Gate, IntArray, Plan, Program
from qpeft.circuits.surrogate import polynomial

SMALL = 1 << 12


@dataclass(frozen=True)
class Turns:
    """Matrices `(depth, runs, 4, 4)` of trainable gates, multiplied along depth; all fixed gates are inside their parts."""

    values: Values
    parts: Tensor  # (3, depth, runs, 4, 4)

    @classmethod
    def of(cls, runs: Sequence[Sequence[Gate]], first: int, like: Tensor) -> Turns:
        lists = [factors([lifted(gate) for gate in run], 4) for run in runs]
        depth = max(len(own) for own in lists)
        still = (np.array([np.eye(4), 0 * np.eye(4), 0 * np.eye(4)]), None)
        padded = [[*own, *[still] * (depth - len(own))] for own in lists]
        parts = np.array([[padded[r][d][0].real for r in range(len(runs))] for d in range(depth)])  # (depth, runs, 3, 4, 4)
        values = Values.of([padded[r][d][1] for d in range(depth) for r in range(len(runs))], first, like, turned=True)
        return cls(values, like.new_tensor(np.ascontiguousarray(parts.transpose(2, 0, 1, 3, 4))))

    def forward(self, angles: Tensor) -> tuple[list[Tensor], tuple[Tensor, Tensor, Tensor]]:
        """Products of the first 1, 2, .. factors, each `(runs, 4, 4)`, and what `backward` needs."""
        turned = self.values(angles).view(*self.parts.shape[1:3], 1, 1)
        c, s = turned.cos(), turned.sin()
        matrices = torch.addcmul(torch.addcmul(self.parts[0], c, self.parts[1]), s, self.parts[2])
        products = [matrices[0]]
        for d in range(1, len(matrices)):
            products.append(torch.bmm(matrices[d], products[-1]))
        return products, (c, s, matrices)

    def backward(self, grad: Tensor, products: list[Tensor], kept: tuple[Tensor, Tensor, Tensor], out: Tensor) -> None:
        """Add to the angles' gradient `out` from that of the last product."""
        if self.values.fixed:
            return
        c, s, matrices = kept
        own = torch.empty_like(matrices)
        for d in range(len(matrices) - 1, 0, -1):
            torch.bmm(grad, products[d - 1].mT, out=own[d])
            grad = torch.bmm(matrices[d].mT, grad)
        own[0] = grad
        slopes = torch.addcmul(c * self.parts[2], s, self.parts[1], value=-1)
        out.index_add_(0, self.values.index, own.mul_(slopes).sum((2, 3)).view(-1).mul_(self.values.scale))


@dataclass(frozen=True)
class Shuffle:
    """A signed permutation of words: `new[w] = sign[w] old[index[w]]`."""

    index: Tensor
    inverse: Tensor
    sign: Tensor | None

    @classmethod
    def of(cls, index: IntArray, sign: FloatArray, like: Tensor) -> Shuffle:
        order = torch.as_tensor(index, device=like.device)
        return cls(order, order.argsort(), None if (sign > 0).all() else like.new_tensor(sign))

    def _signed(self, x: Tensor, axis: int) -> Tensor:
        return x if self.sign is None else x * (self.sign if axis else self.sign[:, None])

    def forward(self, x: Tensor, axis: int) -> Tensor:
        return self._signed(x.index_select(axis, self.index), axis)

    def backward(self, grad: Tensor, axis: int) -> Tensor:
        return self._signed(grad, axis).index_select(axis, self.inverse)


@dataclass(frozen=True)
class Upload:
    """`t_q = rate * inputs[index] + shift` of every qubit; a qubit without an upload has rate 0."""

    index: Tensor | None  # None: qubit q takes input q, as it is
    rate: Tensor
    shift: Tensor

    @classmethod
    def of(cls, uploads: Sequence[Gate | None], n_inputs: int, like: Tensor) -> Upload:
        rows = [(0, 0.0, 0.0)] * len(uploads)
        for q, gate in enumerate(uploads):
            if gate is not None and gate.angle is not None and gate.angle.index is not None:
                frequency = lifted(gate).frequency
                rows[q] = (gate.angle.index, frequency * gate.angle.scale, frequency * gate.angle.shift)
        if rows == [(q, 1.0, 0.0) for q in range(n_inputs)]:
            return cls(None, like, like)
        index, rate, shift = zip(*rows, strict=True)
        return cls(torch.tensor(index, device=like.device), like.new_tensor(rate)[:, None], like.new_tensor(shift)[:, None])

    def phases(self, inputs: Tensor) -> Tensor:
        """`(n, B)` from `(B, n_inputs)`."""
        columns = inputs.t().contiguous()
        return columns if self.index is None else torch.addcmul(self.shift, self.rate, columns[self.index])

    def pull(self, grad: Tensor, inputs: Tensor) -> Tensor:
        """The inputs' gradient `(B, n_inputs)` from that of the phases."""
        if self.index is None:
            return grad.t().contiguous()
        return torch.zeros_like(inputs).index_add_(1, self.index, (grad * self.rate).mT)


class Heisenberg:
    """The coefficients of a plan's observables as a function of its angles, and their use."""

    def __init__(self, plan: Plan, like: Tensor) -> None:
        """The plan must be one that `covers` accepts; `like` gives device and dtype."""
        n, program = plan.circuit.n_qubits, plan.program
        self.n, self.shape = n, (3,) * n
        observables = _observables(plan)
        runs: list[list[Gate]] = []
        self.stages: list[int | Shuffle] = []  # the first of n runs of turns, or a shuffle; the circuit's last step first
        for step in reversed([inner for dense in program.steps for inner in dense.steps]):
            if step.kind == "local":
                self.stages.append(len(runs))
                runs += [step.on(q) for q in range(n)]
                continue
            index, sign = _shuffle(step.gates, n)
            if self.stages:
                self.stages.append(Shuffle.of(index, sign, like))
            else:
                observables = observables[:, index] * sign
        self.stages.append(len(runs))  # of the prefix
        before, uploads, after = zip(*_prefix(program), strict=True)
        self.turns = Turns.of([*runs, *after], plan.circuit.n_inputs, like)
        self.entry = like.new_tensor(np.array([_entry(b, u) for b, u in zip(before, uploads, strict=True)]))  # (n, 4, 3)
        self.upload = Upload.of(uploads, plan.circuit.n_inputs, like)
        self.axis = sum(isinstance(stage, int) for stage in self.stages) % 2  # which axis of `observables` is that of words
        self.observables = like.new_tensor(np.ascontiguousarray(observables if self.axis else observables.T))

    def values(self, inputs: Tensor, angles: Tensor, kept: list[Record] | None = None) -> Tensor:
        """Expectation values `(B, K)` from inputs `(B, n_inputs)`; what `gradients` uses again goes to `kept`, if it is small."""
        record = self._carry(angles)
        small = kept is not None and self.observables.numel() <= SMALL
        if kept is not None and small:
            kept.append(record)
        t = self.upload.phases(inputs)
        return polynomial.values(record.coefficients, t, self.shape, record.halves if small else None).t()

    def gradients(self, grad: Tensor, inputs: Tensor, angles: Tensor, kept: Sequence[Record] = ()) -> list[Tensor]:
        """Gradients of `(grad * values).sum()`, grad `(B, K)`, for inputs and angles."""
        record = kept[0] if kept else self._carry(angles)
        t = inputs.t() if record.halves else self.upload.phases(inputs)
        by_coefficients, by_t = polynomial.gradients(grad.t(), record.coefficients, t, self.shape, kept=record.halves)
        assert by_coefficients is not None
        assert by_t is not None
        return [self.upload.pull(by_t, inputs), self._pull(by_coefficients, record, angles)]

    def _carry(self, angles: Tensor) -> Record:
        products, kept = self.turns.forward(angles)
        matrices = [*products[-1][: -self.n].unbind(0), *torch.bmm(products[-1][-self.n :], self.entry).unbind(0)]
        x, axis, seen = self.observables, self.axis, []
        for stage in self.stages:
            if isinstance(stage, Shuffle):
                x = stage.forward(x, axis)
                continue
            for q in range(self.n - 1, -1, -1) if axis else range(self.n):  # the axis at the outer end goes to the other end
                seen.append(x)
                matrix = matrices[stage + q]
                x = torch.mm(matrix.t(), x.view(-1, 4).t()) if axis else torch.mm(x.view(4, -1).t(), matrix)
            axis = 1 - axis
            size = (3 if stage == self.stages[-1] else 4) ** self.n
            x = x.view(-1, size) if axis else x.view(size, -1)
        return Record(x, products, kept, matrices, seen)

    def _pull(self, grad: Tensor, record: Record, angles: Tensor) -> Tensor:
        """The angles' gradient from the coefficients'."""
        out = torch.zeros_like(angles)
        by_products = torch.empty_like(record.products[-1])
        by_entered = torch.empty_like(self.entry)
        rows = [*by_products[: -self.n].unbind(0), *by_entered.unbind(0)]
        axis, seen = 0, list(record.seen)
        for stage in reversed(self.stages):
            if isinstance(stage, Shuffle):
                grad = stage.backward(grad, axis)
                continue
            axis = 1 - axis
            for q in range(self.n) if axis else range(self.n - 1, -1, -1):
                matrix, x = record.matrices[stage + q], seen.pop()
                to = rows[stage + q]
                if axis:
                    grad = grad.view(matrix.shape[1], -1)
                    torch.mm(x.view(-1, 4).t(), grad.t(), out=to)
                    grad = torch.mm(grad.t(), matrix.t()) if seen else grad
                else:
                    grad = grad.view(-1, matrix.shape[1])
                    torch.mm(x.view(4, -1), grad, out=to)
                    grad = torch.mm(matrix, grad.t()) if seen else grad
            if seen:
                grad = grad.view(-1, 4**self.n) if axis else grad.view(4**self.n, -1)
        torch.bmm(by_entered, self.entry.mT, out=by_products[-self.n :])
        self.turns.backward(by_products, record.products, record.kept, out)
        return out


@dataclass(frozen=True)
class Record:
    """Coefficients `(3^n, K)` and what their gradient needs: all of it small."""

    coefficients: Tensor
    products: list[Tensor]
    kept: tuple[Tensor, Tensor, Tensor]
    matrices: list[Tensor]
    seen: list[Tensor]  # what came into each product of observables and a matrix
    halves: list[polynomial.Halves] = field(default_factory=list)  # of the samples, where they are few


@functools.lru_cache(maxsize=512)
def covers(plan: Plan) -> bool:
    """Whether data enters a qubit once, before trainable gates and other qubits, and gates on two qubits are Clifford gates."""
    circuit, program = plan.circuit, plan.program
    if circuit.n_qubits > DENSE_QUBITS or not circuit.n_inputs or any(step.kind == "data" for step in program.steps):
        return False
    parts = _prefix(program)
    if any(gate.trainable for before, upload, _ in parts if upload for gate in before):
        return False
    if any(gate.kind == "data" for _, _, after in parts for gate in after):
        return False
    pairs = [gate for dense in program.steps for step in dense.steps if step.kind != "local" for gate in step.gates]
    return not any(gate.trainable for gate in pairs) and all(_clifford(gate) is not None for gate in pairs)


def worth(plan: Plan, batch: int) -> bool:
    """Whether this is cheaper than the state vector for so many samples.

    Multiply-adds are counted, those of products with 4 x 4 matrices eight times, as measured on CPUs. Up to `SMALL` numbers the
    cost is that of calls, of which there are fewer here.
    """
    n, k = plan.circuit.n_qubits, len(plan.observables)
    if k * 4**n <= SMALL:
        return True
    layers = 1 + sum(step.kind == "local" for dense in plan.program.steps for step in dense.steps)
    return bool(96 * n * k * 4**n * layers + 4 * k * 3**n * batch < 20 * 4**n * batch + 12 * 8**n * layers)


@functools.lru_cache(maxsize=512)
def kit(plan: Plan, device: torch.device, dtype: torch.dtype) -> Heisenberg:
    """The kit of a plan that `covers` accepts; kept."""
    return Heisenberg(plan, torch.empty(0, device=device, dtype=dtype))


def _prefix(program: Program) -> list[tuple[list[Gate], Gate | None, list[Gate]]]:
    """Of every qubit, its gates before its first upload, the upload, and the gates after; without one, all gates are after."""
    out: list[tuple[list[Gate], Gate | None, list[Gate]]] = []
    for q in range(program.n_qubits):
        gates = [gate for step in program.prefix for gate in step.gates if gate.qubits == (q,)]
        where = next((i for i, gate in enumerate(gates) if gate.kind == "data"), None)
        out.append(([], None, gates) if where is None else (gates[:where], gates[where], gates[where + 1 :]))
    return out


def _entry(before: Sequence[Gate], upload: Gate | None) -> FloatArray:
    """The Bloch vector behind an upload as `(4, 3)` on `1, cos t, sin t`."""
    vector = np.array([1.0, 0.0, 0.0, 1.0])  # |0><0| as 1, X, Y, Z
    for gate in before:
        vector = transfer(gate.matrix(gate.angle.shift if gate.angle is not None else 0.0)) @ vector
    if upload is None:
        return np.stack([vector, 0 * vector, 0 * vector], axis=1)
    out: FloatArray = (lifted(upload).parts.real @ vector).T
    return out


@functools.lru_cache(maxsize=64)
def _paulis(n: int) -> npt.NDArray[np.complex128]:
    """Pauli words on n qubits, `(4^n, 2^n, 2^n)`, the first qubit most significant."""
    words = [np.array(PAULI[letter], dtype=np.complex128) for letter in "IXYZ"]
    return np.array(words if n == 1 else [np.kron(a, b) for a, b in itertools.product(words, _paulis(n - 1))])


def transfer(matrix: npt.NDArray[np.complex128]) -> FloatArray:
    """What a unitary does to Bloch vectors: `Tr(P_i U P_j U^dagger) / 2^n`, real `(4^n, 4^n)`."""
    words = _paulis(len(matrix).bit_length() - 1)
    out: FloatArray = np.einsum("iab,jba->ij", words, matrix @ words @ matrix.conj().T).real / len(matrix)
    return out


def lifted(gate: Gate) -> Gate:
    """A one-qubit gate as one on Bloch vectors: parts `(3, 4, 4)`, and the frequency at which its angle enters there."""
    frequency = gate.frequency * (1 if gate.parts[0].any() else 2)
    turns = 2 * np.pi / 3 * np.arange(3)
    at = np.array([transfer(gate.matrix(t / frequency)) for t in turns])
    parts = [at.mean(0), *(2 / 3 * np.tensordot(f(turns), at, 1) for f in (np.cos, np.sin))]
    return replace(gate, parts=np.array(parts).round(15).astype(np.complex128), frequency=frequency)


def _clifford(gate: Gate) -> tuple[IntArray, FloatArray] | None:
    """`index` and `sign` of a fixed gate that permutes Pauli words, `(O U)[w] = sign[w] O[index[w]]`; None if it does not."""
    matrix = transfer(gate.matrix(gate.angle.shift if gate.angle is not None else 0.0))
    index = np.abs(matrix).argmax(0)
    sign = matrix[index, np.arange(len(matrix))]
    return (index, sign.round()) if np.allclose(np.abs(sign), 1) else None


def _shuffle(gates: Sequence[Gate], n: int) -> tuple[IntArray, FloatArray]:
    """`index` and `sign` of Clifford gates in a row on the words of the register."""
    words = np.arange(4**n)
    index, sign = words, np.ones(4**n)
    for gate in reversed(gates):
        found = _clifford(gate)
        assert found is not None
        weights = [4 ** (n - 1 - q) for q in gate.qubits]
        digits = [words // weight % 4 for weight in weights]
        local = np.zeros_like(words)
        for digit in digits:
            local = 4 * local + digit
        moved, shift = found[0][local], np.zeros_like(words)
        for place, (weight, digit) in enumerate(zip(weights, digits, strict=True)):
            shift += weight * (moved // 4 ** (len(weights) - 1 - place) % 4 - digit)
        index, sign = index[words + shift], sign[words + shift] * found[1][local]
    return index, sign


def _observables(plan: Plan) -> FloatArray:
    """The observables on the program's final state as Pauli words, `(K, 4^n)`."""
    n, k = plan.circuit.n_qubits, len(plan.observables)
    matrices = np.zeros((k, 2**n, 2**n), dtype=np.complex128)
    for readout in plan.readouts:
        matrices[:, np.arange(2**n), readout.flip] += readout.real + 1j * readout.imag
    words = matrices[:, None]
    for q in range(n):
        half = 2 ** (n - 1 - q)
        words = np.einsum("kdarbs,pba->kdprs", words.reshape(k, 4**q, 2, half, 2, half), _paulis(1)) / 2
    out: FloatArray = words.reshape(k, 4**n).real
    return out
