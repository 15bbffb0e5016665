"""Executor that runs another executor at a surrogate's points only, for any number of samples.

The gradient for inputs costs nothing more. That for angles goes through the points alone: the inner executor gets the gradient of
the loss for its values at the points, a batch whose size never changes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qpeft.circuits.executor import Executor, Expectations, as_rows, check_arguments, working_dtype
from qpeft.circuits.ir import Circuit, Observable
from qpeft.circuits.simulator import transforms
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.circuits.surrogate.base import Surrogate, SurrogateMaker, shot_variance
from qpeft.circuits.surrogate.grid import FourierGrid
from qpeft.errors import CircuitError

SIMULATED_QUBITS = 16  # circuits of more are not simulated for comparison


class SurrogateExecutor:
    """An Executor that runs the inner one at the points of a surrogate only.

    Its functions are differentiable in the inputs always, and in the angles where the inner executor's are. Values at the points
    are kept for as long as the angles do not change: modules that share a circuit, and all batches of a step, run the points once.

    A backward pass asks the inner executor for the gradient of those values. With `deferred=True` it only adds up what the
    loss has to say about them, over modules and batches alike, and `flush()`, called once before the optimiser's step, runs the
    inner gradient and adds it to `angles.grad`: circuits per step then do not grow with gradient accumulation either.
    """

    has_state = False

    def __init__(self, inner: Executor, *, make: SurrogateMaker = FourierGrid.of, deferred: bool = False) -> None:
        self.inner, self.make, self.deferred = inner, make, deferred
        self._functions: list[weakref.ref[SurrogateFunction]] = []  # in order: seeded backends then repeat

    def compile(self, circuit: Circuit, observables: Sequence[Observable] | None = None) -> Expectations:
        """Make the circuit's surrogate and compile the circuit for the inner executor; nothing runs before the first call.

        Args:
            circuit: with `n_inputs` inputs and `n_angles` angles.
            observables: default `<Z_k>` for every qubit k.

        Returns:
            A function of `inputs (..., n_inputs)` and `angles (n_angles,)`, radians, that returns expectation values
            `(..., n_observables)`.

        Raises:
            CircuitError: the circuit has no surrogate of this kind.
        """
        function = SurrogateFunction(
            circuit, self.make(circuit, observables), self.inner.compile(circuit, observables), self, observables
        )
        self._functions.append(weakref.ref(function))
        return function

    def forget(self) -> None:
        """Run all points anew from here on, changed angles or not: a new step, or a new calibration."""
        for reference in self._functions:
            if (function := reference()) is not None:
                function.forget()

    def signals(self, shots: int | None) -> list[tuple[float, float]]:
        """For each function that ran, how much its values vary over the points, and how much those of the noiseless circuit do.

        Root mean squares; the part of the shots is taken off.
        """
        found = []
        for reference in self._functions:
            if (function := reference()) is not None and (pair := function.signal(shots)) is not None:
                found.append(pair)
        return found

    def flush(self) -> None:
        """Run the gradients that wait and add them to the angles'."""
        for reference in self._functions:
            if (function := reference()) is not None:
                function.flush()


@dataclass
class _Measured:
    """Measurement at one set of angles: the angles as given, a leaf that stands for them, values and coefficients as
    functions of the leaf, `plain` coefficients without their record. `waiting` is the gradient of the coefficients that has not
    been passed on."""

    angles: Tensor
    leaf: Tensor
    values: Tensor
    coefficients: Tensor
    plain: Tensor
    waiting: Tensor | None = None

    def gradient(self, grad: Tensor) -> Tensor:
        # the record stays: another batch of the step may come back to it
        return torch.autograd.grad(self.coefficients, self.leaf, grad.to(self.coefficients), retain_graph=True)[0]

    def defer(self, grad: Tensor) -> None:
        self.waiting = grad if self.waiting is None else self.waiting.add_(grad)  # it is the backward pass's own and nobody else's


class SurrogateFunction:
    """`(inputs (..., n_inputs), angles) -> (..., K)` through a surrogate; what SurrogateExecutor compiles to."""

    def __init__(
        self,
        circuit: Circuit,
        surrogate: Surrogate,
        run: Expectations,
        executor: SurrogateExecutor,
        observables: Sequence[Observable] | None = None,
    ) -> None:
        self.circuit, self.surrogate, self._run, self._executor = circuit, surrogate, run, executor
        self._observables = observables
        self._known: tuple[tuple[Any, ...], _Measured] | None = None

    def __deepcopy__(self, memo: object) -> SurrogateFunction:
        return self

    def values(self, angles: Tensor) -> Tensor:
        """Values at the points `(P, K)`, without a record; run if the angles have changed since the last call."""
        with torch.no_grad():
            return self._found(angles, recorded=False).values.detach()

    def coefficients(self, angles: Tensor) -> Tensor:
        """Coefficients as the surrogate lays them out, without a record; run if the angles have changed since the last call."""
        with torch.no_grad():
            return self._found(angles, recorded=False).plain

    def signal(self, shots: int | None) -> tuple[float, float] | None:
        """See `SurrogateExecutor.signals`; None before anything ran, for one point, and for a circuit too large to simulate."""
        if self._known is None or self.surrogate.size < 2 or self.circuit.n_qubits > SIMULATED_QUBITS:
            return None
        found = self._known[1]
        values, points = found.values.detach().double(), torch.as_tensor(self.surrogate.points())
        with torch.no_grad():
            exact = Simulator().compile(self.circuit, self._observables)(points, found.angles.detach().double().cpu())
        noise = 0.0 if shots is None else float(shot_variance(values, shots).mean())
        return max(float(values.var(0).mean()) - noise, 0.0) ** 0.5, float(exact.var(0).mean()) ** 0.5

    def _found(self, angles: Tensor, recorded: bool) -> _Measured:
        key = (angles.data_ptr(), angles._version, angles.dtype, angles.device)
        if self._known is None or self._known[0] != key or (recorded and not self._known[1].values.requires_grad):
            self.forget()
            if recorded and self._executor.deferred and not angles.is_leaf:
                raise CircuitError("a deferred gradient needs angles that are a leaf", hint="deferred=False")
            points = torch.as_tensor(self.surrogate.points(), dtype=angles.dtype, device=angles.device)
            leaf = angles.detach().clone().requires_grad_(recorded)
            values = self._run(points, leaf)
            coefficients = self.surrogate.coefficients(values)
            self._known = (key, _Measured(angles, leaf, values, coefficients, coefficients.detach().contiguous()))
        return self._known[1]

    def forget(self) -> None:
        """See `SurrogateExecutor.forget`; CircuitError where that would lose a gradient."""
        if self._known is not None and self._known[1].waiting is not None:
            raise CircuitError("angles changed while gradients waited for them", hint="flush() before the optimiser's step")
        self._known = None
        self.surrogate.forget()

    def flush(self) -> None:
        """See `SurrogateExecutor.flush`."""
        if self._known is None or self._known[1].waiting is None:
            return
        found = self._known[1]
        assert found.waiting is not None
        gradient = found.gradient(found.waiting).to(found.angles.dtype)
        found.angles.grad = gradient if found.angles.grad is None else found.angles.grad + gradient
        found.waiting = None

    def __call__(self, inputs: Tensor, angles: Tensor) -> Tensor:
        if torch.is_autocast_enabled(inputs.device.type):
            with torch.autocast(inputs.device.type, enabled=False):
                return self(inputs, angles)
        check_arguments(self.circuit, inputs, angles)
        transforms.refuse("a surrogate")
        dtype = working_dtype(inputs, angles)
        recorded = torch.is_grad_enabled() and angles.requires_grad
        found = self._found(angles, recorded)
        coefficients = found.plain.to(inputs.device, dtype)
        if recorded:
            pull = found.defer if self._executor.deferred else found.gradient
            coefficients = _Measurement.apply(coefficients, angles, pull)  # type: ignore[no-untyped-call]
        out = self.surrogate.evaluate(coefficients, as_rows(inputs).to(dtype))
        return out if inputs.dim() == 2 else out.reshape(*inputs.shape[:-1], out.shape[-1])


class _Measurement(torch.autograd.Function):
    """Coefficients that were measured at some angles, as a function of them.

    `pull` takes the gradient of the coefficients and returns that of the angles, or None if it keeps it.
    """

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, angles: Tensor, pull: Callable[[Tensor], Tensor | None]) -> Tensor:
        ctx.pull = pull
        return coefficients.view_as(coefficients)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, None]:
        return None, ctx.pull(grad), None
