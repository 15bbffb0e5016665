"""The card of a prepared data set: content, source, splits, and limits of use."""

from __future__ import annotations

from collections.abc import Mapping

from qpeft.applications.data_sets.base import DataSet
from qpeft.applications.data_sets.sources import FileSource, HubSource, PackageSource
from qpeft.applications.preparation.splits import PARTS
from qpeft.applications.task import Task


def card(
    data: DataSet, task: Task, counts: Mapping[str, Mapping[str, int]], hashes: Mapping[str, str], left_out: int, seed: int
) -> str:
    """Text of the card, in Markdown.

    Args:
        data: the data set.
        task: its task.
        counts: rows of each label, by part.
        hashes: SHA-256 of each part's file.
        left_out: rows that are in no part.
        seed: of the split.
    """
    lines = [f"# {data.name}", "", data.title, "", "| | |", "|---|---|", f"| source | {data.source.words} |"]
    if isinstance(data.source, PackageSource):
        lines.append(f"| SHA-256 of the source | `{data.source.sha256}` |")
    if isinstance(data.source, HubSource):
        lines.append(f"| address | hub id `{data.source.dataset}` |")
    lines.append(f"| licence | {data.licence} |")
    kin = f", rows of one `{data.group}` on one side" if data.group else ""
    own = "the source's own test rows; validation cut from its training rows" if data.in_test else "70% / 15% / 15%"
    strata = ", stratified by label" if data.kind == "classification" else ""
    lines.append(f"| split | {own}{kin}{strata}, by content hash, seed {seed} |")
    others = ", or kin of a test row" if data.in_test else ", or without a label" if isinstance(data.source, FileSource) else ""
    lines.append(f"| left out | {left_out} rows: copies{others} |")
    for part in PARTS:
        lines.append(f"| {part} | {sum(counts[part].values()):,} rows, SHA-256 `{hashes[part]}` |")
    lines += [f"| intended use | {data.use} |", "", "## Limits", ""]
    lines += [f"* {limit}" for limit in data.limits]
    if task.kind == "classification":
        lines += ["", "## Labels", "", f"| answer | {' | '.join(PARTS)} |", "|---|--:|--:|--:|"]
        lines += [f"| {answer} | {' | '.join(f'{counts[part].get(answer, 0):,}' for part in PARTS)} |" for answer in task.answers]
    if task.reasons:
        never = ", ".join(group.field for group in task.groups)
        lines += [
            "",
            "## Reasons",
            "",
            f"Each answer names the {task.reasons} columns that contribute most to it in a logistic regression of the training "
            "rows: how far each column moves the label's log-odds from the mean of the training rows. They are the regression's "
            "reasons: not the lender's, not causes, no ground for a notice to an applicant."
            + (f" These columns are kept out of the regression and are never a reason: {never}." if never else ""),
        ]
    if task.cost:
        lines += [
            "",
            "## Cost of errors",
            "",
            "| true \\ predicted | " + " | ".join(task.cost) + " |",
            "|---" * (1 + len(task.cost)) + "|",
        ]
        lines += [f"| {true} | {' | '.join(f'{row[other]:g}' for other in task.cost)} |" for true, row in task.cost.items()]
    if len(task.fields) > 1:
        lines += [
            "",
            "## Fields (of the training rows)",
            "",
            "| column | said as | may be |",
            "|---|---|---|",
        ]
        for f in task.fields:
            may = f"{f.low:g} to {f.high:g} {f.unit}".strip() if f.kind == "number" else f"{len(f.values)} categories"
            may = "dates" if f.kind == "date" else may
            may = "text" if f.kind == "text" else may
            lines.append(f"| {f.name} | {f.words} | {may}{', or empty' if f.optional else ''} |")
    return "\n".join(lines) + "\n"
