"""Tensor trains against sums written out, and the factorisation of every size."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from qpeft.adapters.layers.tensor_train import (
    PUBLISHED_MODES,
    TensorTrain,
    TrainProduct,
    contraction_cost,
    factorise,
    orders,
    parameter_count,
    products,
)
from qpeft.circuits.simulator.c_engine import contractions
from qpeft.errors import AdapterError
from tests.circuits.simulator.c_engine.sanitized import drive
from tests.reference import dense

DOUBLE = torch.float64
SHAPES = [(16, 24, 3, 4), (24, 16, 1, 4), (30, 7, 2, 3), (12, 18, 2, 2), (5, 9, 4, 1), (1, 1, 2, 4), (31, 17, 2, 4), (36, 36, 3, 5)]


def train(d_in: int, d_out: int, bond: int, n_cores: int, seed: int = 0) -> TensorTrain:
    torch.manual_seed(seed)
    made = TensorTrain(d_in, d_out, bond, n_cores).to(DOUBLE)
    made.initialise(1.0)
    return made


def test_factors_of_every_size() -> None:
    for count in (1, 2, 3, 4, 5):
        for size in range(1, 3001):
            factors = factorise(size, count)
            assert len(factors) == count
            assert math.prod(factors) == size


@pytest.mark.parametrize("size", sorted(PUBLISHED_MODES))
def test_published_modes(size: int) -> None:
    published = {
        256: "4 4 4 4",
        512: "8 4 4 4",
        1024: "8 8 4 4",
        2048: "8 8 8 4",
        2560: "8 8 8 5",
        3584: "8 8 8 7",
        4096: "8 8 8 8",
    }
    published |= {4096: "8 8 8 8", 5120: "10 8 8 8", 18944: "37 8 8 8", 20480: "40 8 8 8", 27648: "27 16 8 8"}
    assert " ".join(map(str, factorise(size))) == published[size]


def test_factors_are_as_equal_as_the_divisors_allow() -> None:
    for size in range(1, 301):
        if size in PUBLISHED_MODES:
            continue
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        every = (f for f in itertools.combinations_with_replacement(divisors, 4) if math.prod(f) == size)
        assert sum(factorise(size)) == min(map(sum, every)), size
    assert factorise(896) == (8, 7, 4, 4)
    assert factorise(3072) == (8, 8, 8, 6)
    assert factorise(31) == (31, 1, 1, 1)


@pytest.mark.parametrize(("size", "count"), [(0, 4), (-3, 4), (8, 0)])
def test_no_factors(size: int, count: int) -> None:
    with pytest.raises(AdapterError, match="at least 1"):
        factorise(size, count)


@pytest.mark.parametrize("shape", SHAPES)
def test_matrix_equals_the_sum_written_out(shape: tuple[int, int, int, int]) -> None:
    made = train(*shape)
    np.testing.assert_allclose(made.matrix().detach().numpy(), dense(made), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_products_without_the_matrix(shape: tuple[int, int, int, int]) -> None:
    check_products(train(*shape))


def check_products(made: TensorTrain) -> None:
    d_in, d_out = made.d_in, made.d_out
    matrix = torch.tensor(dense(made))
    rows, columns = torch.randn(3, d_out, dtype=DOUBLE), torch.randn(d_in, 5, dtype=DOUBLE)
    torch.testing.assert_close(made.rows_times(rows), rows @ matrix, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(made.times_columns(columns), matrix @ columns, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_order_of_contraction(shape: tuple[int, int, int, int]) -> None:
    made = train(*shape)
    shapes = tuple(tuple(core.shape) for core in made.cores)
    choices = [orders(shapes, axis, 3 - axis, 3) for axis in (0, 3)]
    assert [len(each) for each in choices] == [2 if len(shapes) == 1 else 4] * 2
    for rows, columns in zip(*choices, strict=True):
        made.orders = {0: rows[1], 3: columns[1]}
        check_products(made)


def test_the_cheapest_order_is_taken() -> None:
    """Counted by hand for cores (j, b, a, i) = (2, 3, 1, 5), (7, 1, 3, 11) and 4 rows; these halves are the cores themselves."""
    shapes = ((2, 3, 1, 5), (7, 1, 3, 11))
    costs = [cost for cost, _ in orders(shapes, 0, 3, 4)]
    assert costs == [4 * (2 * 3 * 5 * 7 + 5 * 3 * 7 * 11), 4 * (2 * 7 * 3 * 11 + 11 * 2 * 3 * 5)] * 2
    wide = ((4, 8, 1, 8), (4, 8, 8, 8), (4, 8, 8, 6), (4, 1, 8, 4))
    assert [len(turn.group) for turn in TensorTrain(1536, 256, 8).orders[0].steps] == [2, 2]
    assert orders(wide, 0, 3, 8)[3][0] == 2**13 * 8 + 4 * 64 * 6 * 16 + 8 * (16 * 16 * 8 * 24 + 16 * 8 * 24 * 64)


def test_cost_of_contraction_by_hand() -> None:
    """Cores (j, b, a, i) = (2, 3, 1, 5), (7, 1, 3, 11): 14 outputs are summed over, 55 inputs are left."""
    cores = ((2, 3, 1, 5), (7, 1, 3, 11))
    assert contraction_cost(cores, 0, 3) == (2 * 3 * 5 * 7 + 5 * 3 * 7 * 11, 2 * 7 * 3 * 11 + 11 * 2 * 3 * 5)
    assert contraction_cost(cores, 3, 0) == (5 * 3 * 2 * 11 + 2 * 3 * 11 * 7, 5 * 11 * 3 * 7 + 7 * 5 * 3 * 2)


@pytest.mark.parametrize("shape", [*SHAPES, (3584, 256, 8, 4), (896, 256, 5, 4), (256, 18944, 8, 3)])
def test_parameter_count(shape: tuple[int, int, int, int]) -> None:
    made = TensorTrain(*shape)
    assert parameter_count(*shape) == sum(core.numel() for core in made.cores)
    assert [core.shape[1] for core in made.cores] == [shape[2]] * (shape[3] - 1) + [1]


@pytest.mark.parametrize(("gain", "per_core"), [(1.0, 1.0), (math.sqrt(2), 2.0)])
def test_gain_of_a_fresh_train(gain: float, per_core: float) -> None:
    """The variance of W x over that of x, mean over trains: `gain^2` a core."""
    torch.manual_seed(0)
    made, ratios = TensorTrain(32, 48, 4).to(DOUBLE), []
    for _ in range(600):
        made.initialise(gain)
        ratios.append(made.matrix().square().sum(1).mean().item())
    assert np.mean(ratios) == pytest.approx(per_core**4, rel=0.1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("columns", [False, True])
def test_the_kernels_products_and_gradients_are_torchs(shape: tuple[int, int, int, int], columns: bool) -> None:
    made = train(*shape)
    generator = torch.Generator().manual_seed(1)
    size = (made.d_in, 3) if columns else (3, made.d_out)
    product = TrainProduct(made, torch.randn(size, dtype=DOUBLE, generator=generator, requires_grad=True), columns, scale=-1.5)
    (ours,), wanted = products(product), product.in_torch(*product.tensors())
    torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-12)
    grad = torch.randn(ours.shape, dtype=DOUBLE, generator=generator)
    for one, other in zip(*(torch.autograd.grad(out, product.tensors(), grad) for out in (ours, wanted)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_products_can_be_differentiated_twice_and_under_vmap() -> None:
    made = train(6, 4, 2, 2)
    rows = torch.randn(2, 4, dtype=DOUBLE, requires_grad=True)
    cores = tuple(made.cores)

    def call(rows: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return products(TrainProduct(made, rows, columns=False))[0]

    assert torch.autograd.gradcheck(call, (rows, *cores))
    assert torch.autograd.gradgradcheck(call, (rows, *cores))
    batch = torch.randn(3, 2, 4, dtype=DOUBLE)
    torch.testing.assert_close(torch.func.vmap(call)(batch), torch.stack([call(part) for part in batch]))


def test_several_products_are_one_node() -> None:
    first, second = train(16, 24, 3, 4), train(24, 16, 3, 4)
    rows, columns = (torch.randn(size, dtype=DOUBLE, requires_grad=True) for size in ((2, 24), (24, 5)))
    found = products(TrainProduct(first, rows, columns=False), TrainProduct(second, columns, columns=True, scale=2.0))
    if contractions.available([rows]):
        assert found[0].grad_fn is found[1].grad_fn
    torch.testing.assert_close(found[0], rows @ first.matrix())
    torch.testing.assert_close(found[1], 2 * second.matrix() @ columns)
    (of_rows,) = torch.autograd.grad(found[0].sum(), rows)  # one result alone is used
    torch.testing.assert_close(of_rows, torch.ones(2, 16, dtype=DOUBLE) @ first.matrix().T)


@pytest.mark.slow
def test_sanitizers_find_nothing_in_the_kernels_contraction(tmp_path: Path) -> None:
    assert "wrong: 0" in drive(tmp_path, "contraction_driver.c", "entry.c", "threads.c", "lanes.c", "contraction.c")
