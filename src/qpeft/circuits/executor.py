"""The interface between adapters and the engines and backends that run circuits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from qpeft.circuits.ir import Circuit, Observable
from qpeft.errors import CircuitError

_REAL = (torch.float32, torch.float64)

Expectations: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class Executor(Protocol):
    """Runs circuits. Adapters know these members and nothing else of a simulator, an emulator or a chip."""

    @property
    def has_state(self) -> bool:
        """Whether circuits run on an exact state vector, so that a layer may read amplitudes (circuits/simulator)."""
        ...

    def compile(self, circuit: Circuit, observables: Sequence[Observable] | None = None) -> Expectations:
        """Prepare a circuit once, to be run many times.

        Args:
            circuit: with `n_inputs` inputs and `n_angles` angles.
            observables: default `<Z_k>` for every qubit k.

        Returns:
            A function of `inputs (..., n_inputs)`, one row per sample, and `angles (n_angles,)`, shared by all samples, both
            in radians, that returns expectation values `(..., n_observables)`, differentiable in both unless the executor's
            own docstring excludes one.
        """
        ...


def check_tensor(name: str, tensor: Tensor) -> None:
    """Check that an argument is a dense tensor of real numbers.

    Args:
        name: name of the argument, for the message.
        tensor: the argument.

    Raises:
        CircuitError: it is not.
    """
    if not isinstance(tensor, Tensor):
        raise CircuitError(f"{name} must be a torch tensor", value=type(tensor).__name__, hint=f"torch.as_tensor({name})")
    if tensor.is_complex():
        raise CircuitError(f"{name} must be real", value=tensor.dtype, hint=f"{name}.real, if the imaginary part means nothing")
    if tensor.is_nested:
        raise CircuitError(f"{name} must be one tensor", value="a nested tensor", hint=f"{name}.to_padded_tensor(0.0)")
    if tensor.layout is not torch.strided:
        raise CircuitError(f"{name} must be dense", value=tensor.layout, hint=f"{name}.to_dense()")


def check_arguments(circuit: Circuit, inputs: Tensor, angles: Tensor) -> None:
    """Check the arguments of a circuit.

    Args:
        circuit: the circuit.
        inputs: `(..., n_inputs)`.
        angles: `(n_angles,)`.

    Raises:
        CircuitError: another shape, or no dense tensor of real numbers.
    """
    real = getattr(inputs, "dtype", None) in _REAL and getattr(angles, "dtype", None) in _REAL
    if not real or inputs.is_nested or angles.is_nested:
        check_tensor("inputs", inputs)
        check_tensor("angles", angles)
    if inputs.dim() < 1 or inputs.shape[-1] != circuit.n_inputs:
        raise CircuitError("inputs have the wrong shape", value=tuple(inputs.shape), bound=f"(..., {circuit.n_inputs})")
    if angles.shape != (circuit.n_angles,):
        raise CircuitError("angles have the wrong shape", value=tuple(angles.shape), bound=f"({circuit.n_angles},)")


def working_dtype(inputs: Tensor, angles: Tensor) -> torch.dtype:
    """Dtype of a circuit's computation: float64 if an argument is float64, else float32, also under autocast.

    Args:
        inputs: inputs of a circuit, of any real dtype.
        angles: its angles, of any real dtype.
    """
    return torch.float64 if torch.float64 in (inputs.dtype, angles.dtype) else torch.float32


def as_rows(inputs: Tensor) -> Tensor:
    """Inputs `(..., n_inputs)` as `(B, n_inputs)`."""
    return inputs if inputs.dim() == 2 else inputs.reshape(inputs.shape[:-1].numel(), inputs.shape[-1])
