"""A circuit of one's own in QTHA and QCORE: its outputs, its controls, how it travels, what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

import qpeft
from qpeft import Angle, Circuit, Observable, Op
from qpeft.adapters.circuit_setting import read_circuit, read_observables, save_circuit, save_observables
from qpeft.adapters.inspection import count_parameters
from qpeft.adapters.methods.qtha import QTHA
from qpeft.adapters.peft import config_class
from qpeft.adapters.quantum_layer import QuantumLayer
from qpeft.circuits import ansatz
from qpeft.errors import AdapterError, CircuitError, ConfigError
from qpeft.testing import check_adapter
from qpeft.training.on_chip.requests import circuit_requests
from qpeft.training.recipe.adapter_section import build_adapter_config
from qpeft.training.recipe.config import load_recipe
from tests import reference

QASM = """OPENQASM 3.0;
include "stdgates.inc";
input float in_0; input float in_1; input float w; input float v;
qubit[3] q;
ry(2 * in_0) q[0]; rx(in_1 / 2) q[1]; ry(w) q[2];
cx q[0], q[1]; crz(v) q[1], q[2]; ry(in_1) q[2];
"""
OBSERVABLES = ["ZII", "XXI", "IZZ", "IIY"]
OWN = Circuit(
    3,
    (
        Op("ry", (0,), Angle(0, 2.0)),
        Op("rx", (1,), Angle(1, 0.5)),
        Op("ry", (2,), Angle(2)),
        Op("cx", (0, 1)),
        Op("crz", (1, 2), Angle(3)),
        Op("ry", (2,), Angle(1)),
    ),
    n_inputs=2,
    n_params=4,
)
SLOWER = pytest.mark.slow
FAST = (
    "starts_as_no_op",
    "gradients_stay_in_the_adapter",
    "saves_and_loads",
    "two_adapters",
    "copies_and_pickles",
    "refuses_to_merge_otherwise",
    "chooses_its_dtype",
)


def qtha(**settings: Any) -> QTHA:
    torch.manual_seed(0)
    config = config_class("QTHA")(circuit=OWN, observables=OBSERVABLES, tensor=False, init_weights=False, **settings)
    return QTHA(7, 5, config, {}).double().eval()


def test_qtha_runs_the_circuit_that_it_is_given() -> None:
    """Against the formula, the circuit's values by a state vector written in numpy for the tests."""
    delta = qtha()
    x = torch.randn(6, 7, dtype=torch.float64)
    u = x @ delta.mlp_a.weight.T
    assert isinstance(delta.qnn, QuantumLayer)
    angles = delta.qnn.angles.tolist()
    z = [[reference.expectation(OWN, [*row, *angles], Observable.pauli(word)) for word in OBSERVABLES] for row in u.tolist()]
    assert delta.quantum_map is not None
    assert delta.classical_map is not None
    v = torch.tensor(z, dtype=torch.float64) @ delta.quantum_map.weight.T + u @ delta.classical_map.weight.T
    torch.testing.assert_close(delta(x), 2.0 * v @ delta.mlp_b.weight.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("peft_type", "qnn"),
    [
        ("QTHA", "circuit"),
        ("QCORE", "circuit"),
        *(
            pytest.param(name, qnn, marks=pytest.mark.slow)
            for name in ("QTHA", "QCORE")
            for qnn in ("product", "frozen", "mlp", "stored")
        ),
    ],
)
def test_the_contract_holds_for_an_own_circuit_and_its_controls(peft_type: str, qnn: str) -> None:
    settings = {"circuit": OWN, "observables": OBSERVABLES, "qnn": qnn}
    check_adapter(lambda **more: config_class(peft_type)(**settings, **more), only=FAST)


def test_sizes_and_counts_come_from_the_circuit() -> None:
    config = qpeft.QTHAConfig(circuit=OWN, observables=OBSERVABLES, target_modules=["0"], tensor=False)
    assert config.r == 2
    counts = count_parameters(nn.Sequential(nn.Linear(7, 5)), config)
    assert counts["trainable"] == 2 * (7 + 5) + 2 * 4 + 2 * 2 + 2  # ends, QW, CW, angles
    core = qpeft.QCoreConfig(circuit=OWN, observables=OBSERVABLES, target_modules=["0"], r=4)
    assert core.qubits == 3
    assert count_parameters(nn.Sequential(nn.Linear(7, 5)), core)["trainable"] == 4 * 5 + 2 * 4 + 4 * 4 + 2


@pytest.mark.parametrize("peft_type", ["QTHA", "QCORE"])
def test_the_circuit_travels_with_its_id(peft_type: str, tmp_path: Path) -> None:
    base = nn.Sequential(nn.Linear(7, 5))
    made = config_class(peft_type)(circuit=OWN, observables=OBSERVABLES, target_modules=["0"])
    model = get_peft_model(copy.deepcopy(base), made)
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    saved = json.loads(file.read_text())
    assert saved["circuit"] == {"circuit": OWN.to_dict(), "id": OWN.id, "qpeft": qpeft.__version__}
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    (layer,) = [module for module in loaded.modules() if isinstance(module, QuantumLayer)]
    assert layer.circuit == OWN
    assert layer.observables == tuple(map(Observable.pauli, OBSERVABLES))
    saved["circuit"]["circuit"]["ops"][0][2][1] = 3.0  # ry(3 u) instead of ry(2 u)
    file.write_text(json.dumps(saved))
    with pytest.raises(AdapterError, match=f"its id differs.*allowed: '?{OWN.id[:16]}"):
        PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)


def test_a_plan_and_a_backend_see_the_circuit_of_the_layer() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(7, 5)), qpeft.QTHAConfig(circuit=OWN, observables=["ZZI"], target_modules=["0"]))
    (request,) = circuit_requests(model)
    assert request.circuit == OWN
    assert request.observables == (Observable.pauli("ZZI"),)


@pytest.mark.parametrize("value", ["qtha", OWN, ansatz.hardware_efficient(2, 1)])
def test_what_is_saved_is_read_again(value: Any) -> None:
    assert read_circuit(json.loads(json.dumps(save_circuit(value)))) == value
    observables = read_observables(["ZI", Observable(((0.5, ()), (-1.0, ((0, "X"), (1, "Y")))))], 2)
    assert read_observables(json.loads(json.dumps(save_observables(observables))), 2) == observables


def test_a_file(tmp_path: Path) -> None:
    pytest.importorskip("openqasm3")
    (tmp_path / "my.qasm").write_text(QASM)
    (tmp_path / "my.json").write_text(OWN.to_json())
    assert qpeft.QTHAConfig(circuit=str(tmp_path / "my.json")).circuit == OWN
    assert qpeft.QTHAConfig(circuit=str(tmp_path / "my.qasm"), circuit_inputs=["in"]).circuit == OWN
    with pytest.raises(AdapterError, match=r"my\.qasm: are these parameters data or trained angles.*w, v"):
        qpeft.QTHAConfig(circuit=str(tmp_path / "my.qasm"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"circuit": "ring"}, r"unknown circuit; got 'ring'; allowed: qtha, hardware_efficient"),
        ({"circuit": "nowhere.qasm"}, r"cannot be read: .*nowhere\.qasm"),
        ({"circuit": 3}, "not a circuit; got 'int'"),
        ({"circuit": ansatz.ry_cnot(2, 1)}, "no inputs.*2 parameters, all of them angles"),
        ({"circuit": OWN, "r": 3}, "2 inputs, r=3'; hint: r=2"),
        ({"circuit": OWN, "n_layers": 2}, "n_layers belongs to a family"),
        ({"circuit": OWN, "circuit_inputs": ["x"]}, "read from a file"),
        ({"circuit": OWN, "qnn": "cos"}, "2 inputs and 3 outputs"),
        ({"circuit": OWN, "fusion": "multiply"}, "2 inputs, 3 values"),
        ({"circuit": OWN, "observables": []}, "observables are a list"),
        ({"circuit": OWN, "observables": "ZZZ"}, "observables are a list"),
        ({"circuit": OWN, "observables": ["ZZ"]}, "a letter for each qubit; got 'ZZ'; allowed: 3 letters"),
        ({"circuit": OWN, "observables": ["ABC"]}, "not an observable"),
        ({"circuit": OWN, "observables": [Observable.z(3)]}, r"does not have; got 3; allowed: 0\.\.2"),
        ({"circuit": OWN, "rank_pattern": {"0": 4}}, "2 inputs, r=4"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(AdapterError, match=words):
        qpeft.QTHAConfig(**settings).for_module("0")


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"qubits": 4}, "qubits=4'; allowed: 3, or leave"), ({"qubits": 0}, "qubits=0"), ({"n_layers": 2}, "belongs to a family")],
)
def test_what_does_not_fit_a_core_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(AdapterError, match=words):
        qpeft.QCoreConfig(circuit=OWN, **settings)


def test_a_damaged_circuit_is_an_error_of_the_circuit() -> None:
    saved = save_circuit(OWN)
    assert isinstance(saved, dict)
    saved["circuit"]["ops"][0][0] = "r?"
    with pytest.raises(CircuitError, match=r"unknown gate; got 'r\?'"):
        read_circuit(saved)


RECIPE = """
model: {model_name_or_path: MODEL}
adapter: &own {peft_type: QTHA, circuit: my.json, observables: [ZII, XXI]}
data: {train: rows.jsonl}
compare: {arms: [{label: mine, adapter: *own}, {label: no circuit, adapter: {<<: *own, qnn: none}}]}
"""


def test_a_recipe_holds_the_circuit_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "my.json").write_text(OWN.to_json())
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("MODEL", str(tmp_path / "model")))
    config = load_recipe(tmp_path / "recipe.yaml")
    assert config.compare is not None
    for fields in (config.adapter, *(arm.adapter for arm in config.compare.arms)):
        assert fields is not None
        assert fields["circuit"]["id"] == OWN.id
        assert build_adapter_config(fields).circuit == OWN
    (tmp_path / "my.json").unlink()
    (tmp_path / "resolved.yaml").write_text(config.to_yaml())
    assert load_recipe(tmp_path / "resolved.yaml") == config
    with pytest.raises(ConfigError, match=r"recipe\.yaml:3: adapter.circuit: no such circuit file; got 'my.json'"):
        load_recipe(tmp_path / "recipe.yaml")
