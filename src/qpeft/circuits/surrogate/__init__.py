"""Surrogates: classical functions that stand for a circuit after it ran at a few inputs."""

from typing import Literal

SurrogateKind = Literal["auto", "grid", "sparse", "tensor-train"]
"""Kind of surrogate: exact Fourier grid, sparse series, tensor train, or "auto", the smaller of the first two."""
