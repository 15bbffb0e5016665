"""The cost model of docs/scale.md: counts against transformers and torch, chip circuits against the planner, a fresh page."""

from __future__ import annotations

import json

import pytest
import torch
from benchmarks.scale.__main__ import RECORDS, ROOT, STEPS, read
from benchmarks.scale.cost_model import SHAPES
from benchmarks.scale.page import chip_circuits, page
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM


@pytest.mark.parametrize("name", ["SmolLM2-135M", "Qwen2.5-7B"])
def test_parameters_are_those_of_transformers(name: str) -> None:
    shape = SHAPES[name]
    config = Qwen2Config(
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert shape.parameters == matrices


def test_operations_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    shape = SHAPES["SmolLM2-135M"]
    config = Qwen2Config(
        hidden_size=shape.hidden, intermediate_size=shape.feed_forward, num_hidden_layers=2, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, vocab_size=512, tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    small = type(shape)(2, shape.hidden, shape.feed_forward, shape.heads, shape.kv_heads, 512)
    model = Qwen2ForCausalLM(config).requires_grad_(False)
    embeddings = torch.randn(1, 64, shape.hidden, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=embeddings).logits.sum().backward()
    # eager attention computes the upper triangle too, which the model leaves out: 4 s a instead of 2 s a forward
    attention = 3 * 2 * 64 * small.attention * small.layers
    assert counter.get_total_flops() / 64 == pytest.approx(small.flops(64) + attention, rel=0.01)


def test_activations_are_those_that_torch_saves() -> None:
    shape = SHAPES["SmolLM2-135M"]
    lora = LoraConfig(r=1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")

    def saved(layers: int, tokens: int = 64) -> float:
        config = Qwen2Config(
            hidden_size=shape.hidden, intermediate_size=shape.feed_forward, num_hidden_layers=layers, vocab_size=64,
            num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, tie_word_embeddings=True, use_cache=False,
        )  # fmt: skip
        model = get_peft_model(Qwen2ForCausalLM(config), lora)
        known = {p.untyped_storage().data_ptr() for p in model.parameters()}
        sizes: dict[int, int] = {}
        held = []  # so that no address is used twice

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                sizes[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(input_ids=torch.zeros(1, tokens, dtype=torch.long))
        return sum(sizes.values()) / tokens

    per_layer = (saved(3) - saved(1)) / 2
    assert per_layer == pytest.approx(shape.activations(width=4) / shape.layers, rel=0.01)


def test_chip_circuits_are_those_of_the_planner() -> None:
    assert chip_circuits(4, 1) == (81, 3969)  # recipes/chip.yaml, docs/training-on-a-chip.md


def test_the_page_is_that_of_its_records() -> None:
    assert RECORDS.exists()
    steps = [json.loads(line) for line in STEPS.read_text(encoding="utf-8").splitlines()]
    assert (ROOT / "docs" / "scale.md").read_text(encoding="utf-8") == page(read(), steps)
