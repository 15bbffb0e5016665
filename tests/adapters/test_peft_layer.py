"""Deltas parallel to a layer, on its input and on its output: what merging does to the weight, what moves and copies with it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import qpeft
from qpeft.adapters.base import Delta
from qpeft.errors import MergeError

POSITIONS: dict[str, Any] = {"parallel": qpeft.QuantumPEFTConfig, "input": qpeft.CayleyConfig, "output": qpeft.QuICConfig}
MULTIPLICATIVE = ("input", "output")
KINDS = ("bias", "no bias", "Conv1D")
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
D_IN, D_OUT = 7, 9


def base_layer(kind: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    layer = Conv1D(D_OUT, D_IN) if kind == "Conv1D" else nn.Linear(D_IN, D_OUT, bias=kind == "bias")
    if kind != "no bias":
        nn.init.normal_(layer.bias)
    nn.init.normal_(layer.weight)
    return layer.to(dtype)


def adapted(position: str, kind: str = "bias", dtype: torch.dtype = torch.float32) -> Any:
    """A layer with two unlike adapters, "default" active."""
    config = POSITIONS[position](target_modules=["0"], init_weights=False)
    model = get_peft_model(nn.Sequential(base_layer(kind, dtype)), config)
    model.add_adapter("other", copy.deepcopy(config))
    return model.eval()


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(5, D_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def layer_of(model: Any) -> Any:
    return model.base_model.model[0]


def weight_of(model: Any) -> Tensor:
    weight: Tensor = layer_of(model).base_layer.weight
    return weight


def by_formula(position: str, kind: str, dtype: torch.dtype, deltas: list[Delta], x: Tensor) -> Tensor:
    """`W x + b` in float64 with `W = W0 + D`, `W0 (I + D)` or `(I + D) W0`, D the sum of the deltas' matrices."""
    layer = base_layer(kind, dtype).double()
    w0 = layer.weight.T if kind == "Conv1D" else layer.weight
    apply = {"parallel": lambda d: d, "input": lambda d: w0 @ d, "output": lambda d: d @ w0}[position]
    w = w0 + sum(apply(delta.weight().double()) for delta in deltas)
    return x.double() @ w.T + (0 if layer.bias is None else layer.bias)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("names", [["default"], ["default", "other"]], ids=len)
def test_merged_and_unmerged_are_the_formula(position: str, kind: str, dtype: torch.dtype, names: list[str]) -> None:
    model = adapted(position, kind, dtype)
    layer, x, before = layer_of(model), inputs(dtype), weight_of(model).clone()
    model.base_model.set_adapter(names)
    want = by_formula(position, kind, dtype, [layer.deltas[name] for name in names], x)
    base = base_layer(kind, dtype)(x)
    bound = 32 * torch.finfo(dtype).eps * want.abs().max().item()
    assert (want - base).abs().max() > 0.05, "the adapters change the output"
    torch.testing.assert_close(model(x).double(), want, rtol=0, atol=bound)
    model.merge_adapter(safe_merge=True)
    assert weight_of(model).dtype == dtype
    torch.testing.assert_close(model(x).double(), want, rtol=0, atol=bound)
    model.unmerge_adapter()
    torch.testing.assert_close(model(x).double(), want, rtol=0, atol=bound)
    if position in MULTIPLICATIVE:
        assert torch.equal(weight_of(model), before), "unmerging restores the weight to the bit"


@pytest.mark.parametrize("position", MULTIPLICATIVE)
@pytest.mark.parametrize("order", [["default", "other"], ["other", "default"]], ids="-".join)
def test_merging_on_top_of_a_merged_adapter(position: str, order: list[str]) -> None:
    """The second is multiplied with W0, not with what the first made of it: `W0 (I + D1 + D2)` in any order."""
    model = adapted(position, dtype=torch.float64)
    layer, x, before = layer_of(model), inputs(torch.float64), weight_of(model).clone()
    want = by_formula(position, "bias", torch.float64, list(layer.deltas.values()), x)
    model.merge_adapter(adapter_names=order[:1])
    with pytest.warns(UserWarning, match="Already following adapters were merged"):
        model.merge_adapter(adapter_names=order)
    assert layer.merged_adapters == order
    torch.testing.assert_close(model(x), want)
    with pytest.warns(UserWarning, match="All adapters are already merged"):
        model.merge_adapter(adapter_names=order)
    torch.testing.assert_close(model(x), want)
    model.unmerge_adapter()
    assert torch.equal(weight_of(model), before)
    assert not layer.merged


@pytest.mark.parametrize("position", POSITIONS)
def test_disabling_while_merged(position: str) -> None:
    model, x = adapted(position), inputs()
    before = base_layer("bias", torch.float32)(x)
    unmerged = model(x)
    model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(model(x), before)
    torch.testing.assert_close(model(x), unmerged)


@pytest.mark.parametrize("position", POSITIONS)
def test_unloading_while_merged_gives_the_base_back(position: str) -> None:
    model, x, clean = adapted(position), inputs(), base_layer("bias", torch.float32)
    model.merge_adapter(adapter_names=["default", "other"])
    base = model.unload()
    assert type(base[0]) is nn.Linear
    torch.testing.assert_close(base[0].weight, clean.weight)
    torch.testing.assert_close(base(x), clean(x))
    if position in MULTIPLICATIVE:
        assert torch.equal(base[0].weight, clean.weight)


@pytest.mark.parametrize("position", POSITIONS)
def test_unloading_merged_keeps_the_merge(position: str) -> None:
    """`merge_and_unload` of a model that is merged already."""
    model, x = adapted(position), inputs()
    want = model(x)
    model.merge_adapter()
    with pytest.warns(UserWarning, match="All adapters are already merged"):
        merged = model.merge_and_unload()
    assert type(merged[0]) is nn.Linear
    torch.testing.assert_close(merged(x), want)


@pytest.mark.parametrize("position", POSITIONS)
def test_deleting_while_merged_is_refused(position: str) -> None:
    model, x = adapted(position), inputs()
    model.merge_adapter()
    want = model(x)
    with pytest.raises(ValueError, match="while they are merged"):
        model.delete_adapter("default")
    with pytest.raises(MergeError, match=r"cannot be deleted.*'default'.*unmerge it first"):
        layer_of(model).delete_adapter("default")
    assert torch.equal(model(x), want)
    model.delete_adapter("other")
    model.unmerge_adapter()
    torch.testing.assert_close(model(x), want)
    torch.testing.assert_close(weight_of(model), base_layer("bias", torch.float32).weight)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("position", POSITIONS)
def test_copies_while_merged(position: str, how: str) -> None:
    model, x = adapted(position), inputs()
    model.merge_adapter()
    want, state = model(x), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    other.unmerge_adapter()
    clean = base_layer("bias", torch.float32).weight
    torch.testing.assert_close(weight_of(other), clean)
    if position in MULTIPLICATIVE:
        assert torch.equal(weight_of(other), clean)
    assert torch.equal(model(x), want), "the original stays merged"
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("position", POSITIONS)
def test_moving_to_another_dtype_while_merged(position: str, dtype: torch.dtype) -> None:
    """What unmerging restores has moved along."""
    model = adapted(position)
    want, clean = model(inputs()), base_layer("bias", torch.float32).weight
    model.merge_adapter()
    model.to(dtype)
    loose = {"rtol": 0.0, "atol": 64 * torch.finfo(torch.bfloat16).eps if dtype == torch.bfloat16 else 1e-5}
    torch.testing.assert_close(model(inputs(dtype)).float(), want, **loose)
    model.unmerge_adapter()
    assert weight_of(model).dtype == dtype
    torch.testing.assert_close(model(inputs(dtype)).float(), want, **loose)
    if position in MULTIPLICATIVE:
        assert torch.equal(weight_of(model), clean.to(dtype))
    else:
        torch.testing.assert_close(weight_of(model).float(), clean, **loose)


@pytest.mark.parametrize("position", MULTIPLICATIVE)
def test_moving_to_another_device_while_merged(position: str) -> None:
    model = adapted(position)
    model.merge_adapter()
    model.to("meta")
    assert not [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.device.type != "meta"]
    model.unmerge_adapter()
    assert weight_of(model).device.type == "meta"


@pytest.mark.parametrize("position", MULTIPLICATIVE)
def test_the_unmerged_is_not_saved(position: str) -> None:
    model = adapted(position)
    names = model.state_dict().keys()
    model.merge_adapter()
    assert model.state_dict().keys() == names


@pytest.mark.parametrize("position", MULTIPLICATIVE)
def test_a_refused_merge_keeps_nothing(position: str) -> None:
    model = adapted(position)
    layer, before = layer_of(model), weight_of(model).clone()
    with torch.no_grad():
        layer.deltas["other"].angles.fill_(float("nan"))
    with pytest.raises(MergeError, match="adapter other seems to be broken"):
        model.merge_adapter(adapter_names=["default", "other"], safe_merge=True)
    assert torch.equal(weight_of(model), before)
    assert not layer.merged
    assert layer._unmerged is None


class Quantised(nn.Module):
    """A stand-in for a quantised linear layer: `kind` bytes, or float8 numbers to be multiplied with a scale."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = D_IN, D_OUT
        weight = torch.arange(D_OUT * D_IN).reshape(D_OUT, D_IN) % 5
        self.register_buffer("weight", weight.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.get_buffer("weight").to(x.dtype) / 5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("position", POSITIONS)
def test_a_quantised_base(position: str, dtype: torch.dtype) -> None:
    """Adapts and trains; merging is refused with the reason, and nothing has changed."""
    base, x = nn.Sequential(Quantised(dtype)), inputs()
    model = get_peft_model(base, POSITIONS[position](target_modules=["0"], init_weights=False))
    before = model(x)
    before.sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    for call in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(MergeError, match=r"quantised.*Quantised.*without quantisation"):
            call()
    if position in MULTIPLICATIVE:
        with pytest.raises(MergeError, match="quantised"):
            layer_of(model).get_delta_weight("default")
    assert torch.equal(model(x), before)
    assert not layer_of(model).merged
