"""A study on a tiny model: equal tuning, scored on test rows, resumable from its files alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from statistics import fmean

import pytest

from qpeft.errors import ConfigError
from qpeft.records import read_records
from qpeft.study.plan import load_plan
from qpeft.study.records import StudyRecords
from qpeft.study.results import arm_results, by_progress
from qpeft.study.tuning import lowest
from tests.command_line import Result, qpeft


def plan_text(tiny_model: Path, clinic: Path) -> str:
    return f"""
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
    score_rows: 6
    unrelated: {clinic}/validation.jsonl
    unrelated_rows: 3
arms:
  - {{label: LoRA, kind: lora, adapter: {{peft_type: LORA, r: 1, target_modules: [q_proj]}}}}
  - {{label: QTHA, kind: quantum, of: LoRA, adapter: {{peft_type: QTHA, r: 2, hidden_size: 8, target_modules: [q_proj]}}}}
"""


@pytest.fixture
def plan(tmp_path: Path, tiny_model: Path, clinic: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(plan_text(tiny_model, clinic))
    return file


@pytest.fixture(scope="module")
def whole_study(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, clinic: Path) -> Path:
    """The folder of a finished study."""
    file = tmp_path_factory.mktemp("study") / "tiny.yaml"
    file.write_text(plan_text(tiny_model, clinic))
    return run(file).folder


@pytest.fixture
def finished(plan: Path, whole_study: Path) -> StudyRecords:
    """A copy of the finished study's records, where `plan` has its own."""
    return StudyRecords(Path(shutil.copytree(whole_study, plan.parent / "kept")), "tiny")


def command(plan: Path, *more: object) -> Result:
    folder = plan.parent
    return qpeft("study", "run", plan, "--records", folder / "kept", "--runs", folder / "runs", *more)


def run(plan: Path, *more: object) -> StudyRecords:
    done = command(plan, *more)
    assert done.returncode == 0, done.stderr
    return StudyRecords(plan.parent / "kept", "tiny")


def refusal(plan: Path, *more: object) -> str:
    """What a command says that exits with code 2."""
    done = command(plan, *more)
    assert done.returncode == 2
    return done.stderr


def page_of(plan: Path) -> str:
    folder = plan.parent
    done = qpeft("study", "report", plan, "--records", folder / "kept", "--out", folder, "--images", folder)
    assert done.returncode == 0, done.stderr
    return (folder / "study-tiny.md").read_text()


def test_every_arm_is_tuned_in_the_same_way_and_scored(plan: Path, finished: StudyRecords) -> None:
    records = finished
    for label in ("LoRA", "QTHA"):
        tried = [(t.learning_rate, t.step) for t in records.tuning.values() if t.arm == label]
        assert sorted(step for _, step in tried) == [1, 1, 1, 3, 3]
        first = {t.learning_rate: t.loss for t in records.tuning.values() if t.arm == label and t.step == 1}
        assert {rate for rate, step in tried if step == 3} == set(lowest(first, 2))
        last = {t.learning_rate: t.loss for t in records.tuning.values() if t.arm == label and t.step == 3}
        used = {r.config["training"]["learning_rate"] for r in records.runs.values() if r.label == label}
        assert used == set(lowest(last, 1))
    runs = list(read_records(records.runs_file))
    assert {(r.label, r.seed, r.status) for r in runs} == {(a, s, "ok") for a in ("LoRA", "QTHA") for s in (0, 1)}
    assert all({"loss", "accuracy", "balanced_accuracy", "forgetting"} <= r.metrics.keys() for r in runs)
    assert all(r.config["data"]["eval"].endswith("test.jsonl") for r in runs)

    page = page_of(plan)
    assert "4 of 4 runs done" in page
    assert "Steps of 3 rows" in page
    assert "The rate is chosen after 3 of the 4 training steps." in page
    for record in runs:
        assert f"{record.trainable_parameters:,} |" in page
    losses = {label: fmean(r.metrics["loss"] for r in runs if r.label == label) for label in ("LoRA", "QTHA")}
    assert all(f"{loss:.3f} ±" in page for loss in losses.values())
    assert (plan.parent / "study-tiny-clinic.png").stat().st_size > 10_000
    assert (plan.parent / "study-tiny-clinic-changes.png").stat().st_size > 10_000
    assert f"| QTHA − LoRA | {losses['QTHA'] - losses['LoRA']:+.3f} |" in page

    assert "4 of 4 runs done" in command(plan, "--status").stdout
    assert run(plan).runs.keys() == records.runs.keys()  # nothing is done twice
    assert len(list(read_records(records.runs_file))) == 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_gives_the_records_of_one_process(plan: Path, finished: StudyRecords, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    kept, spread = plan.parent / "kept", tmp_path / "spread"
    done = qpeft("study", "run", plan, "--records", spread, "--runs", tmp_path / "ray-runs", "--engine", "ray")
    assert done.returncode == 0, done.stderr
    found = StudyRecords(spread, "tiny")
    assert {key: r.loss for key, r in found.tuning.items()} == {key: r.loss for key, r in StudyRecords(kept, "tiny").tuning.items()}
    assert {key: r.metrics for key, r in found.runs.items()} == {key: r.metrics for key, r in finished.runs.items()}
    text = (spread / "tiny.jsonl").read_bytes()
    assert qpeft("study", "run", plan, "--records", spread, "--engine", "ray").returncode == 0
    assert (spread / "tiny.jsonl").read_bytes() == text  # nothing is trained twice


def test_an_interrupted_study_goes_on_from_its_files(plan: Path, finished: StudyRecords) -> None:
    tuning, runs = finished.tuning_file.read_text(), finished.runs_file.read_text()
    losses = {(r.label, r.seed): r.metrics["loss"] for r in finished.runs.values()}
    finished.tuning_file.write_text("".join(tuning.splitlines(keepends=True)[:-2]))
    finished.runs_file.write_text("".join(runs.splitlines(keepends=True)[:3]))
    later = run(plan)
    assert {(r.label, r.seed): r.metrics["loss"] for r in later.runs.values()} == losses
    lines = ([json.loads(line) | {"wall_s": 0} for line in text.splitlines()] for text in (later.tuning_file.read_text(), tuning))
    assert next(lines) == next(lines)


def test_runs_at_a_learning_rate_that_lost_do_not_count(plan: Path, finished: StudyRecords) -> None:
    records, found = finished, load_plan(plan)
    task, arm = found.tasks[0], found.arms[0]
    counted = [(result.arm.label, result.values("loss")) for result in arm_results(found, records, task)]
    lost = next(rate for rate in found.tuning.learning_rates if rate != records.rate(found, task, arm))
    mine = next(record for record in records.runs.values() if (record.label, record.seed) == (arm.label, 0))
    config = found.seed_run(task, arm, lost, 0).resolved()
    records.add_run(dataclasses.replace(mine, config=config, metrics={**mine.metrics, "loss": 99.0}))
    later = StudyRecords(plan.parent / "kept", "tiny")
    assert len(later.runs) == 5
    assert [(result.arm.label, result.values("loss")) for result in arm_results(found, later, task)] == counted


def test_runs_are_repeated_at_their_learning_rates(plan: Path, finished: StudyRecords) -> None:
    records = finished
    lines = [line for line in records.runs_file.read_text().splitlines(keepends=True) if json.loads(line)["seed"] == 0]
    records.runs_file.write_text("".join(lines))
    recorded = [file.read_text() for file in (records.tuning_file, records.runs_file)]
    done = qpeft("study", "run", plan, "--records", plan.parent / "kept", "--arm", "LoRA", "--rerun", plan.parent / "rerun")
    assert done.returncode == 0, done.stderr
    assert [file.read_text() for file in (records.tuning_file, records.runs_file)] == recorded
    again = StudyRecords(plan.parent / "rerun", "tiny")
    assert not again.tuning
    assert {(r.label, r.seed) for r in again.runs.values()} == {("LoRA", 0), ("LoRA", 1)}
    before = next(r.metrics["loss"] for r in records.runs.values() if r.label == "LoRA")
    lines = [line for line in done.stdout.splitlines() if "seed" in line]
    assert f"loss {before:.4f}" in lines[0]
    assert lines[0].endswith(f"(recorded: loss {before:.4f})")
    assert "recorded" not in lines[1]


def test_a_method_with_fewer_seeds_is_not_compared(plan: Path, finished: StudyRecords) -> None:
    lines = finished.runs_file.read_text().splitlines(keepends=True)
    finished.runs_file.write_text("".join(line for line in lines if '"label":"QTHA"' not in line or '"seed":1' not in line))
    records, found = StudyRecords(finished.folder, "tiny"), load_plan(plan)
    whole, behind = by_progress(arm_results(found, records, found.tasks[0]))
    assert ([result.arm.label for result in whole], [result.arm.label for result in behind]) == (["LoRA"], ["QTHA"])
    page = page_of(plan)
    assert "Unfinished: QTHA (seeds so far: 1)." in page
    assert "| QTHA | quantum" not in page


def test_a_failed_run_is_recorded(plan: Path) -> None:
    plan.write_text(plan.read_text().replace("target_modules: [q_proj]}}\n  -", "target_modules: [no_such]}}\n  -", 1))
    records = run(plan, "--seeds", "1", "--arm", "LoRA")
    failed = [record for record in records.runs.values() if record.status == "failed"]
    assert [(r.label, "no_such" in r.error) for r in failed] == [("LoRA", True)]
    assert all(t.error and t.loss is None for t in records.tuning.values() if t.arm == "LoRA")


@pytest.mark.parametrize("name", ["breadth", "depth", "search", "applications"])
def test_shipped_plans_are_valid(name: str) -> None:
    found = load_plan(Path("recipes/studies") / f"{name}.yaml")
    assert found.name == name
    assert {"lora", "control", "quantum"} <= {arm.kind for arm in found.arms}
    if name == "breadth":
        assert len(found.seeds) >= 5
        assert len(found.tasks) >= 3


def test_parts_share_the_arms_out(plan: Path, finished: StudyRecords) -> None:
    finished.runs_file.write_text("")
    arms = [arm.label for arm in load_plan(plan).arms]
    for part, mine in (("1/2", arms[::2]), ("2/2", arms)):
        assert {record.label for record in run(plan, "--seeds", "1", "--part", part).runs.values()} == set(mine)


def test_a_search_reads_no_test_row(plan: Path, clinic: Path) -> None:
    folder = plan.parent / "no-test"
    shutil.copytree(clinic, folder)
    (folder / "test.jsonl").unlink()
    text = plan.read_text().replace(f"folder: {clinic}", f"folder: {folder}")
    plan.write_text(text)
    assert "no test rows" in refusal(plan)
    plan.write_text(f"held_out: validation\n{text}")
    records = run(plan, "--arm", "LoRA")
    assert [r.config["data"]["eval"].endswith("validation.jsonl") for r in records.runs.values()] == [True, True]
    assert all("accuracy" in r.metrics for r in records.runs.values())
    assert "on validation rows" in page_of(plan)


def test_rows_that_are_not_the_registered_ones_are_refused(plan: Path, clinic: Path) -> None:
    digest = hashlib.sha256((clinic / "test.jsonl").read_bytes()).hexdigest()
    text = plan.read_text()
    for wanted in ("a" * 64, digest):
        plan.write_text(text.replace("    max_length", f"    sha256: {{test: {wanted}}}\n    max_length"))
        if wanted != digest:
            assert f"the test rows have SHA-256 {digest}" in refusal(plan)
    assert run(plan, "--seeds", "0", "--arm", "LoRA").tuning


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
        ("score_rows", "judge_rows", "write score_rows"),
        ("tuning:", "tuning:\n  search: hill_climb", "given together with hill_climb"),
    ],
)
def test_a_wrong_plan_says_what_is_wrong(plan: Path, old: str, new: str, told: str) -> None:
    plan.write_text(plan.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=told):
        load_plan(plan)


def test_what_a_task_lacks_is_missed_before_the_first_run(plan: Path, clinic: Path) -> None:
    text = plan.read_text()
    plan.write_text(text.replace("validation.jsonl", "other.jsonl"))
    assert "no unrelated text" in refusal(plan)
    bare = plan.parent / "bare"
    shutil.copytree(clinic, bare)
    (bare / "task.json").unlink()
    plan.write_text(text.replace(f"folder: {clinic}", f"folder: {bare}"))
    assert "score_rows: 0" in refusal(plan)
    assert not (plan.parent / "kept" / "tiny.jsonl").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--arm", "LoRA", "--arm", "Lora"], "no arm 'Lora' in the plan; expected one of LoRA, QTHA"),
        (["--task", "ward"], "no task 'ward' in the plan; expected one of clinic"),
        (["--part", "3/2"], "expected K/N with 1 <= K <= N"),
    ],
)
def test_wrong_arguments_are_told_in_a_line(plan: Path, given: list[str], told: str) -> None:
    assert told in refusal(plan, *given)


def test_a_missing_plan_is_told_in_a_line(tmp_path: Path) -> None:
    assert "no-such.yaml: no such file" in refusal(tmp_path / "no-such.yaml")


def test_a_task_without_validation_rows_is_refused_or_split(plan: Path, tmp_path: Path, clinic: Path) -> None:
    """Nothing is tuned on failures: rows are missed before the first run, and `split` makes them of the training rows."""
    bare, made = tmp_path / "bare", tmp_path / "made"
    shutil.copytree(clinic, bare)
    (bare / "validation.jsonl").unlink()
    text = plan.read_text()
    plan.write_text(text.replace(f"folder: {clinic}", f"folder: {bare}"))
    assert "no validation rows" in refusal(plan)
    plan.write_text(
        text.replace(f"folder: {clinic}", f"folder: {made}\n    split: {bare}").replace("score_rows: 6", "score_rows: 0")
    )
    assert run(plan, "--seeds", "1", "--arm", "LoRA").runs
    rows = (bare / "train.jsonl").read_text().splitlines()
    train, validation = ((made / f"{part}.jsonl").read_text().splitlines() for part in ("train", "validation"))
    assert sorted(train + validation) == sorted(rows)
    assert len(validation) == len(rows) // 8 > 0
    assert (made / "test.jsonl").read_text() == (bare / "test.jsonl").read_text()


def test_an_arm_whose_every_learning_rate_fails_is_not_run(plan: Path) -> None:
    plan.write_text(plan.read_text().replace("[1.0e-3, 1.0e-2, 1.0e+6]", "[1.0e+30, 1.0e+31, 1.0e+32]"))
    done = command(plan, "--arm", "LoRA")
    records = StudyRecords(plan.parent / "kept", "tiny")
    assert {t.loss for t in records.tuning.values() if t.step == 3} == {None}
    assert {record.status for record in records.runs.values()} == {"failed"}
    assert "every learning rate failed" in done.stdout
