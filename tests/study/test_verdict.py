"""The verdict on a method: its plan, its estimate, its page, and what it says of known differences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from qpeft.errors import ConfigError
from qpeft.study.plan import StudyPlan, load_plan
from qpeft.study.records import StudyRecords
from qpeft.study.verdict import (
    Subject,
    controls_of,
    findings,
    read_protocol,
    read_subject,
    sentence,
    standard_protocol,
    verdict_plan,
)
from qpeft.training.recipe.adapter_section import build_adapter_config
from tests.command_line import qpeft
from tests.study.records import finished_records

QTHA = {"peft_type": "QTHA", "r": 2, "hidden_size": 8, "target_modules": ["q_proj"]}


@pytest.fixture
def protocol(tmp_path: Path, tiny_model: Path, clinic: Path) -> Path:
    lora = {"peft_type": "LORA", "target_modules": ["q_proj"]}
    plan = {
        "model": {"model_name_or_path": str(tiny_model), "dtype": "float32"},
        "training": {"max_steps": 3, "per_device_train_batch_size": 2},
        "tuning": {"learning_rates": [1e-3, 1e-2]},
        "seeds": [0, 1, 2, 3, 4],
        "tasks": [{"name": "clinic", "folder": str(clinic), "max_length": 512, "tuning_rows": 4, "test_rows": 4}],
        "arms": [
            {"label": "LoRA r=8", "kind": "lora", "adapter": {**lora, "r": 8, "lora_alpha": 16}},
            {"label": "LoRA r=1", "kind": "lora", "adapter": {**lora, "r": 1, "lora_alpha": 2}},
        ],
    }
    file = tmp_path / "protocol.yaml"
    file.write_text(yaml.safe_dump(plan))
    return file


NOISE = [0.00, 0.02, -0.02, 0.01, -0.01]


def shifted(by: float, scale: float = 1.0) -> list[float]:
    return [1.0 + by + scale * x for x in NOISE]


def judged(protocol: Path, tmp_path: Path, **losses: list[float]) -> tuple[StudyPlan, StudyRecords]:
    plan = verdict_plan(Subject("mine", QTHA), load_plan(protocol))
    told = {arm.label: losses.get(arm.label.replace("mine: ", "").replace("LoRA r=", "lora"), shifted(0.0)) for arm in plan.arms}
    return plan, finished_records(plan, tmp_path / "records", told, {"LoRA r=8": 1000, "LoRA r=1": 90})


def test_a_copy_of_its_twin_makes_no_difference(protocol: Path, tmp_path: Path) -> None:
    plan, records = judged(protocol, tmp_path)
    (finding,) = findings(plan, records, "mine")
    assert {finding.outcome(label) for label in finding.rows} == {"equal"}
    assert {row.difference.mean for row in finding.rows.values()} == {0.0}
    told = sentence([finding], "mine")
    assert "no measurable difference to LoRA r=8" in told
    assert "no measurable difference to at least one of its own controls" in told


def test_a_clear_win_is_told_against_references_and_controls(protocol: Path, tmp_path: Path) -> None:
    jitter = [1.0, 0.9, 1.1, 1.05, 0.95]
    lower = [loss - 0.3 * j for loss, j in zip(shifted(0.0), jitter, strict=True)]
    plan, records = judged(protocol, tmp_path, mine=lower)
    (finding,) = findings(plan, records, "mine")
    assert {finding.outcome(label) for label in finding.rows} == {"lower"}
    told = sentence([finding], "mine")
    assert told.startswith("mine on clinic: lower loss than LoRA r=8 (clinic -30.0%)")
    assert told.endswith("it is ahead of each of its own controls.")


def test_a_control_that_wins_is_told(protocol: Path, tmp_path: Path) -> None:
    jitter = [1.0, 0.9, 1.1, 1.05, 0.95]
    lower = [loss - 0.3 * j for loss, j in zip(shifted(0.0), jitter, strict=True)]
    plan, records = judged(protocol, tmp_path, none=lower)
    found = findings(plan, records, "mine")
    assert found[0].outcome("mine: none") == "higher"
    assert "at least one of its own controls is ahead of it" in sentence(found, "mine")


def test_p_values_are_corrected_over_the_whole_verdict(protocol: Path, tmp_path: Path) -> None:
    """Against scipy and statsmodels' rule written out: p times the number of hypotheses not rejected yet, made monotone."""
    from scipy import stats

    losses = {
        f"lora{r}": [x + d * j for x, j in zip(shifted(0.0), (1, 2, 1.5, 0.5, 1), strict=True)] for r, d in ((8, 0.02), (1, 0.05))
    }
    plan, records = judged(protocol, tmp_path, **losses)
    (finding,) = findings(plan, records, "mine")
    told = {label: row for label, row in finding.rows.items() if row.p is not None}
    own = finding.subject.values("loss")
    assert set(told) == {"LoRA r=8", "LoRA r=1"}
    for label, row in told.items():
        assert row.p == pytest.approx(stats.ttest_rel(own, finding.others[label].values("loss")).pvalue)
    assert finding.equal_size == "LoRA r=1"  # LoRA r=8 is a reference of its own


def test_few_seeds_prove_nothing(protocol: Path, tmp_path: Path) -> None:
    plan = verdict_plan(Subject("mine", QTHA), load_plan(protocol), seeds=2)
    told = {arm.label: shifted(0.0)[:2] for arm in plan.arms}
    records = finished_records(plan, tmp_path / "records", told, {})
    assert "proves nothing" in sentence(findings(plan, records, "mine"), "mine")
    assert sentence([], "mine") == "No verdict on mine yet: too few runs are done."


def test_controls_come_from_the_method() -> None:
    labels = [arm.label for arm in controls_of(Subject("mine", QTHA))]
    assert labels == ["mine: none", "mine: cos", "mine: mlp", "mine: product", "mine: frozen"]
    assert [arm.label for arm in controls_of(Subject("turn", {"peft_type": "CAYLEY"}))] == ["turn: linear"]
    assert controls_of(Subject("lora", {"peft_type": "LORA"})) == []
    frozen = controls_of(Subject("mine", {**QTHA, "qnn": "frozen"}))
    assert "mine: frozen" not in [arm.label for arm in frozen]


def test_a_circuit_from_a_file_takes_the_place_of_qthas(tmp_path: Path) -> None:
    file = tmp_path / "mine.qasm"
    file.write_text(
        'OPENQASM 3.0;\ninclude "stdgates.inc";\ninput float in_0;\ninput float in_1;\ninput float theta_0;\nqubit[2] q;\n'
        "ry(in_0) q[0];\nry(in_1) q[1];\ncrz(theta_0) q[0], q[1];\nrx(in_0) q[1];\n"
    )
    subject = read_subject(str(file))
    assert subject.name == "mine"
    assert build_adapter_config(subject.adapter).r == 2
    labels = [arm.label for arm in controls_of(subject)]
    assert {"mine: none", "mine: mlp", "mine: product", "mine: frozen"} <= set(labels)
    for arm in controls_of(subject):
        build_adapter_config(arm.adapter)


def test_the_standard_protocol_is_sound() -> None:
    plan = read_protocol()
    assert len(plan.seeds) >= 5
    assert len(plan.tasks) == 3
    assert all(task.prepare for task in plan.tasks), "a task needs files that the package does not bring"
    assert not plan.tuning.rungs, "learning rates are chosen at full length"
    assert plan.tuning.extend > 0
    assert standard_protocol().is_file()
    quick = verdict_plan(Subject("mine", QTHA), plan, quick=True)
    assert (len(quick.tasks), len(quick.seeds), quick.max_steps) == (1, 2, 8)
    runs = len(quick.arms) * (len(quick.tuning.learning_rates) + len(quick.seeds))
    assert runs * quick.max_steps <= 120


@pytest.mark.parametrize(
    ("subject", "options", "told"),
    [
        ("QTHAX", {}, "QTHAX"),
        ("missing.qasm", {}, "no such file"),
        ("QTHA", {"tasks": ["ward"]}, "no task 'ward' in the protocol; expected one of clinic"),
    ],
)
def test_wrong_subjects_and_tasks(protocol: Path, subject: str, options: dict[str, list[str]], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        verdict_plan(read_subject(subject), load_plan(protocol), **options)  # type: ignore[arg-type]


def test_a_subject_cannot_take_a_references_name(protocol: Path) -> None:
    with pytest.raises(ConfigError, match="reference of the protocol"):
        verdict_plan(Subject("LoRA r=1", QTHA), load_plan(protocol))


def test_a_whole_verdict_from_a_recipe(protocol: Path, tmp_path: Path, recipe: Path) -> None:
    values = yaml.safe_load(recipe.read_text())
    values["adapter"] = {"peft_type": "CAYLEY", "target_modules": ["q_proj"]}
    values.pop("compare", None)
    recipe.write_text(yaml.safe_dump(values))
    folder = tmp_path / "verdict"
    given = ("verdict", recipe, "--protocol", protocol, "--output", folder, "--seeds", "2")
    told = qpeft(*given, "--estimate")
    assert told.returncode == 0, told.stderr
    assert "4 arms" in told.stdout
    assert "16 runs, 48 steps" in told.stdout
    assert not (folder / "verdict.jsonl").exists()
    done = qpeft(*given)
    assert done.returncode == 0, done.stderr
    assert "proves nothing" in done.stdout
    page = (folder / "verdict.html").read_text()
    assert "http" not in page.replace("http-equiv", "").lower(), "the page reaches for the network"
    runs = StudyRecords(folder, "verdict").runs.values()
    assert len(runs) == 8
    for record in runs:
        assert f"{record.trainable_parameters:,}" in page
    again = qpeft(*given)
    assert "0 runs, 0 steps" in again.stdout
    assert json.loads((folder / "verdict.jsonl").read_text().splitlines()[0])["status"] == "ok"


def test_a_circuit_file_with_observables_of_its_own(tmp_path: Path) -> None:
    from qpeft import Angle, Circuit, Op

    ops = [*(Op("ry", (q,), Angle(q, 2.0)) for q in range(3)), Op("cx", (0, 1)), Op("cx", (1, 2)), Op("rx", (2,), Angle(3))]
    file = tmp_path / "mine.json"
    file.write_text(Circuit(3, tuple(ops), 3, 4).to_json())
    subject = read_subject(str(file), observables=["ZII", "IZI", "ZZZ"])
    config = build_adapter_config(subject.adapter)
    assert config.r == 3
    assert len(config.observables) == 3
    with pytest.raises(ValueError, match="observables are of a circuit file"):
        read_subject("QTHA", observables=["Z"])
