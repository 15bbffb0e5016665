"""The dashboard in Debian's Firefox: log in, every page at two widths, a job that ends under the visitor's eyes, log out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.browser.firefox import Firefox, firefox_path
from tests.browser.scenes import BELL, fill
from tests.browser.screenshots import ADMIN_PAGES, dashboard_pages
from tests.service.processes import Server


@pytest.mark.slow
def test_the_dashboard_in_firefox(server: Server, tmp_path: Path) -> None:
    program = firefox_path()
    if program is None:
        pytest.skip("no Firefox here (Debian: apt-get install firefox-esr)")
    pytest.importorskip("websockets")
    key, found = fill(server, "fiona")
    pictures = os.environ.get("QPEFT_FIREFOX_PICTURES")  # a folder for them
    with Firefox(program, tmp_path, server.url) as firefox:
        for holder, pages in ((key, dashboard_pages(found)), (server.key, ADMIN_PAGES)):
            firefox.open("/login")
            firefox.run(f"document.querySelector('input[name=key]').value = '{holder}'")
            firefox.run("document.querySelector('main form[action=\"/login\"] button').click()")
            firefox.until("location.pathname === '/' && document.querySelector('#live[data-state=on]')")
            for name, path in pages.items():
                for width in (360, 1280):
                    firefox.size(width, 800)
                    firefox.open(path)
                    over = firefox.run("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                    assert over <= 0, (name, width, over)
                    assert firefox.run("document.querySelectorAll('h1').length") == 1, name
                    if pictures:
                        firefox.screenshot(Path(pictures) / f"{name}-{width}.png")
            if holder == key:
                client = server.client(key)
                firefox.open("/jobs")
                firefox.until("document.querySelector('#live[data-state=on]')")
                job = client.submit(BELL, device="simulator", shots=100, name="seen in Firefox")
                client.result(job["id"])
                row = "[...document.querySelectorAll('tbody tr')].find(row => row.innerText.includes('seen in Firefox'))"
                firefox.until(f"{row}?.querySelector('.succeeded')")
            firefox.open("/")
            firefox.run("document.querySelector('form[action=\"/logout\"] button').click()")
            firefox.until("location.pathname === '/login'")
        assert firefox.faults == []
