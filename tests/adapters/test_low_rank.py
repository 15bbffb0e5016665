"""Low-rank stand-ins for deltas: exact where the method is, optimal where it is not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import qpeft
from qpeft.adapters import peft as bridge
from qpeft.adapters.base import AdapterConfig, Delta, Position
from qpeft.adapters.low_rank import Moments, added, delta_weight, exact, fitted, truncated
from qpeft.adapters.registry import METHODS, Method, register
from qpeft.errors import AdapterError, MergeError


class Bottleneck(Delta):
    """A product of two random matrices of rank 2, which says so."""

    def __init__(self, d_in: int, d_out: int, config: AdapterConfig, scope: dict[str, nn.Module]) -> None:
        super().__init__(d_in, d_out, config, scope)
        inputs, outputs = self.sizes
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))

    @property
    def linear(self) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.down.T @ self.up.T

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.up, self.down


class Before(Bottleneck):
    position: ClassVar[Position] = "input"


class After(Bottleneck):
    position: ClassVar[Position] = "output"


@pytest.fixture(params=[Bottleneck, Before, After])
def adapted(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A Linear with bias and a Conv1D with a rank-2 delta, beside, before or after them."""
    name = f"EXPORT_{request.param.__name__.upper()}"
    if name not in METHODS:
        register(Method(name, AdapterConfig, request.param, "none", "test"))
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(7, 5), Conv1D(9, 5))
    nn.init.normal_(base[1].weight)
    yield get_peft_model(base, bridge.config_class(name)(target_modules=["0", "1"])).eval()
    METHODS.unregister(name)


def layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, bridge.DeltaLayer)]


def test_factors_are_exact_wherever_the_delta_sits(adapted: Any) -> None:
    for layer in layers(adapted):
        x = torch.randn(11, layer.in_features)
        change = layer(x) - layer.base_layer(x)
        low, weight = exact(layer, "default"), delta_weight(layer, "default")
        assert low is not None
        assert weight is not None
        assert (low.rank, low.way, low.relative_error) == (2, "exact", 0.0)
        for got in (x @ (low.up @ low.down).T, x @ weight.T, added(layer, "default", x)):
            torch.testing.assert_close(got, change, rtol=1e-4, atol=1e-4)


def test_a_merged_layer_and_an_unknown_adapter_are_refused(adapted: Any) -> None:
    layer = layers(adapted)[0]
    with pytest.raises(AdapterError, match=r"no such adapter.*default"):
        exact(layer, "other")
    adapted.merge_adapter()
    with pytest.raises(MergeError, match="unmerge"):
        exact(layer, "default")


@pytest.mark.parametrize("tensor", [True, False])
def test_qtha_without_its_circuit_is_a_lora_of_rank_r(tensor: bool) -> None:
    torch.manual_seed(0)
    config = qpeft.QTHAConfig(r=3, hidden_size=8, bond_dim=2, qnn="none", tensor=tensor, target_modules=["0"], init_weights=False)
    layer = layers(get_peft_model(nn.Sequential(nn.Linear(12, 10)), config).eval())[0]
    low = exact(layer, "default")
    assert low is not None
    assert low.rank == 3
    torch.testing.assert_close(low.up @ low.down, layer.get_delta_weight("default"))


def test_a_circuit_has_neither_factors_nor_weight() -> None:
    config = qpeft.QTHAConfig(r=2, hidden_size=8, bond_dim=2, target_modules=["0"])
    layer = layers(get_peft_model(nn.Sequential(nn.Linear(12, 10)), config))[0]
    assert exact(layer, "default") is None
    assert delta_weight(layer, "default") is None


def test_pefts_lora_is_taken_with_its_scale_and_bias_and_dora_is_not() -> None:
    torch.manual_seed(0)
    config = {"r": 2, "lora_alpha": 7, "target_modules": ["0"], "init_lora_weights": False}
    layer = get_peft_model(nn.Sequential(nn.Linear(6, 8)), LoraConfig(**config, lora_bias=True)).eval().base_model.model[0]
    nn.init.normal_(layer.lora_B["default"].bias)
    low, x = exact(layer, "default"), torch.randn(3, 6)
    assert low is not None
    assert low.bias is not None
    torch.testing.assert_close(x @ (low.up @ low.down).T + low.bias, layer(x) - layer.base_layer(x))
    torch.testing.assert_close(added(layer, "default", x), layer(x) - layer.base_layer(x))
    dora = get_peft_model(nn.Sequential(nn.Linear(6, 8)), LoraConfig(**config, use_dora=True)).base_model.model[0]
    assert exact(dora, "default") is None


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 99), tolerance=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_truncation_meets_its_tolerance_with_the_least_rank(rows: int, columns: int, seed: int, tolerance: float) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))

    def error(up: Tensor, down: Tensor) -> float:
        return float((weight - up @ down).norm() / weight.norm())

    low = truncated(weight, tolerance=tolerance)
    assert low.relative_error == pytest.approx(error(low.up, low.down), abs=2e-6)
    assert low.relative_error <= tolerance + 1e-6
    if low.rank > 1:
        assert truncated(weight, rank=low.rank - 1).relative_error > tolerance
    assert truncated(weight, rank=99).rank == min(rows, columns)


def test_a_zero_delta_keeps_one_zero_factor() -> None:
    low = truncated(torch.zeros(4, 3))
    assert (low.rank, low.relative_error) == (1, 0.0)
    assert not (low.up @ low.down).any()


def samples(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs with unequal variances and a mean, outputs that are no linear map of them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator) * torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5, 0.1]) + 1
    mix = torch.randn(6, 5, generator=torch.Generator().manual_seed(9))
    return x, torch.sin(x @ mix) + 0.3 * x @ mix + 2


def moments(x: Tensor, y: Tensor, parts: int = 3) -> Moments:
    gathered = Moments(x.shape[1], y.shape[1])
    for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
        gathered.add(a, b)
    return gathered


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_reduced_rank_regression_finds_what_gradient_descent_finds(rank: int, bias: bool) -> None:
    x, y = samples(400)
    low = fitted(moments(x, y), rank, ridge=0.0, bias=bias)
    x, y = x.double(), y.double()
    constant = torch.zeros(5) if low.bias is None else low.bias
    least = float((y - x @ (low.up @ low.down).T.double() - constant).square().sum())
    assert low.relative_error == pytest.approx(math.sqrt(least / float(y.square().sum())), rel=1e-4)
    torch.manual_seed(rank)
    found = []
    for _ in range(3):
        free = [torch.randn(5, rank).double(), torch.randn(rank, 6).double(), *([torch.randn(5).double()] if bias else [])]
        optimizer = torch.optim.LBFGS([t.requires_grad_() for t in free], max_iter=1000, line_search_fn="strong_wolfe")

        def loss(free: list[Tensor] = free, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            value: Tensor = (y - x @ free[1].T @ free[0].T - sum(free[2:])).square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        found.append(float(loss().detach()))
    assert min(found) == pytest.approx(least, rel=1e-4)


def test_a_linear_delta_is_found_exactly_and_few_tokens_stay_tame() -> None:
    x, _ = samples(300)
    weight = torch.randn(4, 2) @ torch.randn(2, 6)
    low = fitted(moments(x, x @ weight.T), 2, ridge=0.0)
    torch.testing.assert_close(low.up @ low.down, weight, rtol=1e-4, atol=1e-4)
    assert low.relative_error < 1e-5
    few = fitted(moments(x[:3], x[:3] @ weight.T), 2)  # fewer tokens than inputs: the ridge decides
    assert float((few.up @ few.down).norm()) < 2 * float(weight.norm())
    with pytest.raises(AdapterError, match="no calibration tokens"):
        fitted(Moments(6, 4), 2)
    nothing = fitted(moments(torch.zeros(5, 6), torch.zeros(5, 4)), 2)
    assert torch.isfinite(nothing.up @ nothing.down).all()
    assert nothing.relative_error == 0.0
