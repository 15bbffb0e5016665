"""Which records belong together: one section for each recipe group, base model and data, nothing pooled across them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qpeft.errors import RunError
from qpeft.records import RunRecord

_OWN_TO_A_RUN = {"seed", "seeds", "data_seed", "output", "output_dir", "run_dir", "logging_dir"}


@dataclass(frozen=True)
class LabelRuns:
    """The runs of one label in one section, ascending in seed, one for each seed."""

    label: str
    runs: tuple[RunRecord, ...]

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        """The runs with status "ok": the only ones that enter a mean, a table or a plot."""
        return tuple(run for run in self.runs if run.status == "ok")

    @property
    def failed(self) -> tuple[RunRecord, ...]:
        """The other runs."""
        return tuple(run for run in self.runs if run.status != "ok")

    def values(self, metric: str) -> dict[int, float]:
        """seed -> the metric after training, of the finished runs that measured it."""
        return {run.seed: run.metrics[metric] for run in self.finished if metric in run.metrics}


@dataclass(frozen=True)
class ComparableRuns:
    """Records that may be compared: same group, model and hashes. Arms stand in order of first appearance.

    `superseded` holds the older runs of a (label, seed) that was run again; they enter no number.
    """

    group: str
    model: str
    hashes: Mapping[str, str]
    arms: tuple[LabelRuns, ...]
    superseded: tuple[RunRecord, ...]

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """All runs that count, arm by arm."""
        return tuple(run for arm in self.arms for run in arm.runs)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the held-out metrics of the finished runs: loss, then the others by name."""
        names = {name for arm in self.arms for run in arm.finished for name in run.metrics}
        return tuple(sorted(names, key=lambda name: (name != "loss", name)))


def sections(records: Iterable[RunRecord]) -> list[ComparableRuns]:
    """Sort records into sections, in order of first appearance.

    Records with equal id count once. Of several runs with equal (group, model, data, label, seed) the newest `created_at`
    counts, the later in the file when that is equal. A failed run that stopped before its data was hashed joins the first
    section whose hashes include its own.

    Raises RunError when there is no record, or when one holds a number that is not finite.
    """
    unique: dict[str, RunRecord] = {}
    for record in records:
        try:
            unique.setdefault(record.id, record)
        except ValueError as error:
            raise RunError(
                "a record holds a number that is not finite",
                value=f"{record.label}, seed {record.seed}",
                hint='record a run that diverged with status "failed" and without the number',
            ) from error
    if not unique:
        raise RunError("there are no records to report", hint="train first, then name the record file that the run wrote")

    members: dict[tuple[str, str, str], list[RunRecord]] = {}
    for record in sorted(unique.values(), key=lambda record: record.status != "ok"):  # stable: finished runs found a section first
        mine = (record.group, record.model, json.dumps(dict(record.hashes), sort_keys=True))
        homes = [mine]
        if record.status != "ok" and mine not in members:
            homes = [key for key in members if key[:2] == mine[:2] and record.hashes.items() <= json.loads(key[2]).items()] or homes
        members.setdefault(homes[0], []).append(record)

    place = {key: position for position, key in enumerate(unique)}
    return [
        _section(group, model, json.loads(hashes), sorted(runs, key=lambda run: place[run.id]))
        for (group, model, hashes), runs in members.items()
    ]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys, without the settings that are a run's own (its seed and folders).

    Args:
        config: the nested mapping.
        prefix: put before each key.
    """
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        elif key not in _OWN_TO_A_RUN:
            leaves[f"{prefix}{key}"] = value
    return leaves


def differing(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """The dotted keys whose values are not the same in all configs, sorted."""
    flats = [flat(config) for config in configs]
    keys = {key for leaves in flats for key in leaves}
    return sorted(key for key in keys if len({json.dumps(leaves.get(key), sort_keys=True) for leaves in flats}) > 1)


def _section(group: str, model: str, hashes: Mapping[str, str], runs: list[RunRecord]) -> ComparableRuns:
    newest: dict[tuple[str, int], RunRecord] = {}
    superseded: list[RunRecord] = []
    for run in sorted(runs, key=lambda run: _moment(run.created_at)):  # stable: equal times keep the file's order
        older = newest.get((run.label, run.seed))
        if older is not None:
            superseded.append(older)
        newest[run.label, run.seed] = run
    arms = tuple(
        LabelRuns(label, tuple(sorted((run for run in newest.values() if run.label == label), key=lambda run: run.seed)))
        for label in dict.fromkeys(run.label for run in runs)
    )
    return ComparableRuns(group, model, hashes, arms, tuple(superseded))


def _moment(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 time, UTC when it names no zone; minus infinity when it is none."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return float("-inf")
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
