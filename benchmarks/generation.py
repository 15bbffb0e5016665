"""Time per generated token beside LoRA's: `python -m benchmarks.generation --out FILE.jsonl [--page FILE.md]`.

Greedy generation with a cache from a prompt of random tokens, adapters unmerged, one base model in memory, runs interleaved. What
is timed is the tokens after the first: the prompt is read in the first.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness, models
from benchmarks.training import ARMS, reference_of


def generation_of(model: Any, prompt: int, tokens: int, seen_s: list[float]) -> Callable[[], None]:
    """Generate `tokens` tokens one by one; seconds per token after the first go to `seen_s`."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (1, prompt), generator=generator)
    model.eval()

    @torch.no_grad()
    def generate() -> None:
        out = model(input_ids=ids, use_cache=True)
        cache, last = out.past_key_values, out.logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        for _ in range(tokens):
            out = model(input_ids=last, past_key_values=cache, use_cache=True)
            cache, last = out.past_key_values, out.logits[:, -1:].argmax(-1)
        seen_s.append((time.perf_counter() - start) / tokens)

    return generate


def page(records: list[dict[str, Any]]) -> str:
    """Markdown from records."""
    machine, rows = records[0], records[1:]
    first, by_arm = rows[0], {row["arm"]: row for row in rows}
    lines = [
        "# Generation beside LoRA's",
        "",
        f"`{first['command']}` on {machine['cpu']}, {machine['threads']} thread(s), torch {machine['torch']}, {first['model']} in "
        f"{first['dtype']}: {first['tokens']} tokens after a prompt of {first['prompt']}, one sequence, adapters unmerged on "
        "q_proj and v_proj, runs interleaved. A ratio is to LoRA of equal rank, of minima (and of medians).",
        "",
        "| adapter | ms a token (min, median) | ratio |",
        "|---|---|---|",
    ]
    for row in rows:
        base, timing = by_arm.get(reference_of(row["arm"])), row["timing"]
        ratio = "-"
        if base is not None and base is not row:
            least, middle = (timing[key] / base["timing"][key] for key in ("min_ms", "median_ms"))
            ratio = f"{least:.3f} ({middle:.3f})"
        lines.append(f"| {row['arm']} | {timing['min_ms']:.1f}, {timing['median_ms']:.1f} | {ratio} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-1.5b", help=f"a folder, or a shape: {', '.join(models.SHAPES)}")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--arms", default=ARMS, help="comma-separated: lora:R, qtha:R:L, qtha:R:L:QNN")
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each adapter")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("generation.jsonl"))
    parser.add_argument("--page", type=Path, help="write this Markdown page from the records")
    arguments = parser.parse_args()
    names = arguments.arms.split(",")
    records = harness.Records(arguments.out)
    records.add(harness.machine(arguments.threads))
    torch.set_num_threads(arguments.threads)
    base = models.base_model(arguments.model, getattr(torch, arguments.dtype))
    seen: dict[str, list[float]] = {name: [] for name in names}
    runs = {
        name: generation_of(models.adapted(base, models.Arm(name)), arguments.prompt, arguments.tokens, seen[name])
        for name in names
    }
    for run in runs.values():
        run()
    for values in seen.values():
        values.clear()
    for _ in range(max(2, arguments.rounds)):
        for run in runs.values():
            run()
    for name in names:
        records.add(
            {
                "kind": "generation",
                "arm": name,
                "command": " ".join(["python -m benchmarks.generation", *sys.argv[1:]]),
                "model": arguments.model if arguments.model in models.SHAPES else Path(arguments.model).name,
                "dtype": arguments.dtype,
                "prompt": arguments.prompt,
                "tokens": arguments.tokens,
                "timing": harness.summary([1e3 * value for value in seen[name]]),
            }
        )
    text = page(harness.read(arguments.out))
    print(text)
    if arguments.page:
        arguments.page.parent.mkdir(parents=True, exist_ok=True)
        arguments.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
