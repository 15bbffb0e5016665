"""Any runs next to each other: curves, numbers, Pareto plot, the settings that differ, samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from qpeft.report.sections import differing, flat
from qpeft.ui.pages.overview import tradeoff
from qpeft.ui.runs import TrainingRun, samples
from qpeft.ui.site import Address, Visit
from qpeft.web.charts import Series, lines

MOST = 24
CHARTS = (
    ("loss", "Training loss", "nats/token"),
    ("eval_loss", "Held-out loss", "nats/token"),
    ("tokens_per_s", "Tokens per second", "tokens/s"),
    ("peak_memory_gib", "Peak memory", "GiB"),
)


def curves(visit: Visit, runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """A chart for each number that a run has logged.

    Args:
        visit: the request.
        runs: the runs to draw.
    """
    found = []
    for name, title, unit in CHARTS:
        series = [Series(run.label if len(runs) == 1 else run.name, *run.series(name), key=run.name) for run in runs]
        label = visit.t(title)
        svg = lines(series, label=label, x_label=visit.t("step"), y_label=unit)
        if svg:
            found.append(
                {"svg": svg, "label": f"{label} ({unit})", "legend": [one.name for one in series] if len(runs) > 1 else []}
            )
    return found


async def compare(visit: Visit) -> Response:
    """`?run=` names each run."""
    names = list(dict.fromkeys(visit.request.query_params.getlist("run")))[:MOST]
    runs = [await run_in_threadpool(visit.studio.folder.run, name) for name in names]
    configs = [run.config for run in runs]
    flats = [flat(config) for config in configs]
    settings = [(key, [json.dumps(one.get(key)) for one in flats]) for key in differing(configs)]
    metrics = sorted({name for run in runs if run.record is not None for name in run.record.metrics})
    known = [name for name in await run_in_threadpool(visit.studio.folder.names) if name not in names]
    return visit.render(
        "compare",
        runs=runs,
        known=known[:500],
        curves=curves(visit, runs) if runs else [],
        pareto=tradeoff(visit, runs, range(len(runs))),
        settings=settings,
        same=len({key for one in flats for key in one}) - len(settings),
        metrics=metrics,
        samples=[(run, found) for run in runs if (found := samples(run))],
    )


ADDRESSES = [Address("/compare", compare, nav="Compare")]
