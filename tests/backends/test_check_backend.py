"""Every backend passes `check_backend`; and the suite finds what is wrong with backends that do not deserve to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qpeft.backends.base import Backend, CompiledCircuit, Counts
from qpeft.backends.registry import get_backend
from qpeft.backends.simulator import CompiledSimulation, SimulatorBackend
from qpeft.circuits.ir import Circuit
from qpeft.errors import BackendError
from qpeft.testing import check_backend
from tests.backends.origin_cloud import FakeOriginCloud

LOCAL = [
    "simulator",
    "emulator:wukong-72",
    "pyqpanda:CPUQVM",
    "pyqpanda:DensityMatrix",
    "pennylane:default.qubit",
    "pennylane:lightning.qubit",
]


@pytest.mark.parametrize("name", LOCAL)
def test_backends_that_know_probabilities(name: str) -> None:
    for package in ("pyqpanda3", "pennylane"):
        if package.startswith(name.split(":")[0]):
            pytest.importorskip(package)
    check_backend(lambda: get_backend(name), noisy=name.startswith("emulator"))


def test_packed_emulator() -> None:
    rules = ("describes_itself", "bit_order", "seeds_repeat", "empty_batch")
    check_backend(lambda: get_backend("emulator:wukong-72", pack=True), noisy=True, only=rules)


def test_aer() -> None:
    pytest.importorskip("qiskit_aer")
    check_backend(lambda: get_backend("qiskit:aer"))


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_a_fake_qiskit_backend() -> None:
    pytest.importorskip("qiskit")
    check_backend(lambda: get_backend("qiskit:tests.backends.fake_qiskit:backend", allow_import=True), noisy=True)


def test_a_qiskit_sampler() -> None:
    pytest.importorskip("qiskit")
    from qiskit.primitives import StatevectorSampler

    from qpeft.backends.vendors.qiskit import QiskitBackend

    check_backend(lambda: QiskitBackend(StatevectorSampler(seed=3)), seeded=False)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Callable[[], Backend]]:
    pytest.importorskip("pyqpanda3")
    made = []
    with FakeOriginCloud() as server:
        server.states = []

        def make() -> Backend:
            backend = get_backend("pyqpanda:72", journal=tmp_path / "jobs", api_key=server.key, url=server.url, poll_s=0.01)
            made.append(backend)
            return backend

        yield make
        for backend in made:
            backend.close()  # type: ignore[attr-defined]


def test_the_cloud_through_the_stand_in(cloud: Callable[[], Backend]) -> None:
    check_backend(cloud)


@dataclass(frozen=True)
class Wrong(SimulatorBackend):
    """A simulator with a fault: `fault` takes and returns Counts."""

    fault: Callable[[Counts], Counts] = lambda counts: counts
    checks: bool = True

    def compile(self, circuit: Circuit) -> Any:
        inner = CompiledSimulation(self, circuit) if not self.checks else super().compile(circuit)

        class Faulty(CompiledCircuit):
            def run(this, params: Any, shots: Any, seed: int | None = None) -> Counts:
                return self.fault(inner.run(params, shots, seed if self.checks else 1))

        faulty: Any = Faulty()
        faulty.circuit = circuit
        return faulty


def reversed_bits(counts: Counts) -> Counts:
    return counts.marginal(range(counts.n_qubits)[::-1])


def half_the_shots(counts: Counts) -> Counts:
    return replace(counts, shots=None if counts.shots is None else counts.shots // 2)


def skewed(counts: Counts) -> Counts:
    """A tenth of every distribution is uniform."""
    if counts.table is None or not counts.shots:
        return counts
    uniform = np.full_like(counts.table, counts.shots / counts.table.shape[1])
    return replace(counts, table=np.round(0.7 * counts.table + 0.3 * uniform))


@pytest.mark.parametrize(
    ("backend", "rules"),
    [
        (Wrong(fault=reversed_bits), ("bit_order", "every_gate")),
        (Wrong(fault=half_the_shots), ("shots_are_counted",)),
        (Wrong(fault=skewed), ("every_gate",)),
        (Wrong(checks=False), ("refuses_too_many_qubits", "seeds_repeat")),
        (Wrong(name=""), ("describes_itself",)),
    ],
    ids=["bits", "shots", "skew", "unchecked", "nameless"],
)
def test_the_suite_finds_faults(backend: Backend, rules: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError) as caught:
        check_backend(lambda: backend)
    for rule in rules:
        assert f"{rule}:" in str(caught.value)


def test_the_suite_refuses_unknown_rules() -> None:
    with pytest.raises(BackendError, match="bit_order"):
        check_backend(SimulatorBackend, skip=["nothing"])
