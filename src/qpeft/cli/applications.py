"""Commands for a fine-tuned model in use: score it, predict with it, serve it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from qpeft.cli.common import AsJson, HelpPanel, Run, app, examples, print_table


@app.command(
    name="evaluate-task",
    hidden=True,
    rich_help_panel=HelpPanel.APPLICATIONS,
    epilog=examples("qpeft evaluate-task runs/credit", "qpeft evaluate-task runs/credit --limit 200 --picture credit.png"),
)
def evaluate_task(
    run: Run,
    data: Annotated[Path | None, typer.Option(help="Prepared folder; default the folder of the recipe's training rows.")] = None,
    part: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first ROWS rows.", metavar="ROWS")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per forward pass.")] = 8,
    unrelated: Annotated[
        str | None, typer.Option(help="A file of unrelated text: how much its loss rose measures forgetting.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw accuracy and the reliability curve to this PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a run on its task, next to plain baselines.

    The base model, the adapter and scikit-learn baselines answer the same rows. Prints task metrics with a bootstrap
    interval, and tables by subgroup; writes task-evaluation.json and MODEL_CARD.md into the run.
    """
    from qpeft.applications.scoring.evaluate_task import evaluate_task as score

    found = score(run, folder=data, part=part, limit=limit, batch_size=batch_size, unrelated=unrelated, progress=not as_json)
    if as_json:
        print(json.dumps(found))
        return
    print_task_evaluation(found, run)
    if picture is not None:
        from qpeft.applications.scoring.picture import draw

        print(f"picture: {draw(found, picture)}")


def print_task_evaluation(found: dict[str, Any], run: Path) -> None:
    """The tables of one run's task evaluation, as `evaluate_task` returns it."""
    from qpeft.applications.scoring.evaluate_task import RESULT
    from qpeft.applications.scoring.model_card import FILE as CARD

    keys = list(dict.fromkeys(key for measures in found["models"].values() for key in measures))
    rows = [(name, *(f"{m[key]:.3f}" if key in m else "-" for key in keys)) for name, m in found["models"].items()]
    print(f"{found['task']}, {found['rows']:,} {found['part']} rows")
    print_table(("model", *keys), rows)
    for name, gap in found.get("difference", {}).items():
        print(f"accuracy, adapter minus {name}: {gap['accuracy']:+.3f} (95% interval {gap['low']:+.3f} to {gap['high']:+.3f})")
    if "reasons" in found:
        print("reasons, against those of the rule (a rule's, not a lender's or a physician's)")
        cells = [(name, *(f"{value:.3f}" for value in told.values())) for name, told in found["reasons"].items()]
        print_table(("model", *next(iter(found["reasons"].values()))), cells)
    for group, values in found.get("groups", {}).items():
        cells = [
            (value, f"{cell['rows']:,}", *(f"{cell[m]['accuracy']:.3f}" for m in found["models"])) for value, cell in values.items()
        ]
        print_table((f"accuracy by {group}", "rows", *found["models"]), cells)
    if "unrelated" in found:
        print(f"loss on unrelated text: {', '.join(f'{name} {loss:.4f}' for name, loss in found['unrelated'].items())} nats/token")
    print(f"written: {run / RESULT}, {run / CARD}")


@app.command(
    rich_help_panel=HelpPanel.APPLICATIONS,
    epilog=examples(
        "qpeft predict runs/credit --input new.csv --output answers.csv",
        "qpeft predict runs/credit --input new.xlsx --output answers.csv --cost bad:good=5 --cost good:bad=1",
    ),
)
def predict(
    run: Run,
    input: Annotated[Path, typer.Option(help="Rows to label: CSV, TSV, Excel, JSON, JSON Lines or Parquet.")],
    output: Annotated[Path, typer.Option(help="CSV to write: the input's columns, label, probabilities, warnings, refusals.")],
    threshold: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Say the positive class from this probability on; default the likelier.")
    ] = None,
    cost: Annotated[
        list[str] | None,
        typer.Option(help="Say the label of least expected cost; `task` takes the costs of the task.", metavar="TRUE:SAID=X"),
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Of a text file, such as gb18030; default found out.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per forward pass.")] = 8,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output; the input is never replaced.")] = False,
) -> None:
    """Label the rows of a table.

    A number outside the range of the training rows is answered, with a warning. A category that no training row had is refused,
    with the reason.
    """
    from qpeft.applications.predict import Decision
    from qpeft.applications.predict import predict as answer
    from qpeft.applications.scoring.evaluate_task import find_task

    costs = find_task(run)[0].cost if cost == ["task"] else _costs(cost or ())
    decision = Decision(threshold=threshold, cost=costs)
    counts = answer(
        run, input, output, decision=decision, encoding=encoding, batch_size=batch_size, overwrite=overwrite, progress=True
    )
    print(f"{output}: {counts['rows']:,} rows, {counts['warned']:,} with a warning, {counts['refused']:,} refused")


def _costs(given: Sequence[str]) -> dict[str, dict[str, float]]:
    """`bad:good=5` -> {"bad": {"good": 5.0}}."""
    from qpeft.errors import RunError

    costs: dict[str, dict[str, float]] = {}
    for text in given:
        pair, _, value = text.rpartition("=")
        true, colon, said = pair.partition(":")
        try:
            costs.setdefault(true.strip(), {})[said.strip()] = float(value)
        except ValueError:
            colon = ""
        if not colon:
            raise RunError("not a cost", value=text, bound="TRUE:SAID=X, such as bad:good=5 (a bad loan called good costs 5)")
    return costs


@app.command(
    name="serve-model",
    rich_help_panel=HelpPanel.APPLICATIONS,
    epilog=examples("qpeft serve-model runs/chip --port 8000", "qpeft serve-model runs/credit --adapter news=runs/news"),
)
def serve_model(
    run: Run,
    name: Annotated[str | None, typer.Option(help="What clients call the adapter; default the folder's name.")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="Another run on the same base.", metavar="NAME=RUN")] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder that clients may load runs from; default the run's parent.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; beyond this machine QPEFT_API_KEY must be set.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
) -> None:
    """Serve a run as an OpenAI-compatible chat API.

    Other adapters of the same base model can be loaded and unloaded by name.
    """
    import os

    from qpeft.applications.serving.adapters import Adapters
    from qpeft.applications.serving.server import serve
    from qpeft.errors import RunError

    adapters = Adapters(run, name=name, root=runs)
    for text in adapter or ():
        other, equals, folder = text.partition("=")
        if not equals:
            raise RunError("not NAME=RUN", value=text)
        adapters.load(other, Path(folder), inside=False)
    print(f"http://{host}:{port}/v1 serves {', '.join(adapters.names())}", flush=True)
    serve(adapters, host=host, port=port, api_key=os.environ.get("QPEFT_API_KEY"))
