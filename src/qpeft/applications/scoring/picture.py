"""An evaluation as one picture: accuracy of every model on the same rows, and how far their probabilities can be believed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qpeft.errors import RunError
from qpeft.report.style import LIGHT, drawing, marks


def draw(result: Mapping[str, Any], path: Path) -> Path:
    """Write a PNG of a classification result.

    Args:
        result: the result of `evaluate_task`.
        path: picture to write.

    Returns:
        The path.

    Raises:
        RunError: the task is no classification.
    """
    if "reliability" not in result:
        raise RunError("no probabilities to draw", value=str(result.get("task")), bound="a classification task")
    names = [name for name in result["models"] if name != "most frequent"]
    look = marks(names)
    floor = result["models"]["most frequent"]
    with drawing(LIGHT):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.6, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        for index, name in enumerate(names):
            value = result["models"][name]["balanced_accuracy"]
            left.barh(index, value, color=look[name].color(LIGHT), height=0.62)
            left.text(value - 0.01, index, f"{value:.2f}", va="center", ha="right", color=LIGHT.paper)
        left.axvline(floor["balanced_accuracy"], color=LIGHT.muted, linestyle="dashed", linewidth=1)
        left.set_yticks(range(len(names)), names)
        left.invert_yaxis()
        left.set_xlim(0, 1)
        left.set_xlabel(f"balanced accuracy on {result['rows']:,} held-out rows\n(dashed: always the most frequent answer)")
        right.plot([0, 1], [0, 1], color=LIGHT.muted, linestyle="dashed", linewidth=1)
        for name in names:
            curve = result["reliability"][name]
            right.plot(
                [b["confidence"] for b in curve],
                [b["accuracy"] for b in curve],
                color=look[name].color(LIGHT),
                marker=look[name].marker,
                linestyle=look[name].dash,
                label=f"{name} (ECE {result['models'][name]['ece']:.2f})",
            )
        right.set_xlim(0, 1.02)
        right.set_ylim(0, 1.02)
        right.set_xlabel("confidence")
        right.set_ylabel("accuracy at that confidence")
        right.legend(frameon=False, fontsize=8, loc="lower left")
        figure.suptitle(f"{result['task']}: {result['label']} on {Path(result['model']).name}", fontsize=11)
        figure.savefig(path, dpi=140)
    return path
