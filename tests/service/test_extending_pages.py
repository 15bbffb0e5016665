"""docs/extending/page.md: its package, installed by pip into a folder, adds a page to a dashboard that is really served."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.service.processes import Server

PAGE = (Path(__file__).parents[2] / "docs" / "extending" / "page.md").read_text(encoding="utf-8")
BUILD = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n\n'


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found.group(1)


def installed(folder: Path, code: str) -> dict[str, str]:
    """The environment in which the page's package is installed."""
    package = folder / "source" / "bill_page"
    (package / "templates").mkdir(parents=True)
    (package.parent / "pyproject.toml").write_text(BUILD + block("toml"))
    (package / "__init__.py").write_text(code)
    (package / "templates" / "bill.html.jinja").write_text(block("jinja"))
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder / "site")]
    subprocess.run([sys.executable, *pip, str(package.parent)], check=True, timeout=120)
    return {"PYTHONPATH": str(folder / "site")}


def test_the_page_is_served_like_the_others(fresh_server: Callable[..., Server], tmp_path: Path) -> None:
    server = fresh_server(environment=installed(tmp_path, block("python")))
    client = server.client()
    program = 'OPENQASM 2.0; include "qelib1.inc"; qreg q[1]; creg c[1]; h q[0]; measure q -> c;'
    job = client.submit(program, device="simulator", shots=3000)
    assert client.wait(job["id"], timeout_s=60)["state"] == "succeeded"
    assert httpx.get(f"{server.url}/bill").headers["location"] == "/login"
    with httpx.Client(base_url=server.url, timeout=20, follow_redirects=True) as browser:
        overview = browser.post("/login", data={"key": server.key}).text
        assert re.search(r'<a [^>]*href="/bill"[^>]*>Bill</a>', overview)
        page = browser.get("/bill")
        assert page.status_code == 200
        assert "<td>simulator</td><td>1.50</td>" in page.text


def test_an_address_that_is_taken_stops_the_server(tmp_path: Path) -> None:
    environment = installed(tmp_path, block("python").replace('"/bill"', '"/usage"'))
    asked = "from qpeft.service.dashboard.pages import all_pages; all_pages()"
    done = subprocess.run([sys.executable, "-c", asked], env={**environment, "PATH": ""}, capture_output=True, text=True)
    assert done.returncode != 0
    assert "the page group 'bill' has an address that is taken" in done.stderr
    assert "GET /usage" in done.stderr
