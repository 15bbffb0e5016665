"""QTHA, quantum tensor hybrid adaptation (arXiv 2503.12790 v2), its variants and its classical controls.

Per adapted layer and token, with a tensor-train matrix (TT, an MPO) on either side of a small circuit:

    h = TT_A dropout(x)       d_in -> m
    u = MLP_A h               m -> r
    z = QNN(u)                r -> n, expectation values of a circuit with r inputs
    v = QW z + CW u           n, r -> r
    delta = (alpha / r) TT_B (MLP_B v)        r -> m -> d_out

The published circuit is `ansatz.qtha`: r qubits, data re-uploading, and `<Z_k>` of every qubit, so n = r. Any other circuit with
inputs can take its place (`circuit`, `observables`; see circuit_setting.py).

Only the circuit is non-linear, so TT_A and MLP_A contract into one `(r, d_in)` matrix once per step, whatever the number of
tokens, and MLP_B and TT_B into one `(d_out, r)` matrix: a token costs what it costs in LoRA, and the circuit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.utils.hooks import RemovableHandle

from qpeft.adapters.base import Delta, RankConfig, make_dropout, one_of, positive
from qpeft.adapters.circuit_setting import (
    Default,
    build,
    check_qnn,
    read_circuit,
    read_observables,
    save_circuit,
    save_observables,
)
from qpeft.adapters.controls import QNN_KINDS, SHUFFLED, STORED, Linear, make_qnn, n_outputs
from qpeft.adapters.layers.circuit_with_maps import circuit_with_maps, takes
from qpeft.adapters.layers.tensor_train import TensorTrain, TrainProduct, parameter_count, products
from qpeft.adapters.quantum_layer import QuantumLayer
from qpeft.circuits.ir import Circuit
from qpeft.circuits.simulator import transforms
from qpeft.circuits.simulator.c_engine import between_maps
from qpeft.circuits.simulator.c_engine.between_maps import BetweenMaps
from qpeft.circuits.simulator.simulate import compiled_circuit
from qpeft.circuits.simulator.torch_engine.compiler import SimulatedCircuit
from qpeft.errors import AdapterError

SQRT2 = 2.0**0.5
FEW_TOKENS = 32  # up to which a call from Python costs more than what it does


@dataclass
class QTHAConfig(RankConfig):
    """Settings of QTHA. The defaults are the published ones, except `init`, chosen by measurement (docs/methods/qtha.md)."""

    r: int = field(default=Default(8), metadata={"help": "Rank, the number of the circuit's inputs. Default 8, or theirs."})
    alpha: float | None = field(default=None, metadata={"help": "Scale is alpha / r. Default 2 r, the published scale of 2."})
    tensor: bool = field(default=True, metadata={"help": "False leaves out the tensor trains (simple quantum LoRA)."})
    hidden_size: int | Literal["auto"] = field(default=256, metadata={"help": "Width m between tensor train and MLP."})
    bond_dim: int | Literal["auto"] = field(default=8, metadata={"help": "Bond dimension R of the tensor trains."})
    n_cores: int = field(default=4, metadata={"help": "Cores of a tensor train."})
    budget: float | None = field(
        default=None,
        metadata={"help": "Share of LoRA's parameters at equal r that 'auto' settings may use in each layer, such as 0.24."},
    )
    circuit: Any = field(
        default="qtha",
        metadata={"help": "A family of circuits by name, a file (.qasm, .json) or a qpeft.Circuit with r inputs."},
    )
    circuit_inputs: list[str] | None = field(
        default=None, metadata={"help": "For a circuit from a file: the names of the parameters that are data, in order."}
    )
    observables: Any = field(
        default=None, metadata={"help": "What is measured: Pauli strings, a letter for each qubit. Default Z of every qubit."}
    )
    n_layers: int | None = field(default=None, metadata={"help": "Layers L of a family's circuit. Default r, as published."})
    qnn: str = field(default="circuit", metadata={"help": f"The circuit or what stands in its place: {', '.join(QNN_KINDS)}."})
    stored: Any = field(
        default=None, metadata={"help": "For qnn: stored, the form of the measured surrogate. Written by `qpeft export`."}
    )
    fusion: Literal["add", "multiply"] = field(
        default="add",
        metadata={
            "help": "'add' (v2): v = QW z + CW u. 'multiply' (v1, QWTHN): v = z * (CW u), element-wise; v1's exact circuit is "
            "unpublished, this one keeps v2's."
        },
    )
    classical_path: bool = field(default=True, metadata={"help": "False leaves out CW u: the quantum path alone."})
    share_circuit: Literal["none", "layer", "model"] = field(
        default="none", metadata={"help": "One circuit per adapted module, per transformer layer, or for the whole model."}
    )
    init: Literal["balanced", "published"] = field(
        default="balanced",
        metadata={"help": "'published': kaiming-normal cores, last core of TT_B zero. 'balanced': cores of unit gain, MLP_B zero."},
    )

    def check(self) -> None:
        """Extends the base class's checks; reads `circuit` and `observables`, and takes `r` from the circuit if left out.

        Raises:
            AdapterError: a setting out of range, a circuit whose inputs are not r, or settings that exclude each other.
            CircuitError: a file that cannot be read as a circuit.
        """
        self.circuit, self.circuit_inputs = read_circuit(self.circuit, self.circuit_inputs), None
        if isinstance(self.circuit, Circuit):
            if self.n_layers is not None:
                raise AdapterError("n_layers belongs to a family of circuits", value=self.n_layers, hint="leave it out")
            self.r = self.circuit.n_inputs if isinstance(self.r, Default) else self.r
        super().check()
        positive("n_cores", self.n_cores)
        if self.n_layers is not None:
            positive("n_layers", self.n_layers)
        for name in ("hidden_size", "bond_dim"):
            if getattr(self, name) != "auto":
                positive(name, getattr(self, name))
        one_of("qnn", self.qnn, (*QNN_KINDS, SHUFFLED, STORED))
        one_of("fusion", self.fusion, ("add", "multiply"))
        one_of("share_circuit", self.share_circuit, ("none", "layer", "model"))
        one_of("init", self.init, ("balanced", "published"))
        if not self.classical_path and (self.qnn == "none" or self.fusion == "multiply"):
            raise AdapterError("nothing is left without the classical path", value=f"qnn={self.qnn}, fusion={self.fusion}")
        if self.circuit != "qtha" or self.observables is not None or self.stored is not None:
            self._check_circuit()
        if self.qnn == "none" and self.fusion == "multiply":
            raise AdapterError("fusion='multiply' weights the classical path by the circuit", value=self.qnn, hint="fusion='add'")
        if "auto" in (self.hidden_size, self.bond_dim) and self.budget is None:
            raise AdapterError("'auto' needs a budget to meet", hint="set budget, such as 0.24 of LoRA's parameters at equal r")
        if self.budget is not None and not self.budget > 0:
            raise AdapterError("budget is a positive share of LoRA's parameters", value=self.budget)
        if self.budget is not None and not (self.tensor and "auto" in (self.hidden_size, self.bond_dim)):
            raise AdapterError("budget decides 'auto' settings and there are none", value=self.budget, hint="bond_dim='auto'")

    def _check_circuit(self) -> None:
        circuit = self.built_circuit()
        if circuit.n_inputs != self.r:
            raise AdapterError(
                "the circuit has another number of inputs than the rank",
                value=f"{circuit.n_inputs} inputs, r={self.r}",
                hint=f"r={circuit.n_inputs}, or leave r out",
            )
        self.observables = read_observables(self.observables, circuit.n_qubits)
        outputs = n_outputs(circuit, self.observables)
        if self.fusion == "multiply" and outputs != self.r:
            raise AdapterError(
                "fusion='multiply' needs a value for each input", value=f"{self.r} inputs, {outputs} values", hint="fusion='add'"
            )
        check_qnn(self.qnn, circuit, self.observables, self.stored)

    def built_circuit(self) -> Circuit:
        """The circuit, with r inputs."""
        return build(self.circuit, self.r, self.depth)

    def to_save(self) -> dict[str, Any]:
        """JSON forms of `circuit` and `observables`, by name."""
        return {"circuit": save_circuit(self.circuit), "observables": save_observables(self.observables)}

    def sharing_scope(self) -> str:
        """The setting `share_circuit`: modules of one scope have one circuit for each rank."""
        return self.share_circuit

    @classmethod
    def budget_grid(cls, rank: int) -> list[dict[str, Any]]:
        """Ranks up to LoRA's, one layer of circuit, tensor trains of several widths and bonds."""
        ranks = sorted({max(1, rank // k) for k in (1, 2, 4)})
        shapes = [(m, bond) for m in (16, 64, 256) for bond in (1, 2, 3, 4, 6, 8, 12, 16)]
        return [{"r": r, "hidden_size": m, "bond_dim": bond, "n_layers": 1} for r in ranks for m, bond in shapes]

    @property
    def scale(self) -> float:
        """The factor of the delta: `alpha / r`, or 2 (published) where alpha is not set."""
        return 2.0 if self.alpha is None else self.alpha / self.r

    @property
    def depth(self) -> int:
        """Layers of a family's circuit."""
        return self.r if self.n_layers is None else self.n_layers

    def inner_parameters(self) -> int:
        """Trainable parameters between the outer maps: QW, CW, and the circuit or its control."""
        circuit = self.built_circuit()
        with torch.device("meta"):
            qnn = make_qnn(self.qnn, circuit, self.observables, self.stored)
        inner = 0 if qnn is None else sum(p.numel() for p in qnn.parameters() if p.requires_grad)
        quantum_map = self.r * n_outputs(circuit, self.observables) if qnn is not None and self.fusion == "add" else 0
        return inner + quantum_map + self.r**2 * self.classical_path

    def outer_sizes(self, d_in: int, d_out: int) -> tuple[int, int]:
        """`(hidden_size, bond_dim)` for a layer, with 'auto' resolved: the widest bond that meets the budget, ties to the wider m.

        Widths m are powers of two from r up.

        Args:
            d_in: input width of the layer.
            d_out: output width of the layer.

        Raises:
            AdapterError: even the smallest setting is over the budget.
        """
        if self.hidden_size != "auto" and self.bond_dim != "auto":
            return self.hidden_size, self.bond_dim
        assert self.budget is not None  # checked on construction
        r = self.r
        allowed = self.budget * r * (d_in + d_out)
        first = 1 << (r - 1).bit_length()
        widths = [first << k for k in range(7)] if self.hidden_size == "auto" else [self.hidden_size]
        bonds = range(1, 65) if self.bond_dim == "auto" else [self.bond_dim]
        inner = self.inner_parameters()

        def count(m: int, bond: int) -> int:
            trains = parameter_count(d_in, m, bond, self.n_cores) + parameter_count(m, d_out, bond, self.n_cores)
            return trains + 2 * m * r + inner

        fitting = [(bond, m) for m in widths for bond in bonds if count(m, bond) <= allowed]
        if not fitting:
            least = min(count(m, bond) for m in widths for bond in bonds)
            raise AdapterError(
                f"no setting of QTHA with r={r} fits a {d_in} -> {d_out} layer",
                value=f"budget {self.budget} = {allowed:.0f} parameters",
                bound=f"at least {least}, a budget of {math.ceil(1000 * least / (r * (d_in + d_out))) / 1000:.3f}",
                hint="raise budget, or lower n_layers or r",
            )
        bond, m = max(fitting)
        return m, bond


class QTHA(Delta):
    """The delta of QTHA; see the module's docstring."""

    def __init__(self, d_in: int, d_out: int, config: QTHAConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__(d_in, d_out, config, scope)
        r = config.r
        self.scale = config.scale
        self.fusion = config.fusion
        self._unhooked_at = -1  # the number of the next hook when there was none here
        self.dropout = make_dropout(config.dropout)
        inner_in, inner_out = d_in, d_out
        self.tt_a = self.tt_b = None
        if config.tensor:
            m, bond = config.outer_sizes(d_in, d_out)
            self.tt_a, self.tt_b = (TensorTrain(*sizes, bond, config.n_cores, rows=r) for sizes in ((d_in, m), (m, d_out)))
            inner_in = inner_out = m
        self.mlp_a, self.mlp_b = Linear(inner_in, r), Linear(r, inner_out)
        circuit = config.built_circuit()
        self.qnn: nn.Module | None = None
        name = f"qnn of {r} inputs"  # rank_pattern may give layers of one scope circuits of several sizes
        if name in scope:
            self.shared = (scope[name],)
        else:
            self.qnn = make_qnn(config.qnn, circuit, config.observables, config.stored)
            if self.qnn is not None:
                scope[name] = self.qnn
        has_qnn = config.qnn != "none"
        self.quantum_map = Linear(n_outputs(circuit, config.observables), r) if has_qnn and config.fusion == "add" else None
        self.classical_map = Linear(r, r) if config.classical_path else None
        self._initialise(config)

    @torch.no_grad()
    def _initialise(self, config: QTHAConfig) -> None:
        published = config.init == "published"
        for train in (self.tt_a, self.tt_b):
            if train is not None:
                train.initialise(SQRT2 if published else 1.0)
        if config.init_weights:
            (self.tt_b.cores[-1] if self.tt_b is not None and published else self.mlp_b.weight).zero_()

    @property
    def linear(self) -> bool:
        """Whether the delta has no circuit and no module in its place (`qnn="none"`)."""
        return self.qnn is None and not self.shared

    def down(self) -> Tensor:
        """`MLP_A TT_A` as one matrix `(r, d_in)`."""
        return self.mlp_a.weight if self.tt_a is None else self.tt_a.rows_times(self.mlp_a.weight)

    def up(self) -> Tensor:
        """`(alpha / r) TT_B MLP_B` as one matrix `(d_out, r)`."""
        scaled = self.scale * self.mlp_b.weight
        return scaled if self.tt_b is None else self.tt_b.times_columns(scaled)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Of rank r without a circuit, or anything else that is not linear in its place; else None."""
        if not self.linear:
            return None
        assert self.classical_map is not None  # checked by the config
        return self.up(), self.classical_map.weight @ self.down()

    def forward(self, x: Tensor) -> Tensor:
        """The delta of QTHA (arXiv 2503.12790): `(..., d_in) -> (..., d_out)`.

            (alpha / r) TT_B MLP_B v,  v = QW z + CW u,  z = QNN(u),  u = MLP_A TT_A dropout(x)

        With `fusion="multiply"`, v is the element-wise product `z * (CW u)`.
        """
        whole = self._one_call(x) if x.numel() <= FEW_TOKENS * x.shape[-1] else None
        return self._steps(x) if whole is None or whole.dtype is not x.dtype else whole(x)

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """See `Delta.add_to`: the sum is part of the last product."""
        if self._unhooked():
            if x.numel() <= FEW_TOKENS * x.shape[-1] and (whole := self._one_call(x)) is not None:
                return whole(x if x.dtype is whole.dtype else x.to(whole.dtype), y)
            dtype = self.dtype
            return self._steps(x if x.dtype is dtype else x.to(dtype), y)
        return super().add_to(y, x)

    def _steps(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The delta, plus y where there is one."""
        down, up = self.cached("ends", self._ends)
        x = self.dropout(x)
        q_map, c_map, compiled = self.quantum_map, self.classical_map, self._simulated()
        if q_map is not None and c_map is not None and compiled is not None:
            assert isinstance(self.qnn, QuantumLayer)
            maps = (down, self.qnn.angles, q_map.weight, c_map.weight, up)
            if takes(x, *maps):
                if y is not None and takes(y, x):
                    return circuit_with_maps(compiled, x, *maps, y)
                delta = circuit_with_maps(compiled, x, *maps)
                return delta if y is None else y + delta
        delta = self.mix(nn.functional.linear(x, down)) @ up
        return delta if y is None else y + delta

    def _one_call(self, x: Tensor) -> BetweenMaps | None:
        """Maps and circuit as one compiled call, for generation; None where gradients or hooks need the steps.

        Every object that is looked at here costs a cache miss at each token.
        """
        if torch.is_grad_enabled() or self.training or not self._unhooked():
            return None
        if not transforms.plain(x) or torch.is_autocast_enabled("cpu"):
            return None

        def make() -> tuple[BetweenMaps | None, Any]:
            qnn, quantum, compiled = self.qnn, self.quantum_map, self._simulated()
            run = getattr(qnn, "run", None)
            if quantum is None or compiled is None or not isinstance(qnn, QuantumLayer):
                return None, run
            down, up = self._ends()
            classical = None if self.classical_map is None else self.classical_map.weight
            maps = [t for t in (down, up, quantum.weight, classical) if t is not None]
            if not transforms.plain(*maps) or not between_maps.takes(compiled, qnn.angles, *maps):
                return None, run
            return BetweenMaps(compiled, qnn.angles, down, quantum.weight, classical, up), run

        found, run = self.cached("one call", make)
        if found is None or self._modules["qnn"].__dict__.get("run") is not run:
            return None
        return found

    def _simulated(self) -> SimulatedCircuit | None:
        """The circuit of this layer's own, where the simulator runs it and no hook is on it or on its maps."""
        qnn = self._modules.get("qnn")  # an attribute that is a module costs ten times as much to find
        return compiled_circuit(qnn.run) if type(qnn) is QuantumLayer and not self._hooked_parts() else None

    def _hooked_parts(self, *more: nn.Module) -> bool:
        """Whether calls of the parts that `circuit_with_maps` leaves out, or of `more`, do more than `forward`."""
        own = self._modules
        for part in (own.get("qnn"), own.get("quantum_map"), own.get("classical_map"), own["dropout"], *more):
            if part is not None and (
                part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
            ):
                return True
        hooks = module_hooks
        return bool(
            hooks._global_forward_hooks
            or hooks._global_forward_pre_hooks
            or hooks._global_backward_hooks
            or hooks._global_backward_pre_hooks
        )

    def _unhooked(self) -> bool:
        """Whether calls of this module and its parts do no more than `forward`. Torch numbers its hooks one by one."""
        if self._unhooked_at != RemovableHandle.next_id and not self._hooked_parts(self):
            self._unhooked_at = RemovableHandle.next_id
        return self._unhooked_at == RemovableHandle.next_id

    def __getstate__(self) -> dict[str, Any]:
        """As the base class's; a copy looks for hooks itself."""
        return {**super().__getstate__(), "_unhooked_at": -1}

    def _ends(self) -> tuple[Tensor, Tensor]:
        """`down()` and `up()` transposed, `(r, d_out)`, in one call where there are tensor trains."""
        if self.tt_a is None or self.tt_b is None:
            return self.down(), self.up().T
        down, up = products(
            TrainProduct(self.tt_a, self.mlp_a.weight, columns=False),
            TrainProduct(self.tt_b, self.mlp_b.weight, columns=True, scale=self.scale, transposed=True),
        )
        return down, up

    def mix(self, u: Tensor) -> Tensor:
        """`v (..., r)` from `u (..., r)`: the circuit's path and the classical one."""
        classical: Tensor | None = self.classical_map(u) if self.classical_map is not None else None
        qnn = self.shared[0] if self.shared else self.qnn
        if qnn is None:
            assert classical is not None  # checked by the config
            return classical
        z: Tensor = qnn(u).to(u.dtype)
        if classical is not None and self.fusion == "multiply":
            return z * classical
        quantum = self.quantum_map(z) if self.quantum_map is not None else z
        return quantum if classical is None else quantum + classical
