"""English and Chinese. Pages are written in English; `chinese.yaml` maps each of their sentences to Chinese."""

from __future__ import annotations

import functools
from importlib import resources

import yaml

LANGUAGES = ("en", "zh")


@functools.cache
def chinese() -> dict[str, str]:
    """English sentence -> Chinese."""
    text = (resources.files("qpeft.web") / "chinese.yaml").read_text(encoding="utf-8")
    return {str(english): str(found) for english, found in yaml.safe_load(text).items()}


def translate(language: str, text: str, **values: object) -> str:
    """A sentence in the language, `{name}` filled in; what has no translation stays English."""
    found = chinese().get(text, text) if language == "zh" else text
    return found.format(**values) if values else found


MARKS = ("got ", "allowed: ", "hint: ")
"""Beginnings of the parts of an error's message (`QpeftError`)."""


def translate_message(language: str, text: str) -> str:
    """The message of an error or the reason of a state, as far as its parts have translations."""
    if language == "en":
        return text
    parts = []
    for part in text.split("; "):
        mark = next((mark for mark in MARKS if part.startswith(mark)), "")
        parts.append((f"{translate(language, mark.strip())} " if mark else "") + translate(language, part.removeprefix(mark)))
    return "；".join(parts)


def preferred(accept_language: str) -> str:
    """The language that a browser asks for first, of those there are."""
    for part in accept_language.lower().split(","):
        code = part.split(";")[0].strip()[:2]
        if code in LANGUAGES:
            return code
    return "en"
