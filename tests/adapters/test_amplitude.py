"""Amplitude adapters: the contract, their size, the numbers they make, their controls."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

import qpeft
from qpeft.adapters.layers.generated_lora import GENERATORS
from qpeft.adapters.methods.amplitude import Amplitude, AmplitudeConfig
from qpeft.errors import AdapterError
from qpeft.testing import SLOW, check_adapter

SMALL: dict[str, Any] = {"r": 2, "n_layers": 2}


def config(**settings: Any) -> Any:
    return qpeft.AmplitudeConfig(**{**SMALL, **settings})


def build(d_in: int, d_out: int, seed: int = 0, **settings: Any) -> Amplitude:
    torch.manual_seed(seed)
    return Amplitude(d_in, d_out, AmplitudeConfig(**{**SMALL, **settings}), {})


def test_contract() -> None:
    check_adapter(config, skip=SLOW)


@pytest.mark.slow
def test_contract_compiled() -> None:
    check_adapter(config, only=SLOW)


@pytest.mark.parametrize("generator", ["hashed", "frozen"])
def test_a_twin_saves_and_trains(generator: str) -> None:
    check_adapter(partial(config, generator=generator), only=["saves_and_loads", "every_parameter_learns", "copies_and_pickles"])


@pytest.mark.parametrize(("d_in", "d_out", "r", "qubits"), [(576, 192, 8, 13), (1536, 256, 8, 14), (31, 17, 1, 6), (1, 1, 1, 1)])
def test_size(d_in: int, d_out: int, r: int, qubits: int) -> None:
    """`n L + r` trained numbers, n = ceil(log2(r (d_in + d_out)))."""
    delta = build(d_in, d_out, r=r, n_layers=5)
    assert sum(p.numel() for p in delta.parameters() if p.requires_grad) == qubits * 5 + r
    assert delta.numbers().shape == (r * (d_in + d_out),)


def test_numbers_have_unit_size() -> None:
    """Amplitudes times sqrt(2^n): the mean square over the whole state is one."""
    delta = build(64, 64, r=8, n_layers=6)  # 1,024 numbers: no amplitude is left over
    assert delta.numbers().square().mean().item() == pytest.approx(1, abs=1e-4)
    assert delta.factors()[1].square().mean().item() == pytest.approx(1 / 64, rel=0.5)


def test_controls_differ_in_the_generator_alone() -> None:
    deltas = {kind: build(20, 12, generator=kind) for kind in GENERATORS}
    circuit = deltas["circuit"]
    for kind, delta in deltas.items():
        trained = sum(p.numel() for p in delta.parameters() if p.requires_grad)
        assert trained == sum(p.numel() for p in circuit.parameters() if p.requires_grad) - (2 * 6 if kind == "frozen" else 0)
        assert torch.equal(delta.gate, circuit.gate)
        assert [name for name, _ in delta.named_children()] == [name for name, _ in circuit.named_children()]
        if kind in ("product", "frozen"):  # one seed, the same angles
            assert torch.equal(delta.state_dict()["state.source.angles"], circuit.state_dict()["state.source.angles"])
    assert not torch.allclose(deltas["product"].numbers(), circuit.numbers())
    assert torch.equal(deltas["frozen"].numbers(), circuit.numbers())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r must be a whole number"),
        ({"n_layers": 0}, "n_layers must be"),
        ({"dropout": 1.0}, "dropout is a probability"),
        ({"generator": "oracle"}, "unknown generator.*circuit, product, hashed, frozen"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        config(**settings)
