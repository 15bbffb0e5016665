"""Initialisation from training data: the gradient of the loss in each adapted layer's weight, before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from qpeft.adapters.base import Delta
from qpeft.adapters.peft.layer import DeltaLayer
from qpeft.errors import AdapterError


def gradient_batches(model: nn.Module, adapter: str = "default") -> int:
    """How many batches the adapter's method needs before training; 0 for most methods.

    Args:
        model: the adapted model.
        adapter: name of the adapter.
    """
    config: Any = getattr(model, "peft_config", {}).get(adapter)
    wanted = getattr(config, "gradient_batches", None)
    return int(wanted()) if wanted is not None else 0


def init_from_gradients(model: nn.Module, batches: Iterable[Mapping[str, Tensor]], adapter: str = "default") -> None:
    """Initialise each delta with the mean gradient `dL / dW0 (d_out, d_in)` of the model's loss over `batches`.

    Call it once, after `get_peft_model` and before training, while the adapter is still a no-op. Gradients are
    `sum over tokens of dL/dy x^T`, from the inputs of a layer and the gradient of its outputs. So base weights may be quantised,
    and one matrix per layer is held.

    Args:
        model: a PEFT model.
        batches: keyword arguments of the model, labels included.
        adapter: the adapter's name.

    Raises:
        AdapterError: no batch reaches a layer.
    """
    wanting: dict[DeltaLayer, Delta] = {}
    for layer in model.modules():
        if isinstance(layer, DeltaLayer) and adapter in layer.deltas:
            delta = layer.delta(adapter)
            if type(delta).init_from_gradient is not Delta.init_from_gradient:
                wanting[layer] = delta
    found: dict[nn.Module, Tensor] = {}

    def observe(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        x = arguments[0].detach()

        def gather(gradient: Tensor) -> None:
            dtype = wanting[layer].dtype  # type: ignore[index]
            product = gradient.flatten(0, -2).to(dtype).T @ x.flatten(0, -2).to(dtype)
            found[layer] = found[layer] + product if layer in found else product

        if output.requires_grad:  # it does not in the first of the two passes of gradient checkpointing
            output.register_hook(gather)  # type: ignore[no-untyped-call]

    handles = [layer.register_forward_hook(observe) for layer in wanting]
    count = 0
    try:
        for batch in batches:
            model(**batch).loss.backward()
            count += 1
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
    for layer, delta in wanting.items():
        if layer not in found:
            raise AdapterError("no gradient reached a layer", value=repr(layer), hint="at least one batch, with labels")
        delta.init_from_gradient(found[layer] / count)
