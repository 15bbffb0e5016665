"""QCORE, our own: one side of a layer, or a small core, trained beside frozen frames, with a circuit in it or without.

    delta(x) = (alpha / r) U (u + K z(G u)),   u = V^T x          trained="side"
    delta(x) = (alpha / r) U (M u + K z(G u))                     trained="core"

Of a layer's two sides V `(d_in, r)` and U `(d_out, r)` the smaller one is trained, zero at the start: U if d_out <= d_in, else V.
The other is a frame: frozen, orthonormal in its columns. Around a core M `(r, r)`, trained from zero, both are frames. K `(r, n)`,
zero at the start, and G `(n, r)` are trained; z is QTHA's circuit of n qubits (ansatz.qtha), or what stands in its place; with
`pairs` it holds `<Z_j Z_k>` too and K is `(r, n (n + 1) / 2)`. With `fusion="multiply"` the circuit is a gate, `1 + K z(G u)` times
what it is added to, element-wise. Where the frames come from:

    random     drawn at random
    gradient   the r largest singular vectors of the loss's gradient in W0, over some batches of training data at the start:
               what a step of full fine-tuning would move (first_gradients.py; a recipe's run does it by itself)
    weight     those of W0
    scaled     those of W0, U times its singular values: with a core and `qubits=0` LoRA-XS (arXiv 2405.17604)

A side costs `r min(d_in, d_out)` trained numbers and is, without a circuit, LoRA with one factor frozen, as in LoRA-FA (arXiv
2308.03303). A core costs `r^2`, whatever the layer's size, and is confined to the frames' directions. A circuit adds `2 n r` and
its angles. Frames are saved with the adapter. Gradient frames around a core are LoRA-SB's idea (arXiv 2411.19557), which starts M
at the gradient itself; here the start is a no-op.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qpeft.adapters.base import Delta, RankConfig, make_dropout, natural, one_of, positive
from qpeft.adapters.controls import CIRCUITS, MEASURED, QNN_KINDS, STORED, Linear, make_qnn, pairs_of_z
from qpeft.errors import AdapterError

FRAMES = ("random", "gradient", "weight", "scaled")
TRAINED = ("side", "core")


@dataclass
class QCoreConfig(RankConfig):
    """Settings of QCORE."""

    r: int = field(default=6, metadata={"help": "Rank of the frames; a core is r x r."})
    frames: str = field(default="random", metadata={"help": f"Where the frames come from: {', '.join(FRAMES)}."})
    trained: str = field(default="side", metadata={"help": "side: the layer's smaller side. core: M between two frames."})
    batches: int = field(default=8, metadata={"help": "Batches of training data for gradient frames."})
    qubits: int = field(default=4, metadata={"help": "Qubits of the circuit; 0 leaves it out."})
    n_layers: int = field(default=1, metadata={"help": "Layers of the circuit."})
    qnn: str = field(default="circuit", metadata={"help": f"The circuit or what stands in its place: {', '.join(QNN_KINDS)}."})
    circuit: str = field(
        default="qtha", metadata={"help": f"Which circuit, by its name in qpeft.circuits.ansatz: {', '.join(CIRCUITS)}."}
    )
    fusion: str = field(
        default="add", metadata={"help": "add: K z is added to u or M u. multiply: 1 + K z weights it, element-wise."}
    )
    matrix: bool = field(default=True, metadata={"help": "False leaves out a core's M u: the circuit alone."})
    pairs: bool = field(default=False, metadata={"help": "Read Z_j Z_k too, from the same shots: n (n + 1) / 2 values."})
    normalise: bool = field(default=False, metadata={"help": "Give the circuit u / sqrt(mean(u^2) + 0.001): angles of one scale."})

    def check(self) -> None:
        super().check()
        one_of("frames", self.frames, FRAMES)
        one_of("trained", self.trained, TRAINED)
        if self.trained == "side" and self.frames == "scaled":
            raise AdapterError("scaled frames are LoRA-XS's, around a core", value="trained='side'", hint="trained='core'")
        if self.trained == "side" and not self.matrix:
            raise AdapterError(
                "matrix=False leaves out M, which trained='side' does not have", value="matrix=False", hint="trained='core'"
            )
        one_of("qnn", self.qnn, (*QNN_KINDS, STORED))
        positive("batches", self.batches)
        positive("n_layers", self.n_layers)
        natural("qubits", self.qubits)
        one_of("circuit", self.circuit, CIRCUITS)
        one_of("fusion", self.fusion, ("add", "multiply"))
        if self.circuit != "qtha" and self.qnn == "product":
            raise AdapterError("only QTHA's circuit comes without its entangling gates", value=self.circuit, hint="circuit='qtha'")
        if self.fusion == "multiply" and not self.matrix:
            raise AdapterError("fusion='multiply' weights M u by the circuit", value="matrix=False", hint="fusion='add'")
        if not self.matrix and (self.qubits == 0 or self.qnn == "none"):
            raise AdapterError("nothing is left without the matrix", value=f"qubits={self.qubits}, qnn={self.qnn}")
        if self.pairs and self.qnn not in MEASURED:
            raise AdapterError("pairs are read from a circuit", value=self.qnn, bound=", ".join(MEASURED))

    def gradient_batches(self) -> int:
        return self.batches if self.frames == "gradient" else 0

    @classmethod
    def budget_grid(cls, rank: int) -> list[dict[str, Any]]:
        """Cores of several ranks, whose size is the same in every layer, then sides; the rank of LoRA does not matter."""
        cores = [{"r": r, "trained": "core", "frames": "gradient"} for r in (4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64)]
        return cores + [{"r": r} for r in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)]


class QCore(Delta):
    """The delta of QCORE; see the module's docstring."""

    down: Tensor
    up: Tensor

    def __init__(self, d_in: int, d_out: int, config: QCoreConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__(d_in, d_out, config, scope)
        r = min(config.r, d_in, d_out)
        self.frames, self.scale, self.dropout = config.frames, config.scale, make_dropout(config.dropout)
        self.side = config.trained == "side"
        for name, shape, free in (("down", (r, d_in), d_out > d_in), ("up", (d_out, r), d_out <= d_in)):  # down is V^T
            if self.side and free:
                self.register_parameter(name, nn.Parameter(torch.zeros(shape)))
            else:
                self.register_buffer(name, torch.zeros(shape))
        self.core = nn.Parameter(torch.zeros(r, r)) if config.matrix and not self.side else None
        read = pairs_of_z(config.qubits) if config.pairs else None
        self.qnn = make_qnn(config.qnn, config.qubits, config.n_layers, read, name=config.circuit) if config.qubits else None
        self.encode = Linear(r, config.qubits) if self.qnn is not None else None
        self.decode = nn.Parameter(torch.zeros(r, len(read) if read else config.qubits)) if self.qnn is not None else None
        self.normalise, self.fusion = config.normalise, config.fusion
        if not config.init_weights:
            for parameter in (self.core, self.decode, self.down, self.up):
                if isinstance(parameter, nn.Parameter):
                    parameter.data = torch.randn_like(parameter).sign() / math.sqrt(r)

    @torch.no_grad()
    def start_from(self, weight: Tensor) -> None:
        r = self.down.shape[0]
        if self.frames == "random":
            self._frame(*(torch.linalg.qr(torch.randn(size, r).to(self.up))[0] for size in (self.d_in, self.d_out)))
            return
        values = self._span(weight)
        if self.frames == "scaled":
            self.up.mul_(values)

    def start_from_gradient(self, gradient: Tensor) -> None:
        self._span(gradient)

    @torch.no_grad()
    def _span(self, matrix: Tensor) -> Tensor:
        """Frames from the largest singular vectors of a `(d_out, d_in)` matrix; its r largest singular values."""
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        r = self.down.shape[0]
        signs = left[:, :r].sum(dim=0).sign()  # a singular vector's sign is arbitrary: the same on every machine
        signs[signs == 0] = 1
        self._frame((right[:r] * signs[:, None]).T, left[:, :r] * signs)
        largest: Tensor = values[:r]
        return largest

    def _frame(self, right: Tensor, left: Tensor) -> None:
        """Take V and U over where they are frames."""
        for frame, values in ((self.down, right.T), (self.up, left)):
            if not isinstance(frame, nn.Parameter):
                frame.copy_(values)

    @property
    def linear(self) -> bool:
        return self.qnn is None

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Without a circuit the delta is of rank r."""
        if not self.linear:
            return None
        if self.side:
            return self.up, self.scale * self.down
        assert self.core is not None  # checked by the config
        return self.up, self.scale * self.core @ self.down

    def forward(self, x: Tensor) -> Tensor:
        u = nn.functional.linear(self.dropout(x), self.down)
        v = u if self.side else nn.functional.linear(u, self.core) if self.core is not None else None
        if self.qnn is not None:
            assert self.encode is not None
            assert self.decode is not None
            angles = self.encode(nn.functional.rms_norm(u, u.shape[-1:], eps=1e-3) if self.normalise else u)
            quantum = nn.functional.linear(self.qnn(angles).to(u.dtype), self.decode)
            v = quantum if v is None else torch.addcmul(v, v, quantum) if self.fusion == "multiply" else v + quantum
        assert v is not None  # checked by the config
        out: Tensor = nn.functional.linear(self.scale * v, self.up)
        return out
