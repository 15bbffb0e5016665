"""Contract suites for authors of new members: every adapter method passes `check_adapter`.

    from qpeft.testing import check_adapter

    def test_contract():
        check_adapter(lambda **settings: MyConfig(r=4, **settings))

PEFT's own methods can be held to it too, as a yardstick: `check_adapter(lambda **s: LoraConfig(r=4, **s))`. Models are tiny, random
and built from configurations; nothing is downloaded.
"""

from __future__ import annotations

import copy
import pickle
import re
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from qpeft.errors import AdapterError, MergeError

SIZES = ((896, 128), (576, 192), (1536, 256), (31, 17), (1, 1))
LLAMA_TARGETS, GPT2_TARGETS = ["q_proj", "v_proj", "down_proj"], ["c_attn", "c_proj"]
# Warnings that PEFT and transformers give on correct use, so that the suite runs under "warnings are errors".
THIRD_PARTY_WARNINGS = (
    ".*is_gradient_checkpointing.*deprecated",
    "Already found a `peft_config` attribute",
    "Adapter .* was active which is now deleted",
    "fan_in_fan_out is set to False but the target module is `Conv1D`",
)


@dataclass(frozen=True)
class Subject:
    """The method under test: `make(**settings)` returns its config, the others are as in `check_adapter`."""

    make: Callable[..., Any]
    additive: bool = True
    dead: str | None = None
    sizes: tuple[tuple[int, int], ...] = SIZES

    def adapt(self, base: nn.Module, *, seed: int = 1, adapter_name: str = "default", **settings: Any) -> Any:
        """The base model with a fresh adapter, in evaluation mode."""
        targets = GPT2_TARGETS if isinstance(base, GPT2LMHeadModel) else LLAMA_TARGETS
        torch.manual_seed(seed)
        return get_peft_model(base, self.make(**{"target_modules": targets, **settings}), adapter_name=adapter_name).eval()

    def stirred(self, base: nn.Module, **settings: Any) -> Any:
        """The same with noise on its parameters, so that it changes outputs."""
        return stir(self.adapt(base, **settings))

    def pair(self, base: nn.Module) -> Any:
        """The base model with two unlike adapters, "default" and "other", "default" active."""
        model = self.stirred(base)
        torch.manual_seed(2)
        model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
        activate(model, "other")
        stir(model.eval(), seed=8)
        activate(model, "default")
        return model


def llama(dtype: torch.dtype = torch.float32, **settings: Any) -> LlamaForCausalLM:
    """Two layers, grouped-query attention, untied embeddings, sizes that are no powers of two."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**{"num_hidden_layers": 2, **sizes, **settings})).to(dtype).eval()


def gpt2(dtype: torch.dtype = torch.float32) -> GPT2LMHeadModel:
    """Two layers, Conv1D for linear layers, biases, tied embeddings."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)).to(dtype).eval()


def tokens() -> Tensor:
    return (torch.arange(14) * 5 % 61).reshape(2, 7)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    out: Tensor = model(input_ids=tokens()).logits
    return out


def loss(model: nn.Module) -> Tensor:
    out: Tensor = model(input_ids=tokens(), labels=tokens()).loss
    return out


@torch.no_grad()
def stir(model: Any, seed: int = 7) -> Any:
    """Add normal noise (0.1) to every trainable parameter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trainable(model).values():
        parameter.add_((0.1 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype))
    return model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def layers(model: nn.Module) -> dict[str, Any]:
    """The adapted layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def activate(model: Any, *names: str) -> None:
    model.base_model.set_adapter(list(names))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients of the loss by parameter, zero where there is none."""
    model.zero_grad()
    loss(model).backward()  # type: ignore[no-untyped-call]
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in trainable(model).items()}


def same(got: Tensor, want: Tensor, what: str, bound: float = 0.0) -> None:
    """Assert that two tensors differ by at most `bound` anywhere."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)} instead of {tuple(want.shape)}"
    off = (got.detach().double() - want.detach().double()).abs().max().item() if got.numel() else 0.0
    assert off <= bound, f"{what}: off by {off:.3g}, allowed {bound:.3g}"  # also false for NaN


def differ(got: Tensor, other: Tensor, what: str) -> None:
    off = (got.detach().double() - other.detach().double()).abs().max().item()
    assert off > 1e-4, f"{what}: changed by {off:.3g} only, the check would be empty"


def identical(got: Mapping[str, Tensor], want: Mapping[str, Tensor], what: str) -> None:
    """Assert that two sets of named tensors are equal to the bit."""
    assert got.keys() == want.keys(), f"{what}: keys differ in {sorted(got.keys() ^ want.keys())[:4]}"
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype, f"{what}: {name} is {got[name].dtype} instead of {tensor.dtype}"
        same(got[name], tensor, f"{what}: {name}")


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def deltas(model: Any, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What each adapted layer adds to its base layer for the inputs `x`."""
    with torch.no_grad():
        return {name: layer(x[name]) - layer.base_layer(x[name]) for name, layer in layers(model).items()}


def layer_inputs(model: Any, seed: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        name: torch.randn(5, layer.in_features).to(layer.get_base_layer().weight.dtype) for name, layer in layers(model).items()
    }


def is_linear(subject: Subject) -> bool:
    """Whether the delta is a linear map of its input, measured in float64."""
    model = subject.stirred(llama(torch.float64))
    x, y = layer_inputs(model), layer_inputs(model, seed=4)
    dx, dy, dz = (deltas(model, inputs) for inputs in (x, y, {name: 2 * x[name] - 3 * y[name] for name in x}))
    return all(torch.allclose(dz[name], 2 * dx[name] - 3 * dy[name], rtol=1e-8, atol=1e-10) for name in x)


# The rules ------------------------------------------------------------------------------------------------------------


def starts_as_no_op(subject: Subject) -> None:
    for base in (llama(), gpt2(), llama(torch.bfloat16)):
        before = logits(base)
        rounding = torch.finfo(base.dtype).eps * before.abs().max().item() if base.dtype == torch.bfloat16 else 0.0
        same(logits(subject.adapt(base)), before, f"output of {type(base).__name__} ({base.dtype}) with a fresh adapter", rounding)


def gradients_stay_in_the_adapter(subject: Subject) -> None:
    model = subject.adapt(llama())
    adapter = {f"{name}.{inner}" for name, layer in layers(model).items() for inner, _ in layer.named_parameters()}
    outside = [name for name in trainable(model) if name not in adapter or ".base_layer." in name]
    assert not outside, f"trainable parameters outside the adapter: {outside[:4]}"
    found = gradients(model)
    leaked = [name for name, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
    assert not leaked, f"frozen parameters with a gradient: {leaked[:4]}"
    for name in layers(model):
        own = {n: g for n, g in found.items() if n.startswith(f"{name}.")}
        assert not own or any(g.abs().max() > 0 for g in own.values()), f"no gradient in any parameter of {name} at the start"


def every_parameter_learns(subject: Subject) -> None:
    for base in (llama(), gpt2()):
        before = snapshot(base)
        model = subject.adapt(base).train()
        optimizer, seen, losses = torch.optim.Adam(trainable(model).values(), lr=1e-2), set(), []
        for _ in range(6):
            seen |= {name for name, gradient in gradients(model).items() if gradient.abs().max() > 0}
            optimizer.step()
            losses.append(loss(model).item())
        still = [n for n in trainable(model) if n not in seen and not (subject.dead and re.search(subject.dead, n))]
        assert not still, f"parameters that had no gradient in 6 steps: {still[:4]} ({len(still)} in all)"
        assert losses[-1] < losses[0], f"the loss did not fall in 6 steps of Adam: {losses[0]:.4f} to {losses[-1]:.4f}"
        identical(snapshot(model.unload()), before, "base model after training")


def same_seed_same_adapter(subject: Subject) -> None:
    first, again, other = (get_peft_model_state_dict(subject.adapt(llama(), seed=seed)) for seed in (1, 1, 2))
    identical(first, again, "two adapters of one seed")
    assert any(not torch.equal(first[name], other[name]) for name in first), "adapters of two seeds are equal"


def _load_all_ways(folder: str, base: Callable[[], Any], want: Mapping[str, Tensor]) -> None:
    """Compare the adapter saved in `folder` with `want` after every way of loading it."""
    for low in (False, True):
        model = PeftModel.from_pretrained(base(), folder, low_cpu_mem_usage=low)
        identical(get_peft_model_state_dict(model), want, f"from_pretrained, low_cpu_mem_usage={low}")
        model.load_adapter(folder, "second", low_cpu_mem_usage=low)
        identical(get_peft_model_state_dict(model, adapter_name="second"), want, f"load_adapter, low_cpu_mem_usage={low}")
    plain = base()
    plain.load_adapter(folder)
    got = {f"base_model.model.{name}": tensor for name, tensor in get_peft_model_state_dict(plain).items()}
    identical(got, want, "load_adapter of transformers")


def saves_and_loads(subject: Subject) -> None:
    for base in (llama, gpt2):
        model = subject.stirred(base(), adapter_name="harbour")
        want = get_peft_model_state_dict(model, adapter_name="harbour")
        with tempfile.TemporaryDirectory() as root:
            model.save_pretrained(root)
            folder = str(Path(root) / "harbour")
            saved = load_file(Path(folder) / "adapter_model.safetensors")
            named = [key for key in saved if "harbour" in key]
            assert not named, f"saved keys hold the adapter's name: {named[:4]}"
            identical(saved, want, "saved file")
            _load_all_ways(folder, base, want)
            loaded = PeftModel.from_pretrained(base(), folder)
            assert not trainable(loaded), f"trainable after loading for inference: {list(trainable(loaded))[:4]}"
            same(logits(loaded), logits(model), "output after loading", 1e-5)
            names = {name.replace(".harbour.", ".default.") for name in trainable(model)}
            assert trainable(PeftModel.from_pretrained(base(), folder, is_trainable=True)).keys() == names, "is_trainable=True"


def loading_keeps_precision(subject: Subject) -> None:
    base = partial(llama, torch.bfloat16)
    model = subject.stirred(base())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        _load_all_ways(folder, base, get_peft_model_state_dict(model))


def two_adapters(subject: Subject) -> None:
    model = subject.pair(llama(torch.float64))
    x, outputs, parts = layer_inputs(model), {}, {}
    for name in ("default", "other"):
        activate(model, name)
        outputs[name], parts[name] = logits(model), deltas(model, x)
        wrong = [n for n in trainable(model) if f".{name}" not in n]
        assert not wrong, f"with {name!r} active these train too: {wrong[:4]}"
    differ(outputs["default"], outputs["other"], "outputs of two adapters")
    activate(model, "default")
    same(logits(model), outputs["default"], "output after switching back", 1e-12)
    activate(model, "default", "other")
    both = deltas(model, x)
    for name in both if subject.additive else ():
        want = parts["default"][name] + parts["other"][name]
        same(both[name], want, f"two active adapters in {name}", 1e-10 * (1 + want.abs().max().item()))


def disabled_is_base(subject: Subject) -> None:
    for base in (llama(), gpt2(), llama(torch.bfloat16)):
        before = logits(base)
        model = subject.pair(base)
        active = logits(model)
        differ(active, before, "output with the adapter")
        with model.disable_adapter():
            same(logits(model), before, f"output of {type(base).__name__} with adapters disabled")
        same(logits(model), active, "output with adapters enabled again", 1e-5)


def deletes(subject: Subject) -> None:
    model = subject.pair(llama())
    activate(model, "other")
    other = logits(model)
    model.delete_adapter("default")
    left = [name for name in model.state_dict() if ".default" in name]
    assert not left, f"left after delete_adapter: {left[:4]}"
    same(logits(model), other, "output of the adapter that was kept", 1e-5)


def unloads(subject: Subject) -> None:
    for base in (llama(), gpt2()):
        before, state = logits(base), snapshot(base)
        unloaded = subject.pair(base).unload()
        assert not layers(unloaded), f"adapted layers left: {list(layers(unloaded))[:4]}"
        identical(snapshot(unloaded), state, "state after unload")
        same(logits(unloaded), before, "output after unload")


def merges_when_linear(subject: Subject) -> None:
    if not is_linear(subject):
        return
    for base in (llama, gpt2):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            for names in (["default"], ["default", "other"]):
                _merge(subject, base(dtype), names, f"{base.__name__} in {dtype}, {len(names)} active")


def _merge(subject: Subject, base: Any, names: list[str], what: str) -> None:
    eps = torch.finfo(base.dtype).eps * (2 if base.dtype == torch.bfloat16 else 64)
    model = subject.pair(base)
    activate(model, *names)
    x, before, state = layer_inputs(model), logits(model), snapshot(model)
    with torch.no_grad():
        outputs = {name: layer(x[name]) for name, layer in layers(model).items()}
        model.merge_adapter(safe_merge=True)
        for name, layer in layers(model).items():
            weights = state[f"{name}.base_layer.weight"].abs() + layer.base_layer.weight.abs()
            scale = (x[name].abs() @ (weights if isinstance(layer.base_layer, Conv1D) else weights.T)).max().item()
            same(layer(x[name]), outputs[name], f"{what}: merged and unmerged output of {name}", eps * scale)
        model.unmerge_adapter()
        for name in state:
            same(model.state_dict()[name], state[name], f"{what}: {name} after unmerge", eps * (1 + state[name].abs().max().item()))
        merged = model.merge_and_unload()
    assert not layers(merged), f"{what}: adapted layers left after merge_and_unload"
    if base.dtype == torch.float64:
        same(logits(merged), before, f"{what}: output after merge_and_unload", 1e-9)


def refuses_to_merge_otherwise(subject: Subject) -> None:
    if is_linear(subject):
        return
    model = subject.pair(llama())
    before, state = logits(model), snapshot(model)
    for call in (model.merge_adapter, partial(model.merge_adapter, safe_merge=True), model.merge_and_unload):
        try:
            call()
        except MergeError:
            pass
        else:
            raise AssertionError("a delta that is not linear was merged without a MergeError")
        identical(snapshot(model), state, "state after a refused merge")
        assert not any(layer.merged for layer in layers(model).values()), "a layer says that it is merged"
        same(logits(model), before, "output after a refused merge", 1e-5)


def leaves_tied_embeddings_alone(subject: Subject) -> None:
    base = gpt2()
    before = base.lm_head.weight.clone()
    model = subject.stirred(base)
    stray = [key for key in get_peft_model_state_dict(model) if "wte" in key or "lm_head" in key]
    assert not stray, f"embeddings among the saved keys: {stray}"
    unloaded = model.unload()
    assert unloaded.lm_head.weight is unloaded.transformer.wte.weight, "the embeddings are no longer tied"
    same(unloaded.lm_head.weight, before, "tied embedding")


def chooses_its_dtype(subject: Subject) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        model, want = subject.stirred(llama(dtype)), torch.float64 if dtype == torch.float64 else torch.float32
        wrong = {name: p.dtype for name, p in trainable(model).items() if p.dtype != want}
        assert not wrong, f"on a {dtype} base the adapter is {want}, but {wrong}"
        out, found = logits(model), gradients(model)
        assert out.dtype == dtype, f"output in {out.dtype} on a {dtype} base"
        assert out.isfinite().all(), f"output not finite on a {dtype} base"
        assert all(g.dtype == want and g.isfinite().all() for g in found.values()), f"gradients on a {dtype} base"
    same(logits(subject.stirred(llama())), logits(subject.stirred(llama(torch.float64))), "float32 against float64", 1e-3)


def checkpoints_gradients(subject: Subject) -> None:
    want = gradients(subject.stirred(llama()).train())
    for reentrant in (True, False):
        model, runs = subject.stirred(llama()).train(), []
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        next(iter(layers(model).values())).register_forward_hook(lambda *_, runs=runs: runs.append(1))
        found = gradients(model)
        assert len(runs) == 2, f"the layer ran {len(runs)} times, not twice: nothing was checkpointed"
        for name in want:
            same(
                found[name],
                want[name],
                f"gradient of {name}, use_reentrant={reentrant}",
                1e-5 * (1 + want[name].abs().max().item()),
            )


def compiles(subject: Subject) -> None:
    model = subject.stirred(llama(num_hidden_layers=1))
    want, output = gradients(model), logits(model)
    torch._dynamo.reset()  # type: ignore[no-untyped-call]
    compiled = torch.compile(model.get_base_model(), fullgraph=True)
    model.zero_grad()
    out = compiled(input_ids=tokens(), labels=tokens())
    same(out.logits, output, "compiled output", 1e-4)
    out.loss.backward()
    for name, parameter in trainable(model).items():
        assert parameter.grad is not None, f"no compiled gradient of {name}"
        same(parameter.grad, want[name], f"compiled gradient of {name}", 1e-4 * (1 + want[name].abs().max().item()))


def runs_under_autocast(subject: Subject) -> None:
    for base in (llama(), llama(torch.bfloat16)):
        model = subject.stirred(base)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(model)
        value.backward()  # type: ignore[no-untyped-call]
        assert value.isfinite(), f"loss {value.item()} under autocast"
        for name, parameter in trainable(model).items():
            good = parameter.grad is not None and parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all()
            assert good, f"gradient of {name} under autocast: none, not float32 or not finite"


def copies_and_pickles(subject: Subject) -> None:
    model = subject.pair(llama())
    before = logits(model)
    for how, twin in (("deepcopy", copy.deepcopy(model)), ("pickle", pickle.loads(pickle.dumps(model)))):
        identical(snapshot(twin), snapshot(model), how)
        assert trainable(twin).keys() == trainable(model).keys(), f"{how}: other parameters train"
        same(logits(twin), before, f"output after {how}", 1e-5)
        differ(logits(stir(twin)), before, f"output of a changed {how}")
        same(logits(model), before, f"output of the original after changing its {how}")


def takes_any_size_and_shape(subject: Subject) -> None:
    for d_in, d_out in subject.sizes:
        for kind in (nn.Linear(d_in, d_out), Conv1D(d_out, d_in)):
            what = f"{type(kind).__name__} {d_in} -> {d_out}"
            x = torch.randn(2, 3, d_in, requires_grad=True)
            before = kind(x).detach()
            model = subject.adapt(nn.Sequential(kind), target_modules=["0"])
            same(model(x), before, f"fresh adapter on {what}")
            out = stir(model)(x)
            differ(out, before, what)
            assert torch.autograd.grad(out.sum(), x)[0].isfinite().all(), f"{what}: gradient not finite"
            for shape in ((d_in,), (1, d_in), (6, d_in), (0, d_in)):
                rows = x.reshape(-1, d_in)[: shape[0] if len(shape) > 1 else 1].reshape(shape)
                want = out.reshape(-1, d_out)[: len(rows) if len(shape) > 1 else 1].reshape(*shape[:-1], d_out)
                part = model(rows)
                same(part, want, f"{what} on an input of shape {shape}", 1e-4 * (1 + out.abs().max().item()))
                part.sum().backward()


def saves_whole_modules(subject: Subject) -> None:
    _with_more_trained(subject, llama, lambda name: "lm_head" in name, modules_to_save=["lm_head"])


def trains_biases(subject: Subject) -> None:
    _with_more_trained(subject, gpt2, lambda name: name.endswith(".bias"), bias="all")


def _with_more_trained(subject: Subject, base: Callable[[], Any], more: Callable[[str], bool], **settings: Any) -> None:
    model = subject.stirred(base(), **settings)
    assert any(more(name) for name in trainable(model)), f"{settings}: nothing more is trained"
    want = get_peft_model_state_dict(model)
    assert any(more(name) for name in want), f"{settings}: nothing more is saved"
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = PeftModel.from_pretrained(base(), folder)
    identical(get_peft_model_state_dict(loaded), want, f"{settings}: after loading")
    same(logits(loaded), logits(model), f"{settings}: output after loading", 1e-5)


def transforms_chosen_layers(subject: Subject) -> None:
    names = layers(subject.adapt(llama(), layers_to_transform=[1]))
    assert len(names) == len(LLAMA_TARGETS), f"layers_to_transform=[1] adapts {len(names)} modules"
    assert all(".layers.1." in name for name in names), f"layers_to_transform=[1] adapts {list(names)}"


RULES: dict[str, Callable[[Subject], None]] = {
    rule.__name__: rule
    for rule in (
        starts_as_no_op,
        gradients_stay_in_the_adapter,
        every_parameter_learns,
        same_seed_same_adapter,
        saves_and_loads,
        loading_keeps_precision,
        two_adapters,
        disabled_is_base,
        deletes,
        unloads,
        merges_when_linear,
        refuses_to_merge_otherwise,
        leaves_tied_embeddings_alone,
        chooses_its_dtype,
        checkpoints_gradients,
        runs_under_autocast,
        copies_and_pickles,
        takes_any_size_and_shape,
        saves_whole_modules,
        trains_biases,
        transforms_chosen_layers,
        compiles,
    )
}
SLOW = frozenset({"compiles"})


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), torch.random.fork_rng():
        for message in THIRD_PARTY_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


def check_adapter(
    config_factory: Callable[..., Any],
    *,
    additive: bool = True,
    dead: str | None = None,
    sizes: Sequence[tuple[int, int]] = SIZES,
    only: Collection[str] = tuple(RULES),
    skip: Collection[str] = (),
) -> None:
    """Hold an adapter method to the contract.

    Args:
        config_factory: `config_factory(**settings)` returns a PEFT config of the method. Settings are `target_modules`, and
            `modules_to_save`, `layers_to_transform` or `bias` in the rules about them.
        additive: two active adapters change a layer by the sum of their deltas. False for multiplicative methods.
        dead: regular expression of the names of parameters that may never have a gradient.
        sizes: the `(d_in, d_out)` the method must take.
        only, skip: names of rules, keys of `RULES`. Those in `SLOW` take some ten seconds.

    Raises:
        AssertionError: rules that are broken, each by name, with what was off and by how much.
        AdapterError: `only` or `skip` names a rule that does not exist.
    """
    unknown = {*only, *skip} - RULES.keys()
    if unknown:
        raise AdapterError("unknown rules", value=sorted(unknown), bound=", ".join(RULES))
    subject, broken = Subject(config_factory, additive, dead, tuple(sizes)), []
    for name in RULES:
        if name in only and name not in skip:
            try:
                with _quiet():
                    RULES[name](subject)
            except Exception as error:
                broken.append((f"{name}: {'' if isinstance(error, AssertionError) else type(error).__name__ + ': '}{error}", error))
    if broken:
        raise AssertionError("\n".join(line for line, _ in broken)) from broken[0][1]
