"""Which learning rate wins: the grid search, successive halving and hill climbing of a study.

All three take `loss_after(rate, step)`: the validation loss of a learning rate after so many steps, None where it failed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from qpeft.study.plan import Rung, TuningSection

LossAfter = Callable[[float, int], float | None]


def best_rate(tuning: TuningSection, max_steps: int, loss_after: LossAfter, start: float | None = None) -> float | None:
    """The learning rate of lowest validation loss; None where every one failed.

    Args:
        tuning: the grid and how it is searched.
        max_steps: steps of a whole run.
        loss_after: trains, or looks up, one learning rate.
        start: where hill climbing starts; the middle of the grid by default.
    """
    if tuning.search == "hill_climb":
        return _climb(sorted(tuning.learning_rates), max_steps, loss_after, start)
    rungs = tuning.rungs or (Rung(step=max_steps, keep=1),)
    alive = list(tuning.learning_rates)
    for rung in rungs:
        losses = {rate: loss_after(rate, rung.step) for rate in alive}
        if all(loss is None for loss in losses.values()):
            return None
        alive = lowest(losses, rung.keep)
    return _extended(tuning, alive[0], lambda rate: loss_after(rate, rungs[-1].step))


def lowest(losses: Mapping[float, float | None], keep: int) -> list[float]:
    """The learning rates of lowest loss, ties to the smaller. Those that failed come last.

    Args:
        losses: validation loss by learning rate; None where it failed.
        keep: how many to return.
    """
    order = sorted(losses, key=lambda rate: (losses[rate] is None, losses[rate] or 0.0, rate))
    return order[:keep]


def _extended(tuning: TuningSection, best: float, loss_of: Callable[[float], float | None]) -> float:
    """The winner once the grid has grown, a rate at a time, on the side at whose edge the winner stands."""
    grid = sorted(tuning.learning_rates)
    if not tuning.extend or len(grid) < 2:
        return best
    losses = {best: loss_of(best)}
    for _ in range(tuning.extend):
        if best == grid[-1]:
            grid.append(beyond(grid))
        elif best == grid[0]:
            grid.insert(0, beyond(grid[::-1]))
        else:
            break
        new = grid[-1] if best == grid[-2] else grid[0]
        losses[new] = loss_of(new)
        best = lowest(losses, 1)[0]
    return best


def beyond(grid: Sequence[float]) -> float:
    """The next rate after the last of a grid, with the grid's ratios: after 0.01, 0.03, 0.1 comes 0.3."""
    ratio = grid[-1] / grid[-3] if len(grid) > 2 else (grid[-1] / grid[-2]) ** 2
    return float(f"{grid[-2] * ratio:.3g}")


def _climb(grid: Sequence[float], step: int, loss_after: LossAfter, start: float | None) -> float | None:
    """Hill climbing on the grid, from `start` until both neighbours are worse."""
    at = len(grid) // 2 if start is None else min(range(len(grid)), key=lambda i: abs(math.log(grid[i] / start)))
    known: dict[int, float] = {}

    def loss(index: int) -> float:
        if not 0 <= index < len(grid):
            return math.inf
        if index not in known:
            found = loss_after(grid[index], step)
            known[index] = math.inf if found is None else found
        return known[index]

    while (best := min((at, at - 1, at + 1), key=loss)) != at:
        at = best
    return None if math.isinf(loss(at)) else grid[at]
