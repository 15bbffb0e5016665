"""A linear layer with deltas, one per adapter: the layer class that PEFT puts in the place of every target module."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qpeft.adapters.base import AdapterConfig, Delta, Position, keep_frozen
from qpeft.errors import AdapterError, MergeError

MERGEABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # narrower ones stand for numbers times a scale
BASE = "__base__"  # PEFT's name for "no adapter" in a batch that names an adapter per sample

MakeDelta = Callable[[int, int], Delta]
Active = list[tuple[Delta, Tensor | None]]  # deltas, each with the rows of the batch it acts on (None: all)


class DeltaLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A linear layer and its deltas by adapter name.

    Args:
        base_layer: nn.Linear or its quantised kin, or transformers' Conv1D.
        adapter_name: of the first adapter.
        config: its settings, a method's config that is also a PeftConfig.
        make: the adapter's delta for `(d_in, d_out)`.
    """

    deltas_name: str
    # PEFT's, which nn.Module's __getattr__ hides from mypy:
    active_adapters: list[str]
    get_base_layer: Callable[[], Any]
    _cast_input_dtype: Callable[[Tensor, torch.dtype], Tensor]

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: AdapterConfig, make: MakeDelta) -> None:
        super().__init__()
        self.base_layer = base_layer
        setattr(self, self.deltas_name, nn.ModuleDict())
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._unmerged: Tensor | None  # W0, while multiplicative deltas are merged into it; moves with the module
        self.register_buffer("_unmerged", None, persistent=False)
        self.in_features, self.out_features, self.transposed = layer_shape(self.get_base_layer())
        self._active_adapter: str | list[str] = adapter_name
        self.update_layer(adapter_name, config, make)

    @property
    def deltas(self) -> nn.ModuleDict:
        """The deltas by adapter name (under a name with PEFT's prefix for the method, so that PEFT finds its parameters)."""
        found: nn.ModuleDict = getattr(self, self.deltas_name)
        return found

    def delta(self, adapter_name: str) -> Delta:
        """An adapter's delta. One that was made to be loaded and got no weights is initialised here."""
        delta = self.deltas[adapter_name]
        assert isinstance(delta, Delta)
        if delta.awaits_weights and not any(p.is_meta for p in delta.parameters()):
            delta.awaits_weights = False
            delta.init_from_weight(self._weight_as_seen(delta))
        return delta

    def update_layer(self, adapter_name: str, config: AdapterConfig, make: MakeDelta) -> None:
        """Add an adapter: float32 on any base of lower precision, float64 on float64.

        Args:
            adapter_name: name of the adapter.
            config: its settings.
            make: makes its delta for `(d_in, d_out)`.
        """
        delta = make(self.in_features, self.out_features)
        self.deltas[adapter_name] = delta
        self._move_adapter_to_device_of_base_layer(adapter_name)
        if type(delta).init_from_weight is not Delta.init_from_weight:
            delta.awaits_weights = True
            if not getattr(config, "from_file", False):  # weights that follow would replace the result of a costly SVD
                self.delta(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)  # type: ignore[attr-defined]

    # PEFT turns gradients on for a whole adapter in these three; frozen tensors stay frozen.

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters, as PEFT's `BaseTunerLayer.set_adapter`. Frozen tensors stay without gradient.

        Args:
            adapter_names: the adapters to activate.
            inference_mode: make no parameter trainable.
        """
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        keep_frozen(self.deltas)

    def enable_adapters(self, enabled: bool) -> None:
        """As PEFT's."""
        super().enable_adapters(enabled)
        keep_frozen(self.deltas)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Make adapters trainable or not, as PEFT's `BaseTunerLayer.set_requires_grad`. Frozen tensors stay without gradient.

        Args:
            adapter_names: the adapters to change.
            requires_grad: whether their parameters are trained.
        """
        super().set_requires_grad(adapter_names, requires_grad)
        keep_frozen(self.deltas)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """PEFT's hook, also called after loading with low_cpu_mem_usage; PEFT's own would round the weights to the base's dtype."""
        if adapter_name in self.deltas and not any(p.is_meta for p in self.deltas[adapter_name].parameters()):
            base_device, base_dtype = self.device_and_dtype()
            dtype = torch.float64 if base_dtype == torch.float64 else torch.float32
            self.deltas[adapter_name].to(device=device or base_device, dtype=dtype)

    def device_and_dtype(self) -> tuple[torch.device, torch.dtype]:
        """Dtype of the base layer's weight, also of a quantised layer."""
        parameter = next(iter(self.get_base_layer().parameters()), None)
        if parameter is None:
            parameter = next(iter(self.get_base_layer().buffers()), torch.empty(0))
        return parameter.device, parameter.dtype

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """The adapted layer's outputs.

        Args:
            x: `(..., d_in)`.
            adapter_names: for each of `len(x)` samples the adapter it runs on, `__base__` for none; default the active ones.
        """
        if adapter_names is None:
            if (delta := self._alone()) is not None:
                y: Tensor = self._modules["base_layer"](x, *args, **kwargs)  # type: ignore[misc]
                out = delta.add_to(y, x)
                return out if out.dtype is y.dtype else out.to(y.dtype)
            if self.disable_adapters and self.merged:
                self.unmerge()
            if self.disable_adapters or self.merged:
                base: Tensor = self.base_layer(x, *args, **kwargs)
                return base
            deltas = self.deltas
            active: Active = [(self.delta(name), None) for name in self.active_adapters if name in deltas]
        else:
            active = self._per_sample(x, adapter_names)
        positions = {delta.position for delta, _ in active}
        into = self._add(x, active, "input", x).to(x.dtype) if "input" in positions else x
        result: Tensor = self.base_layer(into, *args, **kwargs)
        dtype = result.dtype
        if "parallel" in positions:
            result = self._add(result, active, "parallel", x)
        if "output" in positions:
            bias = getattr(self.get_base_layer(), "bias", None)
            result = self._add(result, active, "output", result if bias is None else result - bias)
        return result if result.dtype is dtype else result.to(dtype)

    def _alone(self) -> Delta | None:
        """The delta where just one acts, next to the layer. At one token the general way costs as much as the layer."""
        if self._disable_adapters or self.merged_adapters or not self.__dict__.get("cast_input_dtype_enabled", True):
            return None
        names = self._active_adapter
        if not isinstance(names, str):
            if len(names) != 1:
                return None
            names = names[0]
        deltas = self._modules[self.deltas_name]
        assert deltas is not None
        delta = deltas._modules.get(names)
        return delta if isinstance(delta, Delta) and delta.position == "parallel" and not delta.awaits_weights else None

    def _per_sample(self, x: Tensor, adapter_names: Sequence[str]) -> Active:
        if self.merged:
            raise AdapterError("adapter_names needs unmerged adapters", value=self.merged_adapters, hint="unmerge_adapter() first")
        if len(adapter_names) != len(x):
            raise AdapterError("adapter_names holds a name for each sample", value=len(adapter_names), bound=len(x))
        active: Active = []
        for name in dict.fromkeys(adapter_names):
            if name in self.deltas:
                rows = [row for row, wanted in enumerate(adapter_names) if wanted == name]
                active.append((self.delta(name), torch.tensor(rows, device=x.device)))
        return active

    def _add(self, y: Tensor, active: Active, position: Position, x: Tensor) -> Tensor:
        """`y + sum_i delta_i(x)` of the deltas of one position, each in its own dtype."""
        for delta, rows in active:
            if delta.position != position:
                continue
            if rows is None:
                y = y + delta(self._cast_input_dtype(x, delta.dtype))
            else:
                change = delta(self._cast_input_dtype(x[rows], delta.dtype))
                y = y.to(torch.promote_types(y.dtype, change.dtype)).index_add(0, rows, change)
        return y

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Change of the base layer's weight, in the layout of that weight.

        Raises:
            MergeError: the delta is not linear, or it multiplies a quantised base weight.
        """
        delta = self.delta(adapter)
        matrix = delta.weight()
        if delta.position != "parallel":
            base = self._base_weight().to(matrix)
            matrix = base @ matrix if delta.position == "input" else matrix @ base
        return matrix.T if self.transposed else matrix

    def _base_weight(self) -> Tensor:
        """`W0 (d_out, d_in)`, also while adapters are merged into the layer."""
        weight = self._weight() if self._unmerged is None else self._unmerged
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
            return self._base_weight().to(delta.dtype)
        identity = torch.eye(self.in_features, dtype=delta.dtype, device=delta.device)
        through: Tensor = layer(identity) - layer(torch.zeros_like(identity[:1]))
        return through.T.to(delta.dtype)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add linear deltas to the base weight. All of them are checked before the weight is touched.

        Multiplicative deltas (`input`, `output`) need `W0` for the next merge and for unmerge: it is held while they are merged.

        Args:
            safe_merge: refuse a result that is not finite.
            adapter_names: default the active ones.

        Raises:
            MergeError: a delta that is not linear, a quantised base weight, or with `safe_merge` a result that is not finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.deltas]
        if not names:
            return
        for name in names:
            if not self.delta(name).linear:
                self.delta(name).weight()  # says why it cannot merge, on any base
        weight = self._weight()
        merged = weight.data
        for name in names:
            delta = self.get_delta_weight(name)
            merged = (merged.to(delta.dtype) + delta).to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                # PEFT's own words, which its users match
                raise MergeError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken", hint="retrain it")
        if self._unmerged is None and any(self.delta(name).position != "parallel" for name in names):
            self._unmerged = weight.data
        weight.data = merged
        self.merged_adapters += names

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take merged deltas out of the base weight again."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        weight = self.get_base_layer().weight
        if self._unmerged is not None:
            weight.data, self._unmerged = self._unmerged, None
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
        """Whether a LoRA can equal the adapter: where its delta is linear."""
        return adapter_name in self.deltas and self.delta(adapter_name).linear


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
