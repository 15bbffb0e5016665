"""Commands that use a fine-tuned model for its job: judge it, predict with it, serve it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from qpeft.cli.common import AsJson, Run, app, print_table


@app.command(name="evaluate-task")
def evaluate_task(
    run: Run,
    data: Annotated[Path | None, typer.Option(help="Prepared folder; default where the recipe's training rows are.")] = None,
    part: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="The first ROWS rows alone.", metavar="ROWS")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a pass.")] = 8,
    unrelated: Annotated[str | None, typer.Option(help="A file of other text, to measure what was forgotten.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw accuracy and the reliability curve into this PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a run on its task beside the base model and plain baselines, on the same rows, with tables by subgroup."""
    from qpeft.applications.evaluation import RESULT
    from qpeft.applications.evaluation import evaluate_task as judge
    from qpeft.applications.model_card import FILE as CARD

    found = judge(run, folder=data, part=part, limit=limit, batch_size=batch_size, unrelated=unrelated, progress=not as_json)
    if as_json:
        print(json.dumps(found))
        return
    keys = list(dict.fromkeys(key for measures in found["models"].values() for key in measures))
    rows = [(name, *(f"{m[key]:.3f}" if key in m else "-" for key in keys)) for name, m in found["models"].items()]
    print(f"{found['task']}, {found['rows']:,} {part} rows")
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
        print(
            f"loss on unrelated text: {', '.join(f'{name} {loss:.4f}' for name, loss in found['unrelated'].items())} nats a token"
        )
    print(f"written: {run / RESULT}, {run / CARD}")
    if picture is not None:
        from qpeft.applications.picture import draw

        print(f"picture: {draw(found, picture)}")


@app.command()
def predict(
    run: Run,
    input: Annotated[Path, typer.Option(help="Rows to answer: CSV, TSV, JSON, JSON Lines or Parquet, with the task's columns.")],
    output: Annotated[Path, typer.Option(help="CSV to write: the input, the label, its probability, or why the row is refused.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a pass.")] = 8,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.")] = False,
) -> None:
    """Label the rows of a table; a row unlike anything the model was trained on is refused, with the reason."""
    from qpeft.applications.predict import predict as answer

    counts = answer(run, input, output, batch_size=batch_size, overwrite=overwrite, progress=True)
    print(f"{output}: {counts['rows']:,} rows, {counts['refused']:,} refused")


@app.command(name="serve-model")
def serve_model(
    run: Run,
    name: Annotated[str | None, typer.Option(help="What clients call the adapter; default the folder's name.")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="Another run on the same base.", metavar="NAME=RUN")] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder that clients may load runs from; default the run's parent.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; beyond this machine QPEFT_API_KEY must be set.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
) -> None:
    """Serve a run as an OpenAI-compatible chat API, with other adapters on the same base loaded and unloaded by name."""
    import os

    from qpeft.applications.server import serve
    from qpeft.applications.serving import Adapters
    from qpeft.errors import RunError

    adapters = Adapters(run, name=name, root=runs)
    for text in adapter or ():
        other, equals, folder = text.partition("=")
        if not equals:
            raise RunError("not NAME=RUN", value=text)
        adapters.load(other, Path(folder), inside=False)
    print(f"http://{host}:{port}/v1 serves {', '.join(adapters.names())}", flush=True)
    serve(adapters, host=host, port=port, api_key=os.environ.get("QPEFT_API_KEY"))
