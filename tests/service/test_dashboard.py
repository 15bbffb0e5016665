"""The dashboard: who gets in, what other sites cannot do, what names cannot do."""

from __future__ import annotations

import json
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
    for answer in (pages.get("/"), pages.get("/jobs"), pages.get(f"/jobs/{job['id']}"), admin.get("/admin/keys")):
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
    assert two.get("/live").headers["location"] == "/login"
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
    assert re.search(r'<td>simulator</td><td class="n">1</td><td class="n">1</td><td class="n">5</td>', pages.get("/usage").text)
    assert "Nothing was used." in stranger.get("/usage").text
    for path in ("keys", "workers", "vendor-tasks", "audit", "export/audit.csv"):
        assert stranger.get(f"/admin/{path}").status_code == 403
        assert admin.get(f"/admin/{path}").status_code == 200
    assert stranger.post("/admin/keys", data={"token": token(stranger)}).status_code == 403
    assert "ivan" in admin.get("/usage").text
    made = admin.post("/admin/keys", data={"token": token(admin), "user": "ken", "scope_read": "1"})
    new = re.search(r"qk[0-9a-f]{10}_[0-9a-f]{64}", made.text)
    assert new
    assert server.http(new.group()).get("/v1/jobs").status_code == 200
    prefix = new.group().split("_")[0]
    assert admin.post(f"/admin/keys/{prefix}/revoke", data={"token": token(admin)}).status_code == 303
    assert server.http(new.group()).get("/v1/jobs").status_code == 401
    status = {"token": token(admin), "status": "draining", "reason": "for a while"}
    assert admin.post("/admin/devices/simulator/status", data=status).status_code == 303
    assert "for a while" in pages.get("/devices").text
    assert admin.post("/admin/devices/simulator/status", data={**status, "status": "online", "reason": ""}).status_code == 303
    assert "draining" in admin.get("/admin/audit").text


def test_files_are_those_that_are_shipped(server: Server) -> None:
    for name in ("app.css", "tables.js", "charts.js", "live.js"):
        answer = httpx.get(f"{server.url}/static/{name}", timeout=10)
        assert answer.status_code == 200
        assert len(answer.content) > 1000
    for name in ("..%2fbase.html.jinja", "%2e%2e", "nothing.js"):
        assert httpx.get(f"{server.url}/static/{name}", timeout=10).status_code == 404
    assert httpx.get(f"{server.url}/login", timeout=10).status_code == 200
    assert httpx.post(f"{server.url}/login", data={"key": "qk0000000000_" + "1" * 64}, timeout=10).status_code == 401


def test_lists_filter_search_and_page(server: Server, browse: Callable[[str], httpx.Client]) -> None:
    key = server.new_key("lena")
    with server.client(key) as client:
        items = [{"circuit": json.loads(RY.to_json()), "params": [0.1], "shots": 5, "name": f"number {k:03d}"} for k in range(120)]
        batch = client.submit_batch(items, device="simulator", name="a hundred%20_and twenty")
        client.wait_batch(batch["id"])
    pages = browse(key)

    def names(path: str) -> list[str]:
        return re.findall(r"number (\d{3})</td>", pages.get(path).text)

    first = names("/jobs")
    assert first == [f"{k:03d}" for k in range(119, 69, -1)]
    seen, path = list(first), "/jobs"
    while found := re.search(r'href="(/jobs\?[^"]*)">Older', pages.get(path).text):
        path = found[1].replace("&amp;", "&")
        seen += names(path)
    assert seen == [f"{k:03d}" for k in range(119, -1, -1)]
    back = re.search(r'href="(/jobs\?[^"]*)">Newer', pages.get(path).text)
    assert back
    assert names(back[1].replace("&amp;", "&")) == [f"{k:03d}" for k in range(69, 19, -1)]
    assert names("/jobs?q=number 01") == [f"{k:03d}" for k in range(19, 9, -1)]
    assert names("/jobs?q=100%") == names("/jobs?q=number_01") == names("/jobs?state=failed") == names("/jobs?device=other") == []
    assert len(names("/jobs?state=succeeded&device=simulator")) == 50
    assert batch["id"] in pages.get("/batches?q=%2520_").text
    assert batch["id"] not in pages.get("/batches?q=twentyone").text
    assert "120 / 120" in pages.get(f"/batches/{batch['id']}").text.replace(" of ", " / ")
    for odd in (
        "/jobs?before=x",
        "/jobs?before=99999999999999999999",
        "/jobs?state=none",
        "/batches?before=nothing",
        "/jobs?q=%ff%00",
    ):
        assert pages.get(odd).status_code == 200


def test_exports_are_whole_and_no_formulas(server: Server, browse: Callable[[str], httpx.Client]) -> None:
    server.new_key("=HYPERLINK(evil)")
    admin = browse(server.key)
    table = admin.get("/admin/export/keys.csv")
    assert table.headers["content-disposition"] == 'attachment; filename="qpeft-keys.csv"'
    assert "'=HYPERLINK(evil)" in table.text
    assert "digest" not in table.text
    lines = [json.loads(line) for line in admin.get("/admin/export/audit.jsonl").text.splitlines()]
    assert len(lines) > 3
    assert {"at", "actor", "act", "detail"} <= lines[0].keys()
    assert admin.get("/admin/export/jobs.csv").status_code == 404


def test_errors_are_pages_for_browsers_and_problems_for_programs(server: Server, browse: Callable[[str], httpx.Client]) -> None:
    pages = browse(server.new_key("mona"))
    for path in ("/nothing", "/jobs/nothing", "/devices/nothing", "/batches/nothing"):
        answer = pages.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
        assert "There is no such page" in answer.text
        assert pages.get(path, headers={"accept-language": "zh-CN,zh;q=0.9"}).text.count("页面不存在") == 2
        assert pages.get(path, headers={"accept": "*/*"}).headers["content-type"] == "application/problem+json"
    assert pages.post("/jobs", data={}).status_code == 405
    assert pages.get("/admin/keys").status_code == 403
    assert pages.get("/v1/nothing").headers["content-type"] == "application/problem+json"
    assert httpx.get(f"{server.url}/jobs", timeout=10).headers["location"] == "/login"


def test_preferences_lead_nowhere_else(server: Server) -> None:
    with httpx.Client(base_url=server.url) as client:
        for back in ("//evil.example", "https://evil.example", "/\\evil.example", "%2F%2Fevil.example", "/\n/evil"):
            assert client.get("/preferences", params={"language": "zh", "back": back}).headers["location"] == "/"
        assert client.get("/preferences", params={"theme": "dark", "back": "/jobs?q=1"}).headers["location"] == "/jobs?q=1"
        text = client.get("/login").text
    assert '<html lang="zh-Hans" data-theme="dark">' in text
    assert "您的密钥" in text
