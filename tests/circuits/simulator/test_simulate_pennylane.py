"""Circuits of random sizes against PennyLane: values and gradients, float64 and float32, with the compiled kernel and without."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks import peers
from qpeft.circuits import ansatz
from qpeft.circuits.simulator.simulate import expectations

RANDOM = random.Random(20)
# (circuit, qubits, layers, samples): none of the sizes that the benchmarks list
SIZES = [
    (
        RANDOM.choice(["qtha", "hardware_efficient"]),
        RANDOM.choice([2, 3, 5, 7, 9]),
        RANDOM.choice([1, 3, 5]),
        RANDOM.randrange(1, 90),
    )
    for _ in range(10)
]


def relative(found: Tensor, wanted: Tensor) -> float:
    """The largest deviation beside the largest entry; values and gradients here are of the order of one."""
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("kernel", ["", "off"])
@pytest.mark.parametrize("size", SIZES)
def test_random_sizes(size: tuple[str, int, int, int], kernel: str, choose_kernel: Callable[[str], None]) -> None:
    pytest.importorskip("pennylane")
    name, n, layers, samples = size
    circuit = getattr(ansatz, name)(n, layers)
    generator = torch.Generator().manual_seed(n * layers + samples)
    inputs, weights = (torch.randn(samples, n, dtype=torch.float64, generator=generator) for _ in range(2))
    angles = torch.randn(circuit.n_angles, dtype=torch.float64, generator=generator)
    choose_kernel(kernel)
    wanted = peers.pennylane_backprop(circuit, samples)(inputs, angles, weights)
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 2e-5)):
        x, a = inputs.to(dtype).requires_grad_(), angles.to(dtype).requires_grad_()
        out = expectations(circuit, x, a)
        assert out.dtype == dtype
        found = [out.detach(), *torch.autograd.grad(out, (x, a), weights.to(dtype))]
        assert max(relative(f, w) for f, w in zip(found, wanted, strict=True)) < bound
