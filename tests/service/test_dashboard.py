"""The dashboard: who gets in, what other sites cannot do, what names cannot do."""

from __future__ import annotations

import re
from collections.abc import Callable

import httpx
import pytest

from qpeft.circuits.ir import Angle, Circuit, Op
from tests.service.processes import Server

RY = Circuit(1, (Op("ry", (0,), Angle(0)),), 1, 1)
SCRIPT = '<script>alert("x")</script><img src=x onerror=alert(1)>'


@pytest.fixture
def browse(server: Server) -> Callable[[str], httpx.Client]:
    def log_in(key: str) -> httpx.Client:
        client = httpx.Client(base_url=server.url, timeout=20, headers={"accept": "text/html"})
        server.closing(client)
        answer = client.post("/login", data={"key": key})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        return client

    return log_in


def token(client: httpx.Client, path: str = "/") -> str:
    found = re.search(r'name="token" value="([0-9a-f]{64})"', client.get(path).text)
    assert found
    return found.group(1)


def test_names_are_text_and_nothing_else(server: Server, browse: Callable[[str], httpx.Client]) -> None:
    key = server.new_key("eve" + SCRIPT)
    with server.client(key) as client:
        job = client.submit(RY, device="simulator", params=[0.1], shots=5, name=SCRIPT)
        client.result(job["id"])
    pages = browse(key)
    admin = browse(server.key)
    for answer in (pages.get("/"), pages.get("/parts/jobs"), pages.get(f"/jobs/{job['id']}"), admin.get("/admin")):
        assert answer.status_code == 200
        assert "&lt;script&gt;alert(" in answer.text
        assert "<script>alert" not in answer.text
        assert "<img" not in answer.text
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert not re.search(r"<script(?! src=\"/static/)|\son\w+=\"|style=\"|javascript:", answer.text)


def test_every_form_needs_the_sessions_token_and_this_site(server: Server, browse: Callable[[str], httpx.Client]) -> None:
    key = server.new_key("frank")
    pages, other, client = browse(key), browse(server.new_key("grace")), server.client(key)
    with server.client() as admin:
        admin.set_device("simulator", "maintenance")
        try:
            job = client.submit(RY, device="simulator", params=[0.1], shots=5)["id"]
            path, right = f"/jobs/{job}/cancel", token(pages)
            for form in ({}, {"token": ""}, {"token": "0" * 64}, {"token": "é"}, {"token": token(other)}):
                assert pages.post(path, data={"x": "1", **form}).status_code == 403
            for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
                assert pages.post(path, data={"token": right}, headers=headers).status_code == 403
            assert pages.post(path, json={"token": right}).status_code == 415
            assert other.post(path, data={"token": token(other)}).status_code == 404
            assert httpx.post(server.url + path, data={"token": right}, timeout=10).headers["location"] == "/login"
            assert client.job(job)["state"] == "queued"
            assert pages.post(path, data={"token": right}, headers={"origin": server.url}).status_code == 303
            assert client.job(job)["state"] == "cancelled"
        finally:
            admin.set_device("simulator", "online")
    assert (
        httpx.post(f"{server.url}/login", data={"key": key}, headers={"origin": "http://evil.example"}, timeout=10).status_code
        == 403
    )


def test_a_session_ends_with_its_key_or_by_logging_out(server: Server, browse: Callable[[str], httpx.Client]) -> None:
    key = server.new_key("heidi")
    one, two = browse(key), browse(key)
    cookie = httpx.post(f"{server.url}/login", data={"key": key}, timeout=10).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert key not in cookie
    kept = dict(one.cookies)
    assert one.post("/logout", data={"token": token(one)}).headers["location"] == "/login"
    assert httpx.get(f"{server.url}/", cookies=kept, timeout=10).headers["location"] == "/login"
    assert two.get("/").status_code == 200
    with server.client() as admin:
        admin.revoke_key(key.split("_")[0])
    assert two.get("/").headers["location"] == "/login"
    assert two.get("/parts/jobs", headers={"hx-request": "true"}).headers["hx-redirect"] == "/login"
    assert httpx.post(f"{server.url}/login", data={"key": key}, timeout=10).status_code == 401


def test_users_see_their_own_and_administrators_administer(server: Server, browse: Callable[[str], httpx.Client]) -> None:
    key = server.new_key("ivan")
    pages, stranger, admin = browse(key), browse(server.new_key("judy")), browse(server.key)
    with server.client(key) as client:
        job = client.submit(RY, device="simulator", params=[0.1], shots=5, name="ivan's own")
        client.result(job["id"])
    assert "ivan&#39;s own" in pages.get("/").text
    assert "ivan" not in stranger.get("/").text
    assert stranger.get(f"/jobs/{job['id']}").status_code == 404
    assert sum(pages.get("/data/usage").json()["devices"]["simulator"]["shots"]) == 5
    assert stranger.get("/data/usage").json()["devices"] == {}
    for path in ("/admin", "/admin/keys"):
        assert stranger.request("GET" if path == "/admin" else "POST", path, data={"token": token(stranger)}).status_code == 403
    assert sum(admin.get("/data/usage").json()["devices"]["simulator"]["shots"]) >= 5
    made = admin.post("/admin/keys", data={"token": token(admin), "user": "ken", "scope_read": "1"})
    new = re.search(r"qk[0-9a-f]{10}_[0-9a-f]{64}", made.text)
    assert new
    assert server.http(new.group()).get("/v1/jobs").status_code == 200
    prefix = new.group().split("_")[0]
    assert admin.post(f"/admin/keys/{prefix}/revoke", data={"token": token(admin)}).status_code == 303
    assert server.http(new.group()).get("/v1/jobs").status_code == 401
    status = {"token": token(admin), "status": "draining", "reason": "for a while"}
    assert admin.post("/admin/devices/simulator/status", data=status).status_code == 303
    assert "for a while" in pages.get("/parts/devices").text
    assert admin.post("/admin/devices/simulator/status", data={**status, "status": "online", "reason": ""}).status_code == 303
    assert "Audit log" in admin.get("/admin").text


def test_files_are_those_that_are_shipped(server: Server) -> None:
    for name in ("htmx.min.js", "uPlot.iife.min.js", "uPlot.min.css", "dashboard.js", "dashboard.css", "LICENSES.txt"):
        answer = httpx.get(f"{server.url}/static/{name}", timeout=10)
        assert answer.status_code == 200
        assert len(answer.content) > 1000
    for name in ("..%2fbase.html.jinja", "%2e%2e", "nothing.js"):
        assert httpx.get(f"{server.url}/static/{name}", timeout=10).status_code == 404
    assert httpx.get(f"{server.url}/login", timeout=10).status_code == 200
    assert httpx.post(f"{server.url}/login", data={"key": "qk0000000000_" + "1" * 64}, timeout=10).status_code == 401
