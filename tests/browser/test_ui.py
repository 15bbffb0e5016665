"""`qpeft ui` while a run trains: started, watched, paused and resumed from the page."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.browser.accessibility import overflow, serious
from tests.browser.watched import Watched
from tests.tiny import write_tiny_recipe

Open = Callable[..., Watched]
QPEFT = [sys.executable, "-m", "qpeft.cli"]


@pytest.fixture
def ui(tmp_path: Path, tiny_model: Path) -> Iterator[str]:
    """The address of a `qpeft ui` with a recipe of 3,000 steps, and no run yet."""
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    text = write_tiny_recipe(recipes, tiny_model).read_text().partition("compare:")[0]
    steps = {"max_steps: 12": "max_steps: 3000", "logging_steps: 3": "logging_steps: 5", "save_steps: 4": "save_steps: 5000"}
    for old, new in {**steps, "eval_steps: 6": "eval_steps: 100", "name: tiny": "name: long"}.items():
        text = text.replace(old, new)
    (recipes / "long.yaml").write_text(text)
    (recipes / "tiny.yaml").write_text((recipes / "tiny.yaml").read_text().partition("compare:")[0])
    command = [*QPEFT, "ui", str(tmp_path / "runs"), "--recipes", str(recipes), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://127.0.0.1:\d+/\?token=\S+", process.stdout.readline())
        assert found
        yield found[0]
        process.terminate()
        assert process.wait(20) in (0, -15)


def test_a_run_is_started_watched_paused_and_resumed(ui: str, tmp_path: Path, open_page: Open) -> None:
    page = open_page(ui.partition("/?")[0], viewport={"width": 1200, "height": 900}).page
    page.goto(ui)
    assert "token" not in page.url
    page.click("nav >> text=Start a run")
    page.wait_for_url("**/start")
    assert serious(page) == []
    page.select_option("select[name=recipe]", "long.yaml")
    page.fill("input[name=folder]", "first/try")
    page.click("main button")
    page.wait_for_selector("tr:has-text('first/try') .running", timeout=90_000)
    page.click("tbody a")
    page.wait_for_selector(".chart polyline", timeout=60_000)
    before = page.locator(".facts b").first.inner_text()
    page.wait_for_selector(f".facts b:not(:text-is('{before}')) >> nth=0", timeout=30_000)
    assert serious(page) == []
    assert overflow(page) <= 0
    page.click("text=Pause")
    page.wait_for_selector(".state.paused", timeout=60_000)
    steps = page.locator(".facts b").first.inner_text().partition(" /")[0]
    assert (tmp_path / "runs/first/try/checkpoints" / f"checkpoint-{steps.replace(',', '')}").is_dir()
    page.click("text=Resume")
    page.wait_for_selector(".state.running", timeout=90_000)
    page.click("text=Pause")
    page.wait_for_selector(".state.paused", timeout=60_000)


@pytest.mark.slow
def test_circuits_samples_and_chat_of_a_finished_run(ui: str, tmp_path: Path, open_page: Open) -> None:
    for seed in (0, 1):
        arguments = ["train", str(tmp_path / "recipes/tiny.yaml"), "--output", str(tmp_path / f"runs/seed{seed}")]
        subprocess.run([*QPEFT, *arguments, "--set", f"training.seed={seed}"], check=True, capture_output=True)
    page = open_page(ui.partition("/?")[0], viewport={"width": 360, "height": 800}, color_scheme="dark").page
    page.set_default_timeout(120_000)
    page.goto(ui)
    assert page.locator("tbody .finished").count() == 2
    page.check("input[value=seed0]")
    page.check("input[value=seed1]")
    page.click("text=Compare the chosen runs")
    page.wait_for_url("**/compare?*")
    assert page.locator(".chart").count() == 5
    assert "training.seed" not in page.content()
    page.hover(".chart circle[data-of=seed1] >> nth=-1")
    assert "seed1" in page.locator(".tip").inner_text()
    for check in (serious(page), overflow(page)):
        assert not check
    page.goto(page.url.partition("/compare")[0] + "/run?name=seed0")
    page.click("text=Draw the circuits")
    page.wait_for_url("**/circuits?*")
    assert page.locator(".circuit rect.data").count() > 0
    assert re.search(r"R[YZ]\(-?\d\.\d\d\)", page.locator(".circuit svg").first.text_content() or "")
    assert serious(page) == []
    page.click("text=Back to the run")
    page.click("text=Generate samples")
    page.wait_for_selector("#samples tbody tr")
    assert page.locator("#samples tbody tr").count() == 4
    page.fill("textarea", "Say 3.")
    page.fill("input[name=max_new_tokens]", "8")
    page.click("text=Ask both")
    page.wait_for_selector("#chat button:not([disabled])")
    assert page.locator("#chat-said").inner_text() == ""
    assert page.locator("#chat-adapter").inner_text()
    assert page.locator("#chat-base").inner_text()
    assert serious(page) == []
    assert overflow(page) <= 0
