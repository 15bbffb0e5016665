"""Operating systems: which parts of qpeft run where, and the error of a part that does not run here."""

from __future__ import annotations

import sys

from qpeft.errors import UnsupportedPlatformError

# what this project ran itself is "tested"; docs/troubleshooting.md and the README have the same table
SUPPORT = {
    "linux": "everything is tested on Linux x86-64; on arm64 the compiled simulator was tested under emulation",
    "darwin": "not tested on macOS. Expected to work: everything. GPUs (MPS) were never tried",
    "win32": "not tested on Windows. Expected to work: adapters, training, circuits in PyTorch, clients of the task service. "
    "Not available: the compiled simulator, `qpeft serve` and `qpeft worker`",
}


def support(platform: str = sys.platform) -> str:
    """One or two sentences: what works on an operating system, by its `sys.platform`."""
    return SUPPORT.get(platform, f"never tried on {platform}")


def require_posix(part: str, platform: str = sys.platform) -> None:
    """Check that a part that uses POSIX file locks, limits or process groups can run.

    Args:
        part: name of the part, for the message.
        platform: `sys.platform`.

    Raises:
        UnsupportedPlatformError: on Windows.
    """
    if platform == "win32":
        raise UnsupportedPlatformError(
            f"{part} does not run on Windows: it needs POSIX (fcntl, resource)", value=platform, hint="use Linux, macOS or WSL 2"
        )
