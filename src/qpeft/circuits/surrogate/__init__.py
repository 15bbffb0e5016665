"""Surrogates: classical functions that stand for a circuit after it ran at a few inputs."""

from typing import Literal

SurrogateKind = Literal["auto", "grid", "sparse", "tensor-train"]
"""What `choice.make_surrogate` makes: the exact Fourier grid, a sparse series, a tensor train, or the smaller of the first two."""
