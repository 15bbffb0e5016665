"""Time per generated token vs. LoRA's: `python -m benchmarks.generation --out FILE.jsonl [--page FILE.md]`.

Greedy generation with a cache from a prompt of random tokens, adapters unmerged, one base model in memory, runs interleaved. What
is timed is the tokens after the first: the prompt is read in the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import harness, models


def generation_of(
    model: Any, prompt: int, tokens: int, seen_s: list[float], clock: Callable[[], float] = time.process_time
) -> Callable[[], None]:
    """Generate `tokens` tokens one by one; the seconds of each token after the first go to `seen_s`."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (1, prompt), generator=generator)
    model.eval()

    @torch.no_grad()
    def generate() -> None:
        out = model(input_ids=ids, use_cache=True)
        cache, last = out.past_key_values, out.logits[:, -1:].argmax(-1)
        for _ in range(tokens):
            start = clock()
            out = model(input_ids=last, past_key_values=cache, use_cache=True)
            cache, last = out.past_key_values, out.logits[:, -1:].argmax(-1)
            seen_s.append(clock() - start)

    return generate


def page(records: list[dict[str, Any]]) -> str:
    """Markdown from records."""
    lines = [
        "# Generation vs. LoRA",
        "",
        "Time per generated token with QTHA, divided by LoRA's at equal rank.",
        "",
        "* Greedy decoding, one sequence, adapters on q_proj and v_proj, not merged.",
        "* Runs are interleaved, tokens timed one by one. Times are CPU time of the process; with `--wall`, wall-clock time.",
        "* Ratio: of minima (of medians). Newest run first.",
        "* `qtha:R:L`: R qubits, L layers, published sizes.",
        "",
    ]
    for alike in models.runs_alike(records):
        machine, rows = alike[0]
        first = rows[0]
        lines += [
            f"## {first['model']} in {first['dtype']}, {first['tokens']} tokens after a prompt of {first['prompt']}",
            "",
            f"`{first['command']}` on {models.on(machine)}.",
            "",
            "| adapter | ms/token (min, median) | ratio |",
            "|---|---|---|",
        ]
        for row in rows:
            timing, ratio = row["timing"], models.ratio(row, models.reference(rows, row))
            lines.append(f"| {row['arm']} | {timing['min_ms']:.1f}, {timing['median_ms']:.1f} | {ratio} |")
        lines += ["", *models.spread(alike)]
    return "\n".join(lines)


def main() -> None:
    parser = models.arguments("generation", __doc__)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16)
    arguments = parser.parse_args()
    names = arguments.arms.split(",")
    records = harness.Records(arguments.out, keep=arguments.append)
    records.add(harness.machine(arguments.threads))
    torch.set_num_threads(arguments.threads)
    base = models.base_model(arguments.model, getattr(torch, arguments.dtype))
    clock = time.perf_counter if arguments.wall else time.process_time
    seen: dict[str, list[float]] = {name: [] for name in names}
    runs = {
        name: generation_of(models.adapted(base, models.Arm(name).config()), arguments.prompt, arguments.tokens, seen[name], clock)
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
                **models.described("generation", arguments, name),
                "prompt": arguments.prompt,
                "tokens": arguments.tokens,
                "timing": harness.summary([1e3 * value for value in seen[name]]),
            }
        )
    models.publish(page(harness.read(arguments.out)), arguments.page)


if __name__ == "__main__":
    main()
