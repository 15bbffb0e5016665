"""Pictures of every page at three widths: `make screenshots`, or `python -m tests.browser.screenshots OUT [NAME ...]`.

A picture is called PAGE-WIDTH[-dark|-zh].png. Names choose pages. docs/images holds the few that docs show.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.browser.conftest import chromium_path
from tests.browser.scenes import CHIP, fill
from tests.service.processes import Server
from tests.tiny import save_tiny_model, write_tiny_recipe

WIDTHS = (360, 768, 1440)
LOOKS = (("", {}), ("-dark", {"color_scheme": "dark"}), ("-zh", {"locale": "zh-CN"}))


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
    "admin-vendor-tasks": "/admin/vendor-tasks",
    "admin-audit": "/admin/audit",
}


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


def of_runs(browser: Any, folder: Path, out: Path, chosen: list[str]) -> Iterator[Path]:
    """`qpeft ui` on a comparison of tiny models, one more run in the middle of its training, and the report's page."""
    for name in ("model", "recipes"):
        (folder / name).mkdir()
    save_tiny_model(folder / "model")
    recipe = write_tiny_recipe(folder / "recipes", folder / "model")
    qpeft = [sys.executable, "-m", "qpeft.cli"]
    subprocess.run([*qpeft, "compare", str(recipe), "--output", str(folder / "runs/demo")], check=True, capture_output=True)
    alone = recipe.with_name("alone.yaml")
    alone.write_text(recipe.read_text().partition("compare:")[0])
    settings = ("max_steps=600", "logging_steps=5", "save_steps=600", "eval_steps=50")
    options = [part for setting in settings for part in ("--set", f"training.{setting}")]
    train = [*qpeft, "train", str(alone), "--output", str(folder / "runs/alone"), *options]
    subprocess.run([*train, "--until", "300"], check=True, capture_output=True)
    command = [*qpeft, "ui", str(folder / "runs"), "--recipes", str(folder / "recipes"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        url, _, token = address.partition("/?")
        names = ["demo/runs/qtha/seed-0", "demo/runs/qtha/seed-1", "demo/runs/lora-r-2/seed-0", "demo/runs/lora-r-2/seed-1"]
        pages = {
            "ui-runs": "/",
            "ui-run": f"/run?name={names[0]}",
            "ui-run-paused": "/run?name=alone",
            "ui-compare": "/compare?" + "&".join(f"run={name}" for name in names),
            "ui-circuits": f"/circuits?name={names[0]}",
            "ui-start": "/start",
            "ui-missing": "/run?name=nothing",
        }
        try:
            yield from picture(browser, url, _wanted(pages, chosen), out, first=f"/?{token}")
        finally:
            server.terminate()
    pages = _wanted({"report": "/report.html"}, chosen)
    yield from picture(browser, (folder / "runs/demo/report").as_uri(), pages, out)


def _wanted(pages: dict[str, str], chosen: list[str]) -> dict[str, str]:
    return {name: address for name, address in pages.items() if not chosen or name in chosen}


def main(out: Path, chosen: list[str]) -> None:
    """Start what is to be shown, take the pictures, and print their names."""
    from playwright.sync_api import sync_playwright

    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        for scene in (of_dashboard, of_runs):
            with tempfile.TemporaryDirectory() as folder:
                for file in scene(browser, Path(folder), out, chosen):
                    print(file, flush=True)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "screenshots"), sys.argv[2:])
