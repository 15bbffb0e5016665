"""The documentation names only what is there: files, commands, benchmarks; and there is a page for every method."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from qpeft.adapters.registry import METHODS
from qpeft.cli import app, reference

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


@page
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@page
def test_commands_exist(page: Path) -> None:
    group = typer.main.get_command(app)
    for words in re.findall(r"(?:`|^)qpeft ([a-z][a-z-]*(?: [a-z][a-z-]*)?)", page.read_text(encoding="utf-8"), re.MULTILINE):
        first, _, second = words.partition(" ")
        command = group.commands.get(first)  # type: ignore[attr-defined]
        assert command is not None, f"qpeft {first}"
        if second and hasattr(command, "commands"):
            assert second in command.commands, f"qpeft {words}"


@page
def test_benchmarks_exist(page: Path) -> None:
    for name in re.findall(r"python -m (benchmarks\.[a-z_.]+)", page.read_text(encoding="utf-8")):
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_page(name: str) -> None:
    text = (ROOT / "docs" / "methods" / f"{name.lower()}.md").read_text(encoding="utf-8")
    assert METHODS[name].paper.removeprefix("arXiv ") in text
    for control in METHODS[name].controls:
        assert control in text, f"control {control}"


def test_the_page_of_commands_is_fresh_and_says_what_help_says() -> None:
    committed = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert committed == reference.page(), "run: python -m qpeft.cli.reference > docs/commands.md"
    for section in committed.split("\n## ")[1:]:
        name, _, text = section.partition("\n")
        told = CliRunner().invoke(app, [*name.split()[1:], "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
        listed = set(re.findall(r"^ +(?:-\w, )?(--[a-z][\w-]*)", told, re.MULTILINE)) - {"--help"}
        assert listed == set(re.findall(r"^\| `(?:-\w, )?(--[a-z][\w-]*)", text, re.MULTILINE)), name
