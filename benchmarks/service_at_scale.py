"""A discrete-event model of the task service: how many API hosts and chips 23 million users need, and what they wait.

    python -m benchmarks.service_at_scale --measure     the writer's service times on this machine, for MEASURED
    python -m benchmarks.service_at_scale --write       docs/service-at-scale.md

A job arrives (Poisson, with a daily peak), is stored by the writer of its cell (group commit: one transaction takes what waits, a
fixed time and a time for each job), waits for a free chip of the cell, runs, and its result is stored by the same writer. A cell is
one PostgreSQL or SQLite database with its API processes and chips; cells share nothing, users are spread over them by a hash.
The service times are measured ones (`MEASURED`); everything else is an assumption, listed in `Assumptions`.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MEASURED = {"commit_s": 0.0018, "submit_s": 7.8e-5, "lease_s": 6.0e-5, "complete_s": 5.0e-5}
"""Seconds of the writer for one transaction, and for each submission, lease, completion in it (`--measure`, AMD EPYC, SQLite)."""
WRITES = {
    "commit_s": "one transaction",
    "submit_s": "each job submitted in it",
    "lease_s": "each job given to a worker in it",
    "complete_s": "each result stored in it",
}
PAGE = Path(__file__).parents[1] / "docs" / "service-at-scale.md"


@dataclass(frozen=True)
class Assumptions:
    """What is not measured: users, how often they submit, the peak over the mean, chips, and how long a chip needs for a job."""

    users: int = 23_000_000
    jobs_per_user_day: float = 0.05
    peak: float = 3.0
    chips: int = 1000
    run_s: float = 20.0
    """Mean seconds of a job on a chip; exponential."""


@dataclass
class Cell:
    """One database with its chips; times in seconds."""

    rate: float
    chips: int
    run_s: float
    seed: int

    def run(self, horizon_s: float) -> dict[str, float]:
        """Simulate; p50 and p99 of a submission's answer and of the wait for a chip, and how busy writer and chips are."""
        rng = random.Random(self.seed)
        events: list[tuple[float, int, str, float]] = []
        order = 0

        def push(at: float, kind: str, about: float = 0.0) -> None:
            nonlocal order
            order += 1
            heapq.heappush(events, (at, order, kind, about))

        inbox: deque[tuple[str, float]] = deque()
        queue: deque[float] = deque()
        writing: list[tuple[str, float]] = []
        free, written_s, chip_s = self.chips, 0.0, 0.0
        answers: list[float] = []
        waits: list[float] = []

        def begin(now: float) -> None:
            nonlocal writing, written_s
            if writing or not inbox:
                return
            writing = [inbox.popleft() for _ in range(min(len(inbox), 1024))]
            cost = {"submit": MEASURED["submit_s"], "complete": MEASURED["complete_s"], "lease": MEASURED["lease_s"]}
            seconds = MEASURED["commit_s"] + sum(cost[kind] for kind, _ in writing)
            written_s += seconds
            push(now + seconds, "written")

        push(rng.expovariate(self.rate), "arrive")
        while events:
            now, _, kind, about = heapq.heappop(events)
            if now > horizon_s:
                break
            if kind == "arrive":
                inbox.append(("submit", now))
                push(now + rng.expovariate(self.rate), "arrive")
            elif kind == "ran":
                chip_s += about
                inbox.append(("complete", now))
            elif kind == "written":
                done, writing = writing, []
                for what, since in done:
                    if what == "submit":
                        answers.append(now - since)
                        queue.append(now)
                    elif what == "complete":
                        free += 1
                    else:
                        seconds = rng.expovariate(1 / self.run_s)
                        push(now + seconds, "ran", seconds)
                while free and queue:
                    waits.append(now - queue.popleft())
                    free -= 1
                    inbox.append(("lease", now))
            begin(now)
        return {
            "submit_p50_ms": _percentile(answers, 50) * 1e3,
            "submit_p99_ms": _percentile(answers, 99) * 1e3,
            "wait_p50_s": _percentile(waits, 50),
            "wait_p99_s": _percentile(waits, 99),
            "writer_busy": written_s / horizon_s,
            "chips_busy": chip_s / (self.chips * horizon_s),
            "left": float(len(queue)),
        }


def _percentile(values: list[float], q: float) -> float:
    return float(np.percentile(values, q)) if values else math.nan


def erlang_wait(rate: float, chips: int, run_s: float) -> float:
    """Mean wait of the queue M/M/c in seconds (Erlang C), against which the model is checked. [Erlang 1917]"""
    load = rate * run_s
    term = total = 1.0
    for k in range(1, chips):
        term *= load / k
        total += term
    term *= load / chips
    blocked = term * chips / (chips - load)
    probability = blocked / (total + blocked)
    return probability * run_s / (chips - load)


def table(assumed: Assumptions, cells: list[int], horizon_s: float, seed: int = 0) -> list[dict[str, float]]:
    """One row for each number of cells, at the peak of the day."""
    rate = assumed.users * assumed.jobs_per_user_day / 86400 * assumed.peak
    rows = []
    for n in cells:
        cell = Cell(rate / n, max(assumed.chips // n, 1), assumed.run_s, seed)
        rows.append({"cells": float(n), "rate": rate / n, "chips": float(cell.chips), **cell.run(horizon_s)})
    return rows


def page() -> str:
    """The page docs/service-at-scale.md."""
    assumed = Assumptions()
    mean = assumed.users * assumed.jobs_per_user_day / 86400
    lines = [
        "# 23 million users and a thousand chips",
        "",
        "What the task service would need at the size of a national quantum cloud, by a discrete-event model with measured times.",
        "After this page you can size a deployment. Made by `python -m benchmarks.service_at_scale --write`.",
        "",
        "| assumption | value |",
        "|---|---|",
        f"| users | {assumed.users:,} |",
        f"| jobs per user and day | {assumed.jobs_per_user_day:g} (one in twenty submits one job) |",
        f"| jobs per second, mean and at the daily peak | {mean:.1f} and {mean * assumed.peak:.1f} |",
        f"| chips | {assumed.chips:,} |",
        "| chip time per job | exponentially distributed; the mean is in the tables |",
        "",
        "| measured time of the database writer (`--measure`; AMD EPYC, SQLite with `synchronous=FULL`) | seconds |",
        "|---|---|",
        *(f"| {WRITES[name]} | {value:g} |" for name, value in MEASURED.items()),
        "",
        "A *cell* is one database with its API processes and its share of the chips. Users are spread over cells by a hash of",
        "their name. Cells share nothing.",
        "",
        "## How many cells",
        "",
        f"At the daily peak, with a mean of {assumed.run_s:g} s of chip time per job.",
        "",
        *_rows(table(assumed, [1, 2, 4, 10, 20], 900.0)),
        "",
        "## How busy the chips may be",
        "",
        "One cell with all chips, at the daily peak.",
        "",
    ]
    busy = []
    for run_s in (10.0, 20.0, 24.0, 26.0):
        (row,) = table(Assumptions(run_s=run_s), [1], 900.0)
        busy.append({"run_s": run_s, **row})
    lines += _rows(busy, first="run_s", head="chip time per job, mean, s")
    rate = mean * assumed.peak
    full = rate * assumed.run_s
    lines += [
        "",
        "## What follows",
        "",
        f"* At the peak {rate:.0f} jobs/s of {assumed.run_s:g} s each keep {full:.0f} chips busy. At {assumed.chips / rate:.0f} s",
        f"  per job all {assumed.chips:,} are busy and the queue grows: the chips are the first bottleneck.",
        "* One cell can store all jobs of the daily peak. More cells do not add throughput; they limit a failure to the users of",
        "  one cell.",
        "* More cells mean longer waits: a job waits in the queue of its cell while chips of other cells are free.",
        "",
        "With a writer that takes no time, the model's mean wait equals Erlang's formula for M/M/c",
        "(`tests/service/test_at_scale.py`). The model has no faults and no batches, and the writer's times do not vary.",
        "",
    ]
    return "\n".join(lines)


def _rows(rows: list[dict[str, float]], first: str = "cells", head: str = "cells") -> list[str]:
    heads = [head, "jobs/s per cell", "chips per cell", "time to submit, p50, p99 (ms)", "wait for a chip, p50, p99 (s)"]
    heads += ["writer busy", "chips busy", "jobs left in the queue"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        submit = f"{row['submit_p50_ms']:.1f}, {row['submit_p99_ms']:.1f}"
        wait = f"{row['wait_p50_s']:.2f}, {row['wait_p99_s']:.1f}"
        cells = [f"{row[first]:g}", f"{row['rate']:.1f}", f"{row['chips']:.0f}", submit, wait]
        cells += [f"{row['writer_busy']:.0%}", f"{row['chips_busy']:.0%}", f"{row['left']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def measure(repeats: int = 40) -> dict[str, float]:
    """The writer's service times here: least of many groups of 1 and of 200 submissions, leases and completions, on SQLite."""
    import itertools
    import tempfile
    import time
    from collections.abc import Callable, Sequence

    from qpeft.service.clock import Clock
    from qpeft.service.ids import new_id, new_key
    from qpeft.service.scheduling.submission import JobSpec, StoredProgram, SubmissionRequest
    from qpeft.service.settings import Settings
    from qpeft.service.store import admin, leases, lifecycle
    from qpeft.service.store.database import Database
    from qpeft.service.store.writer import Transaction, Writer

    group = 200
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/service.sqlite")
        database.migrate()
        settings = Settings(lease_jobs=group, lease_budget_s=1e9)
        writer = Writer(database, Clock())
        submit, complete, lease = lifecycle.SubmitJobs(settings), leases.CompleteJobs(settings), leases.LeaseJobs(settings)
        writer.call_sync(admin.start, ("simulator",))
        _, prefix, digest = new_key()
        owner = writer.call_sync(admin.create_key, admin.NewKey("measure", prefix, digest, "u", ("submit",)))
        assert isinstance(owner, str)
        program, params = StoredProgram("0" * 64, "qpeft.circuit", b"{}", 4, 4, 11), np.zeros(4).tobytes()
        worker = new_id("w")
        writer.call_sync(leases.RegisterWorkers(settings), leases.Hello(worker, owner, "measure", ("simulator",)))
        asked = leases.LeaseCommand(worker, owner, ("simulator",), (), group)

        def request() -> SubmissionRequest:
            target = new_id("j")
            spec = JobSpec(target, program.hash, params, 1, None, None, "expectations", None, 1e-4)
            return SubmissionRequest(target, "job", owner, "simulator", (spec,), (program,), key=target, digest=b"0" * 32)

        ticks = itertools.count(1_000_000, 10_000)

        def timed(name: str, operation: Callable[..., Sequence[object]], arguments: Sequence[object]) -> Sequence[object]:
            start = time.perf_counter()
            with database.writer.connect() as connection:
                database.begin(connection)
                outcomes = operation(Transaction(connection, time.time(), next(ticks)), arguments)
                connection.commit()
            times[name].append(time.perf_counter() - start)
            assert not any(isinstance(outcome, Exception) for outcome in outcomes), outcomes
            return outcomes

        times: dict[str, list[float]] = {name: [] for name in ("one", "submit", "lease", "complete")}
        writer.close()
        for _ in range(repeats):
            timed("one", submit, [request()])
            timed("submit", submit, [request() for _ in range(group - 1)])
            (given,) = timed("lease", lease, [asked])
            assert isinstance(given, leases.Lease)
            assert len(given.jobs) == group
            ends = tuple(leases.JobOutcome(job.seq, job.attempt, b"r" * 64, "", 1e-4, None) for job in given.jobs)
            timed("complete", complete, [leases.CompletionCommand(worker, owner, ends)])
        database.dispose()
    least = {name: min(values) for name, values in times.items()}
    each = (least["submit"] - least["one"]) / (group - 2)
    commit_s = least["one"] - each
    per = {"submit_s": each, "lease_s": (least["lease"] - commit_s) / group, "complete_s": (least["complete"] - commit_s) / group}
    return {"commit_s": commit_s, **per}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/service-at-scale.md")
    parser.add_argument("--cells", type=int, nargs="+", default=[1, 2, 4, 10])
    parser.add_argument("--measure", action="store_true", help="measure the writer's service times here")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure()))
    elif options.write:
        PAGE.write_text(page())
    else:
        print(json.dumps(table(Assumptions(), options.cells, 900.0)))


if __name__ == "__main__":
    main()
