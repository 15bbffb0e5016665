"""The choice of a learning rate on loss curves that are known."""

from __future__ import annotations

import math

import pytest

from qpeft.study.plan import TuningSection
from qpeft.study.tuning import best_rate, beyond, lowest

GRID = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def valley(best: float, calls: list[tuple[float, int]]):  # type: ignore[no-untyped-def]
    """A loss with one minimum, at `best`; the calls are noted."""

    def loss_after(rate: float, step: int) -> float:
        calls.append((rate, step))
        return abs(math.log(rate / best)) + 1 / step

    return loss_after


@pytest.mark.parametrize("best", [1e-3, 1e-2, 3e-2, 1e-1])
@pytest.mark.parametrize("start", [None, 1e-3, 1e-1])
def test_hill_climbing_ends_where_the_whole_grid_would(best: float, start: float | None) -> None:
    calls: list[tuple[float, int]] = []
    tuning = TuningSection(learning_rates=GRID, search="hill_climb")
    assert best_rate(tuning, 64, valley(best, calls), start) == best
    assert {step for _, step in calls} == {64}
    assert len(calls) == len(set(calls)), "a learning rate was trained twice"
    tried = {rate for rate, _ in calls}
    neighbours = {GRID[i] for i in (GRID.index(best) - 1, GRID.index(best) + 1) if 0 <= i < len(GRID)}
    assert neighbours <= tried


def test_a_winner_at_the_edge_is_followed() -> None:
    calls: list[tuple[float, int]] = []
    tuning = TuningSection(learning_rates=GRID, extend=3)
    assert best_rate(tuning, 32, valley(0.3, calls)) == 0.3
    assert {rate for rate, _ in calls} == {*GRID, 0.3, 1.0}
    assert best_rate(tuning, 32, valley(3e-4, calls)) == 3e-4
    assert best_rate(TuningSection(learning_rates=GRID, extend=1), 32, valley(3.0, calls)) == 0.3  # no further than allowed
    assert best_rate(TuningSection(learning_rates=GRID), 32, valley(3.0, calls)) == 0.1


def test_without_rungs_every_rate_is_trained_to_the_end() -> None:
    calls: list[tuple[float, int]] = []
    tuning = TuningSection(learning_rates=GRID)
    assert best_rate(tuning, 48, valley(1e-2, calls)) == 1e-2
    assert calls == [(rate, 48) for rate in GRID]
    assert tuning.steps(48) == 48 * len(GRID)


def test_rates_beyond_a_grid_keep_its_rhythm() -> None:
    assert [beyond(GRID), beyond((*GRID, 0.3)), beyond(GRID[::-1])] == [0.3, 1.0, 3e-4]
    assert beyond((0.1, 0.2)) == pytest.approx(0.4)


def test_failures_lose_against_losses() -> None:
    assert lowest({1e-3: 2.0, 1e-2: None, 1e-4: 1.0}, 2) == [1e-4, 1e-3]
    assert lowest({1e-3: None, 1e-2: None}, 1) == [1e-3]
    failing = TuningSection(learning_rates=GRID, search="hill_climb")
    assert best_rate(failing, 8, lambda rate, step: None) is None
    assert best_rate(TuningSection(learning_rates=GRID), 8, lambda rate, step: None) is None
