"""Tools of the contract suite: tiny models, the adapter under test, measurements, assertions that give figures."""

from __future__ import annotations

import copy
import importlib
import logging
import random
import unittest
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

SIZES = ((896, 128), (576, 192), (1536, 256), (31, 17), (1, 1))
QUANTISED = ("8-bit", "4-bit fp4", "4-bit nf4")
LLAMA_TARGETS, GPT2_TARGETS = ["q_proj", "v_proj", "down_proj"], ["c_attn", "c_proj"]


def odd_sizes(seed: int) -> tuple[tuple[int, int], ...]:
    """Four `(d_in, d_out)` that no method was made for: two primes, two odd numbers, a narrow layer and a wide one."""
    draw = random.Random(seed)
    primes = [n for n in range(3, 200) if all(n % k for k in range(2, int(n**0.5) + 1))]
    odd = range(3, 130, 2)
    p, q = draw.sample(primes, 2)
    return ((p, q), (draw.choice(odd), draw.choice(odd)), (draw.choice(odd), 2), (3, draw.choice(odd) + 256))


@dataclass(frozen=True)
class MethodUnderTest:
    """The method under test.

    Attributes:
        make: `make(**settings)` returns a config of the method.
        additive, dead, sizes: as in `check_adapter`.
    """

    make: Callable[..., Any]
    additive: bool = True
    dead: str | None = None
    sizes: tuple[tuple[int, int], ...] = SIZES

    def adapt(self, base: nn.Module, *, seed: int = 1, adapter_name: str = "default", **settings: Any) -> Any:
        """The base model with a fresh adapter, in evaluation mode.

        Args:
            base: the base model, changed in place.
            seed: torch's seed, on which the initial weights depend.
            adapter_name: name of the adapter.
            **settings: settings of the method.
        """
        targets = GPT2_TARGETS if isinstance(base, GPT2LMHeadModel) else LLAMA_TARGETS
        torch.manual_seed(seed)
        return get_peft_model(base, self.make(**{"target_modules": targets, **settings}), adapter_name=adapter_name).eval()

    def randomized(self, base: nn.Module, **settings: Any) -> Any:
        """The base model with a fresh adapter whose parameters have noise added, so that it changes outputs."""
        return randomize(self.adapt(base, **settings))

    def pair(self, base: nn.Module) -> Any:
        """The base model with two different adapters, "default" (active) and "other"."""
        model = self.randomized(base)
        torch.manual_seed(2)
        model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
        activate(model, "other")
        randomize(model.eval(), seed=8)
        activate(model, "default")
        return model


def llama(dtype: torch.dtype = torch.float32, **settings: Any) -> LlamaForCausalLM:
    """Two layers, grouped-query attention, untied embeddings, sizes that are no powers of two."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**{"num_hidden_layers": 2, "use_cache": False, **sizes, **settings})).to(dtype).eval()


def gpt2(dtype: torch.dtype = torch.float32) -> GPT2LMHeadModel:
    """Two layers, Conv1D for linear layers, biases, tied embeddings."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False)).to(dtype).eval()


def quantised_llama(kind: str) -> LlamaForCausalLM:
    """`llama()` with the layers to adapt in bitsandbytes' 8 or 4 bits; unittest.SkipTest says why where it does not run."""
    try:
        layers_of = importlib.import_module("bitsandbytes").nn
    except Exception as error:  # not only ImportError: its import loads a native library
        raise unittest.SkipTest(f"bitsandbytes does not import: {error}") from error
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says at every call that it rounds to float16
    model = llama()
    for name, layer in list(model.named_modules()):
        if name.rpartition(".")[2] in LLAMA_TARGETS:
            sizes, bias = (layer.in_features, layer.out_features), layer.bias is not None
            if kind == "8-bit":
                made = layers_of.Linear8bitLt(*sizes, bias=bias, has_fp16_weights=False)
            else:
                made = layers_of.Linear4bit(*sizes, bias=bias, quant_type=kind.removeprefix("4-bit "))
                made.support_avx512bf16_for_cpu = False  # there it rounds its weights again at the first evaluation
            made.load_state_dict(layer.state_dict())
            model.set_submodule(name, made)
    try:
        model.to("cuda" if torch.cuda.is_available() else "cpu")  # quantises
        logits(model)
    except Exception as error:
        raise unittest.SkipTest(f"bitsandbytes does not run here: {type(error).__name__}: {error}") from error
    setattr(model, f"is_loaded_in_{kind[0]}bit", True)  # as transformers marks it, and PEFT reads it
    return model.eval()


def tokens() -> Tensor:
    """Token ids `(2, 7)`."""
    return (torch.arange(14) * 5 % 61).reshape(2, 7)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """The model's logits for `tokens()`, without gradient."""
    out: Tensor = model(input_ids=tokens().to(_device(model))).logits
    return out


def loss(model: nn.Module) -> Tensor:
    """The language-model loss on `tokens()`, nats/token."""
    ids = tokens().to(_device(model))
    out: Tensor = model(input_ids=ids, labels=ids).loss
    return out


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@torch.no_grad()
def randomize(model: Any, seed: int = 7) -> Any:
    """Add normal noise of standard deviation 0.1 to every trainable parameter.

    Args:
        model: the model, changed in place.
        seed: of the noise.

    Returns:
        The model.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in trainable(model).values():
        parameter.add_((0.1 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype))
    return model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def layers(model: nn.Module) -> dict[str, Any]:
    """The adapted layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def activate(model: Any, *names: str) -> None:
    """Make these adapters active together."""
    model.base_model.set_adapter(list(names))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients of the loss by parameter, zero where there is none."""
    model.zero_grad()
    loss(model).backward()  # type: ignore[no-untyped-call]
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in trainable(model).items()}


def same(got: Tensor, want: Tensor, what: str, bound: float = 0.0) -> None:
    """Assert that two tensors differ by at most `bound` anywhere.

    Args:
        got: the tensor under test.
        want: what it should be.
        what: name of the check, for the message.
        bound: largest absolute difference allowed.

    Raises:
        AssertionError: other shapes, a larger difference, or a NaN.
    """
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)} instead of {tuple(want.shape)}"
    off = (got.detach().double() - want.detach().double()).abs().max().item() if got.numel() else 0.0
    assert off <= bound, f"{what}: off by {off:.3g}, allowed {bound:.3g}"  # also false for NaN


def differ(got: Tensor, other: Tensor, what: str) -> None:
    """Assert that two tensors differ by more than 1e-4 somewhere.

    Args:
        got: a tensor.
        other: a tensor of the same shape.
        what: name of the check, for the message.

    Raises:
        AssertionError: they do not differ, so a check that follows would prove nothing.
    """
    off = (got.detach().double() - other.detach().double()).abs().max().item()
    assert off > 1e-4, f"{what}: changed by {off:.3g} only, the check would be empty"


def identical(got: Mapping[str, Tensor], want: Mapping[str, Tensor], what: str) -> None:
    """Assert that two sets of named tensors are equal to the bit.

    Args:
        got: tensors under test, by name.
        want: what they should be, by name.
        what: name of the check, for the message.

    Raises:
        AssertionError: other names, dtypes, shapes or values.
    """
    assert got.keys() == want.keys(), f"{what}: keys differ in {sorted(got.keys() ^ want.keys())[:4]}"
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype, f"{what}: {name} is {got[name].dtype} instead of {tensor.dtype}"
        same(got[name], tensor, f"{what}: {name}")


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's state."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def deltas(model: Any, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Difference that each adapted layer adds to its base layer for the inputs `x`.

    Args:
        model: the adapted model.
        x: inputs by name of the layer.
    """
    with torch.no_grad():
        return {name: layer(x[name]) - layer.base_layer(x[name]) for name, layer in layers(model).items()}


def layer_inputs(model: Any, seed: int = 3) -> dict[str, Tensor]:
    """Random inputs `(5, d_in)` of every adapted layer, in its base weight's dtype.

    Args:
        model: the adapted model.
        seed: torch's seed.

    Returns:
        The inputs by name of the layer.
    """
    torch.manual_seed(seed)
    return {
        name: torch.randn(5, layer.in_features).to(layer.get_base_layer().weight.dtype) for name, layer in layers(model).items()
    }


def is_linear(subject: MethodUnderTest) -> bool:
    """Whether the delta is a linear map of its input, measured in float64."""
    model = subject.randomized(llama(torch.float64))
    x, y = layer_inputs(model), layer_inputs(model, seed=4)
    dx, dy, dz = (deltas(model, inputs) for inputs in (x, y, {name: 2 * x[name] - 3 * y[name] for name in x}))
    return all(torch.allclose(dz[name], 2 * dx[name] - 3 * dy[name], rtol=1e-8, atol=1e-10) for name in x)
