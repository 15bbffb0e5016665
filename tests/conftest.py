"""Fixtures of several packages: a tiny Llama with a byte-level tokenizer, and a recipe that trains on it in seconds.

No test reaches for a hub: that is set before anything imports huggingface_hub.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|im_start|>", "<|im_end|>", *letters])}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", bos_token="<|im_start|>", pad_token="<|im_end|>"
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
    return folder


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    rows = [{"instruction": f"Say {i}.", "output": f"{i} is {'even' if i % 2 == 0 else 'odd'}."} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "tiny.yaml"
    file.write_text(
        f"""
name: tiny
model: {{model_name_or_path: {tiny_model}, dtype: float32}}
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


@pytest.fixture(scope="session")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a made-up clinic's table, prepared as a user's own data."""
    from qpeft.applications.preparation.own_table import own_data
    from qpeft.applications.preparation.prepare import prepare
    from tests.applications.clinic import clinic_rows, write_csv

    folder = tmp_path_factory.mktemp("clinic")
    file = write_csv(folder / "clinic.csv", clinic_rows(120))
    data = own_data(file, "ill", positive="yes", drop=("note",), group="patient", groups=("smoker", "visit_age"))
    prepare(data, folder / "prepared")
    return folder / "prepared"
