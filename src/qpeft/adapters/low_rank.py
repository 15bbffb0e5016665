"""Low-rank matrices that replace a layer's adapter: exact, by singular value decomposition, or fitted to its outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from qpeft.adapters.peft.layer import DeltaLayer
from qpeft.errors import AdapterError, MergeError

Way = Literal["exact", "svd", "fitted"]


@dataclass(frozen=True)
class LowRank:
    """`up (d_out, k)` times `down (k, d_in)`, plus `bias (d_out)` if any, in place of a layer's adapter; float32.

    Attributes:
        up, down: the factors.
        way: how they were found.
        relative_error: `|delta - up down|_F / |delta|_F` for "exact" and "svd", and the same of the delta's outputs on the
            calibration inputs for "fitted".
        bias: a constant, where one was fitted.
    """

    up: Tensor
    down: Tensor
    way: Way
    relative_error: float
    bias: Tensor | None = None

    @property
    def rank(self) -> int:
        """The rank k: columns of `up`, rows of `down`."""
        return int(self.down.shape[0])


@torch.no_grad()
def exact(layer: Any, adapter: str) -> LowRank | None:
    """The factors of a delta that is of low rank by construction; None for others.

    Args:
        layer: an adapted layer of qpeft's, or one of PEFT's plain LoRA.
        adapter: name of the adapter.
    """
    if not isinstance(layer, DeltaLayer):
        return _of_lora(layer, adapter)
    delta = _delta(layer, adapter)
    factors = delta.factors()
    if factors is None:
        return None
    up, down = (factor.detach() for factor in factors)
    if delta.position != "parallel":
        base = _base_weight(layer).to(up)
        up, down = (base @ up, down) if delta.position == "input" else (up, down @ base)
    return LowRank(up.float(), down.float(), "exact", 0.0)


@torch.no_grad()
def delta_weight(layer: Any, adapter: str) -> Tensor | None:
    """Change of the layer's weight, `(d_out, d_in)`; None for an adapter that is not linear.

    For qpeft's layers and for those of PEFT's methods that say they are additive.
    """
    if isinstance(layer, DeltaLayer):
        if not _delta(layer, adapter).linear:
            return None
        if _delta(layer, adapter).position != "parallel":
            _base_weight(layer)  # refuses a quantised one
    elif not layer.supports_lora_conversion(adapter) or not hasattr(layer, "get_delta_weight"):
        return None
    weight: Tensor = layer.get_delta_weight(adapter).detach()
    return weight.T if transposed(layer) else weight


def truncated(weight: Tensor, *, rank: int | None = None, tolerance: float = 0.0) -> LowRank:
    """The best approximation of `weight` of a rank, or of the least rank whose relative Frobenius error is within `tolerance`.

    A rank above that of the matrix is cut to it. A zero matrix has one zero factor.
    """
    u, s, v = torch.linalg.svd(weight.float(), full_matrices=False)
    energy = s.double().square()
    total = float(energy.sum())
    tails = torch.cat([energy.flip(0).cumsum(0).flip(0)[1:], energy.new_zeros(1)])  # left out after k + 1 values
    errors = (tails / total).sqrt() if total else torch.zeros_like(tails)
    if rank is None:
        rank = int((errors > tolerance).sum()) + 1  # errors fall, and the last is zero
    rank = min(rank, len(s))
    root = s[:rank].sqrt()
    return LowRank(u[:, :rank] * root, root[:, None] * v[:rank], "svd", float(errors[rank - 1]))


class Moments:
    """Second moments of inputs `x (n, d_in)` and of what the adapter adds to the outputs `y (n, d_out)`, in float64.

    All that the least squares below need of any amount of text: `d_in (d_in + d_out)` numbers.
    """

    def __init__(self, d_in: int, d_out: int, device: torch.device | None = None) -> None:
        self.count = 0
        self.x, self.y = (torch.zeros(d, dtype=torch.float64, device=device) for d in (d_in, d_out))
        self.xx = torch.zeros(d_in, d_in, dtype=torch.float64, device=device)
        self.xy = torch.zeros(d_in, d_out, dtype=torch.float64, device=device)
        self.square_y = 0.0  # sum of the squares of y

    @torch.no_grad()
    def add(self, x: Tensor, y: Tensor, xx: Tensor | None = None) -> None:
        """Add a batch of rows to the sums, in float64.

        Args:
            x: inputs of the layer `(n, d_in)`.
            y: what the adapter adds to the outputs for them, `(n, d_out)`.
            xx: `x.T @ x` in float64, where another layer with the same inputs has it.
        """
        x, y = x.double(), y.double()
        self.count += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x if xx is None else xx
        self.xy += x.T @ y
        self.square_y += float(y.square().sum())


@torch.no_grad()
def fitted(moments: Moments, rank: int, *, ridge: float = 1e-5, bias: bool = False) -> LowRank:
    """Reduced-rank regression: the low-rank matrix of least squared error in the outputs.

    With `G = X'X + ridge * tr(X'X)/d I` the unrestricted solution is `M = G^-1 X'Y`; the best one of rank k is `M V V'`, V the
    k leading eigenvectors of `M' G M` (Izenman 1975). The ridge keeps directions quiet in which the text says little.

    Args:
        moments: sums over the layer's inputs and outputs.
        rank: k.
        ridge: regularisation, relative to the mean square of an input.
        bias: fit a constant as well.

    Raises:
        AdapterError: the moments count no token.
    """
    if moments.count == 0:
        raise AdapterError("no calibration tokens reached the layer", hint="more or longer calibration rows")
    n = moments.count
    xx, xy, square_y = moments.xx, moments.xy, moments.square_y
    mean_x, mean_y = moments.x / n, moments.y / n
    if bias:
        xx = xx - n * torch.outer(mean_x, mean_x)
        xy = xy - n * torch.outer(mean_x, mean_y)
        square_y -= n * float(mean_y.square().sum())
    d_in = len(xx)
    scale = float(xx.trace()) / d_in
    gram = xx + (ridge * scale if scale > 0 else 1.0) * torch.eye(d_in, dtype=xx.dtype, device=xx.device)
    full = torch.linalg.solve(gram, xy)
    _, vectors = torch.linalg.eigh(full.T @ xy)  # ascending; M' G M = M' X'Y
    up = vectors.flip(1)[:, : min(rank, *xy.shape)]
    down = (full @ up).T
    residual = square_y - float(2 * (down @ xy @ up).trace() - (down @ xx @ down.T).trace())
    constant = mean_y - up @ (down @ mean_x) if bias else None
    error = (max(residual, 0.0) / total) ** 0.5 if (total := moments.square_y) > 0 else 0.0
    balance = down.norm(dim=1).clamp_min(1e-30).sqrt()  # both factors of one size, as further training likes them
    up, down = (up * balance).float().contiguous(), (down / balance[:, None]).float().contiguous()
    return LowRank(up, down, "fitted", error, None if constant is None else constant.float())


@torch.no_grad()
def added(layer: Any, adapter: str, x: Tensor) -> Tensor:
    """Change of the layer's output for inputs `x (n, d_in)`: `(n, d_out)`, in the adapter's precision."""
    if not isinstance(layer, DeltaLayer):
        change: Tensor = layer(x) - layer.base_layer(x)
        return change
    delta = _delta(layer, adapter)
    x = x.to(delta.dtype)
    if delta.position == "parallel":
        return delta(x)  # type: ignore[no-any-return]
    base = _base_weight(layer).to(delta.dtype)
    if delta.position == "input":
        return torch.nn.functional.linear(delta(x), base)
    return delta(torch.nn.functional.linear(x, base))  # type: ignore[no-any-return]


def transposed(layer: Any) -> bool:
    """Whether the layer's weight is stored `(d_in, d_out)`, as GPT-2's Conv1D does."""
    return bool(getattr(layer, "transposed", getattr(layer, "fan_in_fan_out", False)))


def _delta(layer: DeltaLayer, adapter: str) -> Any:
    if layer.merged:
        raise MergeError("the adapter is merged into the base weights", hint="unmerge_adapter() before the export")
    if adapter not in layer.deltas:
        raise AdapterError("the layer has no such adapter", value=adapter, bound=", ".join(layer.deltas))
    return layer.delta(adapter)


def _base_weight(layer: DeltaLayer) -> Tensor:
    """`W0 (d_out, d_in)`; a quantised one is refused."""
    weight = getattr(layer.get_base_layer(), "weight", None)
    if weight is None or not weight.is_floating_point() or weight.numel() != layer.in_features * layer.out_features:
        raise MergeError(
            "the adapter multiplies a base weight that is quantised",
            value=type(layer.get_base_layer()).__name__,
            hint="load the base model without quantisation to export",
        )
    found: Tensor = weight.detach()
    return found.T if layer.transposed else found


def _of_lora(layer: Any, adapter: str) -> LowRank | None:
    """PEFT's own LoRA on a linear layer, without its variants (DoRA and kin)."""
    plain = getattr(layer, "lora_A", None)
    if plain is None or adapter not in plain or getattr(layer, "lora_variant", {}).get(adapter) is not None:
        return None
    up, down = layer.lora_B[adapter], layer.lora_A[adapter]
    bias = None if up.bias is None else (layer.scaling[adapter] * up.bias).detach().float()
    return LowRank((layer.scaling[adapter] * up.weight).detach().float(), down.weight.detach().float(), "exact", 0.0, bias)
