"""add_weighted_adapter: the sum is exact, merges where its parts do, and loads again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from qpeft.adapters.low_rank import exact
from qpeft.adapters.peft import config_class
from qpeft.adapters.weighted_sum import WeightedSum
from qpeft.errors import AdapterError
from tests.golden.make_adapters import CASES


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer["b"](torch.tanh(layer["a"](x)))  # type: ignore[index]
        return x


def two_adapters(case: str) -> PeftModel:
    kind, fields = CASES[case]

    def config() -> object:
        return config_class(kind)(**{**fields, "target_modules": ["a", "b"], "init_weights": False})

    torch.manual_seed(1)
    model = get_peft_model(Net(), config(), adapter_name="one")
    model.add_adapter("two", config())
    return model.eval()


@pytest.mark.parametrize("case", ["qtha-none", "qtha-shared", "qcore-side", "quic", "cayley", "quanta", "qpa"])
def test_the_sum_is_that_of_the_deltas(case: str, tmp_path: Path) -> None:
    model, x = two_adapters(case), torch.randn(5, 8)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    model.add_weighted_adapter(["one", "two"], [0.5, -2.0], "sum")
    model.add_weighted_adapter(["sum", "two"], [2.0, 1.0], "nested")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    for layer in (module for module in model.modules() if hasattr(module, "deltas")):
        one, two, total, nested = (layer.delta(name) for name in ("one", "two", "sum", "nested"))
        torch.testing.assert_close(total(x), 0.5 * one(x) - 2 * two(x))
        torch.testing.assert_close(nested(x), one(x) - 3 * two(x))
        if total.linear:
            torch.testing.assert_close(total.weight() @ x.T, total(x).T, rtol=1e-4, atol=1e-5)
        if (low := exact(layer, "nested")) is not None and total.position == "parallel":
            torch.testing.assert_close(low.up @ low.down, nested.weight(), rtol=1e-4, atol=1e-5)
    model.set_adapter("nested")
    before = model(x)
    model.save_pretrained(tmp_path, selected_adapters=["nested"])
    again = PeftModel.from_pretrained(Net(), tmp_path / "nested").eval()
    torch.testing.assert_close(again(x), before, rtol=0, atol=0)
    if total.linear:
        merged = again.merge_and_unload()
        torch.testing.assert_close(merged(x), before, rtol=1e-4, atol=1e-5)


def test_a_sum_trains_when_it_is_active() -> None:
    model = two_adapters("qcore-side")
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "sum")
    model.set_adapter("sum")
    assert all(".sum.parts." in name for name, p in model.named_parameters() if p.requires_grad)
    model.train()(torch.randn(3, 8)).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    [total, *_] = [module for module in model.modules() if isinstance(module, WeightedSum)]
    assert "parts" in repr(total)


def test_what_is_no_sum_is_refused_with_a_sentence() -> None:
    model = two_adapters("qcore-side")
    for arguments, words in (
        ((["one", "two"], [1, 1], "sum", "svd"), "weighted sums of this method are exact"),
        ((["one", "three"], [1, 1], "sum"), "no such adapter; got 'three'"),
        ((["one"], [1, 1], "sum"), "a weight for each adapter"),
        ((["one"], [1], "two"), "there is an adapter of this name"),
    ):
        with pytest.raises(AdapterError, match=words):
            model.add_weighted_adapter(*arguments)
    kind, fields = CASES["qcore-side"]
    model.add_adapter("elsewhere", config_class(kind)(**{**fields, "target_modules": ["a"]}))
    with pytest.raises(AdapterError, match="on the same modules"):
        model.add_weighted_adapter(["one", "elsewhere"], [1, 1], "sum")
