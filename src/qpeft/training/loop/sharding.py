"""Several processes on one model: what data-parallel training (DDP) must know of circuits, and sharded parameters.

With FSDP2 each decoder layer is a unit whose parameters are gathered for its forward and backward pass. What several layers share,
such as one circuit for the whole model, is a unit of its own, made first: a part of two units would be gathered by neither.
Checkpoints hold whole tensors, so that they load on any number of processes. DeepSpeed shards by itself, and its checkpoints hold
each process's part of the optimizer's state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qpeft.errors import RunError
from qpeft.training.processes import Processes
from qpeft.training.recipe.training_section import TrainingSection


def is_sharded(section: TrainingSection, processes: Processes) -> bool:
    """Whether the recipe or the launcher asks for sharded parameters, and there are processes to share them out among.

    Args:
        section: the recipe's `training` section.
        processes: the processes that train together.
    """
    return processes.count > 1 and (section.distributed == "fsdp2" or processes.shard)


def trains_what_is_sharded() -> bool:
    """Whether transformers' trainer takes a model whose parameters are sharded already."""
    from transformers import Trainer

    return hasattr(Trainer, "_sync_replicated_trainable_parameters")


def leave_to_circuits(model: nn.Module, names: Iterable[str]) -> None:
    """Keep DDP from waiting for gradients that circuits add after the backward pass.

    Args:
        model: the model that DDP will wrap, changed in place.
        names: its parameters that get these gradients.
    """
    from torch.nn.parallel import DistributedDataParallel

    if chosen := sorted(names):
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, chosen)  # type: ignore[no-untyped-call]


def shard(model: Any) -> None:
    """Shard the parameters of a model among all processes, in place: shared modules, decoder layers, then the rest.

    Raises:
        RunError: this version of transformers would copy the sharded parameters to every process (DDP).
    """
    import torch.distributed as dist
    import transformers
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from qpeft.adapters.inspection import shared_modules

    if not trains_what_is_sharded():
        told = {"value": f"transformers {transformers.__version__}", "bound": "5.20 or newer"}
        raise RunError("transformers does not train sharded parameters", **told, hint="training.distributed: ddp")

    device = "cpu" if not torch.accelerator.is_available() else torch.accelerator.current_accelerator().type  # type: ignore[union-attr]
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for module in [*shared_modules(model), *_decoder_layers(model)]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that transformers says must not be split."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise RunError("the model does not name its decoder layers, so it cannot be sharded", hint="training.distributed: ddp")
    return layers


def full_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The adapter's tensors and what else is trained, whole, on the CPU; every process has to call it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        inside = any(name.startswith(f"{layer}.") for layer in layers) and ".base_layer." not in name
        if inside or tensor.requires_grad:
            found[name] = _whole(tensor)
    return found


def load_full_state(model: Any, checkpoint: Path) -> None:
    """Put the adapter of a checkpoint into a sharded model."""
    from peft import load_peft_weights
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    weights = load_peft_weights(str(checkpoint), device="cpu")
    adapter = model.active_adapter
    named = dict(model.state_dict(keep_vars=True))
    state = {_name_with_adapter(name, adapter, named): tensor for name, tensor in weights.items()}
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, strict=False))


def _name_with_adapter(name: str, adapter: str, named: dict[str, Any]) -> str:
    """A name of a saved adapter as the model has it: PEFT leaves the adapter's name out of files."""
    if name in named:
        return name
    parts = name.split(".")
    for at in range(len(parts), 0, -1):
        longer = ".".join([*parts[:at], adapter, *parts[at:]])
        if longer in named:
            return longer
    raise RunError("the checkpoint has a tensor that the adapter has not", value=name)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor on the CPU, without a gradient."""
    if hasattr(tensor, "ds_id"):  # DeepSpeed's ZeRO-3
        import deepspeed  # type: ignore[import-not-found, unused-ignore]

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().cpu().clone()
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).cpu()


@contextlib.contextmanager
def whole_optimizer_state(optimizer: Any, sharded: bool) -> Iterator[None]:
    """Let `optimizer.state_dict()` hold whole tensors, gathered here by every process.

    Args:
        optimizer: the optimizer.
        sharded: whether parameters are sharded; False does nothing.
    """
    if not sharded:
        yield
        return
    state = optimizer.state_dict()
    state["state"] = {
        key: {name: _whole(value) if isinstance(value, torch.Tensor) else value for name, value in values.items()}
        for key, values in state["state"].items()
    }
    optimizer.state_dict = lambda: state
    try:
        yield
    finally:
        del optimizer.state_dict


@contextlib.contextmanager
def split_optimizer_state(optimizer: Any, sharded: bool) -> Iterator[None]:
    """Let `optimizer.load_state_dict()` take whole tensors and give each process its part of them.

    Args:
        optimizer: the optimizer.
        sharded: whether parameters are sharded; False does nothing.
    """
    if not sharded:
        yield
        return
    from torch.distributed.tensor import distribute_tensor

    load = optimizer.load_state_dict

    def load_split(state: dict[str, Any]) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for key, values in state["state"].items():
            parameter = parameters[key]
            for name, value in values.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape and hasattr(parameter, "device_mesh"):
                    values[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements)
        load(state)

    optimizer.load_state_dict = load_split
    try:
        yield
    finally:
        del optimizer.load_state_dict


@contextlib.contextmanager
def without_reduction(model: Any) -> Iterator[None]:
    """Add gradients up in each process, without reducing them, until the last batch of a step."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)
