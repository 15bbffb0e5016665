"""Training through a task service that really runs: `qpeft serve` as the backend, counted as it was planned."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import httpx
import pytest
from tests.service.processes import Server
from tests.training.on_chip.runs import settings

from qpeft.backends.vendors.remote import RemoteBackend
from qpeft.errors import BackendError
from qpeft.export.run import Options, export
from qpeft.training.loop.run import train
from qpeft.training.on_chip.cost_estimate import plan
from qpeft.training.recipe.config import load_recipe

COUNTED = ("circuits", "shots", "programs", "jobs")


def wait_for(server: Server, device: str) -> None:
    """Until a worker has told what the device takes."""
    deadline, headers = time.monotonic() + 60, {"authorization": f"Bearer {server.key}"}
    while httpx.get(f"{server.url}/v1/devices/{device}", headers=headers).json()["max_qubits"] is None:
        assert time.monotonic() < deadline, server.output()
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["simulator", "emulator:wukong-72"])
def test_training_and_export_through_the_service(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    server = Server(tmp_path, devices=(device,)).start()
    try:
        monkeypatch.setenv("QPEFT_SERVICE_KEY", server.key)
        wait_for(server, device)
        backend = {"name": f"remote:{server.url}/?device={device}", "shots": 20, "recalibrate": 2}
        config = load_recipe(recipe, settings(3, **backend))
        assert config.backend is not None
        found, record = plan(config, config.backend), train(config, tmp_path / "run")
        expected = found["training"]["surrogate-shift"]["training"]
        assert {name: record.backend[name] for name in COUNTED} == {name: expected[name] for name in COUNTED}
        options = Options(to="surrogate", backend=backend["name"], shots=20)  # type: ignore[arg-type]
        spent = export(tmp_path / "run", tmp_path / "out", options)["surrogate"]["spent"]
        assert {name: spent[name] for name in COUNTED} == {name: found["inference"]["grid_once"][name] for name in COUNTED}
    finally:
        server.stop()
        server.close()


def test_a_device_without_a_worker_leaves_no_connection_open(tmp_path: Path) -> None:
    server = Server(tmp_path, "--executors", "0").start()
    try:
        with pytest.raises(BackendError, match="start a worker"):
            RemoteBackend(f"{server.url}/?device=simulator", key=server.key)
        gc.collect()  # a socket that is still open would be told of here
    finally:
        server.stop()
        server.close()
