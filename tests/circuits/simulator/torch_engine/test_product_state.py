"""Product states and their adjoint, against torch's autograd."""

from __future__ import annotations

import pytest
import torch

from qpeft.circuits.simulator.torch_engine import product_state


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("batch", [1, 3])
def test_state_and_its_adjoint(n: int, batch: int) -> None:
    qubits = torch.randn(n, 2, batch, dtype=torch.complex128)
    pair = product_state.halves(qubits)
    left, right = (half.detach().requires_grad_() for half in pair)
    state = product_state.state((left, right))
    for k in range(2**n):  # qubit 0 is the most significant bit
        bits = [k >> (n - 1 - q) & 1 for q in range(n)]
        want = torch.stack([qubits[q, bit] for q, bit in enumerate(bits)]).prod(0)
        torch.testing.assert_close(state[k], want)
    grad = torch.randn_like(state)
    wanted = torch.autograd.grad(state, (left, right), grad)
    with torch.no_grad():
        got = product_state.gather(grad, pair, torch.empty_like(state))
        out = torch.empty_like(state)
        product_state.write(pair, out)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(out, state)


def test_one_state_for_all_samples() -> None:
    """Qubits alike for all samples: written to each, their gradient summed over them."""
    pair = product_state.halves(torch.randn(4, 2, 1, dtype=torch.complex128))
    out, grad = torch.empty(16, 5, dtype=torch.complex128), torch.randn(16, 5, dtype=torch.complex128)
    product_state.write(pair, out)
    torch.testing.assert_close(out, product_state.state(pair).expand(-1, 5))
    got = product_state.gather(grad, pair, torch.empty_like(grad))
    want = product_state.gather(grad.sum(1, keepdim=True), pair, torch.empty(16, 1, dtype=torch.complex128))
    torch.testing.assert_close(got, want)
