"""The documentation site: it builds without a warning, loads nothing from another host, and every page works at three widths."""

from __future__ import annotations

import functools
import http.server
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest

ROOT = Path(__file__).parent.parent.parent
LOADED = re.compile(r"<(?:script|img|link|iframe)[^>]*\b(?:src|href)=\"((?:https?:)?//[^\"]+)\"[^>]*>")
WIDTHS = (360, 768, 1440)  # CSS pixels: a telephone, a tablet, a desk
ON_THE_PAGE = """() => ({
    wide: document.documentElement.scrollWidth - window.innerWidth,
    broken: [...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src),
    links: [...document.querySelectorAll("a[href]")].map(link => link.href),
    ids: [...document.querySelectorAll("[id]")].map(element => element.id),
})"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site's folder, built as `make docs` builds it."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", str(folder / "cache")]
    done = subprocess.run([*command, str(ROOT / "docs"), str(folder / "html")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_the_site_stands_alone(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert {"index.html", "search.html", "start.html"} <= {page.name for page in pages}
    for page in pages:
        assert not LOADED.findall(page.read_text(encoding="utf-8")), page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_and_its_links(site: Path, address: str, chromium: Any, width: int) -> None:
    """No failed request, no request elsewhere, no error, no sideways scrolling, no dead link or anchor; the search finds."""
    faults: list[str] = []
    links: dict[str, set[str]] = {}
    ids: dict[str, set[str]] = {}
    context = chromium.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    page.on("response", lambda response: faults.append(f"{response.status} {response.url}") if response.status >= 400 else None)
    page.on("console", lambda message: faults.append(f"{page.url}: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(f"{page.url}: {error}"))
    page.on("request", lambda request: faults.append(request.url) if not request.url.startswith((address, "data:")) else None)
    for path in sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html") if "_static" not in path.parts):
        page.goto(address + path)
        found = page.evaluate(ON_THE_PAGE)
        if found["wide"] > 1:
            faults.append(f"{path} is {found['wide']} pixels wider than {width}")
        faults += [f"{path}: no picture {source}" for source in found["broken"]]
        links[path] = {link for link in found["links"] if link.startswith(address)}
        ids[path] = set(found["ids"])
    for path, targets in links.items():
        for target in targets:
            file, anchor = urldefrag(target.removeprefix(address))
            file = unquote(file.split("?")[0]) or "index.html"
            file += "index.html" if file.endswith("/") else ""
            if not (site / file).is_file() or (anchor and file in ids and unquote(anchor) not in ids[file]):
                faults.append(f"{path}: dead link {target}")
    page.goto(address + "search.html?q=emulator")
    page.wait_for_selector("#search-results li", timeout=20_000)
    context.close()
    assert len(links) > 90
    assert not faults, "\n".join(faults)
