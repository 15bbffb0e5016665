"""Checks of a release: `python tests/release.py VERSION`, `python tests/release.py --licences FILE`. Standard library only."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# Licences that would bind the users of qpeft if a dependency had them
STRONG_COPYLEFT = re.compile(r"\b(?<!L)A?GPL|GNU (?:Affero )?General Public", re.IGNORECASE)


def versions() -> dict[str, str]:
    """The version that each file names: package, citation, changelog (its newest section), how to cite."""
    patterns = {
        "src/qpeft/__init__.py": r'^__version__ = "(.+)"$',
        "CITATION.cff": r"^version: (.+)$",
        "CHANGELOG.md": r"^## (\d[\w.]*)",
        "docs/cite.md": r"version = \{(.+)\}",
    }
    found = {}
    for name, pattern in patterns.items():
        match = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        found[name] = match[1] if match else "none"
    return found


def project() -> dict[str, Any]:
    """The package as pyproject.toml describes it."""
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])


def extras() -> dict[str, list[str]]:
    """The optional dependencies of the package."""
    return {str(name): list(needed) for name, needed in project()["optional-dependencies"].items()}


def forbidden(report: str) -> list[str]:
    """Lines of a licence report (Markdown of pip-licenses) whose only licence is GPL or AGPL."""
    found = []
    for line in report.splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        choices = re.split(r"\bOR\b|;", cells[2]) if len(cells) > 2 else []
        if choices and all(STRONG_COPYLEFT.search(choice) for choice in choices):
            found.append(f"{cells[0]} {cells[1]}: {cells[2]}")
    return found


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--licences"]:
        problems = forbidden(Path(arguments[1]).read_text(encoding="utf-8"))
    else:
        problems = [f"{name} names {version}" for name, version in versions().items() if version != arguments[0]]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
