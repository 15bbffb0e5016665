"""The environment of a run for its record: package versions, machine, memory."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import logging
import os
import platform
import socket
import sys
import urllib.parse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGES = ("qpeft", "torch", "transformers", "peft", "accelerate", "datasets", "numpy")


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
    import psutil
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


def bfloat16_instructions() -> str:
    """A processor's instructions for bfloat16: "none", "slow" or "fast".

    Intel's have matrix units (AMX); where a virtual machine hides them, what is left (AVX-512) multiplies bfloat16 at half the rate
    of float32. AMD's are taken for fast.
    """
    import torch

    have = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if have.get("architecture") == "x86_64":
        if not (have.get("avx512_bf16") or have.get("amx_bf16")):
            return "none"
        return "slow" if "Intel" in _processor() and not have.get("amx_bf16") else "fast"
    return "none" if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX", "AVX2") else "fast"


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

    return _peak_resident_bytes() + (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)


def _peak_resident_bytes() -> int:
    """From `/proc` on Linux, from psutil on Windows, from `getrusage` elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import psutil

    memory = psutil.Process().memory_info()
    if (peak := getattr(memory, "peak_wset", None)) is not None:
        return int(peak)
    try:
        import resource
    except ImportError:
        return int(memory.rss)  # a system that keeps no peak: what is resident now
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextlib.contextmanager
def own_mixed_precision() -> Iterator[None]:
    """What the launcher says of mixed precision is restored: transformers 4 leaves a run's in the environment, for the next one."""
    name = "ACCELERATE_MIXED_PRECISION"
    before = os.environ.get(name)
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def use_cache_without_network() -> None:
    """Let Hugging Face's libraries use their cache alone where the hub's name does not resolve: they would retry for a minute."""
    from huggingface_hub import constants

    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
    if constants.HF_HUB_OFFLINE or host is None:
        return
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        constants.HF_HUB_OFFLINE = True
        if "datasets.config" in sys.modules:  # which copied it
            datasets: Any = sys.modules["datasets.config"]
            datasets.HF_HUB_OFFLINE = datasets.HF_DATASETS_OFFLINE = True


def quiet_libraries() -> None:
    """Keep progress bars and notes of other libraries off the terminal; errors stay. Call it before they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # the bars of transformers ask for it too
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    for name in ("bitsandbytes", "accelerate", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)  # of PEFT
