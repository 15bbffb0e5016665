"""A user with 100,000 jobs: every page of the dashboard answers in 300 ms."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import httpx
import pytest

from qpeft.service.store.queries import BATCH_STATES
from tests.browser.scenes import BELL
from tests.browser.watched import Watched
from tests.service.processes import Server

JOBS, BOUND_S = 100_000, 0.3


@pytest.mark.slow
def test_100_000_jobs(fresh_server: Callable[..., Server], open_page: Callable[..., Watched]) -> None:
    server = fresh_server(environment={"QPEFT_SERVICE_MAX_BODY_BYTES": str(64 << 20)})
    key = server.new_key("busy")
    client, circuit = server.client(key, total_s=300), json.loads(BELL.to_json())
    with server.client() as admin:
        admin.set_device("simulator", "maintenance")
    batches = []
    for part in range(10):
        items = [{"circuit": circuit, "shots": 10, "name": f"job {part * 10_000 + k}"} for k in range(JOBS // 10)]
        batches.append(client.submit_batch(items, device="simulator", name=f"part {part}")["id"])
    client.cancel_batch(batches[0])
    newest = client.jobs(limit=1)[0]["id"]
    last = client.connection.request("GET", "/v1/jobs", params={"state": "cancelled", "limit": 1}).json()["jobs"][0]["id"]
    paths = [
        "/",
        "/jobs",
        "/jobs?state=queued",
        "/jobs?state=cancelled",
        "/jobs?q=job+99999",
        "/jobs?q=nothing+like+it",
        "/jobs?before=5000",
        "/jobs?device=simulator",
        "/queue",
        "/devices",
        "/devices/simulator",
        "/batches",
        *(f"/batches?state={state}" for state in BATCH_STATES),
        f"/batches/{batches[0]}",
        f"/batches/{batches[5]}",
        "/usage",
        f"/jobs/{newest}",
        f"/jobs/{last}",
    ]
    slow = {}
    with httpx.Client(base_url=server.url, timeout=60, headers={"accept": "text/html"}) as pages:
        pages.post("/login", data={"key": key})
        for path in paths:
            times = [float("inf")]
            for _ in range(20):
                if min(times) < BOUND_S and len(times) > 5:
                    break
                start = time.perf_counter()
                assert pages.get(path).status_code == 200, path
                times.append(time.perf_counter() - start)
            print(f"{1000 * min(times):7.1f} ms  {path}")
            if min(times) > BOUND_S:  # the least: other processes of the machine make times longer, never shorter
                slow[path] = times
    assert slow == {}
    page = open_page(server.url).log_in(key)
    page.click("nav >> text=Jobs")
    assert "100,000" in page.locator(".chips").first.inner_text()
    page.click("text=Older")
    assert page.locator("tbody tr").count() == 50
