"""The compiled kernel's library: finding it, loading it, and choosing among the instruction sets that it holds.

The library is plain C and is called through ctypes (which releases the GIL), so one build serves every version of Python and
torch. It holds the kernel once per instruction set; the best that the processor has is used. The environment variable
`QPEFT_KERNEL` chooses another (`baseline`, `avx2`, `avx512`), or none (`off`), when the kernel is first used.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

from qpeft.errors import CircuitError

LIBRARY = "_qpeft_kernel.so"  # the same name in setup.py
VERSION = 4  # of the bytecode and of the calls; the library's must agree
VARIANTS = ("baseline", "avx2", "avx512")  # the numbers of entry.c


@functools.cache
def loaded() -> ctypes.CDLL | str:
    """The loaded library, or why there is none."""
    path = Path(__file__).parent / LIBRARY
    if not path.exists():
        return "not built (no C compiler when qpeft was installed)"
    try:
        library = ctypes.CDLL(str(path))
        version = library.qpeft_version()
    except (OSError, AttributeError) as error:
        return f"cannot be loaded: {error}"
    if version != VERSION:
        return f"built for bytecode version {version}, not {VERSION}: install qpeft again"
    library.qpeft_call.argtypes = [ctypes.c_char_p]
    _share_threads(library)
    return library


def _share_threads(library: ctypes.CDLL) -> None:
    """Let the library run on the threads of this process's OpenMP, which is torch's, where it has one of GNU's interface."""
    try:
        parallel, use = ctypes.CDLL(None).GOMP_parallel, library.qpeft_use_openmp
    except (OSError, TypeError, AttributeError):
        return  # another OpenMP or none: the library starts threads of its own
    use.argtypes = [ctypes.c_void_p]
    use(ctypes.cast(parallel, ctypes.c_void_p))


def function(name: str, *arguments: type) -> Callable[..., int] | None:
    """A function of the library that takes these; None without a library, or with one that was built before it had the function."""
    found: Callable[..., int] | None = getattr(loaded(), name, None)
    if found is not None:
        found.argtypes = arguments  # type: ignore[attr-defined]
    return found


def variants() -> tuple[str, ...]:
    """The instruction sets that this build and this processor have, worst first."""
    handle = loaded()
    return () if isinstance(handle, str) else tuple(v for k, v in enumerate(VARIANTS) if handle.qpeft_supports(k))


@functools.cache
def _choice() -> tuple[str | None, str]:
    """The variant in use, or None and why."""
    wanted = os.environ.get("QPEFT_KERNEL", "")
    if wanted == "off":
        return None, "switched off by QPEFT_KERNEL"
    handle = loaded()
    if isinstance(handle, str):
        return None, handle
    have = variants()
    if wanted and wanted not in have:
        raise CircuitError("QPEFT_KERNEL names no variant of this machine", value=wanted, bound=", ".join((*have, "off")))
    return wanted or have[-1], "chosen by QPEFT_KERNEL" if wanted else "the best this processor has"


def chosen() -> int:
    """The number of the variant in use; only where `available`."""
    variant, why = _choice()
    if variant is None:
        raise CircuitError(f"no compiled kernel: {why}")
    return VARIANTS.index(variant)


def available() -> bool:
    """Whether the kernel can run here; `describe` says why not."""
    return _choice()[0] is not None


def describe() -> str:
    """One line for people: the variant in use and why, or why none is."""
    variant, why = _choice()
    return f"compiled kernel: {variant} ({why})" if variant else f"no compiled kernel: {why}"
