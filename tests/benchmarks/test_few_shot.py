"""The few-shot benchmark: frozen layers run once give the whole model's logits, and the circuit's twin has its size."""

from __future__ import annotations

from pathlib import Path

import torch
from benchmarks.few_shot import ARMS, CIRCUIT, FrozenBelow, adapted, next_token_logits
from benchmarks.recovery_rows import write
from transformers import LlamaConfig, LlamaForCausalLM


class Letters:
    """A tokenizer of one token a character."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) % 50 for letter in text][:1] if text.startswith(" ") else [ord(letter) % 50 for letter in text]


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 3, "num_key_value_heads": 1, "num_hidden_layers": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, attn_implementation="eager", **sizes)).eval()


def test_rows_that_ran_through_the_frozen_layers_give_the_same_logits() -> None:
    model, below = tiny(), None
    below = FrozenBelow(model, Letters(), last=2)
    prompts = ["heart =>", "a longer one =>", "x"]
    upper = below.upper().eval()
    with torch.no_grad():
        found = next_token_logits(upper, below.inputs(prompts))
        for prompt, row in zip(prompts, found, strict=True):
            wanted = model(input_ids=torch.tensor([Letters().encode(prompt)])).logits[0, -1]
            assert (wanted - row).abs().max() < 1e-5
    before = {name: value.clone() for name, value in upper.named_parameters()}
    other = adapted(upper, ARMS["circuit"], 0)
    with torch.no_grad():
        assert (next_token_logits(other, below.inputs(prompts)) - found).abs().max() < 1e-5  # starts as the model
    next_token_logits(other, below.inputs(prompts)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in upper.named_parameters())


def test_the_twin_has_as_many_parameters_as_the_circuit_and_lora_fewer_by_the_circuit_alone() -> None:
    upper = FrozenBelow(tiny(), Letters(), last=2).upper()

    def size(arm: str) -> int:
        return sum(p.numel() for p in adapted(upper, ARMS[arm], 0).parameters() if p.requires_grad)

    modules, inside = 4, 4 * 4 * CIRCUIT["n_layers"] + 16  # angles, and the map of the four values
    assert size("circuit") == size("MLP of equal size") == size("LoRA") + modules * inside


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
