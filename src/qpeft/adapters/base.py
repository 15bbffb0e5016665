"""What an adapter method is: a settings dataclass and a module that returns a delta.

A method file holds both and nothing of PEFT: names, dtypes, several adapters, merging and saving live once, in peft.py.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from qpeft.errors import AdapterError, MergeError


@dataclass
class AdapterConfig:
    """Settings every method has. Names are PEFT's, so target selection works as in PEFT."""

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

    def check(self) -> None:
        """Raise AdapterError for settings that cannot work; called on construction. Methods extend it."""
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

    def sharing_scope(self) -> str:
        """Modules of which scope share state: "none", "layer" or "model"."""
        return "none"

    def gradient_batches(self) -> int:
        """How many batches of training data the start looks at (first_gradients.py); most methods look at none."""
        return 0

    @classmethod
    def budget_grid(cls, rank: int) -> list[dict[str, Any]]:
        """Settings from few parameters to many, among which a budget finds the largest that fits; beside LoRA of rank `rank`.

        By default the ranks up to it and a few times above, for methods with a rank, and else the defaults alone.
        """
        if "r" not in cls.__dataclass_fields__:
            return [{}]
        return [{"r": r} for r in (*range(1, rank + 1), *(rank * k for k in (2, 3, 4, 6, 8)))]


def scope_key(sharing: str, key: str) -> str | None:
    """What modules that share state have in common: for module `key` and a `sharing_scope()`, None where nothing is shared.

    A layer is named by the module's path up to its first number.
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

    def check(self) -> None:
        super().check()
        positive("r", self.r)
        probability("dropout", self.dropout)

    @property
    def scale(self) -> float:
        """What the delta is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.r


Place = Literal["beside", "before", "after"]
Kept = TypeVar("Kept")


class Delta(nn.Module):
    """The change an adapter makes to one linear layer `y = W0 x + b`.

    Where it sits is the method's, in `place`:

        beside   y = W0 x + b + delta(x)            d_in  -> d_out, additive methods such as LoRA
        before   y = W0 (x + delta(x)) + b          d_in  -> d_in,  W = W0 (I + D)
        after    y = y0 + b + delta(y0), y0 = W0 x  d_out -> d_out, W = (I + D) W0

    Subclasses take `(d_in, d_out, config, scope)` and implement `forward`. `scope` is a dictionary shared by the modules that
    `config.sharing_scope()` says share state: the first one in it owns what the others borrow. `linear` says whether the delta
    is a linear map; only then can it merge.
    """

    place: ClassVar[Place] = "beside"

    def __init__(self, d_in: int, d_out: int, config: AdapterConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__()
        self.d_in, self.d_out = d_in, d_out
        self._watch: Watch | None = None  # over what `_kept` was made from
        self._kept: dict[str, Any] = {}

    @property
    def linear(self) -> bool:
        return False

    @property
    def sizes(self) -> tuple[int, int]:
        """`(inputs, outputs)` of `forward`, which `place` decides."""
        return {"beside": (self.d_in, self.d_out), "before": (self.d_in,) * 2, "after": (self.d_out,) * 2}[self.place]

    def forward(self, x: Tensor) -> Tensor:
        """The map itself: `(..., inputs) -> (..., outputs)` of `sizes`, in the adapter's dtype."""
        raise NotImplementedError

    def start_from(self, weight: Tensor) -> None:
        """For methods whose start depends on the layer they adapt: called once with `W0 (d_out, d_in)`, of the adapter's dtype."""

    def start_from_gradient(self, gradient: Tensor) -> None:
        """For methods whose start depends on the training data: the loss's gradient in `W0 (d_out, d_in)`; first_gradients.py."""

    def weight(self) -> Tensor:
        """The map as a matrix `(outputs, inputs)`, for linear deltas; raises MergeError for others."""
        if not self.linear:
            raise MergeError(
                f"{type(self).__name__} depends on its input in a way that is not linear, so no weight matrix equals it",
                hint="keep the adapter beside the base model (save_pretrained and from_pretrained do), use unload() to get the "
                "base model back, export it to LoRA by distillation (qpeft export), or train a linear method if you need to merge",
            )
        training = self.training
        identity = torch.eye(self.sizes[0], dtype=self.dtype, device=self.device)
        self.eval()  # without dropout
        try:
            return self.forward(identity).T
        finally:
            self.train(training)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """`(B, A)` with `weight() = B A` exactly, shapes `(outputs, k)` and `(k, inputs)`, where the method is low-rank by
        construction; None otherwise. What export to LoRA takes."""
        return None

    def kept(self, name: str, make: Callable[[], Kept]) -> Kept:
        """`make()`, which depends on parameters alone; remembered between calls in evaluation that record no gradient.

        Generation asks for the same small matrices at every token. What is kept is dropped as soon as a parameter or buffer is
        written to, moved or replaced, and at every call that trains. Writes that torch does not count (`parameter.data.add_(..)`)
        are the exception: call `train()` once after them.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._watch = None
            return make()
        if self._watch is None or not self._watch.unchanged():
            self._watch, self._kept = Watch(self), {}
        if name not in self._kept:
            self._kept[name] = make()
        found: Kept = self._kept[name]
        return found

    def train(self, mode: bool = True) -> Self:
        self._watch = None
        return super().train(mode)

    @property
    def dtype(self) -> torch.dtype:
        return self._first_tensor().dtype

    @property
    def device(self) -> torch.device:
        return self._first_tensor().device

    def _first_tensor(self) -> Tensor:
        """A parameter, or a floating buffer where the delta has borrowed all its parameters."""
        for tensor in itertools.chain(self.parameters(), self.buffers()):
            if tensor.is_floating_point():
                return tensor
        raise AdapterError(f"{type(self).__name__} holds no tensor of its own, so it has no dtype", hint="register a buffer")

    def extra_repr(self) -> str:
        return f"{self.d_in} -> {self.d_out}"


class Watch:
    """Notices when a tensor of a module is written to, moved or replaced; asked at every token, so it walks the module once."""

    def __init__(self, module: nn.Module) -> None:
        places = [own for part in module.modules() for own in (part._modules, part._parameters, part._buffers)]
        self._held = [(own, name, held) for own in places for name, held in own.items()]
        self._tensors = [held for _, _, held in self._held if isinstance(held, Tensor)]
        self._state = self._now()

    def _now(self) -> list[tuple[int, int]]:
        return [(tensor.data_ptr(), tensor._version) for tensor in self._tensors]

    def unchanged(self) -> bool:
        return all(own.get(name) is held for own, name, held in self._held) and self._now() == self._state


def make_dropout(probability: float) -> nn.Module:
    """Dropout, or nothing."""
    return nn.Dropout(probability) if probability else nn.Identity()


def positive(name: str, value: Any) -> None:
    """Raise AdapterError unless `value` is a whole number of at least one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise AdapterError(f"{name} must be a whole number of at least 1", value=value)


def natural(name: str, value: Any) -> None:
    """Raise AdapterError unless `value` is a whole number, zero or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise AdapterError(f"{name} must be a whole number, 0 or more", value=value)


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raise AdapterError unless `value` is among `allowed`."""
    if value not in allowed:
        raise AdapterError(f"unknown {name}", value=value, bound=", ".join(allowed))


def probability(name: str, value: Any) -> None:
    """Raise AdapterError unless `value` is a probability below one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise AdapterError(f"{name} is a probability", value=value, bound=f"0 <= {name} < 1")
