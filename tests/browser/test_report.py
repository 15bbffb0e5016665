"""A report's page from disk: no network, both themes, sorted by a click, short enough to send, and it prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qpeft.records import Measurement, RunRecord
from qpeft.report import build
from tests.browser.accessibility import overflow, serious
from tests.browser.watched import Watched

LABELS = ("LoRA r=8", "QTHA", "Cayley blocks", '<img src=x onerror="document.title=1">')


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [
        RunRecord(
            label=label,
            method="LORA",
            group="demo",
            seed=seed,
            model="tiny",
            trainable_parameters=1000 * (k + 1),
            base_parameters=10**6,
            reference_lora_parameters=1000,
            steps=100,
            wall_s=10.0 + k,
            tokens_per_s=500.0 * (k + 1),
            peak_memory_bytes=2**30,
            metrics={"loss": 2.0 - 0.1 * k + 0.02 * seed},
            metrics_before={"loss": 3.0},
            hashes={"eval": "a"},
            train_curve=tuple(Measurement(step=s, loss=3.0 - s / 100) for s in range(0, 101, 10)),
            eval_curve=tuple(Measurement(step=s, loss=3.0 - (0.8 + 0.1 * k) * s / 100) for s in (0, 50, 100)),
        )
        for k, label in enumerate(LABELS)
        for seed in (0, 1, 2)
    ]
    return build(records, tmp_path_factory.mktemp("report")).html


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 360)])
def test_a_report_opens_from_disk(report: Path, scheme: str, width: int, open_page: Callable[..., Watched]) -> None:
    assert report.stat().st_size < 1_000_000
    context = open_page("file://", color_scheme=scheme, viewport={"width": width, "height": 800}, offline=True)
    page = context.page
    page.goto(report.as_uri())
    assert serious(page) == []
    assert overflow(page) <= 0
    assert LABELS[-1] in page.locator("tbody").first.inner_text()
    paper = "rgb(255, 255, 255)" if scheme == "light" else "rgb(22, 27, 34)"
    assert page.evaluate("getComputedStyle(document.querySelector('.plot')).backgroundColor") == paper
    page.locator("th button.sort", has_text="Tokens/s").first.click()
    page.locator("th button.sort", has_text="Tokens/s").first.click()
    first = page.locator("tbody tr").first.inner_text()
    assert "2,000" in first
    page.click("button.theme")
    assert page.evaluate("getComputedStyle(document.querySelector('.plot')).backgroundColor") != paper
    page.click("text=Held-out loss of every run")
    page.hover(".chart circle >> nth=-1")
    assert "step 100" in page.locator(".tip").inner_text()


def test_a_report_prints(report: Path, open_page: Callable[..., Watched]) -> None:
    page = open_page("file://", color_scheme="dark").page
    page.goto(report.as_uri())
    printed = page.pdf()
    assert printed.startswith(b"%PDF")
    assert 1 <= printed.count(b"/Type /Page\n") <= 6
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("button.theme").is_visible()
    assert page.locator("thead th", has_text="Tokens/s").first.locator("button").is_visible()
