"""The tuner that PEFT builds for a method: which modules are adapted, what they share, batches that name an adapter per sample."""

from __future__ import annotations

import copy
import dataclasses
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from qpeft.adapters.base import AdapterConfig, Delta, scope_key
from qpeft.adapters.peft.layer import BASE, DeltaLayer
from qpeft.adapters.registry import METHODS
from qpeft.adapters.weighted_sum import WeightedSum
from qpeft.errors import AdapterError

EXPERT_DIMENSIONS = 3  # of a weight that holds one matrix for each expert
# Names that older model files give the matrices that are fused in a weight of today
FUSED = {"gate_up_proj": ("gate_proj", "up_proj", "w1", "w3"), "down_proj": ("w2",)}


class DeltaTuner(BaseTuner):  # type: ignore[misc]
    """Puts a DeltaLayer in the place of every target module."""

    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put an adapter into a model, as PEFT's `BaseTuner.inject_adapter`.

        Args:
            model: the base model, changed in place.
            adapter_name: a name in `peft_config`.
            *args: passed on to PEFT.
            **kwargs: passed on to PEFT.

        Raises:
            AdapterError: a target name that matches no module, even if another name matches; a target that is a fused weight of
                experts, which no module holds.
        """
        self._scopes: dict[str, dict[str, nn.Module]] = {}  # each adapter has its own shared state
        config = self.peft_config[adapter_name]
        targets, given = config.target_modules, not config.from_file and kwargs.get("state_dict") is None
        if given:
            check_targets(model, targets, config.exclude_modules)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def unload(self) -> nn.Module:
        """The base model as it was, merged adapters taken out again."""
        for layer in self.model.modules():
            if isinstance(layer, DeltaLayer) and layer.merged:
                layer.unmerge()
        base: nn.Module = super().unload()
        return base

    def _make(self, config: AdapterConfig, key: str, d_in: int, d_out: int, path: str = "") -> Delta:
        """The delta of the layer at module path `key`. Each part of a weighted sum, which `path` names, shares its own."""
        if parts := config.parts():
            made = [self._make(part, key, d_in, d_out, f"{path}/{index}") for index, (_, part) in enumerate(parts)]
            return WeightedSum(made, [weight for weight, _ in parts])
        group = scope_key(config.sharing_scope(), key)
        scope = {} if group is None else self._scopes.setdefault(f"{path}:{group}", {})
        return METHODS[str(config.peft_type)].delta(d_in, d_out, config.for_module(key), scope)  # type: ignore[attr-defined]

    def _create_and_replace(
        self,
        peft_config: AdapterConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        make = partial(self._make, peft_config, current_key)
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config, make)
            if adapter_name not in self.active_adapters:
                target.deltas[adapter_name].requires_grad_(False)
            return
        layer = self.tuner_layer_cls(target, adapter_name, peft_config, make)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def add_weighted_adapter(
        self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str, combination_type: str = "cat", **others: Any
    ) -> None:
        """Add an adapter that is the weighted sum of others, and holds a copy of each; it is not active and not trained yet.

        The sum is exact, as PEFT's `cat` is for LoRA, so that is the one `combination_type`. The sum merges where its parts do.

        Args:
            adapters: names of adapters on the same modules.
            weights: a factor for each.
            adapter_name: of the new adapter.
            combination_type: "cat".
            others: PEFT's further arguments, which belong to approximations.

        Raises:
            AdapterError: an unknown or taken name, another combination type, or adapters on different modules.
        """
        given = {"combination_type": combination_type, **others}
        if combination_type != "cat" or any(value is not None for value in others.values()):
            raise AdapterError(
                "weighted sums of this method are exact, without rank reduction",
                value=given,
                bound="combination_type='cat'",
                hint="qpeft export --to lora, then PEFT's own combinations of LoRA",
            )
        if adapter_name in self.peft_config:
            raise AdapterError("there is an adapter of this name", value=adapter_name, hint="another adapter_name")
        if not adapters or len(adapters) != len(weights):
            raise AdapterError("a weight for each adapter", value=len(weights), bound=len(adapters))
        if unknown := [name for name in adapters if name not in self.peft_config]:
            raise AdapterError("no such adapter", value=", ".join(unknown), bound=", ".join(self.peft_config))
        configs = [self.peft_config[name] for name in adapters]
        layers = [layer for layer in self.model.modules() if isinstance(layer, DeltaLayer)]
        different = [
            name
            for name, config in zip(adapters, configs, strict=True)
            if config.modules_to_save or any((name in layer.deltas) != (adapters[0] in layer.deltas) for layer in layers)
        ]
        if different:
            raise AdapterError(
                "adapters of a weighted sum are on the same modules, without modules_to_save",
                value=", ".join(different),
                hint="set several adapters active instead: set_adapter([..])",
            )
        total = copy.copy(configs[0])
        pairs = zip(configs, weights, strict=True)
        total.weighted_sum = [{"weight": float(weight), "settings": _delta_settings(config)} for config, weight in pairs]
        self.peft_config[adapter_name] = total
        self.inject_adapter(self.model, adapter_name)
        for layer in layers:
            if adapter_name in layer.deltas:
                made = layer.deltas[adapter_name]
                assert isinstance(made, WeightedSum)
                for part, name in zip(made.parts, adapters, strict=True):
                    part.load_state_dict(layer.delta(name).state_dict())
                made.awaits_weights = False
                made.requires_grad_(False)

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Iterator[None]:
        """Tell each layer on which adapter each sample of the batch runs, as PEFT's LoRA does; in evaluation alone."""
        if adapter_names is None:
            yield
            return
        if self.training:
            raise AdapterError("a batch that names an adapter for each sample is for inference", value=adapter_names, hint="eval()")
        layers = [layer for layer in self.modules() if isinstance(layer, DeltaLayer)]
        known = {BASE, *(name for layer in layers for name in layer.deltas)}
        if unknown := set(adapter_names) - known:
            raise AdapterError("no such adapter", value=", ".join(sorted(unknown)), bound=", ".join(sorted(known)))
        beams = kwargs.get("num_beams") or 1
        hook = partial(_name_adapters, [name for name in adapter_names for _ in range(beams)])
        wrappers = [module for module in self.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
        handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in (*layers, *wrappers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Saved keys hold no adapter name: `..q_proj.qtha_delta.NAME.mlp_a.weight` -> `..q_proj.qtha_delta.mlp_a.weight`."""
        ours = f".{cls.tuner_layer_cls.deltas_name}."
        head, found, tail = key.rpartition(f"{ours}{adapter_name}.")
        if not found:
            return super()._remove_adapter_name_from_key(key, adapter_name)  # type: ignore[no-any-return]
        return f"{head}{ours}{tail}"

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Adapters are made in float32; with `autocast_adapter_dtype=False` they follow their base layer."""
        if autocast_adapter_dtype:
            return super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)  # type: ignore[no-any-return]
        for layer in self.model.modules():
            if isinstance(layer, DeltaLayer) and adapter_name in layer.deltas:
                dtype = layer.device_and_dtype()[1]
                if dtype.is_floating_point:
                    layer.deltas[adapter_name].to(dtype)
        return None


def _delta_settings(config: AdapterConfig) -> dict[str, Any]:
    """A method's settings as JSON has them, without those of where it is put."""
    names = {field.name for field in dataclasses.fields(METHODS[str(config.peft_type)].config)}  # type: ignore[attr-defined]
    names -= {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"}
    return {name: value for name, value in config.to_dict().items() if name in names}  # type: ignore[attr-defined]


def _name_adapters(names: list[str], module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "adapter_names": names}


def check_targets(model: nn.Module, targets: Collection[str] | str | None, excluded: Collection[str] | str | None) -> None:
    """Refuse target names that match no module, and those of fused expert weights.

    Args:
        model: the base model.
        targets: a method's `target_modules`, as a user gave them. None (PEFT's defaults for the model) is not checked.
        excluded: `exclude_modules`. Experts that it names are left out on purpose.

    Raises:
        AdapterError: with every name that matches nothing, or the weights that cannot be adapted.
    """
    if targets is None:
        return
    modules = [name for name, _ in model.named_modules() if name]
    experts = [name for name in _expert_weights(model) if not _matches(name.rpartition(".")[0], excluded)]
    if isinstance(targets, str) and targets.lower() == "all-linear":
        if experts:
            warnings.warn(f"{_fused(experts)}: all-linear leaves them as they are", stacklevel=2)
        return
    if found := [name for name in experts if _targeted(name, targets)]:
        raise AdapterError(
            f"{_fused(found)} and cannot be adapted",
            value=targets if isinstance(targets, str) else ", ".join(sorted(targets)),
            hint="target other modules, or leave the experts out with exclude_modules='.*experts'",
        )
    if isinstance(targets, str):
        return  # PEFT refuses an expression that matches nothing
    if missing := sorted(name for name in targets if not any(_matches(module, {name}) for module in modules)):
        last = dict.fromkeys(name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "weight"))
        raise AdapterError(
            f"no module is called {', '.join(missing)}",
            value=", ".join(sorted(targets)),
            bound=", ".join(name for name in last if not name.isdigit()) or "the model's modules",
        )


def _expert_weights(model: nn.Module) -> list[str]:
    """Paths of parameters that hold a matrix for each expert."""
    return [name for name, tensor in model.named_parameters() if tensor.dim() == EXPERT_DIMENSIONS and "expert" in name.lower()]


def _fused(names: list[str]) -> str:
    kinds = dict.fromkeys(re.sub(r"\d+", "*", name) for name in names)
    return f"the experts' weights are fused in {', '.join(kinds)}"


def _targeted(name: str, targets: Collection[str] | str) -> bool:
    own = name.rpartition(".")[2]
    names = (name, *(f"{name.removesuffix(own)}{former}" for former in FUSED.get(own, ())))
    return any(_matches(each, targets) for each in names)


def _matches(name: str, patterns: Collection[str] | str | None) -> bool:
    """Whether PEFT's patterns name a module: an expression for the whole path, or a collection of path endings."""
    if not patterns:
        return False
    if isinstance(patterns, str):
        return re.fullmatch(patterns, name) is not None
    return any(name == ending or name.endswith(f".{ending}") for ending in patterns)
