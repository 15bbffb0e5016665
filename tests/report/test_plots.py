"""Plots: what is drawn, where the names stand, that what is said of it."""

from __future__ import annotations

import dataclasses
import random
import struct
import sys
from collections.abc import Callable
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from qpeft.errors import MissingDependencyError
from qpeft.records import Measurement, RunRecord
from qpeft.report import curves, style, summarise, tradeoff
from qpeft.report.plots import Plot, plots
from qpeft.report.sections import ComparableRuns, sections
from qpeft.report.statistics import Estimate

Record = Callable[..., RunRecord]


def drawn(records: list[RunRecord]) -> dict[str, Plot]:
    (section,) = sections(records)
    return {plot.name: plot for plot in plots(section, style.marks(arm.label for arm in section.arms))}


def legend(records: list[RunRecord]) -> str:
    return tradeoff.legend(sections(records)[0], summarise(records), "loss")


def axes_of(section: ComparableRuns, metric: str = "loss") -> object:
    """The trade-off panel on real axes, to look at what stands on it."""
    with style.drawing(style.LIGHT):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 5), dpi=100)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.1, 0.1, 0.85, 0.85))
        numbers = [arm for arm in summarise(section.runs) if arm.seeds]
        tradeoff.panel(section, numbers, metric, style.marks(arm.label for arm in section.arms)).draw(axes, style.LIGHT)
        figure.canvas.draw()
    return axes


def png_size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


def test_figures_of_a_comparison(eight_by_five: list[RunRecord]) -> None:
    found = drawn(eight_by_five)
    assert list(found) == ["hero", "curves", "tradeoff"]
    width, height = png_size(found["hero"].png)
    assert width > 2.2 * height
    for plot in found.values():
        assert ElementTree.fromstring(plot.svg).tag.endswith("svg")
        assert style.LIGHT.paper not in plot.svg
        assert "var(--plot-paper)" in plot.svg
        assert all(f'class="arm arm-{number}"' in plot.svg for number in range(8))
        assert plot.title.split()[0] in plot.svg  # text is text
    assert "3.4120" in found["curves"].svg
    assert found["curves"].title.startswith("Held-out loss: 3.4120 before training, 2.2")
    assert "intervals overlap" in found["tradeoff"].title
    assert "4 to 5 seeds" in found["tradeoff"].caption


def test_one_arm_has_curves_and_no_tradeoff(record: Record) -> None:
    found = drawn([record()])
    assert list(found) == ["curves"]
    assert "one seed" in found["curves"].caption


def test_what_was_not_recorded_is_not_drawn(record: Record) -> None:
    bare = [record(label=label, train_curve=(), eval_curve=()) for label in "ab"]
    assert list(drawn(bare)) == ["tradeoff"]
    training = [dataclasses.replace(run, metrics={}, train_curve=record().train_curve) for run in bare]
    assert list(drawn(training)) == ["curves"]
    assert drawn([record(status="failed", metrics={})]) == {}


def test_other_metrics_that_are_better_when_higher_get_a_plot(record: Record) -> None:
    metrics = {"loss": 2.0, "token_accuracy": 0.5, "exact/match 2": 0.25, "tokens": 7}
    found = drawn([record(label=label, metrics=metrics) for label in "ab"])
    assert list(found) == ["hero", "curves", "tradeoff", "tradeoff-exact-match-2"]


def test_strange_labels(record: Record) -> None:
    labels = ["$x^", "a\nb", "二号", "", "<b> & co", "long " * 30]
    assert len(drawn([record(label=label, seed=seed) for label in labels for seed in (0, 1)])) == 3


def test_matplotlib_missing(monkeypatch: pytest.MonkeyPatch, record: Record) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"qpeft\[report\]"):
        drawn([record()])


def test_marks_tell_up_to_32_arms_apart_and_repeat_colours_last() -> None:
    found = style.marks(f"arm {i % 32}" for i in range(40))
    assert len(found) == len({(mark.index, mark.dash) for mark in found.values()}) == 32
    first = list(found.values())[: len(style.LIGHT.palette)]
    assert len({mark.color(style.LIGHT) for mark in first}) == len({mark.color(style.DARK) for mark in first}) == len(first)


def test_short() -> None:
    assert style.shorten_label("LoRA  r=8\n") == "LoRA r=8"
    assert style.shorten_label(" ") == "(no label)"
    cut = style.shorten_label("Quantum-PEFT with a very long name r=16")
    assert len(cut) == 30
    assert cut.startswith("Quantum-PEFT")
    assert cut.endswith("r=16")


@pytest.mark.parametrize("n", [1, 2, 5, 15])
def test_spread_keeps_order_gap_and_frame(n: int) -> None:
    generator = random.Random(n)
    for _ in range(50):
        heights = [generator.gauss(50, 15) for _ in range(n)]
        places = style.spread(heights, 6.0, 0.0, 100.0)
        order = sorted(range(n), key=lambda i: heights[i])
        ascending = [places[i] for i in order]
        assert all(b - a >= 6.0 - 1e-9 for a, b in pairwise(ascending))
        assert -1e-9 <= ascending[0] <= ascending[-1] <= 100 + 1e-9


def test_spread_moves_nothing_that_has_room() -> None:
    assert style.spread([30.0, 10.0, 50.0], 6.0, 0.0, 100.0) == [30.0, 10.0, 50.0]
    assert style.spread([50.0, 50.0], 6.0, 0.0, 100.0) == [47.0, 53.0]


def test_free_place_avoids_what_is_taken_and_the_edge() -> None:
    frame = (0.0, 0.0, 200.0, 100.0)
    box = style.free_place((100, 50), (40, 10), frame, [], clear=9)
    assert box == (109, 45, 149, 55)
    blocked = style.free_place((100, 50), (40, 10), frame, [(105, 0, 200, 100)], clear=9)
    assert blocked[2] <= 105
    edge = style.free_place((195, 50), (40, 10), frame, [], clear=9)
    assert edge[2] <= 200


def test_names_on_the_tradeoff_stand_apart_and_inside(eight_by_five: list[RunRecord]) -> None:
    axes = axes_of(sections(eight_by_five)[0])
    renderer = axes.get_figure().canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = [text.get_window_extent(renderer) for text in axes.texts]  # type: ignore[attr-defined]
    assert len(boxes) == 8
    frame = axes.get_window_extent()  # type: ignore[attr-defined]
    for i, box in enumerate(boxes):
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_front(record: Record) -> None:
    points = {"a": (10, 3.0), "b": (20, 2.5), "c": (20, 2.4), "d": (30, 2.6), "e": (40, 2.4), "f": (50, 2.0)}
    records = [
        record(label=label, parameters=size, metrics={"loss": loss, "accuracy": -loss}) for label, (size, loss) in points.items()
    ]
    arms = summarise(records)
    assert [arm.label for arm in tradeoff.front(arms, "loss")] == ["a", "c", "f"]
    assert [arm.label for arm in tradeoff.front(arms, "accuracy")] == ["a", "c", "f"]


def test_arms_without_parameters_are_named_not_drawn(record: Record) -> None:
    records = [record(label="a"), record(label="b"), record(label="frozen", parameters=0)]
    assert legend(records).endswith("Not drawn, no trainable parameters: frozen.")
    assert [arm.label for arm in tradeoff.drawable(summarise(records), "loss")] == ["a", "b"]


def test_extent_holds_values_and_cuts_long_bars() -> None:
    low, high = tradeoff.extent([2.0, 2.1], [Estimate(2.05, 0.08, 5)])
    assert low < 1.97
    assert high > 2.13
    low, high = tradeoff.extent([2.0, 2.1], [Estimate(2.05, 9.0, 2)])
    assert (low, high) == pytest.approx((1.888, 2.212))
    low, high = tradeoff.extent([2.0], [Estimate(2.0, None, 1)])
    assert low < 2.0 < high


def test_bars_that_leave_the_plot_are_admitted(two_by_two: list[RunRecord], eight_by_five: list[RunRecord]) -> None:
    assert "longer than shown" in legend(two_by_two)
    assert "longer than shown" not in legend(eight_by_five)


def points(*losses: float, step: int = 1) -> list[Measurement]:
    return [Measurement(step=i * step, loss=loss) for i, loss in enumerate(losses)]


def test_curve_over_seeds_uses_shared_steps() -> None:
    found = curves.curve([points(4.0, 3.0, 2.0), points(5.0, 1.0), []])
    assert found == curves.Curve([0, 1], [4.5, 2.0], [4.0, 1.0], [5.0, 3.0])
    assert curves.curve([[], []]) is None
    assert curves.curve([points(1.0), [Measurement(step=9, loss=1.0)]]) is None


def test_smooth() -> None:
    found = curves.smooth(points(1.0, 2.0, 6.0, 4.0, 5.0), 3)
    assert [point.loss for point in found] == [1.5, 3.0, 4.0, 5.0, 4.5]
    assert [point.step for point in curves.smooth(points(*range(8)), 1, stride=3)] == [1, 4, 7]
    assert curves.smooth([], 3) == []


def test_limits_cut_the_first_fall_only_to_compare() -> None:
    fall = [curves.curve([points(3.4, 2.3, 2.2, 2.2 + i / 50, step=25)]) for i in range(2)]
    low, high, start = curves.limits(fall)  # type: ignore[arg-type]
    assert start == 3.4
    assert low < 2.2 < 2.3 < high < 3.4
    low, high, start = curves.limits(fall[:1])  # type: ignore[arg-type]
    assert start is None
    assert low < 2.2 < 3.4 < high


def test_limits_are_not_stretched_by_a_run_that_diverged() -> None:
    good, bad = curves.curve([points(3.0, 2.5, 2.0)]), curves.curve([points(3.0, 50.0, 1e6)])
    low, high, _ = curves.limits([good, bad])  # type: ignore[list-item]
    assert low < 2.0
    assert 3.0 < high < 5.0
