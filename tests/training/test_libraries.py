"""QTHA in the hands of libraries that know nothing of it, and the recipes that ship with the project."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import qpeft
from qpeft.training.data.examples import content_hash, load_data
from qpeft.training.recipe.config import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.filterwarnings("default")  # what TRL warns of is TRL's
def test_trl_sft_trainer_trains_qtha(tiny_model: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"Say {i}.", "completion": f" {i}."} for i in range(8)]
    trainer = trl.SFTTrainer(
        model=str(tiny_model),
        args=trl.SFTConfig(output_dir=str(tmp_path), max_steps=3, report_to="none", learning_rate=1e-2, bf16=False, use_cpu=True),
        train_dataset=datasets.Dataset.from_list(rows),
        peft_config=qpeft.QTHAConfig(r=2, hidden_size=8, bond_dim=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert before
    assert all("qtha_delta" in name for name in before)
    trainer.train()
    moved = [name for name, p in trainer.model.named_parameters() if name in before and not p.equal(before[name])]
    assert any("mlp_b" in name for name in moved)
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "adapter_model.safetensors").exists()


PLANS = [file for file in (RECIPES / "studies").glob("*.yaml") if "\ntasks:" in file.read_text(encoding="utf-8")]  # qpeft study run
APPLICATIONS = sorted((RECIPES / "applications").glob("*.yaml"))  # their rows are prepared by `qpeft data prepare`


@pytest.mark.parametrize("file", APPLICATIONS, ids=lambda f: f.stem)
def test_recipes_of_applications_are_valid(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data" / file.stem
    folder.mkdir(parents=True)
    for part in ("train", "validation", "test"):
        messages = [{"role": "user", "content": f"a {part} row"}, {"role": "assistant", "content": "yes"}]
        (folder / f"{part}.jsonl").write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    train, held_out = load_data(load_recipe(file).data)
    assert train
    assert held_out


@pytest.mark.parametrize(
    "file", sorted({*RECIPES.rglob("*.yaml")} - {*APPLICATIONS, *PLANS}), ids=lambda f: str(f.relative_to(RECIPES))
)
def test_shipped_recipes_are_valid_and_do_not_leak(file: Path) -> None:
    config = load_recipe(file)
    train, held_out = load_data(config.data)
    assert held_out
    assert not set(map(content_hash, train)) & set(map(content_hash, held_out))


def test_the_demo_keeps_within_its_budget() -> None:
    """Equal rank, and at most 24% of LoRA's trainable parameters, on the shape of SmolLM2-135M."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from qpeft.adapters.inspection import count_parameters
    from qpeft.training.recipe.adapter_section import build_adapter_config

    shape = LlamaConfig(
        num_hidden_layers=30, hidden_size=576, num_attention_heads=9, num_key_value_heads=3, intermediate_size=64, vocab_size=64
    )
    compare = load_recipe(RECIPES / "demo.yaml").compare
    assert compare is not None
    assert len(compare.seeds) == 2
    arms = {arm.label: arm.adapter for arm in compare.arms}
    qtha, lora = (build_adapter_config(arms[label]) for label in ("QTHA r=4", "LoRA r=4"))
    assert qtha.r == lora.r
    counts = []
    for config in (qtha, lora):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(shape)
        counts.append(count_parameters(model, config)["trainable"])
    assert counts == [54_840, 230_400]
    assert counts[0] <= 0.24 * counts[1]
