"""Stored numbers give what the surrogate they come from gives, and the smallest form that is good enough is offered."""

from __future__ import annotations

import math

import pytest
import torch

from qpeft.circuits import ansatz
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.circuits.surrogate.base import noise_has_won
from qpeft.circuits.surrogate.choice import make_surrogate
from qpeft.circuits.surrogate.regression import RegressionSurrogate
from qpeft.circuits.surrogate.stored import StoredForm, StoredLayout, stored_forms
from qpeft.errors import CircuitError


@pytest.mark.parametrize("kind", ["grid", "sparse", "regression"])
def test_stored_numbers_are_the_surrogate(kind: str) -> None:
    circuit = ansatz.qtha(4, 1)
    generator = torch.Generator().manual_seed(0)
    angles = torch.rand(circuit.n_angles, generator=generator, dtype=torch.float64) * 6
    near = torch.rand(900, 4, generator=generator, dtype=torch.float64)
    if kind == "regression":
        surrogate: object = RegressionSurrogate.of(circuit, inputs=near, points=200, shots=None)
    else:
        surrogate = make_surrogate(circuit, kind=kind, shots=None)  # type: ignore[arg-type]
    run = Simulator().compile(circuit)
    values = run(torch.as_tensor(surrogate.points()), angles)  # type: ignore[attr-defined]
    found = stored_forms(surrogate, values, circuit, None, error=0.05)  # type: ignore[arg-type]
    own = found[0]
    assert own.form.kind == kind
    layout = StoredLayout(circuit, None, own.form)
    assert {name: tuple(tensor.shape) for name, tensor in own.tensors.items()} == layout.shapes
    told = layout.evaluate(own.tensors, near)
    torch.testing.assert_close(told, surrogate.evaluate(own.tensors["coefficients"], near))  # type: ignore[attr-defined]
    assert (told - run(near, angles)).square().mean().sqrt() < 0.02
    for other in found[1:]:
        assert other.numbers < own.numbers
        assert other.error <= 0.05


def test_a_tensor_train_is_offered_where_it_is_smaller() -> None:
    """A chain of neighbours with one upload: every output depends on all inputs before it, and the ranks stay small."""
    from qpeft import Angle, Circuit, Observable, Op

    n = 7
    ops = [Op("ry", (q,), Angle(q)) for q in range(n)]
    for q in range(n - 1):
        ops += [Op("cx", (q, q + 1)), Op("ry", (q + 1,), Angle(n + q))]
    circuit, observables = Circuit(n, tuple(ops), n, 2 * n - 1), [Observable.z(n - 1)]
    angles = torch.linspace(0.3, 1.2, n - 1, dtype=torch.float64)
    surrogate = make_surrogate(circuit, observables, kind="sparse", shots=None, error=0.05)
    run = Simulator().compile(circuit, observables)
    values = run(torch.as_tensor(surrogate.points()), angles)
    found = stored_forms(surrogate, values, circuit, observables, error=0.05)
    assert [one.form.kind for one in found] == ["sparse", "tensor-train"]
    train = found[1]
    assert train.numbers < found[0].numbers / 10
    u = torch.rand(500, n, dtype=torch.float64) * 2 * math.pi
    error = (StoredLayout(circuit, observables, train.form).evaluate(train.tensors, u) - run(u, angles)).square().mean().sqrt()
    assert error <= 0.06


def test_forms_are_read_from_json() -> None:
    assert StoredForm.read(None) == StoredForm("grid")
    assert StoredForm.read(StoredForm("regression", 20).to_dict()) == StoredForm("regression", 20)
    with pytest.raises(CircuitError, match="not the form of a stored surrogate"):
        StoredForm.read({"kind": "spline"})


def test_lost_signals_are_told() -> None:
    assert noise_has_won(0.3, 0.4, 1000) == ""
    assert "hardly" not in noise_has_won(0.0, 0.0, 1000)  # a circuit without dependence has lost nothing
    assert "noise has removed the circuit's signal" in noise_has_won(0.01, 0.4, 1000)
    assert "90% of the circuit's signal" in noise_has_won(0.05, 0.5, None)
