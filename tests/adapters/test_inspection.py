"""Target names, fused experts, LoRA's count, frozen tensors, and that loading computes no SVD."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import qpeft
from qpeft.adapters.inspection import count_parameters, lora_parameters, shared_modules
from qpeft.errors import AdapterError
from qpeft.testing.tools import llama

MOE: dict[str, Any] = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 32, "moe_intermediate_size": 8, "head_dim": 8}
MOE |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 4, "num_experts_per_tok": 2}


def moe() -> nn.Module:
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**MOE))


fused = pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5, reason="transformers fuses experts from version 5 on")


@fused
@pytest.mark.parametrize("targets", [["gate_proj"], ["q_proj", "down_proj"], ["gate_up_proj"], r".*experts\.down_proj"])
def test_fused_experts_are_refused_by_name(targets: Any) -> None:
    with pytest.raises(AdapterError, match=r"experts' weights are fused in model\.layers\.\*\.mlp\.experts\.\w+.*exclude_modules"):
        get_peft_model(moe(), qpeft.CayleyConfig(target_modules=targets))


@fused
def test_experts_are_left_out_on_purpose_or_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="experts' weights are fused in .*: all-linear leaves them"):
        get_peft_model(moe(), qpeft.CayleyConfig(target_modules="all-linear"))
    get_peft_model(moe(), qpeft.CayleyConfig(target_modules=["q_proj"]))


def test_a_target_that_matches_nothing_is_an_error_next_to_one_that_matches() -> None:
    with pytest.raises(AdapterError, match=r"no module is called q_prj; got 'q_prj, v_proj'; allowed: .*q_proj"):
        get_peft_model(llama(), qpeft.CayleyConfig(target_modules=["q_prj", "v_proj"]))


@pytest.mark.parametrize("make", [llama, moe])
def test_lora_is_counted_by_building_it(make: Any) -> None:
    base = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(r=3, target_modules=["q_proj", "v_proj"])
        want = sum(p.numel() for p in get_peft_model(copy.deepcopy(base), config).parameters() if p.requires_grad)
        assert lora_parameters(base, qpeft.QTHAConfig(r=3, target_modules=["q_proj", "v_proj"])) == want
        adapted = get_peft_model(base, qpeft.QTHAConfig(r=3, target_modules=["q_proj", "v_proj"]))
    assert lora_parameters(adapted, adapted.peft_config["default"]) == want
    assert not any(p.is_meta for p in adapted.parameters())


def test_a_pattern_gives_modules_another_rank() -> None:
    base = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 8))
    config = qpeft.QCoreConfig(r=2, qubits=0, target_modules=["0", "1"], rank_pattern={"1": 4})
    assert count_parameters(base, config) == {"trainable": 2 * 10 + 4 * 8, "lora": 2 * 22 + 4 * 18, "base": 12 * 10 + 10 + 88}


@pytest.mark.parametrize(
    ("config", "frozen"),
    [
        (qpeft.QCoreConfig(target_modules=["0"], trained="core"), {"down", "up"}),
        (qpeft.QTHAConfig(target_modules=["0"], tensor=False, qnn="frozen"), {"angles"}),
    ],
)
def test_frozen_tensors_are_parameters_that_never_train(config: PeftConfig, frozen: set[str]) -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(9, 7)), config)
    model.add_adapter("other", copy.deepcopy(config))
    for act in (lambda: model.set_adapter("other"), model.enable_adapter_layers, lambda: model.set_requires_grad("default")):
        act()
        held = {name.rpartition(".")[2] for name, p in model.named_parameters() if not p.requires_grad and "_delta.other" in name}
        assert frozen <= held
        assert any(p.requires_grad for p in model.parameters())
    assert frozen <= {key.rpartition(".")[2] for key in model.state_dict()}
    assert not [name for name, _ in model.named_buffers() if name.rpartition(".")[2] in frozen]


def test_loading_computes_no_decomposition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = nn.Sequential(nn.Linear(9, 7))
    config = qpeft.QCoreConfig(target_modules=["0"], trained="core", frames="weight", init_weights=False)
    model = get_peft_model(copy.deepcopy(base), config).eval()
    model.save_pretrained(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "svd", lambda *_, **__: pytest.fail("an SVD whose result is thrown away"))
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
        x = torch.randn(4, 9)
        torch.testing.assert_close(loaded(x), model(x))
    fresh = get_peft_model(copy.deepcopy(base), PeftConfig.from_pretrained(str(tmp_path)))  # whose weights never come
    torch.testing.assert_close(fresh.base_model.model[0].delta("default").down, model.base_model.model[0].delta("default").down)


@pytest.mark.parametrize(("share", "count"), [("none", 0), ("layer", 2), ("model", 1)])
def test_shared_circuits_are_named_for_sharding(share: str, count: int) -> None:
    config = qpeft.QTHAConfig(r=2, tensor=False, share_circuit=share, target_modules=["q_proj", "v_proj"])
    assert len(shared_modules(get_peft_model(llama(), config))) == count
