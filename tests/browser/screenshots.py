"""Pictures of every page at three widths: `make screenshots`, or `python -m tests.browser.screenshots OUT [NAME ...]`.

A picture is called PAGE-WIDTH[-dark|-zh].png. Names choose pages. docs/images holds the few that docs show.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.browser.conftest import chromium_path
from tests.browser.scenes import CHIP, fill
from tests.service.processes import Server

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


def picture(browser: Any, url: str, pages: dict[str, str], out: Path, key: str | None = None) -> Iterator[Path]:
    """Every page at every width, light; dark and Chinese at the narrowest and the widest."""
    for suffix, settings in LOOKS:
        for width in WIDTHS if not suffix else (WIDTHS[0], WIDTHS[-1]):
            context = browser.new_context(base_url=url, viewport={"width": width, "height": 900}, **settings)
            page = context.new_page()
            if key is not None:
                page.goto("/login")
                page.fill("input[name=key]", key)
                page.click("main form[action='/login'] button")
                page.wait_for_url("**/")
            for name, address in pages.items():
                page.goto(address)
                page.wait_for_timeout(150)
                file = out / f"{name}-{width}{suffix}.png"
                page.screenshot(path=str(file), full_page=True)
                yield file
            context.close()


def main(out: Path, chosen: list[str]) -> None:
    """Start what is to be shown, take the pictures, and print their names."""
    from playwright.sync_api import sync_playwright

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        server = Server(Path(folder), devices=("simulator", CHIP)).start()
        try:
            key, found = fill(server)
            for pages, holder in ((dashboard_pages(found), key), (ADMIN_PAGES, server.key)):
                wanted = {name: address for name, address in pages.items() if not chosen or name in chosen}
                for file in picture(browser, server.url, wanted, out, holder):
                    print(file, flush=True)
        finally:
            server.close()
            server.stop()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "screenshots"), sys.argv[2:])
