"""The bridge to PEFT, the only file of the library that imports it.

Each method of the registry becomes a PEFT method without a fork: a config class, a tuner and a layer class are made from it and
entered into PEFT's public mappings under a `str` subclass that has `.value`, as members of `peft.PeftType` do. Everything that is
the same for all methods lives here once: several adapters, dtypes and devices, dropping into `nn.Linear` and `Conv1D`, merging,
sharing between modules, saving.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qpeft.adapters.base import AdapterConfig, Delta, scope_key
from qpeft.adapters.registry import METHODS, Method, listeners
from qpeft.errors import AdapterError, MergeError, MissingDependencyError, QpeftError

MINIMUM_PEFT = (0, 21)
MERGEABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # narrower ones stand for numbers times a scale


class MethodName(str):
    """A PEFT type that is not a member of PEFT's enum but is used like one."""

    @property
    def value(self) -> str:
        return str(self)


class DeltaLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A linear layer with deltas beside it, one per adapter."""

    deltas_name: str
    # PEFT's, which mypy does not find beside nn.Module's __getattr__:
    active_adapters: list[str]
    get_base_layer: Callable[[], Any]
    set_adapter: Callable[..., None]
    _cast_input_dtype: Callable[[Tensor, torch.dtype], Tensor]

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: AdapterConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__()
        self.base_layer = base_layer
        setattr(self, self.deltas_name, nn.ModuleDict())
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._kept_weight: Tensor | None  # W0, while multiplicative deltas are merged into it; moves with the module
        self.register_buffer("_kept_weight", None, persistent=False)
        self.in_features, self.out_features, self.transposed = layer_shape(self.get_base_layer())
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, scope)

    @property
    def deltas(self) -> nn.ModuleDict:
        """The deltas by adapter name (under a name with PEFT's prefix for the method, so that PEFT finds its parameters)."""
        found: nn.ModuleDict = getattr(self, self.deltas_name)
        return found

    def _delta(self, adapter_name: str) -> Delta:
        delta = self.deltas[adapter_name]
        assert isinstance(delta, Delta)
        return delta

    def update_layer(self, adapter_name: str, config: AdapterConfig, scope: dict[str, nn.Module]) -> None:
        """Add an adapter: float32 beside any base of lower precision, float64 beside float64."""
        method = METHODS[str(config.peft_type)]  # type: ignore[attr-defined]
        self.deltas[adapter_name] = method.delta(self.in_features, self.out_features, config, scope)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        delta = self._delta(adapter_name)
        if method.delta.start_from is not Delta.start_from and not any(p.is_meta for p in delta.parameters()):
            delta.start_from(self._weight_as_seen(delta))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)  # type: ignore[attr-defined]

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """PEFT's hook, also called after loading with low_cpu_mem_usage; PEFT's own would round the weights to the base's dtype."""
        if adapter_name in self.deltas and not any(p.is_meta for p in self.deltas[adapter_name].parameters()):
            base_device, base_dtype = self._device_and_dtype()
            dtype = torch.float64 if base_dtype == torch.float64 else torch.float32
            self.deltas[adapter_name].to(device=device or base_device, dtype=dtype)

    def _device_and_dtype(self) -> tuple[torch.device, torch.dtype]:
        """Of the base layer's weight, whatever its quantised form calls it."""
        parameter = next(iter(self.get_base_layer().parameters()), None)
        if parameter is None:
            parameter = next(iter(self.get_base_layer().buffers()), torch.empty(0))
        return parameter.device, parameter.dtype

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            base: Tensor = self.base_layer(x, *args, **kwargs)
            return base
        deltas = [self._delta(name) for name in self.active_adapters if name in self.deltas]
        into = self._plus(x, [delta for delta in deltas if delta.place == "before"], x)
        result: Tensor = self.base_layer(into.to(x.dtype), *args, **kwargs)
        dtype = result.dtype
        result = self._plus(result, [delta for delta in deltas if delta.place == "beside"], x)
        if after := [delta for delta in deltas if delta.place == "after"]:
            bias = getattr(self.get_base_layer(), "bias", None)
            result = self._plus(result, after, result if bias is None else result - bias)
        return result.to(dtype)

    def _plus(self, y: Tensor, deltas: list[Delta], x: Tensor) -> Tensor:
        """`y + sum_i delta_i(x)`, each delta in its own dtype."""
        for delta in deltas:
            y = y + delta(self._cast_input_dtype(x, delta.dtype))
        return y

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What the adapter adds to the base layer's weight, in that weight's layout.

        Raises MergeError for one that is not linear, and for a multiplicative one on a quantised base.
        """
        delta = self._delta(adapter)
        matrix = delta.weight()
        if delta.place != "beside":
            base = self._unmerged_weight().to(matrix)
            matrix = base @ matrix if delta.place == "before" else matrix @ base
        return matrix.T if self.transposed else matrix

    def _unmerged_weight(self) -> Tensor:
        """`W0 (d_out, d_in)`, also while adapters are merged into the layer."""
        weight = self._weight() if self._kept_weight is None else self._kept_weight
        return weight.T if self.transposed else weight

    def _weight(self) -> Tensor:
        """The base weight as it is; MergeError for a quantised one."""
        weight = getattr(self.get_base_layer(), "weight", None)
        shape = (self.in_features, self.out_features) if self.transposed else (self.out_features, self.in_features)
        if not isinstance(weight, Tensor) or weight.dtype not in MERGEABLE or tuple(weight.shape) != shape:
            raise MergeError(
                "the base weight is quantised and cannot take a delta",
                value=type(self.get_base_layer()).__name__,
                hint="load the base model without quantisation to merge",
            )
        return weight

    @torch.no_grad()
    def _weight_as_seen(self, delta: Delta) -> Tensor:
        """`W0 (d_out, d_in)` in the delta's dtype; of a quantised layer, what it makes of the identity."""
        layer = self.get_base_layer()
        if isinstance(getattr(layer, "weight", None), Tensor) and layer.weight.dtype in MERGEABLE:
            return self._unmerged_weight().to(delta.dtype)
        identity = torch.eye(self.in_features, dtype=delta.dtype, device=delta.device)
        through: Tensor = layer(identity) - layer(torch.zeros_like(identity[:1]))
        return through.T.to(delta.dtype)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add linear deltas to the base weight. All of them are checked before the weight is touched.

        Multiplicative deltas (`before`, `after`) need `W0` for the next merge and for unmerge: it is kept while they are merged.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.deltas]
        if not names:
            return
        for name in names:
            if not self._delta(name).linear:
                self._delta(name).weight()  # says why it cannot merge, on any base
        weight = self._weight()
        merged = weight.data
        for name in names:
            delta = self.get_delta_weight(name)
            merged = (merged.to(delta.dtype) + delta).to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                # PEFT's own words, which its users match
                raise MergeError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken", hint="retrain it")
        if self._kept_weight is None and any(self._delta(name).place != "beside" for name in names):
            self._kept_weight = weight.data
        weight.data = merged
        self.merged_adapters += names

    @torch.no_grad()
    def unmerge(self) -> None:
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        weight = self.get_base_layer().weight
        if self._kept_weight is not None:
            weight.data, self._kept_weight = self._kept_weight, None
            self.merged_adapters.clear()
        while self.merged_adapters:
            delta = self.get_delta_weight(self.merged_adapters.pop())
            weight.data = (weight.data.to(delta.dtype) - delta).to(weight.dtype)

    def delete_adapter(self, adapter_name: str) -> None:
        """As PEFT's, which refuses merged adapters for a whole model only."""
        if adapter_name in self.merged_adapters:
            raise MergeError("a merged adapter cannot be deleted", value=adapter_name, hint="unmerge it first")
        super().delete_adapter(adapter_name)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return adapter_name in self.deltas and self._delta(adapter_name).linear


def layer_shape(layer: nn.Module) -> tuple[int, int, bool]:
    """`(d_in, d_out, transposed)` of a linear layer: nn.Linear and its quantised kin, or GPT-2's Conv1D (weight transposed)."""
    if isinstance(layer, Conv1D):
        d_in, d_out = layer.weight.shape
        return int(d_in), int(d_out), True
    d_in, d_out = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    if isinstance(layer, nn.Bilinear) or not isinstance(d_in, int) or not isinstance(d_out, int):
        raise TypeError(
            f"Target module {layer} is not supported: qpeft adapts linear layers (torch.nn.Linear, its quantised kin and "
            "transformers' Conv1D). Leave it out of target_modules."
        )
    return d_in, d_out, False


class DeltaTuner(BaseTuner):  # type: ignore[misc]
    """Puts a DeltaLayer in the place of every target module."""

    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def inject_adapter(self, *args: Any, **kwargs: Any) -> None:
        self._scopes: dict[str, dict[str, nn.Module]] = {}  # each adapter has its own shared state
        super().inject_adapter(*args, **kwargs)

    def unload(self) -> nn.Module:
        """The base model as it was, merged adapters taken out again."""
        for layer in self.model.modules():
            if isinstance(layer, DeltaLayer) and layer.merged:
                layer.unmerge()
        base: nn.Module = super().unload()
        return base

    def _scope(self, config: AdapterConfig, key: str) -> dict[str, nn.Module]:
        """The dictionary that modules sharing state with module `key` have in common."""
        scope = scope_key(config.sharing_scope(), key)
        return {} if scope is None else self._scopes.setdefault(scope, {})

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
        scope = self._scope(peft_config, current_key)
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config, scope)
            if adapter_name not in self.active_adapters:
                target.deltas[adapter_name].requires_grad_(False)
            return
        layer = self.tuner_layer_cls(target, adapter_name, peft_config, scope)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, adapter_names: list[str] | None = None, **__: Any) -> Iterator[None]:
        """Refuse a batch that names an adapter per sample: PEFT would drop the names and run all of it on the active adapters."""
        if adapter_names is not None:
            raise AdapterError("a batch runs on one set of adapters", value=adapter_names, hint="set_adapter and a batch for each")
        yield

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
                dtype = layer._device_and_dtype()[1]
                if dtype.is_floating_point:
                    layer.deltas[adapter_name].to(dtype)
        return None


def _make_config(method: Method, name: MethodName) -> type[PeftConfig]:
    """A dataclass that is both the method's settings and a PeftConfig."""
    settings = method.config

    def post_init(self: Any) -> None:
        PeftConfig.__post_init__(self)
        self.peft_type = name
        for attribute in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, attribute), list):
                setattr(self, attribute, set(getattr(self, attribute)))
        self.check()

    bases = (settings, PeftConfig)
    fields = [("inference_mode", bool, dataclasses.field(default=False, metadata={"help": "Whether to freeze the adapter."}))]
    inherited = {f.name for f in dataclasses.fields(PeftConfig)}
    made = dataclasses.make_dataclass(
        settings.__name__,
        [f for f in fields if f[0] not in inherited],
        bases=bases,
        namespace={"__post_init__": post_init, "__doc__": settings.__doc__, "__module__": __name__},
    )
    return made


def _register(method: Method) -> None:
    """Enter a method into PEFT's mappings, once."""
    name = MethodName(method.name)
    if (known := PEFT_TYPE_TO_TUNER_MAPPING.get(name)) is not None:
        if not issubclass(known, DeltaTuner):
            raise AdapterError("PEFT has a method of this name", value=method.name, hint="another name")
        return
    prefix = f"{method.name.lower()}_"
    config = _make_config(method, name)
    deltas = f"{prefix}delta"
    names = {"deltas_name": deltas, "adapter_layer_names": (deltas,), "__module__": __name__}
    layer = type(f"{method.name}Layer", (DeltaLayer,), names)
    tuner = type(f"{method.name}Tuner", (DeltaTuner,), {"prefix": prefix, "tuner_layer_cls": layer, "__module__": __name__})
    for made in (config, layer, tuner):
        setattr(sys.modules[__name__], made.__name__, made)  # so that they pickle
    PEFT_TYPE_TO_CONFIG_MAPPING[name] = config
    PEFT_TYPE_TO_TUNER_MAPPING[name] = tuner
    PEFT_TYPE_TO_PREFIX_MAPPING[name] = prefix


def register_all() -> None:
    """Make every method of the registry a PEFT method; called on import and safe to call again."""
    version = importlib.metadata.version("peft")
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_PEFT:
        raise MissingDependencyError("peft>=0.21", "", f"qpeft with peft {version}")
    for method in METHODS.values():
        _register(method)
    if _register not in listeners:
        listeners.append(_register)


def config_class(peft_type: str) -> type[PeftConfig]:
    """The config class of a method of ours or of PEFT's own, by its type name in any case."""
    register_all()
    found = PEFT_TYPE_TO_CONFIG_MAPPING.get(str(peft_type).upper())
    if found is None:
        known = ", ".join(sorted(str(getattr(key, "value", key)) for key in PEFT_TYPE_TO_CONFIG_MAPPING))
        raise AdapterError("unknown peft_type", value=peft_type, bound=known)
    return found  # type: ignore[no-any-return]


def lora_parameters(model: nn.Module, config: PeftConfig) -> int:
    """Trainable parameters of PEFT's LoRA of the same rank on the modules that `config` targets: `sum r (d_in + d_out)`.

    Counted on the layers themselves, so nothing is built. The rank is `config.r`; zero when the config has none.
    """
    rank = getattr(config, "r", None)
    if not isinstance(rank, int):
        return 0
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    total = 0
    for module in model.modules():
        if isinstance(module, tuner.tuner_layer_cls):
            d_in, d_out, _ = layer_shape(module.get_base_layer())
            total += rank * (d_in + d_out)
    return total


def merges(model: nn.Module) -> bool:
    """Whether the active adapter of a PEFT model, ours or PEFT's, merges into the base weights; tried on a copy of one layer."""
    layer: Any = next((module for module in model.modules() if isinstance(module, BaseTunerLayer)), None)
    try:
        copy.deepcopy(layer).merge()
    except (MergeError, NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError):
        return False
    return True


def target_layers(model: nn.Module, target_modules: list[str] | str | None = None) -> list[tuple[str, int, int]]:
    """`(path, d_in, d_out)` of the layers that PEFT adapts for `target_modules` (None: its defaults for the model), in order.

    Adapts `model` in place to find them. Raises AdapterError when there are none.
    """
    config = config_class("QTHA")(r=1, tensor=False, qnn="none", target_modules=target_modules)  # the cheapest of ours
    adapted = _adapted(model, config).base_model.model
    layers = ((name, module) for name, module in adapted.named_modules() if isinstance(module, DeltaLayer))
    return [(name, *layer_shape(layer.get_base_layer())[:2]) for name, layer in layers]


def count_parameters(model: nn.Module, config: PeftConfig) -> dict[str, int]:
    """`{"trainable", "lora", "base"}` of a base model (on any device, meta included) with an adapter put into a copy of it."""
    base = sum(p.numel() for p in model.parameters())
    adapted = _adapted(model, copy.deepcopy(config))
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    return {"trainable": trainable, "lora": lora_parameters(adapted, config), "base": base}


def _adapted(model: nn.Module, config: PeftConfig) -> Any:
    """`get_peft_model`, whose complaints about target modules become an AdapterError."""
    from peft import get_peft_model

    try:
        return get_peft_model(model, config)
    except QpeftError:
        raise
    except ValueError as error:
        raise AdapterError(str(error)) from error


register_all()
