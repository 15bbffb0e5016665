"""Circuits measured once: the stored adapter is the surrogate executor's, and its card says where it comes from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.command_line import qpeft

from qpeft.adapters.layers.stored_surrogate import StoredSurrogate
from qpeft.adapters.quantum_layer import QuantumLayer, set_executor
from qpeft.backends.executor import BackendExecutor
from qpeft.backends.registry import get_backend
from qpeft.circuits.surrogate.executor import SurrogateExecutor
from qpeft.errors import AdapterError, RunError
from qpeft.export.run import Options, export
from qpeft.training.loop.loaded_run import load_run
from qpeft.training.loop.run import train
from qpeft.training.recipe.config import load_recipe

IDS = torch.tensor([[3, 50, 81, 7, 120, 9]])


def trained(recipe: Path, folder: Path, *more: str) -> Path:
    train(load_recipe(recipe, ["training.max_steps=2", "training.eval_strategy=no", "adapter.n_layers=1", *more]), folder)
    return folder


@pytest.mark.parametrize(("sharing", "shots"), [("model", None), ("layer", 200), ("none", 50)])
def test_the_stored_adapter_is_what_the_surrogate_executor_gives(
    recipe: Path, tmp_path: Path, sharing: str, shots: int | None
) -> None:
    from peft import PeftModel

    from qpeft.training.model import loading

    run = trained(recipe, tmp_path / "run", f"adapter.share_circuit={sharing}")
    report = export(run, tmp_path / "out", Options(to="surrogate", backend="emulator:wukong-72", shots=shots, seed=4))
    config, model, _ = load_run(run)
    inner = BackendExecutor(get_backend("emulator:wukong-72"), shots, seed=4)
    set_executor(model, SurrogateExecutor(inner))
    loaded = PeftModel.from_pretrained(loading.load_model(config.model), str(tmp_path / "out")).eval()
    layers = [m for m in loaded.modules() if isinstance(m, StoredSurrogate)]
    assert len(layers) == {"model": 1, "layer": 2, "none": 4}[sharing]
    assert not any(isinstance(m, QuantumLayer) for m in loaded.modules())
    with torch.no_grad():
        if shots is not None:  # the order in which circuits are measured decides their shots: that of the modules
            for layer in (m for m in model.modules() if isinstance(m, QuantumLayer)):
                coefficients = layer.run.coefficients(layer.angles.double())  # type: ignore[attr-defined]
                torch.testing.assert_close(layers.pop(0).coefficients, coefficients.float())
        else:
            torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)
        assert loaded(IDS).logits.isfinite().all()
    lattice = report["surrogate"]
    assert lattice["spent"]["circuits"] == 9 * len([1 for _ in lattice["points"]])
    assert lattice["shot_error_rms"] <= lattice["shot_error_bound"] == (0.0 if shots is None else shots**-0.5)
    assert lattice["off_the_exact_circuit_rms"] > 0.01
    card = (tmp_path / "out" / "README.md").read_text()
    for word in ("emulator:wukong-72", lattice["calibration"], lattice["measured_at"], f"{lattice['shot_error_rms']:.4f}"):
        assert word in card
    assert "not measured on a chip" in card


def test_shot_error_is_the_estimated_one(recipe: Path, tmp_path: Path) -> None:
    """Coefficients of 200 shots against exact ones at 2,000 inputs. The RMS of 18 measured values is off by 1 in 6 as a rule."""
    run = trained(recipe, tmp_path / "run", "adapter.share_circuit=model")
    found = {}
    for shots in (None, 200):
        report = export(run, tmp_path / f"out{shots}", Options(to="surrogate", backend="simulator", shots=shots))
        state = load_file(tmp_path / f"out{shots}" / "adapter_model.safetensors")
        found[shots] = next(t for name, t in state.items() if name.endswith("coefficients")), report["surrogate"]
    stored = StoredSurrogate(load_run(run)[1].base_model.model.model.layers[0].self_attn.q_proj.deltas["default"].qnn.circuit)
    inputs, values = torch.rand(2000, 2) * 7, []
    for coefficients, _ in found.values():
        stored.coefficients.data.copy_(coefficients)
        values.append(stored(inputs))
    assert found[None][1]["off_the_exact_circuit_rms"] < 1e-9
    estimated = found[200][1]["shot_error_rms"]
    assert float((values[0] - values[1]).square().mean().sqrt()) == pytest.approx(estimated, rel=0.6)


def test_command_and_a_process_without_backends(recipe: Path, tmp_path: Path) -> None:
    run = trained(recipe, tmp_path / "run", "adapter.share_circuit=model")
    told = qpeft("export", run, "--to", "surrogate", "--backend", "emulator:wukong-180", "--shots", 100)
    assert told.returncode == 0, told.stderr
    assert "measured on emulator:wukong-180: 9 circuits" in told.stdout
    folder = run / "exported" / "surrogate"
    report = json.loads((folder / "export.json").read_text())
    code = (
        "import sys, torch, qpeft\nfrom peft import AutoPeftModelForCausalLM\nimport qpeft.adapters.peft\n"
        f"m = AutoPeftModelForCausalLM.from_pretrained({str(folder)!r}).eval()\n"
        f"x = torch.tensor([{report['check']['input_ids']}])\n"
        "print(m(input_ids=x).logits[0, -1].max().item())\nassert not [n for n in sys.modules if n.startswith('qpeft.backends')]"
    )
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(out) == pytest.approx(max(report["check"]["last_logits"].values()), abs=1e-4)


def test_what_has_no_surrogate_is_refused(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--backend"):
        Options(to="surrogate")
    with pytest.raises(RunError, match="none of the others; got 'lora'"):
        Options(to="lora", backend="simulator")
    with pytest.raises(RunError, match="no rank"):
        Options(to="surrogate", backend="simulator", rank=3)
    run = trained(recipe, tmp_path / "run", "adapter.qnn=mlp2")
    with pytest.raises(AdapterError, match="takes inputs"):
        export(run, tmp_path / "out", Options(to="surrogate", backend="simulator"))
    assert not (tmp_path / "out").exists()


def test_a_core_with_a_circuit_is_stored_too(recipe: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    from qpeft.training.model import loading

    core = "adapter={peft_type: QCORE, r: 4, qubits: 2, trained: core, frames: weight, zz: true, target_modules: [q_proj]}"
    train(load_recipe(recipe, [core, "training.max_steps=2", "training.eval_strategy=no"]), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", Options(to="surrogate", backend="simulator"))
    config, model, _ = load_run(tmp_path / "run")
    loaded = PeftModel.from_pretrained(loading.load_model(config.model), str(tmp_path / "out")).eval()
    assert sum(isinstance(m, StoredSurrogate) for m in loaded.modules()) == 2
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)


def test_a_wide_circuit_is_stored_in_fewer_numbers_than_its_grid(recipe: Path, tmp_path: Path) -> None:
    """Six qubits, one layer: the sparse series has 256 points and its light cones 594 numbers, the grid 729 points and 4,374."""
    more = ("adapter.r=6", "adapter.share_circuit=model")
    run = trained(recipe, tmp_path / "run", *more)
    report = export(run, tmp_path / "out", Options(to="surrogate", backend="simulator", shots=1000, error=0.05))["surrogate"]
    assert report["points"] == [256] == [report["spent"]["circuits"]]
    assert report["kind"] in ("sparse", "tensor-train")
    assert report["numbers"] <= 594
    assert report["error_rms"] <= 0.05
    assert report["problems"] == []
    from peft import PeftModel

    from qpeft.training.model import loading

    config, model, _ = load_run(run)
    loaded = PeftModel.from_pretrained(loading.load_model(config.model), str(tmp_path / "out")).eval()
    (stored,) = (m for m in loaded.modules() if isinstance(m, StoredSurrogate))
    layer = next(m for m in model.modules() if isinstance(m, QuantumLayer))
    u = torch.rand(2000, 6) * 7
    with torch.no_grad():
        error = (stored(u) - layer(u)).square().mean().sqrt().item()
    assert error < 0.05
    assert report["error_rms"] == pytest.approx(error, rel=0.5)


def test_a_deep_circuit_is_stored_as_a_regression_on_activations(recipe: Path, tmp_path: Path) -> None:
    run = trained(recipe, tmp_path / "run", "adapter.n_layers=3", "adapter.share_circuit=model")
    options = Options(to="surrogate", backend="simulator", surrogate="regression")
    report = export(run, tmp_path / "out", options)
    told = report["surrogate"]
    assert told["kind"] == "regression"
    assert told["size"] == told["points"][0] == 512
    assert told["error_rms"] < 0.1
    assert report["measured"]["exported"]["loss"] == pytest.approx(report["measured"]["adapter"]["loss"], abs=1e-3)


def test_noise_that_leaves_no_signal_is_told(recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The chip's two-qubit error is raised until the circuit's values no longer depend on its inputs."""
    from qpeft.backends.emulator.chip import load_chip

    run = trained(recipe, tmp_path / "run", "adapter.share_circuit=model")
    found = {}
    for error in (0.01, 0.7):
        chip = json.loads(load_chip("wukong-72").to_json())
        for coupler in chip["couplers"]:
            coupler["error_cz"] = error
        (tmp_path / f"{error}.json").write_text(json.dumps(chip))
        caplog.clear()
        options = Options(to="surrogate", backend=f"emulator:{tmp_path / f'{error}.json'}", shots=1000)
        found[error] = export(run, tmp_path / f"out-{error}", options)["surrogate"], caplog.text
    good, bad = found[0.01], found[0.7]
    assert good[0]["problems"] == []
    assert good[0]["signal_rms"] > 0.5 * good[0]["noiseless_signal_rms"]
    assert any("noise has removed" in problem for problem in bad[0]["problems"])
    assert "noise has removed" in bad[1]
    assert "noise has removed" in (tmp_path / "out-0.7" / "README.md").read_text()


@pytest.mark.parametrize("form", [("grid", 0), ("sparse", 0), ("tensor-train", 3), ("regression", 20)])
def test_every_stored_form_runs_in_the_file_without_qpeft(form: tuple[str, int]) -> None:
    from qpeft.circuits.ansatz import qtha
    from qpeft.export import plain, qpeft_plain

    torch.manual_seed(0)
    stored = StoredSurrogate(qtha(5, 1), None, {"kind": form[0], "size": form[1]})
    for parameter in stored.parameters():
        parameter.data = torch.rand_like(parameter) + 0.5
    spec, tensors = plain._of_stored(stored)
    adapter = qpeft_plain.Adapter({"kind": "circuit", "qnn": spec, "shapes": {name: list(t.shape) for name, t in tensors.items()}})
    for name, tensor in tensors.items():
        adapter.get_parameter(name).data.copy_(tensor)
    u = torch.rand(6, 5) * 7
    with torch.no_grad():
        torch.testing.assert_close(getattr(adapter, f"_{spec['kind']}")(u), stored(u), rtol=1e-4, atol=1e-4)


def test_measured_circuits_leave_as_plain_pytorch(recipe: Path, tmp_path: Path) -> None:
    run = trained(recipe, tmp_path / "run", "adapter.r=5", "adapter.share_circuit=model")
    options = Options(to="torch", backend="simulator", shots=4000, error=0.3, surrogate="sparse")
    report = export(run, tmp_path / "out", options)
    assert (report["surrogate"]["kind"], report["lossless"]) == ("sparse", False)
    assert report["measured"]["exported"]["max_logit_difference"] < 0.5
    spec = json.loads((tmp_path / "out" / "adapter.json").read_text())
    assert [one["kind"] for one in spec["circuits"].values()] == ["cones"]
