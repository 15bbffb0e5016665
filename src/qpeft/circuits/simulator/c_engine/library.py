"""The compiled kernel: finding and loading its library, and calling it on CPU tensors.

The library is plain C and is called through ctypes (which releases the GIL), so one build serves every version of Python and
torch. It holds the kernel once per instruction set; the best that the processor has is used. The environment variable
`QPEFT_KERNEL` chooses another (`baseline`, `avx2`, `avx512`), or none (`off`), when the kernel is first used.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qpeft.circuits.simulator.c_engine.compiler import Program, compile_programs
from qpeft.circuits.simulator.c_engine.stages import UnsupportedError
from qpeft.circuits.simulator.torch_engine.compiler import Plan, plan_from_key
from qpeft.errors import CircuitError

LIBRARY = "_qpeft_kernel.so"  # the same name in setup.py
VERSION = 2  # of the program format and of the call; the library's must agree
_PACKED = struct.Struct("12q").pack  # the arguments of qpeft_run: one call with them packed costs half of one with twelve
VARIANTS = ("baseline", "avx2", "avx512")  # the numbers of entry.c


@functools.cache
def _library() -> ctypes.CDLL | str:
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
        return f"built for program format {version}, not {VERSION}: install qpeft again"
    library.qpeft_call.argtypes = [ctypes.c_char_p]
    return library


def function(name: str, *arguments: type) -> Callable[..., int] | None:
    """A function of the library that takes these; None without a library, or with one that was built before it had the function."""
    found: Callable[..., int] | None = getattr(_library(), name, None)
    if found is not None:
        found.argtypes = arguments  # type: ignore[attr-defined]
    return found


def variants() -> tuple[str, ...]:
    """The instruction sets that this build and this processor have, worst first."""
    library = _library()
    return () if isinstance(library, str) else tuple(v for k, v in enumerate(VARIANTS) if library.qpeft_supports(k))


@functools.cache
def _choice() -> tuple[str | None, str]:
    """The variant in use, or None and why."""
    wanted = os.environ.get("QPEFT_KERNEL", "")
    if wanted == "off":
        return None, "switched off by QPEFT_KERNEL"
    library = _library()
    if isinstance(library, str):
        return None, library
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


@functools.lru_cache(maxsize=512)
def _programs(key: str) -> tuple[Program, ...] | str:
    """A plan's programs, or why there are none."""
    plan = plan_from_key(key)
    try:
        return compile_programs(plan.circuit, plan.observables)
    except UnsupportedError as error:
        return str(error)


def supports(plan: Plan) -> bool:
    """Whether the kernel can run here and takes this circuit with these observables."""
    return available() and not isinstance(_programs(plan.key), str)


@dataclass(frozen=True)
class _Call:
    """A program ready to run: the C function, the variant's number, and the addresses of the arrays that `program` holds."""

    program: Program
    function: Callable[[bytes], int]
    variant: int
    code: int
    numbers: int

    def __call__(self, inputs: Tensor, angles: Tensor, grad: Tensor | None, out: Tensor, grad_angles: Tensor | None) -> None:
        arguments = _PACKED(
            self.variant,
            inputs.dtype is torch.float64,
            grad is not None,
            self.code,
            self.numbers,
            inputs.data_ptr(),
            angles.data_ptr(),
            0 if grad is None else grad.data_ptr(),
            inputs.shape[0],
            out.data_ptr(),
            0 if grad_angles is None else grad_angles.data_ptr(),
            torch.get_num_threads(),
        )
        if self.function(arguments):
            raise MemoryError("the compiled kernel found no memory for its buffers")


def _bound(program: Program, variant: int) -> _Call:
    """A program bound to the library's entry, to run with the variant of that number."""
    library = _library()
    assert not isinstance(library, str)  # else there is no variant
    return _Call(program, library.qpeft_call, variant, program.code.ctypes.data, program.numbers.ctypes.data)


@functools.lru_cache(maxsize=512)
def _calls(key: str) -> tuple[_Call, ...]:
    programs = _programs(key)
    if isinstance(programs, str):
        raise CircuitError(f"the compiled kernel does not take this circuit: {programs}")
    number = chosen()
    return tuple(_bound(program, number) for program in programs)


def expectations(inputs: Tensor, angles: Tensor, key: str) -> Tensor:
    """Expectation values `(B, n_observables)` from `inputs (B, n_inputs)` and `angles (n_angles,)`, both float32 or both float64,
    on the CPU.

    `key` is a plan's that `supports` accepts. Not differentiable by itself: `backward` is its adjoint.
    """
    inputs, angles = inputs.contiguous(), angles.contiguous()
    first, *others = _calls(key)
    total = inputs.new_empty(inputs.shape[0], first.program.n_observables)
    first(inputs, angles, None, total, None)
    for call in others:
        part = torch.empty_like(total)
        call(inputs, angles, None, part, None)
        total += part
    return total


def backward(grad: Tensor, inputs: Tensor, angles: Tensor, key: str) -> list[Tensor]:
    """Gradients `[(B, n_inputs), (n_angles,)]` of `(grad * expectations(inputs, angles, key)).sum()`."""
    inputs, angles = inputs.contiguous(), angles.contiguous()
    grad = (grad if grad.dtype is inputs.dtype else grad.to(inputs.dtype)).contiguous()
    first, *others = _calls(key)
    totals = [torch.empty_like(inputs), torch.empty_like(angles)]
    first(inputs, angles, grad, *totals)
    for call in others:
        parts = [torch.empty_like(inputs), torch.empty_like(angles)]
        call(inputs, angles, grad, *parts)
        for total, part in zip(totals, parts, strict=True):
            total += part
    return totals
