"""A real Chromium for tests with the marker `browser`: Debian's, driven by Playwright.

`open_page` makes a page that fails the test for every console error, uncaught exception and request to another host.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.watched import Watched
from tests.service.processes import Server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder is a browser test, and those of one module share one server: one worker process runs them."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


def chromium_path() -> str | None:
    """The browser's program: `QPEFT_CHROMIUM`, else Debian's `chromium` or a like one on the path."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("QPEFT_CHROMIUM") or next((found for name in names if (found := shutil.which(name))), None)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    program = chromium_path()
    if program is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Watched]]:
    """`open_page(base_url, **context)`: a page of a context of its own, such as `color_scheme="dark"` or `locale="zh-CN"`."""
    opened: list[Watched] = []

    def make(base_url: str, **context: Any) -> Watched:
        opened.append(Watched(chromium.new_context(base_url=base_url, **context), base_url))
        return opened[-1]

    yield make
    for page in opened:
        page.close()
    for page in opened:
        assert not page.faults, page.faults


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with one worker process, shared by the tests that only use it."""
    started = Server(tmp_path_factory.mktemp("service"), devices=("simulator", "emulator:wukong-72")).start()
    yield started
    started.close()
    assert started.stop() == 0, started.output()


@pytest.fixture
def fresh_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers of a test's own, which it may kill."""
    made: list[Server] = []

    def make(*arguments: str, **settings: Any) -> Server:
        folder = tmp_path / f"server{len(made)}"
        folder.mkdir()
        made.append(Server(folder, *arguments, **settings))
        return made[-1].start()

    yield make
    for one in made:
        one.close()
        one.kill()
