"""Experiment files for PEFT's own comparison: as their table says, at the size of its model, and they train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks.method_comparison.__main__ import main, page
from benchmarks.method_comparison.experiments import EXPERIMENTS, FOLDER, write
from peft import PeftConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import qpeft.adapters.peft  # noqa: F401

LORA_32 = 9_175_040


def test_the_files_are_what_the_table_says(tmp_path: Path) -> None:
    write(tmp_path)
    for name in EXPERIMENTS:
        for file in ("adapter_config.json", "training_params.json"):
            assert (FOLDER / name / file).read_text() == (tmp_path / name / file).read_text(), f"{name}: --write makes it anew"
    assert {str(file.parent.relative_to(FOLDER)) for file in FOLDER.rglob("adapter_config.json")} == set(EXPERIMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_fits_the_suite_s_model(name: str) -> None:
    shape = LlamaConfig(hidden_size=3072, intermediate_size=64, num_hidden_layers=1, num_attention_heads=24, num_key_value_heads=8)
    model = LlamaForCausalLM(shape.__class__(**{**shape.to_dict(), "vocab_size": 64}))
    adapted = get_peft_model(model, PeftConfig.from_pretrained(str(FOLDER / name)), autocast_adapter_dtype=True)
    trainable, _ = adapted.get_nb_trainable_parameters()
    assert 0 < 28 * trainable < LORA_32
    ids = torch.arange(8)[None]
    adapted(input_ids=ids, labels=ids).loss.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in adapted.parameters() if p.requires_grad)


def test_the_steps_of_the_suite_run(tmp_path: Path, tiny_model: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"{i} and 1?"}, {"role": "assistant", "content": f"#### {i + 1}"}]}
        for i in range(9)
    ]
    for part in ("train", "validation", "test"):
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    given = ["--model", str(tiny_model), "--data", str(tmp_path), "--out", str(out), "--steps", "2", "--test-rows", "1"]
    main(["qtha/llama-3.2-3B-rank8-no-circuit", *given])
    found = json.loads((out / "qtha--llama-3.2-3B-rank8-no-circuit.json").read_text())
    assert found["train_info"]["status"] == "success"
    assert found["train_info"]["metrics"][0]["train loss"] > 0
    assert "| qtha/llama-3.2-3B-rank8-no-circuit |" in (tmp_path / "out.md").read_text()
    with pytest.raises(SystemExit):
        main(["no-such"])


def test_the_page_shows_every_experiment_s_result() -> None:
    written = Path("docs/benchmarks/method_comparison.md").read_text()
    assert written == page(Path("docs/benchmarks/method_comparison"))
    assert all(f"| {name} |" in written for name in ("lora", *EXPERIMENTS))
