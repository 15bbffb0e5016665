"""What `qpeft ui` reads of runs: their files alone, whatever state they are in."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from qpeft.errors import RunError
from qpeft.records import Measurement, RunRecord
from qpeft.training.loop.progress_log import PROGRESS, read_progress, tell
from qpeft.ui.control import Control
from qpeft.ui.runs import RunFolder, samples, tensor_sizes

RECIPE = """
name: {name}
label: null
model: {{model_name_or_path: tiny}}
adapter: {{peft_type: QTHA, r: 2}}
backend: {{name: "emulator:wukong-72", budget: {{circuits: 1000, seconds: 60, money: 5, price: {{shot: 0.01, currency: EUR}}}}}}
training: {{seed: 3, max_steps: 50}}
"""


def make(root: Path, name: str) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE.format(name=folder.name))
    return folder


def test_states_and_numbers_come_from_the_files(tmp_path: Path) -> None:
    running = make(tmp_path, "a/running")
    tell(running, "begin", pid=os.getpid(), started=psutil.Process().create_time())
    for step in (10, 20, 20):
        spent = {"circuits": 12 * step, "chip_s": 0.5 * step, "money": 0.1 * step}
        tell(running, "log", step=step, steps=50, loss=3.0 - step / 20, tokens_per_s=100.0 + step, **spent)
    tell(running, "log", step=20, steps=50, eval_loss=2.5)
    with (running / PROGRESS).open("a") as stream:
        stream.write('{"event": "log", "step": 30, "lo')  # torn
    killed = make(tmp_path, "killed")
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    tell(killed, "begin", pid=gone.pid, started=1.0)
    tell(killed, "log", step=5, steps=50, loss=3.0)
    broken = make(tmp_path, "broken")
    (broken / "failure.json").write_text(json.dumps({"error": "DivergedError: <b>loss</b> is nan"}))
    (make(tmp_path, "unreadable") / "recipe.yaml").write_text("a: [")
    finished = make(tmp_path, "finished")
    record = RunRecord(
        label="QTHA", method="QTHA", group="g", seed=3, model="tiny", trainable_parameters=304, metrics={"loss": 1.5}, steps=50,
        train_curve=(Measurement(step=10, loss=2.0),), eval_curve=(Measurement(step=0, loss=3.0), Measurement(step=50, loss=1.5)),
    )  # fmt: skip
    (finished / "record.json").write_text(record.to_json() + "\n")
    make(tmp_path, "new")
    (make(tmp_path, "comparison") / "recipe.yaml").write_text(
        "name: x\nmodel: {}\nadapter: {peft_type: X}\ncompare: {seeds: [0]}\n"
    )

    folder = RunFolder(tmp_path)
    runs = {run.name: run for run in folder.all()}
    states = {name: run.state for name, run in runs.items()}
    assert states == {
        "a/running": "running",
        "killed": "paused",
        "broken": "failed",
        "unreadable": "failed",
        "finished": "finished",
        "new": "new",
    }
    live = runs["a/running"]
    assert live.steps == (20, 50)
    assert live.series("loss") == ([10.0, 20.0], [2.5, 2.0])
    assert live.series("eval_loss") == ([20.0], [2.5])
    assert live.latest("tokens_per_s") == 120.0
    assert live.budget_left() == [("circuits", 240.0, 1000.0), ("seconds", 10.0, 60.0), ("money", 2.0, 5.0)]
    assert live.currency == "EUR"
    assert runs["finished"].series("eval_loss") == ([0.0, 50.0], [3.0, 1.5])
    assert runs["finished"].held_out_loss == 1.5
    before = folder.signature()
    tell(killed, "log", step=6, steps=50, loss=2.9)
    assert folder.signature() != before
    assert read_progress(tmp_path / "nowhere").entries == []


def test_nothing_outside_the_folder_is_a_run(tmp_path: Path) -> None:
    make(tmp_path, "secret")
    make(tmp_path, "shown/inside")
    folder = RunFolder(tmp_path / "shown")
    assert folder.run("inside").name == "inside"
    for name in ("../secret", "/etc", "inside/../../secret", "", "nothing"):
        with pytest.raises(RunError):
            folder.run(name)


def test_the_adapters_file_is_read_by_its_header(tmp_path: Path) -> None:
    folder = make(tmp_path, "run")
    (folder / "adapter").mkdir()
    header = json.dumps({"__metadata__": {}, "a.layers.0.q": {"shape": [2, 3]}, "core": {"shape": []}}).encode()
    file = folder / "adapter" / "adapter_model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    run = RunFolder(tmp_path).run("run")
    assert tensor_sizes(run) == {"a.layers.0.q": 6, "core": 1}
    file.write_bytes(b"torn")
    assert tensor_sizes(run) == {}
    (folder / "samples.json").write_text("[1, {}]")
    assert samples(run) == [{}]


def test_what_cannot_be_started_is_said(tmp_path: Path) -> None:
    make(tmp_path, "runs/there")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "good.yaml").write_text("name: x\nmodel: {}\nadapter: {}\n")
    (tmp_path / "recipes" / "plan.yaml").write_text("tasks: []\n")
    (tmp_path / "outside.yaml").write_text("model: {}\nadapter: {}\n")
    control = Control(RunFolder(tmp_path / "runs"), tmp_path / "recipes")
    assert control.recipe_files() == ["good.yaml"]
    for recipe in ("../outside.yaml", "nothing.yaml"):
        with pytest.raises(RunError, match="recipe"):
            control.start(recipe, "x")
    for name in ("../x", "there", "-x"):
        with pytest.raises(RunError):
            control.start("good.yaml", name)
    with pytest.raises(RunError, match="not running"):
        control.pause(control.folder.run("there"))
