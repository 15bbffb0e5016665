"""A study on a tiny model: equal ladders, judged on test rows, resumable from its files alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from statistics import fmean

import pytest
from benchmarks.study.__main__ import main
from benchmarks.study.ledger import Ledger, chosen
from benchmarks.study.page import main as page_main
from benchmarks.study.plan import load_plan
from benchmarks.study.results import furthest, lines

from qpeft.errors import ConfigError
from qpeft.records import read_records


@pytest.fixture
def plan(tmp_path: Path, tiny_model: Path, clinic: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(
        f"""
model: {{model_name_or_path: {tiny_model}, dtype: float32}}
training: {{max_steps: 4, per_device_train_batch_size: 2}}
tuning:
  learning_rates: [1.0e-3, 1.0e-2, 1.0e+6]
  rungs: [{{step: 1, keep: 2}}, {{step: 3, keep: 1}}]
seeds: [0, 1]
tasks:
  - name: clinic
    folder: {clinic}
    max_length: 512
    step_rows: 3
    tuning_rows: 4
    test_rows: 4
    judge_rows: 6
    unrelated: {clinic}/validation.jsonl
    unrelated_rows: 3
arms:
  - {{label: LoRA, kind: lora, adapter: {{peft_type: LORA, r: 1, target_modules: [q_proj]}}}}
  - {{label: QTHA, kind: quantum, of: LoRA, adapter: {{peft_type: QTHA, r: 2, hidden_size: 8, target_modules: [q_proj]}}}}
"""
    )
    return file


def run(plan: Path, *more: str) -> Ledger:
    folder = plan.parent
    main(["--plan", str(plan), "--records", str(folder / "kept"), "--runs", str(folder / "runs"), *more])
    return Ledger(folder / "kept", "tiny")


def test_every_arm_climbs_the_same_ladder_and_is_judged(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = run(plan)
    for label in ("LoRA", "QTHA"):
        climbed = [(trial.learning_rate, trial.step) for trial in ledger.trials.values() if trial.arm == label]
        assert sorted(step for _, step in climbed) == [1, 1, 1, 3, 3]
        first = {t.learning_rate: t.loss for t in ledger.trials.values() if t.arm == label and t.step == 1}
        assert {rate for rate, step in climbed if step == 3} == set(chosen(first, 2))
        last = {t.learning_rate: t.loss for t in ledger.trials.values() if t.arm == label and t.step == 3}
        used = {r.config["training"]["learning_rate"] for r in ledger.records.values() if r.label == label}
        assert used == set(chosen(last, 1))
    records = list(read_records(ledger.records_file))
    assert {(r.label, r.seed, r.status) for r in records} == {(a, s, "ok") for a in ("LoRA", "QTHA") for s in (0, 1)}
    assert all({"loss", "accuracy", "balanced_accuracy", "forgetting"} <= r.metrics.keys() for r in records)
    assert all(r.config["data"]["eval"].endswith("test.jsonl") for r in records)

    page_main(
        ["--plan", str(plan), "--records", str(plan.parent / "kept"), "--out", str(plan.parent), "--images", str(plan.parent)]
    )
    page = (plan.parent / "study-tiny.md").read_text()
    assert "4 of 4 runs done" in page
    assert "Steps of 3 rows" in page
    for record in ledger.records.values():
        assert f"{record.trainable_parameters:,} |" in page
    losses = {label: fmean(r.metrics["loss"] for r in ledger.records.values() if r.label == label) for label in ("LoRA", "QTHA")}
    assert all(f"{loss:.3f} ±" in page for loss in losses.values())
    assert (plan.parent / "study-tiny-clinic.png").stat().st_size > 10_000
    assert (plan.parent / "study-tiny-clinic-changes.png").stat().st_size > 10_000
    assert f"| QTHA − LoRA | {losses['QTHA'] - losses['LoRA']:+.3f} |" in page

    again = run(plan, "--status")
    assert "4 of 4 runs done" in capsys.readouterr().out
    assert run(plan).records.keys() == again.records.keys()  # nothing is done twice
    assert len(list(read_records(ledger.records_file))) == 4


def test_what_was_cut_off_goes_on_from_the_files(plan: Path) -> None:
    whole = run(plan)
    trials, records = whole.trials_file.read_text(), whole.records_file.read_text()
    losses = {(r.label, r.seed): r.metrics["loss"] for r in whole.records.values()}
    whole.trials_file.write_text("".join(trials.splitlines(keepends=True)[:2]))
    whole.records_file.write_text(records.splitlines(keepends=True)[0])
    later = run(plan)
    assert {(r.label, r.seed): r.metrics["loss"] for r in later.records.values()} == losses
    assert [json.loads(line) for line in later.trials_file.read_text().splitlines()] == list(map(json.loads, trials.splitlines()))


def test_runs_at_a_learning_rate_that_lost_do_not_count(plan: Path) -> None:
    ledger, found = run(plan), load_plan(plan)
    task, arm = found.tasks[0], found.arms[0]
    counted = [(line.arm.label, line.values("loss")) for line in lines(found, ledger, task)]
    lost = next(rate for rate in found.tuning.learning_rates if rate != ledger.rate(found, task, arm))
    mine = next(record for record in ledger.records.values() if (record.label, record.seed) == (arm.label, 0))
    stray = dataclasses.replace(mine, config=found.final(task, arm, lost, 0).resolved(), metrics={**mine.metrics, "loss": 99.0})
    ledger.add_record(stray)
    later = Ledger(plan.parent / "kept", "tiny")
    assert len(later.records) == 5
    assert [(line.arm.label, line.values("loss")) for line in lines(found, later, task)] == counted


def test_runs_are_made_again_at_the_learning_rates_kept(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = run(plan, "--seeds", "1")
    kept = [file.read_text() for file in (ledger.trials_file, ledger.records_file)]
    capsys.readouterr()
    run(plan, "--arm", "LoRA", "--again", str(plan.parent / "again"))
    assert [file.read_text() for file in (ledger.trials_file, ledger.records_file)] == kept
    again = Ledger(plan.parent / "again", "tiny")
    assert not again.trials
    assert {(r.label, r.seed) for r in again.records.values()} == {("LoRA", 0), ("LoRA", 1)}
    before = next(r.metrics["loss"] for r in ledger.records.values() if r.label == "LoRA")
    told = [line for line in capsys.readouterr().out.splitlines() if "seed" in line]
    assert f"loss {before:.4f}" in told[0]
    assert told[0].endswith(f"(kept: loss {before:.4f})")
    assert "kept" not in told[1]


def test_a_method_with_fewer_seeds_is_not_compared(plan: Path) -> None:
    run(plan, "--seeds", "1")
    ledger, found = run(plan, "--arm", "LoRA"), load_plan(plan)
    whole, behind = furthest(lines(found, ledger, found.tasks[0]))
    assert ([line.arm.label for line in whole], [line.arm.label for line in behind]) == (["LoRA"], ["QTHA"])
    folder = str(plan.parent)
    page_main(["--plan", str(plan), "--records", f"{folder}/kept", "--out", folder, "--images", folder])
    page = (plan.parent / "study-tiny.md").read_text()
    assert "At work: QTHA (seeds so far: 1)." in page
    assert "| QTHA | quantum" not in page


def test_a_failed_run_is_recorded(plan: Path) -> None:
    plan.write_text(plan.read_text().replace("target_modules: [q_proj]}}\n  -", "target_modules: [no_such]}}\n  -", 1))
    ledger = run(plan, "--seeds", "1")
    failed = [record for record in ledger.records.values() if record.status == "failed"]
    assert [(r.label, "no_such" in r.error) for r in failed] == [("LoRA", True)]
    assert all(trial.error and trial.loss is None for trial in ledger.trials.values() if trial.arm == "LoRA")


@pytest.mark.parametrize("file", sorted(Path("benchmarks/study").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_plans_are_valid(file: Path) -> None:
    found = load_plan(file)
    assert found.name == file.stem
    assert {"lora", "control", "quantum"} <= {arm.kind for arm in found.arms}
    if file.stem == "breadth":
        assert len(found.seeds) >= 5
        assert len(found.tasks) >= 3


def test_parts_share_the_arms_out(plan: Path) -> None:
    first = run(plan, "--seeds", "0", "--part", "1/2")
    assert not first.records
    arms = [arm.label for arm in load_plan(plan).arms]
    assert {trial.arm for trial in first.trials.values()} == set(arms[::2])
    assert {trial.arm for trial in run(plan, "--seeds", "0", "--part", "2/2").trials.values()} == set(arms)


def test_failures_lose_against_losses() -> None:
    assert chosen({1e-3: 2.0, 1e-2: None, 1e-4: 1.0}, 2) == [1e-4, 1e-3]
    assert chosen({1e-3: None, 1e-2: None}, 1) == [1e-3]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("keep: 1}", "keep: 2}", "keep < 2"),
        ("seeds: [0, 1]", "seeds: [0, 1000]", "seed of the study"),
        ("max_steps: 4", "max_steps: 2", "at most max_steps"),
        ("{max_steps: 4", "{learning_rate: 0.1, max_steps: 4", "decided by the study"),
        ("peft_type: LORA", "peft_type: LORAX", "LORAX"),
        ("label: QTHA", "label: LoRA", "appears twice"),
        ("of: LoRA", "of: LoRa", "'LoRa' is no other arm"),
    ],
)
def test_a_wrong_plan_says_what_is_wrong(plan: Path, old: str, new: str, told: str) -> None:
    plan.write_text(plan.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=told):
        load_plan(plan)


def test_what_a_task_lacks_is_missed_before_the_first_run(
    plan: Path,
    clinic: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = plan.read_text()
    plan.write_text(text.replace("validation.jsonl", "other.jsonl"))
    with pytest.raises(SystemExit):
        run(plan)
    assert "no unrelated text" in capsys.readouterr().err
    bare = plan.parent / "bare"
    shutil.copytree(clinic, bare)
    (bare / "task.json").unlink()
    plan.write_text(text.replace(f"folder: {clinic}", f"folder: {bare}"))
    with pytest.raises(SystemExit):
        run(plan)
    assert "judge_rows: 0" in capsys.readouterr().err
    assert not (plan.parent / "kept" / "tiny.jsonl").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--arm", "LoRA", "--arm", "Lora"], "no arm 'Lora' in the plan; expected one of LoRA, QTHA"),
        (["--task", "ward"], "no task 'ward' in the plan; expected one of clinic"),
        (["--part", "3/2"], "expected K/N with 1 <= K <= N"),
        (["--plan", "no-such.yaml"], "no-such.yaml: no such file"),
    ],
)
def test_wrong_arguments_are_told_in_a_line(plan: Path, given: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run(plan, *given)
    assert left.value.code == 2
    assert told in capsys.readouterr().err


def test_a_task_without_validation_rows_is_refused_or_split(
    plan: Path,
    tmp_path: Path,
    clinic: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is tuned on failures: rows are missed before the first run, and `split` makes them of the training rows."""
    bare, made = tmp_path / "bare", tmp_path / "made"
    shutil.copytree(clinic, bare)
    (bare / "validation.jsonl").unlink()
    text = plan.read_text()
    plan.write_text(text.replace(f"folder: {clinic}", f"folder: {bare}"))
    with pytest.raises(SystemExit):
        run(plan)
    assert "no validation rows" in capsys.readouterr().err
    plan.write_text(
        text.replace(f"folder: {clinic}", f"folder: {made}\n    split: {bare}").replace("judge_rows: 6", "judge_rows: 0")
    )
    assert run(plan, "--seeds", "1", "--arm", "LoRA").records
    rows = (bare / "train.jsonl").read_text().splitlines()
    train, validation = ((made / f"{part}.jsonl").read_text().splitlines() for part in ("train", "validation"))
    assert sorted(train + validation) == sorted(rows)
    assert len(validation) == len(rows) // 8 > 0
    assert (made / "test.jsonl").read_text() == (bare / "test.jsonl").read_text()


def test_an_arm_whose_every_learning_rate_fails_is_not_run(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan.write_text(plan.read_text().replace("[1.0e-3, 1.0e-2, 1.0e+6]", "[1.0e+30, 1.0e+31, 1.0e+32]"))
    ledger = run(plan, "--arm", "LoRA")
    assert {trial.loss for trial in ledger.trials.values() if trial.step == 3} == {None}
    assert {record.status for record in ledger.records.values()} == {"failed"}
    assert "every learning rate failed" in capsys.readouterr().out
