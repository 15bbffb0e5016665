"""A fitted surrogate as numbers alone: what an exported adapter keeps of a circuit that was measured, in plain PyTorch.

| kind | tensors, for K observables |
|---|---|
| `grid` | `coefficients (2 D_1 + 1, .., 2 D_n + 1, K)` |
| `sparse` | `coefficients`: those of each light cone's grid, flat |
| `tensor-train` | `coefficients`: the cores of each light cone, of one rank, flat |
| `regression` | `coefficients (P + 1, K)`, `points (P, n)` and `lengths (K,)` |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from qpeft.circuits.ir import Circuit, Observable
from qpeft.circuits.surrogate import regression, sparse, tensor_train
from qpeft.circuits.surrogate.base import Surrogate, observables_of
from qpeft.circuits.surrogate.grid import FourierGrid, frequencies
from qpeft.errors import CircuitError

StoredKind = Literal["grid", "sparse", "tensor-train", "regression"]
KINDS: tuple[StoredKind, ...] = ("grid", "sparse", "tensor-train", "regression")


@dataclass(frozen=True)
class StoredForm:
    """How a surrogate is stored. `size`: the rank of a tensor train, the points of a regression; 0 for the others."""

    kind: StoredKind = "grid"
    size: int = 0

    @classmethod
    def read(cls, value: Any) -> StoredForm:
        """From its JSON form `{"kind": .., "size": ..}`; None is the grid. CircuitError for anything else."""
        if value is None or isinstance(value, StoredForm):
            return value or cls()
        if not isinstance(value, Mapping) or value.get("kind") not in KINDS or not isinstance(value.get("size", 0), int):
            raise CircuitError("not the form of a stored surrogate", value=value, bound=f"kind: {', '.join(KINDS)}; size")
        return cls(value["kind"], value.get("size", 0))

    def to_dict(self) -> dict[str, Any]:
        """Its JSON form."""
        return {"kind": self.kind, "size": self.size}


class StoredLayout:
    """The tensors of a stored surrogate, and how they are evaluated.

    Args:
        circuit: what was measured.
        observables: default `<Z_k>` of every qubit k.
        form: how it is stored.

    Attributes:
        shapes: of the tensors, by name.
    """

    shapes: dict[str, tuple[int, ...]]

    def __init__(self, circuit: Circuit, observables: Sequence[Observable] | None, form: StoredForm) -> None:
        wanted = observables_of(circuit, observables)
        self.form = form
        if form.kind == "grid":
            self.grid = FourierGrid.of(circuit)
            self.shapes = {"coefficients": (*self.grid.shape, len(wanted))}
        elif form.kind == "sparse":
            self.cones = sparse.cone_grids(circuit, wanted)
            self.shapes = {"coefficients": (sum(grid.size * len(outputs) for _, outputs, grid in self.cones),)}
        elif form.kind == "tensor-train":
            self.chains = tensor_train.make_chains(circuit, wanted)
            self.cores = [tensor_train.shapes_of_rank(chain, form.size) for chain in self.chains]
            self.shapes = {"coefficients": (sum(math.prod(shape) for shapes in self.cores for shape in shapes),)}
        else:
            self.base, _ = frequencies(circuit)
            self.groups = regression.cone_groups(circuit, wanted)
            shapes = {"coefficients": (form.size + 1, len(wanted)), "points": (form.size, circuit.n_inputs)}
            self.shapes = {**shapes, "lengths": (len(wanted),)}

    @property
    def numbers(self) -> int:
        """How many numbers are stored."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def evaluate(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Expectation values `(B, K)` at `inputs (B, n_inputs)`, radians; tensors and inputs of one dtype."""
        own = tensors["coefficients"]
        if self.form.kind == "grid":
            return self.grid.evaluate(own, inputs)
        if self.form.kind == "sparse":
            return sparse.evaluate_cones(self.cones, own, inputs)
        if self.form.kind == "tensor-train":
            return tensor_train.evaluate_chains(self.chains, self.cores, own, inputs)
        return regression.evaluate_kernels(self.groups, self.base, tensors["points"], tensors["lengths"], own, inputs)


@dataclass(frozen=True)
class Stored:
    """A fit in one form: its tensors, float64, and its error, a root mean square over observables, shots included."""

    form: StoredForm
    numbers: int
    tensors: dict[str, Tensor]
    error: float


def stored_forms(
    surrogate: Surrogate, values: Tensor, circuit: Circuit, observables: Sequence[Observable] | None, *, error: float
) -> list[Stored]:
    """Every form in which the measured values can be stored, without another circuit.

    Args:
        surrogate: whose points were measured: a grid, a sparse series or a regression.
        values: `(P, K)` there.
        circuit, observables: what was measured.
        error: root mean square error asked; the tensor train has the smallest rank that reaches it, or none is offered.

    Returns:
        The surrogate's own form first. A grid's error is that of its shots. The others are estimated from points left out.
    """
    shots, y = getattr(surrogate, "shots", None), values.detach().to(torch.float64)
    kind: StoredKind = "grid"
    extra: dict[str, Tensor] = {}
    if isinstance(surrogate, sparse.SparseSurrogate):
        kind = "sparse"
    elif isinstance(surrogate, tensor_train.TensorTrainSurrogate):
        raise CircuitError("a tensor train is fitted here, to a sparse surrogate's points", hint="kind='sparse'")
    own = surrogate.coefficients(y)
    size = 0
    if isinstance(surrogate, regression.RegressionSurrogate):
        kind, size = "regression", surrogate.size
        extra = {"points": torch.as_tensor(surrogate.points()), "lengths": surrogate.lengths()}
    found = [_stored(StoredForm(kind, size), {"coefficients": own, **extra}, surrogate.error(y), circuit, observables)]
    if kind != "regression":
        points = torch.as_tensor(surrogate.points())
        chains = tensor_train.make_chains(circuit, observables)
        for rank in tensor_train.RANKS:
            numbers = sum(math.prod(shape) for chain in chains for shape in tensor_train.shapes_of_rank(chain, rank))
            if numbers >= found[0].numbers:
                break
            cores, errors = tensor_train.fit_chains(chains, points, y, rank, shots)
            if float(errors.square().mean().sqrt()) <= error:
                found.append(_stored(StoredForm("tensor-train", rank), {"coefficients": cores}, errors, circuit, observables))
                break
    return found


def _stored(
    form: StoredForm, tensors: dict[str, Tensor], errors: Tensor, circuit: Circuit, observables: Sequence[Observable] | None
) -> Stored:
    layout = StoredLayout(circuit, observables, form)
    return Stored(form, layout.numbers, tensors, float(errors.square().mean().sqrt()))
