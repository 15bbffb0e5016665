"""Export as plain PyTorch: values equal the adapter's, in a process that cannot import qpeft."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from qpeft.adapters.peft import config_class
from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.errors import AdapterError
from qpeft.export import plain, qpeft_plain
from qpeft.export.models import open_run
from qpeft.export.run import Options, export
from qpeft.testing.tools import randomize
from qpeft.training.model.loading import load_model
from qpeft.training.recipe.adapter_section import build_adapter_config
from qpeft.training.recipe.config import load_recipe

OWN = Circuit(2, (Op("h", (0,)), Op("cry", (0, 1), Angle(0, 2.0, 0.3)), Op("rxx", (1, 0), Angle(2)), Op("rz", (0,), Angle(1)),
                  Op("sx", (0,)), Op("ry", (1,), Angle(3, -1.0))), 2, 4)  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "a polynomial": {"peft_type": "QTHA", "r": 3, "n_layers": 1},
    "gates": {"peft_type": "QTHA", "r": 4, "n_layers": 4},
    "a circuit of one's own": {"peft_type": "QTHA", "r": 2, "circuit": OWN, "observables": ["XI", "YZ"], "fusion": "add"},
    "shared, multiplied": {"peft_type": "QTHA", "r": 3, "n_layers": 1, "fusion": "multiply", "share_circuit": "layer"},
    "no classical path": {"peft_type": "QTHA", "r": 3, "n_layers": 1, "classical_path": False},
    "cosine": {"peft_type": "QTHA", "r": 3, "qnn": "cos"},
    "perceptron": {"peft_type": "QTHA", "r": 3, "qnn": "mlp2"},
    "core": {"peft_type": "QCORE", "r": 4, "trained": "core", "qubits": 3, "normalize": True},
    "factor, weighted": {"peft_type": "QCORE", "r": 4, "qubits": 3, "fusion": "multiply", "alpha": 2.0},
    "embedding": {"peft_type": "QAA", "r": 3, "n_layers": 2},
    "blocks": {"peft_type": "CAYLEY"},
    "generated": {"peft_type": "AMPLITUDE", "r": 2},
    "low rank": {"peft_type": "LORA", "r": 2, "init_lora_weights": False},
}
TINY = LlamaConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, vocab_size=64
)


@pytest.mark.parametrize("case", CASES)
def test_every_form_gives_the_adapter_s_values(case: str) -> None:
    fields = dict(CASES[case])
    torch.manual_seed(0)
    config = config_class(fields.pop("peft_type"))(target_modules=["q_proj", "v_proj"], **fields)
    model = get_peft_model(LlamaForCausalLM(TINY), config).eval()
    randomize(model, seed=0)
    for name, layer in model.get_base_model().named_modules():
        if not name.endswith(("q_proj", "v_proj")):
            continue
        spec, tensors = plain._of_layer(name, layer, "default")
        assert spec["kind"] == {"low rank": "lowrank", "generated": "lowrank", "blocks": "matrix", "embedding": "embedding"}.get(
            case, "circuit"
        )
        if case in ("gates", "a polynomial"):
            assert spec["qnn"]["kind"] == {"gates": "gates", "a polynomial": "grid"}[case]
        adapter = qpeft_plain.Adapter({**spec, "shapes": {key: list(value.shape) for key, value in tensors.items()}})
        with torch.no_grad():
            for key, value in tensors.items():
                getattr(adapter, key).copy_(value)
            x = torch.randn(5, 7, 32)
            wanted = layer(x) - layer.get_base_layer()(x)
            torch.testing.assert_close(adapter(x), wanted, atol=3e-5, rtol=1e-3)
            assert wanted.abs().max() > 1e-3


STRANGER = """
import json, sys
class Blocked:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "qpeft":
            raise ImportError("qpeft is not installed here")
sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
base, folder, ids = json.loads(sys.argv[1])
if base:
    sys.path.insert(0, folder)
    import qpeft_plain
    model = qpeft_plain.load(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), folder)
else:
    try:
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
        sys.exit("loaded without its code")
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto")
    AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert {p.dtype for n, p in model.named_parameters() if "qpeft_adapter" in n} == {torch.float32}
    text = model.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert text.shape == (1, len(ids) + 3)
with torch.no_grad():
    print(json.dumps(model.eval()(torch.tensor([ids])).logits[0, -1].float().tolist()))
"""

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(recipe: Path, tmp_path: Path) -> MakeRun:
    """A run's folder as training leaves it, with noise in place of training."""

    def make(adapter: str, *settings: str) -> Path:
        config = load_recipe(recipe, [f"adapter={adapter}", *settings])
        folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        folder.mkdir()
        (folder / "recipe.yaml").write_text(config.to_yaml())
        torch.manual_seed(1)
        model = get_peft_model(load_model(config.model), build_adapter_config(config.adapter or {}))
        randomize(model, seed=0)
        model.save_pretrained(folder / "adapter")
        return folder

    return make


@pytest.mark.parametrize("to", ["torch", "torch-model"])
def test_it_loads_without_qpeft(make_run: MakeRun, to: str, tmp_path: Path) -> None:
    run = make_run("{peft_type: QTHA, r: 3, n_layers: 1, hidden_size: 8, bond_dim: 2, target_modules: [q_proj, v_proj]}")
    report = export(run, tmp_path / "out", Options(to=to))
    assert report["measured"]["exported"]["max_logit_difference"] < 1e-3
    base = report["model"] if to == "torch" else ""
    asked = json.dumps([base, str(tmp_path / "out"), report["check"]["input_ids"]])
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, asked],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    logits = json.loads(done.stdout.splitlines()[-1])
    for token, value in report["check"]["last_logits"].items():
        assert logits[int(token)] == pytest.approx(value, abs=1e-3)
    with torch.no_grad():
        ids = torch.tensor([report["check"]["input_ids"]])
        ours = open_run(run, "default", calibration=None, calibration_rows=1).model(ids).logits[0, -1].float()
    assert torch.tensor(logits).sub(ours).abs().max() < 1e-3


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # PEFT warns of every adapter that trains the head
def test_what_plain_tensors_cannot_hold_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("{peft_type: QTHA, r: 2, qnn: none, modules_to_save: [lm_head], target_modules: [q_proj]}")
    with pytest.raises(AdapterError, match="--to merged"):
        export(run, tmp_path / "out", Options(to="torch"))
