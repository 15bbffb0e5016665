"""Questions about adapted models: their layers, parameters (and how many LoRA would have), merging, shared modules."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from qpeft.adapters.base import Delta
from qpeft.adapters.peft import config_class
from qpeft.adapters.peft.layer import DeltaLayer, layer_shape
from qpeft.errors import AdapterError, MergeError, QpeftError


def lora_parameters(model: nn.Module, config: PeftConfig) -> int:
    """Trainable parameters of PEFT's LoRA of the same rank on the modules that `config` targets.

    LoRA is built on a copy without data, on the meta device: PEFT decides what it adapts, fused experts included.

    Args:
        model: the base model, or one that an adapter was put into.
        config: any PEFT config. Its rank is `config.r`.

    Returns:
        0 for a config without a rank.
    """
    rank = getattr(config, "r", None)
    if not isinstance(rank, int):
        return 0
    settings: dict[str, Any] = {
        name: copy.copy(value)
        for name in ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "task_type")
        if (value := getattr(config, name, None))
    }
    lora = LoraConfig(r=rank, init_lora_weights=False, **settings)
    adapted = _adapted(without_data(model), lora)
    return sum(p.numel() for name, p in adapted.named_parameters() if ".lora_" in name)


def without_data(model: nn.Module) -> nn.Module:
    """A copy of a model on the meta device, its adapters taken out and quantised layers made plain: shapes without numbers."""
    memo: dict[int, Any] = {id(t): t.to("meta") for t in model.buffers()}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta"), p.is_floating_point())
    clone = copy.deepcopy(model, memo)
    if isinstance(clone, PeftModel):
        clone = clone.get_base_model()
    if hasattr(clone, "peft_config"):  # which PEFT leaves on the base model
        del clone.peft_config
    for name, module in list(clone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            _replace(clone, name, module.get_base_layer())
    for name, module in list(clone.named_modules()):
        if type(module) is not nn.Linear and isinstance(module, nn.Linear):  # quantised kin, which LoRA would build kernels for
            with torch.device("meta"):
                _replace(clone, name, nn.Linear(module.in_features, module.out_features, module.bias is not None))
    return clone


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def merges(model: nn.Module) -> bool:
    """Whether the active adapter of a PEFT model, ours or PEFT's, merges into the base weights; tried on a copy of one layer."""
    layer: Any = next((module for module in model.modules() if isinstance(module, BaseTunerLayer)), None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rounding, on quantised layers
            copy.deepcopy(layer).merge()
    except (MergeError, NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError):
        return False
    return True


def target_layers(model: nn.Module, target_modules: list[str] | str | None = None) -> list[tuple[str, int, int]]:
    """The layers that PEFT adapts, in order, as `(path, d_in, d_out)`.

    Args:
        model: the base model; adapted in place to find them.
        target_modules: as in PEFT; None for its defaults for the model.

    Raises:
        AdapterError: there are none.
    """
    config = config_class("QTHA")(r=1, tensor=False, qnn="none", target_modules=target_modules)  # the cheapest of ours
    adapted = _adapted(model, config).base_model.model
    layers = ((name, module) for name, module in adapted.named_modules() if isinstance(module, DeltaLayer))
    return [(name, *layer_shape(layer.get_base_layer())[:2]) for name, layer in layers]


def count_parameters(model: nn.Module, config: PeftConfig) -> dict[str, int]:
    """Count the parameters of a base model with an adapter put into it.

    Args:
        model: the base model, on any device, meta included; changed by the adapter.
        config: the adapter's PEFT config.

    Returns:
        `trainable`, `lora` (LoRA of the same rank on the same layers) and `base`.
    """
    base, lora = sum(p.numel() for p in model.parameters()), lora_parameters(model, config)
    adapted = _adapted(model, copy.deepcopy(config))
    return {"trainable": sum(p.numel() for p in adapted.parameters() if p.requires_grad), "lora": lora, "base": base}


def shared_modules(model: nn.Module) -> list[nn.Module]:
    """Modules with parameters that several adapted layers use, such as a circuit of `share_circuit="model"`; each once.

    FSDP2 needs each of them as a unit of its own, wrapped before the layers:

        for module in shared_modules(model):
            fully_shard(module)
        for layer in model.base_model.model.model.layers:
            fully_shard(layer)
    """
    used = (module for delta in model.modules() if isinstance(delta, Delta) for module in delta.shared)
    return [module for module in dict.fromkeys(used) if any(True for _ in module.parameters())]


def _adapted(model: nn.Module, config: PeftConfig) -> Any:
    """`get_peft_model`, whose complaints about target modules become an AdapterError."""
    try:
        return get_peft_model(model, config)
    except QpeftError:
        raise
    except ValueError as error:
        raise AdapterError(str(error)) from error
