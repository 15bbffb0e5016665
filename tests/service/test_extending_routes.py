"""docs/extending/route.md: its package, installed by pip into a folder, adds a route to a server that really runs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.service.processes import Server

PAGE = (Path(__file__).parents[2] / "docs" / "extending" / "route.md").read_text(encoding="utf-8")
BUILD = (
    '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n\n'
    '[tool.setuptools]\npy-modules = ["bill_route"]\n\n'
)


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found.group(1)


def installed(folder: Path, code: str) -> dict[str, str]:
    """The environment in which the page's package is installed."""
    package = folder / "bill-route"
    package.mkdir()
    (package / "pyproject.toml").write_text(BUILD + block("toml"))
    (package / "bill_route.py").write_text(code)
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder / "site")]
    subprocess.run([sys.executable, *pip, str(package)], check=True, timeout=120)
    return {"PYTHONPATH": str(folder / "site"), "BILL_PRICE_PER_1000_SHOTS": "2.0"}


def test_the_route_is_served_like_the_others(fresh_server: Callable[..., Server], tmp_path: Path) -> None:
    server = fresh_server(environment=installed(tmp_path, block("python")))
    client = server.client()
    job = client.submit(
        'OPENQASM 2.0; include "qelib1.inc"; qreg q[1]; creg c[1]; h q[0]; measure q -> c;', device="simulator", shots=250
    )
    assert client.wait(job["id"], timeout_s=60)["state"] == "succeeded"
    with server.http() as http:
        assert http.get("/v1/bill?days=7").json() == {"days": 7, "shots": 250, "price": 0.5}
        assert http.get("/v1/bill?days=0").status_code == 422
        described = http.get("/openapi.json").json()["paths"]["/v1/bill"]["get"]
        assert described["summary"] == "What the shots of the last days cost"
        assert [parameter["name"] for parameter in described["parameters"]] == ["days"]
    assert httpx.get(f"{server.url}/v1/bill").status_code == 401


def test_a_route_that_is_served_already_stops_the_server(tmp_path: Path) -> None:
    environment = installed(tmp_path, block("python").replace('"/v1/bill"', '"/v1/usage"'))
    asked = "from qpeft.service.api.registry import all_routes; all_routes()"
    done = subprocess.run([sys.executable, "-c", asked], env={**environment, "PATH": ""}, capture_output=True, text=True)
    assert done.returncode != 0
    assert "the route group 'bill' has a route that is served already" in done.stderr
    assert "GET /v1/usage" in done.stderr
