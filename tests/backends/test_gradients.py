"""Shift rules read off the gate table, and gradients against autograd: equal in the exact limit, unbiased with shots."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
import torch

from qpeft.backends import executor as executor_module
from qpeft.backends.executor import BackendExecutor
from qpeft.backends.gradients import shift_rule
from qpeft.backends.simulator import SimulatorBackend
from qpeft.backends.spending.budget import Budget, Ledger
from qpeft.circuits import ansatz
from qpeft.circuits.ir import GATES, Angle, Circuit, Observable, Op, commuting_groups
from qpeft.circuits.simulator.simulate import expectations
from qpeft.errors import BackendError, BudgetError
from tests.reference import expectation

DOUBLE = torch.float64
ROTATIONS = [name for name, spec in GATES.items() if spec.parametrised]

# Every parametrised gate, scaled and shifted angles, one angle in several gates, an input in several gates, a constant.
MIXED = Circuit(
    3,
    (
        Op("ry", (0,), Angle(0)),
        Op("rx", (1,), Angle(1, -1.5, 0.2)),
        Op("h", (2,)),
        *(Op(gate, (0, 2)[: GATES[gate].n_qubits], Angle(2 + k % 5, 0.5 + k / 7, 0.1)) for k, gate in enumerate(ROTATIONS)),
        Op("crx", (2, 1), Angle(0, 2.0)),
        Op("rzz", (1, 2), Angle(3)),
        Op("cry", (1, 0), Angle(shift=0.4)),
        Op("ry", (1,), Angle(3, -1.0)),
    ),
    n_inputs=2,
    n_params=8,
)  # fmt: skip
OBSERVABLES = [Observable.pauli("ZIX"), Observable.pauli("IYI", 0.5), Observable(((0.3, ()), (1.0, ((0, "X"), (1, "Y")))))]


def test_shift_rules() -> None:
    assert GATES["rx"].frequencies == GATES["p"].frequencies == GATES["cp"].frequencies == GATES["rzz"].frequencies == (1.0,)
    assert GATES["crz"].frequencies == GATES["crx"].frequencies == (0.5, 1.0)
    assert np.allclose(shift_rule("ry"), [(math.pi / 2, 0.5)])
    root = math.sqrt(2)
    assert np.allclose(shift_rule("crz"), [(math.pi / 2, (root + 1) / (4 * root)), (3 * math.pi / 2, (1 - root) / (4 * root))])


@pytest.mark.parametrize("gate", ROTATIONS)
def test_shift_rule_against_a_derivative(gate: str) -> None:
    n = GATES[gate].n_qubits
    around = (*(Op("ry", (q,), Angle(shift=0.7 + q)) for q in range(2)), Op("rx", (0,), Angle(shift=0.3)))
    after = (Op("rx", (0,), Angle(shift=0.4)), Op("ry", (1,), Angle(shift=1.4)), Op("cx", (0, 1)))
    circuit = Circuit(2, (*around, Op(gate, tuple(range(n)), Angle(0)), *after), 0, 1)
    for t, word in itertools.product((0.3, 2.0), ("ZI", "XZ", "YY")):

        def f(x: float, word: str = word) -> float:
            return expectation(circuit, [x], Observable.pauli(word))

        found = sum(c * (f(t + s) - f(t - s)) for s, c in shift_rule(gate))
        angle = torch.tensor([t], dtype=DOUBLE, requires_grad=True)
        expectations(circuit, torch.empty(1, 0, dtype=DOUBLE), angle, [Observable.pauli(word)]).sum().backward()
        assert angle.grad is not None
        assert found == pytest.approx(angle.grad.item(), abs=1e-12)


def gradients(
    executor: BackendExecutor, circuit: Circuit, observables: list[Observable] | None, rows: int = 3
) -> list[torch.Tensor]:
    """Values, input and angle gradients of a random cotangent, from the executor and from autograd on the simulator."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(rows, circuit.n_inputs, dtype=DOUBLE, generator=generator)
    angles = torch.randn(circuit.n_angles, dtype=DOUBLE, generator=generator)
    out = []
    run = executor.compile(circuit, observables)
    for function in (run, lambda u, a: expectations(circuit, u, a, observables)):
        u, a = inputs.clone().requires_grad_(), angles.clone().requires_grad_()
        values = function(u, a)
        cotangent = torch.randn(values.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(6))
        (values * cotangent).sum().backward()
        out += [values.detach(), u.grad, a.grad]
    return out


@pytest.mark.parametrize("gradient", ["parameter-shift", "adjoint"])
@pytest.mark.parametrize("circuit", [MIXED, ansatz.qtha(3, 2), ansatz.hardware_efficient(2, 1)], ids=["mixed", "qtha", "hea"])
def test_exact_gradients_equal_autograd(circuit: Circuit, gradient: str) -> None:
    observables = OBSERVABLES if circuit is MIXED else None
    ours = gradients(BackendExecutor(SimulatorBackend(), gradient=gradient), circuit, observables)
    for mine, theirs in zip(ours[:3], ours[3:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_spsa_is_the_gradient_on_average_over_all_directions() -> None:
    """Over every sign pattern the cross terms cancel; what is left is a central difference, off by its step squared."""
    from qpeft.backends.gradients import Unrolled, spsa

    circuit, rows = ansatz.qtha(2, 1), 2
    unrolled, prepared = Unrolled.of(circuit), SimulatorBackend()
    compiled = prepared.compile(unrolled.circuit)
    random = np.random.default_rng(0)
    inputs, angles = random.normal(size=(rows, 2)), random.normal(size=8)
    params, grad = np.hstack([inputs, np.tile(angles, (rows, 1))]), random.normal(size=(rows, 2))
    shared = np.arange(10) >= 2
    patterns = np.array(list(itertools.product((-1.0, 1.0), repeat=12)))
    signs = [np.vstack([p[:10], np.concatenate([p[10:], p[2:10]])]) for p in patterns]
    found = spsa(
        lambda x: compiled.run(x, None).expectations(), unrolled, params, grad, np.ones(10, bool), shared, signs, step=1e-5
    )
    u, a = torch.tensor(inputs, requires_grad=True), torch.tensor(angles, requires_grad=True)
    (expectations(circuit, u, a) * torch.tensor(grad)).sum().backward()
    np.testing.assert_allclose(found[:, :2], u.grad, atol=1e-8)
    np.testing.assert_allclose(found[:, 2:].sum(0), a.grad, atol=1e-8)


@pytest.mark.parametrize("gradient", ["parameter-shift", "spsa"])
def test_gradients_with_shots_are_unbiased(gradient: str) -> None:
    """The mean error lies within 5 of its standard errors of zero (probability of more: 6e-7 for each of 10 numbers).

    The error is against the exact gradient; for SPSA against SPSA with exact values in the same directions, whose own mean is the
    subject of the test above: shots add no bias.
    """
    circuit, errors = ansatz.qtha(2, 1), []
    for seed in range(60):
        found = gradients(BackendExecutor(SimulatorBackend(), 50, gradient=gradient, seed=seed), circuit, None, rows=1)
        exact = gradients(BackendExecutor(SimulatorBackend(), gradient=gradient, seed=seed), circuit, None, rows=1)
        errors.append(torch.cat([(a - b).flatten() for a, b in zip(found[1:3], exact[1:3], strict=True)]))
    spread = torch.stack(errors).std(0) / math.sqrt(len(errors))
    assert (spread > 0).all()
    assert (torch.stack(errors).mean(0).abs() < 5 * spread).all()


def test_shot_variance_of_a_gradient_is_the_derived_one() -> None:
    """For <Z> of RY(t)|0>: estimate (z+ - z-)/2, each z of variance (1 - z^2)/N: variance (2 - z+^2 - z-^2) / 4N."""
    circuit, t, shots = Circuit(1, (Op("ry", (0,), Angle(0)),), 0, 1), 0.6, 100
    want = (2 - math.cos(t + math.pi / 2) ** 2 - math.cos(t - math.pi / 2) ** 2) / (4 * shots)
    executor = BackendExecutor(SimulatorBackend(), shots, seed=1)
    run, found = executor.compile(circuit), []
    for _ in range(400):
        angle = torch.tensor([t], dtype=DOUBLE, requires_grad=True)
        run(torch.empty(1, 0, dtype=DOUBLE), angle).sum().backward()
        found.append(angle.grad.item())
    variance = np.var(found, ddof=1)  # relative standard deviation of a variance over 400 samples: sqrt(2/399) = 0.071
    assert abs(variance / want - 1) < 5 * math.sqrt(2 / 399)


def test_counted_circuits_follow_the_formula() -> None:
    """n = 4, L = 1: 8 rotations and 8 controlled rotations of angles, 4 input rotations: 1 + 8*2 + 8*4 + 4*2 a row."""
    circuit, executor = ansatz.qtha(4, 1), BackendExecutor(SimulatorBackend(), 10, seed=0)
    inputs, angles = torch.randn(5, 4, dtype=DOUBLE), torch.randn(16, dtype=DOUBLE, requires_grad=True)
    executor.compile(circuit)(inputs, angles).sum().backward()
    assert executor.ledger.spent.circuits == 5 * (1 + 8 * 2 + 8 * 4)
    executor = BackendExecutor(SimulatorBackend(), 10, seed=0)
    executor.compile(circuit)(inputs.requires_grad_(), angles).sum().backward()
    assert executor.ledger.spent.circuits == 5 * (1 + 8 * 2 + 8 * 4 + 4 * 2)
    assert executor.ledger.spent.shots == 10 * executor.ledger.spent.circuits
    executor = BackendExecutor(SimulatorBackend(), 10, gradient="spsa", seed=0)
    executor.compile(circuit)(inputs, angles).sum().backward()
    assert executor.ledger.spent.circuits == 5 * 3


def test_groups_commute_qubit_by_qubit() -> None:
    words = ["ZZI", "IZZ", "XII", "IXI", "XXX", "YIZ", "III"]
    groups = commuting_groups([Observable.pauli(word) for word in words])
    assert sum(len(members) for _, members in groups) == 6
    assert len(groups) == 3
    for basis, members in groups:
        assert all(basis[qubit] == pauli for word in members for qubit, pauli in word)


def test_gradient_settings_are_checked() -> None:
    with pytest.raises(BackendError, match="parameter-shift"):
        BackendExecutor(SimulatorBackend(), gradient="finite")
    with pytest.raises(BackendError, match="SPSA"):
        BackendExecutor(SimulatorBackend(), spsa_step=0.0)


def test_parameter_shift_is_exact_with_noise_inside() -> None:
    """On the emulator, against autograd through the emulator: its noise does not depend on angles."""
    from qpeft.backends.emulator.backend import EmulatorBackend

    backend, circuit = EmulatorBackend("wukong-72"), ansatz.qtha(3, 1)
    inputs = torch.randn(2, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(2)).requires_grad_()
    angles = torch.randn(12, dtype=DOUBLE, generator=torch.Generator().manual_seed(3)).requires_grad_()
    values = BackendExecutor(backend).compile(circuit)(inputs, angles)
    table = backend.probabilities(circuit, torch.cat([inputs, angles.expand(2, -1)], dim=1))
    signs = torch.tensor([[(-1.0) ** (b >> (2 - k) & 1) for k in range(3)] for b in range(8)], dtype=DOUBLE)
    torch.testing.assert_close(values, table @ signs, rtol=0, atol=1e-10)
    noiseless = expectations(circuit, inputs, angles)
    assert (values - noiseless).abs().max() > 0.02
    shifted = torch.autograd.grad(values.square().sum(), (inputs, angles))
    through = torch.autograd.grad((table @ signs).square().sum(), (inputs, angles))
    for mine, theirs in zip(shifted, through, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-8)


def test_parameter_shift_in_blocks_is_the_same_and_costs_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one chunk instead of one call for everything: equal gradients, equal circuits, rows repeated or not."""
    circuit = ansatz.qtha(3, 1)
    inputs = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs = torch.cat([inputs, inputs[:8]])
    weight = torch.randn(48, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, spent = [], []
    for block in (executor_module.BLOCK_BYTES, 1):
        monkeypatch.setattr(executor_module, "CHUNK", 16)
        monkeypatch.setattr(executor_module, "BLOCK_BYTES", block)
        executor = BackendExecutor(SimulatorBackend())
        x, angles = inputs.clone().requires_grad_(), torch.full((circuit.n_angles,), 0.4, dtype=torch.float64, requires_grad=True)
        (executor.compile(circuit)(x, angles) * weight).sum().backward()
        found.append((x.grad, angles.grad))
        spent.append(executor.ledger.spent.circuits)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    assert spent[0] <= spent[1] <= 1.1 * spent[0]  # a repeated row runs twice only where it meets a block's end


def test_the_budget_is_asked_before_a_gradient_takes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = ansatz.qtha(4, 2)
    prepared = BackendExecutor(SimulatorBackend(), ledger=Ledger(Budget(circuits=300_000))).prepare(circuit)
    rows = np.random.default_rng(0).normal(size=(200_000, circuit.n_params))
    wanted = np.ones(circuit.n_params, dtype=bool)
    monkeypatch.setattr(prepared, "evaluate", lambda *_: pytest.fail("something ran"))
    tracemalloc.start()
    with pytest.raises(BudgetError, match="300,000 circuits"):
        prepared.gradient(rows, np.ones((len(rows), 4)), wanted)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20 * rows.nbytes
