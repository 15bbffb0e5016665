"""A whole training step beside LoRA's: `python -m benchmarks.training --out training.jsonl [--page docs/benchmarks/training.md]`.

One base model in memory, every adapter on it, steps interleaved: forward, backward and AdamW on a batch of random tokens. Peak
memory is measured in a process of its own for each adapter. Ratios are those of minima and of medians.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness, models

ARMS = "lora:4,qtha:4:1,lora:8,qtha:8:1,qtha:8:8"


def step_of(model: Any, batch: int, length: int) -> Callable[[], None]:
    """One optimiser step on random tokens, the same for every adapter."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.config.vocab_size, (batch, length), generator=generator)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    model.train()

    def step() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def trained_parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def peak_memory(arguments: argparse.Namespace, arm: str) -> int:
    """Bytes: the largest resident set of a process that takes two steps with one adapter."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.training", "--model", arguments.model, "--dtype", arguments.dtype]
    command += ["--batch", arguments.batch, "--length", arguments.length, "--threads", arguments.threads, "--memory-of", arm]
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def reference_of(arm: str) -> str:
    """LoRA of the same rank."""
    return f"lora:{arm.split(':')[1]}"


def page(records: list[dict[str, Any]]) -> str:
    """Markdown from records."""
    machine, rows = records[0], records[1:]
    first = rows[0]
    lines = [
        "# A training step beside LoRA's",
        "",
        f"`{first['command']}` on {machine['cpu']}, {machine['threads']} thread(s), torch {machine['torch']}, {first['model']} in "
        f"{first['dtype']}, batch {first['batch']} x {first['length']} tokens, adapters on q_proj and v_proj, forward, backward "
        "and AdamW. Steps are interleaved; a ratio is to LoRA of equal rank: of minima (and medians) in time, of peaks in memory.",
        "",
        "| adapter | trained parameters | step, s (min, median) | time ratio | tokens/s | peak memory, GiB | memory ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    by_arm = {row["arm"]: row for row in rows}
    for row in rows:
        base, timing = by_arm.get(reference_of(row["arm"])), row["timing"]
        ratio = memory_ratio = "-"
        if base is not None and base is not row:
            times = [timing[key] / base["timing"][key] for key in ("min_ms", "median_ms")]
            ratio = f"{times[0]:.3f} ({times[1]:.3f})"
            memory_ratio = f"{row['peak_bytes'] / base['peak_bytes']:.3f}" if row["peak_bytes"] else "-"
        lines.append(
            f"| {row['arm']} | {row['trained_parameters']:,} "
            f"| {timing['min_ms'] / 1e3:.2f}, {timing['median_ms'] / 1e3:.2f} | {ratio} "
            f"| {row['batch'] * row['length'] / timing['min_ms'] * 1e3:.0f} "
            f"| {row['peak_bytes'] / 2**30:.2f} | {memory_ratio} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-1.5b", help=f"a folder, or a shape: {', '.join(models.SHAPES)}")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--arms", default=ARMS, help="comma-separated: lora:R, qtha:R:L, qtha:R:L:QNN")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each adapter")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--out", type=Path, default=Path("training.jsonl"))
    parser.add_argument("--page", type=Path, help="write this Markdown page from the records")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)

    if arguments.memory_of:
        step = step_of(
            models.adapted(models.base_model(arguments.model, dtype), models.Arm(arguments.memory_of)),
            arguments.batch,
            arguments.length,
        )
        step(), step()
        print(json.dumps({"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
        return

    names = arguments.arms.split(",")
    records = harness.Records(arguments.out)
    records.add(harness.machine(arguments.threads))
    base = models.base_model(arguments.model, dtype)
    adapted = {name: models.adapted(base, models.Arm(name)) for name in names}
    steps = {name: step_of(model, arguments.batch, arguments.length) for name, model in adapted.items()}
    for step in steps.values():
        step()
    timings = harness.interleaved(steps, seconds=0.0, least=arguments.rounds)
    counts = {name: trained_parameters(model) for name, model in adapted.items()}
    del base, adapted, steps
    for name in names:
        records.add(
            {
                "kind": "training",
                "arm": name,
                "command": " ".join(["python -m benchmarks.training", *sys.argv[1:]]),
                "model": arguments.model if arguments.model in models.SHAPES else Path(arguments.model).name,
                "dtype": arguments.dtype,
                "batch": arguments.batch,
                "length": arguments.length,
                "trained_parameters": counts[name],
                "timing": timings[name],
                "peak_bytes": 0 if arguments.no_memory else peak_memory(arguments, name),
            }
        )
    text = page(harness.read(arguments.out))
    print(text)
    if arguments.page:
        arguments.page.parent.mkdir(parents=True, exist_ok=True)
        arguments.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
