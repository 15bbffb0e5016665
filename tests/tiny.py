"""A tiny Llama with a byte-level tokenizer, and a recipe that trains on it in seconds."""

from __future__ import annotations

import json
from pathlib import Path


def save_tiny_model(folder: Path) -> None:
    """Write the model and its tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|im_start|>", "<|im_end|>", *letters])}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        bos_token="<|im_start|>",
        pad_token="<|im_end|>",
        model_input_names=["input_ids", "attention_mask"],  # as tokenizers of decoders have
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def write_tiny_recipe(folder: Path, model: Path) -> Path:
    """Write `tiny.yaml` and its rows; a comparison and, without its section, a run."""
    rows = [{"instruction": f"Say {i}.", "output": f"{i} is {'even' if i % 2 == 0 else 'odd'}."} for i in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "tiny.yaml"
    file.write_text(
        f"""
name: tiny
model: {{model_name_or_path: {model}, dtype: float32}}
adapter: {{peft_type: QTHA, r: 2, hidden_size: 8, bond_dim: 2, dropout: 0.1, target_modules: [q_proj, v_proj]}}
data: {{train: rows.jsonl, eval_size: 8, max_length: 64}}
training:
  max_steps: 12
  per_device_train_batch_size: 2
  gradient_accumulation_steps: 2
  learning_rate: 1.0e-2
  logging_steps: 3
  eval_strategy: steps
  eval_steps: 6
  save_steps: 4
  disable_tqdm: true
compare:
  seeds: [0, 1]
  arms:
    - {{label: QTHA, adapter: {{peft_type: QTHA, r: 2, hidden_size: 8, bond_dim: 2, target_modules: [q_proj]}}}}
    - {{label: "LoRA r=2", adapter: {{peft_type: LORA, r: 2, target_modules: [q_proj]}}, training: {{learning_rate: 2.0e-2}}}}
"""
    )
    return file
