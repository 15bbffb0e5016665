"""The command that says what a recipe would cost on a backend."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from qpeft.cli.common import AsJson, HelpPanel, Recipe, Set, app, examples, print_table


@app.command(
    rich_help_panel=HelpPanel.CHIPS,
    epilog=examples("qpeft plan recipes/chip.yaml", "qpeft plan recipe.yaml --backend emulator:wukong-180 --shots 1000"),
)
def plan(
    recipe: Recipe,
    settings: Set = None,
    backend: Annotated[str | None, typer.Option(help="Such as emulator:wukong-180; default the recipe's.")] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="Shots of every circuit; default the recipe's, else 1,000.")] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate what training on a chip would cost.

    Compares the ways to run a recipe's circuits on a backend and names the one chosen. Nothing runs and nothing is sent.
    """
    from qpeft.errors import RunError
    from qpeft.training.on_chip.cost_estimate import plan as make
    from qpeft.training.recipe.config import BackendSection, load_recipe

    config = load_recipe(recipe, settings or ())
    section = config.backend
    if section is None and backend is None:
        raise RunError("the recipe names no backend", value=str(recipe), hint="--backend NAME, or a backend section")
    values = section.model_dump(mode="json") if section is not None else {}
    if backend is not None:
        values = {**values, "name": backend, "pack": values.get("pack", False) and backend.startswith("emulator:")}
    if shots is not None:
        values["shots"] = shots
    if values.get("gradient") == "emulator-autograd":
        values["gradient"] = "auto"  # runs nothing on the chip that is planned for
    found = make(config, BackendSection.model_validate_json(json.dumps(values)))
    print(json.dumps(found) if as_json else "", end="\n" if as_json else "")
    if not as_json:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    for circuit in found["circuits"][:3]:
        points = circuit["surrogate_points"]
        surrogate = "no surrogate" if points is None else f"{points:,} points of a surrogate"
        print(
            f"circuit of {circuit['qubits']} qubits, {circuit['angles']} angles, in {circuit['modules']} modules: {surrogate}, "
            f"{circuit['circuits_per_program']} at once"
        )
    if (more := len(found["circuits"]) - 3) > 0:
        print(f"and {more:,} more circuits")
    shots = found["shots_per_circuit"]
    print(
        f"{found['steps']:,} steps of about {found['positions_per_step']:,} token positions, {found['evaluations']} evaluations, "
        f"{'exact probabilities' if shots is None else f'{shots:,} shots per circuit'} on {found['backend']}"
    )
    rows = []
    for name, way in found["training"].items():
        rows.append((f"{name}, a step", *_cells(way["step"]), ""))
        rows.append((f"{name}, training", *_cells(way["training"]), "{} to {}".format(*map(_time, way["queue_s"]))))
    inference = found["inference"]
    if "surrogate_once" in inference:
        rows.append(("surrogate, inference, once", *_cells(inference["surrogate_once"]), ""))
    rows.append(("direct, inference, 1,000 tokens", *_cells(inference["direct_per_1000_tokens"]), ""))
    print_table(("", "circuits", "shots", "programs", "jobs", "chip time", "waiting in queues"), rows)
    print(f"choice: {found['choice']}: {found['why']}")
    if "money" in found:
        money = found["money"]
        bound = "" if money["budget"] is None else f", of a budget of {money['budget']:,g}"
        print(f"price of training: {money['training'][found['choice']]:,.2f} {money['currency']}{bound}")
    print("direct execution runs equal rows once, so it may cost less than it says here")
    if found["simulated"]:
        print("this backend is a classical computer; chip time and queues are those of the chip it stands for")


def _cells(cost: dict[str, Any]) -> tuple[str, ...]:
    return (*(f"{cost[name]:,}" for name in ("circuits", "shots", "programs", "jobs")), _time(cost["seconds"]))


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"
