"""Orthogonal blocks as circuits: the circuit is the block, and its outcomes give the block back."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.blocks_on_chip import PAIRS, angles_of, block_circuit, measured, nearest_orthogonal
from scipy.stats import special_ortho_group

from qpeft.backends.registry import get_backend


def near_identity(n: int) -> np.ndarray:
    entries = np.random.default_rng(0).normal(scale=0.1, size=(n, 4, 4))
    a = entries - entries.transpose(0, 2, 1)
    return np.linalg.solve(np.eye(4) + a, np.eye(4) - a)


def test_the_circuit_of_any_rotation_gives_its_squared_entries_and_those_of_sums() -> None:
    blocks = special_ortho_group.rvs(4, size=20, random_state=0)
    rows = np.stack([angles_of(block) for block in blocks])
    for state in [*((j,) for j in range(4)), *PAIRS]:
        wanted = blocks[:, :, list(state)].sum(-1) ** 2 / len(state)
        found = get_backend("simulator").compile(block_circuit(state)).run(rows, None).probabilities()
        assert np.abs(found - wanted).max() < 1e-6, state


def test_exact_outcomes_give_the_blocks_and_noisy_ones_come_close() -> None:
    blocks = near_identity(12)
    assert np.abs(measured(blocks, "simulator", None, 0) - blocks).max() < 1e-5
    errors = [np.sqrt(((measured(blocks, "simulator", shots, 0) - blocks) ** 2).mean()) for shots in (100, 10_000)]
    assert 5 < errors[0] / errors[1] < 20  # a tenth, by the square root of the shots
    noisy = measured(blocks, "emulator:wukong-72", None, 0)
    assert 1e-3 < np.sqrt(((nearest_orthogonal(noisy) - blocks) ** 2).mean()) < 0.1
    assert np.sqrt(((noisy - blocks) ** 2).mean()) > np.sqrt(((nearest_orthogonal(noisy) - blocks) ** 2).mean())


def test_a_reflection_is_no_block() -> None:
    with pytest.raises(ValueError, match="determinant 1"):
        angles_of(np.diag([1.0, 1.0, 1.0, -1.0]))
