"""Which records are pooled, which count once, which are superseded."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qpeft.errors import RunError
from qpeft.records import RunRecord
from qpeft.report.sections import differing, sections

Record = Callable[..., RunRecord]


def test_no_records() -> None:
    with pytest.raises(RunError, match="hint"):
        sections([])


def test_a_number_that_is_not_finite(record: Record) -> None:
    with pytest.raises(RunError, match=r"broken arm, seed 7.*hint"):
        sections([record(label="broken arm", seed=7, metrics={"loss": float("nan")})])


@pytest.mark.parametrize("change", [{"group": "other"}, {"model": "other"}, {"hashes": {"train": "00"}}])
def test_other_groups_models_and_data_are_not_pooled(record: Record, change: dict[str, object]) -> None:
    found = sections([record(seed=0), record(seed=1), record(seed=2, **change)])
    assert [[run.seed for run in section.runs] for section in found] == [[0, 1], [2]]


def test_equal_records_count_once(record: Record) -> None:
    (section,) = sections([record(seed=0), record(seed=1), record(seed=0)])
    assert [run.seed for run in section.runs] == [0, 1]
    assert section.superseded == ()


@pytest.mark.parametrize("turned", [False, True])
def test_the_newest_run_of_an_arm_and_seed_counts(record: Record, turned: bool) -> None:
    old = record(final=2.0, created_at="2025-01-01T23:00:00+00:00")
    new = record(final=3.0, created_at="2025-01-01T20:00:00-05:00")  # two hours later, though its text sorts first
    (section,) = sections([new, old] if turned else [old, new])
    assert section.runs == (new,)
    assert section.superseded == (old,)


def test_of_runs_made_at_the_same_time_the_later_in_the_file_counts(record: Record) -> None:
    first, second = record(final=2.0), record(final=3.0)
    assert sections([first, second])[0].runs == (second,)
    assert sections([second, first])[0].runs == (first,)
    undated = [record(final=2.0, created_at=""), record(final=3.0, created_at="yesterday")]
    assert sections(undated)[0].runs == (undated[1],)


def test_arms_keep_the_order_of_the_file_and_seeds_ascend(record: Record) -> None:
    (section,) = sections([record(label=label, seed=seed) for seed in (2, 0, 1) for label in ("b", "a")])
    assert [(run.label, run.seed) for run in section.runs] == [("b", 0), ("b", 1), ("b", 2), ("a", 0), ("a", 1), ("a", 2)]


def test_a_run_that_failed_before_its_data_was_hashed_joins_its_section(record: Record) -> None:
    failed = record(seed=1, status="failed", error="no memory", hashes={}, metrics={})
    (section,) = sections([failed, record(seed=0)])
    assert [run.status for run in section.runs] == ["ok", "failed"]
    assert section.hashes == record(seed=0).hashes
    assert len(sections([failed, record(seed=0, model="other")])) == 2


def test_a_failed_run_that_was_repeated_is_superseded(record: Record) -> None:
    failed = record(status="failed", error="no memory", hashes={}, metrics={}, created_at="2024-12-31T00:00:00+00:00")
    (section,) = sections([failed, record()])
    assert section.runs == (record(),)
    assert section.superseded == (failed,)


def test_a_success_that_was_repeated_and_failed_is_superseded_too(record: Record) -> None:
    failed = record(status="failed", error="no memory", metrics={}, created_at="2026-01-01T00:00:00+00:00")
    (section,) = sections([record(), failed])
    assert section.runs == (failed,)
    assert section.arms[0].finished == ()


def test_metrics_start_with_loss(record: Record) -> None:
    (section,) = sections([record(metrics={"bleu": 0.5, "loss": 2.0}), record(seed=1, metrics={"accuracy": 0.1, "loss": 2.0})])
    assert section.metrics == ("loss", "accuracy", "bleu")


def test_differing_settings() -> None:
    base = {"training": {"seed": 0, "learning_rate": 1e-3}, "output_dir": "a", "adapter": {"r": 8, "targets": ["q"]}}
    other = {"training": {"seed": 1, "learning_rate": 2e-3}, "output_dir": "b", "adapter": {"r": 8, "targets": ["q", "v"]}}
    assert differing([base, other]) == ["adapter.targets", "training.learning_rate"]
    assert differing([base, base | {"output_dir": "c"}]) == []
    assert differing([base, base | {"extra": 1}]) == ["extra"]
    assert differing([]) == []
