"""QCORE, our own: one-sided LoRA, or a small core between frozen frames, each with a circuit or without.

    delta(x) = (alpha / r) U (u + K z(G u)),   u = V^T x          trained="factor": one factor of LoRA
    delta(x) = (alpha / r) U (M u + K z(G u))                     trained="core"

Frames are matrices with orthonormal columns that are saved and never trained. With trained="factor" the smaller of V `(d_in, r)`
and U `(d_out, r)` is trained, zero at the start: U if d_out <= d_in, else V. The other one is a frame. With trained="core" both
are frames around a core M `(r, r)`, trained from zero.

K `(r, n)`, zero at the start, and G `(m, r)` are trained. z gives n expectation values of a circuit with m inputs; the default is
QTHA's circuit of `qubits` qubits (ansatz.qtha), and any other circuit with inputs can take its place (`circuit`, `observables`).
With `zz` the values are `<Z_j>` and `<Z_j Z_k>`. With `fusion="multiply"` the circuit weights what it is added to by
`1 + K z(G u)`, element-wise. Where the frames come from:

    random     drawn at random
    gradient   the r largest singular vectors of the loss's gradient in W0, over some batches of training data at the start:
               what a step of full fine-tuning would move (gradient_init.py; `qpeft train` does it by itself)
    weight     those of W0
    scaled     those of W0, U times its singular values: with a core and `qubits=0` this is LoRA-XS (arXiv 2405.17604)

A factor costs `r min(d_in, d_out)` trained numbers. Without a circuit it is LoRA with one factor frozen, as in LoRA-FA (arXiv
2308.03303). A core costs `r^2`, whatever the layer's size, and is confined to the frames' directions. A circuit adds `r (m + n)`
and its angles. Gradient frames around a core are LoRA-SB's idea (arXiv 2411.19557), which starts M at the gradient itself; here the
start is a no-op.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qpeft.adapters.base import Delta, RankConfig, freeze, is_frozen, make_dropout, natural, one_of, positive
from qpeft.adapters.circuit_setting import (
    Default,
    build,
    check_qnn,
    read_circuit,
    read_observables,
    save_circuit,
    save_observables,
)
from qpeft.adapters.controls import QNN_KINDS, SHUFFLED, STORED, Linear, make_qnn, n_outputs, z_and_zz
from qpeft.circuits.ir import Circuit, Observable
from qpeft.errors import AdapterError

FRAMES = ("random", "gradient", "weight", "scaled")
TRAINED = ("factor", "core")


@dataclass
class QCoreConfig(RankConfig):
    """Settings of QCORE."""

    renamed: ClassVar[Mapping[str, str]] = {"matrix": "classical_path", "pairs": "zz", "normalise": "normalize"}

    r: int = field(default=6, metadata={"help": "Rank of the frames; a core is r x r."})
    frames: str = field(default="random", metadata={"help": f"Where the frames come from: {', '.join(FRAMES)}."})
    trained: str = field(default="factor", metadata={"help": "factor: LoRA's smaller factor. core: M between two frames."})
    batches: int = field(default=8, metadata={"help": "Batches of training data for gradient frames."})
    qubits: int = field(default=Default(4), metadata={"help": "Qubits of the circuit, default 4 or its own; 0 leaves it out."})
    n_layers: int = field(default=1, metadata={"help": "Layers of a family's circuit."})
    qnn: str = field(default="circuit", metadata={"help": f"The circuit or what stands in its place: {', '.join(QNN_KINDS)}."})
    circuit: Any = field(
        default="qtha", metadata={"help": "A family of circuits by name, a file (.qasm, .json) or a qpeft.Circuit with inputs."}
    )
    circuit_inputs: list[str] | None = field(
        default=None, metadata={"help": "For a circuit from a file: the names of the parameters that are data, in order."}
    )
    observables: Any = field(
        default=None, metadata={"help": "What is measured: Pauli strings, a letter for each qubit. Default Z of every qubit."}
    )
    stored: Any = field(
        default=None, metadata={"help": "For qnn: stored, the form of the measured surrogate. Written by `qpeft export`."}
    )
    fusion: str = field(
        default="add", metadata={"help": "add: K z is added to u or M u. multiply: 1 + K z weights it, element-wise."}
    )
    classical_path: bool = field(default=True, metadata={"help": "False leaves out a core's M u: the circuit alone."})
    zz: bool = field(default=False, metadata={"help": "Measure Z_j Z_k too, from the same shots: n (n + 1) / 2 values."})
    normalize: bool = field(default=False, metadata={"help": "Give the circuit u / sqrt(mean(u^2) + 0.001): angles of one scale."})

    def check(self) -> None:
        """Extends the base class's checks; reads `circuit` and `observables`, and takes `qubits` from the circuit if left out.

        Raises:
            AdapterError: a setting out of range, a circuit without inputs or of another number of qubits, or settings that exclude
                each other.
            CircuitError: a file that cannot be read as a circuit.
        """
        self.circuit, self.circuit_inputs = read_circuit(self.circuit, self.circuit_inputs), None
        if self.trained == "side":  # its name in what was saved before
            self.trained = "factor"
        super().check()
        one_of("frames", self.frames, FRAMES)
        one_of("trained", self.trained, TRAINED)
        if self.trained == "factor" and self.frames == "scaled":
            raise AdapterError("scaled frames are LoRA-XS's, around a core", value="trained='factor'", hint="trained='core'")
        if self.trained == "factor" and not self.classical_path:
            raise AdapterError(
                "classical_path=False leaves out M, which trained='factor' does not have",
                value="classical_path=False",
                hint="trained='core'",
            )
        one_of("qnn", self.qnn, (*QNN_KINDS, SHUFFLED, STORED))
        positive("batches", self.batches)
        positive("n_layers", self.n_layers)
        natural("qubits", self.qubits)
        one_of("fusion", self.fusion, ("add", "multiply"))
        if self.fusion == "multiply" and not self.classical_path:
            raise AdapterError("fusion='multiply' weights M u by the circuit", value="classical_path=False", hint="fusion='add'")
        if not self.classical_path and (self.qubits == 0 or self.qnn == "none"):
            raise AdapterError("nothing is left without the matrix", value=f"qubits={self.qubits}, qnn={self.qnn}")
        if self.zz and self.observables is not None:
            raise AdapterError("zz and observables both say what is measured", value="zz=True", hint="one of the two")
        self._check_circuit()

    def _check_circuit(self) -> None:
        if isinstance(self.circuit, Circuit):
            if not isinstance(self.qubits, Default) and self.qubits != self.circuit.n_qubits:
                bound = f"{self.circuit.n_qubits}, or leave qubits out"
                raise AdapterError("the circuit has another number of qubits", value=f"qubits={self.qubits}", bound=bound)
            if self.n_layers != 1:
                raise AdapterError("n_layers belongs to a family of circuits", value=self.n_layers, hint="leave it out")
            self.qubits = Default(self.circuit.n_qubits)
        if self.qubits == 0:
            if self.observables is not None or self.zz:
                raise AdapterError("observables are read from a circuit", value="qubits=0", hint="qubits of at least 1")
            return
        circuit = self.built_circuit()
        if circuit.n_inputs < 1:
            raise AdapterError("the circuit has no inputs", value=str(self.circuit), hint="a circuit that takes data")
        self.observables = read_observables(self.observables, circuit.n_qubits)
        check_qnn(self.qnn, circuit, self.outputs(), self.stored)

    def built_circuit(self) -> Circuit:
        """The circuit; only where `qubits` is not 0."""
        return build(self.circuit, self.qubits, self.n_layers)

    def outputs(self) -> tuple[Observable, ...] | None:
        """Measured observables; None for `<Z_k>` of every qubit."""
        return z_and_zz(self.qubits) if self.zz else self.observables

    def to_save(self) -> dict[str, Any]:
        """JSON forms of `circuit` and `observables`, by name."""
        return {"circuit": save_circuit(self.circuit), "observables": save_observables(self.observables)}

    def gradient_batches(self) -> int:
        """`batches` for gradient frames; 0 for other frames."""
        return self.batches if self.frames == "gradient" else 0

    @classmethod
    def budget_grid(cls, rank: int) -> list[dict[str, Any]]:
        """Cores of several ranks, whose size is the same in every layer, then one-sided LoRA; LoRA's rank does not matter."""
        cores = [{"r": r, "trained": "core", "frames": "gradient"} for r in (4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64)]
        return cores + [{"r": r} for r in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)]


class QCore(Delta):
    """The delta of QCORE; see the module's docstring."""

    down: nn.Parameter  # V^T
    up: nn.Parameter  # U

    def __init__(self, d_in: int, d_out: int, config: QCoreConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__(d_in, d_out, config, scope)
        r = min(config.r, d_in, d_out)
        self.frames, self.scale, self.dropout = config.frames, config.scale, make_dropout(config.dropout)
        self.one_sided = config.trained == "factor"
        for name, shape, smaller in (("down", (r, d_in), d_out > d_in), ("up", (d_out, r), d_out <= d_in)):  # down is V^T
            if self.one_sided and smaller:
                self.register_parameter(name, nn.Parameter(torch.zeros(shape)))
            else:
                freeze(self, name, torch.zeros(shape))
        self.core = nn.Parameter(torch.zeros(r, r)) if config.classical_path and not self.one_sided else None
        self.qnn: nn.Module | None = None
        self.encode: Linear | None = None
        self.decode: nn.Parameter | None = None
        if config.qubits:
            circuit, observables = config.built_circuit(), config.outputs()
            self.qnn = make_qnn(config.qnn, circuit, observables, config.stored)
            if self.qnn is not None:
                self.encode = Linear(r, circuit.n_inputs)
                self.decode = nn.Parameter(torch.zeros(r, n_outputs(circuit, observables)))
        self.normalize, self.fusion = config.normalize, config.fusion
        if not config.init_weights:
            for parameter in (self.core, self.decode, self.down, self.up):
                if parameter is not None and parameter.requires_grad:
                    parameter.data = torch.randn_like(parameter).sign() / math.sqrt(r)

    @torch.no_grad()
    def init_from_weight(self, weight: Tensor) -> None:
        """Frames from `W0 (d_out, d_in)`, or drawn at random; gradient frames are those of W0 until there is a gradient."""
        r = self.down.shape[0]
        if self.frames == "random":
            self._set_frames(*(torch.linalg.qr(torch.randn(size, r).to(self.up))[0] for size in (self.d_in, self.d_out)))
            return
        values = self._span(weight)
        if self.frames == "scaled":
            self.up.mul_(values)

    def init_from_gradient(self, gradient: Tensor) -> None:
        """Frames from `dL / dW0 (d_out, d_in)`."""
        self._span(gradient)

    @torch.no_grad()
    def _span(self, matrix: Tensor) -> Tensor:
        """Frames from the largest singular vectors of a `(d_out, d_in)` matrix; its r largest singular values."""
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        r = self.down.shape[0]
        signs = left[:, :r].sum(dim=0).sign()  # a singular vector's sign is arbitrary: the same on every machine
        signs[signs == 0] = 1
        self._set_frames((right[:r] * signs[:, None]).T, left[:, :r] * signs)
        largest: Tensor = values[:r]
        return largest

    def _set_frames(self, right: Tensor, left: Tensor) -> None:
        """Copy V `(d_in, r)` and U `(d_out, r)` to where they are frames."""
        for name, values in (("down", right.T), ("up", left)):
            if is_frozen(self, name):
                self.get_parameter(name).copy_(values)

    @property
    def linear(self) -> bool:
        """Whether the delta has no circuit and no module in its place (`qubits=0` or `qnn="none"`)."""
        return self.qnn is None

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Of rank r without a circuit; else None."""
        if not self.linear:
            return None
        if self.one_sided:
            return self.up, self.scale * self.down
        assert self.core is not None  # checked by the config
        return self.up, self.scale * self.core @ self.down

    def forward(self, x: Tensor) -> Tensor:
        """The delta of QCORE: `(..., d_in) -> (..., d_out)`.

            (alpha / r) U (M u + K z(G u)),  u = V^T dropout(x)

        M is the identity with `trained="factor"`. With `fusion="multiply"`, `M u` is weighted by `1 + K z(G u)`, element-wise.
        """
        u = nn.functional.linear(self.dropout(x), self.down)
        v = u if self.one_sided else nn.functional.linear(u, self.core) if self.core is not None else None
        if self.qnn is not None:
            assert self.encode is not None
            assert self.decode is not None
            angles = self.encode(nn.functional.rms_norm(u, u.shape[-1:], eps=1e-3) if self.normalize else u)
            quantum = nn.functional.linear(self.qnn(angles).to(u.dtype), self.decode)
            v = quantum if v is None else torch.addcmul(v, v, quantum) if self.fusion == "multiply" else v + quantum
        assert v is not None  # checked by the config
        out: Tensor = nn.functional.linear(self.scale * v, self.up)
        return out
