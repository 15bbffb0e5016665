"""QCORE: the contract, its frames against SVDs of what they claim to be, its controls, and runs that start from gradients."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from qpeft.adapters.controls import make_qnn, z_and_zz
from qpeft.adapters.gradient_init import gradient_batches, init_from_gradients
from qpeft.adapters.methods.qcore import QCore
from qpeft.adapters.peft import config_class
from qpeft.adapters.peft.layer import DeltaLayer
from qpeft.adapters.quantum_layer import QuantumLayer
from qpeft.circuits import ansatz
from qpeft.circuits.ir import Observable
from qpeft.errors import AdapterError
from qpeft.testing import SLOW, check_adapter
from qpeft.training.loop.run import train
from qpeft.training.loop.run_dir import read_record
from qpeft.training.recipe.config import load_recipe
from tests import reference

CORE = {"trained": "core", "frames": "gradient"}
SIZES = ((6, 4), (13, 29), (32, 8), (17, 17), (1, 7))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"qubits": 0},
        {"frames": "gradient"},
        {"trained": "core"},
        {**CORE, "qubits": 0},
        {**CORE, "qubits": 3, "n_layers": 2},
        {**CORE, "qubits": 2, "matrix": False},
        {**CORE, "qubits": 3, "fusion": "multiply"},
        {"qnn": "mlp2"},
        {"qubits": 3, "pairs": True},
        {"qubits": 2, "normalise": True},
        {"qubits": 3, "fusion": "multiply"},
        {"qubits": 3, "circuit": "hardware_efficient"},
    ],
)
def test_the_contract_holds(settings: dict[str, object]) -> None:
    drawn = settings.get("frames") != "gradient" or settings.get("qubits") != 0
    skip = SLOW if drawn else {*SLOW, "same_seed_same_adapter"}  # nothing is drawn, so that two seeds make one adapter
    dead = r"qnn\.angles"  # of RZ in the last layer
    check_adapter(partial(config_class("QCORE"), r=4, **settings), dead=dead, skip=skip, sizes=SIZES)


def llama(**more: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 3}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1, **more)).double()


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(40, (2, 7), generator=generator) for _ in range(3)]
    return [{"input_ids": ids, "labels": ids} for ids in rows]


def adapted(base: nn.Module, **settings: object) -> tuple[nn.Module, dict[str, QCore]]:
    model = get_peft_model(base, config_class("QCORE")(**settings))
    found = {name: m.deltas["default"] for name, m in model.named_modules() if isinstance(m, DeltaLayer)}
    return model, found


def true_gradients(base: nn.Module, names: tuple[str, ...]) -> dict[str, Tensor]:
    weights = {n: m.weight for n, m in base.named_modules() if n.endswith(names)}
    total = sum(base(**batch).loss for batch in batches()) / 3
    return dict(zip(weights, torch.autograd.grad(total, list(weights.values())), strict=True))


def assert_spans(delta: QCore, matrix: Tensor) -> None:
    """The frames project onto the r largest singular directions, and are orthonormal."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    r = delta.down.shape[0]
    torch.testing.assert_close(delta.down.T @ delta.down, right[:r].T @ right[:r])
    torch.testing.assert_close(delta.up @ delta.up.T, left[:, :r] @ left[:, :r].T)
    torch.testing.assert_close(delta.down @ delta.down.T, torch.eye(r, dtype=delta.down.dtype))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_frames_are_those_of_autograd_s_gradient(checkpointing: bool) -> None:
    names = ("q_proj", "v_proj")
    wanted = true_gradients(llama(), names)
    model, deltas = adapted(llama(), r=3, **CORE, target_modules=list(names))
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
        model.train()
    assert gradient_batches(model) == 8
    init_from_gradients(model, batches())
    assert len(deltas) == 4
    for name, delta in deltas.items():
        assert_spans(delta, wanted[name.removeprefix("base_model.model.")])
        assert all(p.grad is None for p in delta.parameters())


def test_beside_conv1d_the_gradient_is_not_transposed() -> None:
    torch.manual_seed(0)
    base = GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=12, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    ).double()
    (wanted,) = true_gradients(base, ("c_fc",)).values()
    model, deltas = adapted(base, r=3, **CORE, target_modules=["c_fc"])
    init_from_gradients(model, batches())
    assert_spans(next(iter(deltas.values())), wanted.T)


def test_without_labels_it_says_so() -> None:
    model, _ = adapted(llama(), r=3, **CORE, target_modules=["q_proj"])
    with pytest.raises(AdapterError, match="no gradient reached"):
        init_from_gradients(model, [])


@pytest.mark.parametrize("frames", ["weight", "scaled"])
def test_frames_of_the_weight(frames: str) -> None:
    torch.manual_seed(0)
    weight = nn.Linear(12, 7).weight.detach().clone()
    torch.manual_seed(0)
    model, deltas = adapted(nn.Sequential(nn.Linear(12, 7)), r=3, trained="core", frames=frames, qubits=0, target_modules=["0"])
    (delta,) = deltas.values()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 9
    assert gradient_batches(model) == 0
    if frames == "weight":
        assert_spans(delta, weight)
    else:  # the best approximation of rank 3: LoRA-XS
        torch.testing.assert_close((weight - delta.up @ delta.down).norm(), torch.linalg.svdvals(weight)[3:].norm())


def test_controls_differ_in_the_part_named() -> None:
    built = {}
    for qnn in ("circuit", "product", "frozen", "cos", "none"):
        torch.manual_seed(0)
        built[qnn] = QCore(9, 7, config_class("QCORE")(r=4, **CORE, qubits=3, qnn=qnn, init_weights=False), {})
        built[qnn].init_from_weight(torch.randn(7, 9, generator=torch.Generator().manual_seed(1)))
    count = {name: sum(p.numel() for p in delta.parameters() if p.requires_grad) for name, delta in built.items()}
    assert count["frozen"] == count["cos"] == count["circuit"] - 12 == count["none"] + 2 * 3 * 4
    x = torch.randn(5, 9)
    torch.testing.assert_close(built.pop("frozen")(x), built["circuit"](x))  # until it trains
    outputs = [delta(x) for delta in built.values()]
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(outputs) for b in outputs[:i])


@pytest.mark.parametrize("settings", [{"frames": "other"}, {"qubits": -1}, {**CORE, "matrix": False, "qubits": 0}, {"batches": 0}])
def test_wrong_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(AdapterError):
        config_class("QCORE")(**settings)


def test_a_run_starts_from_gradients_and_goes_on_from_its_checkpoint(recipe: Path, tmp_path: Path) -> None:
    adapter = (
        "adapter={peft_type: QCORE, r: 4, qubits: 2, trained: core, frames: gradient, batches: 2, target_modules: [q_proj, v_proj]}"
    )
    config = load_recipe(recipe, [adapter, "training.max_steps=4", "training.eval_steps=2"])
    whole = train(config, tmp_path / "whole")
    assert whole.metrics["loss"] < whole.metrics_before["loss"]
    assert whole.stored_parameters is not None
    assert whole.stored_parameters > whole.trainable_parameters
    train(config, tmp_path / "paused", until=2)
    assert train(config, tmp_path / "paused").metrics == whole.metrics
    other = train(
        load_recipe(recipe, [adapter.replace("frames: gradient", "frames: weight"), "training.max_steps=4"]), tmp_path / "other"
    )
    assert other.metrics["loss"] != read_record(tmp_path / "whole").metrics["loss"]


def test_pairs_are_read_from_the_same_circuit() -> None:
    """The first n values are `<Z_k>`; the rest are `<Z_j Z_k>`, against the same circuit's state vector."""
    torch.manual_seed(0)
    layer = make_qnn("circuit", ansatz.qtha(3, 2), z_and_zz(3))
    assert isinstance(layer, QuantumLayer)
    u = torch.randn(5, 3)
    with torch.no_grad():
        found = layer(u).double()
    assert found.shape == (5, 6)
    words = ["ZII", "IZI", "IIZ", "ZZI", "ZIZ", "IZZ"]
    for row, values in zip(u, found, strict=True):
        angles = [*row.tolist(), *layer.angles.tolist()]
        want = [reference.expectation(layer.circuit, angles, Observable.pauli(word)) for word in words]
        assert values.tolist() == pytest.approx(want, abs=1e-5)


def test_a_circuit_that_multiplies_is_a_gate() -> None:
    torch.manual_seed(0)
    config = config_class("QCORE")(r=4, trained="core", qubits=3, fusion="multiply", init_weights=False, alpha=4)
    delta = QCore(6, 5, config, {})
    delta.init_from_weight(torch.randn(5, 6))
    assert delta.qnn is not None
    assert delta.encode is not None
    assert delta.decode is not None
    assert delta.core is not None
    x = torch.randn(7, 6)
    u = x @ delta.down.T
    gate = 1 + delta.qnn(u @ delta.encode.weight.T) @ delta.decode.T
    torch.testing.assert_close(delta(x), ((u @ delta.core.T) * gate) @ delta.up.T)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"trained": "core", "fusion": "multiply", "matrix": False}, "weights M u by the circuit"),
        ({"zz": True, "qnn": "cos"}, "4 inputs and 10 outputs"),
        ({"zz": True, "observables": ["ZZII"]}, "zz and observables"),
        ({"circuit": "ring"}, "qtha, hardware_efficient"),
        ({"frames": "scaled"}, "around a core"),
        ({"matrix": False}, "does not have"),
        ({"trained": "both"}, "factor, core"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(AdapterError, match=words):
        config_class("QCORE")(**settings)
