"""Base weights of 16 bits on processors: products in float32 where the processor's 16-bit arithmetic is slower.

Without instructions for it torch's bfloat16 products are several times slower than float32 ones, with slow ones twice, and a model
in float32 takes twice the memory. Widening a weight block by block as it is used costs little vs. a product with many rows.
Sums are float32's, outputs the model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qpeft.training.environment import bfloat16_instructions

BLOCK = 1 << 20  # entries of a weight that are float32 at one time, 4 MiB
FEW = 8  # rows, below which widening costs more than it saves where there are no 16-bit instructions
FEW_OF_SLOW = 64  # the same where there are slow ones


class WideLinear(nn.Linear):
    """`nn.Linear` with a weight of 16 bits whose products are computed in float32, from `few` rows on, unless the weight itself is
    trained."""

    few: int

    def forward(self, input: Tensor) -> Tensor:
        """`x W^T + b` for inputs `(..., in_features)`: `(..., out_features)` in the input's dtype.

        Sums are float32 from `few` rows on; below that, while the weight is trained and while torch.compile traces, it is
        `nn.Linear`'s product.
        """
        learns = self.weight.requires_grad and torch.is_grad_enabled()
        if learns or input.shape[:-1].numel() < self.few or torch.compiler.is_compiling():
            return super().forward(input)
        out: Tensor = _Product.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return out


def widen(model: nn.Module) -> int:
    """Turn every linear layer of 16 bits into a WideLinear, in place and without copies; returns how many."""
    count = 0
    few = FEW if bfloat16_instructions() == "none" else FEW_OF_SLOW
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype in (torch.bfloat16, torch.float16):
            vars(module)["few"] = few
            module.__class__ = WideLinear
            count += 1
    return count


def compact(head: nn.Module) -> None:
    """Have an output layer take its rows as one block of memory.

    The states of last tokens alone, `(B, 1, d)` cut out of `(B, T, d)`, torch multiplies one by one, and lays a weight of 16 bits
    out anew for each: 3 s each for a vocabulary of 152,000, with bfloat16 instructions too, against 0.1 s for all as one block.
    """
    head.register_forward_pre_hook(_compacted)


def _compacted(head: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x, *rest = given
    apart = x.dim() == 3 and x.stride(0) != x.stride(1) * x.shape[1]
    return (x.clone(memory_format=torch.contiguous_format) if apart else x, *rest)


def _blocks(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    rows = max(1, BLOCK // weight.shape[1])
    for first in range(0, weight.shape[0], rows):
        part = slice(first, first + rows)
        yield part, weight[part].float()


class _Product(torch.autograd.Function):
    """`x W^T + b`; the gradient goes to x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        rows = x.reshape(-1, weight.shape[1]).float()
        out = rows.new_empty(len(rows), len(weight))
        for part, block in _blocks(weight):
            torch.mm(rows, block.T, out=out[:, part])
        if bias is not None:
            out += bias
        return out.to(x.dtype).view(*x.shape[:-1], len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        rows = grad.reshape(-1, len(weight))
        out = torch.zeros(len(rows), weight.shape[1], device=grad.device)
        for part, block in _blocks(weight):
            out.addmm_(rows[:, part].float(), block)
        return out.to(grad.dtype).view(*grad.shape[:-1], weight.shape[1]), None, None
