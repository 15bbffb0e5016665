"""The progress line on a terminal, and what a run tells in its folder."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from qpeft.training.loop.progress import ProgressLine
from qpeft.training.loop.progress_log import PAUSE, PROGRESS, read_progress
from qpeft.training.loop.run import train
from qpeft.training.recipe.config import load_recipe


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_line_that_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qpeft.progress.REWRITE_S", 0.0)
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    line = ProgressLine("QTHA, seed 0", stream)
    state = SimpleNamespace(global_step=0, max_steps=3000)
    line.on_train_begin(None, state, None)
    for step in range(1, 4):
        state.global_step = step
        line.on_log(None, state, None, {"loss": 2.5 - step, "tokens_per_s": 1234.0, "circuits": 10, "chip_s": 3.0})
        line.on_step_end(None, state, None)
        line.on_evaluate(None, state, None, {"eval_loss": 2.0})
    line.on_train_end(None, state, None)
    written = stream.getvalue()
    assert "\n" not in written
    shown = [part.removeprefix("\x1b[K") for part in written.split("\r")[1:]]
    assert shown[0].startswith("QTHA, seed 0: step 1/3,000, loss 1.5000, 1,234 tokens/s")
    assert all(len(one) < 60 for one in shown)
    assert shown[-1] == ""


def test_a_run_tells_its_progress_and_pauses_when_it_is_asked(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    config = load_recipe(recipe, ["training.logging_steps=1"])
    from qpeft.training.loop import callbacks

    real = callbacks.tell

    def ask_at_step_5(place: Path, event: str, **values: object) -> None:
        real(place, event, **values)
        if values.get("step") == 5:
            (folder / PAUSE).touch()

    monkeypatch.setattr(callbacks, "tell", ask_at_step_5)
    assert train(config, folder).status == "paused"
    found = read_progress(folder)
    assert (found.running, found.ended) == (False, "paused")
    assert [entry["step"] for entry in found.entries if "loss" in entry][-1] in (5, 6)
    assert not (folder / PAUSE).exists()
    monkeypatch.setattr(callbacks, "tell", real)
    record = train(config, folder)
    assert (record.status, record.steps) == ("ok", 12)
    found = read_progress(folder)
    assert found.ended == "ok"
    assert sorted({entry["step"] for entry in found.entries if "loss" in entry}) == list(range(1, 13))
    events = [json.loads(line)["event"] for line in (folder / PROGRESS).read_text().splitlines()]
    assert events.count("begin") == events.count("end") == 2
    assert re.search(r'"tokens_per_s": [\d.]+', (folder / PROGRESS).read_text())
