"""What a record says of the place it was made in: package versions, machine, memory."""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib.metadata
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("qpeft", "torch", "transformers", "peft", "accelerate", "datasets", "numpy")
WORTH_WIDENING = 1.3  # widening a weight as it is used costs a sixth of a product with 256 rows


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def machine() -> dict[str, Any]:
    """Processor, cores, memory, threads and accelerators; no host name."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            names = [line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def has_bfloat16() -> bool:
    """True on a processor with instructions for bfloat16."""
    import torch

    have = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if have.get("architecture") == "x86_64":
        return bool(have.get("avx512_bf16") or have.get("amx_bf16"))
    return torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "NO AVX", "AVX2")


@functools.cache
def slow_in_bfloat16(device_type: str) -> bool:
    """True on a processor whose bfloat16 products are slower than float32 ones with the weights widened first.

    So it is without bfloat16 instructions, by several times. With them it is measured, once: some processors have matrix units,
    others run the instructions at half the rate of float32.
    """
    if device_type != "cpu":
        return False
    return not has_bfloat16() or bfloat16_over_float32() > WORTH_WIDENING


def bfloat16_over_float32(rows: int = 256, size: int = 1024) -> float:
    """Time of a product `(rows, size) (size, size)` in bfloat16 over its time in float32, the best of five each, in turn."""
    import torch

    times: dict[torch.dtype, list[float]] = {}
    with torch.inference_mode():
        pairs = {
            dtype: (torch.ones(rows, size, dtype=dtype), torch.ones(size, size, dtype=dtype))
            for dtype in (torch.bfloat16, torch.float32)
        }
        for _ in range(6):
            for dtype, (x, weight) in pairs.items():
                start = time.perf_counter()
                torch.nn.functional.linear(x, weight)
                times.setdefault(dtype, []).append(time.perf_counter() - start)
    best = {dtype: min(found[1:]) for dtype, found in times.items()}
    return best[torch.bfloat16] / best[torch.float32]


def forget_peak_memory() -> None:
    """Measure peak memory from here on, where the system can: Linux forgets a peak when `clear_refs` is told 5."""
    import torch

    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes() -> int:
    """Largest resident set of this process since the peak was forgotten, plus, with a GPU, the most memory torch held on it."""
    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return resident + (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)
