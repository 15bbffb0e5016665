"""Base classes of adapter methods: a settings dataclass, and a module that computes the change to one linear layer.

A method's file holds both and nothing of PEFT. Names, dtypes, several adapters, merging and saving live once, in peft.py.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from qpeft.errors import AdapterError, MergeError


@dataclass
class AdapterConfig:
    """Settings that every method has. Names are PEFT's, so target selection works as in PEFT.

    `renamed` maps a setting's former name to today's. Saved adapters and recipes may use either.
    """

    renamed: ClassVar[Mapping[str, str]] = {}

    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names of the modules to adapt, a regular expression, or 'all-linear'."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Names or expression of modules to leave out."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Further modules to train and save whole, such as a new classification head."}
    )
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Layer indices to adapt; all by default."})
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the layer list, for layers_to_transform."}
    )
    bias: str = field(default="none", metadata={"help": "'none', 'all' or '<method>_only': which biases train as well."})
    init_weights: bool = field(
        default=True, metadata={"help": "True starts as a no-op. False starts with a random delta (for tests of the machinery)."}
    )
    weighted_sum: list[dict[str, Any]] | None = field(
        default=None,
        metadata={"help": "Set by add_weighted_adapter: {'weight', 'settings'} of each adapter that the sum holds a copy of."},
    )

    def check(self) -> None:
        """Validate the settings, called on construction. Methods extend it.

        Raises:
            AdapterError: a setting that cannot work.
        """
        if isinstance(self.target_modules, str) and (self.layers_to_transform is not None or self.layers_pattern is not None):
            raise AdapterError(
                "layers_to_transform and layers_pattern need target_modules as a list of names",
                value=self.target_modules,
                hint="write the layer numbers into the expression, or list the module names",
            )
        if self.bias not in ("none", "all") and not self.bias.endswith("_only"):
            raise AdapterError("unknown bias", value=self.bias, bound="none, all, <method>_only")
        if self.layers_pattern and self.layers_to_transform is None:
            raise AdapterError("layers_pattern does nothing without layers_to_transform", value=self.layers_pattern)

    def to_save(self) -> dict[str, Any]:
        """Settings whose JSON form in adapter_config.json differs from their value, by name."""
        return {}

    def for_module(self, key: str) -> Self:
        """The settings of the module at path `key`; the same for all modules unless a method says otherwise."""
        return self

    def parts(self) -> list[tuple[float, Self]]:
        """Weight and settings of each adapter of a weighted sum; empty for other adapters."""
        return [(part["weight"], type(self)(**part["settings"])) for part in self.weighted_sum or ()]

    def sharing_scope(self) -> str:
        """The scope within which modules share state: "none", "layer" or "model"."""
        return "none"

    def gradient_batches(self) -> int:
        """How many batches of training data the initialisation needs (gradient_init.py); 0 for most methods."""
        return 0

    @classmethod
    def budget_grid(cls, rank: int) -> list[dict[str, Any]]:
        """Settings from few parameters to many, from which a budget takes the largest that fits.

        Args:
            rank: LoRA's rank, which the budget is relative to.

        Returns:
            By default every rank up to `rank` and some multiples, for methods with a rank; else the defaults alone.
        """
        if "r" not in cls.__dataclass_fields__:
            return [{}]
        return [{"r": r} for r in (*range(1, rank + 1), *(rank * k for k in (2, 3, 4, 6, 8)))]


def scope_key(sharing: str, key: str) -> str | None:
    """The name of the group of modules that share state.

    Args:
        sharing: a `sharing_scope()`.
        key: a module's path in the model. Its layer is the path up to the first number.

    Returns:
        None where nothing is shared.
    """
    if sharing == "none":
        return None
    if sharing == "layer":
        layer = re.match(r".*?\.?\d+(?=\.|$)", key)
        return layer.group() if layer else key
    return ""


@dataclass
class RankConfig(AdapterConfig):
    """Settings of methods with a rank, as in LoRA."""

    r: int = field(default=8, metadata={"help": "Rank."})
    alpha: float | None = field(default=None, metadata={"help": "Scale is alpha / r. Default r, a scale of 1."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input, 0 to 1."})
    rank_pattern: dict[str, int] = field(
        default_factory=dict, metadata={"help": "Another rank for modules whose name, or regular expression, is a key."}
    )
    alpha_pattern: dict[str, float] = field(
        default_factory=dict, metadata={"help": "Another alpha for modules whose name, or regular expression, is a key."}
    )

    def check(self) -> None:
        """Extends the base class's checks: AdapterError unless all ranks are whole numbers of at least 1 and `0 <= dropout < 1`."""
        super().check()
        positive("r", self.r)
        probability("dropout", self.dropout)
        for pattern, rank in self.rank_pattern.items():
            positive(f"rank_pattern[{pattern!r}]", rank)

    def for_module(self, key: str) -> Self:
        """The settings with the rank and alpha that the patterns give the module, as in PEFT: the first key that matches."""

        def matching(patterns: Mapping[str, Any]) -> Any:
            return next((value for name, value in patterns.items() if re.match(rf"(.*\.)?({name})$", key)), None)

        r, alpha = matching(self.rank_pattern), matching(self.alpha_pattern)
        if r is None and alpha is None:
            return self
        changed = copy.copy(self)
        changed.r, changed.alpha = self.r if r is None else r, self.alpha if alpha is None else alpha
        changed.rank_pattern, changed.alpha_pattern = {}, {}
        changed.check()
        return changed

    @property
    def scale(self) -> float:
        """The factor of the delta, `alpha / r`."""
        return 1.0 if self.alpha is None else self.alpha / self.r


Position = Literal["parallel", "input", "output"]
Value = TypeVar("Value")


class Delta(nn.Module):
    """The change that an adapter makes to one linear layer `y = W0 x + b`.

    `position` says where it acts:

        parallel   y = W0 x + b + delta(x)            d_in  -> d_out, additive methods such as LoRA
        input      y = W0 (x + delta(x)) + b          d_in  -> d_in,  W = W0 (I + D)
        output     y = y0 + b + delta(y0), y0 = W0 x  d_out -> d_out, W = (I + D) W0

    Subclasses implement `forward`. Tensors that are saved and never trained are made with `freeze`.

    Args:
        d_in: inputs of the layer.
        d_out: outputs of the layer.
        config: the method's settings for this layer.
        scope: a dictionary that modules sharing state have in common (`config.sharing_scope()`). The first module in it owns
            what the others use.
    """

    position: ClassVar[Position] = "parallel"
    reference: Tensor
    awaits_weights = False  # made to be loaded: `init_from_weight` has not run

    def __init__(self, d_in: int, d_out: int, config: AdapterConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__()
        self.d_in, self.d_out = d_in, d_out
        self.shared: tuple[nn.Module, ...] = ()  # what another layer's delta owns and this one uses; a tuple hides its parameters
        self._cache: dict[Any, Any] = {}
        self._cache_version: ParameterVersion | None = None
        self._cache_device = torch.device("cpu")
        # Holds dtype and device where no parameter is visible: a replica of DataParallel, a layer whose circuit another one owns.
        self.register_buffer("reference", torch.empty(0, dtype=torch.get_default_dtype(), device="cpu"), persistent=False)

    @property
    def linear(self) -> bool:
        """Whether the delta is a linear map; only then can it merge into the base weight."""
        return False

    @property
    def sizes(self) -> tuple[int, int]:
        """`(inputs, outputs)` of `forward`, which `position` decides."""
        return {"parallel": (self.d_in, self.d_out), "input": (self.d_in,) * 2, "output": (self.d_out,) * 2}[self.position]

    def forward(self, x: Tensor) -> Tensor:
        """The delta of inputs `(..., inputs)`, shape `(..., outputs)` of `sizes`, in the adapter's dtype."""
        raise NotImplementedError

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """`y + forward(x)`; methods may add on the way.

        Args:
            y: `(..., outputs)`.
            x: `(..., inputs)` of any dtype.

        Returns:
            `(..., outputs)`, of the wider dtype of y and the adapter.
        """
        dtype = self.dtype
        out: Tensor = y + self(x if x.dtype is dtype else x.to(dtype))
        return out

    def init_from_weight(self, weight: Tensor) -> None:
        """Initialise from the base weight; called once, for methods that implement it.

        Args:
            weight: `W0 (d_out, d_in)` in the adapter's dtype.
        """

    def init_from_gradient(self, gradient: Tensor) -> None:
        """Initialise from training data, for methods that implement it (gradient_init.py).

        Args:
            gradient: the mean of `dL / dW0 (d_out, d_in)` over some batches, in the adapter's dtype.
        """

    def weight(self) -> Tensor:
        """The delta as a matrix `(outputs, inputs)`.

        Raises:
            MergeError: the delta is not linear.
        """
        if not self.linear:
            raise MergeError(
                f"{type(self).__name__} depends on its input in a way that is not linear, so no weight matrix equals it",
                hint="save the adapter with save_pretrained and load it onto the base model, use unload() to get the base model "
                "back, export the adapter to LoRA by distillation (qpeft export), or train a linear method if you need to merge",
            )
        training = self.training
        identity = torch.eye(self.sizes[0], dtype=self.dtype, device=self.device)
        self.eval()  # without dropout
        try:
            return self.forward(identity).T
        finally:
            self.train(training)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Factors `(B, A)` with `weight() = B A` exactly, shapes `(outputs, k)` and `(k, inputs)`; export to LoRA takes them.

        Returns:
            None unless the method is of low rank by construction.
        """
        return None

    def cached(self, name: str, make: Callable[[], Value]) -> Value:
        """A value that depends on parameters alone, remembered between calls in evaluation that record no gradient.

        Generation asks for the same small matrices at every token. The cache is empty again as soon as a parameter or buffer is
        written to, moved or replaced, and at every call that trains. It holds one value for each device, autocast dtype and
        inference mode. Writes that torch does not count (`parameter.data.add_(..)`) are not seen: call `train()` once after them.

        Args:
            name: name of the value.
            make: computes it.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._cache_version = None
            return make()
        if self._cache_version is None or not self._cache_version.unchanged():
            self._cache_version, self._cache, self._cache_device = ParameterVersion(self), {}, self.device
        device = self._cache_device
        autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        key = (name, device, autocast, torch.is_inference_mode_enabled())
        if key not in self._cache:
            self._cache[key] = make()
        found: Value = self._cache[key]
        return found

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if any(key.startswith(prefix) for key in state_dict):
            self.awaits_weights = False
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        """Without the evaluation cache, which holds addresses: a copy has a cache of its own."""
        return {**self.__dict__, "_cache": {}, "_cache_version": None}

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; empties the evaluation cache."""
        self._cache_version = None
        return super().train(mode)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters, or of the `reference` buffer where none is visible."""
        return self._first_tensor().dtype

    @property
    def device(self) -> torch.device:
        """Of the parameters, or of the `reference` buffer where none is visible."""
        return self._first_tensor().device

    def _first_tensor(self) -> Tensor:
        found = _first_floating(self)
        return self.reference if found is None else found

    def extra_repr(self) -> str:
        """`d_in -> d_out`, as `print(model)` shows it."""
        return f"{self.d_in} -> {self.d_out}"


def _first_floating(module: nn.Module) -> Tensor | None:
    """The first floating-point parameter in the order of `parameters()`, at a fifth of its time; None without one."""
    for tensor in module._parameters.values():
        if tensor is not None and tensor.is_floating_point():
            return tensor
    for child in module._modules.values():
        if child is not None and (found := _first_floating(child)) is not None:
            return found
    return None


class ParameterVersion:
    """The state of a module's tensors at one moment, to notice when one is written to, moved or replaced.

    It walks the module once, since it is asked at every token.
    """

    def __init__(self, module: nn.Module) -> None:
        places = [own for part in module.modules() for own in (part._modules, part._parameters, part._buffers)]
        self._held = [(own, name, held) for own in places for name, held in own.items()]
        self._tensors = [held for _, _, held in self._held if isinstance(held, Tensor)]
        self._counted = not any(tensor.is_inference() for tensor in self._tensors)  # those count no writes
        self._state = self._now() if self._counted else []

    def _now(self) -> list[tuple[int, int]]:
        return [(tensor.data_ptr(), tensor._version) for tensor in self._tensors]

    def unchanged(self) -> bool:
        """Whether every tensor is the one it was, unwritten. Tensors made in inference mode count as changed."""
        if not self._counted:
            return False
        for own, name, held in self._held:  # loops cost half of `all` with a generator
            if own.get(name) is not held:
                return False
        return self._now() == self._state


def freeze(module: nn.Module, name: str, value: Tensor) -> None:
    """Register a tensor that is saved with the adapter and never trained.

    It is a parameter without gradient, not a buffer: DDP, FSDP2 and DeepSpeed shard and load parameters, and TRL copies parameters
    alone into its reference model.

    Args:
        module: the module that holds the tensor.
        name: its name there, as for `register_parameter`.
        value: the tensor; it becomes the parameter's data.
    """
    module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    module.__dict__.setdefault("_frozen_names", set()).add(name)


def keep_frozen(module: nn.Module) -> None:
    """Take the gradient off what `freeze` registered anywhere in a module. PEFT turns it on for a whole adapter."""
    for part in module.modules():
        for name in part.__dict__.get("_frozen_names", ()):
            frozen = part._parameters[name]
            if frozen is not None and frozen.is_leaf:
                frozen.requires_grad_(False)


def is_frozen(module: nn.Module, name: str) -> bool:
    """Whether `freeze` registered this tensor of the module.

    Args:
        module: the module that holds the tensor.
        name: its name there.
    """
    return name in module.__dict__.get("_frozen_names", ())


def make_dropout(probability: float) -> nn.Module:
    """Dropout, or the identity for a probability of 0."""
    return nn.Dropout(probability) if probability else nn.Identity()


def positive(name: str, value: Any) -> None:
    """Check that a setting is a whole number of at least 1.

    Args:
        name: name of the setting, for the message.
        value: its value.

    Raises:
        AdapterError: another value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise AdapterError(f"{name} must be a whole number of at least 1", value=value)


def natural(name: str, value: Any) -> None:
    """Check that a setting is a whole number of at least 0.

    Args:
        name: name of the setting, for the message.
        value: its value.

    Raises:
        AdapterError: another value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise AdapterError(f"{name} must be a whole number, 0 or more", value=value)


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Check that a setting has one of its values.

    Args:
        name: name of the setting, for the message.
        value: its value.
        allowed: the values that it may have.

    Raises:
        AdapterError: another value.
    """
    if value not in allowed:
        raise AdapterError(f"unknown {name}", value=value, bound=", ".join(allowed))


def probability(name: str, value: Any) -> None:
    """Check that a setting is a number from 0 to below 1.

    Args:
        name: name of the setting, for the message.
        value: its value.

    Raises:
        AdapterError: another value.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise AdapterError(f"{name} is a probability", value=value, bound=f"0 <= {name} < 1")
