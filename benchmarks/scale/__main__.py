"""`python -m benchmarks.scale`: measure what docs/benchmarks/scale.jsonl does not have yet, then write docs/scale.md from it."""

from __future__ import annotations

import argparse
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.scale import measure
from benchmarks.scale.page import page

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "docs" / "benchmarks" / "scale.jsonl"
STEPS = ROOT / "docs" / "benchmarks" / "training.jsonl"
CHECKED = (
    ("SmolLM2-135M", 2, 128, False),
    ("SmolLM2-135M", 2, 256, True),
    ("SmolLM2-360M", 2, 128, False),
    ("Qwen2.5-0.5B", 2, 128, False),
    ("Qwen2.5-0.5B", 1, 256, True),
)


def read() -> list[dict[str, Any]]:
    """All records."""
    return [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()] if RECORDS.exists() else []


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    parser.add_argument("--kind", choices=("empty", "shape", "option"), help="measure nothing else, and write no page")
    parser.add_argument("--most", type=int, default=99, help="measure at most this many")
    arguments = parser.parse_args()
    known = {(record["kind"], record["name"]) for record in read()}

    def add(kind: str, name: str, found: dict[str, Any]) -> None:
        from qpeft.training import environment

        record = {
            "kind": kind,
            "name": name,
            **found,
            "load": round(os.getloadavg()[0], 2),
            "machine": environment.machine()["processor"],
            "versions": environment.versions(),
        }
        with RECORDS.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record, sort_keys=True) + "\n")

    def shape(name: str, batch: int, length: int, checkpointing: bool) -> dict[str, Any]:
        found = measure.shape(name, batch, length, checkpointing=checkpointing)
        return {"model": name, "batch": batch, "length": length, "checkpointing": checkpointing, **found}

    jobs: dict[tuple[str, str], Callable[[], dict[str, Any]]] = {
        ("empty", "process"): lambda: {"peak_bytes": measure.empty_process()},
        **{
            ("shape", f"{row[0]}, {row[1]} x {row[2]}{', checkpointing' if row[3] else ''}"): functools.partial(shape, *row)
            for row in CHECKED
        },
        **{("option", name): functools.partial(measure.option, name) for name in measure.OPTIONS},
    }
    missing = [key for key in jobs if key not in known and arguments.kind in (None, key[0])]
    for kind, name in [] if arguments.page_only else missing[: arguments.most]:
        add(kind, name, jobs[kind, name]())
    if arguments.kind is not None or len(missing) > arguments.most:
        return
    steps = [json.loads(line) for line in STEPS.read_text(encoding="utf-8").splitlines()]
    (ROOT / "docs" / "scale.md").write_text(page(read(), steps), encoding="utf-8")


if __name__ == "__main__":
    main()
