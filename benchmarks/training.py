"""A whole training step vs. LoRA's: `python -m benchmarks.training --out training.jsonl [--page docs/benchmarks/training.md]`.

One base model in memory, every adapter on it, steps interleaved: forward, backward and AdamW on a batch of random tokens. Peak
memory is measured in a process of its own for each adapter. Ratios are those of minima and of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import harness, models


def step_of(model: Any, batch: int, length: int) -> Callable[[], None]:
    """One optimiser step on random tokens, the same for every adapter."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.config.vocab_size, (batch, length), generator=generator)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)  # what transformers.Trainer takes
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
    # Freed blocks go back at once: what the C library keeps of them differs by a sixth from run to run
    own = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, env=own)
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def page(records: list[dict[str, Any]]) -> str:
    """Markdown from records."""
    lines = [
        "# A training step vs. LoRA",
        "",
        "Time and memory of one training step with QTHA, divided by LoRA's at equal rank.",
        "",
        "* Adapters on q_proj and v_proj. A step is forward, backward and AdamW on random tokens.",
        "* Steps of all adapters are interleaved. Times are CPU time of the process; with `--wall`, wall-clock time.",
        "* Newest run first. Time ratio: of minima (of medians). Memory: peak resident, each adapter in a process of its own.",
        "* `qtha:R:L`: R qubits, L layers, published sizes.",
        "* What the circuits alone take of a step, at the core's peak and in the kernel: [kernel-limit](kernel-limit.md).",
        "",
    ]
    for alike in models.runs_alike(records):
        machine, rows = alike[0]
        first = rows[0]
        lines += [
            f"## {first['model']} in {first['dtype']}, {first['batch']} x {first['length']} tokens",
            "",
            f"`{first['command']}` on {models.on(machine)}.",
            "",
            "| adapter | trainable parameters | step, s (min, median) | time ratio | tokens/s | peak memory, GiB | memory ratio |",
            "|---|---|---|---|---|---|---|",
            *(_line(row, models.reference(rows, row)) for row in rows),
            "",
            *models.spread(alike),
        ]
    return "\n".join(lines)


def _line(row: dict[str, Any], base: dict[str, Any] | None) -> str:
    timing, peak = row["timing"], row["peak_bytes"]
    memory = f"{peak / 2**30:.2f}" if peak else "-"
    more = f"{peak / base['peak_bytes']:.3f}" if peak and base else "-"
    return (
        f"| {row['arm']} | {row['trained_parameters']:,} "
        f"| {timing['min_ms'] / 1e3:.2f}, {timing['median_ms'] / 1e3:.2f} | {models.ratio(row, base)} "
        f"| {row['batch'] * row['length'] / timing['min_ms'] * 1e3:.0f} | {memory} | {more} |"
    )


def main() -> None:
    parser = models.arguments("training", __doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)

    if arguments.memory_of:
        step = step_of(
            models.adapted(models.base_model(arguments.model, dtype), models.Arm(arguments.memory_of).config()),
            arguments.batch,
            arguments.length,
        )
        step(), step()
        print(json.dumps({"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
        return

    names = arguments.arms.split(",")
    records = harness.Records(arguments.out, keep=arguments.append)
    records.add(harness.machine(arguments.threads))
    base = models.base_model(arguments.model, dtype)
    adapted = {name: models.adapted(base, models.Arm(name).config()) for name in names}
    steps = {name: step_of(model, arguments.batch, arguments.length) for name, model in adapted.items()}
    for step in steps.values():
        step()
    timings = harness.interleaved(
        steps, seconds=0.0, least=arguments.rounds, clock=time.perf_counter if arguments.wall else time.process_time
    )
    counts = {name: trained_parameters(model) for name, model in adapted.items()}
    del base, adapted, steps
    for name in names:
        records.add(
            {
                **models.described("training", arguments, name),
                "batch": arguments.batch,
                "length": arguments.length,
                "trained_parameters": counts[name],
                "timing": timings[name],
                "peak_bytes": 0 if arguments.no_memory else peak_memory(arguments, name),
            }
        )
    models.publish(page(harness.read(arguments.out)), arguments.page)


if __name__ == "__main__":
    main()
