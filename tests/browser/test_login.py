"""Who gets in, in a real browser: over plain loopback, and over https behind a proxy that rewrites Host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.browser.https_proxy import HttpsProxy
from tests.browser.watched import Watched
from tests.service.processes import Server


def test_log_in_and_out(server: Server, open_page: Callable[..., Watched]) -> None:
    watched = open_page(server.url)
    page = watched.log_in(server.key)
    assert page.locator("h1").first.is_visible()
    (cookie,) = watched.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    page.click("form[action='/logout'] button")
    page.wait_for_url("**/login")
    assert watched.context.cookies() == []
    page.goto("/")
    assert page.url.endswith("/login")


def test_a_wrong_key_is_said_on_the_page(server: Server, open_page: Callable[..., Watched]) -> None:
    watched = open_page(server.url)
    watched.expected = ("401",)
    page = watched.page
    page.goto("/login")
    page.fill("input[name=key]", "qk0000000000_" + "1" * 64)
    page.click("main form[action='/login'] button")
    assert "not a key" in page.locator("[role=alert]").inner_text()
    assert page.url.endswith("/login")


@pytest.mark.parametrize("forwarded", [True, False], ids=["host forwarded", "host lost"])
def test_a_session_over_https_behind_a_proxy_that_rewrites_host(
    forwarded: bool, server: Server, open_page: Callable[..., Watched], tmp_path: Path
) -> None:
    with HttpsProxy(server.port, tmp_path, forwarded) as proxy:
        watched = open_page(proxy.url, ignore_https_errors=True)
        page = watched.log_in(server.key)
        assert page.url == f"{proxy.url}/"
        page.reload()
        assert page.locator("form[action='/logout']").is_visible()
        page.click("form[action='/logout'] button")
        page.wait_for_url("**/login")
        watched.close()
