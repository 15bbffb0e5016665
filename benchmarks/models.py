"""Models and adapters that the training and generation tables time: real shapes, random or real weights, one base for all arms."""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TARGETS = ["q_proj", "v_proj"]
ARMS = "lora:4,qtha:4:1,lora:8,qtha:8:1,qtha:8:8"
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
    """A folder's model, or a shape of `SHAPES` with random weights, made ready as a recipe's."""
    from qpeft.training.model.loading import ready

    return ready(_base_model(model, dtype))


def _base_model(model: str, dtype: torch.dtype) -> Any:
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


def adapted(base: Any, config: Any) -> Any:
    """The base model with an adapter whose parameters have noise added; base weights are shared with every other arm."""
    from peft import get_peft_model

    shared = {id(t): t for t in (*base.parameters(), *base.buffers())}
    torch.manual_seed(1)
    model = get_peft_model(copy.deepcopy(base, shared), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    return model


def arguments(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every table that compares with LoRA."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-1.5b", help=f"a folder, or a shape: {', '.join(SHAPES)}")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--arms", default=ARMS, help="comma-separated: lora:R, qtha:R:L, qtha:R:L:QNN")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each adapter")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--wall", action="store_true", help="wall-clock time instead of the process's, for several threads")
    parser.add_argument("--out", type=Path, default=Path(f"{module}.jsonl"))
    parser.add_argument("--append", action="store_true", help="keep the records that --out holds: a page of several models")
    parser.add_argument("--page", type=Path, help="write this Markdown page from the records")
    return parser


def described(module: str, given: argparse.Namespace, arm: str) -> dict[str, Any]:
    """What a record says of an arm, before what was measured."""
    return {
        "kind": module,
        "arm": arm,
        "command": " ".join([f"python -m benchmarks.{module}", *_said(sys.argv[1:])]),
        "model": given.model if given.model in SHAPES else Path(given.model).name,
        "dtype": given.dtype,
    }


def _said(given: list[str]) -> list[str]:
    """Arguments without the files that results go to."""
    files = {"--out", "--page"}
    return [w for k, w in enumerate(given) if w not in {*files, "--append"} and not files & set(given[max(0, k - 1) : k])]


def runs(records: list[dict[str, Any]]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each machine record with the rows that follow it, newest first. Of runs alike on one kind of processor, the
    newest."""
    return [alike[0] for alike in runs_alike(records)]


def runs_alike(records: list[dict[str, Any]]) -> list[list[tuple[dict[str, Any], list[dict[str, Any]]]]]:
    """All runs, newest first, those alike on one kind of processor together."""
    found: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    for record in records:
        if record["kind"] == "machine":
            found.append((record, []))
        else:
            found[-1][1].append(record)
    alike: dict[tuple[Any, ...], list[tuple[dict[str, Any], list[dict[str, Any]]]]] = {}
    for machine, rows in reversed([run for run in found if run[1]]):
        first = rows[0]
        key = (machine["cpu"], *machine["instructions"], machine["threads"], *(first[name] for name in ("model", "dtype")))
        alike.setdefault((*key, *(first.get(name) for name in ("batch", "length", "prompt", "tokens"))), []).append((machine, rows))
    return list(alike.values())


def spread(alike: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> list[str]:
    """A line with the ratio of minima in every run, where there are several: how far one run can be trusted."""
    ratios: dict[str, list[float]] = {}
    for _, rows in alike:
        for row in rows:
            if (base := reference(rows, row)) is not None:
                ratios.setdefault(row["arm"], []).append(row["timing"]["min_ms"] / base["timing"]["min_ms"])
    told = [f"{arm} {', '.join(f'{r:.3f}' for r in found)}" for arm, found in ratios.items() if len(found) > 1]
    return [f"Time ratios of all runs, newest first, older versions among them: {'; '.join(told)}.", ""] if told else []


def on(machine: dict[str, Any]) -> str:
    """The machine in words, with its instruction sets: processors of one name differ in bfloat16."""
    return f"{machine['cpu']} ({', '.join(machine['instructions'])}), {machine['threads']} thread(s), torch {machine['torch']}"


def reference(rows: list[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any] | None:
    """The row of LoRA of equal rank, where it is among the rows and another one."""
    wanted = f"lora:{row['arm'].split(':')[1]}"
    return next((other for other in rows if other["arm"] == wanted and other is not row), None)


def ratio(row: dict[str, Any], base: dict[str, Any] | None) -> str:
    """Time divided by LoRA's: of minima (and of medians)."""
    if base is None:
        return "-"
    least, middle = (row["timing"][key] / base["timing"][key] for key in ("min_ms", "median_ms"))
    return f"{least:.3f} ({middle:.3f})"


def publish(text: str, page: Path | None) -> None:
    """Print a page, and write it where it is wanted."""
    print(text)
    if page:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
