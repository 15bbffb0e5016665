"""Which surrogate a circuit gets: the one that runs the fewest circuits for the error asked."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from qpeft.circuits.ir import Circuit, Observable
from qpeft.circuits.surrogate import SurrogateKind
from qpeft.circuits.surrogate.base import Surrogate, SurrogateMaker
from qpeft.circuits.surrogate.grid import FourierGrid
from qpeft.circuits.surrogate.sparse import SparseSurrogate
from qpeft.circuits.surrogate.tensor_train import TensorTrainSurrogate
from qpeft.errors import CircuitError

SMALL_GRID = 100  # points up to which nothing else is looked for


def make_surrogate(
    circuit: Circuit,
    observables: Sequence[Observable] | None = None,
    *,
    kind: SurrogateKind = "auto",
    shots: int | None = 1000,
    error: float = 0.05,
    seed: int = 0,
) -> Surrogate:
    """A surrogate for a circuit that has not run yet; the number of points is final.

    Args:
        circuit: with inputs that enter as angles of gates.
        observables: K of them, default `<Z_k>` for each qubit k.
        kind: "grid" (exact), "sparse", "tensor-train" (as many points as sparse), or "auto", the smaller of grid and sparse.
        shots: outcomes behind each value; None for exact values.
        error: root mean square error that sparse and tensor-train are sized for.
        seed: of random points.

    Raises:
        CircuitError: no surrogate of this kind, with the reason of each that was tried.
    """
    if kind == "grid":
        return FourierGrid.of(circuit)
    if kind == "auto":
        found: list[Surrogate] = []
        reasons = []
        try:
            found.append(FourierGrid.of(circuit))
            if found[0].size <= SMALL_GRID:
                return found[0]
        except CircuitError as refusal:
            reasons.append(f"grid: {refusal.what}, {refusal.value}")
        try:
            found.append(SparseSurrogate.of(circuit, observables, shots=shots, error=error, seed=seed))
        except CircuitError as refusal:
            reasons.append(f"sparse: {refusal.what}, {refusal.value}")
        if not found:
            hint = "run the circuit directly, a regression on activations, or fewer qubits or uploads"
            raise CircuitError("no surrogate for this circuit", value="; ".join(reasons), hint=hint)
        return min(found, key=lambda surrogate: surrogate.size)
    sparse = SparseSurrogate.of(circuit, observables, shots=shots, error=error, seed=seed)
    if kind == "sparse":
        return sparse
    return TensorTrainSurrogate.of(circuit, observables, points=max(16, sparse.size), shots=shots, seed=seed)


@functools.lru_cache(maxsize=256)
def surrogate_size(
    circuit: Circuit, observables: tuple[Observable, ...] | None, *, kind: SurrogateKind, shots: int | None, error: float
) -> int:
    """Circuits that an evaluation through `make_surrogate` runs.

    Args:
        circuit: as for `make_surrogate`.
        observables: default `<Z_k>` for each qubit k.
        kind: "grid", "sparse", "tensor-train" or "auto"; see `make_surrogate`.
        shots: outcomes behind each value; None for exact values.
        error: root mean square error that sparse and tensor-train are sized for.

    Raises:
        CircuitError: no surrogate of this kind.
    """
    return make_surrogate(circuit, observables, kind=kind, shots=shots, error=error).size


def surrogate_maker(
    *, kind: SurrogateKind = "auto", shots: int | None = 1000, error: float = 0.05, seed: int = 0
) -> SurrogateMaker:
    """`make_surrogate` with its settings given, for `SurrogateExecutor(make=...)`.

    Args:
        kind: "grid", "sparse", "tensor-train" or "auto"; see `make_surrogate`.
        shots: outcomes behind each value; None for exact values.
        error: root mean square error that sparse and tensor-train are sized for.
        seed: of random points.
    """
    return functools.partial(make_surrogate, kind=kind, shots=shots, error=error, seed=seed)
