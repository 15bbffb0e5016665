"""A study by its plan, resumable: `python -m benchmarks.study --plan benchmarks/study/breadth.yaml`.

Tunes every method with the same learning rates and steps on validation rows, trains the winners with every seed, judges them on
test rows, and keeps a line for each trial and a record for each run. Killed, the same command goes on. `--status` says what is
left; `--again FOLDER` makes runs that are kept once more, at the learning rates that won, and prints both losses;
`qpeft report docs/benchmarks/study/NAME.jsonl --out FOLDER` makes the page.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from benchmarks.study.ledger import Ledger, fingerprint_of
from benchmarks.study.plan import load_plan
from benchmarks.study.work import Study
from qpeft.errors import ConfigError, QpeftError


def _wanted(what: str, names: list[str], wanted: list[str] | None) -> list[str]:
    """The names that are wanted: all where none is given."""
    for name in wanted or ():
        if name not in names:
            raise ConfigError(f"no {what} {name!r} in the plan", expected=f"one of {', '.join(names)}")
    return names if wanted is None else wanted


def _part(text: str) -> tuple[int, int]:
    """K/N as two numbers with 1 <= K <= N."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r}; expected K/N with 1 <= K <= N, as 1/2")
    return int(part), int(parts)


def _work(arguments: argparse.Namespace) -> None:
    plan = load_plan(arguments.plan)
    if arguments.seeds is not None:
        plan = plan.model_copy(update={"seeds": plan.seeds[: arguments.seeds]})
    tasks = _wanted("task", [task.name for task in plan.tasks], arguments.task)
    arms = _wanted("arm", [arm.label for arm in plan.arms], arguments.arm)
    kept = ledger = Ledger(arguments.records, plan.name)
    if arguments.again:
        ledger = Ledger(arguments.again, plan.name)
        ledger.trials = kept.trials | ledger.trials
    runs = arguments.runs or (arguments.again / "runs" if arguments.again else Path("runs/study"))
    study = Study(plan, ledger, runs / plan.name)
    done, planned = study.left()
    print(f"{plan.name}: {done} of {planned} runs done; tuning costs each method {plan.tuning.steps()} steps a task")
    if arguments.status:
        return
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    part, parts = arguments.part
    mine = [arm for arm in plan.arms if arm.label in arms][part - 1 :: parts]
    for record in study.work([task for task in plan.tasks if task.name in tasks], mine):
        measured = ", ".join(f"{name} {record.metrics[name]:.4f}" for name in ("loss", "accuracy") if name in record.metrics)
        before = kept.records.get(fingerprint_of(record)) if arguments.again else None
        beside = f" (kept: loss {before.metrics['loss']:.4f})" if before is not None and "loss" in before.metrics else ""
        print(f"{record.group}: {record.label}, seed {record.seed}: {measured or record.error}{beside}", flush=True)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--records", type=Path, default=Path("docs/benchmarks/study"), help="folder of trials and records")
    parser.add_argument("--runs", type=Path, help="folder of runs at work; runs/study by default, with --again FOLDER FOLDER/runs")
    parser.add_argument("--again", type=Path, help="folder of runs made again, at the learning rates kept in --records")
    parser.add_argument("--task", action="append", help="these tasks of the plan alone")
    parser.add_argument("--arm", action="append", help="these arms of the plan alone")
    parser.add_argument("--part", type=_part, default=(1, 1), help="K/N: of these arms every Nth from the Kth on, for N processes")
    parser.add_argument("--seeds", type=int, help="the first seeds alone; 0 tunes and trains none")
    parser.add_argument("--status", action="store_true", help="say what is done, and do nothing")
    try:
        _work(parser.parse_args(given))
    except QpeftError as problem:
        parser.exit(2, f"{problem}\n")


if __name__ == "__main__":
    main()
