"""QPA, quantum parameter adaptation (arXiv 2410.09846): a circuit without input and a small network generate the LoRA factors.

The `m = r (d_in + d_out)` numbers of A and B are cut into `nb = ceil(m / chunk_size)` chunks. A circuit of `n = ceil(log2 nb)`
qubits and L layers (RY on all, linear CNOTs) has probabilities `p_i`, rescaled and centred:

    s_i = (0.6 tanh(0.1 2^(n-1) p_i))^0.15,    s_i - mean(s)

The mapping network, the same for all chunks, takes the n bits of i as +-1, most significant first, and `s_i - mean(s)`, and
emits chunk i. Its layers are `n+1 -> hidden_sizes... -> map_width -> chunk_size`, with biases.

    delta = (alpha / r) B diag(gate) A x        gate: r trained numbers, zero at the start

Published: chunk_size 2048, L = 8, hidden_sizes (32, 64, 128, 128, 64, 32), map_width 32, no gate.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qpeft.adapters.base import RankConfig, one_of, positive
from qpeft.adapters.layers.generated_lora import GENERATORS, GeneratedLora, Probabilities, qubits_for
from qpeft.errors import AdapterError

SILU_GAIN = 1.68  # 1 / sqrt(E[silu(x)^2]) for a standard normal x: keeps the size of activations from layer to layer
FLOOR = 1e-6  # added to 2^(n-1) p: the power 0.15 has no derivative at zero


@dataclass
class QPAConfig(RankConfig):
    """Settings of QPA. Sizes are the published ones."""

    chunk_size: int = field(default=2048, metadata={"help": "Numbers that one basis state generates."})
    n_layers: int = field(default=8, metadata={"help": "Layers L of the circuit."})
    hidden_sizes: list[int] = field(
        default_factory=lambda: [32, 64, 128, 128, 64, 32], metadata={"help": "Widths of the mapping network."}
    )
    map_width: int = field(default=32, metadata={"help": "Width before the mapping network's last layer."})
    activation: Literal["silu", "none"] = field(
        default="silu", metadata={"help": "Between the mapping network's layers. 'none' is the authors' code, an affine map."}
    )
    share: Literal["none", "layer", "model"] = field(
        default="model",
        metadata={"help": "Which modules share a mapping network (those with as many qubits). Circuits are never shared."},
    )
    generator: Literal["circuit", "product", "hashed", "frozen"] = field(
        default="circuit", metadata={"help": "The circuit or what stands in its place."}
    )

    def check(self) -> None:
        """Extends the base class's checks.

        Raises:
            AdapterError: a size or number of layers below 1, no hidden layer, or an unknown activation, share or generator.
        """
        super().check()
        for name in ("chunk_size", "n_layers", "map_width"):
            positive(name, getattr(self, name))
        if not self.hidden_sizes:
            raise AdapterError("the mapping network needs a hidden layer", hint="hidden_sizes=[32]")
        for size in self.hidden_sizes:
            positive("each of hidden_sizes", size)
        one_of("activation", self.activation, ("silu", "none"))
        one_of("share", self.share, ("none", "layer", "model"))
        one_of("generator", self.generator, GENERATORS)

    def sharing_scope(self) -> str:
        """The setting `share`: modules of one scope with equal numbers of qubits have one mapping network."""
        return self.share

    @classmethod
    def budget_grid(cls, rank: int) -> list[dict[str, Any]]:
        """Small mapping networks, then the published one, with chunks of several sizes."""
        small = [
            {"r": rank, "hidden_sizes": [16], "map_width": width, "chunk_size": 2**k}
            for k in range(4, 12)
            for width in (2, 4, 8, 16)
        ]
        return small + [{"r": rank, "chunk_size": size} for size in (64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096)]


class MappingNetwork(nn.Module):
    """The mapping network, `(nb, n + 1) -> (nb, chunk_size)`: layers of unit gain, biases zero at the start."""

    def __init__(self, sizes: list[int], activation: str) -> None:
        super().__init__()
        self.silu = activation == "silu"
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        self.layers = nn.ModuleList(layers)
        for k, layer in enumerate(layers):
            nn.init.normal_(layer.weight, 0.0, (SILU_GAIN if self.silu and k else 1.0) / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Chunks `(nb, chunk_size)` from `x (nb, n + 1)`: the bits of i as +-1, then the centred `s_i`."""
        for k, layer in enumerate(self.layers):
            x = layer(nn.functional.silu(x) if self.silu and k else x)
        return x


class QPA(GeneratedLora):
    """The delta of QPA; see the module's docstring."""

    def __init__(self, d_in: int, d_out: int, config: QPAConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__(d_in, d_out, config, scope)
        self.size = config.r * (d_in + d_out)
        self.n_chunks = -(-self.size // config.chunk_size)
        n = qubits_for(self.n_chunks)
        self.probabilities = Probabilities(config.generator, n, config.n_layers)
        index = torch.arange(self.n_chunks, device="cpu")
        bits = (index[:, None] >> torch.arange(n - 1, -1, -1, device="cpu")) & 1
        self.register_buffer("bits", 2.0 * bits - 1.0, persistent=False)
        name = f"mapping of {n} qubits"
        self.mapping: MappingNetwork | None = None
        if name in scope:
            self.shared = (scope[name],)
        else:
            self.mapping = MappingNetwork([n + 1, *config.hidden_sizes, config.map_width, config.chunk_size], config.activation)
            scope[name] = self.mapping

    def numbers(self) -> Tensor:
        """Entries of A, then of B, `(r (d_in + d_out),)`: the chunks in order, without the last one's surplus."""
        # The cache does not see a shared network change
        return self._generate() if self.shared else self.cached("numbers", self._generate)

    def _generate(self) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            p = self.probabilities()
            n_states = len(p)
            s = (0.6 * torch.tanh(0.1 * (p.clamp_min(0.0) * (n_states / 2) + FLOOR))) ** 0.15
            inputs = torch.cat([self.get_buffer("bits"), (s - s.mean())[: self.n_chunks, None].to(self.dtype)], dim=1)
            chunks: Tensor = (self.shared[0] if self.shared else self.mapping)(inputs)  # type: ignore[misc]
        return chunks.flatten()[: self.size]
