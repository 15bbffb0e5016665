"""The first page: every run with its state and numbers, and the Pareto plot of those that are finished."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from qpeft.ui.runs import TrainingRun
from qpeft.ui.site import Address, Visit
from qpeft.web.charts import Point, pareto
from qpeft.web.svg import Markup

SHOWN = 500


def tradeoff(visit: Visit, runs: Sequence[TrainingRun], colours: Sequence[int] | None = None) -> Markup:
    """Held-out loss over trainable parameters; empty with fewer than two finished runs.

    Args:
        visit: the request.
        runs: the runs to draw.
        colours: the number of each run's colour; by default one for each method.
    """
    methods = sorted({run.method for run in runs})
    points = [
        Point(f"{run.label} ({run.name})", float(run.record.trainable_parameters), run.record.metrics["loss"], run.name, colour)
        for run, colour in zip(runs, colours or [methods.index(run.method) for run in runs], strict=True)
        if run.record is not None and "loss" in run.record.metrics and run.record.trainable_parameters
    ]
    if len(points) < 2:
        return Markup("")
    label = visit.t("Held-out loss over trainable parameters")
    return pareto(points, label=label, x_label=visit.t("trainable parameters"), y_label=visit.t("held-out loss (nats/token)"))


async def overview(visit: Visit) -> Response:
    """`?q=` searches names, methods and models."""
    text = visit.request.query_params.get("q", "")[:200].strip()
    runs = await run_in_threadpool(visit.studio.folder.all)
    words = text.lower().split()
    found = [run for run in runs if all(word in _searched(run) for word in words)]
    found.sort(key=lambda run: (run.state != "running", run.name))
    return visit.render(
        "overview",
        runs=found[:SHOWN],
        total=len(runs),
        found=len(found),
        text=text,
        root=str(visit.studio.folder.root),
        pareto=tradeoff(visit, found),
        methods=sorted({run.method for run in found if run.record is not None and "loss" in run.record.metrics}),
        starting=visit.studio.control.starting(),
    )


def _searched(run: TrainingRun) -> str:
    model = (run.config.get("model") or {}).get("model_name_or_path", "")
    return f"{run.name} {run.label} {run.method} {model} {run.state}".lower()


ADDRESSES = [Address("/", overview, nav="Runs")]
