"""QTHA against its formulas written out in numpy, the published parameter counts, and the settings."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen2Config

import qpeft
from qpeft.adapters.controls import QNN_KINDS
from qpeft.adapters.inspection import count_parameters
from qpeft.adapters.methods.qtha import FEW_TOKENS, QTHA, QTHAConfig
from qpeft.adapters.quantum_layer import QuantumLayer
from qpeft.circuits.ir import Circuit
from qpeft.circuits.simulator.c_engine import library
from qpeft.errors import AdapterError, MergeError
from tests.adapters.derivatives import gradcheck
from tests.reference import apply, dense

DOUBLE = torch.float64
SMALL = {"r": 3, "hidden_size": 8, "bond_dim": 2, "init_weights": False}


def build(d_in: int = 6, d_out: int = 10, scope: dict[str, nn.Module] | None = None, seed: int = 0, **settings: Any) -> QTHA:
    torch.manual_seed(seed)
    return QTHA(d_in, d_out, QTHAConfig(**{**SMALL, **settings}), {} if scope is None else scope).to(DOUBLE)


def rows(d_in: int = 6, count: int = 4) -> Tensor:
    return torch.randn(count, d_in, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))


def ry(angle: float) -> list[list[float]]:
    c, s = np.cos(angle / 2), np.sin(angle / 2)
    return [[c, -s], [s, c]]


def crz(angle: float) -> np.ndarray:
    return np.diag([1, 1, np.exp(-0.5j * angle), np.exp(0.5j * angle)])


def circuit(u: np.ndarray, angles: np.ndarray, entangling: bool) -> np.ndarray:
    """`<Z_i>` of the data re-uploading circuit for one input, gate by gate."""
    n = len(u)
    entangling = entangling and n > 1
    psi = np.zeros((2,) * n, dtype=complex)
    psi[(0,) * n] = 1
    for layer in angles.reshape(-1, 4 if entangling else 2, n):
        theta_1, phi_1, theta_2, phi_2 = layer if entangling else (None, layer[0], None, layer[1])
        for i in range(n):
            psi = apply(ry(u[i]), (i,), psi)
        for theta, phi, step in ((theta_1, phi_1, 1), (theta_2, phi_2, -1)):
            for i in range(n) if theta is not None else ():
                psi = apply(crz(theta[i]), (i, (i + step) % n), psi)
            for i in range(n):
                psi = apply(ry(phi[i]), (i,), psi)
    probability = np.abs(psi) ** 2
    return np.array([probability.take(0, axis=i).sum() - probability.take(1, axis=i).sum() for i in range(n)])


def silu_layers(u: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    for k, weight in enumerate(weights):
        u = weight @ u
        u = u / (1 + np.exp(-u)) if k < len(weights) - 1 else u
    return u


def written_out(delta: QTHA, x: Tensor, qnn: str, fusion: str, alpha: float, owner: QTHA | None = None) -> np.ndarray:
    """The delta for each row of x, by the formulas of the module's docstring."""
    own = {name: tensor.detach().numpy() for name, tensor in delta.state_dict().items()}
    shared = {name: tensor.detach().numpy() for name, tensor in (owner or delta).state_dict().items() if name.startswith("qnn.")}
    out = []
    for row in x.numpy():
        h = row if delta.tt_a is None else dense(delta.tt_a) @ row
        u = own["mlp_a.weight"] @ h
        z = {
            "circuit": lambda u: circuit(u, shared["qnn.angles"], True),
            "frozen": lambda u: circuit(u, shared["qnn.angles"], True),
            "product": lambda u: circuit(u, shared["qnn.angles"], False),
            "cos": np.cos,
            "none": lambda u: None,
        }.get(qnn, lambda u: silu_layers(u, list(shared.values())))(u)
        classical = own["classical_map.weight"] @ u if "classical_map.weight" in own else None
        if fusion == "multiply":
            v = z * classical
        else:
            v = 0 if z is None else own["quantum_map.weight"] @ z
            v = v if classical is None else v + classical
        y = own["mlp_b.weight"] @ v
        out.append(alpha / len(u) * (y if delta.tt_b is None else dense(delta.tt_b) @ y))
    return np.array(out)


@pytest.mark.parametrize("init", ["balanced", "published"])
@pytest.mark.parametrize("tensor", [True, False])
@pytest.mark.parametrize(
    ("qnn", "fusion", "classical_path"),
    [(q, "add", True) for q in QNN_KINDS]
    + [(q, "add", False) for q in QNN_KINDS if q != "none"]
    + [(q, "multiply", True) for q in QNN_KINDS if q != "none"],
)
def test_delta_equals_its_formulas(qnn: str, fusion: str, classical_path: bool, tensor: bool, init: str) -> None:
    delta = build(qnn=qnn, fusion=fusion, classical_path=classical_path, tensor=tensor, init=init)
    want = written_out(delta, rows(), qnn, fusion, alpha=6.0)
    np.testing.assert_allclose(delta(rows()).detach().numpy(), want, rtol=1e-10, atol=1e-12)
    assert np.abs(want).max() > 1e-3


@pytest.mark.parametrize("settings", [{"r": 1}, {"r": 4, "n_layers": 1}, {"r": 2, "n_layers": 5}, {"alpha": 0.5}, {"n_cores": 2}])
def test_delta_in_other_sizes(settings: dict[str, Any]) -> None:
    delta = build(7, 12, **settings)
    alpha = settings.get("alpha", 2.0 * settings.get("r", 3))
    np.testing.assert_allclose(
        delta(rows(7)).detach().numpy(), written_out(delta, rows(7), "circuit", "add", alpha), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("qnn", ["circuit", "frozen", "product", "mlp2"])
def test_shared_circuit(qnn: str) -> None:
    """The first module of a scope owns the circuit, the others use it: its angles, its gradients, none of their own."""
    scope: dict[str, nn.Module] = {}
    owner, other = build(scope=scope, qnn=qnn), build(4, 5, scope=scope, seed=1, qnn=qnn)
    assert any(name.startswith("qnn.") for name in owner.state_dict())
    assert not any(name.startswith("qnn.") for name in other.state_dict())
    want = written_out(other, rows(4), qnn, "add", alpha=6.0, owner=owner)
    np.testing.assert_allclose(other(rows(4)).detach().numpy(), want, rtol=1e-10, atol=1e-12)
    assert not other.linear
    other(rows(4)).sum().backward()
    assert all(p.grad is not None for p in owner.qnn.parameters() if p.requires_grad)  # type: ignore[union-attr]


@pytest.mark.parametrize(("share", "circuits"), [("none", 4), ("layer", 2), ("model", 1)])
def test_scope_of_sharing_in_a_model(share: str, circuits: int) -> None:
    import peft

    model = AutoModelForCausalLM.from_config(tiny())
    config = qpeft.QTHAConfig(r=2, hidden_size=8, bond_dim=2, share_circuit=share, target_modules=["q_proj", "v_proj"])
    adapted = peft.get_peft_model(model, config)
    assert len([name for name in adapted.state_dict() if name.endswith("qnn.angles")]) == circuits
    deltas = [module for module in adapted.modules() if isinstance(module, QTHA)]
    used = {id(delta.shared[0] if delta.shared else delta.qnn) for delta in deltas}
    assert (len(deltas), len(used)) == (4, circuits)


def tiny(**sizes: int) -> Qwen2Config:
    return Qwen2Config(**{"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 3,
                          "num_key_value_heads": 1, "vocab_size": 50, **sizes})  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "width", "kv", "r", "millions", "lora_millions"),
    [
        (28, 3584, 512, 4, 0.5725, 1.2616),
        (28, 3584, 512, 8, 0.7034, 2.5231),
        (28, 3584, 512, 10, 0.7728, 3.1539),
        (36, 4096, 1024, 8, 0.9446, 3.8339),
    ],
)
def test_published_parameter_counts(layers: int, width: int, kv: int, r: int, millions: float, lora_millions: float) -> None:
    """Qwen2-7B and Qwen3-8B shapes, q_proj and v_proj, on no memory at all."""
    heads = {"num_attention_heads": width // 128, "num_key_value_heads": kv // 128}
    shape = tiny(num_hidden_layers=layers, hidden_size=width, intermediate_size=8, **heads)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    found = count_parameters(model, qpeft.QTHAConfig(r=r, target_modules=["q_proj", "v_proj"]))
    assert (round(found["trainable"] / 1e6, 4), round(found["lora"] / 1e6, 4)) == (millions, lora_millions)


@pytest.mark.parametrize("init", ["balanced", "published"])
@pytest.mark.parametrize("settings", [{}, {"tensor": False}, {"qnn": "none"}, {"fusion": "multiply"}])
def test_starts_at_zero_delta(init: str, settings: dict[str, Any]) -> None:
    delta = build(init=init, init_weights=True, **settings)
    assert delta(rows()).abs().max() == 0
    zero = {name for name, parameter in delta.named_parameters() if parameter.abs().max() == 0}
    assert zero == ({"tt_b.cores.3"} if init == "published" and delta.tt_b is not None else {"mlp_b.weight"})


@pytest.mark.parametrize(("init", "gain"), [("balanced", 1.0), ("published", 16.0)])
def test_gain_of_the_trains(init: str, gain: float) -> None:
    """The variance of W x over that of x: unit when balanced, 2 a core as published; mean over both trains and many seeds."""
    found = []
    for seed in range(200):
        delta = build(32, 24, seed=seed, init=init, bond_dim=4, qnn="none")
        assert delta.tt_a is not None
        assert delta.tt_b is not None
        found += [train.matrix().square().sum(1).mean().item() for train in (delta.tt_a, delta.tt_b)]
    assert np.mean(found) == pytest.approx(gain, rel=0.15)


@pytest.mark.parametrize("qnn", QNN_KINDS)
def test_inner_parameters_is_what_is_there(qnn: str) -> None:
    for r, n_layers, fusion, classical in itertools.product((1, 2, 3), (None, 1, 4), ("add", "multiply"), (True, False)):
        if (qnn == "none" or fusion == "multiply") and not (classical and not (qnn == "none" and fusion == "multiply")):
            continue
        settings = {"r": r, "n_layers": n_layers, "fusion": fusion, "classical_path": classical, "qnn": qnn}
        delta = build(tensor=False, **settings)
        inner = sum(p.numel() for name, p in delta.named_parameters() if p.requires_grad and not name.startswith("mlp_"))
        assert QTHAConfig(**{**SMALL, **settings}).inner_parameters() == inner, settings


@pytest.mark.parametrize("r", [2, 4, 8])
@pytest.mark.parametrize("auto", [{"hidden_size": "auto", "bond_dim": "auto"}, {"bond_dim": "auto"}, {"hidden_size": "auto"}])
def test_auto_sizes_keep_the_budget(r: int, auto: dict[str, str]) -> None:
    fitted = 0
    for d_in, d_out in ((896, 128), (576, 192), (3584, 512), (4096, 4096), (97, 61), (40, 40)):
        for budget in (0.1, 0.24, 0.5, 1.0):
            allowed = budget * r * (d_in + d_out)
            settings = {"r": r, "n_layers": 1, "hidden_size": 16, "bond_dim": 2, "budget": budget, **auto}
            try:
                with torch.device("meta"):
                    delta = QTHA(d_in, d_out, QTHAConfig(**settings), {})
            except AdapterError:
                continue
            fitted += 1
            assert sum(p.numel() for p in delta.parameters() if p.requires_grad) <= allowed
            if auto == {"bond_dim": "auto"} and delta.tt_a is not None and delta.tt_a.cores[0].shape[1] < 64:
                wider = {**settings, "bond_dim": delta.tt_a.cores[0].shape[1] + 1}
                with torch.device("meta"):
                    larger = QTHA(d_in, d_out, QTHAConfig(**wider), {})
                assert sum(p.numel() for p in larger.parameters() if p.requires_grad) > allowed
    assert fitted >= 5


@pytest.mark.parametrize("d_in", range(60, 100))
def test_a_budget_too_small_names_one_that_fits(d_in: int) -> None:
    settings: dict[str, Any] = {"r": 4, "hidden_size": "auto", "bond_dim": "auto"}
    with pytest.raises(AdapterError, match=r"fits a .* layer") as refused:
        QTHAConfig(**settings, budget=0.01).outer_sizes(d_in, 64)
    named = float(str(refused.value.bound).rsplit(" ", 1)[1])
    QTHAConfig(**settings, budget=named).outer_sizes(d_in, 64)
    with pytest.raises(AdapterError):
        QTHAConfig(**settings, budget=named - 0.002).outer_sizes(d_in, 64)


@pytest.mark.parametrize("qnn", QNN_KINDS)
def test_only_without_a_circuit_it_is_linear_and_has_a_weight(qnn: str) -> None:
    delta = build(qnn=qnn, dropout=0.5)
    assert delta.linear == (qnn == "none")
    if qnn != "none":
        with pytest.raises(MergeError, match=r"not linear.*unload.*LoRA"):
            delta.weight()
        return
    weight = delta.weight()
    assert weight.shape == (10, 6)
    assert delta.training, "the mode is as before"
    torch.testing.assert_close(rows() @ weight.T, delta.eval()(rows()))


def test_dropout_acts_on_the_input_in_training_alone() -> None:
    delta, plain = build(dropout=0.4), build()
    torch.testing.assert_close(delta.eval()(rows()), plain(rows()))
    torch.manual_seed(3)
    dropped = nn.functional.dropout(rows(), 0.4)
    torch.manual_seed(3)
    torch.testing.assert_close(delta.train()(rows()), plain(dropped))


@pytest.mark.parametrize("settings", [{}, {"fusion": "multiply"}, {"qnn": "mlp2"}, {"qnn": "product"}, {"tensor": False}])
def test_gradients(settings: dict[str, Any]) -> None:
    delta = build(4, 6, r=2, hidden_size=4, n_layers=1, **settings)
    assert gradcheck(delta, rows(4, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r must be a whole number"),
        ({"r": 2.5}, "r must be a whole number"),
        ({"r": True}, "r must be a whole number"),
        ({"n_layers": 0}, "n_layers must be"),
        ({"n_cores": 0}, "n_cores must be"),
        ({"hidden_size": "wide"}, "hidden_size must be"),
        ({"bond_dim": -1}, "bond_dim must be"),
        ({"qnn": "quantum"}, "unknown qnn.*circuit, none"),
        ({"fusion": "mix"}, "unknown fusion.*add, multiply"),
        ({"share_circuit": "all"}, "unknown share_circuit"),
        ({"init": "zero"}, "unknown init"),
        ({"dropout": 1.0}, "dropout is a probability"),
        ({"classical_path": False, "qnn": "none"}, "nothing is left"),
        ({"classical_path": False, "fusion": "multiply"}, "nothing is left"),
        ({"qnn": "none", "fusion": "multiply"}, "weights the classical path"),
        ({"bond_dim": "auto"}, "needs a budget"),
        ({"budget": 0}, "positive share"),
        ({"target_modules": "q_proj", "layers_to_transform": [1]}, "need target_modules as a list"),
        ({"target_modules": ["q_proj"], "layers_pattern": "layers"}, "does nothing without"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        qpeft.QTHAConfig(**settings)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("settings", [{}, {"classical_path": False}, {"tensor": False}, {"r": 5, "n_layers": 2}], ids=str)
def test_a_few_tokens_take_one_call_with_the_same_result(settings: dict[str, Any], dtype: torch.dtype) -> None:
    delta = build(**settings).to(dtype).eval()
    for shape in ((1, 1, 6), (2, 3, 6), (0, 6), (FEW_TOKENS, 6), (FEW_TOKENS + 1, 6), (6,)):
        x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
        wanted = delta(x.requires_grad_()).detach()
        with torch.no_grad():
            assert (delta._one_call(x) is not None) == library.available()
            torch.testing.assert_close(delta(x), wanted)
        with torch.inference_mode():
            torch.testing.assert_close(delta(x.detach().clone()), wanted)


@pytest.mark.parametrize("settings", [{}, {"fusion": "multiply"}, {"tensor": False}, {"dropout": 0.5}], ids=str)
@pytest.mark.parametrize("tokens", [3, FEW_TOKENS + 1])
def test_adding_to_a_layers_outputs(settings: dict[str, Any], tokens: int) -> None:
    """`add_to` is `y + forward`, and so are its gradients, that of y among them."""
    delta, x, y = build(**settings), torch.randn(tokens, 6, dtype=DOUBLE), torch.randn(tokens, 10, dtype=DOUBLE)
    tensors = [x.requires_grad_(), y.requires_grad_(), *delta.parameters()]
    grad = torch.randn(tokens, 10, dtype=DOUBLE)
    found = []
    for call in (lambda: delta.add_to(y, x), lambda: y + delta(x)):
        torch.manual_seed(0)
        out = call()
        found.append((out, *torch.autograd.grad(out, tensors, grad)))
    torch.testing.assert_close(*found)
    delta.eval()
    with torch.no_grad():
        torch.testing.assert_close(delta.add_to(y, x), y + delta(x))
        torch.testing.assert_close(delta.add_to(y.T.contiguous().T, x), y + delta(x))
        torch.testing.assert_close(delta.float().add_to(y.bfloat16(), x.bfloat16()), y.bfloat16() + delta(x.bfloat16().float()))


@pytest.mark.skipif(not library.available(), reason="the compiled kernel is not built here")
@torch.no_grad()
def test_a_few_tokens_of_a_bfloat16_model_take_one_call_too(monkeypatch: pytest.MonkeyPatch) -> None:
    delta, x, y = build().float().eval(), torch.randn(3, 6).bfloat16(), torch.randn(3, 10).bfloat16()
    wanted = y + delta._steps(x.float())
    monkeypatch.setattr(QTHA, "_steps", None)
    found = delta.add_to(y, x)
    assert found.dtype == wanted.dtype == torch.float32
    torch.testing.assert_close(found, wanted)


def test_adding_to_outputs_runs_hooks() -> None:
    delta, x = build().eval(), rows()
    seen: list[Tensor] = []
    y = torch.ones_like(delta(x)).detach()
    handle = delta.register_forward_hook(lambda *call: seen.append(call[2]))
    for recorded in (False, True):
        with torch.set_grad_enabled(recorded):
            torch.testing.assert_close(delta.add_to(y, x), y + seen[-1])
    handle.remove()
    torch.testing.assert_close(delta.add_to(y, x), y + delta(x))
    assert len(seen) == 2


@torch.no_grad()
def test_one_call_sees_changes_hooks_and_other_executors() -> None:
    delta, x = build().eval(), rows()
    assert isinstance(delta.qnn, QuantumLayer)
    before = delta(x)
    delta.qnn.angles += 0.5
    after = delta(x)
    assert not torch.allclose(before, after)
    with torch.enable_grad():
        torch.testing.assert_close(after, delta(x).detach())
    delta.qnn.angles.data = delta.qnn.angles - 0.5
    torch.testing.assert_close(delta(x), before)
    seen: list[Tensor] = []
    handle = delta.qnn.register_forward_hook(lambda *call: seen.append(call[2]))
    torch.testing.assert_close(delta(x), before)
    assert len(seen) == 1
    handle.remove()

    class Zero:
        has_state = False

        def compile(self, circuit: Circuit, observables: Any = None) -> Any:
            return lambda inputs, angles: 0 * inputs

    own = delta.qnn.run
    delta.qnn.set_executor(Zero())
    assert delta.classical_map is not None
    torch.testing.assert_close(delta(x), x @ delta.down().T @ delta.classical_map.weight.T @ delta.up().T)
    delta.qnn.run = own
    torch.testing.assert_close(delta(x), before)
