"""Models and adapters that the training and generation tables time: real shapes, random or real weights, one base for all arms."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TARGETS = ["q_proj", "v_proj"]
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
        "tie_word_embeddings": True,
    },
}


@dataclass(frozen=True)
class Arm:
    """An adapter to time: `lora:R`, `qtha:R:L` (published sizes) or `qtha:R:L:QNN` for one of its controls."""

    name: str

    def config(self) -> Any:
        from peft import LoraConfig

        import qpeft

        method, *numbers = self.name.split(":")
        rank = int(numbers[0])
        if method == "lora":
            return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS)
        return qpeft.QTHAConfig(
            r=rank, n_layers=int(numbers[1]), qnn=numbers[2] if len(numbers) > 2 else "circuit", target_modules=TARGETS
        )


def base_model(model: str, dtype: torch.dtype) -> Any:
    """A folder's model, or a shape of `SHAPES` with random weights."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    if model not in SHAPES:
        if not Path(model).is_dir():
            raise SystemExit(f"no such model: {model}; a folder, or one of {', '.join(SHAPES)}")
        return AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    torch.manual_seed(0)
    kinds = (Qwen2Config, Qwen2ForCausalLM) if model.startswith("qwen") else (LlamaConfig, LlamaForCausalLM)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return kinds[1](kinds[0](**SHAPES[model]))
    finally:
        torch.set_default_dtype(previous)


def adapted(base: Any, arm: Arm) -> Any:
    """The base model with the arm's adapter, stirred so that it does something; base weights are shared with every other arm."""
    from peft import get_peft_model

    shared = {id(t): t for t in (*base.parameters(), *base.buffers())}
    torch.manual_seed(1)
    model = get_peft_model(copy.deepcopy(base, shared), arm.config())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    return model
