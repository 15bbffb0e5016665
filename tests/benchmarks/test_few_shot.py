"""Frozen layers that run once give the whole model's logits; the arms of a comparison have equal sizes; no row is in two parts."""

from __future__ import annotations

from pathlib import Path

import torch
from benchmarks.few_shot import CIRCUIT, answer_logits
from benchmarks.frozen_below import FrozenBelow, adapted, fit, trainable
from benchmarks.recovery_rows import write
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import few_shot, recovery

EVERY = torch.arange(50)  # every token is an answer


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 3, "num_key_value_heads": 1, "num_hidden_layers": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, attn_implementation="eager", **sizes)).eval()


def test_rows_that_ran_through_the_frozen_layers_give_the_same_logits() -> None:
    model = tiny()
    below = FrozenBelow(model, last=2)
    rows = [[1, 7, 30], [4, 4, 8, 20, 11], [9]]
    upper = below.upper().eval()
    with torch.no_grad():
        found = answer_logits(upper, below.inputs(rows), EVERY)
        for row, logits in zip(rows, found, strict=True):
            wanted = model(input_ids=torch.tensor([row])).logits[0, -1]
            assert (wanted - logits).abs().max() < 1e-5
    before = {name: value.clone() for name, value in upper.named_parameters()}
    other = adapted(upper, few_shot.config_of("circuit"), 0)
    with torch.no_grad():
        assert (answer_logits(other, below.inputs(rows), EVERY) - found).abs().max() < 1e-5  # starts as the model
    answer_logits(other, below.inputs(rows), EVERY).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in upper.named_parameters())


def test_training_lowers_the_loss_and_touches_the_adapter_alone() -> None:
    upper = FrozenBelow(tiny(), last=2).upper()
    model, rows = adapted(upper, few_shot.config_of("LoRA"), 0), [torch.randn(3, 24), torch.randn(5, 24)]
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}

    def loss_of(step: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(answer_logits(model, rows, EVERY), torch.tensor([3, 8]))

    before = loss_of(0).item()
    assert fit(model, loss_of, 8, 0.03) < before
    assert all(torch.equal(value, frozen[name]) for name, value in model.named_parameters() if name in frozen)


def test_the_twin_has_as_many_parameters_as_the_circuit_and_lora_fewer_by_the_circuit_alone() -> None:
    upper = FrozenBelow(tiny(), last=2).upper()

    def size(arm: str) -> int:
        return trainable(adapted(upper, few_shot.config_of(arm), 0))

    modules, inside = 4, 4 * 4 * CIRCUIT["n_layers"] + 16  # angles, and the map of the four values
    assert size("circuit") == size("MLP of equal size") == size("LoRA") + modules * inside


def test_every_arm_of_the_recovery_has_about_6000_parameters_in_the_small_model() -> None:
    sizes = {"hidden_size": 576, "intermediate_size": 8, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = LlamaConfig(vocab_size=8, num_hidden_layers=recovery.LAST, head_dim=64, **sizes)
    upper = FrozenBelow(LlamaForCausalLM(config), last=recovery.LAST).upper()
    counts = {arm: trainable(adapted(upper, recovery.config_of(arm), 0)) for arm in recovery.ARMS}
    assert all(5_700 <= count <= 6_100 for count in counts.values()), counts


def test_no_text_that_the_compression_saw_is_tuned_or_tested_on(tmp_path: Path) -> None:
    import json

    source = Path(__file__).parents[2] / "recipes" / "data" / "alpaca-demo"
    counts = write(source, tmp_path)
    seen = {json.loads(line)["output"] for line in (source / "train.jsonl").read_text().splitlines()[:160]}
    parts = {p: [json.loads(line)["text"] for line in (tmp_path / f"{p}.jsonl").read_text().splitlines()] for p in counts}
    assert {p: len(rows) for p, rows in parts.items()} == counts
    assert min(counts.values()) >= 48
    assert not seen & {*parts["validation"], *parts["test"]}
    assert not {*parts["train"]} & {*parts["validation"], *parts["test"]}
