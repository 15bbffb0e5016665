"""The evaluation cache of a delta: never stale, never in training."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from qpeft.adapters.methods.qtha import QTHA, QTHAConfig


def delta() -> QTHA:
    torch.manual_seed(0)
    return QTHA(12, 10, QTHAConfig(r=3, hidden_size=8, bond_dim=2, n_layers=1, init_weights=False), {}).eval()


def counted(made: QTHA, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    real = made._ends
    monkeypatch.setattr(made, "_ends", lambda: (calls.append("ends"), real())[1])
    return calls


def test_matrices_are_built_once_in_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = delta(), torch.randn(2, 12)
    want = made(x).detach()
    calls = counted(made, monkeypatch)
    for context in (torch.no_grad, torch.inference_mode, torch.no_grad):
        with context():
            for _ in range(3):
                torch.testing.assert_close(made(x), want)
    assert calls == ["ends"] * 2  # once for each mode: what inference mode makes is no ordinary tensor


@pytest.mark.parametrize("recorded", [True, False])
def test_nothing_is_cached_in_training(monkeypatch: pytest.MonkeyPatch, recorded: bool) -> None:
    made, x = delta(), torch.randn(2, 12)
    calls = counted(made, monkeypatch)
    made.train(not recorded)
    with torch.set_grad_enabled(recorded):
        made(x), made(x)
    assert calls == ["ends"] * 2


CHANGES: dict[str, Callable[[QTHA], object]] = {
    "in place": lambda made: made.mlp_a.weight.add_(1.0),
    "optimiser": lambda made: step(made),
    "a new tensor": lambda made: setattr(made.mlp_a.weight, "data", made.mlp_a.weight + 1.0),
    "a new parameter": lambda made: setattr(made, "mlp_a", copy.deepcopy(made.mlp_b.__class__(8, 3))),
    "a loaded state": lambda made: made.load_state_dict({name: t + 0.1 for name, t in made.state_dict().items()}),
    "data in place, then train()": lambda made: (made.mlp_a.weight.data.add_(1.0), made.train(), made.eval()),
}


def step(made: QTHA) -> None:
    optimizer = torch.optim.SGD(made.parameters(), lr=0.5)
    with torch.enable_grad():
        made(torch.randn(3, 12)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("change", CHANGES)
def test_the_cache_follows_the_parameters(change: str) -> None:
    made, x = delta(), torch.randn(2, 12)
    with torch.no_grad():
        before = made(x)
        CHANGES[change](made)
        after = made(x)
    assert not torch.equal(before, after)
    with torch.enable_grad():  # builds everything anew
        torch.testing.assert_close(after, made(x).detach())


def test_moves_and_copies() -> None:
    made, x = delta(), torch.randn(2, 12)
    with torch.no_grad():
        want = made(x)
        other = copy.deepcopy(made)
        assert made.double()(x.double()).dtype == torch.float64
        nn.init.zeros_(made.mlp_b.weight)
        assert made(x.double()).abs().max() == 0
        torch.testing.assert_close(other(x), want)
