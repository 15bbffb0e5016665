"""The results part of docs/applications.md and its picture, from results alone."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qpeft.applications.task import group_order
from qpeft.report.statistics import corrected, estimate, paired_difference
from qpeft.report.style import LIGHT, drawing, marks

MEASURES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "auroc": "AUROC",
    "ece": "ECE",
    "log_loss": "log loss, nats",
    "cost": "cost per row, likeliest label",
    "cost_best": "cost per row, cheapest label",
    "exact_match": "exact match",
    "rouge1": "ROUGE-1",
    "rougeL": "ROUGE-L",
    "perplexity": "perplexity",
}
RANKED = ("auroc", "accuracy", "exact_match", "rougeL")
MARK = "<!-- results: everything below is made by python -m benchmarks.applications -->"
ADAPTER, BASE, FLOOR = "adapter", "base model", "most frequent"
Results = list[dict[str, Any]]
Lines = dict[str, list[dict[str, float]]]


def write(results: Results, path: Path, picture: Path) -> None:
    """Replace what stands below MARK, and the picture."""
    head = path.read_text(encoding="utf-8").partition(MARK)[0]
    told = "\n".join(["", *page(results)]) + "\n" if results else "\nNo results yet.\n"
    path.write_text(f"{head}{MARK}\n{told}", encoding="utf-8")
    drawn = {task: found for task, found in tasks(results).items() if "reliability" in found[0]}
    if drawn:
        draw(drawn, picture)


def tasks(results: Results) -> dict[tuple[str, str], Results]:
    """The results by task and model, in order of appearance."""
    found: dict[tuple[str, str], Results] = defaultdict(list)
    for result in results:
        found[result["task"], result["model"]].append(result)
    return dict(found)


def values(found: Results) -> Lines:
    """Name of a line -> the measures of each seed behind it. An adapter's lines are told apart by arm; the base model and the
    baselines do not depend on the seed and are given once.
    """
    lines: Lines = defaultdict(list)
    for result in sorted(found, key=lambda result: result["seed"]):
        more = {"parameters": result["trainable_parameters"]}
        if unrelated := result.get("unrelated"):
            more["forgotten"] = unrelated[ADAPTER] - unrelated[BASE]
        lines[result["label"]].append({**result["models"][ADAPTER], **more})
    lines |= {name: [measures] for name, measures in found[0]["models"].items() if name != ADAPTER}
    return lines


def page(results: Results) -> list[str]:
    """For each task and model: what was run, measures, differences between arms, subgroups."""
    lines = []
    for (task, model), found in tasks(results).items():
        lines += [f"## {task}, {model}", "", _facts(found), "", *_table(values(found)), "", *_paired(found), *_reasons(found)]
        lines += [*_groups(found), ""] if found[0].get("groups") else []
    return lines[:-1]


def _facts(found: Results) -> str:
    first, training = found[0], found[0]["training"]
    seeds = sorted({result["seed"] for result in found})
    return (
        f"{first['rows']:,} {first['part']} rows (file SHA-256 `{first['rows_sha256'][:16]}`), seeds {', '.join(map(str, seeds))}, "
        f"{training['max_steps']} steps of {training['per_device_train_batch_size']} rows, cut at {training['max_length']} tokens."
    )


def _rows(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(header)} |", "|---" + "|--:" * (len(header) - 1) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _table(lines: Lines) -> list[str]:
    keys = {key: words for key, words in MEASURES.items() if any(key in m for many in lines.values() for m in many)}
    keys |= {"forgotten": "forgetting, nats/token"} if any("forgotten" in m for many in lines.values() for m in many) else {}
    rows = []
    for name, many in lines.items():
        trained = [f"{many[0]['parameters']:,}", str(len(many))] if "parameters" in many[0] else ["-", "-"]
        rows.append([name, *trained, *(_cell([m[key] for m in many if key in m]) for key in keys)])
    return _rows(["model", "trainable parameters", "seeds", *keys.values()], rows)


def _cell(numbers: list[float]) -> str:
    if not numbers:
        return "-"
    found = estimate(numbers)
    return f"{found.mean:.3f}" + (f" ± {found.half_width:.3f}" if found.half_width is not None else "")


def _paired(found: Results) -> list[str]:
    """Every pair of arms on the seeds that both have: the difference of the first measure that all have, with Holm's correction."""
    measure = next(m for m in RANKED if all(m in result["models"][ADAPTER] for result in found))
    arms: dict[str, dict[int, float]] = defaultdict(dict)
    for result in found:
        arms[result["label"]][result["seed"]] = result["models"][ADAPTER][measure]
    pairs = []
    for one, other in itertools.combinations(arms, 2):
        seeds = sorted(arms[one].keys() & arms[other].keys())
        if len(seeds) > 1:
            pairs.append(paired_difference(one, [arms[one][s] for s in seeds], other, [arms[other][s] for s in seeds]))
    if not pairs:
        return []
    rows = []
    for pair in corrected(pairs):
        gap = pair.difference
        p = "-" if pair.p_holm is None else f"{pair.p_holm:.2g}"
        rows.append([f"{pair.label} − {pair.reference}", str(gap.n), f"{gap.mean:+.3f} ± {gap.half_width:.3f}", p])
    return [*_rows([f"{MEASURES[measure]}, paired by seed", "seeds", "difference", f"p, Holm over {len(pairs)}"], rows), ""]


def _reasons(found: Results) -> list[str]:
    """Reasons: how many texts parse, and how many reasons are the rule's."""
    if "reasons" not in found[0]:
        return []
    lines: Lines = defaultdict(list)
    for result in found:
        lines[result["label"]].append(result["reasons"][ADAPTER])
    lines |= {name: [measured] for name, measured in found[0]["reasons"].items() if name != ADAPTER}
    keys = {"parses": "texts that parse", "reasons_agree": "reasons that are the rule's", "first_agrees": "first reason agrees"}
    rows = [[name, *(_cell([m[key] for m in many]) for key in keys)] for name, many in lines.items()]
    return [*_rows(["reasons", *keys.values()], rows), ""]


def _groups(found: Results) -> list[str]:
    """Accuracy and true positive rate by subgroup: the first seed of each arm, and the baselines."""
    seen: dict[str, dict[str, Any]] = {}
    for result in sorted(found, key=lambda result: result["seed"]):
        seen.setdefault(result["label"], result)
    first = next(iter(seen.values()))
    others = [name for name in first["models"] if name not in (ADAPTER, FLOOR)]
    lines = []
    for group, inside in first["groups"].items():
        rows = []
        for value, cell in sorted(inside.items(), key=lambda item: group_order(item[0])):
            arms = [_group_cell(result["groups"][group][value][ADAPTER]) for result in seen.values()]
            rows.append([value, f"{cell['rows']:,}", *arms, *(_group_cell(cell[name]) for name in others)])
        lines += [f"By {group}: accuracy (true positive rate). Adapters: their first seed.", ""]
        lines += [*_rows([group, "rows", *seen, *others], rows), ""]
    return lines[:-1]


def _group_cell(measured: Mapping[str, float]) -> str:
    rate = measured.get("true_positive_rate")
    return f"{measured['accuracy']:.2f}" + (f" ({rate:.2f})" if rate is not None else "")


def draw(drawn: Mapping[tuple[str, str], Results], path: Path) -> None:
    """A row a task: balanced accuracy and AUROC with 95% t intervals over seeds, and how far probabilities can be believed."""
    look = marks(name for found in drawn.values() for name in values(found) if name != FLOOR)
    with drawing(LIGHT):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11.5, 3.4 * len(drawn)), layout="constrained")
        for row, ((task, model), found) in zip(figure.subplots(len(drawn), 3, squeeze=False), drawn.items(), strict=True):
            lines = {name: many for name, many in values(found).items() if name != FLOOR}
            for axes, key in zip(row, ("balanced_accuracy", "auroc"), strict=False):
                for place, (name, many) in enumerate(lines.items()):
                    told = estimate([m[key] for m in many if key in m]) if any(key in m for m in many) else None
                    if told is not None:
                        style = {"color": look[name].color(LIGHT), "marker": look[name].marker, "capsize": 3}
                        axes.errorbar(told.mean, place, xerr=told.half_width or 0, linestyle="none", **style)
                axes.axvline(found[0]["models"][FLOOR].get(key, 0.5), color=LIGHT.muted, linestyle="dashed", linewidth=1)
                axes.set_yticks(range(len(lines)), list(lines) if axes is row[0] else [])
                axes.invert_yaxis()
                axes.margins(y=0.12)
                axes.set_xlabel(MEASURES[key])
            _reliability(row[2], found, lines, look)
            means = {
                name: sum(m["auroc"] for m in many) / len(many) for name, many in lines.items() if all("auroc" in m for m in many)
            }
            best = max(means, key=lambda name: means[name])
            title = (
                f"{task}, {model.removeprefix('package:')}: highest AUROC {best} ({means[best]:.2f}), {found[0]['rows']} test rows"
            )
            row[1].set_title(title, fontsize=10)
        figure.suptitle(
            "Mean and 95% t interval over seeds; calibration. Dashed: most frequent label, and perfect calibration",
            fontsize=10,
        )
        figure.savefig(path, dpi=130)


def _reliability(axes: Any, found: Results, lines: Lines, look: Mapping[str, Any]) -> None:
    """Curves of arms pool the bins of all their seeds."""
    axes.plot([0, 1], [0, 1], color=LIGHT.muted, linestyle="dashed", linewidth=1)
    for name in lines:
        curves = [r["reliability"][ADAPTER] for r in found if r["label"] == name] or [found[0]["reliability"][name]]
        bins: dict[int, list[dict[str, float]]] = defaultdict(list)
        for part in itertools.chain.from_iterable(curves):
            bins[min(int(part["confidence"] * 10), 9)].append(part)
        pooled = []
        for _, parts in sorted(bins.items()):
            count = sum(p["count"] for p in parts)
            pooled.append([sum(p["count"] * p[key] for p in parts) / count for key in ("confidence", "accuracy")])
        style = {"color": look[name].color(LIGHT), "marker": look[name].marker, "linestyle": look[name].dash}
        axes.plot([x for x, _ in pooled], [y for _, y in pooled], markersize=4, linewidth=1, **style)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy at that confidence")
