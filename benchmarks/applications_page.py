"""The page of the special jobs and its pictures, from results alone."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from qpeft.report.statistics import estimate

MEASURES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "auroc": "AUROC",
    "ece": "ECE",
    "cost": "cost of the likeliest answer",
    "cost_best": "cost of the cheapest answer",
    "exact_match": "exact match",
    "rouge1": "ROUGE-1",
    "rougeL": "ROUGE-L",
    "perplexity": "perplexity",
}
Results = list[dict[str, Any]]


def page(results: Results) -> str:
    """Markdown: for each task a table of models by measures, then subgroups."""
    lines = [
        "# Special jobs: results",
        "",
        "Made by `python -m benchmarks.applications` from `docs/benchmarks/applications.jsonl`. A number is the mean over seeds, "
        "with the half width of its 95% t interval where there are two seeds or more; baselines and the base model do not depend "
        "on the training's seed. Every line of a task is measured on the same held-out rows. No advantage of a quantum method is "
        "claimed: circuits of this size are simulated on a classical computer.",
    ]
    tasks: dict[str, Results] = defaultdict(list)
    for result in results:
        tasks[result["task"]].append(result)
    for task, found in tasks.items():
        lines += ["", f"## {task}", "", *_facts(found), "", *_table(found)]
        if any("groups" in result and result["groups"] for result in found):
            lines += ["", *_groups(found)]
    return "\n".join(lines) + "\n"


def _facts(found: Results) -> list[str]:
    first = found[0]
    training = first["training"]
    seeds = sorted({result["seed"] for result in found})
    return [
        f"{first['model']}, {first['rows']:,} {first['part']} rows (file SHA-256 `{first['rows_sha256'][:16]}`), "
        f"seeds {', '.join(map(str, seeds))}, {training['max_steps']} steps of {training['per_device_train_batch_size']} rows, "
        f"rows cut at {training['max_length']} tokens."
    ]


def _values(found: Results) -> dict[str, Results]:
    """Name of a line -> the measures behind it; the adapter's lines are told apart by arm."""
    lines: dict[str, Results] = defaultdict(list)
    for result in found:
        for name, measures in result["models"].items():
            if name == "adapter":
                unrelated = result.get("unrelated", {})
                lost = {"forgotten": unrelated["adapter"] - unrelated["base model"]} if unrelated else {}
                parameters = {"parameters": result["trainable_parameters"]}
                lines[f"{result['label']} on the model"].append({**measures, **lost, **parameters})
            elif not lines[name]:
                lines[name].append(measures)
    return lines


def _table(found: Results) -> list[str]:
    lines = _values(found)
    keys = [key for key in MEASURES if any(key in measures for many in lines.values() for measures in many)]
    forgotten = any("forgotten" in measures for many in lines.values() for measures in many)
    header = ["", "trained parameters", *(MEASURES[key] for key in keys), *(["forgotten, nats a token"] if forgotten else [])]
    rows = [f"| {' | '.join(header)} |", "|---" + "|--:" * (len(header) - 1) + "|"]
    for name, many in lines.items():
        parameters = f"{many[0]['parameters']:,}" if "parameters" in many[0] else "-"
        cells = [_cell([m[key] for m in many if key in m]) for key in keys]
        cells += [_cell([m["forgotten"] for m in many if "forgotten" in m])] if forgotten else []
        rows.append(f"| {name} | {parameters} | {' | '.join(cells)} |")
    return rows


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    found = estimate(values)
    return f"{found.mean:.3f}" + (f" ± {found.half_width:.3f}" if found.half_width is not None else "")


def _groups(found: Results) -> list[str]:
    """Accuracy, and the rate of true positives, by subgroup: the first seed of each arm, beside the baselines."""
    seen: dict[str, dict[str, Any]] = {}
    for result in sorted(found, key=lambda result: result["seed"]):
        seen.setdefault(result["label"], result)
    first = next(iter(seen.values()))
    baselines = [name for name in first["models"] if name not in ("adapter", "most frequent")]
    lines = []
    for group, values in first["groups"].items():
        head = [*(f"{label} (seed {result['seed']})" for label, result in seen.items()), *baselines]
        lines += [f"By {group}: accuracy, and in brackets the share of true positives found.", ""]
        lines += [f"| {group} | rows | {' | '.join(head)} |", "|---" + "|--:" * (len(head) + 1) + "|"]
        for value, cell in values.items():
            cells = [_group_cell(result["groups"][group][value]["adapter"]) for result in seen.values()]
            cells += [_group_cell(cell[name]) for name in baselines]
            lines.append(f"| {value} | {cell['rows']:,} | {' | '.join(cells)} |")
        lines.append("")
    return lines[:-1]


def _group_cell(measured: dict[str, float]) -> str:
    rate = measured.get("true_positive_rate")
    return f"{measured['accuracy']:.2f}" + (f" ({rate:.2f})" if rate is not None else "")


def write(results: Results, path: Path) -> None:
    """The page."""
    path.write_text(page(results), encoding="utf-8")
