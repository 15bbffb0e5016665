"""Builds the simulator's optional compiled kernel where there is a C compiler; everything else is in pyproject.toml.

The kernel is a plain C library that knows neither Python nor torch (it is loaded through ctypes), so a wheel that holds it serves
every version of Python 3 on its platform. Its hot loops are compiled once per instruction set and chosen at run time. Without a
compiler the package installs all the same and torch does the work.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNEL = "src/qpeft/circuits/simulator/c_engine"
LIBRARY = "_qpeft_kernel.so"  # the same name in library.py
X86 = platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32
VARIANTS = {"baseline": []}
if X86:
    VARIANTS |= {"avx2": ["-mavx2", "-mfma"], "avx512": ["-mavx512f", "-mfma"]}
SHARED = ("entry", "threads", "polynomial", "columns", "contraction", "between_maps")  # by all instruction sets
FLAGS = [
    "-O3",
    "-g0",
    "-std=gnu11",
    "-fPIC",
    "-Wall",
    "-Wextra",
    "-fno-tree-vectorize",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
]


class BuildKernel(build_ext):
    """Compiles `lanes.c` once per variant, and links one library without the marks of a Python version."""

    def build_extension(self, ext: Extension) -> None:
        objects, common = [], [*FLAGS, *(["-DQPEFT_X86"] if X86 else [])]
        for source, flags, name in (
            *((f"{KERNEL}/{name}.c", [], name) for name in SHARED),
            *((f"{KERNEL}/lanes.c", [f"-DVARIANT={name}", *flags], name) for name, flags in VARIANTS.items()),
        ):
            objects += self.compiler.compile([source], str(Path(self.build_temp) / name), extra_postargs=[*common, *flags])
        path = Path(self.get_ext_fullpath(ext.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, str(path), libraries=["m"], extra_postargs=["-pthread"])

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_name(LIBRARY))


class PlatformWheel(bdist_wheel):
    """One wheel for every Python 3: `py3-none-<platform>` with the kernel, `py3-none-any` without."""

    def get_tag(self) -> tuple[str, str, str]:
        built = any(Path(self.bdist_dir or ".").rglob(LIBRARY))
        return "py3", "none", super().get_tag()[2] if built else "any"


sources = sorted(str(p) for p in Path(KERNEL).glob("*.c"))
headers = sorted(str(p) for p in Path(KERNEL).glob("*.[hi]*"))
setup(
    ext_modules=[Extension("qpeft.circuits.simulator.c_engine._qpeft_kernel", sources, depends=headers, optional=True)],
    cmdclass={"build_ext": BuildKernel, "bdist_wheel": PlatformWheel},
)
