"""Rendering a site's pages: its templates over the shared ones, in the visitor's language and colours."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from qpeft.errors import MissingDependencyError
from qpeft.web.language import translate, translate_message

THEMES = ("light", "dark")
SCRIPTS = ("tables.js", "charts.js", "live.js")
STATIC = {"app.css": "text/css; charset=utf-8", **dict.fromkeys(SCRIPTS, "text/javascript; charset=utf-8")}


@functools.cache
def environment(packages: tuple[tuple[str, str], ...]) -> Any:
    """The Jinja environment of templates in `(package, folder)`, then the shared ones; everything is escaped."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError("jinja2", "report", "a page") from error
    loaders = [jinja2.PackageLoader(*place) for place in (*packages, ("qpeft.web", "templates"))]
    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["n"] = lambda value: "" if value is None else f"{value:,}"
    return made


def render(
    places: tuple[tuple[str, str], ...],
    template: str,
    *,
    language: str,
    theme: str,
    site: str,
    path: str,
    nav: Sequence[tuple[str, str]] = (),
    live: str = "",
    static: str = "/static",
    values: Mapping[str, Any],
) -> str:
    """The text of a page: `{template}.html.jinja` from the first `(package, folder)` that has it, with what every page shows.

    Args:
        places: `(package, folder)` of templates, searched in this order, then the shared ones.
        template: name of the template, without `.html.jinja`.
        language: code of the visitor's language.
        theme: "light" or "dark", "" for what the browser says.
        site: name of the site, in the title.
        path: address of the page, to mark it in the menu.
        nav: `(address, title)` of the pages in the menu.
        live: address of the events that refresh the page, "" for none.
        static: address of styles and scripts.
        values: what this template shows.
    """
    common = {"language": language, "theme": theme, "site": site, "path": path, "nav": nav, "live": live, "static": static}
    found = environment(places).get_template(f"{template}.html.jinja")
    speaks = {"t": functools.partial(translate, language), "message": functools.partial(translate_message, language)}
    return str(found.render(**common, **speaks, **values))


def text(name: str) -> str:
    """A shared style or script as text, for a page that opens from disk."""
    return (resources.files("qpeft.web") / "static" / name).read_text(encoding="utf-8")


@functools.cache
def shared_file(name: str) -> bytes | None:
    """A style or script that all sites share; None for any other name."""
    return (resources.files("qpeft.web") / "static" / name).read_bytes() if name in STATIC else None
