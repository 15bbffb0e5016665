"""A noisy Qiskit backend for names such as `qiskit:tests.backends.fake_qiskit:backend`."""

from __future__ import annotations

from typing import Any


def backend() -> Any:
    """Qiskit's generic fake backend: 5 qubits, noise in its target."""
    from qiskit.providers.fake_provider import GenericBackendV2

    return GenericBackendV2(5, seed=1, noise_info=True)
