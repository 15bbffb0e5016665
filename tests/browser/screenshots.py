"""Pictures of every page at three widths: `make screenshots`, or `python -m tests.browser.screenshots OUT [NAME ...]`.

A picture is called PAGE-WIDTH[-dark|-zh].png. Names choose pages. The pictures of `SHOWN` are copied into docs/images.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.browser.conftest import chromium_path
from tests.browser.scenes import CHIP, fill, vendor_server
from tests.service.processes import Server
from tests.tiny import save_tiny_model, write_tiny_recipe

QPEFT = (sys.executable, "-m", "qpeft.cli")
WIDTHS = (360, 768, 1440)
LOOKS = (("", {}), ("-dark", {"color_scheme": "dark"}), ("-zh", {"locale": "zh-CN"}))

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
SHOWN = {
    "overview-1440": "dashboard",
    "chip-1440": "dashboard-chip",
    "job-1440": "dashboard-job",
    "ui-run-1440": "ui-run",
    "ui-compare-1440": "ui-compare",
    "report-1440": "report",
}
"""Pictures that README and docs show, by their names in docs/images."""
ON_CHIP = (
    "backend={name: simulator, shots: 100, budget: {shots: 500000, money: 50, price: {shot: 0.0001, currency: EUR}}}",
    "adapter.n_layers=1",
    "adapter.share_circuit=model",
    "training.max_steps=4",
    "training.logging_steps=1",
)
"""Settings of a run whose circuits cost something, at an invented price."""
REPORTED = ("LoRA r=8", "LoRA r=1", "QTHA", "QTHA without circuit")


def dashboard_pages(found: dict[str, str]) -> dict[str, str]:
    """Name -> address of every page of the dashboard."""
    return {
        "overview": "/",
        "devices": "/devices",
        "chip": f"/devices/{CHIP}",
        "queue": "/queue",
        "jobs": "/jobs",
        "job": f"/jobs/{found['job']}",
        "job-values": f"/jobs/{found['values']}",
        "job-queued": f"/jobs/{found['queued']}",
        "batches": "/batches",
        "batch": f"/batches/{found['batch']}",
        "usage": "/usage",
        "missing": "/nothing-here",
        "login": "/login",
    }


ADMIN_PAGES = {
    "admin-overview": "/",
    "admin-devices": "/devices",
    "admin-chip": f"/devices/{CHIP}",
    "admin-queue": "/queue",
    "admin-keys": "/admin/keys",
    "admin-workers": "/admin/workers",
    "admin-audit": "/admin/audit",
}
VENDOR_PAGES = {"admin-vendor-tasks": "/admin/vendor-tasks", "admin-vendor-devices": "/devices"}


def picture(
    browser: Any, url: str, pages: dict[str, str], out: Path, key: str | None = None, first: str | None = None
) -> Iterator[Path]:
    """Every page at every width, light; dark and Chinese at the narrowest and the widest. `first` is opened before the others."""
    for suffix, settings in LOOKS:
        for width in WIDTHS if not suffix else (WIDTHS[0], WIDTHS[-1]):
            context = browser.new_context(base_url=url, viewport={"width": width, "height": 900}, **settings)
            page = context.new_page()
            if key is not None:
                page.goto("/login")
                page.fill("input[name=key]", key)
                page.click("main form[action='/login'] button")
                page.wait_for_url("**/")
            if first is not None:
                page.goto(url + first)
            for name, address in pages.items():
                page.goto(url + address, timeout=120_000)
                page.wait_for_timeout(150)
                file = out / f"{name}-{width}{suffix}.png"
                page.screenshot(path=str(file), full_page=True)
                yield file
            context.close()


def of_dashboard(browser: Any, folder: Path, out: Path, chosen: list[str]) -> Iterator[Path]:
    """A service with one user's jobs and an administrator."""
    server = Server(folder, devices=("simulator", CHIP)).start()
    try:
        key, found = fill(server)
        for pages, holder in ((dashboard_pages(found), key), (ADMIN_PAGES, server.key)):
            yield from picture(browser, server.url, _wanted(pages, chosen), out, holder)
    finally:
        server.close()
        server.stop()


def of_vendor(browser: Any, folder: Path, out: Path, chosen: list[str]) -> Iterator[Path]:
    """A service with tasks at a vendor."""
    server, _ = vendor_server(folder)
    try:
        yield from picture(browser, server.url, _wanted(VENDOR_PAGES, chosen), out, server.key)
    finally:
        server.close()
        server.stop()


def of_runs(browser: Any, folder: Path, out: Path, chosen: list[str]) -> Iterator[Path]:
    """`qpeft ui` on the runs of `make demo`, which are trained first if they are not there, and on two runs of a tiny model, one of
    them in the middle of its training.
    """
    demo = ROOT / "runs" / "demo"
    subprocess.run([*QPEFT, "compare", str(ROOT / "recipes/demo.yaml"), "--output", str(demo)], check=True)
    shutil.copytree(demo, folder / "runs" / "demo")
    for name in ("model", "recipes"):
        (folder / name).mkdir()
    save_tiny_model(folder / "model")
    recipe = write_tiny_recipe(folder / "recipes", folder / "model")
    alone = recipe.with_name("alone.yaml")
    alone.write_text(recipe.read_text().partition("compare:")[0])
    settings = ("max_steps=600", "logging_steps=5", "save_steps=600", "eval_steps=50")
    options = [part for setting in settings for part in ("--set", f"training.{setting}")]
    train = [*QPEFT, "train", str(alone), "--output", str(folder / "runs/alone"), *options]
    subprocess.run([*train, "--until", "300"], check=True, capture_output=True)
    on_chip = [part for setting in ON_CHIP for part in ("--set", setting)]
    subprocess.run([*QPEFT, "train", str(alone), "--output", str(folder / "runs/chip"), *on_chip], check=True, capture_output=True)
    command = [*QPEFT, "ui", str(folder / "runs"), "--recipes", str(folder / "recipes"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        url, _, token = address.partition("/?")
        arms = ("qtha-r-4", "qtha-r-4-without-circuit", "lora-r-4", "lora-r-1", "cayley-blocks-o-and-down")
        names = [f"demo/runs/{arm}/seed-0" for arm in arms]
        pages = {
            "ui-runs": "/",
            "ui-run": f"/run?name={names[0]}",
            "ui-run-paused": "/run?name=alone",
            "ui-run-chip": "/run?name=chip",
            "ui-compare": "/compare?" + "&".join(f"run={name}" for name in names),
            "ui-circuits": f"/circuits?name={names[0]}",
            "ui-start": "/start",
            "ui-missing": "/run?name=nothing",
        }
        try:
            yield from picture(browser, url, _wanted(pages, chosen), out, first=f"/?{token}")
        finally:
            server.terminate()


def of_report(browser: Any, folder: Path, out: Path, chosen: list[str]) -> Iterator[Path]:
    """The report's page, from disk, of recorded runs: four methods of the breadth study on instructions."""
    study = ROOT / "docs/benchmarks/study/breadth.jsonl"
    lines = [(line, json.loads(line)) for line in study.read_text(encoding="utf-8").splitlines()]
    chosen_lines = [text for text, run in lines if run["label"] in REPORTED and run["group"].endswith("instructions")]
    (folder / "records.jsonl").write_text("\n".join(chosen_lines) + "\n", encoding="utf-8")
    title = ("--title", "Instructions, SmolLM2-135M")
    command = [*QPEFT, "report", str(folder / "records.jsonl"), "--out", str(folder / "report"), *title]
    subprocess.run(command, check=True, capture_output=True)
    yield from picture(browser, (folder / "report").as_uri(), _wanted({"report": "/report.html"}, chosen), out)


def _wanted(pages: dict[str, str], chosen: list[str]) -> dict[str, str]:
    return {name: address for name, address in pages.items() if not chosen or name in chosen}


SCENES: dict[Callable[[Any, Path, Path, list[str]], Iterator[Path]], set[str]] = {
    of_dashboard: {*dashboard_pages(defaultdict(str)), *ADMIN_PAGES},
    of_vendor: {*VENDOR_PAGES},
    of_runs: {"ui-runs", "ui-run", "ui-run-paused", "ui-run-chip", "ui-compare", "ui-circuits", "ui-start", "ui-missing"},
    of_report: {"report"},
}


def main(out: Path, chosen: list[str]) -> None:
    """Start what is to be shown, take the pictures, and print their names."""
    from playwright.sync_api import sync_playwright

    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        for scene, pages in SCENES.items():
            if chosen and not pages & set(chosen):
                continue
            with tempfile.TemporaryDirectory() as folder:
                for file in scene(browser, Path(folder), out, chosen):
                    print(file, flush=True)
                    if file.stem in SHOWN:
                        shutil.copy(file, IMAGES / f"{SHOWN[file.stem]}.png")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "screenshots"), sys.argv[2:])
