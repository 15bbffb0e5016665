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
    to: Annotated[
        str,
        typer.Option(
            help="lora (stock PEFT), merged, gguf-lora (llama.cpp), torch, torch-model or surrogate; one circuit: qasm3, qasm2, "
            "originir or qiskit."
        ),
    ],
    output: Annotated[Path | None, typer.Option(help="Folder to write; default RUN/exported/FORMAT.")] = None,
    adapter: Annotated[str, typer.Option(help="Name of the adapter, where the run holds several.")] = "default",
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the LoRA; default exact, or what --tolerance needs.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Relative Frobenius error allowed for each module; default 0.01.")
    ] = None,
    calibration: Annotated[str | None, typer.Option(help="Rows to fit on; default the recipe's training rows.")] = None,
    calibration_rows: Annotated[
        int | None, typer.Option(min=1, help="Number of rows to fit on; default 64, with --steps or --surrogate regression 256.")
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="Steps of training towards the adapter's logits, after the fit.")] = 0,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Learning rate of these steps.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of the rows' order and of simulated shots.")] = 0,
    lora_bias: Annotated[bool, typer.Option("--lora-bias", help="Fit a constant to each module too (PEFT only).")] = False,
    via_lora: Annotated[bool, typer.Option("--via-lora", help="With --to merged: merge a fitted LoRA.")] = False,
    backend: Annotated[str | None, typer.Option(help="With --to surrogate or torch: where the circuits are measured.")] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="Shots of every circuit; default exact, where the backend can.")] = None,
    error: Annotated[float | None, typer.Option(help="With --backend: RMS error of a stored value; default 0.05.")] = None,
    surrogate: Annotated[
        str | None, typer.Option(help="With --backend: auto, grid, sparse or regression (on calibration rows).")
    ] = None,
    module: Annotated[str | None, typer.Option(help="One circuit: the module's name, or its end.")] = None,
    text: Annotated[str | None, typer.Option(help="One circuit: a prompt, whose inputs it gets; default free inputs.")] = None,
    token: Annotated[int | None, typer.Option(help="With --text: which token's inputs; default the last.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    as_json: AsJson = False,
) -> None:
    """Convert an adapter: LoRA, merged, GGUF, PyTorch, circuits.

    `torch` writes each module's tensors and a short file that applies them without qpeft; `torch-model` a model folder with remote
    code; `surrogate` an adapter whose circuit values were measured once. Prints what the conversion loses on held-out rows. A
    circuit (`--to qasm3 --module NAME`) has its trained angles, and `expected.json` next to it.
    """
    from qpeft.errors import RunError
    from qpeft.export.circuit import FILES, export_circuit
    from qpeft.export.run import Options
    from qpeft.export.run import export as write

    if to in FILES:
        changed = {"--rank": rank, "--tolerance": tolerance, "--calibration": calibration, "--steps": steps, "--backend": backend}
        changed |= {"--shots": shots, "--lora-bias": lora_bias, "--via-lora": via_lora, "--error": error, "--surrogate": surrogate}
        if extra := [option for option, value in changed.items() if value]:
            raise RunError("one circuit takes none of these", value=", ".join(extra), hint="--module NAME [--text PROMPT]")
        if module is None:
            raise RunError("which module's circuit?", hint="--module NAME, such as model.layers.0.self_attn.q_proj")
        if token is not None and text is None:
            raise RunError("--token is of a prompt", hint="--text PROMPT")
        folder = output or run / "exported" / f"{to}-{module}"
        found = export_circuit(
            run, folder, to, module, text=text, token=-1 if token is None else token, adapter=adapter, overwrite=overwrite
        )
        if as_json:
            print(json.dumps(found))
            return
        where = (
            f", token {found['token']} ({found['token_text']!r}) of {found['tokens']}"
            if text is not None and "token" in found
            else ""
        )
        print(f"{found['module']}: {found['qubits']} qubits, {len(found['angles'])} trained angles{where}")
        rows = [
            (
                " + ".join(f"{c:g} {p}" if c != 1 else p for c, p in observable),
                *(f"{v['expectations'][k]:+.6f}" for v in found["values"]),
            )
            for k, observable in enumerate(found["observables"])
        ]
        heads = [f"inputs {k}" if len(found["values"]) > 1 else "expected" for k in range(len(found["values"]))]
        print_table(("observable", *heads), rows)
        print(f"exported: {folder / found['file']}, {folder / 'expected.json'}")
        return
    if module is not None or text is not None or token is not None:
        raise RunError("--module, --text and --token are for one circuit", value=to, bound=", ".join(FILES))
    options = Options(
        to=to,
        adapter=adapter,
        rank=rank,
        tolerance=tolerance,
        calibration=calibration,
        calibration_rows=calibration_rows or 0,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        lora_bias=lora_bias,
        via_lora=via_lora,
        backend=backend,
        shots=shots,
        error=error,
        surrogate=surrogate,
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
    if kept := report.get("surrogate"):
        print(
            f"measured on {kept['backend']}: {kept['spent']['circuits']:,} circuits, error of a value from shots "
            f"{kept['shot_error_rms']:.4f}, off the noiseless circuit {kept['off_the_exact_circuit_rms']:.4f} (RMS)"
        )
        print(f"stored as {kept['kind']}: {kept['numbers']:,} numbers, estimated error {kept['error_rms']:.4f} RMS")
    print(f"exported: {folder}")
