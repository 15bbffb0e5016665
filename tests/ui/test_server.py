"""Who gets into `qpeft ui`: the holder of the token, on this machine, by this server's own pages."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from qpeft.ui.server import make_app

TOKEN = "t" * 32
RECIPE = "name: <script>alert(1)</script>\nmodel: {model_name_or_path: tiny}\nadapter: {peft_type: QTHA}\ntraining: {seed: 0}\n"


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    run = tmp_path / "runs" / "<img src=x>"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "recipes").mkdir()
    app = make_app(tmp_path / "runs", tmp_path / "recipes", TOKEN, 1)
    return TestClient(app, base_url="http://127.0.0.1:1", follow_redirects=False, headers={"accept": "text/html"})


def test_nobody_gets_in_without_the_token(client: TestClient) -> None:
    for path in ("/", "/run?name=x", "/compare", "/start", "/live", "/circuits", "/?token=wrong", "/?token=é"):
        assert client.get(path).status_code == 403, path
    for path in ("/start", "/pause", "/resume", "/chat", "/samples"):
        assert client.post(path, data={"token": TOKEN}).status_code == 403, path
    answer = client.get(f"/?token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert client.get("/").status_code == 200


def test_forms_need_the_token_this_site_and_this_machine(client: TestClient) -> None:
    client.get(f"/?token={TOKEN}")
    good = {"token": TOKEN, "name": "<img src=x>"}
    assert client.post("/pause", data={**good, "token": "x"}).status_code == 403
    assert client.post("/pause", data=good, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.post("/pause", data={**good, "more": "x" * 70_000}).status_code == 413
    assert client.post("/pause", data=good).status_code == 404  # it is not running
    assert client.get("/", headers={"host": "evil.example:1"}).status_code == 403
    assert client.get("/pause").status_code == 405


def test_pages_escape_what_files_hold(client: TestClient) -> None:
    client.get(f"/?token={TOKEN}")
    for path in ("/", "/run?name=%3Cimg%20src%3Dx%3E", "/compare?run=%3Cimg%20src%3Dx%3E"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "<img" not in answer.text
        assert "&lt;img src=x&gt;" in answer.text
        assert "unsafe" not in answer.headers["content-security-policy"]
    missing = client.get("/run?name=nothing", headers={"accept-language": "zh"})
    assert missing.status_code == 404
    assert "页面不存在" in missing.text
    assert client.get("/nothing").status_code == 404
    for name in ("app.css", "live.js", "run.js"):
        assert client.get(f"/static/{name}").status_code == 200
    assert client.get("/static/..%2fserver.py").status_code == 404
