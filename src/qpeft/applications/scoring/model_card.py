"""The model card of an evaluated run: purpose, limits, and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qpeft.applications.task import Task
from qpeft.records import RunRecord

FILE = "MODEL_CARD.md"
NO_DEVICE = (
    "It is no medical device and no lending system. "
    "It was made to study fine-tuning: no decision about a person may rest on its answers."
)
_SHOWN = ("accuracy", "balanced_accuracy", "f1", "auroc", "ece", "cost", "exact_match", "rougeL", "perplexity")


def model_card(task: Task, record: RunRecord, found: Mapping[str, Any]) -> str:
    """Text of the card, in Markdown.

    Args:
        task: the task.
        record: the run's record.
        found: the result of `evaluate_task`.
    """
    training = record.config.get("training", {})
    rows = [
        ("base model", record.model),
        ("adapter", f"{record.label} ({record.method}), {record.trainable_parameters:,} trained parameters"),
        ("training", f"{record.steps:,} steps of {training.get('per_device_train_batch_size', '?')} rows, seed {record.seed}"),
        ("circuits", "simulated on a classical computer" if record.simulated else "none, or run on the backend of the record"),
        ("data", f"{task.name}: {task.title}"),
        ("licence of the data", task.licence or "not stated"),
        ("intended use", task.use or "not stated"),
        ("record", f"`{record.id}`"),
    ]
    lines = [f"# {record.label} for {task.name}", "", f"**{NO_DEVICE}**", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {said} |" for name, said in rows]
    lines += ["", "## Limits", "", *(f"* {limit}" for limit in task.limits)]
    lines.append(
        "* A fine-tuned language model can be wrong with confidence, and follows the wording of a prompt as well as its facts."
    )
    if task.fields:
        lines.append("* `qpeft predict` refuses unknown categories and warns of numbers out of range; nothing else does.")
    keys = [key for key in _SHOWN if any(key in measures for measures in found["models"].values())]
    lines += ["", "## How well", "", f"On {found['rows']:,} {found['part']} rows (file SHA-256 `{found['rows_sha256']}`).", ""]
    lines += [f"| | {' | '.join(key.replace('_', ' ') for key in keys)} |", "|---" + "|--:" * len(keys) + "|"]
    for name, measures in found["models"].items():
        lines.append(f"| {name} | {' | '.join(f'{measures[key]:.3f}' if key in measures else '-' for key in keys)} |")
    if base := found.get("difference", {}).get("base model"):
        lines += ["", f"Accuracy minus the base model's: {base['accuracy']:+.3f}, 95% bootstrap interval over rows "]
        lines[-1] += f"{base['low']:+.3f} to {base['high']:+.3f}."
    for group, values in found.get("groups", {}).items():
        lines += ["", f"| {group} | rows | accuracy |", "|---|--:|--:|"]
        lines += [f"| {value} | {cell['rows']:,} | {cell['adapter']['accuracy']:.3f} |" for value, cell in values.items()]
    return "\n".join(lines) + "\n"
