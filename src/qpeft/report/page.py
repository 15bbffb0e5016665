"""The report as files: Markdown, one HTML page that needs no network, and the plots as PNG next to them."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qpeft.errors import MissingDependencyError, RunError
from qpeft.records import RunRecord
from qpeft.report import notes, words
from qpeft.report.plots import plots
from qpeft.report.sections import sections
from qpeft.report.style import marks
from qpeft.report.svg import styles
from qpeft.report.view import section_view
from qpeft.web.site import text


@dataclass(frozen=True)
class Built:
    """The files of a report; `hero` is the wide plot for a README, None without two arms to compare."""

    markdown: Path
    html: Path
    plots: tuple[Path, ...]
    hero: Path | None


def build(records: Iterable[RunRecord], out: Path, *, title: str | None = None) -> Built:
    """Write report.md, report.html and the plots. Equal records give equal files.

    The first section's plots are hero.png, curves.png and tradeoff.png, those of section 2 hero-2.png and so on.

    Args:
        records: the records.
        out: folder to write.
        title: title of the page; default one with the names of the groups.

    Raises:
        RunError: no record, a record with a number that is not finite, or `out` is a file.
        MissingDependencyError: a package of the extra `report` is missing.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise RunError("the report needs a folder", value=str(out), hint="name a folder that exists or can be made, not a file")
    found = sections(records)
    look = marks(arm.label for section in found for arm in section.arms)
    files: dict[str, bytes] = {}
    views = []
    for number, section in enumerate(found, start=1):
        named = {f"{plot.name}.png" if number == 1 else f"{plot.name}-{number}.png": plot for plot in plots(section, look)}
        files |= {name: plot.png for name, plot in named.items()}
        views.append(section_view(number, section, look, named))
    script = "\n".join(text(name) for name in ("tables.js", "charts.js", "theme.js"))
    simulated = any(run.simulated for section in found for arm in section.arms for run in arm.finished)
    page = {
        "title": " ".join((title or f"Fine-tuning report: {words.listing(dict.fromkeys(s.group for s in found))}").split()),
        "statement": notes.NO_ADVANTAGE if simulated else "",
        "sections": views,
        "app_styles": text("app.css"),
        "plot_styles": styles(len(look)),
        "script": script,
        "script_hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    files["report.html"] = _render("page.html.jinja", page, html=True).encode()
    files["report.md"] = _render("page.md.jinja", page, html=False).encode()

    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
    pictures = tuple(out / name for name in files if name.endswith(".png"))
    hero = next((path for path in pictures if path.name.startswith("hero")), None)
    return Built(out / "report.md", out / "report.html", pictures, hero)


def _render(template: str, page: Mapping[str, Any], *, html: bool) -> str:
    """Fill a template; every value is escaped, for HTML by jinja's autoescape, for Markdown by `markdown_text`."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError("jinja2", "report", "a report page") from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qpeft", "report"),
        autoescape=html,
        finalize=None if html else lambda value: value if isinstance(value, _Verbatim) else markdown_text(str(value)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["fenced"] = _fenced
    return str(environment.get_template(template).render(page))


class _Verbatim(str):
    """Markdown that is not to be escaped again."""

    __slots__ = ()


def markdown_text(text: str) -> str:
    """Text on one line in which Markdown and HTML see nothing to act on; safe in a table cell."""
    line = " ".join(text.split())
    line = re.sub(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _fenced(text: str) -> _Verbatim:
    """A YAML code block whose fence is longer than any run of backticks inside."""
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return _Verbatim(f"{fence}yaml\n{text}\n{fence}")
