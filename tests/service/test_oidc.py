"""Sign-in with an OpenID Connect provider that we did not write: who gets in, as whom, and what a disabled user sees."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from qpeft.errors import ServiceError
from qpeft.service.dashboard.oidc import who
from qpeft.service.settings import Settings
from tests.service.checks import until
from tests.service.processes import Server

if importlib.util.find_spec("oidc_provider_mock") is None:
    pytest.skip("pip install oidc-provider-mock", allow_module_level=True)
PEOPLE = {"4711": "Ada@example.org", "1": "boss@example.org", "2": "eve@elsewhere.example", "3": "grace@example.org"}


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "oidc_provider_mock", "--port", str(port), "--require-nonce", "true"]
    for subject, email in PEOPLE.items():
        command += ["--user-claims", json.dumps({"sub": subject, "email": email, "email_verified": True})]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        until(lambda: answers(url), 60)
        yield url
        process.kill()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/.well-known/openid-configuration", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def environment(issuer: str, **more: str) -> dict[str, str]:
    settings = {"ISSUER": issuer, "CLIENT_ID": "qpeft", "CLIENT_SECRET": "s3cret-of-the-client", **more}
    return {f"QPEFT_SERVICE_OIDC_{name}": value for name, value in settings.items()}


def sign_in(server: Server, subject: str) -> tuple[httpx.Client, httpx.Response]:
    """What a browser does: to the provider, its form, and back; the client with its cookies and the last answer."""
    browser = httpx.Client(timeout=20)
    server.closing(browser)
    away = browser.get(f"{server.url}/login/oidc")
    assert away.status_code == 302, away.text
    asked = parse_qs(urlsplit(away.headers["location"]).query)
    assert asked["code_challenge_method"] == ["S256"]
    assert asked["redirect_uri"] == [f"{server.url}/login/oidc/callback"]
    back = browser.post(away.headers["location"], data={"sub": subject})
    assert back.status_code == 302, back.text
    return browser, browser.get(back.headers["location"])


def test_people_of_the_provider_sign_in(fresh_server: Callable[..., Server], issuer: str) -> None:
    server = fresh_server(
        "--executors", "0", environment=environment(issuer, DOMAINS='["example.org"]', ADMINS='["boss@example.org"]')
    )
    admin = server.client()
    assert "/login/oidc" in httpx.get(f"{server.url}/login", timeout=10).text
    browser, answer = sign_in(server, "4711")
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    page = browser.get(f"{server.url}/")
    assert page.status_code == 200
    assert "ada@example.org" in page.text
    assert browser.get(f"{server.url}/admin/keys").status_code == 403
    assert {user["user"] for user in admin.users()} >= {"ada@example.org"}
    sign_in(server, "4711")
    keys = admin.keys()
    assert [key["user"] for key in keys].count("ada@example.org") == 1
    boss, _ = sign_in(server, "1")
    assert boss.get(f"{server.url}/admin/keys").status_code == 200
    assert sign_in(server, "2")[1].status_code == 403
    server.new_key("grace@example.org")
    assert sign_in(server, "3")[1].json()["code"] == "name"
    admin.link_user("grace@example.org", issuer, "3")
    assert sign_in(server, "3")[1].status_code == 200
    admin.set_user("ada@example.org", disabled=True)
    until(lambda: browser.get(f"{server.url}/").status_code == 303)
    assert sign_in(server, "4711")[1].json()["code"] == "disabled"
    assert "s3cret-of-the-client" not in server.output()


def test_a_forged_or_repeated_answer_is_refused(fresh_server: Callable[..., Server], issuer: str) -> None:
    server = fresh_server("--executors", "0", environment=environment(issuer) | {"QPEFT_SERVICE_BAD_KEY_RATE_PER_S": "3"})
    stranger = httpx.Client(timeout=20)
    server.closing(stranger)
    assert stranger.get(f"{server.url}/login/oidc/callback", params={"code": "x", "state": "y"}).status_code == 401
    stranger.get(f"{server.url}/login/oidc")
    assert stranger.get(f"{server.url}/login/oidc/callback", params={"code": "x", "state": "y"}).status_code == 401
    statuses: list[int] = []
    guess = lambda: statuses.append(httpx.get(f"{server.url}/login/oidc/callback", timeout=20).status_code)  # noqa: E731
    threads = [threading.Thread(target=guess) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {401, 429}


def test_a_provider_that_is_away_is_said(fresh_server: Callable[..., Server]) -> None:
    server = fresh_server("--executors", "0", environment=environment("http://127.0.0.1:1"))
    answer = httpx.get(f"{server.url}/login/oidc", timeout=30)
    assert (answer.status_code, answer.json()["code"]) == (503, "oidc")


def test_names_and_scopes_of_claims() -> None:
    settings = Settings(oidc_admins=("boss@example.org",))
    assert who(settings, {"sub": "1", "email": "Boss@example.org", "email_verified": True})[1] == ("submit", "read", "admin")
    assert who(settings, {"sub": "1", "email": "boss@example.org"}) == ("oidc:1", ("submit", "read"))
    strict = Settings(oidc_domains=("example.org",))
    for claims in (
        {"sub": "1"},
        {"sub": "1", "email": "x@example.org"},
        {"sub": "1", "email": "x@evil.org", "email_verified": True},
    ):
        with pytest.raises(ServiceError, match="may not sign in"):
            who(strict, claims)
    assert re.fullmatch("x@example.org", who(strict, {"sub": "1", "email": "x@example.org", "email_verified": True})[0])
