"""Rotations from angles against matrices written out one by one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from qpeft.adapters.layers.orthogonal import cayley, givens, givens_schedule, skew

DOUBLE = torch.float64
SIZES = range(1, 9)


def angles(n: int, *shape: int) -> Tensor:
    return torch.randn(*shape, n * (n - 1) // 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("n", SIZES)
def test_skew(n: int) -> None:
    entries = angles(n, 3)
    a = skew(entries, n)
    for i, j in itertools.combinations(range(n), 2):
        torch.testing.assert_close(a[:, j, i], entries[:, j * (j - 1) // 2 + i])
        torch.testing.assert_close(a[:, i, j], -entries[:, j * (j - 1) // 2 + i])
    assert torch.diagonal(a, dim1=1, dim2=2).abs().sum() == 0


@pytest.mark.parametrize("n", SIZES)
def test_cayley(n: int) -> None:
    a = skew(angles(n, 2), n)
    eye = np.eye(n)
    want = np.stack([(eye - m) @ np.linalg.inv(eye + m) for m in a.numpy()])
    np.testing.assert_allclose(cayley(a).numpy() + eye, want, atol=1e-13)
    np.testing.assert_allclose(want @ want.transpose(0, 2, 1), np.stack([eye, eye]), atol=1e-13)


@pytest.mark.parametrize("n", SIZES)
def test_every_pair_meets_once(n: int) -> None:
    partners, numbers, signs = givens_schedule(n)
    met = []
    for partner, number, sign in zip(partners.tolist(), numbers.tolist(), signs.tolist(), strict=True):
        assert [partner[partner[i]] for i in range(n)] == list(range(n)), "rounds are of disjoint pairs"
        for i, j in enumerate(partner):
            if i < j:
                assert number[i] == number[j] == j * (j - 1) // 2 + i
                assert (sign[i], sign[j]) == (-1, 1)
                met.append((i, j))
        assert all(sign[i] == 0 for i, j in enumerate(partner) if i == j)
    assert sorted(met) == list(itertools.combinations(range(n), 2))


@pytest.mark.parametrize("n", SIZES[1:])
def test_givens(n: int) -> None:
    theta = angles(n)
    want = np.eye(n)
    for partner in givens_schedule(n)[0].tolist():
        for i, j in ((i, j) for i, j in enumerate(partner) if i < j):
            turn, t = np.eye(n), theta[j * (j - 1) // 2 + i].item()
            turn[[i, i, j, j], [i, j, i, j]] = math.cos(t), -math.sin(t), math.sin(t), math.cos(t)
            want = turn @ want
    got = givens(theta, *givens_schedule(n))
    np.testing.assert_allclose(got.numpy(), want, atol=1e-14)
    np.testing.assert_allclose(got.numpy() @ got.numpy().T, np.eye(n), atol=1e-14)
    assert torch.linalg.det(got).item() == pytest.approx(1.0)


@pytest.mark.parametrize("n", SIZES[1:])
def test_zero_is_the_identity_to_the_bit(n: int) -> None:
    zero = torch.zeros(2, n * (n - 1) // 2)
    assert torch.equal(givens(zero, *givens_schedule(n)), torch.eye(n).expand(2, n, n))
    assert cayley(skew(zero, n)).abs().sum() == 0


@pytest.mark.parametrize("n", range(2, 8))
def test_around_zero_the_angles_are_independent_directions(n: int) -> None:
    count = n * (n - 1) // 2
    jacobian = torch.autograd.functional.jacobian(lambda t: givens(t, *givens_schedule(n)), torch.zeros(count, dtype=DOUBLE))
    assert torch.linalg.matrix_rank(jacobian.reshape(n * n, count)) == count


def test_low_precision_is_computed_in_float32_also_under_autocast() -> None:
    theta = angles(6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        turned, added = givens(theta, *givens_schedule(6)), cayley(skew(theta, 6))
    for matrix in (turned, added + torch.eye(6)):
        assert matrix.dtype == torch.float32
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(6), rtol=0, atol=1e-5)
