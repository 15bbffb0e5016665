"""Timing that survives a shared machine, the machine's own ceilings, and records as JSON lines."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from qpeft.study.plan import TuningSection
from qpeft.study.tuning import best_rate


@dataclass(frozen=True)
class Timing:
    """Wall time of one call: minimum, median and quartiles over rounds, ms."""

    min_ms: float
    median_ms: float
    lower_ms: float
    upper_ms: float
    rounds: int


def interleaved(
    steps: Mapping[str, Callable[[], object]], *, seconds: float, least: int = 5, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Timing]:
    """Time steps in turn, round after round, so that all meet the same load; each has been called once before.

    `clock=time.process_time` counts the processor's time for this process alone: for steps of seconds, which a shared machine never
    leaves undisturbed.
    """
    samples: dict[str, list[float]] = {name: [] for name in steps}
    spent = dict.fromkeys(steps, 0.0)
    # Fast steps repeat within a round: a short window is more often left alone by other processes
    while any(spent[name] < seconds or len(samples[name]) < least for name in steps):
        for name, step in steps.items():
            if spent[name] >= seconds and len(samples[name]) >= least:
                continue
            until = clock() + 0.02
            while True:
                start = clock()
                step()
                end = clock()
                samples[name].append(1e3 * (end - start))
                spent[name] += end - start
                if end > until:
                    break
    return {name: summary(values) for name, values in samples.items()}


def summary(values_ms: list[float]) -> Timing:
    """Order statistics of at least two samples."""
    lower, median, upper = statistics.quantiles(values_ms, n=4)
    return Timing(min(values_ms), median, lower, upper, len(values_ms))


def _best(step: Callable[[], object], seconds: float = 0.5) -> float:
    step()
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.process_time()
        step()
        best = min(best, time.process_time() - start)
    return best


def timing_parser(doc: str | None, out: Path) -> argparse.ArgumentParser:
    """The parser of a benchmark that times and writes a page: `out`, `page`, `measure`, `seconds`.

    Args:
        doc: the module's description.
        out: where records go by default.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--measure", action="store_true", help="measure, although --page is given")
    parser.add_argument("--seconds", type=float, default=0.3, help="of each measurement")
    return parser


def timing_options(doc: str | None, out: Path) -> argparse.Namespace:
    """The options that `timing_parser` alone reads."""
    return timing_parser(doc, out).parse_args()


def keep_to_one_core() -> None:
    """Where the system can: libraries with thread pools of their own then have one core as well."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def machine(threads: int) -> dict[str, Any]:
    """What ran this, and how fast it can be: multiply-adds a second in a matrix product, bytes a second in a large sum."""
    torch.set_num_threads(threads)
    size = 1024
    a, b = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty_like(a)
    product_s = _best(lambda: torch.mm(a, b, out=out))
    x, y = torch.randn(1 << 25), torch.randn(1 << 25)
    z = torch.empty_like(x)
    stream_s = _best(lambda: torch.add(x, y, out=z))
    cpu, flags = platform.processor() or platform.machine(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            cpu = value.strip() if name.strip() == "model name" else cpu
            flags |= set(value.split()) if name.strip() == "flags" else set()
    except OSError:
        pass  # not Linux: the processor's name must do
    return {
        "kind": "machine",
        "cpu": cpu,
        "instructions": sorted(flags & {"sse4_2", "avx", "fma", "avx2", "avx512f", "avx512dq", "amx_tile"}),
        "cores": os.cpu_count(),
        "load_before": [round(v, 2) for v in os.getloadavg()],
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "product_gmac_s": size**3 / product_s / 1e9,
        "stream_gb_s": 3 * 4 * x.numel() / stream_s / 1e9,
    }


def versions(*packages: str) -> dict[str, str]:
    """Installed versions; packages that are not installed are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


class Records:
    """Appends JSON lines to a file, one per result, as they come; with `keep`, after what the file holds already."""

    def __init__(self, path: Path, *, keep: bool = False) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not keep:
            path.write_text("")

    def add(self, record: Mapping[str, Any]) -> None:
        plain = {name: asdict(value) if isinstance(value, Timing) else value for name, value in record.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(plain, sort_keys=True) + "\n")


class Runs:
    """Runs told apart by the values of `key`, each done once: what the file holds is not done again.

    Args:
        path: of the records, one line a run.
        key: names of the values that tell runs apart.
    """

    def __init__(self, path: Path, key: tuple[str, ...]) -> None:
        self.key = key
        self.known = {tuple(line[name] for name in key): line for line in read(path)} if path.exists() else {}
        self._records = Records(path, keep=True)

    def result(self, mark: tuple[Any, ...], run: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The record of a run, done now if it is not known."""
        if mark not in self.known:
            self.known[mark] = dict(zip(self.key, mark, strict=True)) | dict(run())
            self._records.add(self.known[mark])
            print(", ".join(map(str, mark)), f"loss {self.known[mark]['loss']:.4f}", flush=True)
        return self.known[mark]


def climbed(grid: TuningSection, steps: int, start: float, loss_of: Callable[[float], float]) -> float:
    """The learning rate that wins on validation rows, climbing from `start`; a loss that is not finite is a failed run.

    Raises:
        ValueError: every rate failed.
    """

    def loss_after(rate: float, step: int) -> float | None:
        loss = loss_of(rate)
        return loss if math.isfinite(loss) else None

    best = best_rate(grid, steps, loss_after, start)
    if best is None:
        raise ValueError(f"every learning rate from {start:g} on failed")
    return best


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file."""
    return [json.loads(line) for line in path.read_text().splitlines() if line]
