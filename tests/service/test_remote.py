"""`remote:` as a backend: a training run's executor works through the service unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qpeft.backends.executor import BackendExecutor
from qpeft.backends.simulator import SimulatorBackend
from qpeft.backends.spending.budget import Budget
from qpeft.backends.vendors.remote import Connection, RemoteBackend, Retries
from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.errors import BackendError, BudgetError, JobError, ServiceError
from tests.service.processes import Server

CIRCUIT = Circuit(
    3,
    (Op("ry", (0,), Angle(0)), Op("rx", (1,), Angle(1)), Op("cx", (0, 1)), Op("crz", (1, 2), Angle(2)), Op("ry", (2,), Angle(3))),
    2,
    4,
)


@pytest.fixture(scope="module")
def backend(server: Server) -> RemoteBackend:
    with server.client() as client:
        client.result(client.submit(CIRCUIT, device="simulator", params=[0.1] * 4, shots=1)["id"])
    made = RemoteBackend(f"{server.url}/?device=simulator", key=server.new_key("trainer"))
    server.closing(made.connection)
    return made


def test_exact_and_sampled_outcomes(backend: RemoteBackend) -> None:
    params = np.random.default_rng(0).uniform(-3, 3, (50, 4))
    here, there = SimulatorBackend().compile(CIRCUIT), backend.compile(CIRCUIT)
    np.testing.assert_allclose(there.run(params, None).probabilities(), here.run(params, None).probabilities(), atol=1e-14)
    counts = there.run(params, 300, seed=3)
    assert counts.counts == there.run(params, 300, seed=3).counts
    assert counts.probabilities().sum(axis=1) == pytest.approx(1)
    assert len(there.run(params[:0], 10)) == 0


def test_gradients_of_a_training_step_through_the_service(backend: RemoteBackend) -> None:
    inputs = torch.tensor([[0.3, -0.4], [1.0, 0.2]], dtype=torch.float64, requires_grad=True)
    angles = torch.tensor([0.7, -1.1], dtype=torch.float64, requires_grad=True)
    found = []
    for executor in (BackendExecutor(backend), Simulator()):
        values = executor.compile(CIRCUIT)(inputs, angles)
        found.append((values.detach(), *torch.autograd.grad(values.square().sum(), (inputs, angles))))
    for remote, local in zip(*found, strict=True):
        torch.testing.assert_close(remote, local, atol=1e-8, rtol=0)


def test_limits_are_the_devices(backend: RemoteBackend) -> None:
    with pytest.raises(BackendError, match="too many qubits"):
        backend.compile(Circuit(40, ()))


def test_a_service_that_is_not_there(server: Server) -> None:
    with pytest.raises(ServiceError, match="does not answer") as caught:
        Connection("http://127.0.0.1:9", "qk0000000000_secret", Retries(request_s=2, total_s=0.2)).request("GET", "/v1/devices")
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(Connection("http://127.0.0.1:9", "qk0000000000_secret"))


class Chip(RemoteBackend):
    """A device of the service that says it is no simulator, so that its jobs are kept in a journal."""

    def _described(self) -> dict[str, Any]:
        return {**super()._described(), "simulated": False, "program_s": 0.06, "shot_s": 1e-4}


def test_an_address_that_is_none() -> None:
    with pytest.raises(ServiceError, match="not a service's address"):
        Connection("ftp://127.0.0.1", "key")


def test_a_lost_reply_is_paid_once(server: Server, tmp_path: Path) -> None:
    """The service took the batch and its reply was lost: the next process gets the same batch."""
    key = server.new_key("payer")
    rows = np.random.default_rng(1).uniform(-3, 3, (3, 4))
    first = Chip(f"{server.url}/?device=simulator", key=key, journal=tmp_path / "j", budget=Budget(jobs=1))
    submit, batches = first.connection.submit, []

    def lost(*args: Any, **options: Any) -> Any:
        batches.append(submit(*args, **options)["id"])
        raise ConnectionError("the reply was lost")

    first.connection.submit = lost  # type: ignore[method-assign]
    with pytest.raises(JobError, match="may or may not"):
        first.compile(CIRCUIT).run(rows, 200)
    first.close()
    second = Chip(f"{server.url}/?device=simulator", key=key, journal=tmp_path / "j", budget=Budget(jobs=1))
    assert second.compile(CIRCUIT).run(rows, 200).shots == 200
    assert second.journal is not None
    assert [entry.job for entry in second.journal.entries.values()] == batches
    assert second.journal.spent.seconds == pytest.approx(3 * (0.06 + 200 * 1e-4))
    with pytest.raises(BudgetError):
        second.compile(CIRCUIT).run(rows, 200)
    second.close()


def test_a_simulator_keeps_no_journal(server: Server, tmp_path: Path) -> None:
    backend = RemoteBackend(f"{server.url}/?device=simulator", key=server.new_key("free"), journal=tmp_path / "j")
    assert backend.journal is None
    assert backend.estimate(10, 1000) == 0.0
    backend.close()
