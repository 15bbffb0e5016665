"""The contract of an adapter method: a function for each rule, and `RULES`, the list of them."""

from __future__ import annotations

import copy
import pickle
import re
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qpeft.errors import MergeError
from qpeft.testing.tools import (
    LLAMA_TARGETS,
    QUANTISED,
    MethodUnderTest,
    activate,
    deltas,
    differ,
    gpt2,
    gradients,
    identical,
    is_linear,
    layer_inputs,
    layers,
    llama,
    logits,
    loss,
    quantised_llama,
    randomize,
    same,
    snapshot,
    tokens,
    trainable,
)


def starts_as_no_op(subject: MethodUnderTest) -> None:
    """A fresh adapter leaves outputs as they are, to the bit, and on a bfloat16 base to one rounding."""
    for base in (llama(), gpt2(), llama(torch.bfloat16)):
        before = logits(base)
        rounding = torch.finfo(base.dtype).eps * before.abs().max().item() if base.dtype == torch.bfloat16 else 0.0
        same(logits(subject.adapt(base)), before, f"output of {type(base).__name__} ({base.dtype}) with a fresh adapter", rounding)


def gradients_stay_in_the_adapter(subject: MethodUnderTest) -> None:
    """Only parameters of the adapter train, and every adapted layer has a gradient at the start."""
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


def every_parameter_learns(subject: MethodUnderTest) -> None:
    """Every trainable parameter has a gradient within 6 steps, the loss falls, and the base model stays as it was."""
    for base in (llama(), gpt2()):
        before = snapshot(base)
        model = subject.adapt(base).train()
        optimizer, seen, losses = torch.optim.Adam(trainable(model).values(), lr=3e-3), set(), []
        for _ in range(6):
            seen |= {name for name, gradient in gradients(model).items() if gradient.abs().max() > 0}
            optimizer.step()
            losses.append(loss(model).item())
        still = [n for n in trainable(model) if n not in seen and not (subject.dead and re.search(subject.dead, n))]
        assert not still, f"parameters that had no gradient in 6 steps: {still[:4]} ({len(still)} in all)"
        assert losses[-1] < losses[0], f"the loss did not fall in 6 steps of Adam: {losses}"
        identical(snapshot(model.unload()), before, "base model after training")


def same_seed_same_adapter(subject: MethodUnderTest) -> None:
    """Equal seeds give equal adapters, different seeds different ones."""
    first, again, other = (get_peft_model_state_dict(subject.adapt(llama(), seed=seed)) for seed in (1, 1, 2))
    identical(first, again, "two adapters of one seed")
    drawn = any(tensor.any() for tensor in first.values())  # a start of zeros alone needs no seed
    assert not drawn or any(not torch.equal(first[name], other[name]) for name in first), "adapters of two seeds are equal"


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


def saves_and_loads(subject: MethodUnderTest) -> None:
    """A saved adapter loads in every way that PEFT and transformers have, to the bit, also under another name."""
    for base in (llama, gpt2):
        model = subject.randomized(base(), adapter_name="harbour")
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


def loading_keeps_precision(subject: MethodUnderTest) -> None:
    """float32 weights on a bfloat16 base are not rounded by saving and loading."""
    base = partial(llama, torch.bfloat16)
    model = subject.randomized(base())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        _load_all_ways(folder, base, get_peft_model_state_dict(model))


def two_adapters(subject: MethodUnderTest) -> None:
    """Two adapters change outputs each on its own, and both together by the sum of their deltas."""
    alone, model = logits(subject.randomized(llama(torch.float64))), subject.pair(llama(torch.float64))
    x, outputs, parts = layer_inputs(model), {}, {}
    for name in ("default", "other"):
        activate(model, name)
        outputs[name], parts[name] = logits(model), deltas(model, x)
        wrong = [n for n in trainable(model) if f".{name}" not in n]
        assert not wrong, f"with {name!r} active these train too: {wrong[:4]}"
    differ(outputs["default"], outputs["other"], "outputs of two adapters")
    same(outputs["default"], alone, "output of an adapter after another was added, changed and switched away from", 1e-12)
    activate(model, "default", "other")
    both = deltas(model, x)
    for name in both if subject.additive else ():
        want = parts["default"][name] + parts["other"][name]
        same(both[name], want, f"two active adapters in {name}", 1e-10 * (1 + want.abs().max().item()))


def disabled_is_base(subject: MethodUnderTest) -> None:
    """With adapters disabled, outputs are those of the base model."""
    for base in (llama(), gpt2(), llama(torch.bfloat16)):
        before = logits(base)
        model = subject.pair(base)
        active = logits(model)
        differ(active, before, "output with the adapter")
        with model.disable_adapter():
            same(logits(model), before, f"output of {type(base).__name__} with adapters disabled")
        same(logits(model), active, "output with adapters enabled again", 1e-5)


def deletes(subject: MethodUnderTest) -> None:
    """A deleted adapter leaves nothing behind and the other one unchanged."""
    model = subject.pair(llama())
    activate(model, "other")
    other = logits(model)
    model.delete_adapter("default")
    left = [name for name in model.state_dict() if ".default" in name]
    assert not left, f"left after delete_adapter: {left[:4]}"
    same(logits(model), other, "output of the adapter that was kept", 1e-5)


def unloads(subject: MethodUnderTest) -> None:
    """`unload` gives the base model back, to the bit."""
    for base in (llama(), gpt2()):
        before, state = logits(base), snapshot(base)
        unloaded = subject.pair(base).unload()
        assert not layers(unloaded), f"adapted layers left: {list(layers(unloaded))[:4]}"
        identical(snapshot(unloaded), state, "state after unload")
        same(logits(unloaded), before, "output after unload")


def merges_when_linear(subject: MethodUnderTest) -> None:
    """A linear delta merges: merged and unmerged outputs agree, for one and for two adapters."""
    if not is_linear(subject):
        return
    for base in (llama, gpt2):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            for names in (["default"], ["default", "other"]):
                _merge(subject, base(dtype), names, f"{base.__name__} in {dtype}, {len(names)} active")


def _merge(subject: MethodUnderTest, base: Any, names: list[str], what: str) -> None:
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


def refuses_to_merge_otherwise(subject: MethodUnderTest) -> None:
    """A delta that is not linear refuses to merge with a MergeError and changes nothing."""
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


def learns_beside_a_quantised_base(subject: MethodUnderTest) -> None:
    """An adapter on bitsandbytes' 8 and 4 bits learns, and merges or says why not. Skipped where bitsandbytes does not run."""
    for kind in QUANTISED:
        base = quantised_llama(kind)
        before, state = logits(base), snapshot(base)
        model = subject.adapt(base)
        same(logits(model), before, f"{kind}: output with a fresh adapter")
        wrong = {name: p.dtype for name, p in trainable(model).items() if p.dtype != torch.float32}
        assert not wrong, f"{kind}: the adapter is float32, but {wrong}"
        model.train()
        optimizer, losses = torch.optim.Adam(trainable(model).values(), lr=1e-2), list[float]()
        for _ in range(6):
            assert all(g.isfinite().all() for g in gradients(model).values()), f"{kind}: gradient not finite"
            optimizer.step()
            losses.append(loss(model).item())
        assert losses[-1] < losses[0], f"{kind}: the loss did not fall in 6 steps of Adam: {losses[0]:.4f} to {losses[-1]:.4f}"
        trained, refusal = logits(model.eval()), ""
        try:
            model.merge_adapter()
        except MergeError as error:
            refusal = str(error)
        if refusal:
            assert re.search("quantised|not linear", refusal), f"{kind}: the refusal to merge does not say why: {refusal}"
            same(logits(model), trained, f"{kind}: output after a refused merge", 1e-5)
            identical(snapshot(model.unload()), state, f"{kind}: base model after training")
        else:  # a method that merges into quantised weights, rounding them again
            same(logits(model), trained, f"{kind}: merged output", 0.1 * trained.abs().max().item())


def leaves_tied_embeddings_alone(subject: MethodUnderTest) -> None:
    """Tied embeddings stay tied, unchanged and unsaved."""
    base = gpt2()
    before = base.lm_head.weight.clone()
    model = subject.randomized(base)
    stray = [key for key in get_peft_model_state_dict(model) if "wte" in key or "lm_head" in key]
    assert not stray, f"embeddings among the saved keys: {stray}"
    unloaded = model.unload()
    assert unloaded.lm_head.weight is unloaded.transformer.wte.weight, "the embeddings are no longer tied"
    same(unloaded.lm_head.weight, before, "tied embedding")


def chooses_its_dtype(subject: MethodUnderTest) -> None:
    """The adapter is float32, or float64 on a float64 base; outputs and gradients are finite."""
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        model, want = subject.randomized(llama(dtype)), torch.float64 if dtype == torch.float64 else torch.float32
        wrong = {name: p.dtype for name, p in trainable(model).items() if p.dtype != want}
        assert not wrong, f"on a {dtype} base the adapter is {want}, but {wrong}"
        out, found = logits(model), gradients(model)
        assert out.dtype == dtype, f"output in {out.dtype} on a {dtype} base"
        assert out.isfinite().all(), f"output not finite on a {dtype} base"
        assert all(g.dtype == want and g.isfinite().all() for g in found.values()), f"gradients on a {dtype} base"
    same(logits(subject.randomized(llama())), logits(subject.randomized(llama(torch.float64))), "float32 against float64", 1e-3)


def checkpoints_gradients(subject: MethodUnderTest) -> None:
    """Gradient checkpointing gives the same gradients."""
    want = gradients(subject.randomized(llama()).train())
    for reentrant in (True, False):
        model, runs = subject.randomized(llama()).train(), list[int]()
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


def compiles(subject: MethodUnderTest) -> None:
    """`torch.compile` takes the model and a single layer, with the same outputs and gradients."""
    model = subject.randomized(llama(num_hidden_layers=1))
    want, output = gradients(model), logits(model)
    torch.compiler.reset()
    model.zero_grad()
    compiled: Callable[..., Any] = torch.compile(model.get_base_model(), fullgraph=True, backend="aot_eager")
    out = compiled(input_ids=tokens(), labels=tokens())
    out.loss.backward()
    same(out.logits, output, "output of the compiled model", 1e-4)
    for name, parameter in trainable(model).items():
        assert parameter.grad is not None, f"no compiled gradient of {name}"
        same(parameter.grad, want[name], f"compiled gradient of {name}", 1e-4 * (1 + want[name].abs().max().item()))
    layer = next(iter(layers(model).values()))
    compiled = torch.compile(layer, fullgraph=True)
    x = torch.randn(5, layer.in_features, requires_grad=True)
    got, plain = (torch.autograd.grad(out.square().sum(), x, retain_graph=True)[0] for out in (compiled(x), layer(x)))
    same(compiled(x), layer(x), "output of a compiled layer", 1e-4)
    same(got, plain, "gradient of a compiled layer's input", 1e-4 * (1 + plain.abs().max().item()))


def runs_under_autocast(subject: MethodUnderTest) -> None:
    """Under bfloat16 autocast the loss is finite and gradients are float32."""
    for base in (llama(), llama(torch.bfloat16)):
        model = subject.randomized(base)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(model)
        torch.autograd.backward(value)
        assert value.isfinite(), f"loss {value.item()} under autocast"
        for name, parameter in trainable(model).items():
            good = parameter.grad is not None and parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all()
            assert good, f"gradient of {name} under autocast: none, not float32 or not finite"


def copies_and_pickles(subject: MethodUnderTest) -> None:
    """A deep copy and a pickle are equal and independent."""
    model = subject.pair(llama())
    before = logits(model)
    for how, copied in (("deepcopy", copy.deepcopy(model)), ("pickle", pickle.loads(pickle.dumps(model)))):
        identical(snapshot(copied), snapshot(model), how)
        assert trainable(copied).keys() == trainable(model).keys(), f"{how}: other parameters train"
        same(logits(copied), before, f"output after {how}", 1e-5)
        differ(logits(randomize(copied)), before, f"output of a changed {how}")
        same(logits(model), before, f"output of the original after changing its {how}")


def takes_any_size_and_shape(subject: MethodUnderTest) -> None:
    """Layers of any size, nn.Linear and Conv1D, take inputs of any shape, an empty batch included."""
    for d_in, d_out in subject.sizes:
        for kind in (nn.Linear(d_in, d_out), Conv1D(d_out, d_in)):
            what = f"{type(kind).__name__} {d_in} -> {d_out}"
            x = torch.randn(2, 3, d_in, requires_grad=True)
            before = kind(x).detach()
            model = subject.adapt(nn.Sequential(kind), target_modules=["0"])
            same(model(x), before, f"fresh adapter on {what}")
            out = randomize(model)(x)
            differ(out, before, what)
            assert torch.autograd.grad(out.sum(), x)[0].isfinite().all(), f"{what}: gradient not finite"
            for shape in ((d_in,), (1, d_in), (6, d_in), (0, d_in)):
                rows = x.reshape(-1, d_in)[: shape[0] if len(shape) > 1 else 1].reshape(shape)
                want = out.reshape(-1, d_out)[: len(rows) if len(shape) > 1 else 1].reshape(*shape[:-1], d_out)
                part = model(rows)
                same(part, want, f"{what} on an input of shape {shape}", 1e-4 * (1 + out.abs().max().item()))
                part.sum().backward()


def saves_whole_modules(subject: MethodUnderTest) -> None:
    """`modules_to_save` trains and saves further modules."""
    _with_more_trained(subject, llama, lambda name: "lm_head" in name, modules_to_save=["lm_head"])


def trains_biases(subject: MethodUnderTest) -> None:
    """`bias="all"` trains and saves biases."""
    _with_more_trained(subject, gpt2, lambda name: name.endswith(".bias"), bias="all")


def _with_more_trained(subject: MethodUnderTest, base: Callable[[], Any], more: Callable[[str], bool], **settings: Any) -> None:
    model = subject.randomized(base(), **settings)
    assert any(more(name) for name in trainable(model)), f"{settings}: nothing more is trained"
    want = get_peft_model_state_dict(model)
    assert any(more(name) for name in want), f"{settings}: nothing more is saved"
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = PeftModel.from_pretrained(base(), folder)
    identical(get_peft_model_state_dict(loaded), want, f"{settings}: after loading")
    same(logits(loaded), logits(model), f"{settings}: output after loading", 1e-5)


def transforms_chosen_layers(subject: MethodUnderTest) -> None:
    """`layers_to_transform` adapts the layers that it names."""
    names = layers(subject.adapt(llama(), layers_to_transform=[1]))
    assert len(names) == len(LLAMA_TARGETS), f"layers_to_transform=[1] adapts {len(names)} modules"
    assert all(".layers.1." in name for name in names), f"layers_to_transform=[1] adapts {list(names)}"


RULES: dict[str, Callable[[MethodUnderTest], None]] = {
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
        learns_beside_a_quantised_base,
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
