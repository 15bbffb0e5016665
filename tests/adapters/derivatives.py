"""A delta's gradients against finite differences."""

from __future__ import annotations

import torch
from torch import Tensor

from qpeft.adapters.base import Delta


def gradcheck(delta: Delta, x: Tensor) -> bool:
    """torch's gradcheck of the delta in its input and every parameter; all float64."""
    names, tensors = zip(*((name, p.detach().requires_grad_()) for name, p in delta.named_parameters()), strict=True)

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(delta, dict(zip(names, parameters, strict=True)), (x,))

    return torch.autograd.gradcheck(call, (x.detach().requires_grad_(), *tensors))
