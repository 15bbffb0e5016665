"""Methods that are studied and not shipped: LoRA-XS, and the search for something better inside its frozen frames.

LoRA-XS (arXiv 2405.17604): `delta(x) = U_r S_r M V_r^T x` with the r largest singular triples of `W0 = U S V^T` frozen and
an `(r, r)` core M trained. Its setting here: M starts at zero; `frames` chooses what is frozen:

    scaled    U_r S_r and V_r, as published
    plain     U_r and V_r
    random    orthonormal frames drawn at random

`qubits` puts a circuit into the core, `M u + K z(G u)` with G `(n, r)` and K `(r, n)` trained, K zero at the start, and `qnn` what
stands in the circuit's place. `path=False` leaves out M u, and the circuit is all there is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qpeft.adapters.base import Delta, RankConfig, make_dropout, one_of
from qpeft.adapters.controls import QNN_KINDS, Linear, make_qnn
from qpeft.adapters.registry import METHODS, Method, register

FRAMES = ("scaled", "plain", "random")


@dataclass
class FramesConfig(RankConfig):
    """Settings of the frozen frames and their core."""

    r: int = field(default=32, metadata={"help": "Rank of the frames: the core is r x r."})
    frames: str = field(default="scaled", metadata={"help": f"What is frozen: {', '.join(FRAMES)}."})
    qubits: int = field(default=0, metadata={"help": "Qubits of a circuit in the core; 0 is LoRA-XS."})
    n_layers: int = field(default=1, metadata={"help": "Layers of the circuit."})
    qnn: str = field(default="circuit", metadata={"help": f"The circuit or what stands in its place: {', '.join(QNN_KINDS)}."})
    path: bool = field(default=True, metadata={"help": "Whether M u is there."})

    def check(self) -> None:
        super().check()
        one_of("frames", self.frames, FRAMES)
        one_of("qnn", self.qnn, QNN_KINDS)


class Frames(Delta):
    """Frozen frames around a trained core; see the module's docstring."""

    down: Tensor
    up: Tensor

    def __init__(self, d_in: int, d_out: int, config: FramesConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__(d_in, d_out, config, scope)
        r = min(config.r, d_in, d_out)
        self.frames, self.scale, self.dropout = config.frames, config.scale, make_dropout(config.dropout)
        self.register_buffer("down", torch.zeros(r, d_in))
        self.register_buffer("up", torch.zeros(d_out, r))
        self.core = nn.Parameter(torch.zeros(r, r)) if config.path else None
        self.qnn = make_qnn(config.qnn, config.qubits, config.n_layers) if config.qubits else None
        if self.qnn is not None:
            self.encode = Linear(r, config.qubits)
            self.decode = nn.Parameter(torch.zeros(r, config.qubits))
        if not config.init_weights:
            for parameter in (self.core, getattr(self, "decode", None)):
                if parameter is not None:
                    parameter.data = torch.randn_like(parameter).sign() / math.sqrt(r)

    @torch.no_grad()
    def start_from(self, weight: Tensor) -> None:
        r = self.down.shape[0]
        if self.frames == "random":
            self.down.copy_(torch.linalg.qr(torch.randn(self.d_in, r))[0].T)
            self.up.copy_(torch.linalg.qr(torch.randn(self.d_out, r))[0])
            return
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        self.down.copy_(right[:r])
        self.up.copy_(left[:, :r] * values[:r] if self.frames == "scaled" else left[:, :r])

    @property
    def linear(self) -> bool:
        return self.qnn is None

    def forward(self, x: Tensor) -> Tensor:
        u = nn.functional.linear(self.dropout(x), self.down)
        v = nn.functional.linear(u, self.core) if self.core is not None else torch.zeros_like(u)
        if self.qnn is not None:
            v = v + nn.functional.linear(self.qnn(self.encode(u)).to(u.dtype), self.decode)
        return nn.functional.linear(self.scale * v, self.up)


def enter() -> None:
    """Make the studied methods PEFT methods, once."""
    if "LORA_XS" not in METHODS:
        register(Method("LORA_XS", FramesConfig, Frames, "arXiv 2405.17604", "a trained core between frozen singular vectors"))
