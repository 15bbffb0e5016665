"""SFT, DPO and GRPO through TRL with our methods, on a tiny model, none of which knows of the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from tests.golden.make_adapters import CASES

import qpeft
from qpeft.adapters.peft import config_class

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("default")  # what TRL warns of is TRL's

PAIRS = [{"prompt": f"Say {i}.", "chosen": f" {i}.", "rejected": f" {i + 1}!"} for i in range(8)]
COMMON: dict[str, Any] = {
    "report_to": "none",
    "bf16": False,
    "use_cpu": True,
    "per_device_train_batch_size": 4,
    "max_steps": 2,
    "learning_rate": 1e-2,
}
FEW = ("qtha-shared", "qcore-side", "qtha-frozen")
SLOW = pytest.mark.slow
TRAINED = [name for name in CASES if not name.endswith("core-stored")]  # of which nothing moves in two steps


def settings(case: str, **changes: Any) -> Any:
    kind, fields = CASES[case]
    return config_class(kind)(**{**fields, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **changes})


def with_adapter(tiny_model: Path, case: str) -> PeftModel:
    """A tiny model with an adapter that has learned something: its delta is not zero."""
    torch.manual_seed(5)
    return get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(tiny_model), settings(case, init_weights=False))


def moved(model: Any, before: dict[str, Any]) -> list[str]:
    return [name for name, p in model.named_parameters() if name in before and not p.equal(before[name])]


def trained(model: Any) -> dict[str, Any]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def tokenizer(tiny_model: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(tiny_model)


@pytest.mark.parametrize("case", [name if name in FEW else pytest.param(name, marks=SLOW) for name in TRAINED])
def test_dpo_s_reference_is_the_adapter_as_it_was(case: str, tiny_model: Path, tmp_path: Path) -> None:
    model = with_adapter(tiny_model, case)
    ids = torch.tensor([[3, 7, 11, 2]])
    model.eval()
    with torch.no_grad():
        first = model(input_ids=ids).logits
    args = trl.DPOConfig(output_dir=str(tmp_path), beta=0.1, **COMMON)
    trainer = trl.DPOTrainer(
        model=model, args=args, train_dataset=datasets.Dataset.from_list(PAIRS), processing_class=tokenizer(tiny_model)
    )
    before = trained(trainer.model)
    assert before
    trainer.train()
    assert moved(trainer.model, before)
    trainer.model.eval()
    trainer.model.set_adapter("ref")
    with torch.no_grad():
        torch.testing.assert_close(trainer.model(input_ids=ids).logits, first)
        trainer.model.set_adapter("default")
        assert not torch.allclose(trainer.model(input_ids=ids).logits, first)
    for layer in (module for module in trainer.model.modules() if isinstance(module, BaseTunerLayer)):
        deltas = getattr(layer, "deltas", {})
        frozen = {name: p for name, p in deltas["default"].named_parameters() if not p.requires_grad}
        for name, p in deltas["ref"].named_parameters():
            if name in frozen:  # frames and frozen angles
                assert p.equal(frozen[name]), name


def test_dpo_with_a_fresh_adapter_starts_at_log_2(tiny_model: Path, tmp_path: Path) -> None:
    args = trl.DPOConfig(output_dir=str(tmp_path), logging_steps=1, **{**COMMON, "max_steps": 8, "learning_rate": 0.1})
    trainer = trl.DPOTrainer(
        model=str(tiny_model),
        args=args,
        train_dataset=datasets.Dataset.from_list(PAIRS),
        peft_config=qpeft.QTHAConfig(r=2, hidden_size=8, bond_dim=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # the adapter starts as the base model, its reference
    assert losses[-1] < losses[0] - 1e-3


@pytest.mark.parametrize("case", [name if name == "qcore-side" else pytest.param(name, marks=SLOW) for name in TRAINED])
def test_grpo(case: str, tiny_model: Path, tmp_path: Path) -> None:
    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(len(set(text))) for text in completions]

    args = trl.GRPOConfig(
        output_dir=str(tmp_path), num_generations=4, max_completion_length=8, beta=0.05, temperature=1.0, **COMMON
    )
    trainer = trl.GRPOTrainer(
        model=str(tiny_model),
        reward_funcs=reward,
        args=args,
        train_dataset=datasets.Dataset.from_list([{"prompt": f"Say {i}."} for i in range(8)]),
        peft_config=settings(case),
    )
    before = trained(trainer.model)
    trainer.train()
    assert moved(trainer.model, before)
    assert any(entry.get("reward_std", 0) > 0 for entry in trainer.state.log_history)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_grpo_goes_on_from_a_trained_adapter(tiny_model: Path, tmp_path: Path) -> None:
    model = with_adapter(tiny_model, "qcore-side")
    args = trl.GRPOConfig(output_dir=str(tmp_path), num_generations=4, max_completion_length=4, beta=0.05, **COMMON)
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [float(len(set(text))) for text in completions],
        args=args,
        train_dataset=datasets.Dataset.from_list([{"prompt": f"Say {i}."} for i in range(8)]),
        processing_class=tokenizer(tiny_model),
    )
    trainer.train()
    assert "ref" in trainer.model.peft_config
    [first] = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry][:1]
    assert abs(first) < 1e-4  # the reference is the adapter as it was, frames included
