"""The model card of a saved adapter, and what PEFT says of one where qpeft is not imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import qpeft

TINY = LlamaConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=64
)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    model = get_peft_model(LlamaForCausalLM(TINY), qpeft.QTHAConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_the_card_says_what_to_install_and_import(adapter: Path) -> None:
    card = ModelCard.load(adapter / "README.md")
    assert {"qpeft", "qtha"} <= set(card.data.tags)
    assert card.data.library_name == "peft"
    assert "pip install" in card.text
    assert "import qpeft" in card.text
    assert card.text.index("qpeft") < card.text.index("More Information Needed")


def test_the_section_is_written_once_and_the_rest_is_kept(adapter: Path) -> None:
    readme = adapter / "README.md"
    readme.write_text(readme.read_text() + "\nA note of mine.\n")
    get_peft_model(LlamaForCausalLM(TINY), qpeft.CayleyConfig(target_modules=["q_proj"])).save_pretrained(adapter)
    text = readme.read_text()
    assert (text.count("## How to load this adapter"), "A note of mine." in text) == (1, True)
    assert "`CAYLEY` adapter" in text
    readme.write_text("---\n: [broken\n---\nkept")
    qpeft.QTHAConfig(r=4).save_pretrained(str(adapter))
    assert "kept" in readme.read_text()


def test_without_qpeft_peft_refuses_and_names_the_type(adapter: Path) -> None:
    """PEFT's own error names the type; the card, next to it, names the package."""
    script = f"import peft; peft.PeftConfig.from_pretrained({str(adapter)!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert json.loads((adapter / "adapter_config.json").read_text())["peft_type"] == "QTHA"
    assert "QTHA" in done.stderr
