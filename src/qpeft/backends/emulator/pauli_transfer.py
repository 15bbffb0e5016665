"""The noisy circuit as a linear map on Pauli coefficients: batched, differentiable, exact, in torch.

A state of k qubits is the real vector `r_P = Tr(P rho)` over the 4^k Pauli words (order I, X, Y, Z; first qubit most significant);
channels are real matrices on it. Decay and rotations are 4 x 4, CZ a signed permutation of 16, depolarisation a factor. Everything
between two changes of partner is one 16 x 16 matrix of a pair, multiplied together while small and then applied once. A qubit
joins the vector at its first CZ and leaves it, read out, after its last one; parts that no CZ joins are never multiplied
together. So the largest vector, `peak`, is 4^8 for eight qubits at most, and often less.

`evolve` goes through a circuit in the order of time and gives the distribution of all measured qubits. `contract` gives that of
a few qubits of a wide circuit: the same matrices as a tensor network, contracted in the order that keeps tensors small. With one
layer of QTHA's circuit no tensor has more than 2,048 entries a row, from 8 to 24 qubits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qpeft.backends.emulator.noise import CZPulse, Decay, IdealRotation, NoiseSchedule
from qpeft.circuits.ir import GATES, PAULI
from qpeft.errors import BackendError, MissingDependencyError

LARGEST = 4**10  # entries a row of the largest tensor or vector: 8 MiB

Chain = tuple[IdealRotation | Decay, ...]
Factor = tuple[tuple[int, ...], Tensor]  # qubits, and outcomes `(rows or 1, 2, ..., 2)`, an axis for each of them


@dataclass(frozen=True)
class CZRound:
    """One CZ of a group: what its two qubits undergo before it, and the number of its pair."""

    before: tuple[Chain, Chain]
    pair: int


@dataclass(frozen=True)
class PairGroup:
    """CZs on one pair with no other partner in between.

    Per qubit, `first` is true where it comes from |0>, and `last` holds what it undergoes before its readout where it ends here.
    """

    qubits: tuple[int, int]
    rounds: tuple[CZRound, ...]
    first: tuple[bool, bool]
    last: tuple[Chain | None, Chain | None]

    def outputs(self, measured: frozenset[int]) -> list[int]:
        """Length of each qubit's axis afterwards: 4 coefficients, 2 outcomes, or 1 where it ends and is not measured."""
        return [4 if last is None else 2 if q in measured else 1 for q, last in zip(self.qubits, self.last, strict=True)]


@dataclass(frozen=True)
class EvolutionPlan:
    """A schedule arranged in groups. `alone` are qubits without a CZ; `peak` counts coefficients of the largest vector."""

    groups: tuple[PairGroup, ...]
    alone: tuple[tuple[int, Chain], ...]
    rotations: tuple[IdealRotation, ...]
    decays: tuple[Decay, ...]
    measured: frozenset[int]
    peak: int


@functools.lru_cache(maxsize=512)
def arrange(schedule: NoiseSchedule, measured: frozenset[int]) -> EvolutionPlan:
    """PairGroup a schedule's steps; qubits that are not in `measured` are traced out."""
    pending: dict[int, list[IdealRotation | Decay]] = {q: [] for q in range(schedule.n_qubits)}
    rounds: list[tuple[tuple[int, int], list[CZRound]]] = []
    latest: dict[int, int] = {}
    first: dict[int, int] = {}
    for step in schedule.steps:
        if not isinstance(step, CZPulse):
            chain = pending[step.qubit]
            if isinstance(step, Decay) and not step.pulse and chain and isinstance(chain[-1], Decay):
                chain[-1] = Decay(step.qubit, chain[-1].ns + step.ns, chain[-1].pulse)
            else:
                chain.append(step)
            continue
        a, b = step.qubits
        if a not in latest or latest[a] != latest.get(b):
            for q in (a, b):
                latest[q] = len(rounds)
                first.setdefault(q, len(rounds))
            rounds.append(((a, b), []))
        rounds[latest[a]][1].append(CZRound((tuple(pending[a]), tuple(pending[b])), step.pair))
        pending[a], pending[b] = [], []
    groups = []
    for number, ((a, b), members) in enumerate(rounds):
        ends = [tuple(pending[q]) if latest[q] == number else None for q in (a, b)]
        groups.append(PairGroup((a, b), tuple(members), (first[a] == number, first[b] == number), (ends[0], ends[1])))
    alone = tuple((q, tuple(chain)) for q, chain in pending.items() if q not in latest)
    chains = [chain for group in groups for one in group.rounds for chain in one.before]
    chains += [chain for group in groups for chain in group.last if chain is not None] + [chain for _, chain in alone]
    steps = dict.fromkeys(step for chain in chains for step in chain)
    rotations = tuple(step for step in steps if isinstance(step, IdealRotation))
    decays = tuple(step for step in steps if isinstance(step, Decay))
    return EvolutionPlan(tuple(groups), alone, rotations, decays, measured, _peak(groups, measured))


def _peak(groups: Sequence[PairGroup], measured: frozenset[int]) -> int:
    parts: list[dict[int, int]] = []  # qubit -> length of its axis, for every part there is
    peak = 1
    for group in groups:
        touched = [part for part in parts if any(q in part for q in group.qubits)]
        parts = [part for part in parts if part not in touched]
        joined = {q: size for part in touched for q, size in part.items()}
        peak = max(peak, math.prod(joined.values()))
        joined |= dict(zip(group.qubits, group.outputs(measured), strict=True))
        peak = max(peak, math.prod(joined.values()))
        parts.append(joined)
    return peak


def _pauli_matrix(unitary: npt.NDArray[np.complex128]) -> npt.NDArray[np.float64]:
    """`R[i, j] = Tr(P_i U P_j U+) / 2^n` of a one- or two-qubit unitary."""
    single = [np.array(PAULI[letter], dtype=np.complex128) for letter in "IXYZ"]
    words = single if unitary.shape[0] == 2 else [np.kron(a, b) for a in single for b in single]
    columns = [unitary @ word @ unitary.conj().T for word in words]
    traces = [[float(np.trace(word @ column).real) for column in columns] for word in words]
    return np.asarray(np.array(traces) / unitary.shape[0], dtype=np.float64)


def _rotation_parts(axis: str) -> npt.NDArray[np.float64]:
    """`C, A, B` with `R(t) = C + cos(t) A + sin(t) B` for a rotation, `(3, 4, 4)`, from the gate table."""
    at = [_pauli_matrix(np.array(GATES[f"r{axis}"].matrix(angle))) for angle in (0.0, math.pi, math.pi / 2)]
    constant = (at[0] + at[1]) / 2
    return np.array([constant, at[0] - constant, at[2] - constant])


_ROTATIONS = np.array([_rotation_parts(axis) for axis in "xyz"]).swapaxes(0, 1)  # (3 parts, 3 axes, 4, 4)
_CZ = _pauli_matrix(np.array(GATES["cz"].matrix()))
_CZ_SOURCE = np.abs(_CZ).argmax(axis=1)  # row i of CZ M is sign[i] M[source[i]]
_CZ_SIGN = _CZ[np.arange(16), _CZ_SOURCE]


def evolve(plan: EvolutionPlan, angle: Callable[[int], Tensor], noise: Mapping[str, Tensor]) -> list[Factor]:
    """The distribution of every part of a circuit: `plan` on rows of angles.

    Args:
        plan: the circuit's schedule as steps of each part.
        angle: `angle(slot)` is `(rows,)`, or `(1,)` where all rows share it; radians.
        noise: the fields of a NoiseParameters as tensors, with a leading axis of `rows` or 1.

    Returns:
        Disjoint parts that cover the measured qubits; the distribution of all is their product. Differentiable in angles and
        noise.
    """
    parts, matrices = _matrices(plan, angle, noise)
    for group, matrix in zip(plan.groups, matrices, strict=True):
        parts = _apply(parts, group, matrix, plan.measured)
    return [(tuple(q for q in qubits if q in plan.measured), _drop(qubits, values, plan.measured)) for qubits, values in parts]


def contract(plan: EvolutionPlan, angle: Callable[[int], Tensor], noise: Mapping[str, Tensor]) -> list[Factor]:
    """The same as `evolve` by a tensor network, for a few measured qubits of a wide circuit.

    Args:
        plan: the circuit's schedule as steps of each part, with the wanted qubits as `measured`.
        angle: see `evolve`.
        noise: see `evolve`.

    Returns:
        Disjoint parts that cover the measured qubits. Differentiable in angles and noise.

    Raises:
        BackendError: a tensor of more than `LARGEST` entries a row is needed.
        MissingDependencyError: opt_einsum, which finds the order, is not installed.
    """
    try:
        import opt_einsum
    except ImportError as missing:
        raise MissingDependencyError("opt_einsum", "aer", "exact values of a wide circuit on an emulated chip") from missing
    parts, matrices = _matrices(plan, angle, noise)
    row, legs = opt_einsum.get_symbol(0), 0
    latest: dict[int, str] = {}  # qubit -> the leg of its vector
    terms, tensors, ended = [], [], []
    for group, matrix in zip(plan.groups, matrices, strict=True):
        outputs = group.outputs(plan.measured)
        new = [opt_einsum.get_symbol(legs + 1 + i) for i in range(2)]
        legs += 2
        kept = [(leg, size) for leg, size in zip(new, outputs, strict=True) if size > 1]
        old = [latest[q] for q, fresh in zip(group.qubits, group.first, strict=True) if not fresh]
        latest.update(zip(group.qubits, new, strict=True))
        ended += [q for q, last in zip(group.qubits, group.last, strict=True) if last is not None and q in plan.measured]
        shape = [size for _, size in kept] + [4] * len(old)
        shared = len(matrix) == 1  # by all rows
        terms.append("".join([*([] if shared else [row]), *(leg for leg, _ in kept), *old]))
        tensors.append(matrix.reshape(shape if shared else [len(matrix), *shape]))
    if not ended:
        return parts
    batched = any(term.startswith(row) for term in terms)
    wanted = (row if batched else "") + "".join(latest[q] for q in ended)
    equation = f"{','.join(terms)}->{wanted}"
    one_row = [(1, *tensor.shape[1:]) if term[:1] == row else tensor.shape for term, tensor in zip(terms, tensors, strict=True)]
    path, info = opt_einsum.contract_path(equation, *one_row, shapes=True, optimize="auto")
    size = int(info.largest_intermediate)
    if size > LARGEST:
        raise BackendError(
            "the emulator cannot be exact on so many joined qubits: a tensor of the network is too large",
            value=size,
            bound=f"{LARGEST} entries a row",
            hint="fewer layers, or a number of shots",
        )
    table = opt_einsum.contract(equation, *tensors, optimize=path, backend="torch")
    return [*parts, (tuple(ended), table if batched else table[None])]


def _matrices(
    plan: EvolutionPlan, angle: Callable[[int], Tensor], noise: Mapping[str, Tensor]
) -> tuple[list[Factor], list[Tensor]]:
    """The distributions of the measured qubits without a CZ, and each group's matrix `(rows or 1, outputs, inputs)`."""
    like = noise["t1_ns"]
    matrices: dict[IdealRotation | Decay, Tensor] = dict(zip(plan.decays, _decay_matrices(plan.decays, noise), strict=True))
    matrices.update(zip(plan.rotations, _rotation_matrices(plan.rotations, angle, like), strict=True))

    def chain(steps: Chain) -> Tensor | None:
        return functools.reduce(lambda done, step: matrices[step] @ done, steps[1:], matrices[steps[0]]) if steps else None

    eye = torch.eye(4, dtype=like.dtype, device=like.device)[None]
    ground = like.new_tensor([[[1.0], [0.0], [0.0], [1.0]]])
    readout = like.new_tensor([[0.5, 0.0, 0.0, 0.5], [0.5, 0.0, 0.0, -0.5]])
    source, sign = torch.as_tensor(_CZ_SOURCE, device=like.device), like.new_tensor(_CZ_SIGN)
    rest = torch.arange(16, device=like.device) > 0

    def read(qubit: int, steps: Chain) -> Tensor:
        """From a qubit's vector to its outcomes: `(rows, 2, 4)`, or `(1, 1, 4)` where it is not measured."""
        if qubit not in plan.measured:
            return eye[:, :1]
        ending = noise["confusion"][:, qubit] @ readout
        done = chain(steps)
        return ending if done is None else ending @ done

    parts: list[Factor] = []
    for qubit, steps in plan.alone:
        if qubit in plan.measured:
            parts.append(((qubit,), (read(qubit, steps) @ ground)[..., 0]))
    whole: list[Tensor] = []
    for group in plan.groups:
        matrix: Tensor | None = None
        for one in group.rounds:
            before = [chain(steps) for steps in one.before]
            if matrix is None:  # from the vectors of |0> where a qubit begins here
                inputs = [
                    (eye if done is None else done) @ (ground if fresh else eye)
                    for done, fresh in zip(before, group.first, strict=True)
                ]
                matrix = _kron(*inputs)
            elif any(done is not None for done in before):
                matrix = _kron(*(eye if done is None else done for done in before)) @ matrix
            keep = torch.where(rest, noise["keep_cz"][:, one.pair, None], 1.0) * sign
            matrix = matrix[:, source] * keep[:, :, None]
        assert matrix is not None
        if any(last is not None for last in group.last):
            ends = [eye if last is None else read(q, last) for q, last in zip(group.qubits, group.last, strict=True)]
            matrix = _kron(*ends) @ matrix
        whole.append(matrix)
    return parts, whole


def _apply(parts: list[Factor], group: PairGroup, matrix: Tensor, measured: frozenset[int]) -> list[Factor]:
    """Apply a group's matrix `(rows, outputs, inputs)` to the vectors that hold its qubits, which become one."""
    touched = [part for part in parts if any(q in part[0] for q in group.qubits)]
    others = [part for part in parts if not any(part is one for one in touched)]
    qubits: tuple[int, ...] = ()
    vector = matrix.new_ones(1)
    for names, values in touched:
        left = vector.reshape(*vector.shape, *(1,) * len(names))
        vector = left * values.reshape(values.shape[0], *(1,) * len(qubits), *values.shape[1:])
        qubits += names
    inputs = [q for q, fresh in zip(group.qubits, group.first, strict=True) if not fresh]
    rest = [q for q in qubits if q not in inputs]
    vector = vector.permute(0, *(1 + qubits.index(q) for q in (*rest, *inputs)))
    kept = vector.shape[1 : 1 + len(rest)]
    moved = vector.reshape(vector.shape[0], math.prod(kept), matrix.shape[2]) @ matrix.mT
    return [*others, ((*rest, *group.qubits), moved.reshape(moved.shape[0], *kept, *group.outputs(measured)))]


def _drop(qubits: Sequence[int], values: Tensor, measured: frozenset[int]) -> Tensor:
    """Without the axes, of length 1, of qubits that are not measured."""
    return values.reshape(values.shape[0], *(2 for q in qubits if q in measured))


def _kron(a: Tensor, b: Tensor) -> Tensor:
    """Kronecker product of matrices, rows broadcast."""
    product = a[:, :, None, :, None] * b[:, None, :, None, :]
    return product.reshape(product.shape[0], a.shape[1] * b.shape[1], a.shape[2] * b.shape[2])


def _rotation_matrices(rotations: Sequence[IdealRotation], angle: Callable[[int], Tensor], like: Tensor) -> list[Tensor]:
    """`(rows or 1, 4, 4)` for each rotation, made together for those that the rows share and for the others."""
    constant, cosine, sine = like.new_tensor(_ROTATIONS)
    made: dict[int, Tensor] = {}
    angles = [angle(rotation.slot) for rotation in rotations]
    for rows in {len(values) for values in angles}:
        chosen = [i for i, values in enumerate(angles) if len(values) == rows]
        axes = ["xyz".index(rotations[i].axis) for i in chosen]
        stacked = torch.stack([angles[i] for i in chosen])[..., None, None]
        parts = [part[axes][:, None] for part in (constant, cosine, sine)]
        made.update(zip(chosen, parts[0] + torch.cos(stacked) * parts[1] + torch.sin(stacked) * parts[2], strict=True))
    return [made[i] for i in range(len(rotations))]


def _decay_matrices(decays: Sequence[Decay], noise: Mapping[str, Tensor]) -> Sequence[Tensor]:
    """`(placements, 4, 4)` for each decay: towards |0> in Z, to nothing in X and Y, after depolarisation where a pulse ends."""
    if not decays:
        return ()
    qubits = [decay.qubit for decay in decays]
    ns = noise["t1_ns"].new_tensor([decay.ns for decay in decays])
    pulse = torch.tensor([decay.pulse for decay in decays], device=ns.device)
    keep = torch.where(pulse, noise["keep_1q"][:, qubits], 1.0)
    e1, e2 = torch.exp(-ns / noise["t1_ns"][:, qubits]), torch.exp(-ns / noise["t2_ns"][:, qubits])
    zero, one = torch.zeros_like(e1), torch.ones_like(e1)
    rows = [one, zero, zero, zero, zero, keep * e2, zero, zero, zero, zero, keep * e2, zero, 1 - e1, zero, zero, keep * e1]
    stacked = torch.stack(rows, dim=-1)  # (placements, decays, 16)
    return [stacked[:, i].reshape(-1, 4, 4) for i in range(len(decays))]
