"""Every sentence of a page is there in Chinese, with the same names to fill in."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

from qpeft.service.dashboard.pages import GROUPS
from qpeft.service.dashboard.pages.usage import NUMBERS
from qpeft.service.dashboard.site import TITLES
from qpeft.service.store.admin import DEVICE_STATES
from qpeft.service.store.schema import STATES
from qpeft.service.vendor.tasks import TASK_STATES
from qpeft.ui.pages import ADDRESSES
from qpeft.ui.pages.compare import CHARTS
from qpeft.web.chip_map import QUBIT_COLUMNS
from qpeft.web.language import chinese, preferred, translate, translate_message

SOURCE = Path(__file__).parents[2] / "src" / "qpeft"
PLACES = ("web", "ui", "service/dashboard")
REFUSING = (*PLACES, "service/api/auth.py", "service/store/queries.py", "service/store/sessions.py", "service/vendor/tasks.py")
"""Code whose refusals become pages."""


def sentences() -> set[str]:
    """What templates and pages hand to `t`, by its text, and the words that come from tables."""
    found: set[str] = set()
    for place in PLACES:
        for file in (SOURCE / place).rglob("*"):
            if file.suffix in (".jinja", ".py"):
                text = file.read_text(encoding="utf-8")
                found.update(re.findall(r"""\bt\(\s*"((?:[^"\\]|\\.)+)\"""", text))
                for rows in re.findall(r"parts\.(?:big|facts)\(\[(.*?)\]\)", text):
                    found.update(re.findall(r"""\("([A-Za-z][^"]+)",""", rows))
    for place in REFUSING:
        for file in (path for path in (SOURCE / place, *(SOURCE / place).rglob("*.py")) if path.suffix == ".py"):
            found.update(re.findall(r"""(?:Service|Run)Error\(\s*"([^"]+)\"""", file.read_text(encoding="utf-8")))
    found.update(page.nav for name in GROUPS for page in GROUPS[name] if page.nav)
    found.update(one.nav for one in ADDRESSES if one.nav)
    found.update((*STATES, *DEVICE_STATES, *TASK_STATES, "finished", "paused", "new", "lost"))
    found.update(title for title, _, _ in QUBIT_COLUMNS.values())
    found.update(title for _, title, _ in CHARTS)
    found.update(part for _, title in NUMBERS for part in (title, f"{title} per day"))
    found.update(TITLES.values())
    return {one for one in found if "{" not in one or re.search(r"\{\w+\}", one)}


def test_every_sentence_is_translated() -> None:
    missing = sorted(sentences() - chinese().keys())
    assert missing == []
    assert len(chinese()) > 200


@pytest.mark.parametrize("english", sorted(chinese()))
def test_translations_fill_in_the_same_names(english: str) -> None:
    names = [{name for _, name, _, _ in string.Formatter().parse(text) if name} for text in (english, chinese()[english])]
    assert names[0] == names[1]


def test_languages_are_chosen_by_what_the_browser_asks() -> None:
    asked = {"zh-CN,zh;q=0.9,en;q=0.8": "zh", "en-GB,en": "en", "fr,de;q=0.9,zh;q=0.5": "zh", "": "en", "*": "en"}
    assert {words: preferred(words) for words in asked} == asked
    assert translate("zh", "Status {n}", n=404) == "状态码 404"
    message = "no such job; got 'x'; allowed: never said; hint: cancel it first"
    assert translate_message("zh", message) == "没有此任务；收到 'x'；允许： never said；提示： 请先取消"
    assert translate_message("en", message) == message
    assert translate("zh", "never said {x}", x=1) == "never said 1"
