"""One module's circuit leaves a run with its trained angles: other simulators give the values that stand beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.command_line import qpeft as run_qpeft

import qpeft
from qpeft.adapters.quantum_layer import QuantumLayer
from qpeft.errors import AdapterError, CircuitError, RunError
from qpeft.export.circuit import export_circuit
from qpeft.training.loop.loaded_run import load_run
from qpeft.training.loop.run import train
from qpeft.training.recipe.config import load_recipe

Q0, V1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
TEXT = "Say 3."


@pytest.fixture
def run(recipe: Path, tmp_path: Path) -> Path:
    more = ["training.max_steps=2", "training.eval_strategy=no", "adapter.r=3", "adapter.n_layers=1"]
    train(load_recipe(recipe, more), tmp_path / "run")
    return tmp_path / "run"


def expected(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "expected.json").read_text())
    return found


def z_values(probabilities: np.ndarray) -> list[float]:
    """`<Z_k>` from probabilities in Qiskit's order, qubit 0 in the lowest bit."""
    n = len(probabilities).bit_length() - 1
    return [float(sum(p * (1 - 2 * ((i >> k) & 1)) for i, p in enumerate(probabilities))) for k in range(n)]


def test_circuits_of_a_model_have_its_angles_and_give_what_its_layers_give(run: Path) -> None:
    _, model, _ = load_run(run)
    circuits = qpeft.circuits_of(model)
    assert len(circuits) == 4
    assert {Q0, V1} <= circuits.keys()
    layers = [m for m in model.modules() if isinstance(m, QuantumLayer)]
    u = torch.tensor([0.3, -1.1, 2.0])
    for found, layer in zip(circuits.values(), layers, strict=True):
        torch.testing.assert_close(found.angles, layer.angles.detach().double())
        torch.testing.assert_close(found.expectations(u), layer(u).detach().double(), rtol=0, atol=1e-6)
        assert found.bound(u).n_params == 0
        assert found.bound(u) == found.trained.bind(u.double().tolist())
    with pytest.raises(CircuitError, match=r"inputs of the wrong length.*2"):
        circuits[Q0].bound([0.1, 0.2])


def test_a_base_model_has_no_circuits(run: Path) -> None:
    _, model, _ = load_run(run)
    with pytest.raises(AdapterError, match="no circuits"):
        qpeft.circuits_of(model.unload())


@pytest.mark.parametrize("sharing", ["none", "model"])
def test_inputs_of_each_module_are_its_own(recipe: Path, tmp_path: Path, sharing: str) -> None:
    more = ["training.max_steps=1", "training.eval_strategy=no", f"adapter.share_circuit={sharing}", "adapter.dropout=0.5"]
    train(load_recipe(recipe, more), tmp_path / "run")
    _, model, _ = load_run(tmp_path / "run")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    found = qpeft.circuit_inputs(model.train(), input_ids=ids)
    assert model.training
    assert {name: tuple(u.shape) for name, u in found.items()} == dict.fromkeys(qpeft.circuits_of(model), (1, 5, 2))
    assert not torch.equal(found[Q0], found[V1])
    layer = model.get_base_model().get_submodule(Q0)
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    model.eval()(input_ids=ids)
    handle.remove()
    torch.testing.assert_close(found[Q0], torch.nn.functional.linear(seen[0], layer.deltas["default"].down()))


@pytest.mark.parametrize("to", ["qasm3", "qasm2", "qiskit"])
def test_qiskit_gives_the_expected_values(run: Path, tmp_path: Path, to: str) -> None:
    from qiskit import QuantumCircuit, qasm2, qasm3, qpy
    from qiskit.quantum_info import Statevector

    export_circuit(run, tmp_path / to, to, Q0, text=TEXT)
    report, file = expected(tmp_path / to), tmp_path / to / ("circuit.qpy" if to == "qiskit" else "circuit.qasm")
    if to == "qiskit":
        with file.open("rb") as stream:
            circuit: QuantumCircuit = qpy.load(stream)[0]
    else:
        circuit = qasm3.loads(file.read_text()) if to == "qasm3" else qasm2.loads(file.read_text())
    values = report["values"][0]["expectations"]  # type: ignore[index]
    assert z_values(Statevector(circuit).probabilities()) == pytest.approx(values, abs=1e-9)
    assert report["observables"] == [[[1.0, "ZII"]], [[1.0, "IZI"]], [[1.0, "IIZ"]]]
    _, model, tokenizer = load_run(run)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": TEXT}], add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    inputs = qpeft.circuit_inputs(model, input_ids=torch.tensor([ids]))[Q0][0, -1].double()
    assert report["values"][0]["inputs"] == pytest.approx(inputs.tolist(), abs=1e-6)  # type: ignore[index]


def test_pyqpanda_gives_the_expected_values(run: Path, tmp_path: Path) -> None:
    core = pytest.importorskip("pyqpanda3.core")
    from pyqpanda3.intermediate_compiler import convert_originir_string_to_qprog

    export_circuit(run, tmp_path / "out", "originir", "1.self_attn.v_proj", text=TEXT, token=0)
    report = expected(tmp_path / "out")
    assert (report["module"], report["token"]) == (V1, 0)
    machine = core.CPUQVM()
    text = "\n".join(line for line in (tmp_path / "out" / "circuit.originir").read_text().splitlines() if "MEASURE" not in line)
    machine.run(convert_originir_string_to_qprog(text), 1)
    probabilities = np.abs(np.array(machine.result().get_state_vector())) ** 2
    assert z_values(probabilities) == pytest.approx(report["values"][0]["expectations"], abs=1e-9)  # type: ignore[index]


def test_without_a_prompt_inputs_stay_free(run: Path, tmp_path: Path) -> None:
    export_circuit(run, tmp_path / "out", "qasm3", Q0)
    report = expected(tmp_path / "out")
    circuit = qpeft.Circuit.from_qasm((tmp_path / "out" / "circuit.qasm").read_text(), inputs=["in"])
    assert (circuit.n_inputs, circuit.n_angles) == (3, 0)
    assert circuit.id == report["circuit_id"]
    for probe in report["values"]:  # type: ignore[attr-defined]
        z = qpeft.expectations(circuit, torch.tensor(probe["inputs"], dtype=torch.float64), torch.zeros(0, dtype=torch.float64))
        assert z.tolist() == pytest.approx(probe["expectations"], abs=1e-9)


def test_refusals(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no free parameters.*3 inputs.*--text"):
        export_circuit(run, tmp_path / "a", "qasm2", Q0)
    with pytest.raises(RunError, match=r"several modules end so.*q_proj.*model\.layers\.0"):
        export_circuit(run, tmp_path / "a", "qasm3", "q_proj")
    with pytest.raises(RunError, match=r"no circuit in a module.*k_proj"):
        export_circuit(run, tmp_path / "a", "qasm3", "k_proj")
    with pytest.raises(RunError, match=r"no such token.*999"):
        export_circuit(run, tmp_path / "a", "qasm3", Q0, text=TEXT, token=999)
    with pytest.raises(RunError, match="unknown format"):
        export_circuit(run, tmp_path / "a", "quil", Q0)
    export_circuit(run, tmp_path / "a", "qasm3", Q0)
    with pytest.raises(RunError, match="the output exists"):
        export_circuit(run, tmp_path / "a", "qasm3", Q0)
    export_circuit(run, tmp_path / "a", "qiskit", Q0, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["circuit.qpy", "expected.json"]


def test_the_command(run: Path) -> None:
    said = run_qpeft("export", str(run), "--to", "originir", "--module", Q0, "--text", TEXT).stdout
    assert "3 qubits, 12 trained angles" in said
    assert "circuit.originir" in said
    assert (run / "exported" / f"originir-{Q0}" / "expected.json").is_file()


def test_options_of_other_formats_are_refused(run: Path) -> None:
    refused = run_qpeft("export", str(run), "--to", "qasm3", "--module", Q0, "--rank", "4", "--shots", "10")
    assert refused.returncode != 0
    assert "--rank, --shots" in refused.stderr
    assert "which module's circuit?" in run_qpeft("export", str(run), "--to", "qasm3").stderr
    assert "for one circuit" in run_qpeft("export", str(run), "--to", "lora", "--text", TEXT).stderr
