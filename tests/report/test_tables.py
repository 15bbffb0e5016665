"""Summaries, paired differences, notes and the console table."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from statistics import fmean

import pytest
from rich.console import Console
from scipy import stats

from qpeft.records import RunRecord
from qpeft.report import ArmSummary, console_table, notes, summarise
from qpeft.report.sections import sections
from qpeft.report.statistics import holm
from qpeft.report.tables import best, paired, reference_lora, summaries, unbeaten

Record = Callable[..., RunRecord]


def losses(record: Record, label: str, values: list[float], **changes: object) -> list[RunRecord]:
    """One run for each value, seeds 0, 1, ..."""
    return [record(label=label, seed=seed, metrics={"loss": value}, **changes) for seed, value in enumerate(values)]


def text_of(summaries: list[ArmSummary], width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(console_table(summaries, narrow=width < 120))
    return console.export_text()


def test_summary(record: Record) -> None:
    runs = [
        record(method="QTHA", seed=seed, parameters=46_080, wall_s=10.0 + seed, peak_memory_bytes=100 + seed, circuit_executions=7)
        for seed in (4, 1)
    ]
    (arm,) = summarise(runs)
    assert (arm.group, arm.model, arm.label, arm.method) == ("dolly-small", "SmolLM2-135M", "LoRA r=8", "QTHA")
    assert (arm.seeds, arm.failed_seeds) == ((1, 4), ())
    assert (arm.trainable_parameters, arm.share_of_reference) == (46_080, 0.1)
    assert (arm.wall_s, arm.peak_memory_bytes, arm.circuit_executions, arm.steps) == (12.5, 104, 7, 200)
    assert arm.before == pytest.approx(runs[0].metrics_before)
    for name in ("loss", "perplexity", "token_accuracy"):
        assert arm.after[name].mean == pytest.approx(fmean(run.metrics[name] for run in runs))
        assert arm.after[name].n == 2
    assert json.loads(json.dumps(dataclasses.asdict(arm)))["after"]["loss"]["n"] == 2


def test_failed_runs_enter_no_mean(record: Record) -> None:
    broken = {"status": "failed", "error": "no memory", "wall_s": 1e9, "metrics": {"loss": 99.0}}
    (arm,) = summarise([*losses(record, "a", [2.0, 2.2]), record(label="a", seed=7, **broken)])
    assert arm.after["loss"].mean == pytest.approx(2.1)
    assert (arm.seeds, arm.failed_seeds) == ((0, 1), (7,))
    assert arm.wall_s < 1e6
    (only,) = summarise([record(label="a", seed=7, **broken)])
    assert (only.seeds, only.failed_seeds, dict(only.after), only.wall_s) == ((), (7,), {}, 0.0)


def test_the_share_needs_a_reference(record: Record) -> None:
    (arm,) = summarise([record(reference_lora_parameters=None)])
    assert arm.share_of_reference is None


def test_pairs_use_shared_seeds_and_the_lora_arm(record: Record) -> None:
    base, better, worse = [2.2, 2.25, 2.21, 2.3], [2.1, 2.2, 2.18, 2.21], [2.5, 2.4, 2.45]
    records = [
        *losses(record, "first", better, method="QTHA"),
        *losses(record, "base", base, method="LORA"),
        *losses(record, "second", worse, method="IA3"),
        record(label="single", seed=0, method="VERA", metrics={"loss": 1.0}),
        record(label="strange seeds", seed=8, method="VERA", metrics={"loss": 1.0}),
    ]
    first, second = paired(sections(records)[0])
    assert (first.label, first.reference, second.label, second.reference) == ("first", "base", "second", "base")
    p_values = [float(stats.ttest_rel(better, base).pvalue), float(stats.ttest_rel(worse, base[:3]).pvalue)]
    assert [first.p, second.p] == pytest.approx(p_values)
    assert [first.p_holm, second.p_holm] == pytest.approx(holm(p_values))
    assert (first.difference.n, second.difference.n, first.lower, second.lower) == (4, 3, 4, 0)


def test_pairs_without_lora_use_the_first_arm(record: Record) -> None:
    records = [*losses(record, "a", [2.0, 2.1], method="QTHA"), *losses(record, "b", [2.0, 2.2], method="IA3")]
    (row,) = paired(sections(records)[0])
    assert (row.label, row.reference) == ("b", "a")


def test_undefined_tests_stay_out_of_the_correction(record: Record) -> None:
    base = [2.0, 2.1, 2.3]
    records = [
        *losses(record, "base", base, method="LORA"),
        *losses(record, "copy", base, method="QTHA"),
        *losses(record, "other", [2.1, 2.15, 2.6], method="QTHA"),
    ]
    copy, other = paired(sections(records)[0])
    assert (copy.p, copy.p_holm) == (None, None)
    assert other.p_holm == other.p


def test_no_pairs(record: Record) -> None:
    assert paired(sections(losses(record, "alone", [2.0, 2.1]))[0]) == []
    assert paired(sections([record(status="failed", metrics={})])[0]) == []


def test_best_and_what_it_does_not_beat(record: Record) -> None:
    arms = summarise(
        [
            *losses(record, "a", [2.00, 2.02, 2.04]),
            *losses(record, "b", [2.01, 2.03, 2.05]),
            *losses(record, "c", [3.00, 3.01, 3.02]),
        ]
    )
    assert best(arms, "loss").label == "a"  # type: ignore[union-attr]
    assert unbeaten(arms, "loss") == {"a", "b"}
    assert best(arms[:1], "loss") is None
    assert best(arms, "tokens") is None
    single = summarise([*losses(record, "a", [2.0]), *losses(record, "b", [3.0])])
    assert unbeaten(single, "loss") == set()


def test_higher_is_better_where_it_is(record: Record) -> None:
    arms = summarise([record(label=label, metrics={"exact_match": value}) for label, value in (("a", 0.2), ("b", 0.4))])
    assert best(arms, "exact_match").label == "b"  # type: ignore[union-attr]


def test_reference_is_named_by_the_arm_that_is_it(record: Record) -> None:
    twin, other = record(label="LoRA r=8"), record(label="QTHA", method="QTHA", parameters=5)
    assert reference_lora(sections([twin, other])[0]) == "LoRA r=8"
    assert reference_lora(sections([other])[0]) == "the reference LoRA (460,800 parameters)"
    assert reference_lora(sections([record(reference_lora_parameters=None)])[0]) == ""


def test_overlap_note(record: Record) -> None:
    apart = summarise([*losses(record, "a", [2.0, 2.01, 2.02]), *losses(record, "b", [3.0, 3.01, 3.02])])
    assert "no other arm's interval overlaps" in notes.overlap_note(apart)
    close = summarise([*losses(record, "a", [2.0, 2.1, 2.2]), *losses(record, "b", [2.01, 2.11, 2.21])])
    assert "does not separate it from b" in notes.overlap_note(close)
    single = summarise([*losses(record, "a", [2.0]), *losses(record, "b", [3.0])])
    assert "no ranking" in notes.overlap_note(single)
    mixed = summarise([*losses(record, "a", [2.0, 2.01, 2.02]), *losses(record, "b", [3.0, 3.01]), *losses(record, "c", [3.0])])
    assert "c" in notes.overlap_note(mixed)
    assert notes.overlap_note(single[:1]) == ""


def test_pair_note(record: Record) -> None:
    base = [2.0, 2.1, 2.2, 2.05, 2.15]
    far = [value + 0.5 + 0.001 * i for i, value in enumerate(base)]
    near = [value + 0.1 * (-1) ** i for i, value in enumerate(base)]

    def note(*arms: tuple[str, list[float]]) -> str:
        runs = [run for label, values in arms for run in losses(record, label, values, method="QTHA")]
        return notes.pair_note(paired(sections([*losses(record, "base", base, method="LORA"), *runs])[0]))

    assert "higher for far than for base" in note(("far", far), ("near", near))
    assert "near" not in note(("far", far), ("near", near))
    assert "no arm differs from base" in note(("near", near))
    assert "lower for far" in note(("far", [2 * b - f for b, f in zip(base, far, strict=True)]))
    assert "prove nothing" in note(("far", far[:4]))
    assert "5% level" not in note(("far", far[:4]))
    assert "higher for far than for base. Fewer than 5 paired seeds prove nothing" in note(("far", far), ("few", far[:4]))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"status": "failed", "error": "x", "metrics": {}}, "1 run failed"),
        ({"steps": 100}, "differ in method, parameters, steps"),
        ({"steps": 100}, "different numbers of steps"),
        ({"parameters": 3}, "differ in method, parameters"),
        ({"simulated": True}, "or simulation"),
        ({"config": {"learning_rate": 1}}, "differ in settings: learning_rate"),
        ({"metrics_before": {"loss": 3.0}}, "loss before training is not the same"),
        ({"machine": {"cpu": "other"}}, "different machines"),
    ],
)
def test_cautions(record: Record, changes: dict[str, object], expected: str) -> None:
    quiet = [record(label=label, seed=seed) for label in "ab" for seed in range(5)]
    assert notes.cautions(sections(quiet)[0]) == []
    found = notes.cautions(sections([*quiet[:-1], record(label="b", seed=4, **changes)])[0])
    assert any(expected in caution for caution in found), found


def test_cautions_about_seeds(record: Record) -> None:
    def cautions(**seeds: list[int]) -> str:
        return " ".join(notes.cautions(sections([record(label=a, seed=s) for a, ss in seeds.items() for s in ss])[0]))

    assert "One seed per arm" in cautions(a=[0], b=[0])
    assert "3 seeds per arm" in cautions(a=[0, 1, 2], b=[0, 1, 2])
    assert "fewer finished seeds than the others: b (4 of 5)" in cautions(a=[0, 1, 2, 3, 4], b=[0, 1, 2, 3])
    assert "other seeds than a: b" in cautions(a=[0, 1, 2, 3, 4], b=[5, 6, 7, 8, 9])


def test_superseded_runs_are_counted(record: Record) -> None:
    old = record(created_at="2024-01-01T00:00:00+00:00")
    failed = record(created_at="2024-01-02T00:00:00+00:00", status="failed", error="x", metrics={})
    found = " ".join(notes.cautions(sections([old, failed, record()])[0]))
    assert "same arm and seed: 2 older runs (1 of them failed)" in found


def test_circuit_note(record: Record) -> None:
    classical = record(label="classic")
    assert notes.circuit_note(summarise([classical])) == ""
    quantum = {"exact": {}, "sampled": {"shots": 100}, "chip": {"shots": 100, "simulated": False}}
    runs = [record(label=label, method="QTHA", **changes) for label, changes in quantum.items()]
    note = notes.circuit_note(summarise([classical, *runs]))
    assert "simulated exactly: exact;" in note
    assert "finite number of shots: sampled;" in note
    assert "quantum hardware, at least in part: chip;" in note
    assert "no circuit: classic." in note


def test_console_table(eight_by_five: list[RunRecord]) -> None:
    text = text_of(summarise(eight_by_five))
    assert "4 + 1 failed" in text
    assert "QTHA without" in text
    assert "11.3%" in text
    assert "3.4120 → " in text
    assert "Group" not in text
    lines = text_of(summarise(eight_by_five), 100).splitlines()
    assert [line for line in lines if "LoRA r=8" in line and " ± " in line]  # an arm's numbers stand on one line
    assert len(lines) == 3 + 8 + 2


def test_console_labels_are_not_markup(record: Record) -> None:
    text = text_of(summarise([record(label="[red]arm[/red]"), record(label="b", group="other", metrics={"bleu": 0.5})]))
    assert "[red]arm[/red]" in text
    assert "other" in text
    assert "one seed: no intervals" in text


def test_summaries_follow_sections(record: Record) -> None:
    records = [record(label="a"), record(label="a", group="other"), record(label="b")]
    assert [(arm.group, arm.label) for arm in summarise(records)] == [("dolly-small", "a"), ("dolly-small", "b"), ("other", "a")]
    assert [arm.label for arm in summaries(sections(records)[0])] == ["a", "b"]
