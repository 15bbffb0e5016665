"""Trigonometric polynomials: the torch engine against their definition, every variant of the kernel against torch."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qpeft.circuits import ansatz
from qpeft.circuits.simulator import engine
from qpeft.circuits.simulator.c_engine import polynomials as kernel
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.circuits.simulator.torch_engine import polynomials as by_torch
from qpeft.circuits.surrogate.executor import SurrogateExecutor
from tests.circuits.simulator.c_engine.sanitized import drive

CASES = [  # shape, observables, samples: whole groups and parts of one, odd numbers of observables, constant variables
    ((3, 3, 3, 3), 4, 37),
    ((3, 3, 3, 3), 4, 700),
    ((5, 3, 1, 7), 5, 3),
    ((1, 1), 1, 9),
    ((7,), 2, 1),
    ((), 3, 4),
    ((9, 9), 9, 64),
    ((3,) * 6, 6, 50),
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}  # of the largest number


def arguments(shape: tuple[int, ...], k: int, samples: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients, variables and gradient; the latter two transposed views, as callers have them."""
    random = torch.Generator().manual_seed(samples)
    coefficients = torch.randn(*shape, k, dtype=dtype, generator=random)
    t = 5 * torch.randn(samples, len(shape), dtype=dtype, generator=random)
    return coefficients, t.t(), torch.randn(samples, k, dtype=dtype, generator=random).t()


def close(found: Tensor | None, expected: Tensor | None, dtype: torch.dtype) -> None:
    assert found is not None
    assert expected is not None
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[dtype] * max(scale, 1.0))


def test_the_definition() -> None:
    coefficients, t, _ = arguments((5, 3), 2, 4, torch.float64)
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for (i, j), b in itertools.product(itertools.product(range(5), range(3)), range(4)):
        basis = [1.0 if m == 0 else (math.cos if m % 2 else math.sin)((m + 1) // 2 * t[q, b].item()) for q, m in enumerate((i, j))]
        expected[:, b] += coefficients[i, j] * basis[0] * basis[1]
    torch.testing.assert_close(by_torch.values(coefficients, t, (5, 3)), expected)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("shape", "k", "samples"), CASES)
def test_the_kernel_is_torch(variant: str, shape: tuple[int, ...], k: int, samples: int, dtype: torch.dtype) -> None:
    coefficients, t, grad = arguments(shape, k, samples, dtype)
    assert kernel.takes(coefficients)
    found = kernel.values(coefficients, t, shape), *kernel.gradients(grad, coefficients, t, shape)
    dense = kernel.gradients(grad.contiguous(), coefficients, t.contiguous(), shape)
    one = grad[:1, :1].expand(k, samples)  # no strides, as the gradient of a sum
    summed = kernel.gradients(one, coefficients, t, shape)
    halves = [kernel.gradients(grad, coefficients, t, shape, wanted=w) for w in ((True, False), (False, True))]
    expected = by_torch.values(coefficients, t, shape), *by_torch.gradients(grad, coefficients, t, shape)
    for mine, other in zip(found, expected, strict=True):
        close(mine, other, dtype)
    for a, b, c, d in zip(dense, found[1:], summed, by_torch.gradients(one, coefficients, t, shape), strict=True):
        assert a is not None
        assert torch.equal(a, b)  # type: ignore[arg-type]
        close(c, d, dtype)
    assert halves[0][1] is halves[1][0] is None
    assert torch.equal(halves[0][0], found[1])  # type: ignore[arg-type]
    assert torch.equal(halves[1][1], found[2])  # type: ignore[arg-type]


def test_threads_share_the_rows(monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    coefficients, t, grad = arguments((5, 5, 5), 3, 4001, torch.float64)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        values = kernel.values(coefficients, t, (5, 5, 5))
        found.append((values, *kernel.gradients(grad, coefficients, t, (5, 5, 5))))
    for one, more in zip(*found, strict=True):
        close(more, one, torch.float64)


def test_large_phases_and_numbers_that_are_none(variant: str) -> None:
    coefficients, t, grad = arguments((3, 5), 2, 40, torch.float64)
    t = t.clone()
    t[0, 3], t[1, 7], t[0, 11] = 1e9, float("nan"), float("inf")
    found = kernel.values(coefficients, t, (3, 5)), kernel.gradients(grad, coefficients, t, (3, 5))[1]
    expected = by_torch.values(coefficients, t, (3, 5)), by_torch.gradients(grad, coefficients, t, (3, 5))[1]
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-11, equal_nan=True)


def test_more_coefficients_than_the_kernel_takes() -> None:
    coefficients = torch.zeros(*(3,) * 8, 8)
    assert coefficients.numel() > kernel.MOST
    assert engine.for_polynomials(coefficients, torch.zeros(8, 5)) is by_torch


def test_autocast_does_not_touch_the_grid() -> None:
    circuit = ansatz.qtha(2, 1)
    run, inputs, angles = SurrogateExecutor(Simulator()).compile(circuit), torch.randn(9, 2), torch.randn(circuit.n_angles)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run(inputs, angles), run(inputs, angles))
        found = run(inputs, angles)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, Simulator().compile(circuit)(inputs, angles), rtol=0, atol=2e-6)


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """The C code alone, both types, under the address and undefined-behaviour sanitizers."""
    said = drive(tmp_path, "polynomial_driver.c", "entry.c", "threads.c", "lanes.c", "polynomial.c")
    assert said.endswith("polynomials\n")
