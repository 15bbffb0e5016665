"""Tests of the torch context of a call: transforms, forward mode, compilation, tensor subclasses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from qpeft.errors import CircuitError

_PLAIN = (Tensor, torch.nn.Parameter)
_VMAP = torch._C._functorch.TransformType.Vmap


def plain(*tensors: Tensor) -> bool:
    """Whether these are ordinary tensors, and nothing of torch is watching the call but autograd's backward mode."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    return all(t.layout is torch.strided and type(t) in _PLAIN and not t.is_meta for t in tensors)


def active() -> bool:
    """Whether a transform of torch.func or forward mode goes through the call."""
    return not torch.compiler.is_compiling() and (torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0)


def needs_record() -> bool:
    """Whether a derivative of torch.func, or a forward-mode derivative, goes through the call: every step must then be recorded.

    Plain vmap and torch.compile do not: they have rules of their own for the registered operators.
    """
    if not active():
        return False
    stack = torch._C._functorch.get_interpreter_stack() or []
    return forward_ad._current_level >= 0 or any(interpreter.key() != _VMAP for interpreter in stack)


def records_gradient(grad: Tensor) -> bool:
    """Whether a backward pass must be recorded: its result is differentiated again, or a transform goes through it."""
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(grad) or active()


def is_batch_of_gradients(grad: Tensor) -> bool:
    """Whether this is what `torch.autograd.grad(..., is_grads_batched=True)` hands to a backward pass."""
    return bool(torch._C._functorch.is_legacy_batchedtensor(grad))


def refuse(what: str) -> None:
    """Raise CircuitError inside a transform of torch.func or forward mode, for what is differentiated once, backwards."""
    if active():
        raise CircuitError(
            f"{what} has first derivatives in backward mode only",
            value="a transform of torch.func, or forward mode",
            hint="the Simulator follows every transform; or use torch.autograd.grad",
        )


def unwrapped(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself, or as a plain one if it is of a subclass that changes nothing about its numbers.

    Args:
        name: name of the argument, for the message.
        tensor: the argument.

    Raises:
        CircuitError: a subclass that holds its numbers elsewhere, such as a DTensor.
    """
    kind = type(tensor)
    if kind in _PLAIN or isinstance(tensor, FakeTensor) or torch.compiler.is_compiling():
        return tensor
    if kind.__torch_dispatch__ is Tensor.__torch_dispatch__:
        return tensor.as_subclass(Tensor)
    if kind.__name__ == "FunctionalTensor":
        return tensor
    hint = "gather it first: tensor.full_tensor()" if hasattr(tensor, "full_tensor") else "convert it to a plain tensor first"
    raise CircuitError(f"{name} must be a plain tensor", value=kind.__name__, bound="torch.Tensor, torch.nn.Parameter", hint=hint)
