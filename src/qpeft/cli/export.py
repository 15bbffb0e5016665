"""Commands that take an adapter elsewhere: other formats, other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from qpeft.cli.common import AsJson, HelpPanel, Run, app, examples, print_table


@app.command(
    rich_help_panel=HelpPanel.TRAIN,
    epilog=examples("qpeft export runs/chip --to lora", "qpeft export runs/chip --to gguf-lora --tolerance 0.01"),
)
def export(
    run: Run,
    to: Annotated[str, typer.Option(help="lora (stock PEFT), merged, gguf-lora (llama.cpp), torch, torch-model or surrogate.")],
    output: Annotated[Path | None, typer.Option(help="Folder to write; default RUN/exported/FORMAT.")] = None,
    adapter: Annotated[str, typer.Option(help="Name of the adapter, where the run holds several.")] = "default",
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the LoRA; default exact, or what --tolerance needs.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Relative Frobenius error allowed for each module; default 0.01.")
    ] = None,
    calibration: Annotated[str | None, typer.Option(help="Rows to fit on; default the recipe's training rows.")] = None,
    calibration_rows: Annotated[int, typer.Option(min=1, help="Number of rows to fit on.")] = 256,
    steps: Annotated[int, typer.Option(min=0, help="Steps of training towards the adapter's logits, after the fit.")] = 0,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Learning rate of these steps.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of the rows' order and of simulated shots.")] = 0,
    lora_bias: Annotated[bool, typer.Option("--lora-bias", help="Fit a constant to each module too (PEFT only).")] = False,
    via_lora: Annotated[bool, typer.Option("--via-lora", help="With --to merged: merge a fitted LoRA.")] = False,
    backend: Annotated[str | None, typer.Option(help="With --to surrogate: where the circuits are measured.")] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="Shots of every circuit; default exact, where the backend can.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    as_json: AsJson = False,
) -> None:
    """Convert an adapter to LoRA, merged weights, GGUF or plain PyTorch.

    `torch` writes each module's tensors and a short file that applies them without qpeft; `torch-model` a model folder with remote
    code; `surrogate` an adapter whose circuit values were measured once. Prints what the conversion loses on held-out rows.
    """
    from qpeft.export.run import Options
    from qpeft.export.run import export as write

    options = Options(
        to=to,
        adapter=adapter,
        rank=rank,
        tolerance=tolerance,
        calibration=calibration,
        calibration_rows=calibration_rows,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        lora_bias=lora_bias,
        via_lora=via_lora,
        backend=backend,
        shots=shots,
    )
    folder = output or run / "exported" / to
    report = write(run, folder, options, overwrite=overwrite)
    if as_json:
        print(json.dumps(report))
        return
    measured = report["measured"]
    names = [name for name in ("base", "adapter", "fitted", "exported") if name in measured]
    keys = list(dict.fromkeys(key for name in names for key in measured[name]))
    rows = [(key, *(f"{measured[n][key]:,.5g}" if key in measured[n] else "-" for n in names)) for key in keys]
    print_table(("held-out" if report["held_out_rows"] else "", *names), rows)
    modules = report.get("modules", {})
    if modules:
        ranks = [module["rank"] for module in modules.values()]
        worst = max(module["relative_error"] for module in modules.values())
        how = ", ".join(f"{count} {way}" for way, count in report["how"].items())
        size = f"rank {min(ranks)} to {max(ranks)}, {report['parameters']:,} parameters"
        print(f"modules: {how}; {size}; largest relative error {worst:.3g}")
    if surrogate := report.get("surrogate"):
        print(
            f"measured on {surrogate['backend']}: {surrogate['spent']['circuits']:,} circuits, error of a value from shots "
            f"{surrogate['shot_error_rms']:.4f}, off the noiseless circuit {surrogate['off_the_exact_circuit_rms']:.4f} (RMS)"
        )
    print(f"exported: {folder}")
