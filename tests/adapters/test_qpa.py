"""QPA: the contract, the authors' parameter count, the formulas in numpy, sharing, controls."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch import nn

import qpeft
from qpeft.adapters.inspection import count_parameters
from qpeft.adapters.layers.generated_lora import GENERATORS
from qpeft.adapters.methods.qpa import QPA, QPAConfig
from qpeft.errors import AdapterError
from qpeft.testing import SLOW, check_adapter
from qpeft.testing.tools import llama
from tests.adapters.derivatives import gradcheck

SMALL: dict[str, Any] = {"r": 2, "chunk_size": 16, "hidden_sizes": [8], "map_width": 4, "n_layers": 2}


def config(**settings: Any) -> Any:
    return qpeft.QPAConfig(**{**SMALL, **settings})


def build(d_in: int = 7, d_out: int = 12, seed: int = 0, scope: dict[str, nn.Module] | None = None, **settings: Any) -> QPA:
    torch.manual_seed(seed)
    return QPA(d_in, d_out, QPAConfig(**{**SMALL, **settings}), {} if scope is None else scope)


def test_contract() -> None:
    check_adapter(config, skip=SLOW)


@pytest.mark.slow
def test_contract_compiled() -> None:
    check_adapter(config, only=SLOW)


@pytest.mark.parametrize("settings", [{"share": "none", "generator": "hashed"}, {"share": "layer"}])
def test_contract_of_variants(settings: dict[str, Any]) -> None:
    rules = ["starts_as_no_op", "saves_and_loads", "every_parameter_learns", "copies_and_pickles", "two_adapters"]
    check_adapter(partial(config, **settings), only=rules)


@pytest.mark.parametrize("share", ["none", "model"])
def test_published_parameter_count(share: str) -> None:
    """The authors' log for GPT-2's head (768 -> 50,257) at rank 4: 106,264, which is 52.06% of LoRA, as their abstract says.

    Ours has the gate's r numbers beside it.
    """
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(768, 50257, bias=False))
    found = count_parameters(model, qpeft.QPAConfig(r=4, share=share, target_modules=["0"]))
    assert found["trainable"] - 4 == 106_264
    assert round(100 * (found["trainable"] - 4) / found["lora"], 2) == pytest.approx(52.06, abs=0.011)
    assert found["lora"] == 204_100


@pytest.mark.parametrize(("d_in", "d_out", "chunk"), [(7, 12, 16), (31, 17, 5), (1, 1, 3), (4, 4, 2048)])
@pytest.mark.parametrize("activation", ["silu", "none"])
def test_numbers_equal_the_formulas(activation: str, d_in: int, d_out: int, chunk: int) -> None:
    delta = build(d_in, d_out, chunk_size=chunk, activation=activation, hidden_sizes=[8, 6]).double()
    m = 2 * (d_in + d_out)
    n_chunks = -(-m // chunk)
    n = max(1, int(np.ceil(np.log2(n_chunks))))
    p = delta.probabilities().detach().numpy()
    assert p.shape == (2**n,)
    s = (0.6 * np.tanh(0.1 * (2 ** (n - 1) * p + 1e-6))) ** 0.15
    s = s - s.mean()
    layers = [(k.weight.detach().numpy(), k.bias.detach().numpy()) for k in delta.mapping.layers]  # type: ignore[union-attr]
    want = []
    for i in range(n_chunks):
        x = np.array([*(2.0 * int(bit) - 1 for bit in format(i, f"0{n}b")), s[i]])
        for k, (weight, bias) in enumerate(layers):
            x = x / (1 + np.exp(-x)) if k and activation == "silu" else x
            x = weight @ x + bias
        want += x.tolist()
    np.testing.assert_allclose(delta.numbers().detach().numpy(), want[:m], rtol=1e-10, atol=1e-12)


def test_numbers_have_unit_size_and_are_fixed() -> None:
    """Averaged over networks; and a second call gives the same, whatever the random state."""
    found = []
    for seed in range(12):
        delta = build(96, 96, seed=seed, r=4, chunk_size=64, hidden_sizes=[32, 64, 32], map_width=16)
        numbers = delta.numbers()
        found.append(numbers.square().mean().item())
        torch.manual_seed(seed + 100)
        assert torch.equal(delta.numbers(), numbers)
    assert 0.3 < np.mean(found) < 3


def test_without_activation_chunks_span_an_affine_space_of_the_bits() -> None:
    """What the authors' network can make: rank n + 2 at most; with SiLU more."""
    for activation, bounded in (("none", True), ("silu", False)):
        delta = build(64, 64, r=8, chunk_size=32, hidden_sizes=[32], map_width=32, activation=activation).double()
        rank = int(torch.linalg.matrix_rank(delta.numbers().reshape(-1, 32), rtol=1e-10))
        assert (rank <= 5 + 2) == bounded


def test_modules_of_one_scope_share_the_network_and_not_the_circuit() -> None:
    scope: dict[str, nn.Module] = {}
    owner, other, larger = build(scope=scope), build(8, 11, scope=scope, seed=1), build(40, 40, scope=scope)
    assert other.shared[0] is owner.mapping
    assert larger.mapping is not None, "another number of qubits needs another input layer"
    assert {name.split(".")[0] for name in other.state_dict()} == {"gate", "probabilities"}
    with torch.no_grad():
        before = other.eval().numbers()
        owner.mapping.layers[0].weight.add_(0.5)  # type: ignore[union-attr,operator]
        assert not torch.allclose(other.numbers(), before), "who shares a network sees its owner's change at once"
    other.numbers().sum().backward()
    assert all(p.grad is not None for p in owner.mapping.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize(("share", "networks"), [("none", 4), ("layer", 2), ("model", 1)])
def test_scope_of_sharing_in_a_model(share: str, networks: int) -> None:
    model = get_peft_model(llama(), config(share=share, chunk_size=64, target_modules=["q_proj", "v_proj"]))
    assert len([name for name in model.state_dict() if name.endswith("mapping.layers.0.weight")]) == networks
    assert len([name for name in model.state_dict() if name.endswith(".angles")]) == 4


def test_controls_differ_in_the_generator_alone() -> None:
    deltas = {kind: build(20, 12, generator=kind) for kind in GENERATORS}
    circuit = deltas["circuit"]
    assert isinstance(circuit.mapping, nn.Module)
    for kind, delta in deltas.items():
        trained = sum(p.numel() for p in delta.parameters() if p.requires_grad)
        assert trained == sum(p.numel() for p in circuit.parameters() if p.requires_grad) - (2 * 2 if kind == "frozen" else 0)
        for name, tensor in circuit.state_dict().items():
            if name.startswith(("mapping.", "gate")):
                assert torch.equal(delta.state_dict()[name], tensor), f"{kind}: {name}"
        assert torch.equal(delta.get_buffer("bits"), circuit.get_buffer("bits"))
    assert not torch.allclose(deltas["product"].numbers(), circuit.numbers())


@pytest.mark.parametrize("angles", [0.0, np.pi])
def test_gradients_are_finite_where_probabilities_are_zero(angles: float) -> None:
    delta = build(20, 12)
    with torch.no_grad():
        delta.probabilities.source.angles.fill_(angles)  # type: ignore[operator,union-attr]
    delta.numbers().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in delta.parameters())


def test_gradients() -> None:
    delta = build(4, 3, chunk_size=4, init_weights=False).double()
    assert gradcheck(delta, torch.randn(2, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r must be a whole number"),
        ({"chunk_size": 0}, "chunk_size must be"),
        ({"hidden_sizes": []}, "needs a hidden layer"),
        ({"hidden_sizes": [8, 0]}, "each of hidden_sizes must be"),
        ({"map_width": 1.5}, "map_width must be"),
        ({"dropout": -0.1}, "dropout is a probability"),
        ({"activation": "relu"}, "unknown activation.*silu, none"),
        ({"share": "all"}, "unknown share.*none, layer, model"),
        ({"generator": "oracle"}, "unknown generator"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        config(**settings)
