"""A circuit as tables, the form in which the Triton kernel takes it (triton_kernel.py says what they mean).

Gates on one qubit are multiplied along its run, all shared phases of a step are one table, and so are its data phases; tables
come from the angles in plain torch, in a number of calls that does not grow with depth, and autograd takes their gradient back.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qpeft.circuits.simulator.torch_engine.blocks import Family, Name, Phases, pullback
from qpeft.circuits.simulator.torch_engine.compiler import FloatArray, Gate, Plan, Step, local_value, permutation

MAX_QUBITS = 10  # a sample's state and costate then take 16 KiB


@functools.cache
def available() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


class Tables:
    """A plan's stages on one device and dtype. Every plan of up to `MAX_QUBITS` qubits has them."""

    def __init__(self, plan: Plan, like: Tensor) -> None:
        n, circuit, device = plan.circuit.n_qubits, plan.circuit, like.device
        basis = np.arange(2**n)
        first = circuit.n_inputs
        runs: list[list[Gate]] = []
        bits: list[int] = []
        phases: list[Step] = []
        partner: list[Any] = []
        data: list[Any] = []
        rates: list[Any] = []
        shifts: list[Any] = []
        moving: list[int] = []  # permutations
        order: list[tuple[int, int]] = []  # of each stage, which list has it and where
        for step in _flat((*plan.program.prefix, *plan.program.steps)):
            if step.kind == "local":
                for q in range(n):
                    if own := step.on(q):
                        order.append((0, len(runs)))
                        runs.append(own)
                        bits.append(n - 1 - q)
                        partner.append(basis ^ (1 << (n - 1 - q)))
                        data.append(-1)
                continue
            data.append(len(rates) if step.kind == "data" else -1)
            partner.append(permutation(step.gates, n) if step.kind == "perm" else basis)
            if step.kind == "phase":
                order.append((1, len(phases)))
                phases.append(step)
            elif step.kind == "perm":
                order.append((2, len(moving)))
                moving.append(1)
            else:
                order.append((3, len(rates)))
                rate, shift = _data(step, n, circuit.n_inputs)
                rates.append(rate)
                shifts.append(shift)
        if not order:  # nothing happens: one stage that changes nothing
            order, partner, data, moving = [(2, 0)], [basis], [-1], [1]
        index = np.array(partner)

        def whole(values: object) -> Tensor:
            return torch.as_tensor(np.array(values), dtype=torch.int32, device=device).contiguous()

        readouts = plan.readouts
        weights = np.array([np.stack([r.real, r.imag], axis=-1) for r in readouts])
        self.fixed = {
            "partner": whole(index),
            "back": whole(index.argsort(axis=1)),
            "data": whole(data),
            "rates": like.new_tensor(np.array(rates or np.zeros((1, 2**n, max(1, circuit.n_inputs))))),
            "flip": whole([r.flip for r in readouts]),
            "weights": like.new_tensor(weights),
        }
        self._family = Family.of(Name(1, False, True, True), [[*run] for run in runs], first, like) if runs else None
        ones = (basis[None, :] >> np.array(bits or [0])[:, None]) & 1
        self._stay, self._move = (torch.as_tensor(place, device=device) for place in (3 * ones, 1 + ones))
        self._phases = Phases.of(phases, n, first, like) if phases else None
        still = np.zeros((len(moving) + len(rates), 2**n, 4))
        still[: len(moving), :, 2] = 1
        if shifts:
            still[len(moving) :, :, 0], still[len(moving) :, :, 1] = np.cos(shifts), np.sin(shifts)
        self._still = like.new_tensor(still)
        starts = np.cumsum([0, len(runs), len(phases), len(moving)])
        self._order = torch.as_tensor([int(starts[kind]) + at for kind, at in order], device=device)

    def __call__(self, angles: Tensor) -> Tensor:
        """`(stages, D, 4)`."""
        parts = []
        if self._family is not None:
            own = self._family.tensor(angles).reshape(-1, 4)
            entries = torch.stack([own.gather(1, self._stay), own.gather(1, self._move)], dim=-1)
            parts.append(torch.view_as_real(entries).flatten(-2))
        if self._phases is not None:
            factors = self._phases.factors(angles)
            parts.append(torch.view_as_real(torch.stack([factors, torch.zeros_like(factors)], dim=-1)).flatten(-2))
        return torch.cat([*parts, self._still]).index_select(0, self._order)


@functools.lru_cache(maxsize=512)
def tables(plan: Plan, device: torch.device, dtype: torch.dtype) -> Tables:
    """The tables of a plan; kept."""
    return Tables(plan, torch.empty(0, device=device, dtype=dtype))


def supports(plan: Plan) -> bool:
    """Whether the kernel takes this circuit and is installed."""
    return plan.circuit.n_qubits <= MAX_QUBITS and available()


def values(plan: Plan, inputs: Tensor, angles: Tensor) -> Tensor:
    """Expectation values `(B, K)` through Triton, from inputs `(B, n_inputs)`."""
    from qpeft.circuits.simulator import triton_kernel

    own = tables(plan, inputs.device, inputs.dtype)
    return triton_kernel.values(inputs.contiguous(), own(angles), own.fixed)


def gradients(plan: Plan, grad: Tensor, inputs: Tensor, angles: Tensor, *, recording: bool) -> list[Tensor]:
    """Gradients of `(grad * values).sum()` for inputs and angles; for `recording` see `blocks.pullback`."""
    from qpeft.circuits.simulator import triton_kernel

    own = tables(plan, inputs.device, inputs.dtype)
    (table,), pull = pullback(lambda a: [own(a)], angles, recording=recording)
    by_inputs, by_table = triton_kernel.gradients(grad.contiguous(), inputs.contiguous(), table.contiguous(), own.fixed)
    return [by_inputs, *pull([by_table])]


def _flat(steps: Sequence[Step]) -> list[Step]:
    return [inner for step in steps for inner in (step.steps if step.kind == "dense" else (step,))]


def _data(step: Step, n: int, n_inputs: int) -> tuple[FloatArray, FloatArray]:
    """The phase of each basis state per radian of each input `(D, n_inputs)`, and at zero `(D,)`."""
    rates, shifts = np.zeros((2**n, n_inputs)), np.zeros(2**n)
    for gate in step.gates:
        assert gate.angle is not None
        assert gate.angle.index is not None
        slope, at_zero = gate.phases()
        where = local_value(n, gate.qubits)
        rates[:, gate.angle.index] += gate.angle.scale * slope[where]
        shifts += (at_zero + slope * gate.angle.shift)[where]
    return rates, shifts
