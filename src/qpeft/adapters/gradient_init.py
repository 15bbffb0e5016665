"""Adapters whose start looks at training data: the gradient of the loss in each adapted layer's weight, before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from qpeft.adapters.base import Delta
from qpeft.adapters.peft import DeltaLayer
from qpeft.errors import AdapterError


def gradient_batches(model: nn.Module, adapter: str = "default") -> int:
    """How many batches the adapter's method wants to look at before training; 0 for most."""
    config: Any = getattr(model, "peft_config", {}).get(adapter)
    wanted = getattr(config, "gradient_batches", None)
    return int(wanted()) if wanted is not None else 0


def start_from_gradients(model: nn.Module, batches: Iterable[Mapping[str, Tensor]], adapter: str = "default") -> None:
    """Give each delta the mean gradient `dL / dW0 (d_out, d_in)` of the model's loss over `batches`.

    Call it once, after `get_peft_model` and before training, while the adapter is still a no-op. Gradients come from what enters
    a layer and the gradient of what leaves it, `sum over tokens of dL/dy x^T`, so that the base weights may be of any kind, and
    nothing but one matrix a layer is kept.

    Raises AdapterError when no batch reaches a layer.
    """
    wanting: dict[DeltaLayer, Delta] = {}
    for layer in model.modules():
        if isinstance(layer, DeltaLayer) and adapter in layer.deltas:
            delta = layer.deltas[adapter]
            assert isinstance(delta, Delta)
            if type(delta).start_from_gradient is not Delta.start_from_gradient:
                wanting[layer] = delta
    found: dict[nn.Module, Tensor] = {}

    def watch(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        x = arguments[0].detach()

        def gather(gradient: Tensor) -> None:
            dtype = wanting[layer].dtype  # type: ignore[index]
            product = gradient.flatten(0, -2).to(dtype).T @ x.flatten(0, -2).to(dtype)
            found[layer] = found[layer] + product if layer in found else product

        if output.requires_grad:  # it does not in the first of the two passes of gradient checkpointing
            output.register_hook(gather)  # type: ignore[no-untyped-call]

    handles = [layer.register_forward_hook(watch) for layer in wanting]
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
        delta.start_from_gradient(found[layer] / count)
