"""The documentation site: `make docs` builds it into docs/_build/html with warnings as errors."""

import shutil
from pathlib import Path

import qpeft

DOCS = Path(__file__).parent

project = "qpeft"
author = "The qpeft developers"
copyright = author  # noqa: A001  # Sphinx reads this name
version = release = qpeft.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_favicon = "images/icon.svg"
html_title = f"qpeft {release}"
html_static_path: list[str] = []
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["colon_fence", "tasklist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # generated pages start some sections one level down

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_mock_imports: list[str] = []
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
copybutton_exclude = ".linenos, .gp"
COPIED = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")  # they stand at the top of the repository; the site shows copies


def _top_level_pages(app: object, docname: str, source: list[str]) -> None:
    """Links to files of the repository outside docs/ lead to the site's copies, or become plain names."""
    import re

    def copied(match: re.Match[str]) -> str:
        up = "../" * (docname.count("/"))
        return f"]({up}project/{match[1].lower()})" if match[1] in COPIED else match[0]

    source[0] = re.sub(r"\]\((?:\.\./)+([A-Z]+\.md)\)", copied, source[0])

    def plain(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        inside = (DOCS / docname).parent.joinpath(target.split("#")[0]).resolve()
        return match[0] if inside.is_relative_to(DOCS) and not inside.is_dir() else f"`{text}`"

    source[0] = re.sub(r"(?<!!)\[([^\]\[`]+)\]\((\.\.?/[^)\s]+|[\w-]+/[^)\s]*)\)", plain, source[0])


def _docstrings(app: object, kind: str, name: str, found: object, options: object, lines: list[str]) -> None:
    """A drawn tree is a literal block, and a star in code is a star."""
    if any(line.lstrip().startswith(("|--", "`--")) for line in lines):
        first = next(i for i, line in enumerate(lines) if line and i > 0 and not line[0].isspace() and lines[i - 1] == "")
        lines[:] = [*lines[:first], "::", "", *(f"    {line}" for line in lines[first:])]
    lines[:] = [line.replace("**", r"\*\*") for line in lines]


def _project_pages(app: object) -> None:
    folder = DOCS / "project"
    folder.mkdir(exist_ok=True)
    for name in COPIED:
        text = (DOCS.parent / name).read_text(encoding="utf-8").replace("](docs/", "](../")
        (folder / name.lower()).write_text(text, encoding="utf-8")


def _clean(app: object, exception: Exception | None) -> None:
    shutil.rmtree(DOCS / "project", ignore_errors=True)


def setup(app: object) -> None:
    app.connect("builder-inited", _project_pages)  # type: ignore[attr-defined]
    app.connect("autodoc-process-docstring", _docstrings)  # type: ignore[attr-defined]
    app.connect("source-read", _top_level_pages)  # type: ignore[attr-defined]
    app.connect("build-finished", _clean)  # type: ignore[attr-defined]
