"""Which engine does a computation: the compiled C engine where it can, else the torch engine. Nothing else decides this.

There are three computations. Each engine has a module for each of them, with the functions that the protocols below name. The C
engine takes float32 and float64 tensors on the CPU, and circuits up to a size that each of its modules states.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from qpeft.circuits.simulator.c_engine import columns as c_columns
from qpeft.circuits.simulator.c_engine import expectations as c_expectations
from qpeft.circuits.simulator.c_engine import library
from qpeft.circuits.simulator.c_engine import polynomials as c_polynomials
from qpeft.circuits.simulator.torch_engine import columns as torch_columns
from qpeft.circuits.simulator.torch_engine import expectations as torch_expectations
from qpeft.circuits.simulator.torch_engine import polynomials as torch_polynomials
from qpeft.circuits.simulator.torch_engine.compiler import SimulatedCircuit


class Expectations(Protocol):
    """Expectation values of a batch of samples. Inputs `(B, n_inputs)` and angles `(n_angles,)` in radians, of one real dtype."""

    def values(self, inputs: Tensor, angles: Tensor, compiled: SimulatedCircuit) -> Tensor:
        """Expectation values `(B, n_observables)`, without a record for autograd.

        Args:
            inputs: `(B, n_inputs)`, radians.
            angles: `(n_angles,)`, radians, of the dtype of the inputs.
            compiled: the circuit and its observables, from `compile_circuit`.
        """
        ...

    def gradients(
        self, grad: Tensor, inputs: Tensor, angles: Tensor, compiled: SimulatedCircuit, *, recording: bool = False
    ) -> list[Tensor]:
        """Gradients of `(grad * values).sum()`.

        A sample whose row of `grad` is zero adds nothing, even where its inputs are not finite.

        Args:
            grad: `(B, n_observables)`.
            inputs: `(B, n_inputs)`, radians.
            angles: `(n_angles,)`, radians, of the dtype of the inputs.
            compiled: the circuit and its observables.
            recording: autograd works where this is called; inside of a registered operator it does not.

        Returns:
            The gradients of inputs and angles.
        """
        ...

    def values_and_gradients(
        self, grad: Tensor, inputs: Tensor, angles: Tensor, compiled: SimulatedCircuit
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`values` and `gradients` of one set of arguments in one call.

        Args:
            grad: `(B, n_observables)`, of the dtype of the inputs.
            inputs: `(B, n_inputs)`, radians.
            angles: `(n_angles,)`, radians, of the dtype of the inputs.
            compiled: the circuit and its observables.

        Returns:
            Values, gradient of the inputs, gradient of the angles.
        """
        ...


class Columns(Protocol):
    """The first k columns of the unitary of a circuit without inputs, from angles `(n_angles,)` in radians."""

    def values(self, angles: Tensor, compiled: SimulatedCircuit, k: int) -> Tensor:
        """Real and imaginary parts `(2, 2^n, k)`, without a record for autograd.

        Args:
            angles: `(n_angles,)`, radians.
            compiled: the circuit, without inputs.
            k: number of columns, 1 to `2^n`.
        """
        ...

    def gradients(self, grad: Tensor, angles: Tensor, compiled: SimulatedCircuit) -> Tensor:
        """The gradient `(n_angles,)` of `(grad * values).sum()`.

        Args:
            grad: `(2, 2^n, k)`.
            angles: `(n_angles,)`, radians.
            compiled: the circuit, without inputs.
        """
        ...


class Polynomials(Protocol):
    """Trigonometric polynomials of coefficients `(*shape, K)` in variables `t (n, B)`: see torch_engine/polynomials.py."""

    def values(self, coefficients: Tensor, t: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Values `(K, B)`.

        Args:
            coefficients: `(*shape, K)`.
            t: variables `(n, B)`, radians, of the dtype of the coefficients.
            shape: n odd numbers, the basis functions of each variable.
        """
        ...

    def gradients(
        self, grad: Tensor, coefficients: Tensor, t: Tensor, shape: tuple[int, ...], *, wanted: tuple[bool, bool] = (True, True)
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of `(grad * values).sum()`.

        Args:
            grad: `(K, B)`.
            coefficients: `(*shape, K)`.
            t: variables `(n, B)`, radians, of the dtype of the coefficients.
            shape: n odd numbers, the basis functions of each variable.
            wanted: whether the gradients of coefficients and variables are wanted.

        Returns:
            The gradients of coefficients and variables; None where not wanted.
        """
        ...


def for_expectations(compiled: SimulatedCircuit, like: Tensor) -> Expectations:
    """The engine for the expectation values of a circuit.

    Args:
        compiled: the circuit and its observables.
        like: a tensor with the device and dtype of the samples.
    """
    return c_expectations if _c_engine_runs(like) and c_expectations.takes(compiled) else torch_expectations


def for_columns(compiled: SimulatedCircuit, like: Tensor) -> Columns:
    """The engine for columns of a circuit's unitary.

    Args:
        compiled: the circuit, without inputs.
        like: a tensor with the device and dtype of the angles.
    """
    return c_columns if _c_engine_runs(like) and c_columns.takes(compiled) else torch_columns


def for_polynomials(coefficients: Tensor, t: Tensor) -> Polynomials:
    """The engine for trigonometric polynomials.

    Args:
        coefficients: `(*shape, K)`.
        t: variables `(n, B)`.
    """
    takes = (
        not torch.compiler.is_compiling()
        and _c_engine_runs(t)
        and t.dtype is coefficients.dtype
        and c_polynomials.takes(coefficients)
    )
    return c_polynomials if takes else torch_polynomials


def _c_engine_runs(like: Tensor) -> bool:
    """Whether the C engine runs here on tensors of this device and dtype. `QPEFT_KERNEL=off` switches it off."""
    return like.is_cpu and like.dtype in (torch.float32, torch.float64) and library.available()
