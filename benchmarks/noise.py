"""What shots and a chip's noise do to a trained adapter: `python -m benchmarks.noise --page docs/benchmarks/noise.md`.

QTHA with one circuit in all modules, trained exactly by the study's recipe on its first task, at 1e-2, which the study's tuning
chose for QTHA: once as it is, and once without its classical path, so that everything it says goes through the circuit. Then its
circuit is measured (`qpeft export --to surrogate`), with shots, on emulated chips with synthetic calibrations, and
held-out rows are judged with what was measured. Lines go to `--out`, and what is there is not done again.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import harness
from qpeft.records import RunRecord
from qpeft.report.style import LIGHT, drawing, marks
from qpeft.study.page import table
from qpeft.study.plan import ArmSection, StudyPlan, load_plan
from qpeft.study.tasks import prepare

PLAN = Path(__file__).parents[1] / "recipes" / "studies" / "breadth.yaml"
RATE = 1e-2
SHOTS = (100, 1_000, 10_000, None)
PLACES = {"simulator": "no noise", "emulator:wukong-72": "Wukong-72, emulated", "emulator:wukong-180": "Wukong-180, emulated"}
ADAPTER = {
    "peft_type": "QTHA",
    "r": 4,
    "hidden_size": 16,
    "bond_dim": 4,
    "n_layers": 1,
    "share_circuit": "model",
    "target_modules": ["q_proj", "v_proj"],
}
ARMS = {"with its classical path": ADAPTER, "circuit alone": {**ADAPTER, "classical_path": False}}


def trained(plan: StudyPlan, arm: str, seed: int, runs: Path) -> tuple[Path, RunRecord]:
    """The folder of a finished run, and its record."""
    from qpeft.training.loop.run import train

    config = plan.run(plan.tasks[0], ArmSection(label=f"QTHA, {arm}", kind="quantum", adapter=ARMS[arm]), "test", RATE, seed)
    folder = runs / f"{arm.replace(' ', '-')}-{seed}"
    return folder, train(config, folder, baseline=runs / "baseline.json")


def measured(folder: Path, place: str, shots: int | None, seed: int) -> dict[str, Any]:
    """Loss on held-out rows with a circuit measured there, and the mean error of its values."""
    from qpeft.export.models import open_run
    from qpeft.export.surrogate import export_surrogate
    from qpeft.training.model.held_out_loss import evaluate

    run = open_run(folder, "default", calibration=None, calibration_rows=0)
    with tempfile.TemporaryDirectory() as scratch:
        model, found = export_surrogate(run, Path(scratch), Path(scratch), place, shots, seed)
    judged = evaluate(model, run.held_out, run.tokenizer, batch_size=run.batch_size, share_prefixes=True)
    return {
        "loss": judged["loss"],
        "token_accuracy": judged["token_accuracy"],
        "off": found["surrogate"]["off_the_exact_circuit_rms"],
    }


def work(plan: StudyPlan, runs: Path, out: Path, seeds: int) -> None:
    """Every measurement that `out` does not hold."""
    key = ("arm", "seed", "place", "shots")
    known = {tuple(line[name] for name in key) for line in harness.read(out)} if out.exists() else set()
    records = harness.Records(out, keep=True)
    for seed, arm in itertools.product(range(seeds), ARMS):
        wanted = [(arm, seed, *rest) for rest in itertools.product(PLACES, SHOTS)]
        if all(one in known for one in wanted):
            continue
        folder, record = trained(plan, arm, seed, runs)
        for one in wanted:
            if one not in known:
                line = dict(zip(key, one, strict=True)) | measured(folder, one[2], one[3], seed)
                records.add({"kind": "noise", "loss_before": record.metrics_before["loss"], **line})
                print(", ".join(map(str, one)), f"loss {line['loss']:.4f}, off {line['off']:.3f}", flush=True)


def _picture(lines: list[dict[str, Any]], file: Path) -> None:
    """Loss against shots, mean and single seeds: a line a place, exact probabilities at the right, a panel an adapter."""
    look = marks(PLACES.values())
    with drawing(LIGHT):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4.6), layout="constrained", dpi=130)
        for axes, arm in zip(figure.subplots(1, len(ARMS)), ARMS, strict=True):
            mine = [line for line in lines if line["arm"] == arm]
            for place, name in PLACES.items():
                told = [[x["loss"] for x in mine if (x["place"], x["shots"]) == (place, shots)] for shots in SHOTS]
                style = {"color": look[name].color(LIGHT), "marker": look[name].marker}
                axes.plot(range(len(SHOTS)), [fmean(values) for values in told], label=name, **style)
                for at, values in enumerate(told):
                    axes.plot([at + 0.06] * len(values), values, linestyle="none", markersize=3, alpha=0.7, **style)
            axes.set_xticks(range(len(SHOTS)), [f"{shots:,}" if shots else "exact" for shots in SHOTS])
            axes.set(xlabel="shots per circuit", ylabel="held-out loss (nats/token)", title=f"QTHA, {arm}")
        figure.axes[0].plot([], [], "o", color=LIGHT.muted, markersize=3, label="single seeds")
        figure.suptitle(
            "The chip's noise raises the loss; more than 1,000 shots do not lower it (emulated chips, synthetic calibration)",
            fontsize=11,
        )
        figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncol=4)
        figure.savefig(file)


def page(out: Path, file: Path, image: Path) -> None:
    """The table and the picture from the lines alone."""
    lines = harness.read(out)
    _picture(lines, image)
    seeds = sorted({line["seed"] for line in lines})
    text = [
        "# Shots and noise at inference",
        "",
        "An adapter is trained with exact circuits, then evaluated with a limited number of shots or on an emulated noisy chip. "
        "This page shows how much its held-out loss rises. Chips are emulated with synthetic calibrations. "
        "Nothing ran on a real chip.",
        "",
        f"* SmolLM2-135M, ICD-10 chapters, {len(seeds)} seeds of training and of shots. Mean (range over seeds).",
        f"* Loss in nats/token; before training {lines[0]['loss_before']:.3f}.",
        "* RMSE: root mean square error of an expectation value, which lies between -1 and 1.",
        "* From 1,000 shots on, more shots have no measurable effect. On an emulated chip they cannot help: its noise is a bias.",
        "* [Training on a chip](../training-on-a-chip.md) has training with noise.",
        f"* Made by `python -m benchmarks.noise --page {file}` from `{out}`.",
        "",
        f"![Loss against shots](../images/{image.name})",
        "",
    ]
    for arm in ARMS:
        rows = []
        for place, shots in itertools.product(PLACES, SHOTS):
            mine = [x for x in lines if (x["arm"], x["place"], x["shots"]) == (arm, place, shots)]
            loss, right, off = ([x[name] for x in mine] for name in ("loss", "token_accuracy", "off"))
            cells = [PLACES[place], f"{shots:,}" if shots else "exact", f"{fmean(loss):.3f} ({min(loss):.3f} to {max(loss):.3f})"]
            rows.append([*cells, f"{fmean(right):.3f}", f"{fmean(off):.3f}"])
        head = ["measured on", "shots per circuit", "held-out loss", "token accuracy", "RMSE"]
        text += [f"QTHA, {arm}:", "", *table(head, rows)]
    file.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/noise.jsonl"))
    parser.add_argument("--runs", type=Path, default=Path("runs/noise"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--page", type=Path, help="write the page, after the work that is left")
    parser.add_argument("--image", type=Path, default=Path("docs/images/noise.png"))
    arguments = parser.parse_args()
    plan = load_plan(PLAN)
    prepare(plan.tasks[0])
    arguments.runs.mkdir(parents=True, exist_ok=True)
    work(plan, arguments.runs, arguments.out, arguments.seeds)
    if arguments.page:
        page(arguments.out, arguments.page, arguments.image)


if __name__ == "__main__":
    main()
