"""The dashboard as people use it: what they see, what changes under their eyes, what they do, what stays other people's."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qpeft.circuits.ir import Circuit, Op
from qpeft.errors import ServiceError
from tests.browser.accessibility import overflow, serious
from tests.browser.scenes import BELL, CHIP, fill, ghz, vendor_server
from tests.browser.screenshots import ADMIN_PAGES, dashboard_pages
from tests.browser.watched import Watched
from tests.service.processes import Server

Open = Callable[..., Watched]
SCRIPT = '<script>document.title="x"</script><img src=x onerror=document.title="x">{{7*7}}'


@pytest.fixture(scope="module")
def scene(server: Server) -> tuple[str, dict[str, str]]:
    key, found = fill(server)
    with server.client() as admin:
        admin.set_device(CHIP, "online")
    return key, found


@pytest.mark.parametrize(
    ("width", "settings"),
    [(360, {"color_scheme": "dark"}), (1440, {"locale": "zh-CN"})],
    ids=["narrow and dark", "wide and Chinese"],
)
def test_every_page_is_accessible_and_fits(
    width: int, settings: dict[str, str], server: Server, scene: tuple[str, dict[str, str]], open_page: Open
) -> None:
    key, found = scene
    for holder, pages in ((key, dashboard_pages(found)), (server.key, ADMIN_PAGES)):
        watched = open_page(server.url, viewport={"width": width, "height": 800}, **settings)
        watched.expected = ("404",)
        page = watched.log_in(holder)
        for name, address in pages.items():
            page.goto(address)
            assert serious(page) == [], name
            assert overflow(page) <= 0, name
            assert page.locator("h1").count() == 1, name


def test_a_job_is_watched_from_submission_to_its_counts(server: Server, open_page: Open) -> None:
    key = server.new_key("walter")
    client, watched = server.client(key), open_page(server.url)
    page = watched.log_in(key)
    page.wait_for_selector("#live[data-state=on]")
    with server.client() as admin:
        admin.set_device("simulator", "maintenance")
        job = client.submit(BELL, device="simulator", shots=1000, name="watched")
        page.wait_for_selector("td:has-text('watched')")
        page.goto(f"/jobs/{job['id']}")
        assert page.locator(".state.queued").is_visible()
        assert page.locator("dt:has-text('Jobs before it') + dd").inner_text() == "0"
        admin.set_device("simulator", "online")
    page.wait_for_selector(".state.succeeded")
    words = page.locator("td.mono").all_inner_texts()
    assert sorted(words) == ["00", "11"]
    assert float(page.locator("p:has-text('total variation')").inner_text().split(":")[1]) < 0.1
    ideal = page.locator("tbody tr td:last-child").all_inner_texts()
    assert ideal == ["0.5000", "0.5000"]
    assert page.locator(".circuit text").all_text_contents() == ["q0", "q1", "H", "X"]


def test_cancel_by_the_keyboard(server: Server, open_page: Open) -> None:
    key = server.new_key("xenia")
    client, watched = server.client(key), open_page(server.url)
    with server.client() as admin:
        admin.set_device("simulator", "maintenance")
        try:
            job = client.submit(BELL, device="simulator", shots=10, name="a mistake")
            page = watched.log_in(key)
            page.goto("/queue")
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.className") == "skip"
            for _ in range(40):
                page.keyboard.press("Tab")
                if page.evaluate("document.activeElement.getAttribute('aria-label')") == "Cancel a mistake":
                    break
            page.keyboard.press("Enter")
            page.wait_for_selector(".state.cancelled")
            assert client.job(job["id"])["state"] == "cancelled"
        finally:
            admin.set_device("simulator", "online")


def test_a_key_is_made_and_revoked(server: Server, open_page: Open) -> None:
    page = open_page(server.url).log_in(server.key)
    page.click("nav >> text=Keys")
    page.fill("input[name=user]", "yannick")
    page.click("text=Make a key")
    key = page.locator("code.key").inner_text()
    assert server.http(key).get("/v1/jobs").status_code == 200
    page.goto("/admin/keys?q=yannick")
    assert key not in page.content()
    page.click("tbody >> text=Revoke")
    page.wait_for_url("**/admin/keys")
    assert server.http(key).get("/v1/jobs").status_code == 401
    page.goto("/admin/audit?q=revoke")
    assert key.split("_")[0] in page.locator("tbody").inner_text()
    with page.expect_download() as download:
        page.click("text=CSV")
    assert "revoke" in download.value.path().read_text()


@pytest.fixture
def vendor(tmp_path: Path) -> Iterator[tuple[Server, dict[str, str]]]:
    made = vendor_server(tmp_path)
    yield made
    made[0].close()
    made[0].stop()


def test_an_administrator_says_what_became_of_a_vendors_task(vendor: tuple[Server, dict[str, str]], open_page: Open) -> None:
    server, task = vendor[0], vendor[1]["intent"]
    page = open_page(server.url).log_in(server.key)
    page.goto("/admin/vendor-tasks?state=intent")
    row, form = page.locator(f"tr:has-text('{task}')"), page.locator(".caution form")
    assert serious(page) == []
    form.locator("button:has-text('The vendor has it')").click()
    assert page.url.endswith("state=intent")  # the browser asks for the vendor's id first
    form.locator("input[name=vendor_job]").fill("8F3A99")
    form.locator("button:has-text('The vendor has it')").click()
    page.wait_for_url("**/admin/vendor-tasks")
    assert "8F3A99" in row.inner_text()
    assert row.locator(".state.sent").count() == 1
    page.goto("/admin/audit?q=vendor.resolve")
    assert f"{task}: 8F3A99" in page.locator("tbody").inner_text()


def test_a_daily_quota_is_seen_and_said(server: Server, open_page: Open) -> None:
    client = server.client(key := server.new_key("ulla", max_day_circuits=3, max_day_shots=1000), total_s=1.0)
    for _ in range(2):
        client.submit(BELL, device="simulator", shots=100)
    with pytest.raises(ServiceError, match="more shots than your daily quota leaves"):
        client.submit(BELL, device="simulator", shots=900)
    page = open_page(server.url).log_in(key)
    assert page.locator("dt:has-text('Circuits submitted today') + dd").inner_text().startswith("2 / 3")
    page.goto("/usage")
    cells = page.locator("section:has(h2:has-text('daily quota')) tbody td").all_inner_texts()
    assert [cell.strip() for cell in cells[1:]] == ["2 / 3", "200 / 1,000"]
    assert serious(page) == []
    page = open_page(server.url).log_in(server.key)
    page.goto("/admin/keys")
    assert "200 / 1,000" in page.locator("tr:has-text('ulla')").last.inner_text()


def test_hostile_names_are_text(server: Server, open_page: Open) -> None:
    key = server.new_key("eve" + SCRIPT)
    client = server.client(key)
    job = client.submit(BELL, device="simulator", shots=5, name=SCRIPT)
    client.result(job["id"])
    page = open_page(server.url).log_in(key)
    for address in ("/", "/jobs", f"/jobs/{job['id']}", "/jobs?q=%3Cscript%3E"):
        page.goto(address)
        assert SCRIPT in page.locator("body").inner_text()
        assert page.title().endswith("qpeft quantum tasks")
        assert page.locator("main img, main script").count() == 0


def test_two_tenants_see_their_own(server: Server, open_page: Open) -> None:
    keys = [server.new_key(name) for name in ("one-tenant", "other-tenant")]
    jobs = []
    with server.client() as admin:
        admin.set_device("simulator", "maintenance")
        try:
            for key, name in zip(keys, ("hers alone", "his alone"), strict=True):
                jobs.append(server.client(key).submit(BELL, device="simulator", shots=5, name=name)["id"])
            watched = open_page(server.url)
            watched.expected = ("404",)
            page = watched.log_in(keys[0])
            for address in ("/", "/jobs", "/queue", "/devices/simulator", "/usage"):
                page.goto(address)
                text = page.locator("body").inner_text()
                assert "his alone" not in text, address
                assert "other-tenant" not in text, address
            page.goto("/queue")
            assert "hers alone" in page.locator("main").inner_text()
            assert page.goto(f"/jobs/{jobs[1]}").status == 404
            assert page.locator("h1").inner_text() == "There is no such page"
        finally:
            admin.set_device("simulator", "online")


def test_the_chip_shows_who_occupies_it_now(server: Server, scene: tuple[str, dict[str, str]], open_page: Open) -> None:
    key, other = server.new_key("zora"), server.new_key("yusuf")
    deep = Circuit(8, tuple(op for _ in range(900) for op in (*ghz(8).ops, Op("x", (0,)))))
    client = server.client(key)
    mine, his = open_page(server.url).log_in(key), open_page(server.url).log_in(other)
    mine.goto(f"/devices/{CHIP}")
    his.goto(f"/devices/{CHIP}")
    job = client.submit(deep, device=CHIP, shots=100_000, name="a long one", exclusive=True)
    seen = mine.locator(".chip-map circle.held")
    deadline = time.monotonic() + 30
    now = ""
    while time.monotonic() < deadline and client.job(job["id"])["state"] in ("queued", "running"):
        now = mine.locator("section:has-text('On the chip now') .legend").first.inner_text() if seen.count() else ""
        if "a long one" in now and his.locator("text=another user's job").count():
            break
        time.sleep(0.05)
    assert "a long one" in now
    assert seen.count() == 8
    assert "a long one" not in his.content()
    client.cancel(job["id"])
    assert mine.locator(".chip-map .cross").count() > 2
    mine.click(".chips >> text=T1")
    mine.wait_for_url("**show=t1**")
    assert re.search(r"\d µs", mine.locator(".legend").first.inner_text())


def test_pages_live_on_when_the_server_is_killed_and_comes_back(fresh_server: Callable[..., Server], open_page: Open) -> None:
    server = fresh_server()
    client, watched = server.client(), open_page(server.url)
    watched.expected = ("ERR_CONNECTION", "ERR_INCOMPLETE", "ERR_EMPTY", "Failed to fetch")
    page = watched.log_in(server.key)
    page.wait_for_selector("#live[data-state=on]")
    server.kill()
    page.wait_for_selector("#live[data-state=lost]")
    assert page.locator("#live").inner_text() == "Reconnecting…"
    server.start()
    page.wait_for_selector("#live[data-state=on]")
    client.result(client.submit(BELL, device="simulator", shots=5, name="after the crash")["id"])
    page.wait_for_selector("tr:has-text('after the crash'):has(.succeeded)")


def test_language_and_colours_are_chosen(server: Server, open_page: Open) -> None:
    page = open_page(server.url).log_in(server.key)
    page.goto("/jobs?q=GHZ")
    page.click("text=中文")
    page.wait_for_selector("html[lang=zh-Hans]")
    assert page.locator("h1").inner_text() == "任务"
    assert page.url.endswith("/jobs?q=GHZ")
    page.click("text=深色")
    page.wait_for_selector("html[data-theme=dark]")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
    page.click("text=English")
    page.wait_for_selector("html[lang=en]")
    page.click("text=Light")
    page.wait_for_selector("html[data-theme=light]")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(244, 246, 248)"


def test_lists_work_by_filter_search_and_page(server: Server, scene: tuple[str, dict[str, str]], open_page: Open) -> None:
    page = open_page(server.url).log_in(scene[0])
    page.goto("/jobs")
    page.fill("input[name=q]", "Bell pair")
    page.press("input[name=q]", "Enter")
    page.wait_for_url("**/jobs?*q=Bell*")
    assert page.locator("tbody tr").count() == 6
    page.click(".chips >> text=cancelled")
    page.wait_for_url("**state=cancelled**")
    assert "changed my mind" not in page.locator("main").inner_text()
    page.click("nav >> text=Batches")
    page.wait_for_url("**/batches")
    page.click(".chips >> text=failed")
    page.wait_for_url("**state=failed**")
    assert "GHZ of three sizes" not in page.locator("main").inner_text()
    page.click(".chips >> text=succeeded")
    page.wait_for_url("**state=succeeded**")
    page.click("tbody a")
    page.wait_for_url("**/batches/*")
    assert page.locator("h1").inner_text() == "GHZ of three sizes"
    assert page.locator("tbody tr").count() == 3
